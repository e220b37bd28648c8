"""Whether fedscan has drawn a site's images, by what it wrote beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from common.errors import DataContractError
from common.site_files import read_text

LESIONS = re.compile(r"lesion phantom, version (?P<version>\d{1,9}), seed (?P<seed>-?\d{1,20})\.")
_BYTES = 10_000


def holds_phantoms(folder: Path) -> bool:
    """Tell whether the images in a site's folder are phantoms, of whatever version.

    The folder's own texts say so, wherever it lies; nothing proves it.
    """
    return made_lesions(folder) is not None or _made_brains(folder)


def made_lesions(folder: Path) -> re.Match[str] | None:
    """Return what a hospital's README says of its lesions; None where they are no phantoms."""
    return LESIONS.search(_text(folder, "README"))


def _made_brains(folder: Path) -> bool:
    from common.imaging.cohorts import MADE_BY

    try:
        made = json.loads(_text(folder, "dataset_description.json"))["GeneratedBy"]
        return any(one["Name"] == MADE_BY for one in made)
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def _text(folder: Path, name: str) -> str:
    try:
        return read_text(folder / name, _BYTES, root=folder, site=folder.name)
    except DataContractError:  # there is none, or none that fedscan has written
        return ""
