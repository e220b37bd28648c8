"""Strategies of the server: by hand on quadratics, beside Flower's own, and what the papers say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from quadratic import Federation, QuadraticSite, rounds
from test_task_gan_features import config as of_features

from common.config.run_config import RunConfig
from common.errors import AnswerError, ConfigError, FedscanError
from common.rounds import begin, run_rounds
from common.run_state import RunState, Update
from common.strategies._robust import by_score, distances
from common.strategies.strategy import SiteUpdate, load_strategy, strategy_names
from common.tasks.task import SiteContext, read_run_config

ADAPTIVE = ["fedadam", "fedyogi", "fedadagrad"]
ROBUST = ["fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"]
SHAPES = {"body": (3, 4), "head": (5,), "scalar": ()}


def random_state(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}


def near(
    weights: dict[str, torch.Tensor], number: int, seed: int = 0, *, counts: tuple[int, ...] = ()
) -> dict[str, SiteUpdate]:
    """Sites' updates about some weights."""
    counts = counts or (10,) * number
    found = {}
    for site, count in zip(range(number), counts, strict=True):
        step = random_state(1000 * seed + site + 1, 0.1)
        moved = {name: weights[name] + step[name] for name in weights}
        metrics = {"loss": 0.5 + 0.1 * site}
        found[f"site-{site}"] = SiteUpdate(moved, count, float(count), {}, metrics)
    return found


def configured(name: str, **options: float) -> RunConfig:
    values = {f"strategy.{key.replace('_', '-')}": value for key, value in options.items()}
    return read_run_config({"strategy.name": name, **values})


def step(
    name: str,
    updates: dict[str, SiteUpdate],
    weights: dict[str, torch.Tensor],
    rate: float = 1.0,
    **options: float,
) -> dict[str, torch.Tensor]:
    """One round from the first state."""
    config, strategy = configured(name, **options), load_strategy(name)
    state = strategy.first_state(weights, config, tuple(updates))
    found, _ = strategy.aggregate(
        updates, weights, state, config, participants=len(updates), rate=rate
    )
    return found


def close(found: dict, expected: dict, **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], **tolerance)


def mean(updates: dict[str, SiteUpdate]) -> dict[str, torch.Tensor]:
    return {
        name: torch.stack([update.weights[name] for update in updates.values()]).mean(0)
        for name in SHAPES
    }


# By hand: two sites, one local step from 0, η = 0.1. Site i goes to 0.1 a_i b_i: 0.1 and 0.6.

SITES = (QuadraticSite(1.0, 1.0), QuadraticSite(2.0, 3.0))


def gone(w: float) -> float:
    """Return the mean of where both sites go from w, less w."""
    return 0.1 * ((1 - w) + 2 * (3 - w)) / 2


def test_fedavgm_adds_what_is_left_of_the_last_step():
    first = gone(0)
    second = first + 0.5 * first + gone(first)
    assert rounds("fedavgm", *SITES, number=2, momentum=0.5) == pytest.approx([first, second])


def test_fedavgm_goes_the_servers_learning_rate_along_its_momentum():
    federation = Federation("fedavgm", *SITES, momentum=0.5)
    assert federation.round(rate=2.0)["body.weight"] == pytest.approx(2 * gone(0))


def test_fedadam_divides_the_mean_step_by_its_usual_size():
    d = gone(0)
    m, v = 0.1 * d, 0.99 * 1e-3**2 + 0.01 * d**2
    w = 0.5 * m / (math.sqrt(v) + 1e-3)
    d = gone(w)
    m, v = 0.9 * m + 0.1 * d, 0.99 * v + 0.01 * d**2
    found = rounds("fedadam", *SITES, number=2, eta=0.5)
    assert found == pytest.approx([w, w + 0.5 * m / (math.sqrt(v) + 1e-3)], rel=1e-5)


def test_fedyogi_adds_a_part_of_the_square_to_what_is_below_it():
    d = gone(0)
    v = 1e-3**2 + 0.01 * d**2
    assert rounds("fedyogi", *SITES, number=1, eta=0.5) == pytest.approx(
        [0.5 * 0.1 * d / (math.sqrt(v) + 1e-3)], rel=1e-5
    )


