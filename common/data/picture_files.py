"""The picture files of a folder: where they lie, how a table's cells name them, how they look."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from common.data.archive_files import PICTURES
from common.data.dicom import read_dicom
from common.data.photographs import read_photograph
from common.errors import DataContractError
from common.studies.sections import check_relative

DICOM = (".dcm", ".dicom")
ENDINGS = (*PICTURES, *DICOM)

_OPENED = 12  # pictures


class Place(NamedTuple):
    """What completes a table's cell to a picture's path, and says how it is stored.

    Parameters
    ----------
    folder, suffix : str
        Before and after the cell; ``suffix`` is empty where the cell has an ending.
    storage : str
        ``table``, as studies call picture files that a table lists, or ``dicom``.
    """

    folder: str
    suffix: str
    storage: str

    def path(self, root: Path, cell: str) -> Path:
        """File that a cell names, below a hospital's folder."""
        return root / self.folder / (cell + self.suffix)


def find_pictures(folder: Path) -> dict[str, list[PurePosixPath]]:
    """Pictures of a folder by name without ending."""
    found: dict[str, list[PurePosixPath]] = {}
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                path = PurePosixPath((Path(here) / name).relative_to(folder).as_posix())
                found.setdefault(path.stem, []).append(path)
    return found


def locate(cell: str, pictures: Mapping[str, list[PurePosixPath]]) -> Place | None:
    """Where the picture lies that a table's cell names; None where there is none."""
    try:
        told = PurePosixPath(check_relative(cell))
    except ValueError:
        return None
    named = told.suffix.lower() in ENDINGS
    for path in pictures.get(told.stem if named else told.name, ()):
        if named and path.name != told.name:
            continue
        length = len(told.parts)
        if path.parts[-length:-1] == told.parts[:-1]:
            return Place(
                PurePosixPath(*path.parts[:-length]).as_posix(),
                "" if named else path.suffix,
                "dicom" if path.suffix.lower() in DICOM else "table",
            )
    return None


def look_at_some(paths: list[Path], folder: Path, storage: str) -> tuple[int, bool] | None:
    """Channels of a few pictures and whether they use a small part of their range, if one opens."""
    read = read_dicom if storage == "dicom" else read_photograph
    grey, brightest = True, 0
    opened = 0
    for path in paths[:: max(1, len(paths) // _OPENED)][:_OPENED]:
        try:
            picture = read(path, size=32, channels=3, root=folder, site=folder.name)
        except DataContractError:  # the check of the data names them all
            continue
        opened += 1
        grey = grey and bool(np.all(picture == picture[..., :1]))
        brightest = max(brightest, int(picture.max()))
    return (1 if grey else 3, brightest < 64) if opened else None
