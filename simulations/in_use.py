"""What a process needs while it runs, marked by locks for ``fedscan clean`` to see.

The system lets the lock of a killed process go.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import ConfigError
from common.files import PRIVATE_FILE, make_folder
from common.paths import cache_dir

PREFIX = "fedscan-"  # of temporary folders
LOCK = ".in-use"  # in each of them, and the folder of locks in the cache


@contextlib.contextmanager
def cache_in_use() -> Iterator[None]:
    """Mark the cache as needed while the block runs; one that cannot be written to is not."""
    from filelock import FileLock

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ConfigError):
            mark = make_folder(cache_dir() / LOCK) / f"{secrets.token_hex(8)}.lock"
            stack.callback(mark.unlink, missing_ok=True)
            stack.enter_context(FileLock(mark, mode=PRIVATE_FILE))
        yield


def is_cache_in_use() -> bool:
    """Tell whether a process has marked the cache."""
    return any(map(is_held, (cache_dir() / LOCK).glob("*.lock")))


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a temporary folder that is marked as needed, and remove it in the end."""
    from filelock import FileLock

    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        folder = Path(name)
        with FileLock(folder / LOCK, mode=PRIVATE_FILE):
            yield folder


def is_held(lock: Path) -> bool:
    """Tell whether a process holds a lock; one that is not there is nobody's."""
    from filelock import FileLock, Timeout

    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0, mode=PRIVATE_FILE):
            return False
    except (Timeout, OSError):
        return True