def test_fedadagrad_divides_by_the_root_of_all_squares():
    d = gone(0)
    w = 0.5 * d / (math.sqrt(1e-3**2 + d**2) + 1e-3)
    second = w + 0.5 * gone(w) / (math.sqrt(1e-3**2 + d**2 + gone(w) ** 2) + 1e-3)
    assert rounds("fedadagrad", *SITES, number=2, eta=0.5) == pytest.approx([w, second], rel=1e-5)


def test_fedmedian_of_three_quadratics_is_the_one_in_the_middle():
    found = rounds("fedmedian", *SITES, QuadraticSite(1.0, 100.0), number=1)
    assert found == pytest.approx([0.6])


def test_fedtrimmedavg_leaves_out_one_quadratic_at_either_end():
    sites = [QuadraticSite(1.0, b) for b in (-50.0, 1.0, 2.0, 6.0, 100.0)]
    assert rounds("fedtrimmedavg", *sites, number=1) == pytest.approx([0.1 * (1 + 2 + 6) / 3])


def test_krum_takes_the_quadratic_with_the_nearest_neighbours():
    """f = 1: of five the two nearest others count. The sums are 5, 2, 5, ..."""
    sites = [QuadraticSite(1.0, b) for b in (1.0, 2.0, 3.0, 9.0, -50.0)]
    assert rounds("krum", *sites, number=1) == pytest.approx([0.2])


def test_multikrum_takes_the_mean_of_the_nearest_quadratics():
    sites = [QuadraticSite(1.0, b) for b in (1.0, 2.5, 3.0, 9.0, -50.0)]
    assert rounds("multikrum", *sites, number=1, select=2) == pytest.approx([0.1 * 5.5 / 2])


def test_bulyan_averages_the_values_about_the_median_of_the_chosen():
    """f = 1: five of seven are chosen, and of them the three nearest to the median averaged."""
    sites = [QuadraticSite(1.0, b) for b in (1.0, 2.0, 3.0, 3.5, 4.0, 50.0, -50.0)]
    assert rounds("bulyan", *sites, number=1) == pytest.approx([0.1 * (3 + 3.5 + 4) / 3])


def test_qfedavg_weighs_steps_by_powers_of_the_losses():
    """F = a/2 · 3 b² at 0 over three parameters; ways 0.1 and 0.6 in each of them."""
    q, lipschitz = 2.0, 1000.0
    losses, ways = (1.5, 27.0), (0.1, 0.6)
    top = sum(f**q * lipschitz * way for f, way in zip(losses, ways, strict=True))
    bottom = sum(
        q * f ** (q - 1) * 3 * (lipschitz * way) ** 2 + lipschitz * f**q
        for f, way in zip(losses, ways, strict=True)
    )
    federation = Federation("qfedavg", *SITES, q=q)
    assert federation.config.training.learning_rate == 1 / lipschitz
    assert federation.round()["body.weight"] == pytest.approx(top / bottom, rel=1e-5)


# Beside Flower's own, over three rounds


TELLS_FLOWER = pytest.mark.usefixtures("task_identity")


def record(state: dict[str, torch.Tensor]) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor.numpy().copy()) for name, tensor in state.items()})


def messages(updates: dict[str, SiteUpdate]) -> list[Message]:
    found = []
    for number, update in enumerate(updates.values()):
        metrics = {"num-examples": update.count, "train_loss": update.metrics["loss"]}
        content = {"arrays": record(update.weights), "metrics": MetricRecord(metrics)}
        found.append(Message(RecordDict(content), dst_node_id=number + 1, message_type="train"))
    return found


