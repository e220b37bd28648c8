"""Whether a classifier takes an artefact for a sign of a class, and where it should look instead.

A hair, a ruler or a dark frame says nothing of the lesion. It is flagged as a *shortcut* where both
hold of the images that show it, each with the whole of its 95 % interval over persons:

1. attention prefers it: the ratio of :mod:`common.explanation.attention` is above 1;
2. it decides: to cover it changes the log-odds ℓ of the predicted class by at least 0.2 more than
   to cover an equal area elsewhere does (0.2 moves a probability of 0.50 to 0.55),

       influence = |ℓ(x) − ℓ(x without m)| − mean over s of |ℓ(x) − ℓ(x without m shifted by s)|.

Attention alone is no proof: dark edges draw some in any network. Nor is a change alone: covering
anything changes the log-odds a little, and with many pictures a small change is significant. Hence
the threshold of 0.2.
Where an artefact crosses the lesion, attention to it may be the lesion's: callers leave the lesion
out of mask and image. The shifts s are cyclic, by half of the picture along each
axis and along both: area and shape stay, and a frame's corners meet in the middle or at two sides,
where lesion and skin lie, which makes the comparison a strict one. What is covered is filled with
the mean of what lies around it. The test finds a shortcut in the images that it is given; without
one among them it says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from common.explanation.attention import Attention, mean_ratio, mean_value
from common.explanation.saliency import log_odds, logits_of, mean_colour

REACH = 16  # a side over the SD, in pixels, of what is averaged around a covered place
MATERIAL = 0.2  # log-odds
LEAST = 1e-3  # weight of the picture's mean colour, which decides far from all that is left


def influence(
    model: nn.Module, images: Tensor, classes: Tensor, masks: NDArray[np.bool_]
) -> NDArray[np.floating]:
    """Measure how much more covering a mask changes than covering an equal area elsewhere.

    Parameters
    ----------
    model : nn.Module
    images : (N, C, S, S) Tensor
    classes : (N,) int64 Tensor
        Class of each image whose log-odds are compared.
    masks : (N, S, S) bool

    Returns
    -------
    (N,) floats
        In units of log-odds; NaN where a mask is empty or the whole picture.
    """
    found = np.full(len(images), np.nan)
    area = masks.reshape(len(masks), -1).mean(1)
    known = np.flatnonzero((area > 0) & (area < 1))
    if not len(known):
        return found
    index = torch.from_numpy(known)
    images, classes, masks = images[index], classes[index], masks[known]
    half = images.shape[-1] // 2
    whole = log_odds(logits_of(model, images), classes)

    def change(covered: NDArray[np.bool_]) -> Tensor:
        logits = logits_of(model, without(images, covered))
        return (whole - log_odds(logits, classes)).abs()

    shifts = [(0, half), (half, 0), (half, half)]
    elsewhere = [change(np.roll(masks, shift, (-2, -1))) for shift in shifts]
    found[known] = (change(masks) - torch.stack(elsewhere).mean(0)).double().numpy()
    return found


def without(images: Tensor, masks: NDArray[np.bool_]) -> Tensor:
    """Fill masks (N, S, S) of images (N, C, S, S) with the Gaussian mean of what is around."""
    from scipy import ndimage

    kept = ~masks[:, None]
    sd = (0, 0, images.shape[-1] / REACH, images.shape[-1] / REACH)
    ground = mean_colour(images).numpy()
    seen = ndimage.gaussian_filter(np.where(kept, images.numpy(), 0), sd, mode="constant")
    weight = ndimage.gaussian_filter(kept.astype(np.float32), sd, mode="constant")
    fill = (seen + LEAST * ground) / (weight + LEAST)
    return torch.from_numpy(np.where(kept, images.numpy(), fill).astype(np.float32))


def judge(
    found: Attention,
    influences: NDArray[np.floating] | None,
    persons: ArrayLike,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Sum up the attention of several images to one mask, and say whether it is a shortcut.

    Parameters
    ----------
    found : Attention
    influences : (N,) floats, optional
        As :func:`influence` gives them; none of what should be looked at, such as the lesion.
    persons : (N,) array
    rng : numpy.random.Generator

    Returns
    -------
    dict
        ``images``, ``persons``, mean ``area``, ``share`` and ``auroc``; ``ratio`` and ``influence``
        with intervals; ``shortcut``: None where there are too few persons to tell, or nothing to be
        told.
    """
    ratio = mean_ratio(found, persons, rng)
    known = np.isfinite(found.share)
    means: Mapping[str, float | None] = {
        name: float(np.mean(values[known])) if known.any() else None
        for name, values in (("area", found.area), ("share", found.share), ("auroc", found.auroc))
    }
    told: dict[str, Any] = {"images": ratio.pop("images"), "persons": ratio.pop("persons")}
    told |= {**means, "ratio": ratio, "influence": None, "shortcut": None}
    if influences is not None:
        told["influence"] = mean_value(influences, persons, rng)
        lows = ratio["low"], told["influence"]["low"]
        if None not in lows:
            told["shortcut"] = bool(lows[0] > 1 and lows[1] > MATERIAL)
    return told
