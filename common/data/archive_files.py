"""Files of a downloaded archive: in an unpacked folder, in zips beside it, and in zips of zips.

Nothing is unpacked by the name that a zip gives it, no link is followed out of the archive, and
what a zip claims about sizes bounds what is read. Pictures are found by their names alone, as
copies of an archive differ in their folders.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self

from common.data.tables import MOST_BYTES as LARGEST_TABLE
from common.errors import ConfigError
from common.files import PRIVATE_FILE, make_folder
from common.site_files import plain
from common.studies.sections import check_relative

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LARGEST_PICTURE = 2**29  # bytes
DEEPEST_ZIP = 2  # zips in zips

LINKED_FOLDER = "links to folders, not followed"
LINKED_OUT = "links out of the archive or to nothing, not followed"

_CHUNK = 2**20
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError)


class DamagedFileError(Exception):
    """A file of an archive that cannot be read to its end."""


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A file of the archive, not opened yet.

    Parameters
    ----------
    name : str
        Path in the archive, for messages; that of a zip's member begins with the zip's.
    size : int
        Bytes, as the folder or the zip says.
    path : Path, optional
        Where it lies, if not in a zip; never a link.
    archive, member : ZipFile and ZipInfo, optional
        Or the zip that holds it.
    """

    name: str
    size: int
    path: Path | None = None
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None

    def open(self) -> BinaryIO:
        """Open for reading.

        Raises
        ------
        DamagedFileError
            The file cannot be opened, or the zip does not hold what its directory says.
        """
        if self.path is None:
            try:
                return self.archive.open(self.member)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
                raise DamagedFileError(str(error)) from error
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise DamagedFileError(f"cannot be opened: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DamagedFileError("is no regular file")
        return os.fdopen(descriptor, "rb")

    def chunks(self) -> Iterator[bytes]:
        """Content, part by part.

        Raises
        ------
        DamagedFileError
            As :meth:`open`; or the content cannot be read, or does not fit the zip's checksum.
        """
        with self.open() as stream:
            while True:
                try:
                    chunk = stream.read(_CHUNK)
                except _BROKEN as error:  # OSError: of bzip2, or of the disk that is read
                    raise DamagedFileError(str(error)) from error
                if not chunk:
                    return
                yield chunk

    def put(self, target: Path, *, copy: bool) -> bool:
        """Link or copy to a new file; returns whether it was linked.

        Parameters
        ----------
        target : Path
        copy : bool
            Do not try to link. Files of a zip, or on another disk, are always copied.

        Raises
        ------
        DamagedFileError
            As :meth:`chunks`; nothing is left of the target.
        OSError
            The target cannot be written.
        """
        if self.path is not None and not copy and _link(self.path, target):
            return True
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in self.chunks():
                    file.write(chunk)
            target.chmod(PRIVATE_FILE)  # made so, but for what a umask took
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return False

    def equals(self, other: ArchiveFile) -> bool:
        """Whether both files hold the same bytes."""
        if self.size != other.size:
            return False
        try:
            return all(a == b for a, b in zip(self.chunks(), other.chunks(), strict=True))
        except (DamagedFileError, ValueError):
            return False


class ArchiveFiles:
    """Pictures and tables of an archive; a context manager that closes its zips.

    Parameters
    ----------
    root : Path
        Unpacked folder, or zip.
    tables : collection of str
        Names of the tables that may be in it.
    scratch : Path
        Folder for zips of zips, made if there are any; removed on leaving.

    Attributes
    ----------
    pictures : dict of str to list of ArchiveFile
        By name without ending.
    notes : Counter
        What was passed over, and how often.

    Raises
    ------
    ConfigError
        There is nothing, or a zip is damaged, encrypted, or names files outside of it.
    """

    def __init__(self, root: Path, tables: Collection[str], scratch: Path) -> None:
        self.root = root
        self.pictures: dict[str, list[ArchiveFile]] = {}
        self.notes: Counter[str] = Counter()
        self._tables: dict[str, list[ArchiveFile]] = {name.casefold(): [] for name in tables}
        self._scratch, self._stack, self._zips = scratch, ExitStack(), 0

    def __enter__(self) -> Self:
        try:
            if self.root.is_dir():
                self.root = self.root.resolve()
                self._walk()
            elif self.root.is_file():
                self._zip(self.root, self.root.name, 0)
            else:
                raise refuse(self.root.name, "there is no such folder or zip")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self._zips:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def table(self, names: Sequence[str]) -> tuple[str, str] | None:
        """Name and text of the first of some tables that is there.

        Raises
        ------
        ConfigError
            There are two of that name that differ, or it cannot be read as UTF-8 text.
        """
        found = next((self._tables[n.casefold()] for n in names if self._tables[n.casefold()]), [])
        if not found:
            return None
        file = self._only(found, "Keep one of them, or name the folder that is meant")
        name = plain(file.name)
        if file.size > LARGEST_TABLE:
            raise refuse(
                name, "the table is too large", f"{file.size} bytes", f"At most {LARGEST_TABLE}"
            )
        try:
            raw = b"".join(file.chunks())
            return name, raw.decode("utf-8-sig")
        except DamagedFileError as error:
            problem, got = "the table is damaged", plain(str(error))
            raise refuse(name, problem, got, "Download it again") from error
        except UnicodeDecodeError as error:
            problem, got = "the table is no UTF-8 text", f"byte {error.start}"
            raise refuse(name, problem, got, "Save it as UTF-8") from error

    def picture(self, name: str, folders: Sequence[str] = ()) -> ArchiveFile | None:
        """Picture of a name without ending; None where there is none.

        Parameters
        ----------
        folders : sequence of str
            Of several, one in the first of these folders is taken.

        Raises
        ------
        ConfigError
            There are several that differ.
        """
        found = self.pictures.get(name, [])
        if len(found) < 2:
            return found[0] if found else None

        def rank(file: ArchiveFile) -> int:
            parts = PurePosixPath(file.name).parts
            return next((k for k, folder in enumerate(folders) if folder in parts), len(folders))

        best = min(map(rank, found))
        remedy = "Remove one of them, or name the folder that is meant"
        return self._only([file for file in found if rank(file) == best], remedy)

    def _only(self, found: list[ArchiveFile], remedy: str) -> ArchiveFile:
        first, *others = sorted(found, key=lambda file: (file.path is None, file.name))
        for other in others:
            if not first.equals(other):
                got = plain(f"{first.name} and {other.name}", 400)
                name = PurePosixPath(first.name).name
                raise refuse(plain(name), "two files of this name differ", got, remedy)
        return first

    def _walk(self) -> None:
        def unreadable(error: OSError) -> None:
            raise refuse(plain(str(error.filename)), "the folder cannot be read") from error

        for folder, folders, files in os.walk(self.root, onerror=unreadable):
            here = Path(folder)
            self.notes[LINKED_FOLDER] += sum((here / name).is_symlink() for name in folders)
            folders[:] = sorted(name for name in folders if not _hidden(name))
            for file in sorted(files):
                if self._wanted(file):
                    self._file(here / file)

    def _file(self, path: Path) -> None:
        name = path.relative_to(self.root).as_posix()
        try:
            if path.is_symlink():
                path = path.resolve(strict=True)
                if not path.is_relative_to(self.root):
                    raise FileNotFoundError
            status = path.lstat()
        except (OSError, RuntimeError):  # RuntimeError: a circle of links
            self.notes[LINKED_OUT] += 1
            return
        if not stat.S_ISREG(status.st_mode):
            return
        if name.lower().endswith(".zip"):
            self._zip(path, name, 0)
        else:
            self._add(ArchiveFile(name, status.st_size, path))

    def _zip(self, path: Path, name: str, depth: int) -> None:
        shown = plain(name)
        try:
            archive = self._stack.enter_context(zipfile.ZipFile(path))
            members = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            remedy = "Accepted are an unpacked folder and zips. Download it again, or move it away"
            raise refuse(shown, "cannot be read as a zip", plain(str(error)), remedy) from error
        for member in members:
            try:
                inside = PurePosixPath(check_relative(member.filename))
            except ValueError as error:
                problem, got = "names a file outside of it", f"'{plain(member.filename)}'"
                raise refuse(shown, problem, got, "Download it again from its source") from error
            if member.is_dir() or any(map(_hidden, inside.parts)) or not self._wanted(inside.name):
                continue
            if stat.S_ISLNK(member.external_attr >> 16):
                self.notes[LINKED_OUT] += 1
                continue
            if member.flag_bits & 1:
                remedy = "Unpack it, and name the folder"
                raise refuse(shown, "is encrypted", plain(member.filename), remedy)
            file = ArchiveFile(f"{name}/{inside}", member.file_size, archive=archive, member=member)
            if inside.suffix.lower() != ".zip":
                self._add(file)
            elif depth < DEEPEST_ZIP:
                self._zip(self._take_out(file), file.name, depth + 1)
            else:
                problem = "lies in too many zips"
                raise refuse(plain(file.name), problem, remedy="Unpack it, and name the folder")

    def _take_out(self, file: ArchiveFile) -> Path:
        """Copy a zip out of a zip: inside, it could only be read from its beginning."""
        make_folder(self._scratch)
        self._zips += 1
        require_space(self._scratch, file.size)
        target = self._scratch / f"{self._zips}.zip"
        try:
            file.put(target, copy=True)
        except DamagedFileError as error:
            problem, got = "is damaged", plain(str(error))
            raise refuse(plain(file.name), problem, got, "Download it again") from error
        return target

    def _wanted(self, name: str) -> bool:
        ending = PurePosixPath(name).suffix.lower()
        known = ending in PICTURES or ending == ".zip" or name.casefold() in self._tables
        return known and not _hidden(name)

    def _add(self, file: ArchiveFile) -> None:
        path = PurePosixPath(file.name)
        if path.name.casefold() in self._tables:
            self._tables[path.name.casefold()].append(file)
        else:
            self.pictures.setdefault(path.stem, []).append(file)


def refuse(name: str, problem: str, got: str = "", remedy: str = "") -> ConfigError:
    """Return the error of an archive's file: what is wrong, what was got, the way out."""
    value = f" (got {got})" if got else ""
    return ConfigError(f"{name}: {problem}{value}" + (f". {remedy}" if remedy else ""))


def require_space(folder: Path, size: int) -> None:
    """Refuse to write more bytes than the disk of a folder has free.

    Raises
    ------
    ConfigError
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        got = f"{size / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free"
        remedy = "Unpack zips on the disk of --out, where pictures are linked and take no space"
        raise refuse(str(folder.parent), "the disk has too little space", got, remedy)


def _link(path: Path, target: Path) -> bool:
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError:  # another disk, or one without hard links
        return False
    if not stat.S_ISREG(target.lstat().st_mode):  # replaced by a link since it was found
        target.unlink()
        raise DamagedFileError("is no regular file")
    return True


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
