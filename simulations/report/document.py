"""The report of a comparison: one HTML file, made anew from the files of a benchmark's folder.

Figures and tables follow from ``results.csv``, intervals from ``summary.json``; the report trains
and computes nothing, so it can be redrawn wherever the folder is. It holds no script and asks the
network for nothing. Everything read from a file is escaped: a site's name is the site's choice.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import FedscanError
from common.files import write_atomically
from simulations.report.content import Content
from simulations.report.page import PAGE, STYLE

REPORT = "report.html"
TEXTS = ("arm", "strategy", "trained_on", "tested_on", "split", "metric", "status")
NUMBERS = (
    "seed",
    "value",
    "n",
    "steps",
    "images_seen",
    "rounds",
    "seconds",
    "bytes_up",
    "bytes_down",
)


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
        numbers = {name: pd.to_numeric(table[name].mask(table[name] == "")) for name in NUMBERS}
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
    parts = Content(results, summary, manifest, samples).parts()
    return environment.from_string(PAGE).render(style=Markup(STYLE), **parts)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = _existing(folder, name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FedscanError(f"{path}: {error}. Accepted is JSON by fedscan benchmark") from None
    if not isinstance(value, dict):
        raise FedscanError(f"{path} holds no JSON object, as fedscan benchmark would write it")
    return value


def _read_samples(folder: Path) -> dict[str, np.ndarray]:
    path = folder / "samples.npz"
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: np.asarray(arrays[name], dtype=float) for name in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise FedscanError(f"{path}: {error}. Delete it to report without scans") from None
    if flat := [name for name, slices in found.items() if slices.ndim != 3]:
        raise FedscanError(f"{path}: {flat[0]} holds no stack of slices (K, S, S)")
    return found


def _existing(folder: Path, name: str) -> Path:
    """Return the path of a file that must be there."""
    if not folder.is_dir():
        raise FedscanError(f"{folder} is no folder. Give the one that fedscan benchmark wrote")
    if not (folder / name).is_file():
        raise FedscanError(
            f"{folder} holds no {name}, so it is not the folder of a finished benchmark. "
            "Give the one that fedscan benchmark wrote"
        )
    return folder / name
