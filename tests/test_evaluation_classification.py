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
    OF_POSITIVE,
    calibration_error,
    classification_metrics,
    confusion_matrix,
    decide,
    metric_names,
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


NAMES = ("A", "B", "C", "D")
GOLDEN = [
    1.395732230754991,
    0.7708333333333333,
    0.8177083333333334,
    0.8866266174961743,
    0.5,
    0.7619047619047619,
    0.16642483114679923,
]


@st.composite
def of_classes(draw, least: int = 2):
    """Labels of up to four classes, some perhaps absent, and probabilities that sum to one."""
    k, n = draw(st.integers(least, 4)), draw(st.integers(1, 30))
    labels = np.array(draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return labels, generator.dirichlet(np.full(k, draw(st.sampled_from([0.3, 1.0, 5.0]))), n)


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


# More than two classes


@settings(deadline=None, max_examples=25)
@given(predictions())
def test_two_columns_mean_what_one_does(case):
    labels, probabilities = case
    columns = np.stack([1 - probabilities, probabilities], axis=1)
    assert classification_metrics(labels, columns) == classification_metrics(labels, probabilities)


def test_numbers_of_two_classes_are_those_of_earlier_versions():
    """Computed before there were more classes; another value makes old results incomparable."""
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 2, 40)
    probabilities = np.clip(0.35 + 0.25 * labels + 0.25 * generator.normal(size=40), 0, 1)
    found = classification_metrics(labels, probabilities)
    assert list(found.values()) == pytest.approx(GOLDEN, rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(of_classes())
def test_names_are_told_beforehand(case):
    labels, probabilities = case
    k = probabilities.shape[1]
    for classes in (None, NAMES[:k]):
        for positive in (None, "A") if classes else (None,):
            found = classification_metrics(labels, probabilities, classes, positive)
            assert list(found) == metric_names(k, classes, positive)
            assert {type(value) for value in found.values()} == {float}


def test_of_more_than_two_classes_only_a_named_one_is_to_be_found():
    labels, probabilities = np.arange(9) % 3, np.full((9, 3), 1 / 3)
    without = classification_metrics(labels, probabilities, NAMES[:3])
    assert not set(OF_POSITIVE) & set(without)
    found = classification_metrics(labels, probabilities, NAMES[:3], "B")
    assert found["auprc"] == pytest.approx(1 / 3)
    assert found["sensitivity_at_90_specificity"] == 0


@settings(deadline=None, max_examples=25)
@given(of_classes(least=3))
def test_agreement_with_scikit_learn_on_more_classes(case):
    labels, probabilities = case
    k = probabilities.shape[1]
    found = classification_metrics(labels, probabilities, NAMES[:k], "A")
    decided = probabilities.argmax(axis=1)
    present = np.unique(labels)
    assert found["loss"] == pytest.approx(
        reference.log_loss(labels, probabilities, labels=list(range(k)))
    )
    recalls = reference.recall_score(labels, decided, labels=present, average=None)
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean())
    for metric, score in (("f1", reference.f1_score), ("recall", reference.recall_score)):
        expected = score(labels, decided, labels=present, average=None, zero_division=0.0)
        one_by_one = [found[f"{metric}.{NAMES[c]}"] for c in present]
        assert one_by_one == pytest.approx(expected.tolist())
    if len(present) == k:
        macro = reference.roc_auc_score(labels, probabilities, multi_class="ovr")
        assert found["auroc"] == pytest.approx(macro)
        assert found["f1"] == pytest.approx(reference.f1_score(labels, decided, average="macro"))
    if 0 < (labels == 0).sum() < len(labels):
        expected = reference.average_precision_score(labels == 0, probabilities[:, 0])
        assert found["auprc"] == pytest.approx(expected)
        expected = best_sensitivity((labels == 0).astype(int), probabilities[:, 0], 0.9)
        assert found["sensitivity_at_90_specificity"] == pytest.approx(expected)


@settings(deadline=None, max_examples=25)
@given(of_classes(least=3), st.permutations(range(4)))
def test_numbers_go_with_the_classes_whatever_their_order(case, order):
    labels, probabilities = case
    k = probabilities.shape[1]
    order = [c for c in order if c < k]
    place = np.argsort(order)
    one = classification_metrics(labels, probabilities, NAMES[:k], "B")
    names = [NAMES[c] for c in order]
    other = classification_metrics(place[labels], probabilities[:, order], names, "B")
    assert other == pytest.approx(one, nan_ok=True)


