"""Where the lesion and the artefacts of a phantom's picture lie: the truth, drawn again.

A picture follows from the cohort's seed and the name of its file, and so do its masks. The lesion
is what lies within its outline; an artefact is where it changes white light by more than a tenth.
Nothing here changes a picture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.phantoms.dermatoscopes import ARTEFACTS, artefacts, dermatoscope
from common.data.phantoms.known import made_lesions
from common.data.phantoms.lesion_canvas import Canvas
from common.data.phantoms.lesion_cohorts import (
    LESION_PHANTOM_VERSION,
    Picture,
    patient_pictures,
    taken_with,
)
from common.data.phantoms.lesion_rendering import CANVAS_PIXELS
from common.data.phantoms.lesion_scene import Scene
from common.errors import ConfigError

LESION = "lesion"
MASKS = (LESION, *ARTEFACTS)
VISIBLE = 0.1  # relative change of the light, from which on an artefact is there

_FILE = re.compile(r"(?P<hospital>.+)-(?P<patient>\d{1,9})-(?P<lesion>\d)-(?P<number>\d)\.jpg")


def cohort_seed(folder: Path) -> int | None:
    """Return the seed that a hospital's README names; None where its lesions are no phantoms.

    Raises
    ------
    ConfigError
        They are of another version of the phantom, whose masks cannot be drawn any more.
    """
    found = made_lesions(folder)
    if found is None:
        return None
    if int(found["version"]) != LESION_PHANTOM_VERSION:
        raise ConfigError(
            f"the pictures are of version {found['version']} of the lesion phantom: masks can be "
            f"drawn of version {LESION_PHANTOM_VERSION}. Make the hospitals again"
        )
    return int(found["seed"])


def picture_named(file: str, seed: int) -> Picture:
    """Return the picture of a phantom's file.

    Parameters
    ----------
    file : str
        Name in the hospital's folder of images, as ``north-00001-1-1.jpg``.
    seed : int
        Of the cohort.

    Raises
    ------
    ConfigError
        No phantom's picture has this name under this seed.
    """
    if found := _FILE.fullmatch(file):
        patient = int(found["patient"]) - 1
        for picture in patient_pictures(found["hospital"], patient, seed) if patient >= 0 else ():
            if picture.file == file:
                return picture
    raise ConfigError(
        f"{file[:80]!r} is no picture of the lesion phantom under seed {seed}: accepted are names "
        "as HOSPITAL-PATIENT-LESION-PICTURE.jpg of its cohort",
        public="a file is no picture of the lesion phantom under the cohort's seed",
    )


def picture_masks(picture: Picture, seed: int, size: int) -> Mapping[str, NDArray[np.bool_]]:
    """Draw the masks of a phantom's picture.

    Parameters
    ----------
    picture : Picture
    seed : int
        Of the cohort.
    size : int
        Pixels a side, whatever those of the file: lengths are shares of the picture.

    Returns
    -------
    dict of str to ndarray of bool, shape (size, size)
        Of each of :data:`MASKS`; empty where the picture has no such artefact.
    """
    view, draws = taken_with(picture, seed)
    finer = -(-CANVAS_PIXELS // size)
    inside = Scene(Canvas(size * finer, view), picture.truth).mask
    lesion = inside.reshape(size, finer, size, finer).mean((1, 3)) > 0.5
    changes = artefacts(size, dermatoscope(picture.hospital), draws)
    return {LESION: lesion} | {name: change > VISIBLE for name, change in changes.items()}
