"""Storage ``dicom``: DICOM files of one picture each that a table lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.cache import CachedPictures
from common.data.dicom import DICOM_VERSION
from common.data.dicom import read_dicom as read_picture
from common.data.dicom_files import decoders
from common.data.image_table import ImageTable
from common.data.image_table import read_image_table as read_table
from common.data.photographs import load_photographs
from common.studies.study import Study

__all__ = ["open_images", "read_picture", "read_table"]


def open_images(
    table: ImageTable,
    rows: NDArray[np.int64],
    study: Study,
    *,
    name: str,
    size: int,
    heights_mm: Sequence[float],
    cache: Path,
) -> CachedPictures:
    """Prepare the pictures of some rows of a table, once, as uint8 (C, S, S)."""
    import pydicom

    del heights_mm  # of volumes alone
    version = ["dicom", DICOM_VERSION, pydicom.__version__, decoders()]
    return load_photographs(
        table, rows, study, name=name, size=size, cache=cache, read=read_picture, version=version
    )
