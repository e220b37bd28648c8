"""Files of a site's folder, opened without trust: no link out of it, no pipe, no endless table."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from common.errors import DataContractError
from common.reading import read_up_to

ESCAPES = "leaves the site's folder by a link"
UNREADABLE = "cannot be read"
OF_ANNEX = "is a pointer of git-annex, not the file itself"
OF_LFS = "is a pointer of git-LFS, not the file itself"
REMEDIES = {  # of data sets whose files were not fetched
    OF_ANNEX: "Fetch the files: `datalad get .`, or `git annex get .`, in the data set",
    OF_LFS: "Fetch the files: `git lfs pull` in the data set",
}

# Folders that operating systems, archives and BIDS lay beside data, without case.
NO_DATA = frozenset(
    {
        "__macosx",
        "__pycache__",
        "$recycle.bin",
        "@eadir",
        "lost+found",
        "system volume information",
        "derivatives",
        "sourcedata",
        "code",
        "stimuli",
        "phenotype",
    }
)

_LONGEST_POINTER = 2**15  # bytes, of git-annex
# Also a link that git wrote as text.
_ANNEX = re.compile(rb"(?:\.\./)*(?:/|\.git/(?:modules/[^\n]*/)?)annex/objects/")
_LFS = b"version https://git-lfs.github.com/spec/"


def is_no_data(name: str) -> bool:
    """Tell whether a folder's name says that it is none of a hospital's, or of a person's."""
    return name.casefold() in NO_DATA


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
        if _leads_into_annex(path):
            raise _pointer(OF_ANNEX, site, where) from error
        raise DataContractError(
            site,
            "a file is missing or its link leads nowhere",
            where=where,
            remedy="Copy the file there, or leave it out of the table",
        ) from error
    if not target.is_relative_to(root.resolve()):
        raise DataContractError(site, ESCAPES, where=where, remedy=remedy)
    return target


def open_inside(path: Path, *, root: Path, site: str) -> BinaryIO:
    """Open a regular file of the site for reading.

    Raises
    ------
    DataContractError
        The path leaves the site's folder, is no regular file that can be read, or is what git-annex
        or git-LFS leave in place of one that was not fetched.
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
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise DataContractError(site, "is not a regular file", where=relative(path, root))
    stream = os.fdopen(descriptor, "rb")
    if status.st_size <= _LONGEST_POINTER and (kind := _kind_of_pointer(descriptor)):
        stream.close()
        raise _pointer(kind, site, relative(path, root))
    return stream


def _kind_of_pointer(descriptor: int) -> str:
    """Say which program's pointer a small file is; "" for what is no pointer."""
    with contextlib.suppress(OSError):  # whoever reads on will be told
        start = os.pread(descriptor, 256, 0)
        if _ANNEX.match(start):
            return OF_ANNEX
        if start.startswith(_LFS):
            return OF_LFS
    return ""


def _leads_into_annex(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(_ANNEX.match(os.fsencode(path.readlink())))
    return False


def _pointer(kind: str, site: str, where: str) -> DataContractError:
    return DataContractError(site, kind, where=where, remedy=REMEDIES[kind])


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


def read_text(path: Path, limit: int, *, root: Path, site: str, strict: bool = True) -> str:
    """Text of a table or sidecar, which may start with a byte order mark.

    Without ``strict``, bytes that are no UTF-8 become surrogates, for :func:`require_utf8` to
    refuse where they matter.

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
    text = raw.decode("utf-8-sig", "surrogateescape")
    return require_utf8(text, path.name, site=site) if strict else text


def is_utf8(text: str) -> bool:
    """Tell whether no byte of a text was other than UTF-8."""
    return not any("\udc80" <= letter <= "\udcff" for letter in text)


def require_utf8(text: str, name: str, *, site: str) -> str:
    """Return a text of a file, and refuse one with bytes that are no UTF-8.

    Raises
    ------
    DataContractError
        It names the first such byte.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        raise DataContractError(
            site,
            "a table or sidecar is not UTF-8 text",
            where=f"{name}, byte {error.start}",
            remedy="Save it as UTF-8",
        ) from error
