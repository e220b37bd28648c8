"""Files of a site's folder, opened without trust: no link out of it, no pipe, no endless table."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from common.errors import DataContractError
from common.reading import read_up_to

ESCAPES = "leaves the site's folder by a link"
UNREADABLE = "cannot be read"


def resolve_inside(
    path: Path, *, root: Path, site: str, remedy: str = "Copy the file into the site's folder"
) -> Path:
    """Follow the links of a path and refuse to leave the site's folder.

    Raises
    ------
    DataContractError
        The path leads out of ``root``, nowhere, or in a circle.
    """
    where = relative(path, root)
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        raise DataContractError(
            site, "a file is missing or its link leads nowhere", where=where
        ) from error
    if not target.is_relative_to(root.resolve()):
        raise DataContractError(site, ESCAPES, where=where, remedy=remedy)
    return target


def open_inside(path: Path, *, root: Path, site: str) -> BinaryIO:
    """Open a regular file of the site for reading.

    Raises
    ------
    DataContractError
        The path leaves the site's folder, or is no regular file that can be read.
    """
    target = resolve_inside(path, root=root, site=site)
    # Neither a pipe, which would block, nor a link put there since the path was resolved.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(target, flags | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise DataContractError(
            site, UNREADABLE, where=relative(path, root), got=plain(error.strerror or "")
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataContractError(site, "is not a regular file", where=relative(path, root))
    return os.fdopen(descriptor, "rb")


def relative(path: Path, root: Path) -> str:
    """Path as a message shows it: from the site's folder on, on one line."""
    try:
        return plain(str(path.relative_to(root)))
    except ValueError:
        return plain(path.name)


def plain(text: str, limit: int = 200) -> str:
    """Text from a data set, made safe for one line of a terminal."""
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:limit])
    return safe + "…" if len(text) > limit else safe


def read_text(path: Path, limit: int, *, root: Path, site: str) -> str:
    """Text of a table or sidecar, which may start with a byte order mark.

    Raises
    ------
    DataContractError
        The file is longer than ``limit`` bytes, is not UTF-8, or cannot be opened.
    """
    with open_inside(path, root=root, site=site) as stream:
        try:
            raw = read_up_to(stream, limit)
        except OSError as error:
            raise DataContractError(site, UNREADABLE, where=path.name) from error
    if len(raw) > limit:
        raise DataContractError(
            site,
            "a table or sidecar is too large",
            where=path.name,
            remedy=f"At most {limit} bytes",
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataContractError(
            site,
            "a table or sidecar is not UTF-8 text",
            where=f"{path.name}, byte {error.start}",
            remedy="Save it as UTF-8",
        ) from error
