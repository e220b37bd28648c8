"""Metrics of a binary classifier, from labels and probabilities."""

from __future__ import annotations

import math

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
CALIBRATION_BINS = 10


def classification_metrics(
    labels: NDArray[np.integer], probabilities: NDArray[np.floating]
) -> dict[str, float]:
    """Compute every metric of :data:`METRICS`.

    Parameters
    ----------
    labels : (N,) integers 0 or 1
    probabilities : (N,) floats
        Of class 1; the decision threshold is 0.5.

    Returns
    -------
    dict of str to float
        ``loss`` is the mean cross-entropy in nats. What a split with one class only cannot tell
        (AUROC, AUPRC, sensitivity at a specificity) is NaN.

    Notes
    -----
    Balanced accuracy is the mean of sensitivity and specificity; the expected calibration error
    takes ten bins of equal width (Guo et al. 2017, eq. 3, with the probability of class 1).
    """
    from sklearn import metrics

    labels = np.asarray(labels)
    decided = (probabilities >= 0.5).astype(int)
    both = len(np.unique(labels)) == 2
    recalls = [float((decided[labels == c] == c).mean()) for c in np.unique(labels)]
    return {
        "loss": float(metrics.log_loss(labels, probabilities, labels=[0, 1])),
        "balanced_accuracy": float(np.mean(recalls)),
        "auroc": float(metrics.roc_auc_score(labels, probabilities)) if both else math.nan,
        "auprc": float(metrics.average_precision_score(labels, probabilities))
        if both
        else math.nan,
        "sensitivity_at_90_specificity": sensitivity_at(labels, probabilities, 0.9)
        if both
        else math.nan,
        "f1": float(metrics.f1_score(labels, decided, zero_division=0.0)),
        "calibration_error": calibration_error(labels, probabilities),
    }


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
