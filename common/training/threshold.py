"""A site's own decision threshold: an offset of each class's logit, from its training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PRIOR_SD = 1.0  # of an offset, in logits, before any image has been seen
MOST = 100  # images of each class
STEPS = 50  # of Newton's method, which needs about five
TINY = np.finfo(np.float64).tiny


def of_each_class(labels: NDArray[np.int64], most: int = MOST) -> NDArray[np.int64]:
    """Return indices of at most so many images of each class, spread over all of its images."""
    found = []
    for one in np.unique(labels):
        members = np.flatnonzero(labels == one)
        found.append(members[np.linspace(0, len(members) - 1, min(most, len(members))).astype(int)])
    return np.sort(np.concatenate(found))


def offsets(
    predictions: NDArray[np.float64], labels: NDArray[np.int64], people: int
) -> NDArray[np.float64]:
    """Find the offsets b that suit a site's images best.

    They minimize

        Σ_k mean of -log softmax(z + b)_k over the images of class k / K  +  |b|² / (2 σ² n)

    over the classes that the site has, of which the softmax is, with the logarithms z of the
    predictions: all classes count as much, however rare, and no image of a class tells nothing of
    it, so its offset stays 0. The last term is a normal prior of SD σ (:data:`PRIOR_SD`): n people
    of n → ∞ overrule it, and images that any threshold separates move it little. The problem is
    strictly convex; Newton's method solves it.

    Parameters
    ----------
    predictions : (N, K) or (N,) ndarray
        Probabilities, as :func:`common.training.classifier.predict` gives them.
    labels : (N,) ndarray of int
    people : int
        n, whom the images are of.

    Returns
    -------
    (K,) ndarray
        They sum to 0.
    """
    logits = _logits(predictions)
    found = np.zeros(logits.shape[1])
    present, target = np.unique(labels, return_inverse=True)
    z, one_hot = logits[:, present], np.eye(len(present))[target]
    each = 1 / (len(present) * np.bincount(target))[target]  # what an image counts; in sum 1
    pull = 1 / (PRIOR_SD**2 * people)
    b = np.zeros(len(present))

    def loss(b: NDArray[np.float64]) -> float:
        return float(each @ -(_log_softmax(z + b) * one_hot).sum(1) + pull / 2 * b @ b)

    for _ in range(STEPS):
        p = np.exp(_log_softmax(z + b))
        slope = each @ (p - one_hot) + pull * b
        curvature = np.diag(each @ p + pull) - (p * each[:, None]).T @ p
        step, length = np.linalg.solve(curvature, slope), 1.0
        while length > 1e-6 and loss(b - length * step) > loss(b) - length / 4 * slope @ step:
            length /= 2
        if np.abs(slope).max() < 1e-10 or length <= 1e-6:  # no decrease that can be told
            break
        b = b - length * step
    found[present] = b
    return found


def shifted(predictions: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return softmax(z + b) of predictions, in their shape."""
    found = np.exp(_log_softmax(_logits(predictions) + by))
    return found[:, 1] if predictions.ndim == 1 else found


def _logits(predictions: NDArray[np.float64]) -> NDArray[np.float64]:
    table = predictions
    if predictions.ndim == 1:
        table = np.stack([1 - predictions, predictions], axis=1)
    return np.log(table.clip(min=TINY))


def _log_softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))
