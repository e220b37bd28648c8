"""The steps of ADA on images, given their parameters: geometry, colour, octaves, cutout.

The geometric step resamples at twice the resolution between the two halves of an orthogonal wavelet
filter bank (Karras et al., arXiv 2006.06676, appendix B.2). Reflected borders, inserted zeros and
the filter are one linear map along an axis, so each half is a product with a constant matrix
instead of a chain of passes over the picture, and without a rotation the whole step is one matrix
an axis. Parameters are float64 on the CPU: what they decide is decided without waiting for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Daubechies' least asymmetric orthonormal wavelets ("symlets"), low-pass, sum √2 (Ten Lectures on
# Wavelets, section 8.1.1; six and two vanishing moments, which a test checks).
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
OCTAVES = 4
# From the picture's centre to that of its doubled samples, in pixels: see `_filter_bank`.
CENTRE = 0.25


class _FilterBank(NamedTuple):
    """The two halves of the resampling along one axis of R pixels; S = 2 R + 10, P = 3 R - 2."""

    up: Tensor  # (2 P + 2, R): reflect by R - 1 on both sides, double; first and last row are zeros
    down: Tensor  # (R, S): halve


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _filter_bank(size: int, dtype: torch.dtype, device: torch.device) -> _FilterBank:
    """Up by the low-pass filter, down by its mirror image: together the identity (orthonormality).

    The taps' middle is their sixth, their largest: the only nearly symmetric place that twelve taps
    have. So a pixel lies on a doubled sample, not halfway between two, and the picture's centre
    half a sample, `CENTRE` pixels, before the samples'.
    """
    taps = torch.tensor(SYM6, dtype=torch.float64)
    half = len(taps) // 2
    padded = 3 * size - 2
    up = torch.zeros(2 * padded + 2, size, dtype=torch.float64)
    samples = torch.arange(2 * padded)
    for tap, weight in enumerate(taps.flip(0)):
        source = samples + (tap - half)  # in the padded picture with zeros inserted
        kept = (source % 2 == 0) & (source >= 0) & (source < 2 * padded)
        pixel = _reflect(source[kept] // 2 - (size - 1), size)
        up.index_put_((samples[kept] + 1, pixel), weight, accumulate=True)
    down = torch.zeros(size, 2 * size + 2 * (half - 1), dtype=torch.float64)
    for pixel in range(size):
        down[pixel, 2 * pixel : 2 * pixel + len(taps)] = taps
    return _FilterBank(up.to(device, dtype), down.to(device, dtype))


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Carry out the geometric transformations.

    Outside, an image goes on as its mirror image for R - 1 pixels, then as 0.

    Parameters
    ----------
    images : Tensor
        (N, C, R, R).
    inverse : Tensor
        (N, 2, 3) on the CPU, see `inverse_transform`.
    """
    straight = ((inverse[:, 0, 1] == 0) & (inverse[:, 1, 0] == 0)) | (
        (inverse[:, 0, 0] == 0) & (inverse[:, 1, 1] == 0)
    )
    moved = (inverse != torch.eye(2, 3, dtype=inverse.dtype)).any(2).any(1)
    images = _change(images, straight & moved, inverse, warp_straight)
    return _change(images, ~straight, inverse, warp_any)