def both(name: str, theirs: flower.FedAvg, sites: int, before=None, **options: float) -> None:
    """Give Flower's strategy and ours the same updates; hold the weights together."""
    config, ours = configured(name, **options), load_strategy(name)
    weights = random_state(7)
    state = ours.first_state(weights, config, ())
    for number in range(1, 4):
        theirs.configure_train(number, record(weights), ConfigRecord(), EmptyGrid())
        if before is not None:
            before(theirs, number, weights)
        counts = tuple(10 + 7 * site for site in range(sites)) if name not in ROBUST else ()
        counts = () if name == "qfedavg" else counts
        updates = near(weights, sites, number, counts=counts)
        expected, _ = theirs.aggregate_train(number, messages(updates))
        weights, state = ours.aggregate(
            updates, weights, state, config, participants=sites, rate=1.0
        )
        assert expected is not None
        close(
            weights,
            {n: torch.from_numpy(np.array(a.numpy())) for n, a in expected.items()},
            check_dtype=False,
            rtol=1e-5,
            atol=1e-6,
        )


class EmptyGrid:
    """Two nodes that nobody asks."""

    def get_node_ids(self) -> list[int]:
        return [1, 2]


@TELLS_FLOWER
def test_fedavgm_is_flowers():
    both("fedavgm", flower.FedAvgM(server_momentum=0.9), 3)


def start_as_in_the_paper(theirs, number: int, weights: dict[str, torch.Tensor]) -> None:
    if number == 1:  # Flower begins at v = 0
        theirs.v_t = {n: np.full(t.shape, 0.03**2, np.float32) for n, t in weights.items()}


@TELLS_FLOWER
@pytest.mark.parametrize(
    ("name", "theirs"), [("fedyogi", flower.FedYogi), ("fedadagrad", flower.FedAdagrad)]
)
def test_adaptive_servers_are_flowers_but_for_where_v_begins(name, theirs):
    options = {"eta": 0.05, "tau": 0.03}
    both(name, theirs(**options), 3, start_as_in_the_paper, **options)


@TELLS_FLOWER
def test_fedadam_is_flowers_without_the_correction_that_the_paper_lacks():
    def uncorrected(theirs, number: int, weights: dict[str, torch.Tensor]) -> None:
        start_as_in_the_paper(theirs, number, weights)
        theirs.eta = 0.05 * (1 - 0.9 ** (number + 1)) / math.sqrt(1 - 0.99 ** (number + 1))

    both("fedadam", flower.FedAdam(tau=0.03), 3, uncorrected, eta=0.05, tau=0.03)


@TELLS_FLOWER
@pytest.mark.parametrize("sites", [4, 5])
def test_fedmedian_is_flowers(sites):
    both("fedmedian", flower.FedMedian(), sites)


@TELLS_FLOWER
def test_fedtrimmedavg_is_flowers():
    both("fedtrimmedavg", flower.FedTrimmedAvg(beta=0.2), 6, beta=0.2)


@TELLS_FLOWER
def test_krum_is_flowers_where_weights_are_small():
    both("krum", flower.Krum(num_malicious_nodes=1), 6, malicious=1)


@TELLS_FLOWER
def test_multikrum_is_flowers_where_weights_are_small():
    theirs = flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4)
    both("multikrum", theirs, 6, malicious=1, select=4)


@TELLS_FLOWER
def test_bulyan_is_flowers_where_both_choose_the_same_sites():
    """Flower's own choice scores sites once; its second half is given ours, of an odd number."""

    def choice(contents, malicious, number):
        sites = {
            str(i): SiteUpdate(
                {n: torch.from_numpy(a.numpy()) for n, a in content["arrays"].items()}, 1, 1.0
            )
            for i, content in enumerate(contents)
        }
        chosen = load_strategy("bulyan").chosen(sites, configured("bulyan", malicious=malicious))
        assert len(chosen) == number
        taken = [any(site is one for one in chosen) for site in sites.values()]
        return [content for content, is_taken in zip(contents, taken, strict=True) if is_taken]

    both("bulyan", flower.Bulyan(num_malicious_nodes=1, selection_rule=choice), 7, malicious=1)


@TELLS_FLOWER
def test_qfedavg_is_flowers_where_all_votes_are_equal():
    both("qfedavg", flower.QFedAvg(client_learning_rate=1e-3, q=0.3), 3, q=0.3)


# Where Flower's are imprecise


