"""Prepared pictures of one site and split in one file of bytes, mapped into memory.

A cache is two files in a folder that its owner alone can read: the pixels, and an index that tells
which picture is where and which files were left out and why. Files are known by hashes of their
paths. Under a lock, whoever comes first builds the cache and the others wait; the index is put in
place last and at one stroke, so a crash leaves the old cache or none.

A file counts as unchanged while its size, the times of its content and of its inode, and the inode
are what they were, as in git's index. That needs no reading; a hash of its first bytes would open
every file at each start and still miss a change behind them. The time of the inode cannot be set
by a user, so a file put in place with an old date is noticed too. A file that changed less than
two seconds before it was read may change again within one tick of its clock: it is read once
more at the next start. So is one that could not be read for want of memory or of its disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import mmap
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError, DataContractError, causes
from common.files import PRIVATE_FILE, make_folder, write_atomically

Reader = Callable[[Path], NDArray[Any]]

_FOLDER = "pictures"
_FORMAT = 2
_RACY_NS = 2_000_000_000
_PASSING = frozenset(
    {errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT}
)
_MAPPED_BYTES = 2**25  # of a map that may stay in memory after use
_AROUND = 2**16  # what Linux maps at once around a page that is read
_log = logging.getLogger(__name__)


class CachedPictures:
    """Images on disk, of which only those in use are in memory.

    Parameters
    ----------
    path : Path
        File of pixels.
    shape : tuple of int
        (M, *shape of an image).
    dtype : dtype
    rows : (M,) int64
        For each image, the index of its file among those asked for, ascending.
    left_out : dict of str to int
        How many files are left out for each reason.

    Attributes
    ----------
    version : tuple
        Another where the images are others: a file of pixels never changes.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        rows: Sequence[int],
        left_out: dict[str, int],
    ) -> None:
        self.rows = np.array(rows, dtype=np.int64)
        self.left_out = left_out
        status = Path(path).stat()
        self.version = (str(path), status.st_ino, status.st_mtime_ns)
        self.pixels: np.memmap = np.memmap(path, dtype=dtype, mode="r", shape=shape)
        self._touched = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.pixels.shape[1:]

    def take(self, index: ArrayLike) -> NDArray[Any]:
        """Copy some images, (B, *shape).

        Pages of a map stay in a process's resident memory until another needs the room. They are
        given back every 32 MiB or so: a pass over all pictures does not hold them.

        Parameters
        ----------
        index : (B,) integers
            Indices into ``rows``.
        """
        batch = np.asarray(self.pixels[np.asarray(index, dtype=np.int64)])
        self._touched += batch.nbytes + len(batch) * _AROUND
        if self._touched > _MAPPED_BYTES:
            self._touched = 0
            _release(self.pixels)
        return batch


@dataclass
class _Entry:
    """What became of a file: its place among the pixels, or why it has none."""

    fingerprint: list[int] | None  # empty: there is no file; None: not to be trusted
    place: int | None
    problem: str = ""


def cached_pictures(
    files: Sequence[str],
    read: Reader,
    *,
    root: Path,
    site: str,
    name: str,
    settings: str,
    shape: tuple[int, ...],
    cache: Path,
    dtype: str = "uint8",
    variant: str = "",
) -> CachedPictures:
    """Prepare the pictures of some files, or find them prepared.

    Of a cache for other files, or of which some have changed, what is still true is copied. A bad
    file is left out, counted and logged without naming it; `fedscan check` names it.

    Parameters
    ----------
    files : sequence of str
        Paths relative to ``root``, without repetition.
    read : callable
        Path of a file to its image, of ``shape`` and ``dtype``; raises `DataContractError` for a
        bad one.
    root : Path
        The site's folder.
    site : str
        Name of the site.
    name : str
        What the pictures are of, such as a study and a split, for messages.
    settings : str
        Everything that ``read`` depends on besides the file.
    shape : tuple of int
        Of an image.
    cache : Path
        Folder on the site's own disk.
    dtype : str
        Of the images.
    variant : str
        In which way, such as a size: one cache is kept for each site, name and variant.

    Raises
    ------
    DataContractError
        No picture can be used.
    ConfigError
        The cache cannot be written.
    """
    key = _digest(json.dumps([str(root), name, variant]))
    home = Path(cache) / _FOLDER
    spec = {"format": _FORMAT, "settings": settings, "shape": list(shape), "dtype": dtype}
    store = _Store(home / f"{key}.json", root, spec)
    try:
        _make_private(home)
        with FileLock(home / f"{key}.lock", mode=0o600):
            old = store.load()
            if old is None or not store.is_current(old, files):
                old = store.build(old, files, read)
            found = _open(old, files, shape, np.dtype(dtype))
    except OSError as error:
        problem = "the cache of prepared pictures cannot be written or read"
        remedy = "Make room on its disk, or name another folder in FEDSCAN_CACHE"
        raise ConfigError(
            f"{problem}: {home}: {error.strerror}. {remedy}", public=f"{problem}. {remedy}"
        ) from error
    left_out = found[1]
    for problem, n in left_out.items():
        _log.warning(
            "site '%s': %d of %d images of %s left out: %s; run `fedscan check` to see which",
            *(site, n, len(files), name, problem),
        )
    if found[0] is None:
        raise DataContractError(
            site,
            f"no image of {name} can be used",
            got=", ".join(f"{problem}: {n}" for problem, n in left_out.items()) or "no files",
            remedy="Run `fedscan check`",
        )
    return found[0]


@dataclass
class _Cache:
    pixels: Path
    entries: dict[str, _Entry]


