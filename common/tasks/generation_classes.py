"""How good generated images of each class are, and how varied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.evaluation.generation import judge_features
from common.evaluation.image_statistics import COARSEST, ms_ssim_diversity
from common.seeding import derive_seed

if TYPE_CHECKING:
    from common.data.dataset import Dataset

MOST_IMAGES = 64  # of a class and either kind, for similarities of pairs
VARIETY = ("ms_ssim", "ms_ssim_real")
OF_A_CLASS = (
    *("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"),
    *VARIETY,
)


def names(classes: Sequence[str]) -> list[str]:
    """Name all measures of this module."""
    return [*VARIETY, *(f"{measure}.{one}" for one in classes for measure in OF_A_CLASS)]


def some_of_each(data: Dataset, seed: int) -> np.ndarray:
    """Draw up to :data:`MOST_IMAGES` images of each class; return their indices, ascending."""
    draws = np.random.default_rng(derive_seed(seed, purpose="images to compare in pairs"))
    mixed = draws.permutation(len(data))
    of_class = [mixed[data.labels[mixed] == label] for label in np.unique(data.labels)]
    return np.sort(np.concatenate([index[:MOST_IMAGES] for index in of_class]))


def variety(generated: np.ndarray, real: np.ndarray, seed: int) -> dict[str, float]:
    """Return the mean MS-SSIM of pairs of generated, and of real images.

    Parameters
    ----------
    generated, real : np.ndarray
        (N, C, R, R) in [-1, 1].
    seed : int
        Decides the pairs.

    Returns
    -------
    dict
        Without one of a single image, or of a side that is no power of two from 16.
    """
    side = real.shape[-1]
    if side < COARSEST or side & (side - 1):
        return {}
    found = {
        name: ms_ssim_diversity(images, seed=derive_seed(seed, purpose="pairs"))
        for name, images in zip(VARIETY, (generated, real), strict=True)
        if len(images) > 1
    }
    return {name: value for name, value in found.items() if value is not None}


def of_each_class(
    features: dict[str, np.ndarray],
    images: dict[str, np.ndarray],
    shown: np.ndarray,
    data: Dataset,
    classes: Sequence[str],
    *,
    least_people: int,
    seed: int,
) -> dict[str, float]:
    """Judge each class by itself: generated images of its label against its real ones.

    Parameters
    ----------
    features : dict of str to np.ndarray
        ``real`` and ``generated``, (N, D); generated ones have the labels of the real ones.
    images : dict of str to np.ndarray
        Some of them, (n, C, R, R) in [-1, 1].
    shown : np.ndarray
        (n,), which.
    data : Dataset
        The real images.
    classes : sequence of str
    least_people : int
        A class of fewer people is left out.
    seed : int

    Returns
    -------
    dict
        Measures of :data:`OF_A_CLASS`, as ``recall.MEL``; without those that a class has too few
        images for.
    """
    persons, found = np.asarray(data.persons), {}
    for number, name in enumerate(classes):
        chosen = np.flatnonzero(data.labels == number)
        if not len(chosen) or len(set(persons[chosen])) < least_people:
            continue
        judged = judge_features(features["generated"][chosen], features["real"][chosen], seed=seed)
        few = np.flatnonzero(data.labels[shown] == number)
        judged |= variety(images["generated"][few], images["real"][few], seed)
        found |= {
            f"{measure}.{name}": float(judged[measure])
            for measure in OF_A_CLASS
            if judged.get(measure) is not None
        }
    return found
