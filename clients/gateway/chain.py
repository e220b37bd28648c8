"""A ledger's lines as they stand in the file, and which of them are not as they were written."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import ConfigError
from common.reading import parse_json

OPENED, INTERRUPTED = "opened", "interrupted"  # kinds of lines that are about the ledger itself


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


@dataclass(frozen=True)
class Line:
    """A line as it stands in the file; of one that is no JSON object the values are empty."""

    position: int
    digest: str
    whole: bool
    values: Mapping[str, Any]

    @property
    def number(self) -> int:
        """The number that the line gives itself; its place in the file where it gives none."""
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
    lines = list(lines_of(path))
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
    lines = list(lines_of(path))
    return len(lines), lines[-1].digest if lines else ""


def _torn(lines: Sequence[Line]) -> Iterator[Finding]:
    for line, after in itertools.zip_longest(lines, lines[1:]):
        noted = after is not None and after.values.get("kind") == INTERRUPTED
        if noted or not line.whole:
            said = f", as line {after.number} says" if after else ""
            words = f"line {line.number} is not whole: the gate was interrupted{said}"
            yield Finding(line.number, "torn", words, fault=False)
        elif not line.values:
            yield Finding(line.number, "changed", f"line {line.number} was changed: it is no JSON")


def _misplaced(lines: Sequence[Line]) -> Iterator[Finding]:
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


def _broken_links(lines: Sequence[Line]) -> Iterator[Finding]:
    by_number = {line.number: line for line in lines}
    for number, line in sorted(by_number.items()):
        before = by_number.get(number - 1)
        told = line.values.get("before")
        if not line.values or (before is None and number > 1):
            continue
        if before is None and told != first_link(str(line.values.get("site"))):
            yield Finding(1, "changed", "line 1 was changed: it does not begin a ledger")
        if before is not None and told != before.digest:
            words = f"line {number - 1} was changed: line {number} notes another hash of it"
            yield Finding(number - 1, "changed", words)


def lines_of(path: Path) -> Iterator[Line]:
    """Read a ledger's lines.

    Raises
    ------
    ConfigError
        There is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            for position, raw in enumerate(file, 1):
                line = raw.removesuffix(b"\n")
                try:
                    values = parse_json(line)
                except ValueError:
                    values = {}
                values = values if isinstance(values, dict) else {}
                yield Line(position, digest(line), line != raw, values)
    except OSError as error:
        raise ConfigError(f"{path}: the ledger cannot be read ({error.strerror})") from error


def digest(line: bytes | str) -> str:
    """Return the SHA-256 of a line."""
    return hashlib.sha256(line.encode() if isinstance(line, str) else line).hexdigest()


def first_link(site: str) -> str:
    """Return what stands in a ledger's first line in place of the hash of a line before."""
    return digest(f"fedscan: ledger of site {site}")
