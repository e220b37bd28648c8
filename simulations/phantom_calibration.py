"""How much of sex shows in phantom images: the figures on which the phantom's effect was set.

``python -m simulations.phantom_calibration`` makes fresh subjects of one scanner, prepares their
scans as a site does and measures what the literature reports of real ones: the accuracy of brain
size alone, the size of voxelwise differences once brain size is accounted for, and the accuracy of
a linear classifier of whole images for several numbers of training scans. No network and no
federation enters, nor any subject of the cohort on which these are compared.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from threadpoolctl import threadpool_limits

from common.errors import ConfigError, FedscanError
from common.imaging.cohorts import Subject, plan_site, subject_volume, usable_cores
from common.imaging.prepare import prepare_volume
from common.sites import PHANTOM_SEED

IMAGE_SIZE = 48  # as the networks see them
POOLED = 24  # voxels along a side after pooling: 9 mm, near the smoothing that VBM uses
TRAINING_SIZES = (150, 270, 500, 1000, 1500)
ALPHAS = np.logspace(1, 4, 7)
BRAIN = 0.3  # a voxel is brain where the mean image exceeds this (white matter is about 1)


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` measures; accuracies are those on the held-out subjects.

    Parameters
    ----------
    volume_only : float
        Accuracy of a threshold on the head's volume.
    effects : ndarray, shape (V,)
        Volume-adjusted \\|d| of every brain voxel, see :func:`adjusted_effects`.
    ridge : dict of int to float
        Accuracy of ridge regression on whole images by training scans, each the mean over as many
        disjoint training sets as there are.
    """

    volume_only: float
    effects: np.ndarray
    ridge: dict[int, float]


def calibrate(
    subjects: int,
    held_out: int,
    site: str,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Calibration:
    """Make subjects of one site in memory and measure how well their images tell sex.

    Raises
    ------
    ConfigError
        For a name or number that no phantom site can have, or the default cohort's seed.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    if seed == PHANTOM_SEED:
        raise ConfigError(
            f"seed {seed} is the default cohort's, which must not be calibrated on: use another"
        )
    plan = plan_site(site, n=subjects - held_out, n_test=held_out, seed=seed)
    volumes, images = np.empty(subjects), np.empty((subjects, POOLED**3 // 2), np.float32)
    with _mapping(subjects) as run:
        for i, seen in enumerate(run(_see, [(site, subject, seed) for subject in plan])):
            volumes[i], images[i] = seen
            progress(1)
    men = np.array([subject.sex == "M" for subject in plan])
    held = np.array([subject.split == "test" for subject in plan])
    size = np.log(volumes)[:, None]
    threshold = LinearDiscriminantAnalysis().fit(size[~held], men[~held])
    brain = images.mean(axis=0) > BRAIN
    return Calibration(
        volume_only=threshold.score(size[held], men[held]),
        effects=adjusted_effects(images[:, brain], size[:, 0], men),
        ridge=_learning_curve(images[~held], men[~held], images[held], men[held]),
    )


def adjusted_effects(images: np.ndarray, size: np.ndarray, men: np.ndarray) -> np.ndarray:
    """Cohen's \\|d| between the sexes at equal brain size (analysis of covariance).

    The coefficient of sex over the residual SD of ``voxel ~ 1 + sex + size``.

    Parameters
    ----------
    images : ndarray, shape (N, V)
    size : ndarray, shape (N,)
        Log volume of the head.
    men : ndarray of bool, shape (N,)
    """
    design = np.column_stack([np.ones(len(men)), men, size - size.mean()])
    coefficients = np.linalg.lstsq(design, images, rcond=None)[0]
    residual = images - design @ coefficients
    sd = np.sqrt((residual**2).sum(axis=0) / (len(men) - design.shape[1]))
    return np.abs(coefficients[1]) / sd


def _learning_curve(
    images: np.ndarray, men: np.ndarray, held_images: np.ndarray, held_men: np.ndarray
) -> dict[int, float]:
    """Held-out accuracy by training scans; the penalty is chosen inside each training set."""
    from sklearn.linear_model import RidgeClassifierCV

    curve = {}
    for n in sorted({min(size, len(men)) for size in TRAINING_SIZES}):
        scores = []
        for start in range(0, len(men) - n + 1, n):
            part = slice(start, start + n)
            scale = np.sqrt(images[part].var(axis=0).mean())  # one for all voxels
            model = RidgeClassifierCV(ALPHAS)  # leave-one-out
            model.fit(images[part] / scale, men[part])
            scores.append(model.score(held_images / scale, held_men))
            if "-v" in sys.argv: print(n, model.alpha_)
        curve[n] = float(np.mean(scores))
    return curve


def _see(work: tuple[str, Subject, int]) -> tuple[int, np.ndarray]:
    """Voxels of a subject's head, and its image averaged with its mirror image and pooled."""
    site, subject, seed = work
    image = prepare_volume(*subject_volume(site, subject, seed), image_size=IMAGE_SIZE)
    k = IMAGE_SIZE // POOLED
    pooled = image.reshape(POOLED, k, POOLED, k, POOLED, k).mean(axis=(1, 3, 5))
    half = (pooled + pooled[::-1])[: POOLED // 2] / 2  # the regions differ alike on both sides
    return np.count_nonzero(image), half.ravel()
