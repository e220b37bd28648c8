"""What a classifier's training varies of a head, since it does not carry the label.

An image is a head: a cube of voxels, or the stack of a few of its axial slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHIFT_VOXELS = 1  # at most, along each axis
GAMMA_SD = 0.2  # SD of log gamma


@dataclass(frozen=True)
class Axes:
    """What the axes of an image (…, A, B, C) are.

    Parameters
    ----------
    right : int
        The axis from the participant's left to right.
    shifted : tuple of int
        Those along which a head may lie a little elsewhere.
    """

    right: int
    shifted: tuple[int, ...]


CUBE = Axes(right=-3, shifted=(-3, -2, -1))  # right, anterior, superior
STACK = Axes(right=-1, shifted=(-2, -1))  # height, rows from front to back, right


def axes_of(images: Tensor) -> Axes:
    """Tell a cube, whose sides are equal, from a stack, which has fewer slices than pixels."""
    return CUBE if images.shape[-3] == images.shape[-1] else STACK


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Vary what does not carry the label: side, place and contrast.

    Parameters
    ----------
    images : Tensor
        Cubes (B, 1, S, S, S) or stacks (B, 1, L, R, R) in [0, 1].
    generator : torch.Generator
        Every draw comes from it.

    Returns
    -------
    Tensor
        A new tensor of the same shape. Sizes are left alone: they carry sex.
    """
    count, axes = len(images), axes_of(images)
    size = (count, len(axes.shifted))
    shifts = torch.randint(-SHIFT_VOXELS, SHIFT_VOXELS + 1, size, generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    gamma = torch.exp(GAMMA_SD * torch.randn(count, 1, 1, 1, 1, generator=generator))
    out = torch.zeros_like(images)
    for image, moved, mirror, shift in zip(images, out, mirrored, shifts, strict=True):
        seen = image.flip(axes.right) if mirror else image
        _put(seen, moved, shift.tolist(), axes.shifted)
    return out.pow_(gamma)


def _put(image: Tensor, empty: Tensor, steps: Sequence[int], axes: Sequence[int]) -> None:
    """Copy an image, moved by whole voxels; what leaves at one side does not enter at the other."""
    for step, axis in zip(steps, axes, strict=True):
        left = image.shape[axis] - abs(step)
        image = image.narrow(axis, max(-step, 0), left)
        empty = empty.narrow(axis, max(step, 0), left)
    empty.copy_(image)
