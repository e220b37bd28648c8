"""One cell of a transfer: the federation of the other hospitals, or a method's trainings.

A training at the target has one cosine over all its steps, and its last weights are tested: no scan
is spent on choosing a round, so the number of scans is all that a method learns from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from clients.resources import compute_device, granted
from common.config.run_config import RunConfig
from common.data.dataset import Dataset
from common.metrics_log import MetricsLog, Row
from common.paths import cache_dir
from common.predictions import PROBABILITY, save_predictions
from common.run_folder import METRICS
from common.seeding import derive_seed
from common.tasks.task import SiteContext, load_task, read_run_config
from common.training.classifier import predict
from simulations.arms import POOL, train_in_place
from simulations.plan import Cell
from simulations.results import read_predictions
from simulations.transfer.curve import measured
from simulations.transfer.plan import AS_IT_IS, SOURCE
from simulations.transfer.subsets import folds, learning_order, whole

COLUMNS = ["method", "seed", "scans", "metric", "value", "n", "steps", "trained_on", "status"]
PREDICTIONS = "predictions.csv"


@dataclass(frozen=True)
class TransferWork:
    """One cell with all that its process needs to know.

    Parameters
    ----------
    cell : Cell
    seed : int
    run : dict
        The run config, as Flower has it.
    sites : dict of str to str
        Folders: of a federation each site's, else the target's alone.
    folder : str
        The cell's own folder.
    records : str
        Folder above the sites' own records.
    sizes : list of int
        Training scans, ascending.
    folds : int
        Of a cross-validation; 0: the target's own splits.
    cpus, gpus : int, float
        What the cell may use.
    timeout : float
        Seconds after which it is ended.
    """

    cell: Cell
    seed: int
    run: dict[str, bool | int | float | str]
    sites: dict[str, str]
    folder: str
    records: str
    sizes: list[int]
    folds: int
    cpus: int
    gpus: float
    timeout: float

    def run_cell(self) -> pd.DataFrame:
        """Do all of it that is not done yet; return rows with :data:`COLUMNS`."""
        config = read_run_config(self.run)
        with compute_device(config, granted()) as device:
            if self.cell.arm == SOURCE:
                rows = _federation(self, config, device)
            else:
                rows = _at_target(self, config, device)
        about = {"method": self.cell.strategy or SOURCE, "seed": self.seed, "status": "done"}
        return pd.DataFrame([{**about, **row} for row in rows], columns=COLUMNS)


def _federation(
    work: TransferWork, config: RunConfig, device: torch.device
) -> list[dict[str, Any]]:
    """Train the source's model, a federation without messages."""
    rows = train_in_place(
        {site: [site] for site in work.sites},
        {site: Path(path) for site, path in work.sites.items()},
        config,
        place=SiteContext(POOL, tuple(work.sites), device),
        folder=Path(work.folder) / POOL,
        records=(Path(work.records), Path(work.cell.name) / POOL),
    )
    kept = ("metric", "value", "n", "steps")
    return [
        {"trained_on": POOL, "scans": 0, **{key: row[key] for key in kept}}
        for row in rows
        if row["split"] == "test"
    ]


def _at_target(work: TransferWork, config: RunConfig, device: torch.device) -> list[dict[str, Any]]:
    """Train with each number of scans; a fold's predictions join those of the others."""
    ((site, path),) = work.sites.items()
    place = SiteContext(site, (site,), device)
    study = config.read_study()
    found: dict[int, list[pd.DataFrame]] = {}
    for fold, (learned, tested) in enumerate(_divided(work, config, site, Path(path))):
        rng = np.random.default_rng(
            derive_seed(work.seed, purpose="subsets of a transfer", site=site, fold=fold)
        )
        order = learning_order(learned.labels, learned.persons, rng)
        for scans in work.sizes:
            name = f"{scans:05d}-fold{fold}"
            kept = Path(work.records) / site / work.cell.name / name / PREDICTIONS
            if not kept.is_file():
                model, loss = _trained(work, config, learned.subset(order[:scans]), place)
                predictions = predict(model, tested, study, device)
                classes = study.label.classes.names
                save_predictions(kept, tested.labels, predictions, tested.persons, classes)
                log = MetricsLog(Path(work.folder) / name / METRICS)
                log.append([Row(1, site, "train", "loss", loss, scans, 0.0)])
            found.setdefault(scans, []).append(read_predictions(kept, Path(work.records)))
    rows = []
    for scans, parts in found.items():
        table = pd.concat(parts)
        columns = [one for one in table.columns if one.startswith(PROBABILITY)]
        said = table[columns].to_numpy(float)
        said = said[:, 1] if said.shape[1] == 2 else said
        about = {"trained_on": site, "scans": scans, "n": len(table)}
        steps = config.local_steps(scans) if scans else 0
        rows += [
            {**about, "steps": steps, "metric": metric, "value": value}
            for metric, value in measured(study, table["label"].to_numpy(int), said).items()
        ]
    return rows


def _divided(
    work: TransferWork, config: RunConfig, site: str, path: Path
) -> Iterator[tuple[Dataset, Dataset]]:
    """Yield what a model may learn from and what it is tested on; several, if in folds."""
    task = load_task(config.task)

    def opened(split: str) -> Dataset:
        return task.open_split(site, path, split, config, cache_dir())

    if not work.folds:
        yield opened("train"), opened("test")
        return
    every = whole([opened(split) for split in ("train", "val", "test")])
    seed = derive_seed(work.seed, purpose="folds of a transfer", site=site) % 2**32
    yield from folds(every, work.folds, seed)


def _trained(
    work: TransferWork, config: RunConfig, data: Dataset, place: SiteContext
) -> tuple[torch.nn.Module, float]:
    """Train on some scans, from where the method begins."""
    task = load_task(config.task)
    model = task.build_model(config, place)
    task.warm_start(model, config)
    if work.cell.strategy == AS_IT_IS:
        return model, 0.0
    fit = task.fit(model, data, config, place=place, round_number=1, private={})
    return model, fit.metrics.get("loss", math.nan)  # with differential privacy it is not told