def test_krum_measures_small_differences_of_large_weights():
    """In float32, ‖x‖² + ‖y‖² - 2 x·y has no digit left for them."""
    updates = {
        f"site-{i}": SiteUpdate({"w": torch.full((50,), 1000.0 + step)}, 1, 1.0)
        for i, step in enumerate((0.0, 0.5, 0.25, 3.0, 2.0))
    }
    found = np.array(distances(list(updates.values())))
    assert found[0][1] == pytest.approx(50 * 0.5**2)
    assert by_score(found, range(5), 1)[0] == 2
    theirs = flower.multikrum.compute_distances([record(u.weights) for u in updates.values()])
    assert not np.allclose(theirs, found, rtol=0.1)


def test_bulyan_scores_sites_anew_for_each_choice():
    """Of scores that are computed once, the fifth lowest is that of 5 and not that of 0."""
    values = (0.0, 1.0, 2.0, 3.0, 5.0, 6.0, 9.0)
    updates = {f"{value:.0f}": SiteUpdate({"w": torch.tensor([value])}, 1, 1.0) for value in values}
    once = by_score(distances(list(updates.values())), range(7), 1)[:5]
    assert sorted(values[i] for i in once) == [1, 2, 3, 5, 6]
    chosen = load_strategy("bulyan").chosen(updates, configured("bulyan"))
    assert [float(site.weights["w"]) for site in chosen] == [0, 1, 2, 3, 6]


# Where the papers say that it is FedAvg, or the mean


@pytest.mark.parametrize(("name", "options"), [("fedavgm", {"momentum": 0}), ("qfedavg", {"q": 0})])
def test_without_its_option_a_strategy_is_fedavg(name, options):
    weights = random_state(3)
    updates = near(weights, 3, counts=(10, 20, 70))
    close(step(name, updates, weights, **options), step("fedavg", updates, weights))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedtrimmedavg", {"beta": 0}),
        ("multikrum", {"malicious": 0}),
        ("multikrum", {"select": 5}),
        ("bulyan", {"malicious": 0}),
    ],
)
def test_a_robust_strategy_that_leaves_nobody_out_is_the_plain_mean(name, options):
    weights = random_state(3)
    updates = near(weights, 5)
    close(step(name, updates, weights, **options), mean(updates))


def test_multikrum_that_selects_one_is_krum():
    weights = random_state(3)
    updates = near(weights, 6)
    close(step("multikrum", updates, weights, select=1), step("krum", updates, weights))


def test_trimming_all_but_the_middle_is_the_median():
    weights = random_state(3)
    updates = near(weights, 5)
    close(step("fedtrimmedavg", updates, weights, beta=0.4), step("fedmedian", updates, weights))


# Whatever the sites


@pytest.mark.parametrize("name", ["fedavgm", *ADAPTIVE, *ROBUST, "qfedavg"])
def test_it_does_not_matter_which_site_is_which(name):
    weights = random_state(3)
    updates = near(weights, 7, counts=(10, 20, 30, 40, 50, 60, 70))
    turned = dict(zip(updates, [*updates.values()][3:] + [*updates.values()][:3], strict=True))
    found = step(name, turned, weights)
    close(found, step(name, updates, weights), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ROBUST)
def test_one_site_of_seven_cannot_pull_a_robust_strategy_out_of_the_others(name):
    weights = random_state(3)
    updates = near(weights, 7)
    honest = [updates[site].weights for site in list(updates)[:6]]
    far = {key: tensor + 1e6 for key, tensor in weights.items()}
    updates["site-6"] = SiteUpdate(far, 10**6, 1e6)
    found = step(name, updates, weights)
    for key, tensor in found.items():
        sites = torch.stack([one[key] for one in honest])
        assert (tensor >= sites.min(0).values).all()
        assert (tensor <= sites.max(0).values).all()


@pytest.mark.parametrize("name", ROBUST)
def test_robust_strategies_do_not_look_at_votes(name):
    weights = random_state(3)
    equal = step(name, near(weights, 7), weights)
    unequal = step(name, near(weights, 7, counts=(1, 1, 1, 1, 1, 1, 10**6)), weights)
    close(equal, unequal)


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg", "multikrum", "bulyan"])
def test_a_robust_mean_is_gone_to_as_far_as_the_servers_learning_rate_says(name):
    weights = random_state(3)
    updates = near(weights, 7)
    once, twice = step(name, updates, weights), step(name, updates, weights, rate=2.0)
    close(twice, {n: weights[n] + 2 * (once[n] - weights[n]) for n in weights})


