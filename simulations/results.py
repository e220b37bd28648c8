"""Tables of a comparison's results: their columns, and how they are read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import FileError
from common.predictions import PROBABILITY
from common.reading import LARGEST_TABLE, read_bytes
from common.site_files import plain

COLUMNS = [
    *("arm", "strategy", "seed", "trained_on", "tested_on", "split", "metric", "value", "n"),
    *("steps", "images_seen", "rounds", "seconds", "bytes_up", "bytes_down", "status"),
]
TEXTS = ("arm", "strategy", "trained_on", "tested_on", "split", "metric", "status")
NUMBERS = tuple(name for name in COLUMNS if name not in TEXTS)
USE_COLUMNS = ["seed", "row", "site", "metric", "value", "n"]  # of the pictures' use
CHOSEN = "synthetic_participants"  # a metric there: the amount that validation chose
USE_TEXTS = ("row", "site", "metric")
PREDICTIONS = ("scan", "person", "label")
USE_NUMBERS = tuple(name for name in USE_COLUMNS if name not in USE_TEXTS)
# Of a file that may be anybody's: pandas takes time with the square of columns.
MOST_ROWS, MOST_COLUMNS, LONGEST_LINE = 1_000_000, 1000, 2**16


def model_names(table: pd.DataFrame) -> pd.Series:
    """Name each row's model: its arm, of a federated one ARM/STRATEGY."""
    return table["arm"].where(table["strategy"] == "", table["arm"] + "/" + table["strategy"])


def count_cells(table: pd.DataFrame) -> dict[str, Any]:
    """Count how the cells (arm, strategy, seed) ended.

    Returns
    -------
    dict
        ``by_model[model][status]``; ``left_out``, those that lack a model; and a ``note`` on them,
        None where there are none. A local cell trains one model a site: where one of them
        diverged, the others are in the means.
    """
    ended = table.assign(model=model_names(table), done=table["status"] == "done")
    cells = ended.sort_values("done", kind="stable").drop_duplicates(["model", "seed"])
    by_model: dict[str, dict[str, int]] = {}
    for (model, status), count in cells.groupby(["model", "status"]).size().items():
        by_model.setdefault(model, {})[status] = int(count)
    failures = [
        f"{model}: {count} {status}"
        for model, counts in by_model.items()
        for status, count in counts.items()
        if status != "done"
    ]
    left_out = int((~cells["done"]).sum())
    note = f"{left_out} of {len(cells)} cells are not wholly in the means ({'; '.join(failures)})"
    return {"by_model": by_model, "left_out": left_out, "note": note if failures else None}


def read_table(
    path: Path,
    root: Path | None = None,
    *,
    numbers: Collection[str] = NUMBERS,
    texts: Collection[str] = TEXTS,
    remedy: str = "Accepted is a table by fedscan benchmark",
) -> pd.DataFrame:
    """Read a CSV whose texts stay as they stand: ``01``, ``NA`` and ``null`` can name a site.

    Parameters
    ----------
    path : Path
    root : Path, optional
        As of :func:`common.reading.open_plain`.
    numbers, texts : collection of str
        Columns that it must have. Where no number stands, or one that is not finite, it is NaN.
    remedy : str
        What a reader of an error can do.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    FileError
        It cannot be read, is no table, a column is missing, or a number is none.
    """
    raw = read_bytes(path, root, limit=LARGEST_TABLE, remedy=remedy)
    try:
        table = _cells(raw)
        if absent := [name for name in (*texts, *numbers) if name not in table]:
            raise ValueError(f"lacks the columns {', '.join(absent)}")
        found = {name: _numbers(table[name]) for name in numbers}
    except (csv.Error, ValueError, OverflowError) as error:
        raise FileError(path, f"cannot be read ({plain(str(error))})", remedy) from None
    return table.assign(**found)


def _cells(raw: bytes) -> pd.DataFrame:
    """Read a CSV as texts.

    Raises
    ------
    ValueError, csv.Error
        It is no CSV in UTF-8, has a column twice, or more than any table by fedscan.
    """

    def bounded(line: str) -> str:
        if len(line) > LONGEST_LINE:
            raise ValueError(f"a line of more than {LONGEST_LINE} characters")
        return line

    text = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig", newline="")
    lines = csv.reader(map(bounded, text), strict=True)
    header, rows = next(lines, []), []
    if not header:
        raise ValueError("No columns")
    if len(header) > MOST_COLUMNS or len(set(header)) < len(header):
        raise ValueError(f"a column twice, or more than {MOST_COLUMNS}")
    for row in filter(None, lines):
        if len(row) != len(header) or len(rows) == MOST_ROWS:
            raise ValueError(
                f"line {lines.line_num} is none of up to {MOST_ROWS} that fit the first"
            )
        rows.append(row)
    return pd.DataFrame(rows, columns=header, dtype=object)


def _numbers(column: pd.Series) -> pd.Series:
    """Numbers of a column of texts; one that is not finite is missing, as in JSON."""
    found = pd.to_numeric(column.mask(column == ""))
    if found.dtype == object:  # whole numbers of more than 64 bits
        found = found.astype(float)
    return found.mask(np.isinf(found))


def read_predictions(path: Path, root: Path) -> pd.DataFrame:
    """Read a table by :func:`common.predictions.save_predictions`.

    Raises
    ------
    FileNotFoundError, FileError
        As :func:`read_table`.
    """
    remedy = "Remove the cell's folder in cells, and --resume trains it again"
    raw = read_bytes(path, root, limit=LARGEST_TABLE, remedy=remedy)
    try:
        table = _cells(raw)
        told = [name for name in table.columns if name.startswith(PROBABILITY)]
        types = dict.fromkeys(PREDICTIONS, "int64") | dict.fromkeys(told, "float64")
        table = table[list(types)].astype(types)
    except (csv.Error, ValueError, KeyError, OverflowError) as error:
        raise FileError(path, f"holds no predictions ({plain(str(error))})", remedy) from None
    if len(told) < 2 or not ((table[told] >= 0) & (table[told] <= 1)).all(axis=None):
        raise FileError(path, "holds probabilities that are none", remedy)
    if not table["label"].between(0, len(told) - 1).all():
        raise FileError(path, "holds labels that are no class", remedy)
    return table
