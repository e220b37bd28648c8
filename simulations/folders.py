"""The folder that a command writes to: nothing in it is overwritten, and it has one writer."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import ConfigError, FedscanError
from common.files import PRIVATE_FILE, make_folder
from simulations.in_use import cache_in_use

LOCK = ".lock"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def in_words(folder: Path, remedy: str) -> Iterator[None]:
    """Put into words whatever values that fedscan has not written run the block into.

    Raises
    ------
    FedscanError
        In place of any other error but the file system's.
    """
    try:
        yield
    except (FedscanError, OSError):
        raise
    except Exception as error:
        _log.debug("the files of %s", folder, exc_info=True)
        what = f"{type(error).__name__}: {error}"
        raise FedscanError(
            f"{folder}: its files hold what fedscan would not have written ({what}). {remedy}",
            public=f"a folder's files hold what fedscan would not have written. {remedy}",
        ) from error


def require_empty(folder: Path) -> None:
    """Refuse a folder in which results would mix with other files; it may be missing.

    Hidden files do not count: they are our lock, or what a kill left of a file's writing.

    Raises
    ------
    ConfigError
    """
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        remedy = "Give --out a folder that does not exist"
        raise ConfigError(
            f"{folder} holds other files. {remedy}", public=f"--out holds other files. {remedy}"
        )


def require_writable(folder: Path, what: str) -> None:
    """Refuse a folder that nothing can be written to, before hours of work are to end there.

    Raises
    ------
    ConfigError
    """
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
    except OSError as error:
        raise ConfigError(f"{what}: {folder} cannot be written to ({error.strerror})") from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others out of a folder, which exists, and `fedscan clean` out of the cache, meanwhile.

    Raises
    ------
    ConfigError
        If one is in it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, mode=PRIVATE_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        busy = "is being worked on by another process"
        raise ConfigError(f"{folder} {busy}", public=f"--out {busy}") from None
    try:
        with cache_in_use():
            yield
    finally:
        lock.release()
