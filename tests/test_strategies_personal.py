"""Strategies that give each site a model of its own, on quadratics solved by hand."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from quadratic import PARTS, START, Federation, QuadraticSite, rounds

from common.errors import ConfigError, DivergedError
from common.strategies.strategy import load_strategy, strategy_names
from common.tasks.task import read_run_config
from common.training.hooks import Held


def two(steps: int = 1) -> list[QuadraticSite]:
    """One step from 0 takes the first to 0.1 and the second to 0.6."""
    return [QuadraticSite(1.0, 1.0, steps), QuadraticSite(2.0, 3.0, steps)]


def test_fedbn_leaves_each_site_its_own_normalization_and_averages_the_rest():
    """One step from 0: site i goes to η a_i b_i, and the mean of both is the server's."""
    federation = Federation("fedbn", *two())
    shared = federation.round()
    assert shared.keys() == {"body.weight", "head.weight"}
    assert shared["body.weight"] == pytest.approx((0.1 * 1 + 0.1 * 6) / 2)
    assert federation.personal(0)["norm.weight"] == pytest.approx(0.1)
    assert federation.personal(1)["norm.weight"] == pytest.approx(0.6)


def test_fedbn_goes_on_from_each_site_s_own_normalization():
    federation = Federation("fedbn", *two())
    federation.round()
    federation.round()
    assert federation.personal(0)["norm.weight"] == pytest.approx(0.1 + 0.1 * (1 - 0.1))


# FedPer and FedRep


def test_fedper_leaves_each_site_its_own_head():
    federation = Federation("fedper", *two())
    for _ in range(2):
        assert federation.round().keys() == {"body.weight", "norm.weight"}
    assert federation.personal(1)["head.weight"] == pytest.approx(0.6 + 0.1 * 2 * (3 - 0.6))


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_a_head_that_each_site_keeps_cannot_be_all_that_learns(name):
    with pytest.raises(ConfigError, match="nothing else learns: choose another strategy"):
        read_run_config({"strategy.name": name, "model.trains": "head"})


def test_fedper_s_body_is_fedavg_s_where_its_gradient_does_not_depend_on_the_head():
    assert rounds("fedper", *two(3)) == rounds("fedavg", *two(3))


def test_fedrep_trains_the_head_first_and_then_the_rest():
    """Of three steps one is the head's: h_i = η a_i b_i, and b_i = b_i (1 - (1 - η a_i)²)."""
    federation = Federation("fedrep", *two(3), head_steps=1)
    shared = federation.round()
    assert shared["body.weight"] == pytest.approx((1 - 0.9**2 + 3 * (1 - 0.8**2)) / 2)
    assert shared["norm.weight"] == shared["body.weight"]
    assert federation.personal(0)["head.weight"] == pytest.approx(0.1)
    assert federation.personal(1)["head.weight"] == pytest.approx(0.6)


def test_fedrep_trains_the_head_in_half_of_a_round_if_not_told_otherwise():
    assert rounds("fedrep", *two(40)) == pytest.approx(rounds("fedavg", *two(20)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strategy.head-steps": 40}, "40 of the 40 steps"),
        ({"training.local-steps": 1}, "0 of the 1 steps"),
        ({"training.local-epochs": 2}, "with training.local-epochs there are none"),
    ],
)
def test_fedrep_refuses_rounds_that_leave_no_step_for_one_of_both(values, words):
    with pytest.raises(ConfigError, match=words):
        read_run_config({"strategy.name": "fedrep", **values})


# Ditto


@pytest.mark.parametrize("mu", [0.0, 0.3, 5.0])
def test_ditto_s_common_model_is_fedavg_s_whatever_the_pull(mu):
    assert rounds("ditto", *two(3), mu=mu) == rounds("fedavg", *two(3))


def test_ditto_s_own_models_are_pulled_to_the_weights_with_which_the_round_began():
    federation = Federation("ditto", *two(), mu=0.5)
    w = federation.round()["body.weight"]
    assert federation.personal(1)["body.weight"] == pytest.approx(0.6)
    federation.round()
    v = 0.6 - 0.1 * (2 * (0.6 - 3) + 0.5 * (0.6 - w))
    assert federation.personal(1)["body.weight"] == pytest.approx(v)


def test_ditto_without_a_pull_is_each_site_s_training_alone():
    federation, alone = Federation("ditto", *two(2), mu=0), Federation("fedavg", two(2)[1])
    for _ in range(3):
        federation.round()
        found = alone.round()
    assert federation.personal(1) == pytest.approx(found)


# APFL


