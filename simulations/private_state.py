"""What simulated sites keep of a run: until it is whole, or its folder is gone."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from clients.state import ENDED, RUN_ID
from common.errors import ConfigError, FedscanError
from common.files import PRIVATE_FILE, make_folder, write_json
from common.paths import site_records
from common.reading import read_json
from common.run_folder import FAILURE, SUMMARY

RUNNING = ".running"  # beside the sites' folders: a note and a lock of every simulated run


@contextlib.contextmanager
def looked_after(folder: Path) -> Iterator[None]:
    """Let it be known, while the block runs, that this process looks after a run.

    A run that is whole is forgotten then; one that is not can be resumed.

    Parameters
    ----------
    folder : Path
        The run's, with the run's id as its name.

    Raises
    ------
    ConfigError
        Another process looks after it.
    """
    from filelock import FileLock, Timeout

    note = note_of(folder.name)
    lock = note.with_name(f"{folder.name}.lock")
    make_folder(note.parent)
    try:
        # Which the system lets go with a killed process.
        held = FileLock(lock, mode=PRIVATE_FILE).acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{folder}: this run is in progress") from None
    with held:
        write_json(note, {"folder": str(folder)})
        claim_of(note).unlink(missing_ok=True)
        try:
            yield
        finally:
            if _is_over(folder):
                forget(folder.name)
                note.unlink(missing_ok=True)
    lock.unlink(missing_ok=True)


def note_of(name: str) -> Path:
    """Return the file by which a simulated run of that name is known while it is not over."""
    return _sites() / RUNNING / f"{name}.json"


def claim_of(note: Path) -> Path:
    """Return the file by which a run's name is taken until there is a note of it."""
    return note.with_suffix(".claim")


def clean_up_after_killed() -> None:
    """Say in the folders of runs whose launcher was killed that they were interrupted.

    Of those that are whole, or whose folder is gone, the private state is removed.
    """
    from filelock import FileLock, Timeout

    for note in (_sites() / RUNNING).glob("*.json"):
        lock = note.with_suffix(".lock")
        with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0, mode=PRIVATE_FILE):
            folder = None
            with contextlib.suppress(FedscanError):
                folder = Path(str(read_json(note).get("folder")))
            if folder and folder.is_absolute() and folder.name == note.stem:
                if not (folder / FAILURE).is_file():
                    mark_ended(folder)
                if not _is_over(folder):
                    continue
            forget(note.stem)
            note.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def forget(run_id: str) -> None:
    """Remove what simulated sites have kept for a run that nobody goes on with."""
    if not RUN_ID.fullmatch(run_id):
        return
    for state in _sites().glob(f"*/state/{run_id}"):
        shutil.rmtree(state, ignore_errors=True)
    for ended in _sites().glob(f"*/state/{run_id}{ENDED}"):
        ended.unlink(missing_ok=True)


def mark_ended(folder: Path, error: str = "interrupted") -> None:
    """Say in the folder of a run without a summary why it ended, where its server has not."""
    if folder.is_dir() and not (folder / SUMMARY).is_file():
        from simulations.resume import way_on

        why = {"site": "", "phase": "the launcher", "error": error, "traceback": ""}
        why["go_on"] = way_on(folder) or "No round was whole: begin the run anew"
        with contextlib.suppress(OSError):
            write_json(folder / FAILURE, why)


def _is_over(folder: Path) -> bool:
    return (folder / SUMMARY).is_file() or not folder.is_dir()


def _sites() -> Path:
    return site_records("any").parent
