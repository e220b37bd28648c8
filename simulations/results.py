"""Tables of a comparison's results: their columns, and how they are read back."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

COLUMNS = [
    *("arm", "strategy", "seed", "trained_on", "tested_on", "split", "metric", "value", "n"),
    *("steps", "images_seen", "rounds", "seconds", "bytes_up", "bytes_down", "status"),
]
TEXTS = ("arm", "strategy", "trained_on", "tested_on", "split", "metric", "status")
NUMBERS = tuple(name for name in COLUMNS if name not in TEXTS)
USE_TEXTS, USE_NUMBERS = ("row", "site", "metric"), ("seed", "value", "n")  # of the pictures' use


def read_table(
    path: Path, *, numbers: Collection[str] = NUMBERS, texts: Collection[str] = TEXTS
) -> pd.DataFrame:
    """Read a CSV whose texts stay as they stand: ``01``, ``NA`` and ``null`` can name a site.

    Parameters
    ----------
    path : Path
    numbers, texts : collection of str
        Columns that it must have. Where no number stands it is NaN.

    Raises
    ------
    ValueError
        It is no table, a column is missing, or a number is none.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if absent := [name for name in (*texts, *numbers) if name not in table]:
        raise ValueError(f"lacks the columns {', '.join(absent)}")
    found = {name: pd.to_numeric(table[name].mask(table[name] == "")) for name in numbers}
    return table.assign(**found)
