"""Which training slices a comparison of generators shows, and how they lie in ``samples.npz``.

Generated pictures are shown in two rows, one per sex, of two people with five heights;
real slices are kept in that order, so that both can be laid out alike. A place that nobody fills
(a site may have one man only) is air. Like every array of the file, a slice is turned so that axis
0 points to the right and axis 1 to the front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from common.imaging.slices import LEVELS_MM, SEX

if TYPE_CHECKING:
    from common.imaging.slices import SliceSet

SITE = "site "  # before a site's name in the file: numpy has keywords that a site may be called
PEOPLE = 2  # of each sex: as many as a row of a generator's grid has
SEXES = tuple(SEX.values())
CAPTIONS = [f"{level:g} mm" for level in LEVELS_MM] * PEOPLE


def laid_out(data: SliceSet) -> np.ndarray:
    """Choose slices of the first people of each sex.

    Returns
    -------
    np.ndarray
        float32 in [0, 1], (sexes × people × heights, R, R).
    """
    side = data.resolution
    kept = np.zeros((len(SEXES), PEOPLE, len(LEVELS_MM), side, side), np.float32)
    for row, sex in enumerate(SEXES):
        mine = [k for k, label in enumerate(data.labels) if label["sex"] == sex]
        for person, name in enumerate(list(dict.fromkeys(data.ids[k] for k in mine))[:PEOPLE]):
            for k in (k for k in mine if data.ids[k] == name):
                if (level := float(data.heights_mm[k])) in LEVELS_MM:
                    kept[row, person, LEVELS_MM.index(level)] = (data.images[k, 0] + 1) / 2
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
