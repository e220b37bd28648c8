"""Bootstrap samples of persons, and the metrics of a classifier on all of them at once.

A bootstrap sample is a column of whole-number weights, so that every metric of every sample is a
matrix product or one cumulated sum away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.evaluation.classification import CALIBRATION_BINS, OF_EACH_CLASS, decide, metric_names

BLOCK = 2**18  # weights that are worked on at once: 1 MiB, which a core's cache holds


def resampling_weights(
    labels: ArrayLike, draws: int, rng: np.random.Generator, persons: ArrayLike | None = None
) -> NDArray[np.floating]:
    """How often each image is in each bootstrap sample of persons.

    Persons are drawn with all their images (cluster bootstrap; Davison & Hinkley 1997, *Bootstrap
    Methods and their Application*, §3.8), within strata. A person's stratum is the rarest class of
    its images, by the number of persons who have it.

    Parameters
    ----------
    labels : (N,) integers
    draws : int
        Number of bootstrap samples D.
    rng : numpy.random.Generator
    persons : (N,) array, optional
        Whose image it is; by default each is of another person.

    Returns
    -------
    (D, N) floats
        Whole numbers. Where each person has one image, the weights of a class sum to its number of
        images in every row, so that balanced accuracy and AUROC stay defined. With several images a
        person, a class that only occurs beside rarer ones can be missing in a sample.
    """
    labels = np.asarray(labels)
    members = (
        np.arange(len(labels)) if persons is None else np.unique(persons, return_inverse=True)[1]
    )
    classes, of_class = np.unique(labels, return_inverse=True)
    has = np.zeros((members.max(initial=-1) + 1, len(classes)), bool)  # (persons, classes)
    has[members, of_class] = True
    frequency = has.sum(axis=0)
    rarest = np.where(has, frequency, len(has) + 1).argmin(axis=1)
    drawn = np.zeros((len(has), draws), np.float32)
    for stratum in range(len(classes)):
        (inside,) = np.nonzero(rarest == stratum)
        if n := len(inside):
            drawn[inside] = rng.multinomial(n, np.full(n, 1 / n), size=draws).T
    return drawn[members].T


def weighted_metrics(
    labels: ArrayLike,
    probabilities: ArrayLike,
    weights: NDArray,
    classes: Sequence[str] | None = None,
    positive: str | None = None,
) -> dict[str, NDArray[np.floating]]:
    """Every metric of a classifier, on many weightings of the same images at once.

    Parameters
    ----------
    labels : (N,) integers
    probabilities : (N, K) or (N,) floats
        Of every class; or, of two, of class 1.
    weights : (D, N) whole numbers
        Row d counts how often each image is in sample d.
    classes, positive : optional
        As in :func:`common.evaluation.classification.classification_metrics`.

    Returns
    -------
    dict of str to (D,) floats
        Element d is what :func:`~common.evaluation.classification.classification_metrics` gives for
        sample d with its images repeated; NaN where a missing class leaves a metric undefined.
    """
    labels, scores = np.asarray(labels), np.asarray(probabilities, dtype=float)
    decided = decide(scores)
    if scores.ndim == 1:
        scores = np.stack([1 - scores, scores], axis=1)
    whole = np.ascontiguousarray(np.asarray(weights).T, np.float32)  # (N, D): images are rows
    step = max(1, BLOCK // max(1, len(labels)))
    about = (labels, scores, decided, classes, positive)
    parts = [_metrics(*about, whole[:, at : at + step]) for at in range(0, whole.shape[1], step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _metrics(
    labels: NDArray,
    scores: NDArray,
    decided: NDArray,
    classes: Sequence[str] | None,
    positive: str | None,
    w: NDArray,
) -> dict[str, NDArray]:
    """Metrics of one block of weights (N, D)."""
    k = scores.shape[1]
    truth, said = (labels[:, None] == np.arange(k), decided[:, None] == np.arange(k))  # (N, K)
    exact = w.T.astype(float)
    total = exact.sum(axis=1)
    n, claimed, hits = exact @ truth, exact @ said, exact @ (truth & said)  # (D, K)
    there = n > 0
    target = None
    if k == 2 or positive is not None:
        target = list(classes or ()).index(positive) if positive is not None else 1
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = hits / n
        f1 = np.where(there, np.nan_to_num(2 * hits / (claimed + n)), math.nan)
        found = {
            "loss": exact @ _cross_entropy(labels, scores) / total,
            "balanced_accuracy": np.where(there, recall, 0).sum(axis=1) / there.sum(axis=1),
        }
        needed = range(k) if classes or k > 2 else [target]
        auroc = {c: _auroc(scores[:, c], truth[:, c], w, n[:, c], total) for c in needed}
        if target is not None:
            of_target = (scores[:, target], truth[:, target], w, n[:, target], total)
            found["auprc"], found["sensitivity_at_90_specificity"] = _from_the_top(*of_target)
        if k == 2:
            found["auroc"] = auroc[target]
            found["f1"] = np.nan_to_num(f1[:, target])
            right, sure = truth[:, target], scores[:, target]
        else:
            areas = np.stack([auroc[c] for c in range(k)], axis=1)
            for name, each in (("auroc", areas), ("f1", f1)):
                found[name] = np.where(there, each, 0).sum(axis=1) / there.sum(axis=1)
            right, sure = decided == labels, scores.max(axis=1)
        bins = np.minimum((sure * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        gaps = (bins[:, None] == np.arange(CALIBRATION_BINS)) * (right - sure)[:, None]
        found["calibration_error"] = np.abs(exact @ gaps).sum(axis=1) / total
    for c, name in enumerate(classes or ()):
        each = (auroc[c], recall[:, c], f1[:, c])
        found |= {f"{metric}.{name}": v for metric, v in zip(OF_EACH_CLASS, each, strict=True)}
    return {name: found[name] for name in metric_names(k, classes, positive)}


def _cross_entropy(labels: NDArray, scores: NDArray) -> NDArray:
    """Loss of each image (N,), in nats."""
    eps = np.finfo(float).eps
    if scores.shape[1] == 2:
        p = np.clip(scores[:, 1], eps, 1 - eps)
        return -np.where(labels == 1, np.log(p), np.log1p(-p))
    return -np.log(np.clip(np.take_along_axis(scores, labels[:, None], 1)[:, 0], eps, 1 - eps))


def _auroc(score: NDArray, truth: NDArray, w: NDArray, n: NDArray, total: NDArray) -> NDArray:
    """Area under the ROC curve of one class (D,): pairs in the right order, ties by half.

    Σ_i w_i (Σ_j w_j [s_j < s_i] + ½ Σ_j w_j [s_j = s_i]) / (P · N), i in the class, j in the rest.
    """
    few, many = np.flatnonzero(truth), np.flatnonzero(~truth)
    swapped = len(few) > len(many)
    if swapped:  # pairs in the wrong order, then: the weights of the many are cumulated but once
        few, many = many, few
    many = many[np.argsort(score[many], kind="stable")]
    first, last = (np.searchsorted(score[many], score[few], side) for side in ("left", "right"))
    ends = np.unique(np.concatenate([[0], first, last]))
    below = _cumulated(w[many], ends)
    first, last = (np.searchsorted(ends, at) for at in (first, last))
    pairs = (w[few] * (below[first] + below[last])).sum(axis=0, dtype=float) / 2
    everything = n * (total - n)
    return (everything - pairs if swapped else pairs) / everything  # 0 / 0 is NaN: one class only


def _from_the_top(
    score: NDArray, truth: NDArray, w: NDArray, n: NDArray, total: NDArray
) -> tuple[NDArray, NDArray]:
    """AUPRC, Σ_k (R_k - R_{k-1}) P_k, and sensitivity at 0.9 specificity of one class (D,).

    Both read the cumulated weights from the highest probability down, at the probabilities of the
    class: elsewhere recall does not change, and specificity only falls.
    """
    order = np.argsort(-score, kind="stable")
    thresholds = np.unique(-score[truth])
    ends = np.append(0, np.searchsorted(-score[order], thresholds, "right"))
    ordered = w[order]
    above = _cumulated(ordered, ends)[1:]
    tp = _cumulated(ordered * truth[order, None], ends)  # (thresholds + 1, D)
    steps = np.diff(tp, axis=0)
    precision = np.divide(tp[1:], above, out=np.zeros_like(above), where=above > 0)
    allowed = (above - tp[1:]) <= (0.1 + 1e-12) * (total - n)
    undefined = np.where(n * (total - n) == 0, math.nan, 0.0)
    auprc = (steps * precision).sum(axis=0) / n + undefined
    return auprc, np.where(allowed, tp[1:], 0).max(axis=0, initial=0) / n + undefined


def _cumulated(w: NDArray, ends: NDArray) -> NDArray[np.float64]:
    """Sums of the first ``ends`` rows, for ends that rise from 0; whole numbers are exact."""
    parts = np.add.reduceat(w[: ends[-1]], ends[:-1], axis=0) if len(ends) > 1 else w[:0]
    return np.concatenate([np.zeros((1, w.shape[1])), np.cumsum(parts, axis=0, dtype=float)])
