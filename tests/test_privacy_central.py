"""Noise at the server: one site changes the sum by its norm, and the rest of the run by nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from test_clients_local import TINY

from common import aggregation
from common.aggregation import aggregate_round
from common.errors import ConfigError
from common.privacy.central import clipped_sum, moving, noisy_mean
from common.privacy.guarantee import central_guarantee_of
from common.privacy.promises import central_statement
from common.rounds import begin
from common.run_state import RunState, Update
from common.strategies.strategy import load_strategy, strategy_names
from common.tasks.generation import W_AVERAGE
from common.tasks.task import SiteContext, load_task, read_run_config

pytestmark = pytest.mark.usefixtures("one_thread")

CENTRAL = {"privacy.central-epsilon": 8.0}
ABLE = [name for name in strategy_names() if load_strategy(name).secure_sums]
SITES = ("east", "north", "south", "west")
WEIGHTS = {"body.weight": torch.zeros(2, 3), "head.weight": torch.ones(2)}


def config(**values: object):
    options = {"fedrep": {"strategy.head-steps": 1}, "apfl": {"strategy.alpha-rate": 0.1}}
    own = options.get(values.get("strategy.name"), {})
    return read_run_config({**TINY, **CENTRAL, **own, **values})


def update(*numbers: float) -> dict[str, torch.Tensor]:
    body, head = torch.tensor(numbers[:6]).view(2, 3), torch.tensor(numbers[6:])
    return {"body.weight": body, "head.weight": head + 1}


class Answering:
    """Sites with given answers."""

    names = SITES

    def __init__(self, answers) -> None:
        self.answers = {name: Update(10, {}, state) for name, state in answers.items()}

    def train(self, number, weights, state):
        return dict(self.answers)

    def settle(self, number, used, refused, state) -> None:
        assert not refused

    def record(self, number, split, measured) -> None: ...


def one_round(answers, run, *, secret: bool = False):
    strategy = load_strategy(run.strategy.name)
    state = RunState(WEIGHTS, {}, strategy.first_state(WEIGHTS, run, SITES), secret_noise=secret)
    return aggregate_round(1, state, run, Answering(answers))


def difference(one, other) -> float:
    return math.sqrt(sum(float((one[n].double() - other[n].double()).square().sum()) for n in one))


# One site's part

numbers = st.lists(st.floats(-1e4, 1e4, width=32), min_size=8, max_size=8)


@given(st.lists(numbers, max_size=3), numbers, numbers, st.floats(0.01, 100))
@settings(deadline=None, max_examples=50)
def test_a_site_moves_the_sum_by_the_norm_and_a_replaced_one_by_twice_of_it(
    others, own, another, norm
):
    def total(*given: list[float]) -> dict[str, torch.Tensor]:
        updates = {str(k): update(*one) for k, one in enumerate(given)}
        return clipped_sum(updates, WEIGHTS, norm, list(WEIGHTS))

    without, one, other = total(*others), total(*others, own), total(*others, another)
    assert difference(one, without) <= norm * (1 + 1e-6)
    assert difference(one, other) <= 2 * norm * (1 + 1e-6)


@pytest.mark.parametrize("own", [[1e6] * 8, [math.nan] * 8, [0.0] * 8, [1e-3] * 8], ids=str)
def test_whatever_one_site_sends_a_round_ends_within_the_norm_over_all_that_are_asked(own):
    """Bounds by the others' updates, which would change with one site's, are off."""
    others = {
        name: update(*np.random.default_rng(k).normal(0, 1, 8)) for k, name in enumerate("abc")
    }
    others = dict(zip(SITES[:3], others.values(), strict=True))
    without, _ = one_round(others, config())  # the site is away
    given, _ = one_round({**others, SITES[3]: update(*own)}, config())
    assert difference(given, without) <= (1 + 1e-5) / len(SITES)


@pytest.mark.parametrize("name", ABLE)
def test_all_that_a_strategy_makes_of_updates_it_makes_of_their_noisy_mean(name, monkeypatch):
    monkeypatch.setattr(aggregation, "noisy_mean", lambda *_, **__: update(*range(8)))
    values = {"strategy.name": name}
    one, other = (
        one_round({site: update(*[k] * 8) for site in SITES}, config(**values)) for k in (1.0, -5.0)
    )
    for found, expected in zip(one, other, strict=True):
        assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_the_mean_is_over_those_that_are_asked_whoever_answers():
    mean = noisy_mean(
        {"north": update(*[0.1] * 8)},
        WEIGHTS,
        norm=1e3,
        noise_multiplier=0.0,
        sites=4,
        seed=0,
        names=list(WEIGHTS),
    )
    torch.testing.assert_close(mean["body.weight"], torch.full((2, 3), 0.1 / 4))
    torch.testing.assert_close(mean["head.weight"], torch.full((2,), 1 + 0.1 / 4))


def test_weights_that_do_not_train_get_no_noise_and_stay_the_servers():
    names = [*WEIGHTS, "norm.running_var"]
    assert moving(names) == [*WEIGHTS] and moving(names, head_alone=True) == ["head.weight"]
    given = {site: update(*[5.0] * 8) for site in SITES}
    found, _ = one_round(given, config(**{"model.trains": "head"}))
    assert torch.equal(found["body.weight"], WEIGHTS["body.weight"])
    assert not torch.equal(found["head.weight"], WEIGHTS["head.weight"])


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model.classifier": "slices"},
        {"study": "skin-lesions", "model.classifier": "efficientnet-b0"},
        {
            "study": "skin-lesions",
            "model.classifier": "efficientnet-b0",
            "model.normalization": "frozen",
        },
        {"task": "generation", "run.evaluate-every": 0, "data.size": 0},
    ],
    ids=str,
)
def test_noise_is_added_to_all_that_training_moves_and_to_nothing_else(values):
    run = read_run_config({**TINY, "data.size": 32, **values})
    task, place = load_task(run.task), SiteContext("server", SITES, torch.device("cpu"))
    model = task.build_model(run, place)
    if run.task == "generation":
        trained = {W_AVERAGE, *(f"generator.{n}" for n, _ in model.generator.named_parameters())}
        trained |= {f"discriminator.{n}" for n, _ in model.discriminator.named_parameters()}
    else:
        trained = {name for name, _ in model.named_parameters()}
        head = {name for name, part in task.parts(model).items() if part == "head"}
        assert set(moving(task.shared_state(model, run), head_alone=True)) == head
    assert set(moving(task.shared_state(model, run))) == trained


# The noise


def within(noise: torch.Tensor, sd: float) -> bool:
    """Tell whether a sample's variance is one of this SD, with 99.9 % confidence."""
    low, high = chi2.ppf([0.0005, 0.9995], noise.numel())
    return low <= float(noise.square().sum()) / sd**2 <= high


