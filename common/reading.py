"""Files of a folder that somebody else may have written, read without trust.

A folder of results is handed from one person to another, and what is read from it ends in reports,
pictures and messages that travel on. So below the folder that the user names nothing is followed or
opened but plain files in plain folders: a link could lead to any file of the reader's. Sizes are
judged before anything is read, and JSON holds only what a program can go on with.

Scans are another matter: data sets are full of links, see :mod:`common.site_files`.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import ConfigError, FileError

LARGEST_JSON = 16 * 2**20  # bytes, as all limits here
LARGEST_TABLE = 128 * 2**20  # of a CSV or a log of metrics
LARGEST_PICTURE = 64 * 2**20
LARGEST_WEIGHTS = 16 * 2**30
DEEPEST = 64  # levels of JSON or TOML: what goes through it may call itself as often
MOST_DOTS = 300  # in a line of TOML
LINK = "is a link, which is not followed"
RESTORE = "Copy the folder again, with files and folders in place of links"


def open_plain(
    path: Path, root: Path | None = None, *, limit: int, remedy: str = RESTORE
) -> BinaryIO:
    """Open a regular file of a folder for reading.

    Parameters
    ----------
    path : Path
    root : Path, optional
        The folder that the user named, by default the file's own. It may itself be a link.
    limit : int
        Bytes that the file may have at most.
    remedy : str
        What a reader of an error can do.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    FileError
        It, or a folder between it and the root, is a link; it is no regular file, too large, or
        cannot be opened.
    """
    descriptor = -1

    def refused(problem: str) -> FileError:
        return FileError(path, problem, remedy)

    try:
        parts = _below(path, root)
        descriptor = os.open(path.parent if root is None else root, os.O_RDONLY | os.O_DIRECTORY)
        for part in parts:
            last = part is parts[-1]
            # Looked at first, for opening a device may already do something to it.
            kind = os.stat(part, dir_fd=descriptor, follow_symlinks=False).st_mode
            if not (stat.S_ISREG(kind) if last else stat.S_ISDIR(kind)):
                raise refused(_fault(kind, last))
            # Neither a link nor a pipe, which would block, put there since.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | (0 if last else os.O_DIRECTORY)
            outer, descriptor = descriptor, os.open(part, flags, dir_fd=descriptor)
            os.close(outer)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refused("is no regular file")
        if status.st_size > limit:
            raise refused(_too_large(limit))
        stream, descriptor = os.fdopen(descriptor, "rb"), -1
        return stream
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    except OSError as error:
        raise refused(f"cannot be read ({error.strerror})") from None
    except ValueError:  # a NUL in a name
        raise refused("cannot be read (no file has such a name)") from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def read_bytes(path: Path, root: Path | None = None, *, limit: int, remedy: str = RESTORE) -> bytes:
    """Read a file of a folder; parameters and errors as of :func:`open_plain`."""
    with open_plain(path, root, limit=limit, remedy=remedy) as stream:
        try:
            raw = read_up_to(stream, limit)
        except OSError as error:
            raise FileError(path, f"cannot be read ({error.strerror})", remedy) from None
    if len(raw) > limit:  # it may have grown since
        raise FileError(path, _too_large(limit), remedy)
    return raw


def read_up_to(stream: BinaryIO, limit: int) -> bytes:
    """Read a file to its end, or one byte beyond a limit.

    A read takes all the memory that it asks for, so no more is asked for than is there.
    """
    raw = stream.read(min(os.fstat(stream.fileno()).st_size, limit) + 1)
    while len(raw) <= limit and (more := stream.read(min(2**20, limit + 1 - len(raw)))):
        raw += more  # it has grown since
    return raw


def read_json(path: Path, root: Path | None = None, *, remedy: str = RESTORE) -> dict[str, Any]:
    """Read a JSON object of a folder; parameters as of :func:`open_plain`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    FileError
        As :func:`open_plain`; or it is no JSON object, or not such as :func:`parse_json` accepts.
    """
    raw = read_bytes(path, root, limit=LARGEST_JSON, remedy=remedy)
    try:
        value = parse_json(raw)
    except ValueError as error:
        raise FileError(path, f"cannot be read ({error})", remedy) from None
    if not isinstance(value, dict):
        raise FileError(path, "holds no JSON object", remedy)
    return value


def parse_json(raw: bytes) -> Any:
    """Parse JSON that is neither deep nor holds what later arithmetic cannot take.

    Raises
    ------
    ValueError
        It is no JSON in UTF-8; values lie deeper than ``DEEPEST``; a number is not finite or a
        whole number has more than 64 bits; a text has half of a surrogate pair.
    """
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 text at byte {error.start}") from None
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError("values nested too deeply") from None
    except ValueError:  # Python's limit on the digits of a whole number
        raise ValueError("a number of too many digits") from None
    _require_shallow(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML that takes neither long nor much memory; a number may be NaN or infinite.

    Raises
    ------
    ValueError
        It is no TOML, has more than ``MOST_DOTS`` dots in a line, or values lie deeper than
        ``DEEPEST``; a whole number has more than 64 bits.
    """
    # A key of a thousand parts has a million words: Python keeps each of its beginnings.
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            raise ValueError(f"line {number} has more than {MOST_DOTS} dots: make several of it")
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise ValueError("values nested too deeply") from None
    _require_shallow(value, finite=False)
    return value


def require_plain_tree(folder: Path) -> None:
    """Refuse a folder that is worked on if anything below it is neither file nor folder.

    What is written or removed through a link would be outside of the folder. The folder itself may
    be a link.

    Raises
    ------
    ConfigError
        It names what is there.
    """
    for path, entry in _entries(folder):
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            problem = "a link" if entry.is_symlink() else "neither a file nor a folder"
            told = f"is {problem}, which fedscan makes none of. Remove it"
            raise ConfigError(f"{path} {told}", public=f"something in --out {told}")


def _entries(folder: Path) -> Iterator[tuple[Path, os.DirEntry[str]]]:
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                yield Path(entry.path), entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def _require_shallow(value: Any, *, finite: bool = True) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [item for one in level for item in _checked(one, finite)]
        if not level:
            return
    raise ValueError("values nested too deeply")


def _checked(value: Any, finite: bool) -> list[Any]:
    """Judge one value of JSON or TOML, and return those inside it."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list):
        return value
    if finite and isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is not finite")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("a whole number of more than 64 bits")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("half of a surrogate pair")
    return []


def _below(path: Path, root: Path | None) -> tuple[str, ...]:
    """Names from the root to a file."""
    parts = (path.name,) if root is None else path.relative_to(root).parts
    if not parts or ".." in parts:
        raise FileError(path, "leads out of its folder", RESTORE)
    return parts


def _fault(kind: int, last: bool) -> str:
    if stat.S_ISLNK(kind):
        return LINK if last else "is in a folder that is a link, which is not followed"
    if not last:
        return "is in what is no folder"
    return "is a folder, not a file" if stat.S_ISDIR(kind) else "is no regular file"


def _too_large(limit: int) -> str:
    return f"is too large: accepted are up to {limit:,} bytes"
