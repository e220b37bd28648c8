"""The folder that a command writes to: nothing in it is overwritten, one process at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from common.errors import ConfigError
from common.files import PRIVATE_FILE

LOCK = ".lock"


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


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of a folder, which exists, while the block runs.

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
        yield
    finally:
        lock.release()
