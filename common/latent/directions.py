"""Directions of W along which a label changes, found by linear models of latents.

Shen et al. 2020, "Interpreting the Latent Space of GANs for Semantic Face Editing" (InterFaceGAN,
arXiv 1907.10786): the normal of the hyperplane that separates the latents of images with an
attribute from those without. A cross-validated accuracy says whether there is such a plane. It does
not say that moving along the normal changes this attribute alone: attributes that go together in
the training images go together in W, and :func:`orthogonalized` takes known others out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError
from common.evaluation.classification import classification_metrics
from common.evaluation.resampling import resampling_weights, weighted_metrics
from common.evaluation.statistics import freedom, interval
from common.seeding import derive_seed

FOLDS = 5
LEAST = 10  # images, or persons, with a label and without: two in every fold
DRAWS = 1000  # bootstrap samples
PARALLEL = 1e-6  # share of a normal outside of the others' span below which nothing is left


@dataclass(frozen=True)
class Direction:
    """A direction of W.

    Parameters
    ----------
    name : str
    step : (D,) float64
        The plane's normal, towards the label, as long as one SD of the latents along it.
    accuracy : float
        Balanced accuracy of the plane on latents that were left out.
    low, high : float
        Its 95 % interval.
    count, positive : int
        Latents, and those of them with the label.
    """

    name: str
    step: NDArray[np.float64]
    accuracy: float
    low: float
    high: float
    count: int
    positive: int


def find_direction(
    name: str,
    ws: ArrayLike,
    labels: ArrayLike,
    *,
    groups: Sequence[object] | None = None,
    seed: int = 0,
) -> Direction:
    """Find the direction of a label by logistic regression on standardized latents.

    Both classes have equal weight. The accuracy is that of five folds, in which a group is never
    parted; its interval is Wilson's (:mod:`common.evaluation.statistics`) with the variance of a
    bootstrap of groups, times 1 + K / (K − 1) for K folds, since their planes share training
    latents (Nadeau & Bengio 2003, *Machine Learning* 52:239; for folds Bouckaert & Frank 2004,
    *PAKDD*, 3). Without that factor it would be too narrow.

    Parameters
    ----------
    name : str
    ws : (N, D) floats
        Latents w.
    labels : (N,) bool
        Which of their images have the label.
    groups : sequence, optional
        Whose image it is, of real ones; by default each latent is a group.
    seed : int
        Of the folds and the bootstrap.

    Raises
    ------
    ConfigError
        Fewer than ``LEAST`` groups with the label, or without.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ws, labels = np.asarray(ws, np.float64), np.asarray(labels).astype(np.int64)
    owner = np.arange(len(ws)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = [len(np.unique(owner[labels == kind])) for kind in (0, 1)]
    if min(sizes) < LEAST:
        raise ConfigError(
            f"direction '{name}': {sizes[1]} with and {sizes[0]} without it; accepted are {LEAST} "
            "or more of each"
        )
    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    state = derive_seed(seed, purpose="folds of a direction") % 2**32
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=state)
    said = cross_val_predict(model, ws, labels, groups=owner, cv=folds, method="predict_proba")
    accuracy = classification_metrics(labels, said)["balanced_accuracy"]
    rng = np.random.default_rng(derive_seed(seed, purpose="bootstrap of a direction"))
    weights = resampling_weights(labels, DRAWS, rng, owner)
    drawn = weighted_metrics(labels, said, weights)["balanced_accuracy"]
    strata = tuple((0.5, size) for size in sizes)
    total = len(np.unique(owner))
    variance = float(np.var(drawn)) * total / (total - 2) * (1 + FOLDS / (FOLDS - 1))
    low, high = interval(accuracy, [(variance, freedom(strata))], bounds=(0.0, 1.0), strata=strata)
    scaler, fitted = (step for _, step in model.fit(ws, labels).steps)
    # The decision is coef · (w - mean) / scale, whose gradient in W is coef / scale.
    normal = fitted.coef_[0] / scaler.scale_
    found = Direction(
        name,
        normal,
        float(accuracy),
        float(low),
        float(high),
        count=len(ws),
        positive=int(labels.sum()),
    )
    return replace(found, step=_one_sd(normal, ws, name))


def orthogonalized(direction: Direction, others: Sequence[Direction], ws: ArrayLike) -> Direction:
    """Take other directions out of one: conditional manipulation (Shen et al. 2020, section 2.3).

    The normal is projected onto what is orthogonal to all others, and scaled again to one SD. The
    accuracy stays that of the plane before.

    Parameters
    ----------
    direction : Direction
    others : sequence of Direction
    ws : (N, D) floats
        Whose SD is one step.

    Raises
    ------
    ConfigError
        The direction lies in the span of the others.
    """
    if not others:
        return direction
    basis, _ = np.linalg.qr(np.stack([one.step for one in others], axis=1))  # (D, K)
    left = direction.step - basis @ (basis.T @ direction.step)
    if np.linalg.norm(left) < PARALLEL * np.linalg.norm(direction.step):
        names = ", ".join(one.name for one in others)
        raise ConfigError(f"direction '{direction.name}': nothing is left of it without {names}")
    return replace(direction, step=_one_sd(left, ws, direction.name))


def _one_sd(normal: NDArray, ws: ArrayLike, name: str) -> NDArray[np.float64]:
    """Scale a normal to the SD of latents along it."""
    unit = normal / max(np.linalg.norm(normal), np.finfo(float).tiny)
    spread = float(np.std(np.asarray(ws, np.float64) @ unit))
    if not spread > 0:
        raise ConfigError(f"direction '{name}': the latents do not vary along it")
    return unit * spread
