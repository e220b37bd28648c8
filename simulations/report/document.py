"""The report of a comparison or of a run: one HTML file, made anew from the files of its folder.

Figures and tables follow from ``results.csv`` or ``metrics.jsonl``, intervals from
``summary.json``; the report trains nothing, so it can be redrawn wherever the folder is. It holds
no script and asks the network for nothing. Everything read from a file is escaped: a site's name is
the site's choice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import ConfigError, FedscanError
from common.files import write_atomically
from common.metrics_log import WHOLE, Row, read_rows
from simulations.report.content import Content
from simulations.report.generation_content import GenerationContent
from simulations.report.page import PAGE, STYLE
from simulations.report.pictures import trained_model, trained_models
from simulations.report.run_content import RunContent
from simulations.report.samples import SITE
from simulations.report.words import mapping
from simulations.results import USE_NUMBERS, USE_TEXTS, read_table

REPORT = "report.html"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a benchmark, or of a run that made a generator.

    Parameters
    ----------
    folder : Path
        Of a benchmark: holds results.csv, summary.json, manifest.json and, if there are scans to
        show, samples.npz. Of a run: manifest.json, metrics.jsonl and, when it ended, summary.json.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    ConfigError
        It is no folder of an ended comparison or of a generation run.
    FedscanError
        A file cannot be read.
    """
    folder = Path(folder)
    page, private = (_run(folder), False) if _is_run(folder) else _comparison(folder)
    target = folder / REPORT
    write_atomically(target, page.encode(), mode=0o600 if private else 0o644)
    return target


def _comparison(folder: Path) -> tuple[str, bool]:
    """Return the page, and whether it shows scans, which are for their owner's eyes alone."""
    results = read_results(folder)
    summary, manifest = (_read_json(folder, name) for name in ("summary.json", "manifest.json"))
    samples = _read_samples(folder)
    if mapping(manifest.get("config")).get("task") != "generation":
        return render(results, summary, manifest, samples), bool(samples)
    models = trained_models(folder, results)
    use = _read_use(folder)
    content = GenerationContent(results, summary, manifest, samples, models, use)
    return fill(content.parts()), bool(samples)


def _run(folder: Path) -> str:
    manifest = _read_json(folder, "manifest.json")
    if mapping(manifest.get("config")).get("task") != "generation":
        raise ConfigError(
            f"{folder} is a run's folder. A report is made of a comparison, by fedscan benchmark, "
            "or of a run with task = generation"
        )
    metrics = _read_metrics(folder, manifest)
    summary = _read_json(folder, "summary.json") if (folder / "summary.json").is_file() else {}
    config = mapping(manifest.get("config"))
    key = ("federated", str(config.get("strategy", "")), config.get("seed"), WHOLE)
    return fill(RunContent(metrics, summary, manifest, trained_model(folder, *key)).parts())


def _is_run(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file() and not (folder / "results.csv").exists()


def read_results(folder: Path) -> pd.DataFrame:
    """Read ``results.csv``: texts as they stand ("NA" is a name).

    Raises
    ------
    ConfigError
        It is missing.
    FedscanError
        It is no table of results.
    """
    path = _existing(folder, "results.csv")
    try:
        table = read_table(path)
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise FedscanError(f"{path}: {error}. Accepted is a table by fedscan benchmark") from None
    if table.empty:
        raise FedscanError(f"{path} has no row, so there is nothing to report")
    return table


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
    return fill(Content(results, summary, manifest, samples).parts())


def fill(parts: Mapping[str, Any]) -> str:
    """Fill the page's template with what a content says."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined)
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
            found = {
                name.removeprefix(SITE): np.asarray(arrays[name], dtype=float)
                for name in arrays.files
            }
    except Exception as error:  # a damaged archive raises anything at all
        raise FedscanError(f"{path}: {error}. Delete it to report without scans") from None
    if flat := [name for name, slices in found.items() if slices.ndim != 3]:
        raise FedscanError(f"{path}: {flat[0]} holds no stack of slices (K, S, S)")
    return found


def _read_use(folder: Path) -> pd.DataFrame | None:
    """Rows of ``use.csv``, if there is one."""
    path = folder / "use.csv"
    if not path.is_file():
        return None
    try:
        table = read_table(path, numbers=USE_NUMBERS, texts=USE_TEXTS)
    except (ValueError, OSError) as error:
        raise FedscanError(f"{path}: {error}. Delete it to report without it") from None
    return table.dropna(subset=["seed", "value"])


def _read_metrics(folder: Path, manifest: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of ``metrics.jsonl`` with the columns of a table of results."""
    path = _existing(folder, "metrics.jsonl")
    try:
        rows = [asdict(row) for row in read_rows(path)]
        table = pd.DataFrame(rows, columns=[one.name for one in fields(Row)])
        table = table.assign(**{k: pd.to_numeric(table[k]) for k in ("round", "value", "n")})
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise FedscanError(f"{path}: {error}. Accepted is a log by fedscan run") from None
    strategy = str(mapping(manifest.get("config")).get("strategy", ""))
    whole = {"arm": "federated", "strategy": strategy, "trained_on": WHOLE, "status": "done"}
    named = {"site": "tested_on", "name": "metric", "round": "rounds"}
    return table.rename(columns=named).astype({"metric": str}).assign(**whole)


def _existing(folder: Path, name: str) -> Path:
    """Return the path of a file that must be there."""
    if not folder.is_dir():
        fault = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{folder} {fault}. Give a benchmark's or a run's")
    if not (folder / name).is_file():
        if (folder / "cells").is_dir():
            raise ConfigError(
                f"{folder} holds no {name}: the comparison has not ended. Continue it with fedscan "
                "benchmark --resume"
            )
        runs = sorted(folder.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
        wanted = runs[-1].parent if runs else "one that fedscan benchmark or fedscan run wrote"
        raise ConfigError(
            f"{folder} holds no {name}, so it is not the folder of a finished benchmark, nor that "
            f"of a generation run. Give {wanted}"
        )
    return folder / name
