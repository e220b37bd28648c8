"""``metrics.jsonl``: one row per round, site, split and metric; the source of all tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import FileError
from common.files import without_nan, write_atomically
from common.reading import LARGEST_TABLE, open_plain, parse_json, read_bytes

LONGEST_LINE = 2**16  # bytes
TYPES = {
    "round": int,
    **dict.fromkeys(("site", "split", "name"), str),
    "value": (int, float, type(None)),
    **dict.fromkeys(("n", "seconds"), (int, float)),
}
# Metrics that the server logs about a site, which the site itself cannot tell.
UNUSABLE, UPDATE_NORM, BYTES = "unusable", "update-norm", "bytes-"
SERVER_MEMORY = "server-memory"  # resident, in MiB, after a round
WHOLE = "all"  # the site of a number that is that of all sites together


@dataclass(frozen=True)
class Row:
    """One number: what was measured, where, when and on how many scans."""

    round: int
    site: str
    split: str
    name: str
    value: float
    n: int
    seconds: float  # since the run began


class LineLog:
    """Append-only log, a JSON object a line, readable while it is written.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            write_atomically(path, b"")

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write lines in one go, so that a reader meets whole lines of whole rounds."""
        text = "".join(json.dumps(without_nan(dict(line))) + "\n" for line in lines)
        with self.path.open("a") as file:
            file.write(text)


class MetricsLog(LineLog):
    """Log of :class:`Row`."""

    def append(self, rows: list[Row]) -> None:
        """Write rows in one go."""
        self.write(vars(row) for row in rows)


class MetricsTail:
    """The rows of a log while it is written: each is read once, however long the log becomes.

    Parameters
    ----------
    path : Path
        It may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0  # bytes

    def new_rows(self) -> list[Row]:
        """Return the whole rows since the last call; a line still being written is left."""
        try:
            with open_plain(self.path, limit=LARGEST_TABLE) as file:
                file.seek(self._read)
                *lines, _ = file.read().split(b"\n")
        except FileNotFoundError:  # not yet, or no longer: a run's folder is renamed at its end
            return []
        self._read += sum(len(line) + 1 for line in lines)
        return [_row(line) for line in lines]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the whole rows of a log; a last line still being written is left for later.

    Raises
    ------
    FileNotFoundError, FileError
        There is no log, or not one that fedscan would write: the line is named.
    """
    remedy = "Accepted is a log by fedscan run"
    *lines, _ = read_bytes(path, limit=LARGEST_TABLE, remedy=remedy).split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            yield _row(line)
        except ValueError as error:
            raise FileError(path, f"line {number} cannot be read ({error})", remedy) from None


def _row(line: bytes) -> Row:
    if len(line) > LONGEST_LINE:
        raise ValueError(f"more than {LONGEST_LINE} bytes")
    values = parse_json(line)
    if not isinstance(values, dict) or values.keys() != TYPES.keys():
        raise ValueError("no row of metrics")
    if wrong := [name for name, kind in TYPES.items() if not isinstance(values[name], kind)]:
        raise ValueError(f"no row of metrics: {wrong[0]} is of another type")
    if values["value"] is None:
        values["value"] = float("nan")
    return Row(**values)