def test_apfl_trains_a_site_s_own_part_by_the_mixture_s_loss():
    """∇_v F(α v + (1 - α) w) = α a (α v + (1 - α) w - b), w the round's first."""
    alpha = 0.25
    federation = Federation("apfl", *two(), alpha=alpha)
    w = federation.round()["body.weight"]
    v = 0.1 * alpha * 6
    assert federation.personal(1)["body.weight"] == pytest.approx(alpha * v + (1 - alpha) * w)
    mixture = alpha * v + (1 - alpha) * w
    v -= 0.1 * alpha * 2 * (mixture - 3)
    w = federation.round()["body.weight"]
    assert federation.personal(1)["body.weight"] == pytest.approx(alpha * v + (1 - alpha) * w)


def test_apfl_learns_its_parts_by_the_mixture_s_slope():
    """Three equal parameters: α ← α - η_α · 3 a (m - b) (v - w); at first v = w."""
    federation = Federation("apfl", *two(), alpha=0.5, alpha_rate=0.1)
    w = federation.round()["body.weight"]
    alphas = [site.kept["alpha"] for site in federation.sites.values()]
    assert alphas == [0.5, 0.5]
    federation.round()
    v = 0.1 * 0.5 * 6
    slope = 3 * 2 * ((v + w) / 2 - 3) * (v - w)
    assert float(federation.sites["site-1"].kept["alpha"]) == pytest.approx(0.5 - 0.1 * slope)


def test_apfl_s_parts_stay_between_none_and_all():
    federation = Federation("apfl", *two(), alpha=0.9, alpha_rate=1e6)
    for _ in range(2):
        federation.round()
    assert {float(site.kept["alpha"]) for site in federation.sites.values()} == {0, 1}


def test_apfl_without_a_part_of_its_own_is_fedavg():
    federation, plain = Federation("apfl", *two(3), alpha=0), Federation("fedavg", *two(3))
    for _ in range(3):
        assert federation.round() == plain.round()
    assert federation.personal(0) == federation.personal(1) == plain.personal(0)


# Fine-tuning


def tuned(losses: dict[int, float], **values: object) -> tuple[float, list[tuple[int, set[str]]]]:
    """Tune where k steps from w = 0 lead to w = k, of a given loss; return w and what was tried."""
    tried = []

    def fit(weights, steps, hooks):
        tried.append((steps, set(hooks.names) if isinstance(hooks, Held) else set()))
        if steps not in losses:
            raise DivergedError("the training loss is nan")
        return {name: weights[name] + steps for name in weights}

    options = {f"strategy.{key}": value for key, value in values.items()}
    site = SimpleNamespace(
        config=read_run_config({"strategy.name": "fine-tune", **options}),
        parts=PARTS,
        fit=fit,
        loss=lambda weights: losses[int(weights["body.weight"])],
    )
    found = load_strategy("fine-tune").tune(site, START)
    return float(found["body.weight"]), tried


def test_fine_tuning_takes_the_number_of_steps_that_validation_likes_best():
    found, tried = tuned({0: 3.0, 1: 2.0, 2: 1.0, 4: 1.0, 8: 5.0}, steps=8)
    assert found == 2  # the fewest of equally good ones
    assert [steps for steps, _ in tried] == [1, 2, 4, 8]


def test_fine_tuning_leaves_the_common_model_where_nothing_is_better():
    assert tuned({0: 1.0, 1: 1.0, 2: 2.0, 4: 2.0, 8: 2.0}, steps=8)[0] == 0


def test_fine_tuning_that_diverges_is_left_out():
    assert tuned({0: 3.0, 1: 2.0, 2: 2.5}, steps=8)[0] == 1


def test_fine_tuning_of_the_head_holds_all_else():
    _, tried = tuned({0: 1.0, 1: 2.0}, steps=1, part="head")
    assert tried == [(1, {"body.weight", "norm.weight"})]


def test_fine_tuning_is_fedavg_until_the_test():
    assert rounds("fine-tune", *two(3)) == rounds("fedavg", *two(3))


# All


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in strategy_names()
        if load_strategy(name).is_personal or name in ("scaffold", "moon")
    ],
)
def test_what_a_site_keeps_is_of_numbers_and_shares_no_memory(name):
    """It is written to disk as it is, and nothing that is sent may change with it."""
    federation = Federation(name, *copy.deepcopy(two(40)))
    federation.round()
    site, arrays = federation.sites["site-0"], federation.strategy.arrays(federation.state)
    done = federation.strategy.train(site.begin(federation.config, federation.shared, arrays))
    kept = [*done.private.values()]
    assert all(isinstance(t, torch.Tensor) and t.is_floating_point() for t in kept)
    others = [*done.parameters.values(), *done.arrays.values(), *site.weights.values()]
    places = [tensor.untyped_storage().data_ptr() for tensor in kept]
    assert len(set(places)) == len(places)
    assert set(places).isdisjoint(t.untyped_storage().data_ptr() for t in others)


def test_fedrep_leaves_the_body_a_step_however_few_a_site_makes():
    """By epochs a small site makes fewer steps than the head is to have."""
    federation = Federation("fedrep", *copy.deepcopy(two(2)), head_steps=30)
    assert federation.round()["body.weight"] != 0
