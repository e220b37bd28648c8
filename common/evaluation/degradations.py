"""Ways to spoil a set of real pictures, from hardly visible to absurd, to try a judge on.

Each is a pure function of images (N, C, R, R) in [-1, 1]. Lengths are shares of the picture's
side, so that a degradation is the same one at every resolution. Some the default extractors have
been trained to see (`blur`, `noise`, `shuffle`, `recolour`, `desaturate`), the others not. Those
are written anew here, not taken from their training: a fault there must show here.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def blur(images: np.ndarray, sd: float) -> np.ndarray:
    """Smooth by a Gaussian of this SD."""
    sigma = sd * images.shape[-1]
    return ndimage.gaussian_filter(images, (0, 0, sigma, sigma), mode="nearest")


def noise(images: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    """Add white noise, the same to all channels; its SD is a share of the range of intensities."""
    n, _, side, _ = images.shape
    noisy = images + 2 * sd * rng.standard_normal((n, 1, side, side))
    return np.clip(noisy, -1, 1).astype(np.float32)


def colour_noise(images: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    """Add white noise to each channel whose mean over channels is zero: of colour alone."""
    noise = rng.standard_normal(images.shape)
    noise -= noise.mean(axis=1, keepdims=True)
    return np.clip(images + 2 * sd * noise, -1, 1).astype(np.float32)


def recolour(images: np.ndarray, shift: float) -> np.ndarray:
    """Shift the white balance: red gains by this share, blue loses it (0 to 1)."""
    gains = np.array([1 + shift, 1, 1 - shift], np.float32)[:, None, None]
    return np.clip((images + 1) * gains - 1, -1, 1)


def desaturate(images: np.ndarray, share: float) -> np.ndarray:
    """Take away this share of the colour; 1 leaves a grey picture."""
    grey = images.mean(axis=1, keepdims=True)
    return images + np.float32(share) * (grey - images)


def shuffle(
    images: np.ndarray, share: float, rng: np.random.Generator, *, across: int = 4
) -> np.ndarray:
    """Move a share of each picture's ``across`` x ``across`` patches to one another's places."""
    n, channels, side, _ = images.shape
    patch = side // across
    grid = images.reshape(n, channels, across, patch, across, patch)
    grid = grid.transpose(0, 2, 4, 1, 3, 5)  # (N, rows, columns, C, patch, patch)
    patches = grid.reshape(n, across**2, channels, patch, patch).copy()
    for picture in patches:
        chosen = rng.choice(across**2, round(share * across**2), replace=False)
        picture[chosen] = picture[np.roll(chosen, 1)]
    grid = patches.reshape(n, across, across, channels, patch, patch)
    return grid.transpose(0, 3, 1, 4, 2, 5).reshape(images.shape)


def warp(
    images: np.ndarray, shift: float, rng: np.random.Generator, *, smooth: float = 0.1
) -> np.ndarray:
    """Bend each picture by a random displacement of SD ``shift``, smooth over ``smooth``."""
    n, _, side, _ = images.shape
    field = rng.standard_normal((n, 2, side, side))
    field = ndimage.gaussian_filter(field, (0, 0, smooth * side, smooth * side), mode="nearest")
    field *= shift * side / field.std()
    places = np.indices((side, side)) + field
    bent = [
        [ndimage.map_coordinates(one, place, order=1, mode="nearest") for one in picture]
        for picture, place in zip(images, places, strict=True)
    ]
    return np.array(bent, dtype=np.float32)


def mosaic(images: np.ndarray, width: float) -> np.ndarray:
    """Replace square tiles by their mean; their side is rounded to a power of two of pixels."""
    n, channels, side, _ = images.shape
    tile = 2 ** max(1, round(np.log2(width * side)))
    means = images.reshape(n, channels, side // tile, tile, side // tile, tile).mean(axis=(3, 5))
    return means.repeat(tile, axis=2).repeat(tile, axis=3)


def average(
    images: np.ndarray, kinds: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Average each picture with others of the same kind (N,): smooth, alike."""
    mixed = images.copy()
    for kind in np.unique(kinds):
        same = np.flatnonzero(kinds == kind)
        orders = [same, *(rng.permutation(same) for _ in range(count - 1))]
        mixed[same] = np.mean([images[order] for order in orders], axis=0)
    return mixed


def random_phases(images: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Blobs: turn the phases of what differs from the mean picture, and keep its power spectrum.

    Whoever looks sees no shapes beyond the mean; whatever counts texture alone sees no change.
    """
    mean = images.mean(axis=0)
    n, _, side, _ = images.shape  # one field of phases for all channels: colours stay together
    phases = np.angle(np.fft.fft2(rng.standard_normal((n, 1, side, side))))
    spectrum = np.fft.fft2(images - mean) * np.exp(1j * share * phases)
    return np.clip(mean + np.fft.ifft2(spectrum).real, -1, 1).astype(np.float32)
