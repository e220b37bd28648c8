"""What has left a site: a line for each message, refused ones too, chained to the line before.

A line is written to the disk before its message leaves. It is a JSON object whose ``before`` is the
SHA-256 of the line before it, as it stands in the file; the first line's is that of a fixed text
with the site's name. So whoever changes, removes or moves a line must write all that follow anew.
The last line's hash, the *head*, changes with them: with one that was noted elsewhere, even that,
or an end that was cut off, is found (:mod:`clients.gateway.chain`).

A line's number is its place in the file. A line that a crash has cut short stays as it is, and the
line after it says so.
"""

from __future__ import annotations

import datetime
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from filelock import FileLock, Timeout

from clients.gateway.chain import (
    INTERRUPTED,
    OPENED,
    Line,
    digest,
    first_link,
    lines_of,
    verify,
)
from common.errors import ConfigError, FedscanError
from common.files import PRIVATE_FILE, make_folder

MOST_NAMES = {"sent": 10_000, "refused": 200}  # of arrays or metrics; the others are counted
LONGEST_NAME, LONGEST_WORDS, MOST_AXES = 200, 500, 8
ANEW = "Keep the file, and move it away: the gate then begins a new one"
Form = tuple[Sequence[int], str]  # shape and dtype of an array


@dataclass(frozen=True)
class Entry:
    """One message out.

    Parameters
    ----------
    run : str
        The run's name; Flower's number of one that has none.
    round : int
    kind : str
        What was asked: ``query.hello``, ``train`` or ``evaluate``.
    decision : {"sent", "refused"}
    why : str
        Why it was refused, or what was taken out of it, in words that hold no values.
    arrays : mapping of str to (shape, dtype)
    metrics : sequence of str
        Their names.
    bytes : int
        Of the composed message.
    sha256 : str
        Of the composed message's content.
    """

    run: str
    round: int
    kind: str
    decision: Literal["sent", "refused"]
    why: str = ""
    arrays: Mapping[str, Form] = field(default_factory=dict)
    metrics: Sequence[str] = ()
    bytes: int = 0
    sha256: str = ""