@pytest.mark.parametrize("name", ["krum", *ADAPTIVE])
def test_a_generators_longer_step_has_no_place_where_there_is_no_average_or_another_rate(name):
    weights = random_state(3)
    updates = near(weights, 7)
    close(step(name, updates, weights, rate=2.0), step(name, updates, weights))
    with pytest.raises(ConfigError, match="server-learning-rate has no effect"):
        configured(name, server_learning_rate=2.0)


@pytest.mark.parametrize("name", ["fedavgm", *ADAPTIVE])
def test_a_weight_that_nobody_moves_stays(name):
    weights = random_state(3)
    updates = near(weights, 3)
    for update in updates.values():
        update.weights["head"] = weights["head"].clone()
    found = step(name, updates, weights)["head"]
    torch.testing.assert_close(found, weights["head"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["fedavgm", *ADAPTIVE, "fedmedian", "multikrum", "qfedavg"])
def test_weights_keep_their_type_and_inputs_their_values(name):
    weights = random_state(3)
    updates = near(weights, 7)
    before = {n: t.clone() for n, t in weights.items()}
    found = step(name, updates, weights)
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        n: (t.dtype, t.shape) for n, t in weights.items()
    }
    close(weights, before, rtol=0, atol=0)


# How many sites it takes

PLACES = {number: tuple(f"site-{i}" for i in range(number)) for number in range(1, 12)}


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("bulyan", {}, 7),
        ("bulyan", {"malicious": 2}, 11),
        ("krum", {}, 5),
        ("multikrum", {"malicious": 0}, 3),
        ("multikrum", {"malicious": 1, "select": 8}, 8),
        ("fedtrimmedavg", {}, 5),
        ("fedtrimmedavg", {"beta": 0.1}, 10),
        ("fedtrimmedavg", {"beta": 0}, 1),
        ("fedmedian", {}, 1),
    ],
)
def test_a_strategy_says_how_many_sites_it_needs(name, options, needed):
    assert load_strategy(name).sites_needed(configured(name, **options)) == needed


def test_bulyan_with_three_sites_is_refused_with_the_number_that_it_needs():
    place = SiteContext("", PLACES[3], torch.device("cpu"))
    with pytest.raises(ConfigError, match="'bulyan' needs 7 sites and there are 3"):
        begin(configured("bulyan"), place)


def test_a_round_that_has_lost_too_many_sites_is_refused_and_not_aggregated_unprotected():
    weights = random_state(3)
    with pytest.raises(FedscanError, match=r"'krum' needs the updates of 5 sites .* only those of"):
        step("krum", near(weights, 4), weights)


@pytest.mark.parametrize(
    ("name", "number"),
    [("fedavgm", 1), *((name, 1) for name in ADAPTIVE), ("fedmedian", 2), ("krum", 5)],
)
def test_a_lost_answer_is_survived_where_enough_are_left(name, number):
    weights = random_state(3)
    config, strategy = configured(name), load_strategy(name)
    state = strategy.first_state(weights, config, PLACES[7])
    for present in (7, number, 7):
        weights, state = strategy.aggregate(
            near(weights, present), weights, state, config, participants=7, rate=1.0
        )
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


# Losses, which q-FedAvg asks for


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, "'site-1': it does not tell the loss .*min-participants"),
        ({"loss": -1.0}, "'site-1': it tells a training loss of -1"),
        ({"loss": math.nan}, "'site-1': it tells a training loss of nan"),
        ({"loss": math.inf}, "'site-1': it tells a training loss of inf"),
    ],
)
def test_qfedavg_names_the_site_whose_loss_it_cannot_use(metrics, words):
    weights = random_state(3)
    updates = near(weights, 2)
    updates["site-1"] = SiteUpdate(updates["site-1"].weights, 10, 10.0, {}, metrics)
    with pytest.raises(AnswerError, match=words):
        step("qfedavg", updates, weights)


