"""Ways to spoil a set of real slices, from hardly visible to absurd, to try a judge on.

Each is a pure function of images (N, 1, R, R) in [-1, 1]. Lengths are in millimetres or in shares
of the picture, so that a degradation is the same one at every resolution. Some the default
extractor has been trained to see (`blur`, `noise`, `shuffle`), the others not. Those three
are written anew here, not taken from its training: a fault there must show here.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from common.imaging.prepare import FIELD_OF_VIEW_MM


def blur(images: np.ndarray, sigma_mm: float) -> np.ndarray:
    """Smooth by a Gaussian of this SD."""
    sigma = sigma_mm * images.shape[-1] / FIELD_OF_VIEW_MM
    return ndimage.gaussian_filter(images, (0, 0, sigma, sigma), mode="nearest")


def noise(images: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    """Add white noise; its SD is a share of the range from air to the brightest tissue."""
    noisy = images + 2 * sd * rng.standard_normal(images.shape)
    return np.clip(noisy, -1, 1).astype(np.float32)


def shuffle(
    images: np.ndarray, share: float, rng: np.random.Generator, *, across: int = 4
) -> np.ndarray:
    """Move a share of each picture's ``across`` x ``across`` patches to one another's places."""
    n, _, side, _ = images.shape
    patch = side // across
    grid = images.reshape(n, across, patch, across, patch).swapaxes(2, 3)
    patches = grid.reshape(n, across**2, patch, patch).copy()
    for picture in patches:
        chosen = rng.choice(across**2, round(share * across**2), replace=False)
        picture[chosen] = picture[np.roll(chosen, 1)]
    grid = patches.reshape(n, across, across, patch, patch).swapaxes(2, 3)
    return grid.reshape(n, 1, side, side)


def warp(images: np.ndarray, shift_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Bend each picture by a smooth random displacement (over 20 mm) of this SD."""
    n, _, side, _ = images.shape
    pixels = side / FIELD_OF_VIEW_MM  # per mm
    field = rng.standard_normal((n, 2, side, side))
    field = ndimage.gaussian_filter(field, (0, 0, 20 * pixels, 20 * pixels), mode="nearest")
    field *= shift_mm * pixels / field.std()
    places = np.indices((side, side)) + field
    bent = [
        ndimage.map_coordinates(picture[0], place, order=1, mode="nearest")
        for picture, place in zip(images, places, strict=True)
    ]
    return np.stack(bent)[:, None].astype(np.float32)


def mosaic(images: np.ndarray, tile_mm: float) -> np.ndarray:
    """Replace square tiles by their mean; the side is rounded to a power of two of pixels."""
    n, _, side, _ = images.shape
    tile = 2 ** max(1, round(np.log2(tile_mm * side / FIELD_OF_VIEW_MM)))
    means = images.reshape(n, 1, side // tile, tile, side // tile, tile).mean(axis=(3, 5))
    return means.repeat(tile, axis=2).repeat(tile, axis=3)


def average(
    images: np.ndarray, heights: np.ndarray, heads: int, rng: np.random.Generator
) -> np.ndarray:
    """Average each slice with those of other participants at the same height: smooth, alike."""
    mixed = images.copy()
    for height in np.unique(heights):
        same = np.flatnonzero(heights == height)
        orders = [same, *(rng.permutation(same) for _ in range(heads - 1))]
        mixed[same] = np.mean([images[order] for order in orders], axis=0)
    return mixed


def random_phases(images: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Blobs: turn the phases of what differs from the mean slice, and keep its power spectrum.

    Whoever looks sees no anatomy beyond the mean; whatever counts texture alone sees no change.
    """
    mean = images.mean(axis=0)
    phases = np.angle(np.fft.fft2(rng.standard_normal(images.shape)))
    spectrum = np.fft.fft2(images - mean) * np.exp(1j * share * phases)
    return np.clip(mean + np.fft.ifft2(spectrum).real, -1, 1).astype(np.float32)
