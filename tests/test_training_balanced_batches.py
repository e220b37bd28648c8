"""Classes are drawn equally often, their examples each once before any a second time."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.training.balanced_batches import BalancedBatches
from common.training.classifier import class_weights

LABELS = st.lists(st.integers(0, 9), min_size=1, max_size=60).map(np.array)


def drawn(labels: np.ndarray, count: int, size: int = 5, seed: int = 0) -> np.ndarray:
    batches = BalancedBatches(labels, size, np.random.default_rng(seed))
    return np.concatenate(list(islice(batches, count)))


@given(LABELS, st.integers(1, 20))
def test_classes_that_a_site_has_are_drawn_equally_often(labels, count):
    counts = np.bincount(labels[drawn(labels, count)], minlength=10)
    present = np.unique(labels)
    assert np.ptp(counts[present]) <= 1
    assert counts.sum() == counts[present].sum() == 5 * count


@given(LABELS)
def test_examples_of_a_class_are_drawn_each_once_before_any_a_second_time(labels):
    times = np.bincount(drawn(labels, 30), minlength=len(labels))
    assert all(np.ptp(times[labels == one]) <= 1 for one in np.unique(labels))


def test_the_same_generator_gives_the_same_batches():
    labels = np.array([0, 0, 0, 1, 2, 2])
    assert (drawn(labels, 9, seed=3) == drawn(labels, 9, seed=3)).all()
    assert (drawn(labels, 9, seed=3) != drawn(labels, 9, seed=4)).any()


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        BalancedBatches(np.array([], int), 4, np.random.default_rng(0))


@given(LABELS)
def test_weighted_classes_that_are_present_count_as_much_and_a_mean_example_one(labels):
    weights = class_weights(labels, 10)
    totals = np.bincount(labels, weights[labels], minlength=10)
    present = np.unique(labels)
    np.testing.assert_allclose(totals[present], len(labels) / len(present), rtol=1e-5)
    assert weights[labels].mean() == pytest.approx(1)
    assert weights.shape == (10,)
    assert not weights[np.setdiff1d(np.arange(10), present)].any()


@settings(max_examples=20, deadline=None)
@given(LABELS)
def test_mean_frequency_of_an_example_in_balanced_batches_is_its_weight(labels):
    rounds = 60 * len(np.unique(labels))  # every class drawn 300 times
    frequency = np.bincount(drawn(labels, rounds), minlength=len(labels)) * len(labels)
    np.testing.assert_allclose(
        frequency / (5 * rounds), class_weights(labels, 10)[labels], rtol=0.25
    )
