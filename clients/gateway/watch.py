"""How much a box takes of the machine, and which bound that passes.

The kernel bounds what it can for a single process (:mod:`clients.gateway.box`). All of a box's
processes together are looked at from outside, so that no process inside can escape it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MOST_FILES = 1_000_000  # in the writable folders
PAUSES = 20  # as long as it takes to measure the folders, before they are measured again
LEAST_PAUSE = 5.0  # seconds
GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """What a box may take; when it takes more it is ended.

    Parameters
    ----------
    memory_bytes : int
        Of all its processes together.
    cpu_seconds : float
        Of all its processes together, for a task.
    disk_bytes : int
        That its writable folders may grow by, and that a single file may have.
    processes : int
        Processes and threads at one time.
    """

    memory_bytes: int = 16 * GIB
    cpu_seconds: float = 24 * 3600.0
    disk_bytes: int = 20 * GIB
    processes: int = 1024


@dataclass(frozen=True)
class Usage:
    """What processes take together."""

    memory: int
    cpu: float
    processes: int
    unlinked: int


def usage(pid: int) -> Usage:
    """Measure a process and all its descendants."""
    import psutil

    memory = threads = unlinked = 0
    cpu = 0.0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError):
                with process.oneshot():
                    cpu += sum(process.cpu_times()[:4])  # also of children that have ended
                    threads += process.num_threads()
                memory += _memory(process.pid, process)
                unlinked += _unlinked(process.pid)
    return Usage(memory, cpu, threads, unlinked)


def _memory(pid: int, process: object) -> int:
    """Memory that is this process's own, or that of no file: the rest the kernel can drop."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return process.memory_info().rss
    own = ("RssAnon:", "RssShmem:", "VmSwap:")
    lines = status.read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(own))


def _unlinked(pid: int) -> int:
    """Bytes of files that a process has open, and that no folder names any more."""
    found = 0
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                file = entry.stat()
                if stat.S_ISREG(file.st_mode) and not file.st_nlink:
                    found += file.st_blocks * 512
    return found


class Folders:
    """Folders whose growth is measured, not too often.

    Parameters
    ----------
    folders : iterable of Path
    before : int, optional
        What they held when growth began to count: :func:`bytes_below`. By default what they hold.

    Raises
    ------
    OSError
        If one cannot be read.
    """

    def __init__(self, folders: Iterable[Path], before: int | None = None) -> None:
        self._folders = tuple(folders)
        self._next = 0.0
        self._grown = 0
        self._before = sum(map(bytes_below, self._folders)) if before is None else before

    def grown(self) -> int:
        """Return by how many bytes, when it was last measured.

        Raises
        ------
        OSError
            If a folder below cannot be read, or there are too many files to count.
        """
        began = time.monotonic()
        if began >= self._next:
            self._grown = sum(map(bytes_below, self._folders)) - self._before
            ended = time.monotonic()
            self._next = ended + max(LEAST_PAUSE, PAUSES * (ended - began))
        return self._grown


def bytes_below(folder: Path) -> int:
    """Disk that a tree takes; other people's code has made it, so nothing is followed."""
    total, files, waiting = 0, 0, [str(folder)]
    while waiting:
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                files += 1
                if files > MOST_FILES:
                    raise OSError(f"more than {MOST_FILES} files")
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return total


class Watch:
    """Says which of its limits a box has passed."""

    def __init__(
        self, limits: Limits, pid: int, folders: Iterable[Path], before: int | None = None
    ) -> None:
        self._limits = limits
        self._pid = pid
        self._folders = Folders(folders, before)
        self._cpu_before = 0.0

    def new_task(self) -> None:
        """Count processor time from now on."""
        self._cpu_before = usage(self._pid).cpu

    def passed(self) -> tuple[str, str]:
        """Return the limit, one of Limits's words, and what was measured; or two empty texts."""
        limits, now = self._limits, usage(self._pid)
        if now.memory > limits.memory_bytes:
            return "memory", f"{now.memory / GIB:.2f} of {limits.memory_bytes / GIB:.2f} GiB"
        if (cpu := now.cpu - self._cpu_before) > limits.cpu_seconds:
            return "cpu", f"{cpu:.0f} of {limits.cpu_seconds:.0f} seconds"
        if now.processes > limits.processes:
            return "processes", f"{now.processes} of {limits.processes}"
        try:
            grown = self._folders.grown() + now.unlinked
        except OSError as error:
            return "disk", f"the folders cannot be measured: {error.strerror or error}"
        if grown > limits.disk_bytes:
            return "disk", f"{grown / GIB:.2f} of {limits.disk_bytes / GIB:.2f} GiB"
        return "", ""
