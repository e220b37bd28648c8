"""Theorems of the metrics, and agreement with scikit-learn and with plain counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from common.evaluation.classification import (
    CALIBRATION_BINS,
    METRICS,
    calibration_error,
    classification_metrics,
    sensitivity_at,
)

LABELS = np.array([0, 1] * 10)


@st.composite
def predictions(draw):
    """Labels of both classes, and probabilities with and without ties."""
    size = draw(st.integers(2, 40))
    labels = draw(
        st.lists(st.integers(0, 1), min_size=size, max_size=size).filter(lambda y: len({*y}) == 2)
    )
    one = draw(st.sampled_from([st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])]))
    probabilities = draw(st.lists(one, min_size=size, max_size=size))
    return np.array(labels), np.array(probabilities)


def best_sensitivity(labels, probabilities, specificity: float) -> float:
    """Sensitivity at a specificity by trying every threshold."""
    best = 0.0
    for threshold in [*probabilities, np.inf]:
        positive = probabilities >= threshold
        if (~positive[labels == 0]).mean() >= specificity - 1e-12:
            best = max(best, positive[labels == 1].mean())
    return best


# Known predictions


def test_every_metric_is_a_float_and_named():
    found = classification_metrics(LABELS, np.linspace(0, 1, 20))
    assert tuple(found) == METRICS
    assert {type(value) for value in found.values()} == {float}


def test_perfect_prediction():
    found = classification_metrics(LABELS, LABELS.astype(float))
    assert found.pop("loss") == pytest.approx(0, abs=1e-9)
    assert found.pop("calibration_error") == 0
    assert set(found.values()) == {1.0}


def test_inverted_prediction():
    found = classification_metrics(LABELS, 1.0 - LABELS)
    assert found["loss"] > 30
    assert found["calibration_error"] == 1
    for name in ("balanced_accuracy", "auroc", "f1", "sensitivity_at_90_specificity"):
        assert found[name] == 0
    assert found["auprc"] == 0.5  # all positives come last, at once: the prevalence


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_constant_half_knows_nothing(share):
    labels = (np.arange(100) < 100 * share).astype(int)
    found = classification_metrics(labels, np.full(100, 0.5))
    assert found["loss"] == pytest.approx(math.log(2))
    assert found["auroc"] == 0.5
    assert found["balanced_accuracy"] == 0.5
    assert found["auprc"] == pytest.approx(share)
    assert found["calibration_error"] == pytest.approx(abs(share - 0.5))
    assert found["sensitivity_at_90_specificity"] == 0


def test_half_is_decided_for_class_one():
    found = classification_metrics(np.array([0, 1]), np.array([np.nextafter(0.5, 0), 0.5]))
    assert found["balanced_accuracy"] == found["f1"] == 1


def test_balanced_accuracy_does_not_reward_the_larger_class():
    labels = np.array([0] * 90 + [1] * 10)
    assert classification_metrics(labels, np.full(100, 0.2))["balanced_accuracy"] == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_undefined_what_needs_two(label):
    found = classification_metrics(np.full(4, label), np.array([0.2, 0.4, 0.7, 0.9]))
    undefined = {name for name, value in found.items() if math.isnan(value)}
    assert undefined == {"auroc", "auprc", "sensitivity_at_90_specificity"}
    assert found["balanced_accuracy"] == 0.5


def test_one_scan_can_be_judged():
    found = classification_metrics(np.array([1]), np.array([0.8]))
    assert found["loss"] == pytest.approx(-math.log(0.8))
    assert found["calibration_error"] == pytest.approx(0.2)


def test_probability_of_zero_for_the_truth_costs_much_but_not_infinitely():
    found = classification_metrics(np.array([0, 1]), np.array([1.0, 0.0]))
    assert 10 < found["loss"] < math.inf


# Calibration


def test_perfect_calibration_is_zero():
    probabilities = np.repeat([0.05, 0.25, 0.5, 0.75], 20)
    labels = np.concatenate([np.arange(20) < 20 * p for p in (0.05, 0.25, 0.5, 0.75)]).astype(int)
    assert calibration_error(labels, probabilities) == pytest.approx(0, abs=1e-12)


def test_calibration_by_hand():
    # Bin 0.2-0.3: mean probability 0.25, mean label 0.5; bin 0.9-1.0: 0.95 and 1.
    labels, probabilities = np.array([0, 1, 1, 1]), np.array([0.22, 0.28, 0.92, 0.98])
    assert calibration_error(labels, probabilities) == pytest.approx((0.25 + 0.05) / 2)


def test_errors_of_opposite_sign_cancel_within_a_bin_only():
    labels = np.array([0, 1])
    assert calibration_error(labels, np.array([0.52, 0.52])) == pytest.approx(0.02)
    assert calibration_error(labels, np.array([0.48, 0.52])) == pytest.approx(0.48)


def test_probability_one_falls_into_the_last_bin():
    assert calibration_error(np.array([1, 0]), np.array([1.0, 0.95])) == pytest.approx(0.975 - 0.5)


@settings(deadline=None, max_examples=50)
@given(predictions())
def test_calibration_is_its_definition(case):
    labels, probabilities = case
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    expected = sum(
        (bins == b).mean() * abs(labels[bins == b].mean() - probabilities[bins == b].mean())
        for b in np.unique(bins)
    )
    assert calibration_error(labels, probabilities) == pytest.approx(expected, abs=1e-12)
    assert 0 <= expected <= 1


# Sensitivity at a specificity


def test_sensitivity_at_a_specificity_by_hand():
    labels = np.array([0] * 10 + [1] * 4)
    probabilities = np.array([*np.arange(10) / 10, 0.95, 0.85, 0.75, 0.05])
    assert sensitivity_at(labels, probabilities, 1.0) == 0.25  # only 0.95 is above 0.9
    assert sensitivity_at(labels, probabilities, 0.9) == 0.5  # one false positive, 0.9
    assert sensitivity_at(labels, probabilities, 0.8) == 0.75
    assert sensitivity_at(labels, probabilities, 0.0) == 1.0


@settings(deadline=None, max_examples=50)
@given(predictions(), st.sampled_from([0.0, 0.5, 0.8, 0.9, 1.0]))
def test_sensitivity_is_the_best_over_all_thresholds(case, specificity):
    expected = best_sensitivity(*case, specificity)
    assert sensitivity_at(*case, specificity) == pytest.approx(expected)


def test_ties_along_a_straight_roc_curve_hide_no_threshold():
    labels, probabilities = np.array([0, 1] * 20), np.repeat(np.linspace(0, 1, 20), 2)
    assert sensitivity_at(labels, probabilities, 0.9) == pytest.approx(0.1)


# Agreement and symmetries


@settings(deadline=None, max_examples=50)
@given(predictions())
def test_agreement_with_scikit_learn(case):
    labels, probabilities = case
    found = classification_metrics(labels, probabilities)
    decided = probabilities >= 0.5
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(labels, probabilities))
    assert found["auprc"] == pytest.approx(reference.average_precision_score(labels, probabilities))
    assert found["loss"] == pytest.approx(reference.log_loss(labels, probabilities))
    assert found["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(labels, decided)
    )
    assert found["f1"] == pytest.approx(reference.f1_score(labels, decided, zero_division=0.0))


@settings(deadline=None, max_examples=50)
@given(predictions())
def test_auroc_is_how_often_a_positive_outranks_a_negative(case):
    labels, probabilities = case
    positive, negative = probabilities[labels == 1, None], probabilities[labels == 0]
    wins = (positive > negative).mean() + (positive == negative).mean() / 2
    assert classification_metrics(labels, probabilities)["auroc"] == pytest.approx(wins)


@settings(deadline=None, max_examples=50)
@given(predictions())
def test_swapping_the_labels_mirrors_auroc(case):
    labels, probabilities = case
    auroc = classification_metrics(labels, probabilities)["auroc"]
    assert classification_metrics(1 - labels, probabilities)["auroc"] == pytest.approx(1 - auroc)


@settings(deadline=None, max_examples=50)
@given(predictions(), st.randoms())
def test_order_of_scans_is_irrelevant(case, random):
    labels, probabilities = case
    order = list(range(len(labels)))
    random.shuffle(order)
    assert classification_metrics(labels[order], probabilities[order]) == pytest.approx(
        classification_metrics(labels, probabilities)
    )


@settings(deadline=None, max_examples=50)
@given(predictions())
def test_every_metric_but_the_loss_is_a_fraction(case):
    found = classification_metrics(*case)
    assert found.pop("loss") >= 0
    assert all(0 <= value <= 1 for value in found.values())
