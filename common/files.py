"""Files that are either whole or not there, and that nobody but their owner reads.

Much of what fedscan writes shows, encodes or names scans, and what does not lies beside it. So
there is one rule, whatever the umask: folders that fedscan makes are 0700 and files are 0600. Who
wants to share a result does so with ``chmod``; folders that were there before stay as they are.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600


def make_folder(path: Path) -> Path:
    """Make a folder and those above it that are missing, for their owner alone.

    Raises
    ------
    OSError
        If one cannot be made, or a file is in its place.
    """
    try:
        path.mkdir(mode=PRIVATE_FOLDER)
    except FileExistsError:
        if not path.is_dir():
            raise
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_folder(path.parent)
        path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)  # not twice: below /proc it never can be
        path.chmod(PRIVATE_FOLDER)
    else:
        path.chmod(PRIVATE_FOLDER)  # a umask may have taken the owner's rights, too
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, never meets half of it, nor another user any."""
    make_folder(path.parent)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(PRIVATE_FILE)  # mkstemp's mode, but for what the umask took
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, readable, with NaN as null (JSON has no NaN)."""
    text = json.dumps(without_nan(value), indent=2, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def numbered_name(number: int, text: str) -> str:
    """Return a file name, without ending, for a text that somebody else has chosen.

    Letters and digits of ASCII and hyphens stay, of at most 60 characters; the number keeps names
    of different texts apart.

    Examples
    --------
    >>> numbered_name(2, "BCC/SCC, ../other")
    '02-BCC_SCC_other'
    """
    return f"{number:02d}-{re.sub('[^A-Za-z0-9-]+', '_', text)[:60]}"


def as_text(cell: str) -> str:
    """Cell of a table for people, which a spreadsheet does not take for a formula."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def csv_of(table: DataFrame) -> bytes:
    """Write a table for people as CSV: no name or text in it is taken for a formula."""
    cells = table.map(lambda cell: as_text(cell) if isinstance(cell, str) else cell)
    return cells.rename(columns=as_text).to_csv(index=False).encode()


def without_nan(value: Any) -> Any:
    """Return a copy in which every float that is not finite is None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
