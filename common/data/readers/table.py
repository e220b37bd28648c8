"""Storage ``table``: picture files that a table lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.cache import CachedPictures
from common.data.identities import in_table
from common.data.identity_headers import in_picture as header_identities
from common.data.image_table import ImageTable
from common.data.image_table import read_image_table as read_table
from common.data.photographs import load_photographs, picture_settings, require_content
from common.data.photographs import read_photograph as read_picture
from common.studies.study import Study

__all__ = [
    "header_identities",
    "open_images",
    "read_image",
    "read_picture",
    "read_table",
    "table_identities",
]


def table_identities(root: Path, site: str, study: Study) -> Iterable[tuple[str, set[str]]]:
    """Columns of the table that identify people."""
    return in_table(root, study.images.table, site=site)


def read_image(
    path: Path, study: Study, *, size: int, heights_mm: Sequence[float], root: Path, site: str
) -> NDArray[np.uint8]:
    """Read one picture as `open_images` prepares it, uint8 (C, S, S)."""
    del heights_mm  # of volumes alone
    settings = picture_settings(study, size)
    picture = read_picture(path, **settings, root=root, site=site)
    return require_content(picture, path, root=root, site=site).transpose(2, 0, 1)


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
    del heights_mm  # of volumes alone
    return load_photographs(table, rows, study, name=name, size=size, cache=cache)
