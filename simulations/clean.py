"""What fedscan leaves on a disk beside results: found with sizes, and removed where it is safe.

Never removed are folders of runs and comparisons that are whole, hospitals' data, a site's secret,
and what its gate and its privacy budget keep.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.files import PRIVATE_FILE
from common.paths import cache_dir, site_records
from common.processes.environment import temporary_folders
from common.reading import read_json
from common.run_folder import CHECKPOINT, SUMMARY
from common.site_names import SITE_NAME
from simulations.in_use import LOCK, PREFIX, is_cache_in_use, is_held
from simulations.private_state import RUNNING, forget, note_of

PREPARED, HOSPITALS, EXTRACTORS, RECORDS, STOPPED, TEMPORARY, MARK = (
    "prepared images",
    "simulated hospitals",
    "feature extractors",
    "records of runs",
    "stopped run",
    "temporary files",
    "mark of a killed process",
)
ON_REQUEST = (HOSPITALS, EXTRACTORS, RECORDS)  # what finished runs refer to, or takes minutes
YOUNG_SECONDS = 600.0  # of a temporary folder or a mark that a process may be about to use
RECORDED = ("predictions.csv", "model.safetensors", "look-alikes.png")


@dataclass(frozen=True)
class Leftover:
    """Something on the disk.

    Parameters
    ----------
    what : str
        One of the kinds above.
    path : Path
    size : int
        Bytes.
    in_use : bool
        Whether a run that goes on may need it: it is not removed.
    """

    what: str
    path: Path
    size: int
    in_use: bool = False


def find() -> list[Leftover]:
    """Find what is there, of all kinds."""
    needed = is_cache_in_use()
    busy = needed or any(in_use for *_, in_use in _notes())
    found = [
        *_folder(PREPARED, cache_dir() / "pictures", busy),
        *_folder(HOSPITALS, cache_dir() / "phantoms", busy),
        *_folder(EXTRACTORS, cache_dir() / "extractors", busy),
        *(
            Leftover(RECORDS, path, size_of(path), needed or _is_recording(path))
            for path in _recorded_runs()
        ),
    ]
    for note, folder, in_use in _notes():
        if not (folder / SUMMARY).is_file():
            size = sum(map(size_of, [*_states(note.stem), folder / CHECKPOINT]))
            found.append(Leftover(STOPPED, folder, size, in_use))
    found += [Leftover(TEMPORARY, path, size_of(path), used) for path, used in _temporary()]
    return found + [Leftover(MARK, path, size_of(path)) for path in _marks()]


def remove(one: Leftover) -> bool:
    """Remove it, unless it is in use; tell whether it is gone.

    Of a stopped run, what its sites keep and its checkpoint go: it cannot be resumed any more. Its
    folder, with the log and the best model so far, stays.
    """
    began = {  # since it was found
        STOPPED: lambda: False,
        MARK: lambda: False,
        TEMPORARY: lambda: is_held(one.path / LOCK),
        RECORDS: lambda: is_cache_in_use() or _is_recording(one.path),
    }.get(one.what, is_cache_in_use)
    if one.in_use or began():
        return False
    if one.what == MARK:
        return _remove_mark(one.path)
    if one.what == PREPARED:
        return _remove_prepared(one.path)
    if one.what == STOPPED:
        return _remove_stopped(one.path)
    shutil.rmtree(one.path, ignore_errors=True)
    return not one.path.exists()


def size_of(path: Path) -> int:
    """Bytes of a file or of all files in a folder; no link is followed."""
    total = 0
    with contextlib.suppress(OSError):
        for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
            with contextlib.suppress(OSError):
                total += 0 if one.is_dir() else one.lstat().st_size
    return total


def _folder(what: str, path: Path, in_use: bool) -> Iterator[Leftover]:
    if path.is_dir() and (size := size_of(path)):
        yield Leftover(what, path, size, in_use)


def _recorded_runs() -> Iterator[Path]:
    """Folders of what sites have recorded of single runs: predictions, models of their own."""
    for path in sorted(site_records("any").parent.glob("*/[0-9]*")):
        of_site = SITE_NAME.fullmatch(path.parent.name)
        if of_site and path.is_dir() and any(next(path.rglob(name), None) for name in RECORDED):
            yield path


def _notes() -> list[tuple[Path, Path, bool]]:
    """Note, folder and whether it is in progress, of each simulated run that is not over."""
    from common.errors import FedscanError

    found = []
    for note in sorted((site_records("any").parent / RUNNING).glob("*.json")):
        with contextlib.suppress(FedscanError, FileNotFoundError):
            folder = Path(str(read_json(note).get("folder")))
            if folder.is_absolute() and folder.name == note.stem:
                found.append((note, folder, _is_running(note.stem)))
    return found


def _is_running(name: str) -> bool:
    """Tell whether a process looks after a simulated run."""
    return is_held(note_of(name).with_suffix(".lock"))


def _is_recording(folder: Path) -> bool:
    """Tell whether a site may go on to record a run there: it keeps a state of it until its end."""
    return _is_running(folder.name) or (folder.parent / "state" / folder.name).is_dir()


def _marks() -> Iterator[Path]:
    """Locks and claims of runs' names and of the cache that no process holds.

    The lock of a stopped run is none: it goes with the run.
    """
    running = site_records("any").parent / RUNNING
    for mark in sorted(path for above in (running, cache_dir() / LOCK) for path in above.glob("*")):
        with contextlib.suppress(OSError):
            lock, young = mark.with_suffix(".lock"), time.time() - mark.stat().st_mtime
            of_run = mark == lock and mark.with_suffix(".json").is_file()
            known = mark.suffix in (".lock", ".claim") and not of_run
            if known and young >= YOUNG_SECONDS and not is_held(lock):
                yield mark


def _remove_mark(mark: Path) -> bool:
    from filelock import FileLock, Timeout

    lock = mark.with_suffix(".lock")
    with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0, mode=PRIVATE_FILE):
        mark.unlink(missing_ok=True)
        if not mark.with_suffix(".json").is_file():
            lock.unlink(missing_ok=True)
    return not mark.exists()


def _states(name: str) -> list[Path]:
    return sorted(site_records("any").parent.glob(f"*/state/{name}"))


def _remove_stopped(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    note = note_of(folder.name)
    lock = note.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=0, mode=PRIVATE_FILE):  # nobody resumes it meanwhile
            forget(folder.name)
            shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
            note.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    except (Timeout, OSError):
        return False
    return True


def _remove_prepared(folder: Path) -> bool:
    """Remove caches of prepared images, each under its lock: whoever reads one has it open."""
    from filelock import FileLock, Timeout

    for lock in folder.glob("*.lock"):
        with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0, mode=PRIVATE_FILE):
            for path in (*folder.glob(f"{lock.stem}.json"), *folder.glob(f"{lock.stem}-*.pixels")):
                path.unlink(missing_ok=True)
    return not any(path.suffix != ".lock" for path in folder.iterdir())


def _temporary() -> list[tuple[Path, bool]]:
    """Temporary folders of fedscan of this user, and whether a process may use each."""
    found = []
    for path in sorted(one for above in temporary_folders() for one in above.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if path.is_dir() and not path.is_symlink() and status.st_uid == os.getuid():
                young = time.time() - status.st_mtime < YOUNG_SECONDS
                found.append((path, young or is_held(path / LOCK)))
    named = _named_by_processes([path for path, _ in found])
    return [(path, used or path in named) for path, used in found]


def _named_by_processes(folders: list[Path]) -> set[Path]:
    """Those of the folders that a process names in its command or environment, or works in."""
    import psutil

    found: set[Path] = set()
    for process in psutil.process_iter() if folders else ():
        words: list[str] = []
        for ask in (process.cmdline, lambda p=process: p.environ().values(), process.cwd):
            with contextlib.suppress(psutil.Error, OSError):
                told = ask()
                words += [told] if isinstance(told, str) else list(told)
        text = "\n".join(words)
        found |= {folder for folder in folders if str(folder) in text}
    return found
