"""A storage of our own: grey images as NumPy arrays, which a table lists."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedscan.readers import (
    CachedPictures,
    DataContractError,
    ImageTable,
    Study,
    cached_pictures,
    read_image_table,
)


class NumpyFiles:
    """Files of one array (H, W) in [0, 1] each."""

    endings = (".npy",)

    def read_table(self, folder: Path, site: str, study: Study) -> ImageTable:
        """Read the study's table as storage `table` does."""
        return read_image_table(folder, site, study)

    def read_image(
        self,
        path: Path,
        study: Study,
        *,
        size: int,
        heights_mm: Sequence[float],
        root: Path,
        site: str,
    ) -> NDArray[np.uint8]:
        """Read one file as uint8 (1, S, S)."""
        del study, heights_mm, root
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataContractError(site, "a file is no NumPy array", where=path.name) from error
        if array.ndim != 2 or not np.isfinite(array).all():
            raise DataContractError(site, "an array is no grey image", where=path.name)
        picture = Image.fromarray((255 * array.clip(0, 1)).astype(np.uint8))
        return np.asarray(picture.resize((size, size)))[None]

    def open_images(
        self,
        table: ImageTable,
        rows: NDArray[np.int64],
        study: Study,
        *,
        name: str,
        size: int,
        heights_mm: Sequence[float],
        cache: Path,
    ) -> CachedPictures:
        """Prepare the images of some rows once."""
        where = {"root": table.root, "site": table.site}
        read = partial(self.read_image, study=study, size=size, heights_mm=heights_mm, **where)
        return cached_pictures(
            [table.files[row] for row in rows],
            read,
            **where,
            name=name,
            settings=f"ward7 {size}",
            shape=(1, size, size),
            cache=cache,
        )


NUMPY = NumpyFiles()