@pytest.mark.parametrize("loss", [0.0, 1e-300, 1e300])
@pytest.mark.parametrize("q", [0.1, 10])
def test_qfedavg_stays_finite_whatever_loss_a_site_tells(loss, q):
    weights = random_state(3)
    updates = near(weights, 2)
    updates["site-1"] = SiteUpdate(updates["site-1"].weights, 10, 10.0, {}, {"loss": loss})
    found = step("qfedavg", updates, weights, q=q)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())


def test_qfedavg_goes_towards_the_site_with_the_higher_loss():
    weights = random_state(3)
    updates = near(weights, 2)
    parts = {n: (u.weights["head"] - weights["head"]).double() for n, u in updates.items()}
    moved = (step("qfedavg", updates, weights, q=5)["head"] - weights["head"]).double()
    pairs = torch.stack([*parts.values()]).T
    shares = torch.linalg.lstsq(pairs, moved[:, None]).solution[:, 0]
    assert float(shares[1] / shares[0]) == pytest.approx((0.6 / 0.5) ** 5, rel=1e-3)


# Statistics over people, in which no step is taken


class Features:
    """Sites that move weights by 1, 2, … and a statistic by 4, 8, …."""

    def __init__(self, sites: int) -> None:
        self.names = PLACES[sites]

    def train(self, number, weights, state):
        return {
            site: Update(
                10,
                {"loss": 1.0},
                {n: t + (i + 1) * (4 if n == "log_variance" else 1) for n, t in weights.items()},
            )
            for i, site in enumerate(self.names)
        }

    def record(self, number, split, measured):
        pass

    def settle(self, number, used, refused, state):
        pass

    def keep(self, state):
        pass

    def evaluate(self, number, released, split, state):
        raise InterruptedError


@pytest.mark.parametrize(
    ("name", "sites", "expected"),
    [("fedavg", 2, 6), ("fedavgm", 2, 6), *((name, 2, 6) for name in ADAPTIVE)]
    + [("fedmedian", 3, 8), ("krum", 5, 8), ("multikrum", 5, 10), ("bulyan", 7, 8)],
)
def test_statistics_go_where_the_sites_are_whatever_step_is_taken_in_weights(
    name, sites, expected, tmp_path
):
    rate = {"server_learning_rate": 2.0} if load_strategy(name).takes_server_rate else {}
    config = of_features(name=name, **rate)
    shared = {"log_variance": torch.zeros(2), "head.weight": torch.zeros(2)}
    first = load_strategy(name).first_state(shared, config, PLACES[sites])
    state = RunState(shared, shared, first)
    place = SiteContext("", PLACES[sites], torch.device("cpu"))
    with pytest.raises(InterruptedError):
        run_rounds(state, config, Features(sites), place=place, folder=tmp_path)
    assert list(state.shared) == ["log_variance", "head.weight"]
    assert state.shared["log_variance"].tolist() == [expected, expected]


# Where they can be chosen


def test_modules_that_strategies_share_are_no_strategies():
    assert not [name for name in strategy_names() if name.startswith(("_", "-"))]


@pytest.mark.parametrize("name", ["fedavgm", *ADAPTIVE, *ROBUST])
def test_generators_can_be_trained_by_it(name):
    assert read_run_config({"task": "generation", "strategy.name": name})


def test_a_generators_losses_are_not_what_qfedavg_asks_for():
    with pytest.raises(ConfigError, match="'generation' has no strategy 'qfedavg'"):
        read_run_config({"task": "generation", "strategy.name": "qfedavg"})


def test_all_sites_alike_are_their_own_krum():
    same = {f"site-{i}": SiteUpdate(random_state(1), 1, 1.0) for i in range(5)}
    for name in ("krum", "multikrum", "fedmedian"):
        close(step(name, same, random_state(0)), random_state(1))


def test_equal_scores_go_to_the_first_name():
    updates = {
        f"site-{i}": SiteUpdate({"w": torch.tensor([value])}, 1, 1.0)
        for i, value in enumerate((1.0, 2.0, 50.0))
    }
    found = step("krum", updates, {"w": torch.zeros(1)}, malicious=0)
    assert found["w"] == 1.0
