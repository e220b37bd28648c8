"""The arms of the comparison: the same ``fit``, steps and seeds; only the data it may see differ.

*Centralized*: all sites' training scans in one pool. *Local*: one model a site, of its scans alone.
*Federated*: the very Flower app, through ``flwr run``. Each arm selects its round on validation
scans and reads the test scans once, when training is over.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from clients.resources import compute_device, granted
from common.config import RunConfig
from common.errors import DivergedError
from common.messages import WEIGHT
from common.metrics_log import MetricsLog, Row, read_rows
from common.paths import cache_dir
from common.predictions import save_predictions
from common.run_folder import METRICS
from common.seeding import derive_seed
from common.tasks import load_task
from server.selection import BestRound, pooled
from simulations.plan import Cell

if TYPE_CHECKING:
    from torch import Tensor

    from common.imaging.prepare import ImageSet

POOL = "all"  # trained_on of a model that learned from every site
CURVES = ("loss", "balanced_accuracy")  # what is kept of every round's validation
COLUMNS = [
    *("arm", "strategy", "seed", "trained_on", "tested_on", "split", "metric", "value", "n"),
    *("steps", "images_seen", "rounds", "seconds", "bytes_up", "bytes_down", "status"),
]


@dataclass(frozen=True)
class Work:
    """One cell with all that its process needs to know.

    Parameters
    ----------
    cell : Cell
    run : dict
        The run config, as Flower has it.
    sites : dict of str to str
        Folder of each site's data set, in order of name.
    folder : str
        The cell's own folder.
    records : str
        Folder above the sites' own records.
    centralized_batch : {"large", "small"}
    cpus, gpus : int, float
        What the cell may use.
    timeout : float
        Seconds after which it is ended.
    """

    cell: Cell
    run: dict[str, bool | int | float | str]
    sites: dict[str, str]
    folder: str
    records: str
    centralized_batch: str
    cpus: int
    gpus: float
    timeout: float

    @property
    def config(self) -> RunConfig:
        """The run config, validated."""
        return RunConfig.from_flower(self.run)


def run_cell(work: Work) -> pd.DataFrame:
    """Train and test one cell.

    Returns
    -------
    DataFrame
        With columns :data:`COLUMNS`.

    Raises
    ------
    Exception
        Whatever ended the cell early.
    """
    began = time.monotonic()
    if work.cell.arm == "federated":
        rows = _federated(work)
    elif work.cell.arm == "centralized":
        rows = _alone(work, POOL, list(work.sites))
    else:
        rows = [row for site in work.sites for row in _alone(work, site, [site])]
    identity = {**asdict(work.cell), "seconds": round(time.monotonic() - began, 1)}
    return pd.DataFrame([{**identity, "status": "done", **row} for row in rows])[COLUMNS]


def _alone(work: Work, trained_on: str, members: list[str]) -> list[dict[str, Any]]:
    """Train one model on the pooled scans of ``members``; test it at every site."""
    config = _pooled_config(work.config, len(members), work.centralized_batch)
    task = load_task(config.task)

    def load(site: str, split: str) -> ImageSet:
        return task.load_split(site, Path(work.sites[site]), split, config, cache_dir())

    train = pool([load(site, "train") for site in members])
    validation = {site: load(site, "val") for site in members}
    log = MetricsLog(Path(work.folder) / trained_on / METRICS)
    best: BestRound[dict[str, Tensor]] = BestRound()
    model = task.build_model(config)
    private: Mapping[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    with compute_device(config, granted()) as device:
        for number in range(1, config.num_server_rounds + 1):
            fit = task.fit(
                model,
                train,
                config,
                first_step=(number - 1) * config.local_steps,
                steps=config.local_steps,
                seed=derive_seed(config.seed, site=trained_on, round=number, purpose="fit"),
                device=device,
                private=private,
            )
            private = fit.private
            metrics = {
                site: task.score(data, task.predict(model, data, device))
                | {WEIGHT: len(data.labels)}
                for site, data in validation.items()
            }
            loss = pooled(metrics, "loss", WEIGHT)
            state = {name: value.clone() for name, value in model.state_dict().items()}
            best.offer(number, loss, state)
            seconds = round(time.monotonic() - began, 3)
            curve = [
                Row(number, site, "val", name, values[name], values[WEIGHT], seconds)
                for site, values in metrics.items()
                for name in CURVES
            ]
            log.append(curve)
            rows += [_result(trained_on, row, config, number) for row in curve]
        if best.model is None:
            raise DivergedError("no round had a finite validation loss: the run has diverged")
        model.load_state_dict(best.model)
        for site in work.sites:
            data = load(site, "test")
            predictions = task.predict(model, data, device)
            records = Path(work.records) / site / work.cell.name
            save_predictions(records / f"{trained_on}.csv", data.labels, predictions)
            rows += [
                _result(
                    trained_on,
                    Row(best.round_number, site, "test", name, value, len(data.labels), 0.0),
                    config,
                    config.num_server_rounds,
                )
                for name, value in task.score(data, predictions).items()
            ]
    return rows


def _pooled_config(config: RunConfig, members: int, centralized_batch: str) -> RunConfig:
    """Give a pool of sites the images that they would see one by one, in either reading."""
    if members == 1:
        return config
    if centralized_batch == "large":
        return config.model_copy(update={"batch_size": config.batch_size * members})
    return config.model_copy(update={"local_steps": config.local_steps * members})


def pool(sets: list[ImageSet]) -> ImageSet:
    """Put several sites' images into one set, in the order given."""
    import numpy as np

    from common.imaging.prepare import ImageSet

    return ImageSet(
        np.concatenate([s.images for s in sets]),
        np.concatenate([s.labels for s in sets]),
        tuple(name for s in sets for name in s.ids),
        {},
    )


def _result(
    trained_on: str, row: Row, config: RunConfig, rounds: int, participants: int = 1
) -> dict[str, Any]:
    """Turn a row of a metrics log into one of the results, with the budget spent after rounds."""
    steps = rounds * config.local_steps
    return {
        "trained_on": trained_on,
        "tested_on": row.site,
        "split": row.split,
        "metric": row.name,
        "value": row.value,
        "n": row.n,
        "steps": steps,
        "images_seen": steps * config.batch_size * participants,
        "rounds": rounds,
        "bytes_up": 0,
        "bytes_down": 0,
    }


def _federated(work: Work) -> list[dict[str, Any]]:
    """Run the Flower app through ``flwr run``; its sites keep their own records."""
    from simulations.federate import federate
    from simulations.launch import Resources

    config = work.config.model_copy(update={"output_dir": work.folder})
    count = len(work.sites)
    resources = Resources(count, config.threads, work.gpus / count, work.cpus)
    # The sites' processes inherit it: what they predict goes to their own side of the benchmark.
    os.environ["FEDSCAN_RECORDS"] = work.records
    run_folder, summary = federate(config, resources, quiet=True)
    spent = {"bytes_up": summary["bytes_up"], "bytes_down": summary["bytes_down"]}
    rows = []
    for row in read_rows(run_folder / METRICS):
        if row.split == "test" or (row.split == "val" and row.name in CURVES):
            rounds = summary["rounds"] if row.split == "test" else row.round
            told = _result(POOL, row, config, rounds, participants=count)
            rows.append(told | (spent if row.split == "test" else {}))
    for site in work.sites:
        records = Path(work.records) / site
        (records / work.cell.name).mkdir(exist_ok=True)
        shutil.move(records / f"{summary['run_id']}.csv", records / work.cell.name / f"{POOL}.csv")
    return rows
