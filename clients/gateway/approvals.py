"""A site's list of approved apps: whose code its gate hands to a box.

The file keeps what was done: a line for each approval and each revocation, the last of an app being
the one that counts.
"""

from __future__ import annotations

import datetime
import json
import os
import pwd
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from clients.gateway.bundle import Bundle
from common.errors import ConfigError, FileError
from common.files import PRIVATE_FILE, make_folder, write_atomically
from common.reading import parse_json, read_bytes

NAME = "approved-apps.jsonl"  # beside policy.toml
HASH = re.compile("[0-9a-f]{64}")
LARGEST_LIST = 16 * 2**20
LONGEST_NOTE = 500
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Approval:
    """A line of the list.

    Parameters
    ----------
    action : {"approved", "revoked"}
    hash : str
        SHA-256 of the bundle.
    name : str
        ``publisher/name``, as the bundle says.
    version : str
    identical : bool or None
        Whether its files were those of the fedscan installed here; None where nobody looked.
    when : str
    by : str
        The user of this machine who did it.
    note : str
    """

    action: Literal["approved", "revoked"]
    hash: str
    name: str
    version: str
    identical: bool | None
    when: str
    by: str
    note: str


class Approvals:
    """The list, read anew at every question, so that a revocation holds from the next task on.

    Parameters
    ----------
    path : Path
        Of the file; see :data:`NAME`. There need not be one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, policy: Path) -> Approvals:
        """Return the list that belongs to a policy file."""
        return cls(policy.absolute().parent / NAME)

    def current(self) -> list[Approval]:
        """List what is approved, in order of approval.

        Raises
        ------
        ConfigError
            The list cannot be read: then nothing is approved.
        """
        last: dict[str, Approval] = {}
        for one in self._read():
            last.pop(one.hash, None)
            last[one.hash] = one
        return [one for one in last.values() if one.action == "approved"]

    def find(self, digest: str) -> Approval | None:
        """Return an app's approval by the SHA-256 of its bundle, or None; raises as current."""
        return next((one for one in self.current() if one.hash == digest), None)

    def approve(self, app: Bundle | str, note: str = "") -> Approval:
        """Approve an app, given as its bundle or, where that is not at hand, its hash.

        Raises
        ------
        ConfigError
            It is no such hash, or the list cannot be read.
        """
        if isinstance(app, str):
            return self._add("approved", _hash(app), UNKNOWN, "", None, note)
        name = f"{app.publisher}/{app.name}"
        return self._add("approved", app.hash, name, app.version, app.identical, note)

    def revoke(self, digest: str, note: str = "") -> Approval:
        """Take an approval back.

        Parameters
        ----------
        digest : str
            The app's hash, or so many digits of it that no other begins with them.
        note : str

        Raises
        ------
        ConfigError
            No approved app has this hash, or several have.
        """
        matching = [one for one in self.current() if digest and one.hash.startswith(digest)]
        if len(matching) != 1:
            many = "several approved apps have" if matching else "no approved app has"
            raise ConfigError(f"{many} a hash that begins with '{digest}': see fedscan gate list")
        one = matching[0]
        return self._add("revoked", one.hash, one.name, one.version, one.identical, note)

    def _add(
        self,
        action: Literal["approved", "revoked"],
        digest: str,
        name: str,
        version: str,
        identical: bool | None,
        note: str,
    ) -> Approval:
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        note = "".join(c if c.isprintable() else " " for c in note[:LONGEST_NOTE])
        new = Approval(action, digest, name, version, identical, when, _user(), note)
        with self._alone():
            lines = [json.dumps(asdict(one)) for one in [*self._read(), new]]
            before = self.path.stat() if self.path.exists() else None
            write_atomically(self.path, ("\n".join(lines) + "\n").encode())
            if before:  # the gate's own user may not be the one who approves
                os.chown(self.path, before.st_uid, before.st_gid)
                self.path.chmod(stat.S_IMODE(before.st_mode))
        return new

    @contextmanager
    def _alone(self) -> Iterator[None]:
        make_folder(self.path.parent)
        with FileLock(f"{self.path}.lock", mode=PRIVATE_FILE):
            yield

    def _read(self) -> list[Approval]:
        try:
            raw = read_bytes(self.path, limit=LARGEST_LIST)
        except FileNotFoundError:
            return []
        except FileError as error:
            raise ConfigError(f"the list of approved apps: {error}", public=error.public) from error
        return [self._line(number, line) for number, line in enumerate(raw.splitlines(), 1)]

    def _line(self, number: int, line: bytes) -> Approval:
        try:
            values = parse_json(line)
            one = Approval(**values)
            if one.action not in ("approved", "revoked") or not HASH.fullmatch(one.hash):
                raise ValueError("not a line of the list")
        except (ValueError, TypeError) as error:
            problem = "the list of approved apps cannot be read"
            words = f"{problem}: {self.path}, line {number}. Remove the line, or the file"
            raise ConfigError(words, public=problem) from error
        return one


def _hash(text: str) -> str:
    if not HASH.fullmatch(text):
        raise ConfigError(
            f"'{text}' is neither a file nor a hash: accepted are 64 hexadecimal digits"
        )
    return text


def _user() -> str:
    """Name of this process's user; the environment could name anybody."""
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
