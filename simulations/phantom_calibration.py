"""How much of sex shows in phantom images: the figures by which to judge the phantom's effect.

``python -m simulations.phantom_calibration`` makes fresh subjects of one scanner, prepares their
scans as a site does and measures what the literature reports of real ones. Neither a network nor a
federation enters, nor any subject of the cohort on which those are compared.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import typer

from common.data.phantoms.cohorts import PHANTOM_SEED
from common.errors import ConfigError, FedscanError
from common.imaging.cohorts import Subject, plan_site, subject_volume
from common.imaging.prepare import prepare_volume
from common.machine import one_thread, usable_cpus

IMAGE_SIZE = 48  # voxels along a side
POOLED = 24  # the same after pooling: 9 mm, about the smoothing of voxel-based morphometry
TRAINING_SIZES = (150, 270, 500, 1000, 1500)
PENALTIES = np.logspace(1, 4, 7)
BRAIN = 0.3  # voxels of a mean intensity above this; white matter has about 1


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` measures; accuracies are those on the held-out subjects."""

    size_only: float  # accuracy of a threshold on the volume of the head
    effects: np.ndarray  # (V,) size-adjusted |d| of each brain voxel, of all subjects
    ridge: dict[int, float]  # accuracy on whole images, by number of training scans

    def table(self) -> str:
        """Plain text, a figure a line."""
        rows = {"accuracy of head size alone": self.size_only}
        for name, quantile in (("median", 0.5), ("99th percentile", 0.99), ("largest", 1.0)):
            rows[f"size-adjusted voxelwise |d|, {name}"] = np.quantile(self.effects, quantile)
        rows |= {f"ridge accuracy, {n} training scans": value for n, value in self.ridge.items()}
        return "\n".join(f"{name:<46}{value:.3f}" for name, value in rows.items())


def calibrate(
    subjects: int, held_out: int, site: str, seed: int, progress: Callable[[int], None]
) -> Calibration:
    """Make subjects of one site in memory and measure how well their images tell sex.

    Raises
    ------
    ConfigError
        For a name or number that no phantom site can have, none held out, or the default
        cohort's seed.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    if seed == PHANTOM_SEED:
        raise ConfigError(f"seed {seed} is the default cohort's: calibrate on another")
    if held_out < 1:
        raise ConfigError(f"{held_out} held-out subjects: accepted is a whole number of 1 or more")
    plan = plan_site(site, n=subjects - held_out, n_test=held_out, seed=seed)
    size, images = np.empty((subjects, 1)), np.empty((subjects, *(POOLED,) * 3), np.float32)
    with _mapping(subjects) as run:
        for i, (voxels, image) in enumerate(run(_see, [(site, one, seed) for one in plan])):
            size[i], images[i] = np.log(voxels), image
            progress(1)
    men = np.array([subject.sex == "M" for subject in plan])
    held = np.array([subject.split == "test" for subject in plan])
    threshold = LinearDiscriminantAnalysis().fit(size[~held], men[~held])
    # The regions differ alike on both sides, so half a brain, the mean of both, tells as much.
    half = (images + images[:, ::-1])[:, : POOLED // 2].reshape(subjects, -1) / 2
    return Calibration(
        threshold.score(size[held], men[held]),
        adjusted_effects(images[:, images.mean(axis=0) > BRAIN], size[:, 0], men),
        learning_curve(half[~held], men[~held], half[held], men[held]),
    )


def adjusted_effects(images: np.ndarray, size: np.ndarray, men: np.ndarray) -> np.ndarray:
    """Absolute Cohen's d of sex at equal head size: analysis of covariance, each voxel.

    The coefficient of sex over the residual SD of ``voxel ~ 1 + sex + size``, for images of shape
    (N, V), log volumes (N,) and booleans (N,); returns (V,).
    """
    design = np.column_stack([np.ones(len(men)), men, size - size.mean()])
    coefficients = np.linalg.lstsq(design, images, rcond=None)[0]
    residual = images - design @ coefficients
    sd = np.sqrt((residual**2).sum(axis=0) / (len(men) - design.shape[1]))
    return np.abs(coefficients[1]) / sd


def learning_curve(
    images: np.ndarray, men: np.ndarray, held_images: np.ndarray, held_men: np.ndarray
) -> dict[int, float]:
    """Held-out accuracy of ridge regression on images (N, V), by number of training scans.

    The mean over as many disjoint training sets of each size as there are. Each chooses its own
    penalty, by leave-one-out, and its own scale, so the held-out part has no say in either.
    """
    from sklearn.linear_model import RidgeClassifierCV

    curve = {}
    for n in sorted({min(size, len(men)) for size in TRAINING_SIZES}):
        scores = []
        for start in range(0, len(men) - n + 1, n):
            part = slice(start, start + n)
            scale = np.sqrt(images[part].var(axis=0).mean())  # one for all voxels
            model = RidgeClassifierCV(PENALTIES).fit(images[part] / scale, men[part])
            scores.append(model.score(held_images / scale, held_men))
        curve[n] = float(np.mean(scores))
    return curve


def _see(work: tuple[str, Subject, int]) -> tuple[int, np.ndarray]:
    """Voxels of a subject's head, and its prepared image, pooled."""
    image = prepare_volume(*subject_volume(*work), image_size=IMAGE_SIZE)
    k = IMAGE_SIZE // POOLED
    pooled = image.reshape(POOLED, k, POOLED, k, POOLED, k).mean(axis=(1, 3, 5))
    return np.count_nonzero(image), pooled


@contextmanager
def _mapping(subjects: int) -> Iterator[Callable]:
    """Yield an ordered map over one process, or over all cores where that pays; one thread each."""
    workers = min(usable_cpus(), 1 + subjects // 80)
    if workers == 1:
        yield map
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, one_thread) as executor:
        yield lambda function, work: executor.map(function, work, chunksize=8)


def main(subjects: int = 2000, held_out: int = 500, site: str = "north", seed: int = 7) -> None:
    """Measure how much of sex shows in the phantom's images; the held-out are among SUBJECTS."""
    from simulations import console

    with console.steps("Making phantom scans", subjects) as bar:
        calibration = calibrate(subjects, held_out, site, seed, bar.advance)
    typer.echo(calibration.table())


if __name__ == "__main__":
    try:
        typer.run(main)
    except FedscanError as error:
        sys.exit(f"Error: {error}")
