"""What a comparison's cells left, brought together: results, predictions, summary, samples."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from common.config.run_config import RunConfig
from common.evaluation.of_site import counts_of_use
from common.files import write_atomically
from common.paths import cache_dir
from common.reading import read_json
from common.tasks.task import load_task
from simulations.plan import Cell, Plan
from simulations.report.ledger import PROMISES
from simulations.results import USE_NUMBERS, USE_TEXTS, read_predictions, read_table

if TYPE_CHECKING:
    from common.data.dataset import Dataset

RESULTS, SUMMARY, SAMPLES = "results.csv", "summary.json", "samples.npz"
SAMPLE_IMAGES = 6

Models = Sequence[tuple[Cell, Mapping[str, Any]]]  # what each says of itself


def read_rows_of(folder: Path, cell: Cell, **columns: Any) -> pd.DataFrame:
    """Read the rows that a cell of a comparison left.

    Raises
    ------
    FileError
    """
    path = folder / "cells" / cell.name
    remedy = f"Remove {path}, and --resume trains it again"
    return read_table(path / RESULTS, folder, remedy=remedy, **columns)


def summarize_cells(
    folder: Path,
    plan: Plan,
    config: RunConfig,
    counts: Mapping[str, Mapping[str, int]],
    results: pd.DataFrame,
    *,
    new_cohorts: bool,
    poor_site: str,
    used: Iterable[Cell],
) -> dict[str, Any]:
    """Summarize a comparison; write each site's predictions, and ``use.csv`` where it was tried.

    Parameters
    ----------
    folder : Path
        Of the comparison.
    plan : Plan
    config : RunConfig
        Of no variant.
    counts : mapping of str to mapping
        What each site's table lists, as :func:`common.tasks.task.survey` counts it.
    results : DataFrame
    new_cohorts : bool
        Whether every repetition has people of its own; then ``counts`` are the first's.
    poor_site : str
    used : iterable of Cell
        Those that tried what generated images are good for, and ended well.
    """
    from simulations.summary import summarize
    from simulations.tested import summarize_use

    sites, predictions = list(counts), {}
    if config.task != "generation":
        predictions = {site: _predictions(folder, plan, site) for site in sites}
    for site, frame in predictions.items():
        path = folder / "sites" / site / "predictions.csv"
        write_atomically(path, frame.to_csv(index=False).encode())
    models = list(_summaries(folder, plan))
    summary = summarize(
        results,
        predictions,
        new_cohorts=new_cohorts,
        task=config.task,
        poor_site=poor_site,
        sites=sites,
        reference_strategy=plan.reference_strategy or None,
        contrasts=plan.compared_contrasts,
        classes=config.read_study().label.classes.names,
        positive=config.read_study().label.positive or None,
        plain_bytes=_plain_bytes(models),
        reach=plan.reach,
    )
    if new_cohorts:
        models = [(cell, told) for cell, told in models if cell.seed == plan.first_repetition]
    for key in PROMISES:
        if promised := _promises(models, key):
            summary[key] = promised
    summary["images"] = {site: _used(models, site, listed) for site, listed in counts.items()}
    (folder / "use.csv").unlink(missing_ok=True)
    columns = {"numbers": USE_NUMBERS, "texts": USE_TEXTS}
    if tables := [read_rows_of(folder, cell, **columns) for cell in used]:
        table = pd.concat(tables, ignore_index=True)
        write_atomically(folder / "use.csv", table.to_csv(index=False).encode())
        summary["use"] = summarize_use(table)
    return summary


def _plain_bytes(models: Models) -> dict[tuple[str, int], float]:
    """What messages of federated cells would have taken uncompressed, where they say so."""
    plain = {}
    for cell, summary in models:
        found = summary.get("bytes_plain")
        if cell.arm == "federated" and isinstance(found, int | float) and found > 0:
            plain[cell.strategy, cell.seed] = float(found)
    return plain


def _promises(models: Models, key: str) -> dict[str, dict[str, Any]]:
    """What models promised people, or sites, by model; the first of each says it."""
    found: dict[str, dict[str, Any]] = {}
    for cell, summary in models:
        if told := summary.get(key):
            name = f"{cell.arm}/{cell.strategy}" if cell.strategy else cell.arm
            one = found.setdefault(name, dict(told))
            if isinstance(told["sites"], dict):  # a site that trains by itself has a model of it
                one["sites"] = {**one["sites"], **told["sites"], **one["sites"]}
    return found


def _used(models: Models, site: str, listed: Mapping[str, int]) -> dict[str, int]:
    """Count a site's images that were used, of those that its table lists."""
    used: dict[str, int] = {}
    for _, summary in models:
        told = summary.get("sites", {}).get(site, {})
        for key in ("n_train", "n_val", "n_test"):
            if isinstance(told.get(key), int):
                used.setdefault(key, told[key])
    return counts_of_use(listed, used)


def _summaries(folder: Path, plan: Plan) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Read what the models of all cells say of themselves, as far as they were tested."""
    for cell in plan.cells():
        for path in sorted((folder / "cells" / cell.name).glob(f"*/{SUMMARY}")):
            yield cell, read_json(path, folder)


def _predictions(folder: Path, plan: Plan, site: str) -> pd.DataFrame:
    """What every model said of a site's test images."""
    parts = []
    for cell in plan.cells():
        for path in sorted((folder / "sites" / site / cell.name).glob("*/predictions.csv")):
            frame = read_predictions(path, folder)
            identity = {"arm": cell.arm, "strategy": cell.strategy, "seed": cell.seed}
            about = pd.DataFrame({**identity, "trained_on": path.parent.name}, index=frame.index)
            parts.append(pd.concat([about, frame], axis=1))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["scan"])


def write_samples(path: Path, sites: Mapping[str, str], config: RunConfig) -> None:
    """Keep a few training images a site, for the report, as :mod:`~simulations.report.samples`.

    For generation as its pictures are laid out; else the first images, of volumes middle slices.
    """
    from simulations.report.samples import SITE, laid_out, pictured

    task, study = load_task(config.task), config.read_study()

    def kept(data: Dataset) -> np.ndarray:
        if config.task == "generation":
            return laid_out(data, study)
        images = data.take(np.arange(min(len(data), SAMPLE_IMAGES)))
        return np.ascontiguousarray(pictured(images))

    strips = {
        f"{SITE}{site}": kept(task.open_split(site, Path(at), "train", config, cache_dir()))
        for site, at in sites.items()
    }
    file = io.BytesIO()
    np.savez_compressed(file, **strips)
    write_atomically(path, file.getvalue())
