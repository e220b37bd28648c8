"""Differential privacy: ε as published, one person's influence bounded, noise that is secret."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from test_training_progress import NORTH, SITES, TINY, of_classifier
from tiny import dataset
from torch import nn

from common.errors import ConfigError
from common.local_round import first_weights, train_one_round
from common.privacy import accounting, dp_sgd
from common.privacy.accounting import epsilon_of, noise_for
from common.privacy.dp_sgd import DPSGD, require_separate, sum_of_clipped
from common.privacy.guarantee import dp_sgd_of, guarantee_of
from common.privacy.noise import SECRET_BITS, noise_like
from common.privacy.sampling import poisson_batches
from common.strategies.strategy import load_strategy, strategy_names
from common.tasks.task import load_task, read_run_config
from common.training import classifier

pytestmark = pytest.mark.usefixtures("one_thread")

PRIVATE = [name for name in strategy_names() if load_strategy(name).private]
STEPS = 3
EPSILON = {"privacy.epsilon": 8.0}
CONFIDENCE = 0.999


# Accounting


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta", "epsilon"),
    [
        # Opacus, opacus/tests/accountants_test.py, test_rdp_accountant
        (1.5, 0.04, 2250, 1e-5, 7.32911117143),
        # TensorFlow Privacy, compute_dp_sgd_privacy_test.py: n, batch, σ, epochs, δ
        (1.3, 150 / 60_000, 15 * 400, 1e-5, 0.7242234026109595),
        (1.0, 100 / 100_000, 30 * 1000, 1e-7, 1.4154988495444845),
    ],
)
def test_epsilon_is_the_published_one_to_a_percent(sigma, rate, steps, delta, epsilon):
    assert epsilon_of(sigma, rate, steps, delta) == pytest.approx(epsilon, rel=0.01)


def test_mnist_with_noise_1_1_for_60_epochs_has_the_epsilon_3_of_the_tutorials():
    """By their conversion, ε = min over orders of RDP + log(1/δ)/(α - 1) (Mironov 2017)."""
    rdp = pytest.importorskip("opacus.accountants.analysis.rdp")
    orders = np.array(accounting.ORDERS)
    divergence = rdp.compute_rdp(
        q=256 / 60_000, noise_multiplier=1.1, steps=60 * 60_000 // 256, orders=orders
    )
    old = (divergence + math.log(1e5) / (orders - 1)).min()
    assert old == pytest.approx(3.0, abs=0.05)
    assert epsilon_of(1.1, 256 / 60_000, 60 * 60_000 // 256, 1e-5) < old  # a tighter conversion


def test_at_full_sampling_epsilon_bounds_the_gaussian_mechanisms_exact_one():
    """Of k Gaussian mechanisms, δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ) with μ = √k/σ (Balle and
    Wang 2018, arXiv 1805.06530, theorem 8)."""
    from scipy.stats import norm

    steps, sigma, delta = 10, 4.0, 1e-5
    mu, found = math.sqrt(steps) / sigma, epsilon_of(sigma, 1.0, steps, delta)
    exact = norm.cdf(mu / 2 - found / mu) - math.exp(found) * norm.cdf(-mu / 2 - found / mu)
    assert exact <= delta
    tighter = epsilon_of(sigma, 1.0, steps, delta, "prv")
    assert tighter <= found
    exact = norm.cdf(mu / 2 - tighter / mu) - math.exp(tighter) * norm.cdf(-mu / 2 - tighter / mu)
    assert exact <= delta


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 100.0])
def test_noise_for_a_budget_spends_it_and_no_more(epsilon):
    sigma = noise_for(epsilon, 1e-3, 0.1, 1800)
    assert 0.99 * epsilon <= epsilon_of(sigma, 0.1, 1800, 1e-3) <= epsilon


def test_a_run_spends_its_budget_in_its_last_round():
    config = read_run_config({**TINY, **EPSILON})
    promise = guarantee_of(config, 20)
    spent = [promise.spent(number) for number in range(config.run.rounds + 1)]
    assert spent == sorted(spent) and spent[0] == 0
    assert 0.99 * 8 <= spent[-1] <= 8
    assert promise.delta == 1 / 200


def test_a_delta_with_which_one_person_could_be_published_is_refused():
    config = read_run_config({**TINY, **EPSILON, "privacy.delta": 0.1})
    guarantee_of(config, 10)
    with pytest.raises(ConfigError, match=r"delta = 0\.1 is above"):
        guarantee_of(config, 11)


def test_without_opacus_the_way_out_is_named(monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(accounting.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"fedscan\[privacy\]"):
        epsilon_of(1.2345, 0.5, 3, 1e-3)


# Sampling


def test_people_are_drawn_independently_at_the_rate_and_never_with_more_images_than_allowed():
    persons = [f"p{k % 10}" for k in range(50)]  # five images of each
    drawn, steps = np.zeros((2000, 10)), poisson_batches(persons, 0.3, 2, seed=1)
    for row in drawn:
        for images in next(steps):
            assert len({persons[k] for k in images}) == 1
            assert len(set(images)) == len(images) == 2
            row[int(persons[images[0]][1:])] += 1
    assert drawn.max() == 1
    assert drawn.mean(0) == pytest.approx(np.full(10, 0.3), abs=0.05)
    together = np.corrcoef(drawn.T)[~np.eye(10, dtype=bool)]
    assert abs(together).max() < 0.1


def test_a_step_may_have_nobody_and_is_noise_then():
    layer = nn.Linear(2, 1)
    mechanism = DPSGD(1.0, 1.0, people=4, rate=0.1, images=1, seed=0)
    assert any(not batch for batch, _ in zip(mechanism.batches(["a"]), range(50), strict=False))
    mechanism.backward(layer, [], 1)
    assert layer.weight.grad.abs().min() > 0


# Clipping


vectors = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3)
people = st.lists(vectors, max_size=5)


def clipped_sum(gradients: Sequence[Sequence[float]], norm: float) -> torch.Tensor:
    weights = [torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)]
    losses = (g[0] * weights[0][0] + g[1] * weights[0][1] + g[2] * weights[1][0] for g in gradients)
    return torch.cat(sum_of_clipped(losses, weights, norm))


@given(people, vectors, vectors, st.floats(0.01, 100))
@settings(deadline=None)
def test_one_person_moves_the_sum_by_the_norm_and_a_replaced_one_by_twice_of_it(
    others, one, another, norm
):
    without = clipped_sum(others, norm)
    with_one, with_another = (clipped_sum([*others, own], norm) for own in (one, another))
    rounding = 1e-5 * norm * (1 + len(others))
    assert (with_one - without).norm() <= norm + rounding
    assert (with_one - with_another).norm() <= 2 * norm + rounding


def test_a_person_with_any_number_of_images_moves_a_networks_sum_by_the_norm():
    from common.models.classifier import build_classifier

    model = build_classifier("small", image_size=16, classes=2, seed=0)
    weights, norm = list(model.parameters()), 1e-3  # below every gradient
    images = torch.rand(6, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))

    def flat(*persons: slice) -> torch.Tensor:
        losses = (
            nn.functional.cross_entropy(model(images[one]), torch.ones(len(images[one])).long())
            for one in persons
        )
        return torch.cat([part.flatten() for part in sum_of_clipped(losses, weights, norm)])

    moved = flat(slice(0, 1), slice(1, 6)) - flat(slice(0, 1))
    assert float(moved.norm()) == pytest.approx(norm, rel=1e-3)


def test_a_gradient_that_is_not_finite_counts_as_none():
    assert clipped_sum([[math.inf, 0, 0], [math.nan, 1, 1]], 1.0).tolist() == [0, 0, 0]


def test_the_divisor_is_the_expected_number_of_people_whoever_is_drawn():
    layer = nn.Linear(1, 1, bias=False)
    mechanism = DPSGD(0.0, 1.0, people=7.5, rate=0.5, images=1, seed=0)
    for drawn in (1, 3):
        mechanism.backward(layer, [100 * layer.weight.sum() for _ in range(drawn)], 1)
        assert float(layer.weight.grad) == pytest.approx(drawn / 7.5)


def test_a_network_that_mixes_people_is_refused_unless_its_statistics_are_frozen():
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ConfigError, match="GroupNorm"):
        require_separate(model)
    require_separate(model.eval())
    require_separate(nn.GroupNorm(1, 3))


# An audit: how well can a threshold tell whether a person was there?


def lower_bound(found: np.ndarray, null: np.ndarray, delta: float) -> float:
    """Return an ε below which the mechanism is not, with confidence (Jagielski et al. 2020, arXiv
    2006.07709): log((true positive rate - δ) / false positive rate), by Clopper and Pearson."""
    half = len(null) // 2
    threshold = np.quantile(null[:half], 0.9)  # chosen on other trials than it is judged by
    hits, alarms, n = (found[half:] > threshold).sum(), (null[half:] > threshold).sum(), half
    true = beta.ppf(1 - CONFIDENCE, hits, n - hits + 1) if hits else 0.0
    false = beta.ppf(CONFIDENCE, alarms + 1, n - alarms)
    return math.log(max(true - delta, 1e-12) / false)


def audited(scale: float) -> tuple[float, float]:
    """Return a mechanism's ε and the audit's bound, of noise that is ``scale`` times too small."""
    config = read_run_config({**TINY, "run.rounds": 2, "privacy.epsilon": 1.0})
    persons = [f"p{k}" for k in range(8)]
    layer = nn.Linear(1, 1, bias=False)
    names, trials = np.array(persons), 1600

    right = dp_sgd_of(config, len(persons), 0)
    given = replace(right, noise_multiplier=right.noise_multiplier * scale)

    def outcome(seed: int, *, there: bool) -> float:
        """Return Σ of the noisy sums; p0's gradient is as long as can be, all others' are 0."""
        mechanism, total = replace(given, seed=seed), 0.0
        for step, drawn in zip(range(4), mechanism.batches(persons), strict=False):
            steep = [k for k in drawn if there and names[k[0]] == "p0"]
            mechanism.backward(layer, (1e6 * layer.weight.sum() for _ in steep), step)
            total += float(layer.weight.grad) * mechanism.people
        return total

    found = np.array([outcome(k, there=True) for k in range(trials)])
    null = np.array([outcome(trials + k, there=False) for k in range(trials)])
    return 1.0, lower_bound(found, null, guarantee_of(config, len(persons)).delta)


def test_an_audit_with_the_worst_neighbours_finds_no_violation():
    promised, bound = audited(1.0)
    assert bound <= promised


def test_the_audit_catches_noise_of_a_tenth():
    promised, bound = audited(0.1)
    assert bound > promised


# In a training


def cubes(seed: int, count: int = 8):
    rng = np.random.default_rng(seed)
    images = rng.random((count, 1, 16, 16, 16), np.float32)
    return dataset(images, rng.permutation([0, 1] * (count // 2)))


def one_round(config, data, place=NORTH, number=1):
    task = load_task(config.task)
    weights = first_weights(task, task.build_model(config, place), config, SITES)
    return train_one_round(
        task,
        task.build_model(config, place),
        data,
        config,
        received=weights,
        private={},
        place=place,
        round_number=number,
    )


def test_without_noise_and_clipping_it_is_plain_training_on_the_same_batches(monkeypatch):
    values = {"training.augment": "none", "training.balance": "none", "training.batch-size": 8}
    data = cubes(0)
    plain = one_round(of_classifier("fedavg", **values, **{"model.adapt": "none"}), data)
    everyone = DPSGD(0.0, math.inf, people=8, rate=1.0, images=1, seed=0)
    monkeypatch.setattr(classifier, "dp_sgd_of", lambda *_: everyone)
    private = one_round(of_classifier("fedavg", **values, **EPSILON), data)
    for name, tensor in plain.sent.items():
        torch.testing.assert_close(private.sent[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PRIVATE)
def test_all_that_a_private_strategy_sends_tells_of_images_by_noisy_gradients_alone(
    name, monkeypatch
):
    """With their sum taken away, other images and labels of as many people change nothing."""
    config, steps = of_classifier(name, **EPSILON), []

    def nothing(losses, weights, max_norm):
        steps.append(sum(1 for _ in losses))
        return [torch.zeros_like(weight) for weight in weights]

    monkeypatch.setattr(dp_sgd, "sum_of_clipped", nothing)
    one, other = (one_round(config, cubes(seed)) for seed in (0, 1))
    assert len(steps) == 2 * STEPS  # no training beside
    assert one.metrics == other.metrics and "loss" not in one.metrics
    assert one.sent.keys() == other.sent.keys()
    assert all(torch.equal(one.sent[key], other.sent[key]) for key in one.sent)
    assert all(torch.equal(one.private[key], other.private[key]) for key in one.private)


@pytest.mark.parametrize("name", sorted({*strategy_names()} - {*PRIVATE}))
def test_a_strategy_that_is_not_covered_is_refused(name):
    with pytest.raises(ConfigError, match=f"strategy '{name}' uses images beyond"):
        read_run_config({**TINY, **EPSILON, "strategy.name": name})


@pytest.mark.parametrize(
    "values",
    [
        {"training.balance": "weights"},
        {"training.balance": "batches"},
        {"training.loss": "logit-adjusted"},
        {"training.absent-classes": "mask"},
        {"training.local-steps": 0, "training.local-epochs": 1},
        {"data.harmonize": "landmarks"},
        {"model.adapt": "threshold"},
        {"model.classifier": "gan-features"},
    ],
    ids=str,
)
def test_what_cannot_be_accounted_for_is_refused(values):
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        read_run_config({**TINY, **EPSILON, **values})


def test_keys_without_an_effect_are_refused():
    with pytest.raises(ConfigError, match=r"privacy\.max-norm has no effect"):
        read_run_config({**TINY, "privacy.max-norm": 2.0})


def test_a_site_tells_what_it_has_spent_and_no_loss():
    config = of_classifier("fedavg", **EPSILON)
    metrics = one_round(config, cubes(0)).metrics
    assert metrics["epsilon"] == guarantee_of(config, 8).spent(1)
    assert metrics.keys() == load_task(config.task).reports(config).training


def noise(place, number: int = 1) -> torch.Tensor:
    """Return a round's first noise at a place."""
    config = of_classifier("fedavg", **EPSILON)
    layer = nn.Linear(3, 1)
    seed = place.seed(config.run.seed, round=number, purpose="fit")
    dp_sgd_of(config, 8, seed).backward(layer, [], 1)
    return layer.weight.grad


