"""What has left a site: a line for each message, refused ones too, chained to the line before.

A line is written to the disk before its message leaves. It is a JSON object whose ``before`` is the
SHA-256 of the line before it, as it stands in the file; the first line's is that of a fixed text
with the site's name. So whoever changes, removes or moves a line must write all that follow anew.
The last line's hash, the *head*, changes with them: with one that was noted elsewhere, even that,
or an end that was cut off, is found (:func:`verify`).

A line's number is its place in the file. A line that a crash has cut short stays as it is, and the
line after it says so.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from filelock import FileLock, Timeout

from common.errors import ConfigError, FedscanError
from common.files import PRIVATE_FILE, make_folder
from common.reading import parse_json

OPENED, INTERRUPTED = "opened", "interrupted"  # kinds of lines that are about the ledger itself
MOST_NAMES = {"sent": 10_000, "refused": 200}  # of arrays or metrics; the others are counted
LONGEST_NAME, LONGEST_WORDS, MOST_AXES = 200, 500, 8
Form = tuple[Sequence[int], str]  # shape and dtype of an array


@dataclass(frozen=True)
class Entry:
    """One message out.

    Parameters
    ----------
    run : int
        Flower's number of the run.
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

    run: int
    round: int
    kind: str
    decision: Literal["sent", "refused"]
    why: str = ""
    arrays: Mapping[str, Form] = field(default_factory=dict)
    metrics: Sequence[str] = ()
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a ledger.

    Parameters
    ----------
    line : int
        Its number; 0 where it is the ledger as a whole.
    problem : {"changed", "missing", "reordered", "torn", "head"}
    words : str
        All of it in a sentence, for people.
    fault : bool
        Whether somebody has changed the file; not so where a crash has cut a line short.
    """

    line: int
    problem: Literal["changed", "missing", "reordered", "torn", "head"]
    words: str
    fault: bool = True


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
        self._number, self._head, self._whole = 0, _first(self.site), True
        self._of_runs: Counter[int] = Counter()
        self._sent: list[tuple[datetime.datetime, int]] = []
        self._forms: dict[str, int] = {}
        found = [one for one in verify(self.path) if one.fault]
        if os.fstat(self._file).st_size == 0:
            self._append({"kind": OPENED, "site": self.site})
            return
        if found:
            raise FedscanError(
                f"{self.path}: {found[0].words}. Keep the file, and move it away: the gate then "
                "begins a new one"
            )
        for line in _lines(self.path):
            self._number, self._head, self._whole = line.position, line.digest, line.whole
            if line.position == 1 and line.values.get("site", self.site) != self.site:
                raise ConfigError(f"{self.path}: it is the ledger of another site")
            if line.values.get("decision") == "sent":
                time = datetime.datetime.fromisoformat(str(line.values["time"]))
                self._count(int(line.values["run"]), time, int(line.values["bytes"]))
                if forms := line.values["arrays"]:
                    self._forms.setdefault(_digest(_text(forms)), self._number)
        self._close_off()

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
            known = self._forms.get(same := _digest(_text(forms)))
            # Hundreds of names, the same in every round.
            values["arrays"] = {"as in line": known} if known else forms
            now = self._append(values)
            if forms and entry.decision == "sent":
                self._forms.setdefault(same, self._number)
            if entry.decision == "sent":
                self._count(entry.run, now, entry.bytes)
            return self._number

    def sent_bytes(self, run: int) -> int:
        """Return how many bytes have left in a run."""
        with self._mutex:
            return self._of_runs[run]

    def sent_bytes_since(self, time: datetime.datetime) -> int:
        """Return how many bytes have left since a time, in all runs."""
        with self._mutex:
            return sum(number for when, number in self._sent if when >= time)

    def _count(self, run: int, time: datetime.datetime, number: int) -> None:
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
        self._number, self._head = self._number + 1, _digest(line)
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
            *_, last = _lines(self.path)
            self._number, self._head, self._whole = last.position, last.digest, last.whole


@dataclass(frozen=True)
class _Line:
    """A line as it stands in the file; of one that is no JSON object the values are empty."""

    position: int
    digest: str
    whole: bool
    values: Mapping[str, Any]

    @property
    def number(self) -> int:
        number = self.values.get("number")
        return number if isinstance(number, int) and number > 0 else self.position


def verify(path: Path, head: str | None = None) -> list[Finding]:
    """Look for lines of a ledger that are not as they were written.

    Parameters
    ----------
    path : Path
    head : str, optional
        SHA-256 of a line, or its first digits, as the gate told it once: it must still be there.

    Returns
    -------
    list of Finding
        By number of line; empty if all is as it was written. Without ``head`` neither an end that
        was cut off nor a chain that was written anew from some line on can be found.

    Raises
    ------
    ConfigError
        There is no such file, or it cannot be read.
    """
    lines = list(_lines(path))
    found = [*_torn(lines), *_misplaced(lines), *_broken_links(lines)]
    if head is not None and not any(line.digest.startswith(head) for line in lines):
        words = (
            "no line has the hash that was noted: the end was cut off, or all from some line on "
            "was written anew"
        )
        found.append(Finding(0, "head", words))
    of_each = {(one.line, one.problem): one for one in reversed(found)}
    return sorted(of_each.values(), key=lambda one: (one.line == 0, one.line))


def last_line(path: Path) -> tuple[int, str]:
    """Return how many lines a ledger has, and the SHA-256 of the last one, its head.

    Raises
    ------
    ConfigError
        There is no such file, or it cannot be read.
    """
    lines = list(_lines(path))
    return len(lines), lines[-1].digest if lines else ""


def _torn(lines: Sequence[_Line]) -> Iterator[Finding]:
    for line, after in itertools.zip_longest(lines, lines[1:]):
        noted = after is not None and after.values.get("kind") == INTERRUPTED
        if noted or not line.whole:
            said = f", as line {after.number} says" if after else ""
            words = f"line {line.number} is not whole: the gate was interrupted{said}"
            yield Finding(line.number, "torn", words, fault=False)
        elif not line.values:
            yield Finding(line.number, "changed", f"line {line.number} was changed: it is no JSON")


def _misplaced(lines: Sequence[_Line]) -> Iterator[Finding]:
    highest, seen = 0, set()
    for line in lines:
        if line.number in seen:
            words = f"line {line.number} is there twice"
            yield Finding(line.number, "changed", words)
        elif line.number < highest:
            words = f"line {line.number} stands behind line {highest}"
            yield Finding(line.number, "reordered", words)
        seen.add(line.number)
        highest = max(highest, line.number)
    after = 0
    for number in sorted(seen | ({2} if not seen else set())):
        if number > after + 1:
            one = number == after + 2
            words = f"line {after + 1} is" if one else f"lines {after + 1} to {number - 1} are"
            yield Finding(after + 1, "missing", f"{words} missing")
        after = number


def _broken_links(lines: Sequence[_Line]) -> Iterator[Finding]:
    by_number = {line.number: line for line in lines}
    for number, line in sorted(by_number.items()):
        before = by_number.get(number - 1)
        told = line.values.get("before")
        if not line.values or (before is None and number > 1):
            continue
        if before is None and told != _first(str(line.values.get("site"))):
            yield Finding(1, "changed", "line 1 was changed: it does not begin a ledger")
        if before is not None and told != before.digest:
            words = f"line {number - 1} was changed: line {number} notes another hash of it"
            yield Finding(number - 1, "changed", words)


def _lines(path: Path) -> Iterator[_Line]:
    try:
        with path.open("rb") as file:
            for position, raw in enumerate(file, 1):
                line = raw.removesuffix(b"\n")
                try:
                    values = parse_json(line)
                except ValueError:
                    values = {}
                values = values if isinstance(values, dict) else {}
                yield _Line(position, _digest(line), line != raw, values)
    except OSError as error:
        raise ConfigError(f"{path}: the ledger cannot be read ({error.strerror})") from error


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


def _digest(line: bytes | str) -> str:
    return hashlib.sha256(line.encode() if isinstance(line, str) else line).hexdigest()


def _first(site: str) -> str:
    return _digest(f"fedscan: ledger of site {site}")
