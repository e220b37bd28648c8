"""Metrics of a classifier of two or more classes, from labels and probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

METRICS = (
    "loss",
    "balanced_accuracy",
    "auroc",
    "auprc",
    "sensitivity_at_90_specificity",
    "f1",
    "calibration_error",
)
OF_POSITIVE = ("auprc", "sensitivity_at_90_specificity")  # of more classes, only if one is named
OF_EACH_CLASS = ("auroc", "recall", "f1")  # as "recall.MEL"
CALIBRATION_BINS = 10


def metric_names(
    n_classes: int, classes: Sequence[str] | None = None, positive: str | None = None
) -> list[str]:
    """Names of what :func:`classification_metrics` computes, in order."""
    whole = n_classes == 2 or positive is not None
    names = [name for name in METRICS if whole or name not in OF_POSITIVE]
    return names + [f"{name}.{one}" for name in OF_EACH_CLASS for one in classes or ()]


def classification_metrics(
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    classes: Sequence[str] | None = None,
    positive: str | None = None,
) -> dict[str, float]:
    """Compute the metrics of :func:`metric_names`.

    Parameters
    ----------
    labels : (N,) integers
        Indices of classes.
    probabilities : (N, K) or (N,) floats
        Of every class; or, of two, of class 1. A picture is decided for its likeliest class; of
        two, for class 1 from 0.5 on.
    classes : sequence of K str, optional
        Names. Without them, nothing is told of single classes.
    positive : str, optional
        The class that is to be found. Of two classes it is class 1 by default.

    Returns
    -------
    dict of str to float
        ``loss`` is the mean cross-entropy in nats. What the labels at hand cannot tell is NaN:
        AUROC, AUPRC and sensitivity at a specificity without both the class and another, recall
        and F1 of a class that is not there.

    Notes
    -----
    Balanced accuracy is the mean recall of the classes that are there. Of two classes, AUROC,
    AUPRC, F1 and the sensitivity at a specificity of 0.9 are those of the positive one. Of more,
    AUROC and F1 are means, over the classes that are there, of one against the rest (macro
    averages); AUPRC and sensitivity are of the positive class against the rest, and left out if
    none is named.

    The expected calibration error takes ten bins of equal width (Guo et al. 2017, eq. 3): of two
    classes with the probability of the positive one, of more with that of the class decided for,
    and how often that is right.
    """
    from sklearn import metrics

    labels, scores = np.asarray(labels), _scores(labels, probabilities, classes)
    decided, k = decide(probabilities), scores.shape[1]
    target = 1 if k == 2 else None
    if positive is not None:
        if positive not in (classes or ()):
            raise ValueError(f"positive {positive!r} is none of the classes")
        target = list(classes or ()).index(positive)
    present = np.unique(labels)
    told = scores[:, 1] if k == 2 else scores
    found = {
        "loss": float(metrics.log_loss(labels, told, labels=list(range(k)))),
        "balanced_accuracy": float(np.mean([(decided[labels == c] == c).mean() for c in present])),
    }
    needed = range(k) if classes or k > 2 else [target]
    each = {c: _against_the_rest(labels == c, scores[:, c], decided == c) for c in needed}
    if target is not None:
        truth, score = (labels == target).astype(np.int64), scores[:, target]
        both = 0 < truth.sum() < len(truth)
        found["auprc"] = float(metrics.average_precision_score(truth, score)) if both else math.nan
        sensitivity = sensitivity_at(truth, score, 0.9) if both else math.nan
        found["sensitivity_at_90_specificity"] = sensitivity
    if k == 2:
        found["auroc"] = each[target]["auroc"]
        found["f1"] = _f1(labels == target, decided == target)
        found["calibration_error"] = calibration_error(truth, score)
    else:
        found["auroc"] = float(np.mean([each[c]["auroc"] for c in present]))
        found["f1"] = float(np.mean([each[c]["f1"] for c in present]))
        right = (decided == labels).astype(np.int64)
        found["calibration_error"] = calibration_error(right, scores.max(axis=1))
    for c, name in enumerate(classes or ()):
        found |= {f"{metric}.{name}": each[c][metric] for metric in OF_EACH_CLASS}
    return {name: found[name] for name in metric_names(k, classes, positive)}


def decide(probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Index of the class decided for, (N,): the likeliest; of two, class 1 from 0.5 on.

    Parameters
    ----------
    probabilities : (N, K) or (N,) floats
        Of every class; or, of two, of class 1.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim == 2 and probabilities.shape[1] != 2:
        return probabilities.argmax(axis=1).astype(np.int64)
    of_one = probabilities if probabilities.ndim == 1 else probabilities[:, 1]
    return (of_one >= 0.5).astype(np.int64)


def confusion_matrix(
    labels: NDArray[np.integer], probabilities: NDArray[np.floating]
) -> NDArray[np.int64]:
    """Count the images of each class, in rows, by what was decided, in columns.

    Parameters
    ----------
    labels : (N,) integers
    probabilities : (N, K) or (N,) floats
        As in :func:`classification_metrics`.

    Returns
    -------
    (K, K) int64
    """
    from sklearn import metrics

    k = _scores(labels, probabilities, None).shape[1]
    if not len(labels):  # which scikit-learn refuses
        return np.zeros((k, k), np.int64)
    counts = metrics.confusion_matrix(labels, decide(probabilities), labels=list(range(k)))
    return counts.astype(np.int64)


def sensitivity_at(
    labels: NDArray[np.integer], probabilities: NDArray[np.floating], specificity: float
) -> float:
    """Highest sensitivity among thresholds with at least the given specificity."""
    from sklearn.metrics import roc_curve

    # Points on a straight stretch of the curve are thresholds too: keep them.
    false_positive_rate, sensitivity, _ = roc_curve(labels, probabilities, drop_intermediate=False)
    return float(sensitivity[false_positive_rate <= 1 - specificity + 1e-12].max())


def calibration_error(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> float:
    """Expected calibration error: Σ_b n_b/N · |mean label - mean probability| over bins b."""
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    gaps = np.bincount(bins, weights=labels - probabilities, minlength=CALIBRATION_BINS)
    # Σ_b n_b/N · |gap_b / n_b|: the counts cancel.
    return float(np.abs(gaps[counts > 0]).sum() / len(labels))


def _against_the_rest(
    truth: NDArray[np.bool_], score: NDArray[np.floating], decided: NDArray[np.bool_]
) -> dict[str, float]:
    """Metrics of :data:`OF_EACH_CLASS` of one class; NaN where the labels cannot tell."""
    from sklearn import metrics

    n = int(truth.sum())
    return {
        "auroc": float(metrics.roc_auc_score(truth, score)) if 0 < n < len(truth) else math.nan,
        "recall": float(decided[truth].mean()) if n else math.nan,
        "f1": _f1(truth, decided) if n else math.nan,
    }


def _f1(truth: NDArray[np.bool_], decided: NDArray[np.bool_]) -> float:
    """2 TP / (2 TP + FP + FN); 0 where nothing is the class, nor decided to be.

    As scikit-learn has it, whose checks take longer than all else at a site of few images.
    """
    either = int(truth.sum() + decided.sum())
    return 2 * int((truth & decided).sum()) / either if either else 0.0


def _scores(
    labels: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    classes: Sequence[str] | None,
) -> NDArray[np.floating]:
    """Probabilities of every class, (N, K).

    Raises
    ------
    ValueError
        They fit neither the labels nor the classes.
    """
    labels, scores = np.asarray(labels), np.asarray(probabilities)
    if scores.ndim == 1:
        scores = np.stack([1 - scores, scores], axis=1)
    if scores.ndim != 2 or len(scores) != len(labels) or scores.shape[1] < 2:
        raise ValueError(f"{np.shape(probabilities)} probabilities of {len(labels)} labels")
    if classes is not None and len(classes) != scores.shape[1]:
        raise ValueError(
            f"probabilities of {scores.shape[1]} classes, of which {len(classes)} named"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        raise ValueError(f"labels outside 0 to {scores.shape[1] - 1}")
    return scores
