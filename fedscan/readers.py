"""What a reader of a storage of your own is built from; see docs/extending.md."""

from __future__ import annotations

from fedscan._app import put_on_path

put_on_path()

from common.data.cache import CachedPictures, cached_pictures  # noqa: E402
from common.data.image_table import ImageTable, read_image_table  # noqa: E402
from common.data.site_data import FileImages, Reader  # noqa: E402
from common.errors import DataContractError  # noqa: E402
from common.studies.study import Study  # noqa: E402

__all__ = [
    "CachedPictures",
    "DataContractError",
    "FileImages",
    "ImageTable",
    "Reader",
    "Study",
    "cached_pictures",
    "read_image_table",
]
