"""Which training images a comparison shows, and how they lie in ``samples.npz``.

Every array of the file is turned so that axis 0 points to the right and axis 1 to the front, or up;
a third axis has colours. Of generators, images are kept in the order in which generated pictures
are shown: a row for each class of the study, of two people at every height of a volume, or of as
many people as a row has places. A place that nobody fills is black.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from common.imaging.slices import LEVELS_MM
from common.studies.study import HEIGHT

if TYPE_CHECKING:
    from common.data.dataset import Dataset
    from common.studies.study import Study

SITE = "site "  # before a site's name in the file: numpy has keywords that a site may be called
PEOPLE = 2  # of each class: as many as a row of a generator's grid of slices has
PICTURES = 10  # in a row, where an image is a person's whole picture


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


def captions(study: Study) -> list[str]:
    """Return what stands above the places of a row."""
    if study.images.view == "picture":
        return [""] * PICTURES
    return [f"{level:g} mm" for level in LEVELS_MM] * PEOPLE


def laid_out(data: Dataset, study: Study) -> np.ndarray:
    """Choose images of the first people of each class.

    Returns
    -------
    np.ndarray
        float32 in [0, 1], (classes × places, R, R) or (classes × places, R, R, 3).
    """
    places = captions(study)
    levels = [f"{level:g}" for level in LEVELS_MM]
    shape = data.shape[-3:]
    kept = np.zeros((len(study.label.classes.names), len(places), *shape), np.float32)
    persons = np.asarray(data.persons)
    pictures = study.images.view == "picture"
    for label, row in enumerate(kept):
        mine = np.flatnonzero(np.asarray(data.labels) == label)
        everybody = dict.fromkeys(persons[mine].tolist())
        for number, person in enumerate(islice(everybody, PICTURES if pictures else PEOPLE)):
            for k in mine[persons[mine] == person][: 1 if pictures else None]:
                level = 0 if pictures else levels.index(data.conditions[k][HEIGHT])
                row[number if pictures else number * len(levels) + level] = data.take([k])[0]
    stack = kept.reshape(-1, *shape).clip(0, 1)
    return np.ascontiguousarray(pictured(stack))


def rows(stack: np.ndarray, study: Study) -> dict[str, np.ndarray]:
    """Return what :func:`laid_out` kept: for each class a row of pictures (n, C, R, R) in [-1, 1].

    Nothing, where the stack is of another layout. A class that the site has not is left out.
    """
    names, width = study.label.classes.names, len(captions(study))
    if len(stack) != len(names) * width:
        return {}
    colour = stack if stack.ndim == 4 else stack[..., None]
    upright = np.nan_to_num(colour).clip(0, 1).transpose(0, 3, 2, 1)[:, :, ::-1]
    pictures = 2 * upright - 1
    return {
        name: row
        for k, name in enumerate(names)
        if (row := pictures[k * width : (k + 1) * width]).max() > -1
    }
