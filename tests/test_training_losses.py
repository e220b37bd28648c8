"""Losses by what defines them, and classes that are rare or absent at a site."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import dataset, run_config
from torch import Tensor

from common.strategies.strategy import load_strategy
from common.tasks.task import SiteContext, load_task
from common.training.losses import cross_entropy, focal, logit_adjusted, loss_of, of_present

pytestmark = pytest.mark.usefixtures("one_thread")

classification = load_task("classification")
CPU = torch.device("cpu")
NORTH = SiteContext("north", ("island", "north"), CPU)
NAMES = ("cross-entropy", "focal", "logit-adjusted")


def examples(count: int = 20, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=draws, dtype=torch.float64)
    return logits, torch.randint(classes, (count,), generator=draws)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_with_gamma_0_is_the_cross_entropy(smoothing: float) -> None:
    logits, targets = examples()
    plain = cross_entropy(logits, targets, smoothing)
    torch.testing.assert_close(focal(logits, targets, 0.0, smoothing), plain)


def test_focal_is_the_published_formula() -> None:
    logits, targets = examples()
    p = logits.softmax(1)[torch.arange(20), targets]
    torch.testing.assert_close(focal(logits, targets, 2.0), -((1 - p) ** 2) * p.log())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_has_finite_gradients_where_an_example_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    focal(logits, torch.tensor([0, 0]), gamma).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("counts", [[5.0] * 4, [0.0] * 4])
def test_logit_adjustment_of_equal_classes_is_the_cross_entropy(counts: list[float]) -> None:
    logits, targets = examples()
    adjusted = logit_adjusted(logits, targets, torch.tensor(counts, dtype=torch.float64), 1.0)
    torch.testing.assert_close(adjusted, cross_entropy(logits, targets))


def test_logit_adjustment_leaves_a_prediction_without_the_prior() -> None:
    """Of logits that know nothing but the classes' shares, all are to be equal at the minimum."""
    counts = torch.tensor([90.0, 9.0, 1.0], dtype=torch.float64)
    targets = torch.arange(3).repeat_interleave(counts.long())
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    logit_adjusted(logits.expand(100, 3), targets, counts, 1.0).mean().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3, dtype=torch.float64))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(NAMES), st.sampled_from([0.0, 0.1]), st.integers(0, 99))
def test_absent_classes_have_no_gradient_and_no_part_in_the_loss(name, smoothing, seed) -> None:
    logits, targets = examples(classes=5, seed=seed)
    targets = torch.tensor([0, 2, 3])[targets % 3]
    loss = loss_of(name, targets.numpy(), 5, gamma=2.0, smoothing=smoothing, mask=True)
    logits.requires_grad_(True)
    found = loss(logits, targets)
    assert found.isfinite().all() and (found >= 0).all()
    found.sum().backward()
    assert not logits.grad[:, [1, 4]].any() and logits.grad[:, [0, 2, 3]].any()
    other = logits.detach().clone()
    other[:, [1, 4]] = 50.0
    torch.testing.assert_close(loss(other, targets), found.detach())


def test_masking_nothing_changes_nothing() -> None:
    logits, targets = examples()
    whole = of_present(cross_entropy, logits, targets, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(whole, cross_entropy(logits, targets))


# In training

TINY = {
    "study": "skin-lesions",
    "data.size": 16,
    "training.batch-size": 4,
    "training.learning-rate": 3e-3,
    "run.rounds": 2,
    "training.local-steps": 4,
}


def pictures(labels: list[int]):
    images = np.random.default_rng(0).uniform(0.2, 0.9, (len(labels), 3, 16, 16))
    return dataset(images.astype(np.float32), labels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mask", ["keep", "mask"])
def test_a_site_leaves_its_heads_rows_of_classes_that_it_lacks(name: str, mask: str) -> None:
    run = run_config(TINY, absent_classes=mask, loss=name)
    model = classification.build_model(run)
    before = {name: one.clone() for name, one in model.head.named_parameters()}
    data, private = pictures([0, 0, 2, 2, 5, 5]), {}
    for number in (1, 2):  # weight decay and the optimizer's moments must not move them either
        private = classification.fit(
            model, data, run, place=NORTH, round_number=number, private=private
        ).private
    for name, one in model.head.named_parameters():
        same = torch.equal(one[[1, 3, 4, 6, 7]], before[name][[1, 3, 4, 6, 7]])
        assert same == (mask == "mask")
        assert not torch.equal(one[[0, 2, 5]], before[name][[0, 2, 5]])


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_without_balance_the_mix_of_classes_is_a_prior(balance: str) -> None:
    run = run_config(
        TINY, balance=balance, learning_rate=0.01, weight_decay=0.0, rounds=1, local_steps=60
    )
    model = classification.build_model(run)
    torch.nn.init.zeros_(model.head.weight)
    model.features.requires_grad_(False)
    model.head.weight.requires_grad_(False)  # two numbers and no eyes
    data = pictures([0] * 9 + [1])
    classification.fit(model, data, run, place=NORTH, round_number=1, private={})
    more = float((model.head.bias[0] - model.head.bias[1]).detach())
    assert (more > 0.3) == (balance == "none")


def test_a_strategys_terms_see_the_same_loss() -> None:
    run = run_config(TINY, loss="focal")
    seen = []

    class Watching(type(load_strategy("fedavg").hooks(run, {}, {}))):
        def loss(self, model, batch):
            again = batch.criterion(model.head(batch.features))
            seen.append((float(again.detach()), float(batch.loss.detach())))

    fit = partial(classification.fit, place=NORTH, round_number=1, private={}, hooks=Watching())
    fit(classification.build_model(run), pictures([0, 1, 2, 3]), run)
    assert len(seen) == 4 and all(one == pytest.approx(two) for one, two in seen)