def warp_any(images: Tensor, inverse: Tensor) -> Tensor:
    """`warp` by sampling the doubled image bilinearly."""
    size = images.shape[-1]
    up, down = _filter_bank(size, images.dtype, images.device)
    out = down.shape[1]
    # From the picture's centre to the samples' centre, on both sides.
    shift = inverse[:, :, 2] + CENTRE * (inverse[:, :, :2].sum(2) - 1)
    inverse = torch.cat([inverse[:, :, :2], shift.unsqueeze(2)], 2)
    # The farthest point looked at, in pixels from the centre, and half the samples that cover it,
    # in steps of a quarter image so that memory is asked for in few sizes.
    far = float((inverse[:, :, :2].abs().sum(2) * (out / 4) + shift.abs()).max())
    step = max(size // 4, 8)
    half = min(math.ceil((2 * far + 2) / step) * step, len(up) // 2 - 1)
    middle = len(up) // 2
    up = up[middle - half : middle + half]
    x = up @ (images @ up.T)  # (N, C, 2 half, 2 half)
    # Both squares as [-1, 1]²: a pixel is 4 / out wide in one and 2 / half in the other.
    scale = torch.tensor([out / 4, out / 4, 1.0], dtype=inverse.dtype) * (2 / half)
    theta = like(inverse * scale, images)
    grid = F.affine_grid(theta, [len(images), 1, out, out], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return down @ (x @ down.T)


def warp_straight(images: Tensor, inverse: Tensor) -> Tensor:
    """`warp` for transformations that map axes to axes: all of it is one matrix an axis."""
    n, _, size, _ = images.shape
    up, down = _filter_bank(size, images.dtype, images.device)
    out = down.shape[1]
    # One of each row's two coefficients is 0. Rows of `source`: samples of `up` along x, along y.
    places = (torch.arange(out, dtype=inverse.dtype) - (out - 1) / 2) / 2 + CENTRE
    source = inverse[:, :, :2].sum(2, keepdim=True) * places + inverse[:, :, 2:]  # (n, 2, S)
    source = 2 * (source - CENTRE) + (len(up) - 1) / 2
    lower = source.floor()
    share = like((source - lower).unsqueeze(-1), images)
    index = [(lower.long() + k).clamp(0, len(up) - 1).flatten().to(images.device) for k in (0, 1)]
    first, second = (up.index_select(0, i).view(n, 2, out, size) for i in index)
    along_x, along_y = (down @ torch.lerp(first, second, share)).unsqueeze(2).unbind(1)
    x = along_y @ images @ along_x.mT
    turned = inverse[:, 0, 0] == 0
    return _change(x, turned, inverse, lambda chosen, _: chosen.mT)


def recolour(images: Tensor, matrix: Tensor) -> Tensor:
    """Apply (N, C, C + 1) affine maps to the channels of images (N, C, R, R)."""
    n, channels = images.shape[:2]
    if torch.equal(matrix, torch.eye(channels, channels + 1, dtype=matrix.dtype).expand_as(matrix)):
        return images
    matrix = like(matrix, images)
    factor, add = matrix[:, :, :-1], matrix[:, :, -1:]
    if channels == 1:
        return torch.addcmul(add.unsqueeze(-1), images, factor.unsqueeze(-1))
    return torch.baddbmm(add, factor, images.reshape(n, channels, -1)).view(images.shape)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _octaves(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Filters of four octaves as matrices (4, R, R) along an axis with reflected borders; sum: I.

    H(z) H(z⁻¹) / 2 and its mirror image in frequency add up to one, so splitting off the upper half
    of the lowest octave again and again, at half the rate each time, keeps the sum.
    """
    taps = torch.tensor(SYM2, dtype=torch.float64)
    low = F.conv1d(taps.view(1, 1, -1), taps.view(1, 1, -1), padding=len(taps) - 1)[0, 0] / 2
    middle = len(low) // 2
    high = -low
    high[middle] += 1
    bands = torch.ones(1, 1, 1, dtype=torch.float64)  # (bands, 1, taps)
    for _ in range(OCTAVES - 1):
        spread = torch.zeros(len(bands), 1, 2 * bands.shape[2] - 1, dtype=torch.float64)
        spread[..., ::2] = bands
        bands = F.conv1d(spread, low.view(1, 1, -1), padding=len(low) - 1)
        top = F.pad(high, [(bands.shape[2] - len(high)) // 2] * 2)
        bands = torch.cat([bands, top.view(1, 1, -1)])
    matrices = torch.zeros(len(bands), size, size, dtype=torch.float64)
    pixels = torch.arange(size)
    for tap in range(bands.shape[2]):
        source = _reflect(pixels + tap - bands.shape[2] // 2, size)
        matrices[:, pixels, source] += bands[:, :, tap]
    return matrices.to(device, dtype)


def filter_octaves(images: Tensor, gains: Tensor) -> Tensor:
    """Scale octaves of spatial frequency of images (N, C, R, R), along both axes, by (N, 4)."""

    def filtered(chosen: Tensor, of_chosen: Tensor) -> Tensor:
        octaves = _octaves(images.shape[-1], images.dtype, images.device)
        matrix = torch.einsum("no,oyx->nyx", like(of_chosen, images), octaves).unsqueeze(1)
        return matrix @ chosen @ matrix.mT

    return _change(images, (gains != 1).any(1), gains, filtered)


def cut_out(images: Tensor, centres: Tensor, side: float) -> Tensor:
    """Set a square to 0: sides and centres (N, 2), x before y, as fractions of the images' side.

    With a centre at infinity an image stays whole.
    """
    size = images.shape[-1]
    places = (torch.arange(size, dtype=centres.dtype) + 0.5) / size
    x, y = ((places - centres.unsqueeze(2)).abs() < side / 2).unbind(1)  # (N, R)
    return images * like(~(x[:, None, None, :] & y[:, None, :, None]), images)


def _change(
    images: Tensor, chosen: Tensor, values: Tensor, change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Replace the chosen images by ``change(images, values)`` of the chosen ones.

    What is decided on the CPU spares the others the work, and a GPU is not waited for.
    """
    index = chosen.nonzero().flatten()
    if len(index) == 0:
        return images
    if len(index) == len(images):
        return change(images, values)
    there = index.to(images.device)
    return images.index_copy(0, there, change(images.index_select(0, there), values[index]))


def _reflect(index: Tensor, size: int) -> Tensor:
    """Pixel that a place outside the image shows: mirrored at the border pixels' centres."""
    period = 2 * size - 2
    folded = index % period
    return torch.minimum(folded, period - folded)


def like(values: Tensor, images: Tensor) -> Tensor:
    """Values as numbers of the images' kind, where the images are."""
    return values.to(images.device, images.dtype)
