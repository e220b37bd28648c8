"""The report of a comparison or of a run: one HTML file, made anew from the files of its folder.

Figures and tables follow from ``results.csv`` or ``metrics.jsonl``, intervals from
``summary.json``; the report trains nothing, so it can be redrawn wherever the folder is. It holds
no script and asks the network for nothing. Everything read from a file is escaped: a site's name is
the site's choice. The folder may have come from anybody: no link in it is followed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import ConfigError, FedscanError, FileError
from common.files import write_atomically
from common.metrics_log import WHOLE, Row, read_rows
from common.reading import open_plain, read_json
from common.run_folder import ATTENDANCE
from simulations.attendance import read_attendance
from simulations.folders import in_words
from simulations.report import brief, provenance
from simulations.report.classification_blocks import ClassificationBlocks
from simulations.report.classification_run import ClassificationRun, first_page
from simulations.report.content import Content
from simulations.report.files import write_files
from simulations.report.generation_blocks import GenerationBlocks
from simulations.report.page import PAGE, STYLE
from simulations.report.pictures import trained_model, trained_models
from simulations.report.run_content import RunContent
from simulations.report.samples import SITE
from simulations.report.words import mapping
from simulations.results import USE_NUMBERS, USE_TEXTS, read_table
from simulations.site_details import DETAILS

REPORT = "report.html"
BLOCKS = {"classification": ClassificationBlocks, "generation": GenerationBlocks}  # by task
MOST_SAMPLES = 2**26  # numbers, in all arrays together
MOST_ARRAYS = 4096
REMEDY = "Copy the folder again, or give one that fedscan benchmark or fedscan run wrote"


def write_report(folder: Path, *, files: bool = False) -> Path:
    """Write ``report.html`` into the folder of a benchmark or of a run.

    Parameters
    ----------
    folder : Path
        Of a benchmark: holds results.csv, summary.json, manifest.json and, if there are images to
        show, samples.npz. Of a run: manifest.json, metrics.jsonl and, when it ended, summary.json.
    files : bool
        Also write ``figures/`` and ``tables/``: see :mod:`simulations.report.files`.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    ConfigError
        It is no folder of an ended comparison or of a run.
    FedscanError
        A file cannot be read.
    """
    folder = Path(folder)
    with in_words(folder, REMEDY):
        parts = _run(folder) if _is_run(folder) else _comparison(folder)
        page = fill(parts).encode()
        if files:
            write_files(folder, parts["sections"], [one["look"] for one in parts["series"]])
    target = folder / REPORT
    write_atomically(target, page)
    return target


def _comparison(folder: Path) -> dict[str, Any]:
    results = read_results(folder)
    summary, manifest = (_read_json(folder, name) for name in ("summary.json", "manifest.json"))
    samples = _read_samples(folder)
    models, use = trained_models(folder, results), _read_use(folder)
    task = str(mapping(manifest.get("config")).get("task", "classification"))
    blocks = BLOCKS.get(task, ClassificationBlocks)
    content = Content(results, summary, manifest, samples, models, use, blocks=blocks)
    return content.parts(brief.of_comparison)


def _run(folder: Path) -> dict[str, Any]:
    manifest = _read_json(folder, "manifest.json")
    metrics = _read_metrics(folder, manifest)
    config = mapping(manifest.get("config"))
    key = ("federated", str(config.get("strategy.name", "")), config.get("run.seed"), WHOLE)
    model = trained_model(folder, *key, root=folder)
    attendance = read_attendance(folder) if (folder / ATTENDANCE).is_file() else ()
    phantoms = provenance.simulated(folder, config) is True
    told = (metrics, model.summary, manifest, model, attendance)
    details = _read_json(folder, DETAILS) if (folder / DETAILS).is_file() else {}
    about = {"details": details, "phantoms": phantoms}
    if config.get("task") == "generation":
        return RunContent(*told, **about).parts(brief.of_run)
    return ClassificationRun(*told, **about).parts(first_page)


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
    table = read_table(path)
    if table.empty:
        raise FedscanError(f"{path} has no row, so there is nothing to report")
    return table


def fill(parts: Mapping[str, Any]) -> str:
    """Fill the page's template with what a content says."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(PAGE).render(style=Markup(STYLE), **parts)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    return read_json(_existing(folder, name), remedy="Accepted is JSON by fedscan benchmark or run")


def _read_samples(folder: Path) -> dict[str, np.ndarray]:
    path = folder / "samples.npz"
    remedy = "Delete it to report without images"
    largest = 8 * MOST_SAMPLES  # bytes, unpacked or not
    try:
        with open_plain(path, limit=largest, remedy=remedy) as stream:
            with zipfile.ZipFile(stream) as archive:  # nothing of it is unpacked yet
                sizes = [one.file_size for one in archive.infolist()]
            if sum(sizes) > largest or len(sizes) > MOST_ARRAYS:
                raise FileError(path, "is too large when it is unpacked", remedy)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as arrays:
                found = {
                    name.removeprefix(SITE): _images(arrays[name], path, remedy)
                    for name in arrays.files
                }
    except FileNotFoundError:
        return {}
    except FileError:
        raise
    except Exception as error:  # a damaged archive raises anything at all
        raise FileError(path, f"cannot be read ({error})", remedy) from None
    return found


def _images(stack: np.ndarray, path: Path, remedy: str) -> np.ndarray:
    """Images (K, S, S) or (K, S, S, 3) as floats."""
    known = stack.ndim == 3 or (stack.ndim == 4 and stack.shape[3] == 3)
    if stack.dtype.kind not in "biuf" or not known or stack.size > MOST_SAMPLES:
        raise FileError(path, "holds an array that is no stack of images (K, S, S[, 3])", remedy)
    if not np.isfinite(stack).all():
        raise FileError(path, "holds images with values that are not finite", remedy)
    return stack.astype(float)


def _read_use(folder: Path) -> pd.DataFrame | None:
    """Rows of ``use.csv``, if there is one."""
    path = folder / "use.csv"
    remedy = "Delete it to report without it"
    try:
        table = read_table(path, numbers=USE_NUMBERS, texts=USE_TEXTS, remedy=remedy)
    except FileNotFoundError:
        return None
    return table.dropna(subset=["seed", "value"])


def _read_metrics(folder: Path, manifest: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of ``metrics.jsonl`` with the columns of a table of results."""
    rows = [asdict(row) for row in read_rows(_existing(folder, "metrics.jsonl"))]
    table = pd.DataFrame(rows, columns=[one.name for one in fields(Row)])
    table = table.assign(**{k: pd.to_numeric(table[k]) for k in ("round", "value", "n")})
    strategy = str(mapping(manifest.get("config")).get("strategy.name", ""))
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
            f"of a run. Give {wanted}"
        )
    return folder / name
