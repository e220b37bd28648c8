"""Which training slices a comparison of generators shows, and how they lie in ``samples.npz``.

Generated pictures are shown in two rows, one per sex, of two people with five heights;
real slices are kept in that order, so that both can be laid out alike. A place that nobody fills
(a site may have one man only) is air. Like every array of the file, a slice is turned so that axis
0 points to the right and axis 1 to the front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from common.imaging.slices import LEVELS_MM

if TYPE_CHECKING:
    from common.data.dataset import Dataset

SITE = "site "  # before a site's name in the file: numpy has keywords that a site may be called
PEOPLE = 2  # of each sex: as many as a row of a generator's grid has
SEXES = ("female", "male")
CAPTIONS = [f"{level:g} mm" for level in LEVELS_MM] * PEOPLE


def pictured(images: np.ndarray) -> np.ndarray:
    """Turn images (n, *shape) in [0, 1] into pictures (n, R, R) or (n, R, R, 3) to look at.

    Of a volume or a stack its middle slice, axis 0 to the right and 1 to the front.
    """
    if images.ndim == 4:  # pictures, of rows from the top
        colour = images.shape[1] == 3
        upright = images.transpose(0, 3, 2, 1)[:, :, ::-1]
        return upright if colour else upright[..., 0]
    volumes = images[:, 0]
    if volumes.shape[1] == volumes.shape[2]:
        return volumes[..., volumes.shape[3] // 2]
    return volumes[:, volumes.shape[1] // 2, ::-1].transpose(0, 2, 1)


def laid_out(data: Dataset) -> np.ndarray:
    """Choose slices of the first people of each sex.

    Returns
    -------
    np.ndarray
        float32 in [0, 1], (sexes × people × heights, R, R).
    """
    side = data.shape[-1]
    heights = [f"{level:g}" for level in LEVELS_MM]
    kept = np.zeros((len(SEXES), PEOPLE, len(LEVELS_MM), side, side), np.float32)
    for row, sex in enumerate(SEXES):
        mine = [k for k, label in enumerate(data.conditions) if label.get("sex") == sex]
        for person, name in enumerate(list(dict.fromkeys(data.persons[k] for k in mine))[:PEOPLE]):
            for k in (k for k in mine if data.persons[k] == name):
                level = heights.index(data.conditions[k]["height"])
                kept[row, person, level] = data.take([k])[0, 0]
    stack = kept.reshape(-1, side, side).clip(0, 1)
    return np.ascontiguousarray(stack[:, ::-1].transpose(0, 2, 1))


def rows(stack: np.ndarray) -> dict[str, np.ndarray]:
    """Return what :func:`laid_out` kept: for each sex a row of pictures (n, 1, R, R) in [-1, 1].

    Nothing, where the stack is of another layout. A sex that the site has not is left out.
    """
    width = PEOPLE * len(LEVELS_MM)
    if len(stack) != len(SEXES) * width:
        return {}
    pictures = 2 * np.nan_to_num(stack).clip(0, 1).transpose(0, 2, 1)[:, None, ::-1] - 1
    return {
        sex: row
        for k, sex in enumerate(SEXES)
        if (row := pictures[k * width : (k + 1) * width]).max() > -1
    }