def test_noise_differs_between_sites_rounds_and_secrets_and_repeats_in_a_simulation():
    south, secret = replace(NORTH, site="south"), replace(NORTH, secret="of its own")
    assert torch.equal(noise(NORTH), noise(NORTH))
    every = [noise(NORTH), noise(south), noise(secret), noise(NORTH, number=2)]
    assert len({tuple(one.flatten().tolist()) for one in every}) == 4


def test_every_bit_of_a_seed_counts_so_that_noise_cannot_be_tried_out():
    """PyTorch's generator on the CPU drops all but 32 bits."""
    zeros = torch.zeros(8)
    drawn = [noise_like(zeros, np.random.default_rng(5 + (1 << k))) for k in range(SECRET_BITS)]
    assert len({tuple(one.tolist()) for one in drawn}) == SECRET_BITS


def test_noise_is_standard_normal_and_of_its_tensors_shape_and_type():
    from scipy.stats import kstest

    generator = np.random.default_rng(0)
    drawn = noise_like(torch.zeros(100, 200), generator)
    assert (drawn.shape, drawn.dtype) == ((100, 200), torch.float32)
    assert kstest(drawn.flatten().numpy(), "norm").pvalue > 0.001
    assert noise_like(torch.zeros((), dtype=torch.float64), generator).dtype == torch.float64
