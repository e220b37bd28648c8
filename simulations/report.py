"""The report of a comparison: one HTML file, made anew from the files of a benchmark's folder.

Figures and tables follow from ``results.csv``, intervals from ``summary.json``; the report trains
and computes nothing, so it can be redrawn wherever the folder is. It holds no script and asks the
network for nothing. Everything read from a file is escaped: a site's name is the site's choice.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import FedscanError
from common.files import write_atomically
from simulations import figures, report_tables
from simulations.report_page import PAGE, STYLE

REPORT = "report.html"
TEXTS = ("arm", "strategy", "trained_on", "tested_on", "split", "metric", "status")
NUMBERS = (
    "seed value n steps images_seen rounds seconds bytes_up bytes_down".split()  # fmt: skip
)
LEADING = ("balanced_accuracy", "auroc")


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a benchmark's folder.

    Parameters
    ----------
    folder : Path
        Holds results.csv, summary.json, manifest.json and, if there are scans to show,
        samples.npz.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    FedscanError
        A file is missing or cannot be read.
    """
    folder = Path(folder)
    results = read_results(folder)
    summary, manifest = (_read_json(folder, name) for name in ("summary.json", "manifest.json"))
    page = render(results, summary, manifest, _read_samples(folder))
    target = folder / REPORT
    write_atomically(target, page.encode())
    return target


def read_results(folder: Path) -> pd.DataFrame:
    """Read ``results.csv``: texts as they stand ("NA" is a name), numbers as floats.

    Raises
    ------
    FedscanError
        It is missing, or no table of results.
    """
    path = _existing(folder, "results.csv")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if absent := [name for name in (*TEXTS, *NUMBERS) if name not in table]:
            raise ValueError(f"lacks the columns {', '.join(absent)}")
        numbers = {name: pd.to_numeric(table[name].replace("", "nan")) for name in NUMBERS}
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise FedscanError(f"{path}: {error}. Accepted is a table by fedscan benchmark") from None
    if table.empty:
        raise FedscanError(f"{path} has no row, so there is nothing to report")
    return table.assign(**numbers)


def render(
    results: pd.DataFrame,
    summary: Mapping[str, Any],
    manifest: Mapping[str, Any],
    samples: Mapping[str, np.ndarray],
) -> str:
    """Return the page; the same input gives the same text.

    Parameters
    ----------
    results : DataFrame
        As :func:`read_results` gives it.
    summary, manifest : mapping
        Of what they lack, the page says so or leaves it out.
    samples : mapping of str to (K, S, S) floats
        Site to slices of its training scans; may be empty.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    content = _Content(results, summary, manifest)
    return environment.from_string(PAGE).render(
        style=Markup(STYLE), scans=_scans(samples, content), **content.parts()
    )
