"""``metrics.jsonl``: a row a round, site, split and metric; the source of every table and plot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from common.files import without_nan

# Metrics that the server logs about a site, which the site itself cannot tell.
UNUSABLE, UPDATE_NORM, BYTES = "unusable", "update-norm", "bytes-"
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


class MetricsLog:
    """Append-only log of :class:`Row`, readable while it is written.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def append(self, rows: list[Row]) -> None:
        """Write rows in one go, so that a reader meets whole lines of whole rounds."""
        text = "".join(json.dumps(without_nan(asdict(row))) + "\n" for row in rows)
        with self.path.open("a") as file:
            file.write(text)


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
            with self.path.open("rb") as file:
                file.seek(self._read)
                *lines, _ = file.read().split(b"\n")
        except FileNotFoundError:  # not yet, or no longer: a run's folder is renamed at its end
            return []
        self._read += sum(len(line) + 1 for line in lines)
        return [_row(line) for line in lines]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the whole rows of a log; a last line still being written is left for later."""
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield _row(line)


def _row(line: str | bytes) -> Row:
    values = json.loads(line)
    if values["value"] is None:
        values["value"] = float("nan")
    return Row(**values)
