"""What a classifier's training varies of a head, since it does not carry the label.

An image is a head: a cube of voxels, or the stack of a few of its axial slices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.imaging.prepare import HEAD, LEAST_PART

SHIFT = 1.0  # voxels at most, along each axis
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
    shifts = torch.rand((len(axes.shifted), count), generator=generator).mul_(2).sub_(1).mul_(SHIFT)
    mirrored = torch.rand(count, generator=generator) < 0.5
    gamma = torch.exp(GAMMA_SD * torch.randn(count, 1, 1, 1, 1, generator=generator))
    moves = [
        _interpolation(shift, mirrored & (axis == axes.right), side=images.shape[axis])
        for shift, axis in zip(shifts, axes.shifted, strict=True)
    ]
    return _resampled(images, moves).pow_(gamma)


def _interpolation(shift: Tensor, mirrored: Tensor, *, side: int) -> Tensor:
    """Matrices (B, from, to) that mirror and move an axis, by linear interpolation.

    What leaves at one side does not enter at the other.
    """
    place = torch.arange(side, dtype=shift.dtype)
    part = 1 - (place[:, None] + shift[:, None, None] - place).abs_()
    part = part.clamp_(min=0)
    return torch.where(mirrored[:, None, None], part.flip(1), part)


def _resampled(images: Tensor, moves: Sequence[Tensor]) -> Tensor:
    """Move heads (B, 1, …) along their last axes, one for each of the matrices.

    Air has no part in a voxel of the head, as in :func:`common.imaging.prepare.prepare_head`, and a
    voxel that is mostly air is 0.
    """

    def apply(values: Tensor) -> Tensor:
        # The first of the axes comes first, and a product puts it last, so that the next follows.
        values = values.reshape(len(values), -1, math.prod(len(move[0]) for move in moves)).mT
        for move in moves:
            values = values.reshape(len(values), move.shape[1], -1).mT @ move
        return values.reshape(images.shape)

    head = (images > HEAD).to(images.dtype)
    part = apply(head)
    # A product, not torch.where, so that NaN stays NaN.
    return apply(images * head).div_(part.clamp(min=LEAST_PART)).mul_(part >= LEAST_PART)
