"""Strategies that learn from images without a label: DANN and CORAL, by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from quadratic import START, QuadraticSite
from tiny import dataset

from common.disclosure import Disclosure, people_for_moments
from common.errors import ConfigError
from common.local_round import first_weights, train_one_round
from common.strategies.coral import SUMS, MomentTerm, moments
from common.strategies.dann import DomainTerm
from common.strategies.strategy import SiteUpdate, load_strategy, split
from common.tasks.task import SiteContext, load_task, read_run_config
from common.training.batches import batches_of
from common.training.hooks import Batch

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = ("east", "west")
# Three features, of which the first alone speaks for "east": its logit is 1 + that feature.
CLASSIFIER = {
    "hidden.weight": torch.eye(3),
    "hidden.bias": torch.ones(3),
    "output.weight": torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    "output.bias": torch.zeros(2),
}
EAST = math.e / (1 + math.e)  # its probability where all features are 0


@dataclass
class Site(QuadraticSite):
    """A quadratic site that knows where it is."""

    site: str = "east"
    sites: tuple[str, ...] = SITES
    round: int = 1


def after_one_step(**about):
    """Train for one step of 0.1 under λ = 2 at the run's end; features are the three weights."""
    config = read_run_config(
        {"strategy.name": "dann", "strategy.domain-weight": 2.0, "strategy.domain-rate": 0.5}
        | {"run.rounds": 1}
    )
    return load_strategy("dann").train(Site(**about).begin(config, START, CLASSIFIER))


def test_dann_s_body_goes_up_the_loss_that_its_classifier_of_sites_goes_down():
    done = after_one_step(a=0.0, b=0.0)
    # -log p(east) falls by 1 - p with the feature and with the bias.
    ramp = 2 / (1 + math.exp(-10)) - 1
    assert float(done.parameters["body.weight"]) == pytest.approx(-0.1 * 2 * ramp * (1 - EAST))
    assert float(done.arrays["output.bias"][0]) == pytest.approx(0.5 * (1 - EAST))


def test_dann_s_term_is_beside_the_training_s_own_loss():
    alone, beside = after_one_step(a=0.0, b=0.0), after_one_step(a=1.0, b=1.0)
    moved = beside.parameters["body.weight"] - alone.parameters["body.weight"]
    assert float(moved) == pytest.approx(0.1 * 1.0)  # the quadratic's own step


def test_dann_s_site_learns_its_own_number():
    done = after_one_step(a=0.0, b=0.0, site="west")
    assert float(done.parameters["body.weight"]) > 0  # away from west is towards east
    assert float(done.arrays["output.bias"][1]) == pytest.approx(0.5 * EAST)


def test_dann_adds_nothing_where_no_site_is():
    done = after_one_step(a=0.0, b=0.0, site="all")
    assert float(done.parameters["body.weight"]) == 0
    assert torch.equal(done.arrays["output.bias"], CLASSIFIER["output.bias"])


def test_dann_s_classifier_of_sites_is_the_same_wherever_it_is_built():
    config, dann = read_run_config({"strategy.name": "dann"}), load_strategy("dann")
    first = dann.first_state({"head.weight": torch.zeros(2, 5)}, config, SITES)
    again = dann.first_state({"head.weight": torch.ones(2, 5)}, config, SITES)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["output.weight"].shape == (2, 32)


# Moments


def batch(features: torch.Tensor) -> Batch:
    targets = torch.zeros(len(features), dtype=torch.long)
    return Batch(features, targets, features, features.sum(), lambda logits: logits.sum())


def sums_of(*parts: torch.Tensor, told=None) -> dict[str, torch.Tensor]:
    """What a site sends that has seen some batches of features."""
    d = parts[0].shape[1]
    nobody = dict(zip(SUMS, (torch.zeros(()), torch.zeros(d), torch.zeros(d, d)), strict=True))
    term = MomentTerm(told or nobody, 1.0, seed=0)
    for part in parts:
        assert term.loss(torch.nn.Identity(), batch(part)) is None or told
    return term.after_round({})[0]


GENERATOR = torch.Generator().manual_seed(3)
ONE = torch.randint(-9, 9, (6, 3), generator=GENERATOR).float()
OTHER = torch.randint(-9, 9, (4, 3), generator=GENERATOR).float()


def test_coral_s_sums_add_up_to_the_moments_of_all_images_pooled():
    updates = {
        "east": SiteUpdate({"w": torch.zeros(1)}, 9, 5.0, sums_of(ONE[:2], ONE[2:])),
        "west": SiteUpdate({"w": torch.zeros(1)}, 9, 1.0, sums_of(OTHER)),
    }
    config = read_run_config({"strategy.name": "coral"})
    _, state = load_strategy("coral").aggregate(
        updates, {"w": torch.zeros(1)}, {}, config, participants=2, rate=1.0
    )
    pooled = torch.cat([ONE, OTHER])
    assert float(state["moments.count"]) == 10
    assert torch.equal(state["moments.products"], pooled.T @ pooled)
    mean, covariance = moments(state)
    torch.testing.assert_close(mean, pooled.mean(0))
    torch.testing.assert_close(covariance, torch.cov(pooled.T, correction=0))


def test_coral_s_term_is_nothing_where_moments_agree():
    term = MomentTerm(sums_of(ONE, ONE), 1.0, seed=0)
    assert float(term.loss(torch.nn.Identity(), batch(ONE))) == pytest.approx(0, abs=1e-8)


def test_coral_s_term_is_the_distance_of_moments():
    """Features of mean 0 and variance 1 against mean 2 and variance 4, one dimension, λ = 3."""
    told = sums_of(torch.tensor([[0.0], [4.0]]))
    term = MomentTerm(told, 3.0, seed=0)
    found = term.loss(torch.nn.Identity(), batch(torch.tensor([[-1.0], [1.0]])))
    assert float(found) == pytest.approx(3.0 * ((1 - 4) ** 2 / 4 + 2**2 / 4))


