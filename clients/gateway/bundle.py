"""What is in a Flower app bundle (a .fab file), read without trust and without unpacking it."""

from __future__ import annotations

import hashlib
import io
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from common.errors import ConfigError
from common.provenance import sources
from common.reading import parse_toml, read_bytes

LARGEST_FILE = 10 * 2**20  # bytes of a bundle; Flower builds none that is larger
LARGEST_CONTENT = 64 * 2**20
LARGEST_PROJECT = 2**18
MOST_FILES = 5000
PROJECT = "pyproject.toml"
ABOUT = frozenset({PROJECT, "LICENSE", ".info/CONTENT"})  # what is no source
COMPONENTS = {"serverapp": "server.app:app", "clientapp": "clients.app:app"}
# Names that Flower makes a path of.
IDENTIFIER, VERSION = re.compile(r"[A-Za-z0-9_-]{1,64}"), re.compile(r"[0-9A-Za-z.+-]{1,64}")
REMEDY = "Build it again with flwr build, from fedscan's sources"


@dataclass(frozen=True)
class Bundle:
    """An app, as a run brings it.

    Parameters
    ----------
    hash : str
        SHA-256 of the file, by which a site approves it.
    publisher, name, version : str
    changed, added, missing : tuple of str
        Names of files that are others than those of the fedscan that is installed here, that are
        not in it, and that are in it alone.
    """

    hash: str
    publisher: str
    name: str
    version: str
    changed: tuple[str, ...]
    added: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether it holds what is installed here, file by file."""
        return not (self.changed or self.added or self.missing)


def read_bundle(path: Path, root: Path | None = None) -> Bundle:
    """Read and describe a file; parameters and errors as of :func:`describe`."""
    try:
        return describe(read_bytes(path, limit=LARGEST_FILE, remedy=REMEDY), root)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", public=error.public) from None


def describe(content: bytes, root: Path | None = None) -> Bundle:
    """Say what a bundle is, and how it differs from the fedscan that is installed.

    Parameters
    ----------
    content : bytes
        Of the file.
    root : Path, optional
        The folder that holds the packages to compare with; by default this installation's.

    Raises
    ------
    ConfigError
        It is no bundle; or it is not such as Flower builds, and nobody can say what unpacking it
        would do.
    """
    files = _files(content)
    project = _toml(files.get(PROJECT, b""))
    ours = {name: path.read_bytes() for name, path in sources(root).items()}
    theirs = {name: data for name, data in files.items() if name not in ABOUT}
    both = ours.keys() & theirs.keys()
    changed = {name for name in both if ours[name] != theirs[name]}
    if not _is_ours(project, root):
        changed.add(PROJECT)
    publisher, name, version = _identity(project)
    return Bundle(
        hashlib.sha256(content).hexdigest(),
        publisher,
        name,
        version,
        changed=tuple(sorted(changed)),
        added=tuple(sorted(theirs.keys() - ours.keys())),
        missing=tuple(sorted(ours.keys() - theirs.keys())),
    )


def _files(content: bytes) -> dict[str, bytes]:
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"the bundle has more than {LARGEST_FILE} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _require_plain(entries)
            # zipfile reads no more of an entry than its header promises.
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ConfigError("it is no bundle: its files cannot be read") from error
    except (NotImplementedError, RuntimeError, ValueError) as error:  # encrypted, other methods
        raise ConfigError("it is no bundle: its files cannot be unpacked") from error


def _require_plain(entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    if len(names) > MOST_FILES or sum(entry.file_size for entry in entries) > LARGEST_CONTENT:
        raise ConfigError(
            f"the bundle would unpack to more than {MOST_FILES} files or {LARGEST_CONTENT} bytes"
        )
    # On some systems of files "A.py" and "a.py" are one.
    if len({name.casefold() for name in names}) < len(names):
        raise ConfigError("the bundle holds two files of one name")
    for entry in entries:
        parts = entry.filename.split("/")
        plain = entry.filename.isprintable() and not set(entry.filename) & set("\\:")
        inside = plain and "" not in parts and not {".", ".."} & set(parts)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if not inside or kind not in (0, stat.S_IFREG):
            raise ConfigError("the bundle holds a link, or a name that leads out of its folder")
    paths = {str(above) for name in names for above in PurePosixPath(name).parents}
    if paths & set(names):
        raise ConfigError("the bundle holds a file and a folder of one name")


def _toml(content: bytes) -> Mapping[str, Any]:
    try:
        if len(content) > LARGEST_PROJECT:
            raise ValueError(f"it has more than {LARGEST_PROJECT} bytes")
        return parse_toml(content.decode())
    except ValueError as error:
        raise ConfigError(f"the bundle's {PROJECT} cannot be read") from error


def _identity(project: Mapping[str, Any]) -> tuple[str, str, str]:
    app, about = _app(project), project.get("project")
    about = about if isinstance(about, dict) else {}
    found = [str(part) for part in (app.get("publisher", ""), about.get("name", ""))]
    found.append(str(about.get("version", "")))
    if not all(map(IDENTIFIER.fullmatch, found[:2])) or not VERSION.fullmatch(found[2]):
        raise ConfigError(f"the bundle's {PROJECT} names no publisher, name and version")
    return found[0], found[1], found[2]


def _is_ours(project: Mapping[str, Any], root: Path | None) -> bool:
    """Tell whether a bundle's configuration is the installation's, as far as that is there.

    Where it is not, Flower must at least start the same two objects.
    """
    installed = project_folder(root) / PROJECT
    if not installed.is_file():
        return _app(project).get("components") == COMPONENTS
    ours = _toml(installed.read_bytes())
    return _without_federations(ours) == _without_federations(project)


def _without_federations(project: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out what Flower leaves out when it builds a bundle."""
    tool = project.get("tool")
    flwr = tool.get("flwr") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or not isinstance(flwr, dict):
        return project
    flwr = {key: value for key, value in flwr.items() if key != "federations"}
    return {**project, "tool": {**tool, "flwr": flwr}}


def _app(project: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = project
    for key in ("tool", "flwr", "app"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def project_folder(root: Path | None = None) -> Path:
    """Folder from which this very fedscan is imported."""
    return root or Path(__file__).parents[2]


def build_installed(root: Path | None = None) -> bytes:
    """Build the bundle that ``flwr run`` would send from this installation's sources.

    Its bytes are the same wherever the sources are.

    Raises
    ------
    ConfigError
        The installation is not one to build from.
    """
    folder = project_folder(root)
    if not (folder / PROJECT).is_file():
        raise ConfigError(
            f"the fedscan that is installed in {folder} has no {PROJECT}, and without it no bundle "
            "can be built: ask for the bundle (flwr build, in the folder of the sources of this "
            "version), then fedscan gate approve FILE.fab; it tells whether the files are those "
            "installed here"
        )
    from flwr.cli.build import build_fab_from_disk
    from flwr.cli.utils import AppPathDepthError

    try:
        return build_fab_from_disk(folder)
    except (ValueError, AppPathDepthError) as error:
        raise ConfigError(f"{folder}: no bundle can be built of it: {error}") from error
