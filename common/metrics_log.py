"""``metrics.jsonl``: a row a round, site, split and metric; the source of every table and plot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from common.files import without_nan

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


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the whole rows of a log; a last line still being written is left for later."""
    with path.open() as file:
        for line in file:
            if line.endswith("\n"):
                values = json.loads(line)
                if values["value"] is None:
                    values["value"] = float("nan")
                yield Row(**values)