class Ledger:
    """A site's ledger, open for one gate; a context manager.

    Parameters
    ----------
    path : Path
        The file, made where there is none.
    site : str

    Raises
    ------
    ConfigError
        Another gate writes it, it is another site's, or it cannot be written.
    FedscanError
        Its lines are not those that were written.
    """

    def __init__(self, path: Path, site: str) -> None:
        self.path, self.site, self._mutex = path, site, threading.Lock()
        make_folder(path.parent)
        self._lock = FileLock(f"{path}.lock", mode=PRIVATE_FILE, thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(f"{path}: another gate writes to this ledger") from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        try:
            self._file = os.open(self.path, flags, PRIVATE_FILE)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be opened ({error.strerror})") from error
        try:
            os.fchmod(self._file, PRIVATE_FILE)
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def _read(self) -> None:
        self._number, self._head, self._whole = 0, first_link(self.site), True
        self._of_runs: Counter[str] = Counter()
        self._sent: list[tuple[datetime.datetime, int]] = []
        self._forms: dict[str, int] = {}
        found = [one for one in verify(self.path) if one.fault]
        if os.fstat(self._file).st_size == 0:
            self._append({"kind": OPENED, "site": self.site})
            return
        if found:
            raise FedscanError(f"{self.path}: {found[0].words}. {ANEW}")
        for line in lines_of(self.path):
            self._number, self._head, self._whole = line.position, line.digest, line.whole
            if line.position == 1 and line.values.get("site", self.site) != self.site:
                raise ConfigError(f"{self.path}: it is the ledger of another site")
            if line.values.get("decision") == "sent":
                self._count_again(line)
        self._close_off()

    def _count_again(self, line: Line) -> None:
        """Count what has left by a line of the file; nothing tells the hash of the last one."""
        try:
            time = datetime.datetime.fromisoformat(line.values["time"]).astimezone(datetime.UTC)
            run, number, forms = (line.values[key] for key in ("run", "bytes", "arrays"))
            told = isinstance(run, int | str) and isinstance(forms, dict)
            if not told or type(number) is not int or number < 0:
                raise ValueError("other values")
        except (KeyError, TypeError, ValueError, OverflowError):
            raise FedscanError(
                f"{self.path}: line {line.position} was changed: it tells no message. {ANEW}"
            ) from None
        self._count(str(run), time, number)
        if forms:
            self._forms.setdefault(digest(_text(forms)), self._number)

    def __enter__(self) -> Self:
        """Return the ledger, which the gate has to itself until the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it, and let another gate have it."""
        os.close(self._file)
        self._lock.release()

    @property
    def head(self) -> str:
        """SHA-256 of the last line, to be noted elsewhere."""
        return self._head

    def append(self, entry: Entry) -> int:
        """Write a message's line; only when this returns may the message leave.

        Returns
        -------
        int
            The line's number.

        Raises
        ------
        FedscanError
            It could not be written, such as on a full disk.
        """
        values = asdict(entry)
        values["why"] = _plain(entry.why, LONGEST_WORDS)
        values["metrics"] = _bounded(entry, entry.metrics)
        forms = {name: _form(entry.arrays.get(name)) for name in _bounded(entry, entry.arrays)}
        with self._mutex:
            known = self._forms.get(same := digest(_text(forms)))
            # Hundreds of names, the same in every round.
            values["arrays"] = {"as in line": known} if known else forms
            now = self._append(values)
            if forms and entry.decision == "sent":
                self._forms.setdefault(same, self._number)
            if entry.decision == "sent":
                self._count(entry.run, now, entry.bytes)
            return self._number

    def sent_bytes(self, run: str) -> int:
        """Return how many bytes have left in a run."""
        with self._mutex:
            return self._of_runs[run]

    def sent_bytes_since(self, time: datetime.datetime) -> int:
        """Return how many bytes have left since a time, in all runs."""
        with self._mutex:
            return sum(number for when, number in self._sent if when >= time)

    def _count(self, run: str, time: datetime.datetime, number: int) -> None:
        self._of_runs[run] += number
        self._sent.append((time, number))

    def _close_off(self) -> None:
        """End a line that was cut short, and say so in one of its own."""
        if self._whole:
            return
        self._write(b"\n")
        self._whole = True
        why = f"line {self._number} is not whole: the gate was interrupted, and nothing left"
        self._append({"kind": INTERRUPTED, "why": why})

    def _append(self, values: Mapping[str, Any]) -> datetime.datetime:
        self._close_off()
        now = datetime.datetime.now(datetime.UTC)
        time = now.isoformat(timespec="milliseconds")
        numbered = {"number": self._number + 1, "time": time, **values, "before": self._head}
        line = _text(numbered).encode()
        self._write(line + b"\n")
        self._number, self._head = self._number + 1, digest(line)
        return now

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._file).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            self._after_failure(size)
            raise FedscanError(
                f"{self.path} cannot be written ({error.strerror}): nothing leaves without its line"
            ) from error

    def _after_failure(self, size: int) -> None:
        """Remember what of a line is in the file: the next is not to hang on to it."""
        if os.fstat(self._file).st_size > size:
            *_, last = lines_of(self.path)
            self._number, self._head, self._whole = last.position, last.digest, last.whole


def _bounded(entry: Entry, names: Iterable[str]) -> list[str]:
    """Keep what a hostile message calls its parts from filling the disk."""
    most = MOST_NAMES[entry.decision]
    ordered = sorted(names)
    left = len(ordered) - most
    return [_plain(name) for name in ordered[:most]] + ([f"and {left} more"] if left > 0 else [])


def _form(form: Form | None) -> list[Any] | None:
    return form and [list(form[0])[:MOST_AXES], _plain(form[1])]


def _plain(text: str, longest: int = LONGEST_NAME) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:longest])


def _text(values: Any) -> str:
    return json.dumps(values)
