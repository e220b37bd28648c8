"""What a classifier's training varies of a picture, by modality, since it does not carry the label.

A modality is declared by the study and never guessed from an image.

- :data:`PHOTOGRAPH`, a dermatoscope's or a camera's picture in colour. It was taken from any side
  and under any lamp, so the orientation, the brightness and the white balance carry no label. What
  an image shows of one hue beside another does, so the colours move together and not far.
- :data:`GREY`, an X-ray or a like picture of one channel. A patient stands upright before the
  detector, and heart and liver have a side: it is turned and moved a little and never mirrored.

All draws of a batch come from one generator on the CPU, in an order that depends on the batch's
size alone; the arithmetic is pure. One resampling, bilinear, serves rotation, scale and shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Modality:
    """How far each property of a picture is varied; 0 leaves it alone.

    Parameters
    ----------
    mirrored : tuple of int
        Axes of (B, C, S, S) along which a picture may be mirrored, each with probability 1/2; they
        are the axes of :func:`views` as well.
    rotation : float
        Degrees, at most, to either side; uniform.
    zoom : float
        SD of the log of the magnification.
    shift : float
        At most, as a fraction of the side, along both axes; uniform.
    brightness : float
        SD of the log of the gain of all channels.
    white_balance : float
        SD of the log of the gain of each channel beyond the brightness.
    contrast : float
        SD of the log of the factor of the deviations from a picture's own mean.
    outside : {"reflection", "zeros"}
        What is beyond the edges: the picture mirrored, or black.
    """

    mirrored: tuple[int, ...]
    rotation: float
    zoom: float
    shift: float
    brightness: float
    white_balance: float
    contrast: float
    outside: str


# Shift and zoom stay small: a lesion's diameter is a criterion (D of the ABCD rule).
PHOTOGRAPH = Modality(
    mirrored=(-1, -2),
    rotation=180.0,
    zoom=0.05,
    shift=0.05,
    brightness=0.1,
    white_balance=0.05,
    contrast=0.1,
    outside="reflection",
)
GREY = Modality(
    mirrored=(),
    rotation=7.0,
    zoom=0.05,
    shift=0.05,
    brightness=0.1,
    white_balance=0.0,
    contrast=0.1,
    outside="zeros",
)


def modality_of(channels: int) -> Modality:
    """Return the modality of pictures that a study declares to have 1 or 3 channels.

    Raises
    ------
    ValueError
        For another number.
    """
    if channels not in (1, 3):
        raise ValueError(f"{channels} channels: accepted are 1 and 3")
    return PHOTOGRAPH if channels == 3 else GREY


def augment(images: Tensor, generator: torch.Generator, modality: Modality) -> Tensor:
    """Vary what does not carry the label: orientation, place, light and contrast.

    Parameters
    ----------
    images : Tensor
        Pictures (B, C, S, S) in [0, 1], float32; on any device.
    generator : torch.Generator
        On the CPU. The same state gives the same bytes on one device.
    modality : Modality

    Returns
    -------
    Tensor
        A new tensor of the same shape, in [0, 1].
    """
    count, channels = images.shape[:2]
    uniform = 2 * torch.rand(count, 5, generator=generator) - 1
    normal = torch.randn(count, 3 + channels, generator=generator)
    signs = torch.ones(count, 2)  # of x and y
    for axis in modality.mirrored:
        signs[:, -1 - axis] = torch.where(uniform[:, -1 - axis] < 0, -1.0, 1.0)
    moved = _resampled(
        images,
        signs,
        angle=math.radians(modality.rotation) * uniform[:, 2],
        zoom=torch.exp(modality.zoom * normal[:, 0]),
        shift=2 * modality.shift * uniform[:, 3:],
        outside=modality.outside,
    )
    gain = torch.exp(modality.brightness * normal[:, 1:2] + modality.white_balance * normal[:, 3:])
    contrast = torch.exp(modality.contrast * normal[:, 2])
    return _relit(moved, gain, contrast)


def views(images: Tensor, modality: Modality) -> list[Tensor]:
    """Return the pictures and their mirror images, over which a prediction is averaged.

    Parameters
    ----------
    images : Tensor
        (B, C, S, S).
    modality : Modality

    Returns
    -------
    list of Tensor
        Each of the same shape, the pictures themselves first: four where both axes may be
        mirrored, one where none may.
    """
    found = [images]
    for axis in modality.mirrored:
        found += [view.flip(axis) for view in found]
    return found


def _resampled(
    images: Tensor, signs: Tensor, *, angle: Tensor, zoom: Tensor, shift: Tensor, outside: str
) -> Tensor:
    """Mirror, rotate, magnify and shift each picture about its centre, in one resampling.

    ``signs`` and ``shift`` (B, 2) are of x and y, the shift in half-sides; ``angle`` and ``zoom``
    are (B,).
    """
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # Maps a place of the result to one of the source, both in [-1, 1] from edge to edge.
    matrix = torch.stack(
        [
            torch.stack([signs[:, 0] * cosine, -signs[:, 0] * sine, shift[:, 0]], dim=1),
            torch.stack([signs[:, 1] * sine, signs[:, 1] * cosine, shift[:, 1]], dim=1),
        ],
        dim=1,
    )  # (B, 2, 3)
    grid = F.affine_grid(matrix.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, "bilinear", outside, align_corners=False)


def _relit(images: Tensor, gain: Tensor, contrast: Tensor) -> Tensor:
    """Multiply channels by ``gain`` (B, C), deviations from the mean by ``contrast`` (B,)."""
    gain = gain[..., None, None].to(images)
    contrast = contrast[:, None, None, None].to(images)
    # Of a picture that gain and contrast change: a · x + b, with b one number a channel.
    mean = (images.mean((2, 3), keepdim=True) * gain).mean(1, keepdim=True)
    return torch.addcmul(mean * (1 - contrast), images, gain * contrast).clamp_(0, 1)
