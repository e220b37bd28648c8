"""What a box sees of the machine: which folders and files, and where links among them lead."""

from __future__ import annotations

import os
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigError
from common.processes.environment import APP

SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin")  # programs and libraries, the same everywhere
PROCESSORS = ("/sys/devices/system/cpu", "/sys/devices/system/node")  # which PyTorch counts
COPIED = ("ld.so.cache", "localtime")  # of /etc
ALTERNATIVES, FONTS = "alternatives", "fonts"  # folders of /etc: on Debian, which BLAS
FORBIDDEN = tuple(map(Path, ("/proc", "/sys", "/dev", "/etc", "/box")))
BOX = Path("/box")  # the folder of the box's own files, inside
MOST_LINKS = 40  # as the kernel follows


@dataclass(frozen=True)
class View:
    """What of this machine the app in a box is given.

    Parameters
    ----------
    readable : tuple of Path
        Files and folders that it can read, and not write; absolute.
    writable : tuple of Path
        Folders that it can also write, such as the site's records and cache.
    environment : mapping of str to str
        Variables besides those that every box has.
    held : int, optional
        Bytes that the writable folders held before any box wrote to them; by default what they hold
        when a box starts.
    """

    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    held: int | None = None

    def check(self) -> None:
        """Refuse what cannot be shown.

        Raises
        ------
        ConfigError
            Naming the path.
        """
        for path in (*self.readable, *self.writable):
            if not path.is_absolute() or not path.exists():
                raise ConfigError(f"{path}: accepted is an absolute path that is there")
            real = path.resolve()
            if real == Path("/") or any(f in (real, *real.parents) for f in FORBIDDEN):
                raise ConfigError(
                    f"{path}: a sandbox has a {real} of its own: give the data another folder"
                )


@dataclass(frozen=True)
class Mount:
    """A path of this machine, and where it lies in the box."""

    source: Path
    target: Path
    writable: bool = False


def layout(view: View) -> tuple[list[Mount], dict[str, str]]:
    """Return which paths a box gets, the upper ones first, and the links that lead to them.

    A path is at home where it really lies; links on the way to it are made again, so that the name
    that the site uses is valid too. Links within a folder lead nowhere if they leave what is shown.
    """
    writable: dict[Path, bool] = {}
    links: dict[str, str] = {}
    for path in (*_python(), *view.readable):
        writable.setdefault(_follow(path, links), False)
    for path in view.writable:
        writable[_follow(path, links)] = True
    mounts: list[Mount] = []
    for path, may_write in sorted(writable.items(), key=lambda item: len(item[0].parts)):
        above = [m for m in mounts if m.target in path.parents]
        if not above or above[-1].writable != may_write:
            mounts.append(Mount(path, path, may_write))
    shown = {mount.target for mount in mounts}
    missing = {k: text for k, text in links.items() if shown.isdisjoint(Path(k).parents)}
    return mounts, missing


def make_etc(folder: Path) -> list[Mount]:
    """Make the folder that is a box's ``/etc``: what libraries ask for, and no more.

    Returns
    -------
    list of Mount
        What else has to be mounted for it, in order.
    """
    folder.mkdir()
    for name in COPIED:
        if (source := Path("/etc", name)).is_file():
            shutil.copyfile(source, folder / name)
    user, group = os.getuid(), os.getgid()
    (folder / "passwd").write_text(f"box:x:{user}:{group}::{BOX}/home:/bin/sh\n")
    (folder / "group").write_text(f"box:x:{group}:\n")
    (folder / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    etc = Path("/etc")
    mounts = [Mount(folder, etc)]
    for name in (ALTERNATIVES, FONTS):
        if (etc / name).is_dir():
            (folder / name).mkdir()
            mounts.append(Mount(etc / name, etc / name))
    return mounts


def devices() -> list[str]:
    """Return the device files of NVIDIA's GPUs."""
    found = [*Path("/dev").glob("nvidia*"), *Path("/dev").glob("nvidia-caps/*")]
    return [str(path) for path in found if path.is_char_device()]


def _python() -> Iterable[Path]:
    """Paths that a Python of this environment needs."""
    named = [*SYSTEM, *PROCESSORS, sys.base_prefix, sys.prefix, sys.executable]
    named.append(APP / "fedscan")  # of an editable installation, for extensions that import it
    return [path for path in map(Path, named) if path.exists()]


def _follow(path: Path, links: dict[str, str]) -> Path:
    """Return where a path really lies; note the links on the way."""
    current, parts = Path("/"), deque(path.absolute().parts[1:])
    followed = 0
    while parts:
        part = parts.popleft()
        if part == "..":
            current = current.parent
        elif (current / part).is_symlink() and followed < MOST_LINKS:
            followed += 1
            text = os.readlink(current / part)  # noqa: PTH115, as it is written
            links[str(current / part)] = text
            leads = Path(text)
            current = Path("/") if leads.is_absolute() else current
            parts.extendleft(reversed(leads.parts[leads.is_absolute() :]))
        else:
            current /= part
    return current
