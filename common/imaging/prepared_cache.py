"""Prepared volumes on the site's own disk, so that a second process starts at once.

A volume is found by the hash of its file's bytes and of the settings. As git does for its index,
a file whose size, times and inode have not changed since it was hashed is not read again. Writers
put whole files in place, so any number of processes may share the folder: the worst that can
happen is that two do the same work. Whatever goes wrong here only costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.files import PRIVATE_FILE, make_folder
from common.imaging.nifti import ScanBytes

_FOLDER = "prepared"
# A file may change again within one tick of its clock, so one changed just now is hashed anew;
# two seconds is the coarsest tick in use (FAT). See git's Documentation/technical/racy-git.txt.
_RACY_NS = 2_000_000_000
_MAX_INDEX_BYTES = 64 * 2**20
_log = logging.getLogger(__name__)


class PreparedCache:
    """Prepared volumes of one site.

    Nothing in the folder names a participant: files are known by hashes. Folders are made
    readable by their owner alone.

    Parameters
    ----------
    folder : Path
        Cache folder; made on demand.
    root : Path
        The site's folder.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = Path(folder) / _FOLDER
        self._index_path = self._folder / "index" / f"{_sha256(str(root))[:32]}.json"
        self._index = self._read_index()
        self._learnt: dict[str, list[int | str]] = {}
        self._warned = False

    def known_digest(self, path: Path) -> str | None:
        """Hash of a file's bytes if the file is unchanged since it was last hashed.

        Parameters
        ----------
        path : Path
            Resolved path of the scan.
        """
        try:
            status = path.stat()
        except OSError:
            return None
        entry = self._index.get(_sha256(str(path)))
        if entry is None or entry[:-1] != _fingerprint(status):
            return None
        return str(entry[-1])

    def learn_digest(self, path: Path, content: ScanBytes) -> str:
        """Hash a file's bytes, and remember it where that is safe."""
        digest = hashlib.sha256(content.raw).hexdigest()
        changed = max(content.status.st_mtime_ns, content.status.st_ctime_ns)
        if time.time_ns() - changed > _RACY_NS:
            self._learnt[_sha256(str(path))] = [*_fingerprint(content.status), digest]
        return digest

    def get(self, digest: str, settings: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Volume prepared from these bytes with these settings, or None."""
        try:
            with self._entry(digest, settings).open("rb") as stream:
                image = np.lib.format.read_array(stream, allow_pickle=False)
        except (OSError, ValueError, EOFError, MemoryError):  # absent or damaged: made again
            return None
        sound = image.dtype == np.float32 and image.shape == shape and np.isfinite(image.sum())
        return image if sound else None

    def put(self, digest: str, settings: str, image: np.ndarray) -> None:
        """Keep a prepared volume, if the disk lets it."""

        def write(stream: BinaryIO) -> None:
            np.save(stream, image, allow_pickle=False)

        self._write(self._entry(digest, settings), write)

    def save(self) -> None:
        """Keep the hashes learnt since the start, along with what other processes learnt."""
        if not self._learnt:
            return
        merged = {**self._read_index(), **self._learnt}
        text = json.dumps(merged, separators=(",", ":")).encode()
        self._write(self._index_path, lambda stream: stream.write(text))
        self._index, self._learnt = merged, {}

    def _entry(self, digest: str, settings: str) -> Path:
        key = _sha256(f"{digest} {settings}")
        return self._folder / key[:2] / f"{key}.npy"

    def _write(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        """Write a file under another name, then put it in place at one stroke."""
        temporary = None
        try:
            make_folder(path.parent)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
                temporary = Path(file.name)
                write(file)
            temporary.chmod(PRIVATE_FILE)  # made so, but for what a umask took
            temporary.replace(path)
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink()
            if not self._warned:
                self._warned = True
                _log.warning(
                    "the cache of prepared images cannot be written (%s); going on without it",
                    error.strerror,
                )

    def _read_index(self) -> dict[str, list[int | str]]:
        try:
            with self._index_path.open("rb") as stream:
                entries = json.loads(stream.read(_MAX_INDEX_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(entries, dict):
            return {}
        return {key: entry for key, entry in entries.items() if _is_entry(entry)}


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 5
        and all(isinstance(number, int) for number in entry[:4])
        and isinstance(entry[4], str)
    )


def _fingerprint(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sha256(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()