@settings(deadline=None, max_examples=25)
@given(predictions())
def test_of_two_classes_the_first_may_be_the_one_to_be_found(case):
    labels, probabilities = case
    probabilities = probabilities.round(3)  # so that 1 − p keeps every difference
    probabilities[probabilities == 0.5] = 0.6  # a tie goes to class 1
    one = classification_metrics(labels, probabilities, ("A", "B"), "A")
    other = classification_metrics(1 - labels, 1 - probabilities, ("B", "A"), "A")
    assert one == pytest.approx(other, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(of_classes())
def test_every_metric_of_more_classes_is_a_fraction_or_not_known(case):
    labels, probabilities = case
    found = classification_metrics(labels, probabilities, NAMES[: probabilities.shape[1]], "A")
    assert found.pop("loss") >= 0
    assert all(math.isnan(value) or 0 <= value <= 1 for value in found.values())


def test_absent_class_says_nothing_and_takes_no_part_in_means():
    labels = np.array([0, 0, 1, 1])
    sure = np.eye(3)[labels]
    found = classification_metrics(labels, sure, NAMES[:3])
    assert {name for name in found if math.isnan(found[name])} == {"auroc.C", "recall.C", "f1.C"}
    assert found["auroc"] == found["f1"] == found["balanced_accuracy"] == 1


def test_one_class_alone_has_no_ranking_among_three():
    found = classification_metrics(np.array([1, 1]), np.eye(3)[[1, 0]])
    assert math.isnan(found["auroc"])
    assert found["balanced_accuracy"] == 0.5


def test_calibration_of_more_classes_is_about_the_class_decided_for():
    probabilities = np.array([[0.7, 0.2, 0.1]] * 10)
    labels = np.array([0] * 7 + [1, 2, 2])
    found = classification_metrics(labels, probabilities)
    assert found["calibration_error"] == pytest.approx(0, abs=1e-12)
    found = classification_metrics(np.full(10, 2), probabilities)
    assert found["calibration_error"] == pytest.approx(0.7)


@settings(deadline=None, max_examples=25)
@given(of_classes())
def test_confusion_matrix_counts_every_image_once(case):
    labels, probabilities = case
    k = probabilities.shape[1]
    found = confusion_matrix(labels, probabilities)
    assert found.shape == (k, k)
    assert found.dtype == np.int64
    assert found.sum(axis=1).tolist() == np.bincount(labels, minlength=k).tolist()
    decided = decide(probabilities)
    for truth in range(k):
        for other in range(k):
            assert found[truth, other] == ((labels == truth) & (decided == other)).sum()


@settings(deadline=None, max_examples=25)
@given(of_classes())
def test_recall_is_the_diagonal_of_the_confusion_matrix(case):
    labels, probabilities = case
    k = probabilities.shape[1]
    found = classification_metrics(labels, probabilities, NAMES[:k])
    matrix = confusion_matrix(labels, probabilities)
    for c in np.unique(labels):
        assert found[f"recall.{NAMES[c]}"] == pytest.approx(matrix[c, c] / matrix[c].sum())


def test_confusion_matrix_of_no_image_and_of_one_column():
    assert confusion_matrix(np.array([], int), np.empty((0, 3))).tolist() == [[0] * 3] * 3
    assert confusion_matrix(np.array([0, 1, 1]), np.array([0.5, 0.5, 0.4])).tolist() == [
        [0, 1],
        [1, 1],
    ]


@pytest.mark.parametrize(
    ("labels", "probabilities", "classes", "positive", "words"),
    [
        ([0, 1], np.ones(3), None, None, "probabilities of 2 labels"),
        ([0, 1], np.ones((2, 1)), None, None, "probabilities of 2 labels"),
        ([0, 1], np.ones((2, 2, 2)), None, None, "probabilities of 2 labels"),
        ([0, 3], np.full((2, 3), 1 / 3), None, None, "labels outside 0 to 2"),
        ([0, -1], np.full((2, 3), 1 / 3), None, None, "labels outside 0 to 2"),
        ([0, 1], np.full((2, 3), 1 / 3), ("A", "B"), None, "3 classes, of which 2 named"),
        ([0, 1], np.full((2, 3), 1 / 3), NAMES[:3], "D", "'D' is none of the classes"),
        ([0, 1], np.full((2, 3), 1 / 3), None, "A", "'A' is none of the classes"),
    ],
)
def test_what_does_not_fit_together_is_refused(labels, probabilities, classes, positive, words):
    with pytest.raises(ValueError, match=words):
        classification_metrics(np.array(labels), probabilities, classes, positive)
