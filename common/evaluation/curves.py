"""What a classifier's predictions look like: curves and decisions as numbers to draw."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.evaluation.classification import CALIBRATION_BINS, decide

GRID = np.linspace(0, 1, 51)  # false-positive rates at which ROC curves are read
RECALLS = GRID[1:]  # at which precision is: with nothing found there is none


def describe(
    repetitions: list[tuple[NDArray[np.integer], NDArray[np.floating]]], target: int | None
) -> dict[str, Any]:
    """Describe a model's decisions over repetitions, on the same images or others.

    Parameters
    ----------
    repetitions : list of ((N,) integers, (N, K) floats)
        Labels and probabilities of every class.
    target : int or None
        Index of the positive class. None: curves are averaged over one class against the rest.

    Returns
    -------
    dict
        ``confusion``: counts (K, K), summed over repetitions; rows are true classes, columns
        predicted ones. ``roc``: mean sensitivity at the false positive rates of :data:`GRID`; None
        if the labels hold a single class. ``pr``: mean precision at :data:`RECALLS`, likewise.
        ``chance``: the mean share of the class among the images, which is the precision of
        guessing. ``calibration``: for each probability bin of equal width
        the number of images, their mean probability, and the observed frequency, over all
        repetitions; of the positive class, or of the predicted class if none is named.
    """
    k = repetitions[0][1].shape[1]
    cells = [np.bincount(k * y + decide(p), minlength=k * k) for y, p in repetitions]
    ranked = [
        (y == c, p[:, c])
        for y, p in repetitions
        for c in ([target] if target is not None else np.unique(y))
        if 0 < (y == c).sum() < len(y)
    ]

    def mean(values: list[Any]) -> Any:
        return np.mean(values, axis=0).round(4).tolist() if values else None

    return {
        "confusion": np.sum(cells, axis=0).reshape(k, k).tolist(),
        "roc": mean([_roc(*one) for one in ranked]),
        "pr": mean([_precision(*one) for one in ranked]),
        "chance": mean([truth.mean() for truth, _ in ranked]),
        "calibration": _bins(repetitions, target),
    }


def _found(truth: NDArray[np.bool_], score: NDArray[np.floating]) -> tuple[NDArray, NDArray]:
    """True and false positives at every threshold, from the highest down."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # of runs of equal ones
    hits, alarms = (np.append(0, np.cumsum(one[order])[ends]) for one in (truth, ~truth))
    return hits, alarms


def _roc(truth: NDArray[np.bool_], score: NDArray[np.floating]) -> NDArray:
    """Sensitivity at :data:`GRID`, on straight lines between thresholds (vertical averaging)."""
    hits, alarms = _found(truth, score)
    return np.interp(GRID, alarms / alarms[-1], hits / hits[-1])


def _precision(truth: NDArray[np.bool_], score: NDArray[np.floating]) -> NDArray:
    """Precision at :data:`RECALLS`.

    Between thresholds counts are interpolated, not precision, which has no straight lines there
    (Davis & Goadrich 2006, *ICML*, 233-240).
    """
    hits, alarms = _found(truth, score)
    recall, first = np.unique(hits / hits[-1], return_index=True)  # of each the fewest alarms
    last = np.append(first[1:], len(hits)) - 1  # and, on the way to the next, the most
    wanted = RECALLS * hits[-1]
    upper = np.searchsorted(recall, RECALLS - 1e-12)
    lower = upper - 1
    share = (RECALLS - recall[lower]) / (recall[upper] - recall[lower])
    before, after = alarms[last[lower]], alarms[first[upper]]
    return wanted / (wanted + before + share * (after - before))


def _bins(
    repetitions: list[tuple[NDArray, NDArray[np.floating]]], target: int | None
) -> list[tuple[int, float, float]]:
    if target is None:
        sure = np.concatenate([p.max(axis=1) for _, p in repetitions])
        right = np.concatenate([p.argmax(axis=1) == y for y, p in repetitions])
    else:
        sure = np.concatenate([p[:, target] for _, p in repetitions])
        right = np.concatenate([y == target for y, _ in repetitions])
    bins = np.minimum((sure * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return [
        (int(mine.sum()), round(float(sure[mine].mean()), 4), round(float(right[mine].mean()), 4))
        for mine in (bins == b for b in range(CALIBRATION_BINS))
        if mine.any()
    ]