def test_the_noise_of_the_mean_has_the_sd_of_its_formula_and_a_tenth_less_is_seen():
    weights = {"w": torch.zeros(20_000, dtype=torch.float64)}
    found = noisy_mean(
        *({}, weights), norm=2.0, noise_multiplier=3.0, sites=5, seed=1, names=["w"]
    )["w"]
    assert within(found, 3.0 * 2.0 / 5)
    assert not within(0.9 * found, 3.0 * 2.0 / 5)
    assert not within(1.1 * found, 3.0 * 2.0 / 5)


def test_it_is_that_of_flowers_fixed_clipping():
    privacy = pytest.importorskip("flwr.supercore.differential_privacy")
    assert privacy.compute_stdv(3.0, 2.0, 5) == 3.0 * 2.0 / 5


def test_a_rounds_noise_is_calibrated_to_all_rounds(monkeypatch):
    given = {}
    monkeypatch.setattr(
        aggregation, "noisy_mean", lambda *_, **named: given.update(named) or WEIGHTS
    )
    run = config(**{"run.rounds": 7, "privacy.central-norm": 0.5})
    one_round({SITES[0]: update(*[1.0] * 8)}, run)
    assert (given["norm"], given["sites"]) == (0.5, 4)
    assert given["noise_multiplier"] == central_guarantee_of(run, 4).noise_multiplier