def test_coral_projects_many_features_alike_at_all_sites():
    told = dict(zip(SUMS, (torch.zeros(()), torch.zeros(2), torch.zeros(2, 2)), strict=True))
    sent = []
    for _ in SITES:
        term = MomentTerm(told, 1.0, seed=7)
        term.loss(torch.nn.Identity(), batch(ONE))
        sent.append(term.after_round({})[0])
    assert sent[0]["moments.sum"].shape == (2,)
    assert all(torch.equal(sent[0][name], sent[1][name]) for name in SUMS)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strategy.name": "coral", "transport": "float16"}, "too coarse for the sums"),
        ({"strategy.name": "coral", "model.classifier": "gan-features"}, "do not learn"),
        ({"strategy.name": "dann", "model.classifier": "gan-features"}, "do not learn"),
    ],
)
def test_what_these_strategies_cannot_train_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        read_run_config(values)


# One round of a classifier


def one_round(name: str, labels: list[int], place: SiteContext, **values):
    """Train at a site of a few cubes; return what it received and what it sends."""
    config = read_run_config(
        {
            **{"strategy.name": name, "data.size": 16, "run.rounds": 2},
            **{"training.local-steps": 2, "training.batch-size": 4, "strategy.weighting": "images"},
            **values,
        }
    )
    task = load_task("classification")
    images = np.random.default_rng(0).random((len(labels), 1, 16, 16, 16), np.float32)
    model = task.build_model(config, place)
    received = dict(first_weights(task, model, config, place.sites))
    if name == "coral":  # moments of a round before, so that there is a term
        d = len(received["strategy/moments.sum"])
        received |= {"strategy/moments.count": torch.tensor(9.0)}
        received |= {"strategy/moments.products": 9 * torch.eye(d)}
    done = train_one_round(
        task,
        model,
        dataset(images, labels),
        config,
        received=received,
        private={},
        place=place,
        round_number=2,
    )
    return received, done


HERE = SiteContext("east", SITES, torch.device("cpu"))


@pytest.mark.parametrize("name", ["dann", "coral"])
def test_a_site_without_labels_trains_its_features_and_leaves_the_classes_alone(name):
    received, done = one_round(name, [-1] * 6, HERE)
    moved = {n for n, t in split(done.sent)[0].items() if not torch.equal(t, received[n])}
    assert {"head.weight", "head.bias"}.isdisjoint(moved)
    assert moved


def test_a_site_without_labels_learns_nothing_while_no_moments_are_known():
    place = SiteContext("east", SITES, torch.device("cpu"))
    config = read_run_config({"strategy.name": "coral", "data.size": 16})
    task = load_task("classification")
    model = task.build_model(config, place)
    received = first_weights(task, model, config, SITES)
    images = np.random.default_rng(0).random((4, 1, 16, 16, 16), np.float32)
    done = train_one_round(
        task,
        model,
        dataset(images, [-1] * 4),
        config.replace({"training.local-steps": 1, "training.batch-size": 4}),
        received=received,
        private={},
        place=place,
        round_number=1,
    )
    weights, arrays = split(done.sent)
    assert all(torch.equal(weights[name], received[name]) for name in weights)
    assert float(arrays["moments.count"]) == 4


@pytest.mark.parametrize(
    ("least", "share", "images", "told"),
    [(1, True, 4, 8.0), (5, True, 4, 0.0), (1, False, 4, 0.0), (10, False, 4, 0.0)],
)
def test_moments_of_too_few_people_do_not_leave(least, share, images, told):
    place = SiteContext("east", SITES, torch.device("cpu"), Disclosure(least, share))
    _, done = one_round("coral", [0, 1] * (images // 2), place)
    arrays = split(done.sent)[1]
    assert float(arrays["moments.count"]) == told
    assert bool(arrays["moments.products"].any()) == bool(told)


@pytest.mark.parametrize("features", [1, 3])
def test_sums_leave_from_as_many_people_on_as_moments_do(features):
    own = {"n": torch.ones(()), "s": torch.ones(features), "p": torch.ones(features, features)}
    enough = people_for_moments(features)
    assert all(tensor.all() for tensor in Disclosure().sums(own, enough).values())
    assert not any(tensor.any() for tensor in Disclosure().sums(own, enough - 1).values())


# Batches


def test_images_without_label_do_not_change_how_the_others_are_drawn():
    labels = np.array([0, 1, 1, 0, 1])
    for balance in ("weights", "batches"):
        plain = batches_of(labels, 4, 9, balance)
        mixed = batches_of(np.array([-1, *labels, -1]), 4, 9, balance)
        for _ in range(5):
            drawn = next(mixed)
            assert np.array_equal(drawn[:4] - 1, next(plain))
            assert set(drawn[4:].tolist()) <= {0, 6}


def test_classes_weigh_as_if_images_without_label_were_not_there():
    from common.training.classifier import class_weights

    labels = np.array([0, 1, 1])
    mixed = class_weights(np.array([-1, 0, 1, -1, 1]), 3)
    assert np.array_equal(mixed, class_weights(labels, 3))


def test_reversal_reaches_the_images_features_with_a_negative_sign():
    term = DomainTerm(CLASSIFIER, 0, 0.5, 0.1)
    features = torch.zeros(2, 3, requires_grad=True)
    term.loss(torch.nn.Identity(), batch(features)).backward()
    assert features.grad[:, 0].tolist() == pytest.approx([0.5 * (1 - EAST) / 2] * 2)