class _Store:
    """The two files of one cache. All is done under its lock.

    Parameters
    ----------
    index : Path
    root : Path
        The site's folder.
    spec : dict
        What a cache must be of to be of any use.
    """

    def __init__(self, index: Path, root: Path, spec: dict[str, Any]) -> None:
        self._index, self._root, self._spec = index, root, spec
        self._shape, self._dtype = tuple(spec["shape"]), np.dtype(spec["dtype"])
        self._bytes = int(np.prod(self._shape)) * self._dtype.itemsize  # of an image

    def load(self) -> _Cache | None:
        """Return the cache if it is whole and of this kind."""
        try:
            told = json.loads(self._index.read_bytes())
            if {key: told[key] for key in self._spec} != self._spec:
                return None
            pixels = self._index.parent / Path(told["pixels"]).name
            status = pixels.stat()
            entries = {name: _Entry(*entry) for name, entry in told["files"].items()}
            places = [one.place for one in entries.values() if one.place is not None]
            whole = sorted(places) == list(range(len(places))) and all(
                isinstance(one.problem, str) for one in entries.values()
            )
            expected = [len(places) * self._bytes, told["written"]]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if not whole or [status.st_size, status.st_mtime_ns] != expected:
            return None
        return _Cache(pixels, entries)

    def is_current(self, cache: _Cache, files: Sequence[str]) -> bool:
        """Whether a cache is of exactly these files, as they are now."""
        keys = [_digest(file) for file in files]
        if len(keys) != len(cache.entries):
            return False
        return all(
            (entry := cache.entries.get(key)) is not None
            and entry.fingerprint == _fingerprint(self._root / file)[0]
            for key, file in zip(keys, files, strict=True)
        )

    def build(self, old: _Cache | None, files: Sequence[str], read: Reader) -> _Cache:
        """Write a new cache, copying from the old one what is still true, and put it in place."""
        entries: dict[str, _Entry] = {}
        n = 0
        # Not through a map, in which a full disk is a signal that ends the process.
        descriptor, partial = tempfile.mkstemp(
            dir=self._index.parent, prefix=f"{self._index.stem}-", suffix=".pixels"
        )
        new = Path(partial)
        new.chmod(PRIVATE_FILE)  # made so, but for what a umask took
        try:
            with os.fdopen(descriptor, "wb") as stream, _reading(old, self._bytes) as kept:
                for file in files:
                    path = self._root / file
                    fingerprint, is_racy = _fingerprint(path)
                    entry = old.entries.get(_digest(file)) if old else None
                    if entry and entry.fingerprint == fingerprint:
                        picture = None if entry.place is None else kept(entry.place)
                        problem, may_pass = entry.problem, False
                    else:
                        picture, problem, may_pass = self._read(path, read)
                    sure = None if is_racy or may_pass else fingerprint
                    entries[_digest(file)] = _Entry(sure, None if picture is None else n, problem)
                    if picture is not None:
                        stream.write(picture)
                        n += 1
                stream.flush()
                os.fsync(stream.fileno())
            told = {
                **self._spec,
                "pixels": new.name,
                "written": new.stat().st_mtime_ns,
                "files": {
                    key: [one.fingerprint, one.place, one.problem] for key, one in entries.items()
                },
            }
            text = json.dumps(told, separators=(",", ":")).encode()
            write_atomically(self._index, text)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        for path in self._index.parent.glob(f"{self._index.stem}-*.pixels"):
            if path != new:  # the old one, and what crashes left
                with contextlib.suppress(OSError):
                    path.unlink()
        return _Cache(new, entries)

    def _read(self, path: Path, read: Reader) -> tuple[bytes | None, str, bool]:
        """Picture, or else what is wrong with the file and whether that may pass by itself."""
        try:
            picture = read(path)
        except DataContractError as error:
            return None, error.problem, _may_pass(error)
        if picture.dtype != self._dtype or picture.shape != self._shape:
            raise ValueError(f"an image of {picture.dtype} and shape {picture.shape}")
        return picture.tobytes(), "", False


def _open(
    cache: _Cache, files: Sequence[str], shape: tuple[int, ...], dtype: np.dtype
) -> tuple[CachedPictures | None, dict[str, int]]:
    """Map a cache; None for its pictures if it has none."""
    entries = [cache.entries[_digest(file)] for file in files]
    left_out = Counter(one.problem for one in entries if one.place is None)
    counts = dict(sorted(left_out.items()))
    rows = [k for k, one in enumerate(entries) if one.place is not None]
    if not rows:
        return None, counts
    return CachedPictures(cache.pixels, (len(rows), *shape), dtype, rows, counts), counts


@contextlib.contextmanager
def _reading(old: _Cache | None, size: int):
    """Give a function that reads one picture of an old cache, as bytes."""
    if old is None:
        yield lambda place: b""
        return
    with old.pixels.open("rb") as stream:

        def at(place: int) -> bytes:
            stream.seek(place * size)
            return stream.read(size)

        yield at


def _fingerprint(path: Path) -> tuple[list[int], bool]:
    """What changes when a file does, empty where there is none; and whether it changed just now."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return [], False
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    numbers = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return numbers, time.time_ns() - changed <= _RACY_NS


def _may_pass(error: BaseException | None) -> bool:
    """Whether the machine, and not the file, was the reason of an error."""
    return any(
        isinstance(one, MemoryError) or getattr(one, "errno", None) in _PASSING
        for one in causes(error, hidden=True)
    )


def _release(pixels: np.memmap) -> None:
    """Give the pages of a map back; they stay in the system's cache of the file."""
    if hasattr(mmap, "MADV_DONTNEED") and pixels._mmap is not None:
        with contextlib.suppress(OSError, ValueError):
            pixels._mmap.madvise(mmap.MADV_DONTNEED)


def _make_private(folder: Path) -> None:
    make_folder(folder)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]
