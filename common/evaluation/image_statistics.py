"""Measures of generated images that need no trained network: texture, scale by scale, and variety.

They say less than an extractor's distances, but nothing in them was learnt, and they reach the
finest pixels of large images. Images are (N, C, R, R) in [-1, 1], C 1 to 4, R a power of two
from 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.errors import FedscanError
from common.seeding import derive_seed

COARSEST = 16  # pixels a side of the last level of a pyramid
PATCH = 7  # pixels a side
PATCHES = 128  # of each image and level
MOST_IMAGES = 1024  # of either set, for patches
PROJECTIONS = 512
PAIRS = 500
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. (2003), finest first

_BATCH = 64
_PYRAMID_TAPS = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16  # Burt & Adelson (1983)


def image_statistics(generated: np.ndarray, real: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """All measures of this module, with those of the real images where they stand alone.

    Returns
    -------
    dict
        ``spectrum_distance_db``; ``sliced_wasserstein``, for each level and their ``mean``;
        ``ms_ssim`` of pairs of generated images and ``ms_ssim_real``; ``n_generated``, ``n_real``.
    """
    return {
        "n_generated": len(generated),
        "n_real": len(real),
        "spectrum_distance_db": spectrum_distance(generated, real),
        "sliced_wasserstein": sliced_wasserstein(generated, real, seed=seed),
        "ms_ssim": ms_ssim_diversity(generated, seed=seed),
        "ms_ssim_real": ms_ssim_diversity(real, seed=seed),
    }


def check_shape(shape: Sequence[int], *, halved: bool = False) -> None:
    """Refuse what is not the shape of square images (N, C, R, R), N at least 1 and C 1 to 4.

    Parameters
    ----------
    shape : sequence of int
    halved : bool
        R must be a power of two from `COARSEST`, so that pyramids of every image end alike.

    Raises
    ------
    FedscanError
        The shape is another one.
    """
    side = shape[-1] if len(shape) == 4 and 0 not in shape and 1 <= shape[1] <= 4 else 0
    fits = side >= COARSEST and side & (side - 1) == 0 if halved else side > 0
    if not fits or shape[2] != side:
        also = f", R a power of two from {COARSEST}" if halved else ""
        accepted = f"accepted is (N, 1 to 4 channels, R, R){also}"
        raise FedscanError(
            f"images of shape {tuple(shape)}: {accepted}", public=f"images to judge: {accepted}"
        )


def radial_power_spectrum(images: np.ndarray) -> np.ndarray:
    """Mean power at each spatial frequency, whatever its direction.

    Returns
    -------
    np.ndarray
        float64, shape (R / 2 + 1,): mean of |F|² over images, channels and all frequencies that
        round to 0, 1, …, R / 2 cycles a picture, with F the unitary Fourier transform, so that
        white noise of variance v has v everywhere.
    """
    images = _checked(images)
    side = images.shape[-1]
    power = np.zeros((side, side))
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH].astype(np.float64)
        power += np.square(np.abs(np.fft.fft2(part, norm="ortho"))).sum(axis=(0, 1))
    power /= images.shape[0] * images.shape[1]
    cycles = np.fft.fftfreq(side, 1 / side)
    radius = np.rint(np.hypot(cycles[:, None], cycles)).astype(int).ravel()
    sums = np.bincount(radius, weights=power.ravel())
    return (sums / np.bincount(radius))[: side // 2 + 1]


def spectrum_distance(generated: np.ndarray, real: np.ndarray) -> float:
    """Root mean squared difference of the radial spectra, in dB, the mean brightness left out."""
    ours, theirs = (radial_power_spectrum(one)[1:] + 1e-12 for one in (generated, real))
    return float(np.sqrt(np.mean(np.square(10 * np.log10(ours / theirs)))))


def sliced_wasserstein(
    generated: np.ndarray, real: np.ndarray, *, seed: int = 0
) -> dict[str, float]:
    """Sliced Wasserstein distance between patches of Laplacian pyramids.

    As Karras et al. (2018, section 5): on each level, 128 patches of 7 x 7 pixels of each image are
    projected on random directions, and the sorted projections of the two sets compared. Unlike
    there, both sets are scaled by the real one's mean and SD of each channel, not each by its own,
    or a set of twice the contrast would differ by nothing. So 1 is one SD of the real patches.

    Returns
    -------
    dict of str to float
        For each level, keyed by its pixels a side (the finest first), and their ``mean``.

    Raises
    ------
    FedscanError
        The two sets have images of different shapes.
    """
    generated, real = _checked(generated), _checked(real)
    if generated.shape[1:] != real.shape[1:]:
        raise FedscanError(
            f"generated images of shape {generated.shape[1:]} and real ones of {real.shape[1:]}: "
            "accepted are sets of one shape",
            public="generated and real images have different shapes",
        )
    rng = np.random.default_rng(derive_seed(seed, purpose="sliced wasserstein"))
    count = min(len(generated), len(real), MOST_IMAGES)
    sets = [one[rng.choice(len(one), count, replace=False)] for one in (generated, real)]
    found = {}
    for ours, theirs in zip(*(_laplacian_pyramid(one) for one in sets), strict=True):
        left, right = _patches(ours, rng), _patches(theirs, rng)  # (patches, C, 7, 7)
        mean = right.mean(axis=(0, 2, 3), keepdims=True)
        scale = right.std(axis=(0, 2, 3), keepdims=True) + 1e-8
        left, right = (((one - mean) / scale).reshape(len(one), -1) for one in (left, right))
        directions = rng.standard_normal((left.shape[1], PROJECTIONS)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        gaps = [
            np.abs(np.sort(left @ direction) - np.sort(right @ direction)).mean()
            for direction in directions.T
        ]
        found[str(ours.shape[-1])] = float(np.mean(gaps))
    return {**found, "mean": float(np.mean(list(found.values())))}


def ms_ssim_diversity(images: np.ndarray, *, seed: int = 0, pairs: int = PAIRS) -> float | None:
    """Mean multi-scale structural similarity of random pairs (Odena et al. 2017): 1 is no variety.

    MS-SSIM (Wang et al. 2003) halves the picture four times, which takes 176 pixels for its window
    of 11. Here it is halved down to 16 pixels: 1, 2, 3, 4 and 5 scales at 16, 32, 64, 128 and 256,
    with the published weights of the first so many, scaled to sum to 1. So compare it with real
    images of the same resolution only.

    Returns
    -------
    float or None
        None with fewer than two images.
    """
    import torch
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    images = _checked(images)
    if len(images) < 2:
        return None
    scales = min(len(MS_SSIM_WEIGHTS), int(np.log2(images.shape[-1] // COARSEST)) + 1)
    weights = np.array(MS_SSIM_WEIGHTS[:scales])
    rng = np.random.default_rng(derive_seed(seed, purpose="ms-ssim"))
    first = rng.integers(len(images), size=pairs)
    second = (first + rng.integers(1, len(images), size=pairs)) % len(images)  # never itself
    values = []
    for start in range(0, pairs, _BATCH):
        chosen = slice(start, start + _BATCH)
        similarity = multiscale_structural_similarity_index_measure(
            torch.from_numpy(images[first[chosen]]),
            torch.from_numpy(images[second[chosen]]),
            reduction="none",
            data_range=2.0,
            betas=tuple((weights / weights.sum()).tolist()),
            normalize="relu",  # a negative similarity has no power of a fraction: 0
        )
        values.append(similarity.numpy().ravel())
    return float(np.concatenate(values).astype(np.float64).mean())


def _laplacian_pyramid(images: np.ndarray) -> list[np.ndarray]:
    """Bands of an image, from the finest to the rest of 16 pixels (Burt & Adelson 1983)."""
    bands = []
    while images.shape[-1] > COARSEST:
        smaller = _smooth(images, 1)[..., ::2, ::2]
        spread = np.zeros_like(images)
        spread[..., ::2, ::2] = smaller
        bands.append(images - _smooth(spread, 2))
        images = smaller
    return [*bands, images]


def _smooth(images: np.ndarray, gain: float) -> np.ndarray:
    """Filter rows and columns, with a gain along each."""
    from scipy.ndimage import correlate1d

    for axis in (2, 3):
        images = correlate1d(images, gain * _PYRAMID_TAPS, axis=axis, mode="mirror")
    return images


def _patches(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random patches, `PATCHES` of each image: (N · PATCHES, C, 7, 7)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(2, 3))
    last = images.shape[-1] - PATCH + 1
    image = np.repeat(np.arange(len(images)), PATCHES)
    rows, columns = rng.integers(last, size=(2, len(image)))
    return windows[image, :, rows, columns]


def _checked(images: Any) -> np.ndarray:
    """Images as a float32 array, where their shape is accepted."""
    if hasattr(images, "detach"):
        images = images.detach().cpu().numpy()
    images = np.asarray(images, dtype=np.float32)
    check_shape(images.shape, halved=True)
    return images
