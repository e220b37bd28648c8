"""What simulated sites keep of a run: removed when the run is over, or its launcher was killed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from clients.state import ENDED
from common.errors import FedscanError
from common.files import PRIVATE_FILE, make_folder, write_json
from common.paths import site_records
from common.reading import read_json
from common.run_folder import FAILURE, SUMMARY

RUNNING = ".running"  # beside the sites' folders: a note and a lock of every simulated run


@contextlib.contextmanager
def looked_after(folder: Path) -> Iterator[None]:
    """Let it be known, while the block runs, that this process looks after a run; then forget it.

    Parameters
    ----------
    folder : Path
        The run's, with the run's number as its name.
    """
    from filelock import FileLock

    running = _sites() / RUNNING
    make_folder(running)
    note, lock = (running / f"{folder.name}{end}" for end in (".json", ".lock"))
    with FileLock(lock, mode=PRIVATE_FILE):  # which the system lets go with a killed process
        write_json(note, {"folder": str(folder)})
        try:
            yield
        finally:
            forget(folder.name)
            note.unlink(missing_ok=True)
    lock.unlink(missing_ok=True)


def clean_up_after_killed() -> None:
    """Remove the private state of runs whose launcher was killed, and say so in their folders."""
    from filelock import FileLock, Timeout

    for note in (_sites() / RUNNING).glob("*.json"):
        lock = note.with_suffix(".lock")
        with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0, mode=PRIVATE_FILE):
            with contextlib.suppress(FedscanError):
                folder = Path(str(read_json(note).get("folder")))
                told = (folder / FAILURE).is_file()
                if folder.is_absolute() and folder.name == note.stem and not told:
                    mark_interrupted(folder)
            forget(note.stem)
            note.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def forget(run_id: str) -> None:
    """Remove what simulated sites have kept for a run that nobody goes on with."""
    if not run_id.isdecimal():
        return
    for state in _sites().glob(f"*/state/{run_id}"):
        shutil.rmtree(state, ignore_errors=True)
    for ended in _sites().glob(f"*/state/{run_id}{ENDED}"):
        ended.unlink(missing_ok=True)


def mark_interrupted(folder: Path) -> None:
    """Say in the folder of a run without a summary that nobody goes on with it."""
    if folder.is_dir() and not (folder / SUMMARY).is_file():
        why = {"site": "", "phase": "the launcher", "error": "interrupted", "traceback": ""}
        with contextlib.suppress(OSError):
            write_json(folder / FAILURE, why)


def _sites() -> Path:
    return site_records("any").parent