def test_the_noise_of_seeds_that_differ_in_a_high_bit_differs():
    given = ({}, {"w": torch.zeros(4)})
    about = {"norm": 1.0, "noise_multiplier": 1.0, "sites": 1, "names": ["w"]}
    one, other = (noisy_mean(*given, **about, seed=seed)["w"] for seed in (5, 5 + (1 << 100)))
    assert not torch.equal(one, other)


def test_noise_follows_from_the_seed_in_a_simulation_and_from_nothing_elsewhere():
    def found(secret: bool) -> torch.Tensor:
        return one_round({SITES[0]: update(*[0.0] * 8)}, config(), secret=secret)[0]["body.weight"]

    assert torch.equal(found(False), found(False))
    assert not torch.equal(found(True), found(True))
    assert RunState(WEIGHTS, {}, {}).secret_noise


# What is promised


@pytest.mark.parametrize(("epsilon", "rounds"), [(1.0, 10), (8.0, 45), (50.0, 45)])
def test_epsilon_is_that_of_gaussian_mechanisms_by_renyi_divergence_to_a_percent(epsilon, rounds):
    """ε = min over α of T α / 2σ² + log((α - 1) / α) - (log δ + log α) / (α - 1) (Mironov 2017,
    arXiv 1702.07476, corollary 3; Canonne et al. 2020, arXiv 2004.00010, proposition 12)."""
    run = config(**{"run.rounds": rounds, "privacy.central-epsilon": epsilon})
    promise = central_guarantee_of(run, 100)
    sigma, delta = promise.noise_multiplier, promise.delta
    alpha = np.linspace(1.01, 200, 200_000)
    bounds = rounds * alpha / (2 * sigma**2) + np.log1p(-1 / alpha)
    bounds -= (np.log(delta) + np.log(alpha)) / (alpha - 1)
    assert delta == 1 / 1000
    assert bounds.min() == pytest.approx(epsilon, rel=0.01)


def test_the_exact_epsilon_of_as_many_gaussian_mechanisms_is_no_more_than_promised():
    """Balle and Wang 2018, arXiv 1805.06530, theorem 8."""
    from scipy.stats import norm

    promise = central_guarantee_of(config(**{"run.rounds": 45}), 10)
    mu = math.sqrt(45) / promise.noise_multiplier
    exact = norm.cdf(mu / 2 - 8 / mu) - math.exp(8) * norm.cdf(-mu / 2 - 8 / mu)
    assert exact <= promise.delta


def test_the_summary_tells_the_servers_promise():
    told = central_statement(config(), 4, secret_noise=True)["central_privacy"]
    assert (told["unit"], told["epsilon"], told["delta"], told["sites"]) == ("site", 8.0, 1 / 40, 4)
    assert told["max_norm"] == 1.0 and told["secret_noise"] is True
    assert central_statement(read_run_config(TINY), 4, secret_noise=True) == {}


def test_a_delta_with_which_one_site_could_be_published_is_refused_before_the_run():
    place = SiteContext("server", SITES, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"central-delta = 0\.3 is above 1 / \(the sites"):
        begin(config(**{"privacy.central-delta": 0.3}), place)


# What is refused


@pytest.mark.parametrize("name", sorted({*strategy_names()} - {*ABLE}))
def test_a_strategy_that_needs_more_than_the_mean_is_refused(name):
    with pytest.raises(ConfigError, match=r"privacy\.central-epsilon"):
        config(**{"strategy.name": name})


@pytest.mark.parametrize(
    "values",
    [
        {"strategy.weighting": "images"},
        {"strategy.most-norm": 2.0},
        {"model.classifier": "gan-features"},
        {"run.evaluate-every": 1},
        {"run.patience": 3},
    ],
    ids=str,
)
def test_what_lets_a_site_change_more_than_its_update_is_refused(values):
    with pytest.raises(ConfigError, match=r"privacy\.central-epsilon: "):
        config(**values)


@pytest.mark.parametrize("key", ["privacy.central-norm", "privacy.central-delta"])
def test_keys_without_an_effect_are_refused(key):
    with pytest.raises(ConfigError, match=f"{key} has no effect"):
        read_run_config({**TINY, key: 0.5})


def test_only_the_last_round_is_validated_and_sites_count_alike():
    run = config()
    assert run.strategy.weighting == "uniform"
    assert run.run.evaluate_every >= run.run.rounds
