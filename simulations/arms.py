"""The arms of the comparison: the same ``fit``, steps and seeds; only the data it may see differ.

*Centralized*: all sites' training scans in one pool. *Local*: one model a site, of its scans alone.
*Federated*: the very Flower app, through ``flwr run``. Each arm selects its round on validation
scans and reads the test scans once, when training is over.
"""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from clients.resources import compute_device, granted
from common.config.run_config import RunConfig
from common.data.dataset import pool
from common.errors import DivergedError
from common.files import make_folder, write_atomically, write_json
from common.metrics_log import BYTES, UNUSABLE, MetricsLog, Row, read_rows
from common.paths import cache_dir
from common.run_folder import METRICS, SUMMARY
from common.tasks.task import Evaluation, Place, State, Verdict, load_task, read_run_config
from server.selection import BestRound, due
from simulations.plan import PRETRAINING, USE, Cell
from simulations.results import COLUMNS

POOL = "all"  # trained_on of a model that learned from every site
CURVES = (  # what is kept of every validation
    *("loss", "balanced_accuracy"),
    *("frechet_distance", "kernel_distance", "precision", "recall"),
)


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
    local : list of str
        Sites that train by themselves.
    models : dict of str to str
        Folders of models that earlier cells of the seed have made.
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
    local: list[str]
    models: dict[str, str]
    cpus: int
    gpus: float
    timeout: float

    @property
    def config(self) -> RunConfig:
        """The run config, validated."""
        return read_run_config(self.run)


def run_cell(work: Work) -> pd.DataFrame:
    """Train and test one cell.

    Returns
    -------
    DataFrame
        With columns :data:`COLUMNS`; of what a local model has that diverged, its status alone.

    Raises
    ------
    Exception
        Whatever ended the cell early.
    """
    began = time.monotonic()
    if work.cell.arm in ("federated", PRETRAINING):
        rows = _federated(work)
    elif work.cell.arm == "centralized":
        rows = _alone(work, POOL, list(work.sites))
    elif work.cell.arm == USE:
        return _use(work)
    else:
        rows = [row for site in work.local for row in _own(work, site)]
    identity = {**asdict(work.cell), "seconds": round(time.monotonic() - began, 1)}
    told = [{**identity, "status": "done", **row} for row in rows]
    return pd.DataFrame(told, columns=COLUMNS)


def _own(work: Work, site: str) -> list[dict[str, Any]]:
    """Train a site's own model; where it diverges, the other sites' are no worse for it."""
    try:
        return _alone(work, site, [site])
    except DivergedError:
        if len(work.local) == 1:
            raise
        why = Path(work.folder) / site / "traceback.txt"
        write_atomically(why, traceback.format_exc().encode())
        return [{"trained_on": site, "status": "diverged"}]


def _alone(work: Work, trained_on: str, members: list[str]) -> list[dict[str, Any]]:
    """Train one model on the pooled scans of ``members``; test it at every site.

    What is released, and when it is validated, follows the rules of a federation with a single
    participant.
    """
    config = pooled_config(work.config, len(members), work.centralized_batch)
    folder = Path(work.folder) / trained_on
    with compute_device(config, granted()) as device:
        training = _Training(work, config, Place(trained_on, tuple(work.sites), device), folder)
        rows = training.run(members)
        return rows + training.test()


class _Training:
    """A model that is trained in one place.

    Parameters
    ----------
    work : Work
    config : RunConfig
        With the steps and images of the pool.
    place : Place
    folder : Path
        The model's own.
    """

    def __init__(self, work: Work, config: RunConfig, place: Place, folder: Path) -> None:
        self.work, self.config, self.place, self.folder = work, config, place, folder
        self.task = load_task(config.task)
        self.best: BestRound[tuple[State, State, dict[str, float]]] = BestRound()

    def run(self, members: list[str]) -> list[dict[str, Any]]:
        """Do every round, and keep the best on the members' validation scans."""
        task, config, place = self.task, self.config, self.place
        train = pool([self._load(site, "train") for site in members])
        validation = {site: self._load(site, "val") for site in members}
        log = MetricsLog(self.folder / METRICS)
        model, private = task.build_model(config, place), {}
        task.warm_start(model, config)
        released = task.first_release(model, config)
        rows: list[dict[str, Any]] = []
        began = time.monotonic()
        for number in range(1, config.run.rounds + 1):
            fit = task.fit(model, train, config, place=place, round_number=number, private=private)
            private = fit.private
            shared = task.shared_state(model, config)
            released = task.release(released, shared, config, round_number=number, participants=1)
            if not due(number, config.run.evaluate_every, config.run.rounds):
                continue
            found = {
                site: task.evaluate(
                    released,
                    lambda split, site=site, data=data: (
                        data if split == "val" else self._load(site, split)
                    ),
                    "val",
                    config,
                    place=self._at(site),
                )
                for site, data in validation.items()
            }
            verdict = task.judge(found, config)
            self.best.offer(number, verdict.loss, (released, shared, fit.metrics))
            seconds = round(time.monotonic() - began, 3)
            curve = _curve(found, verdict, number, "val", seconds)
            log.append(curve)
            rows += [_result(place.site, row, config, number) for row in curve]
            task.illustrate(self.folder, released, config, round_number=number, place=place)
        if self.best.model is None:
            raise DivergedError("no round had a finite validation loss: the run has diverged")
        return rows

    def test(self) -> list[dict[str, Any]]:
        """Read the test scans of every site, once, and judge the selected model by them."""
        task, config, place, number = self.task, self.config, self.place, self.best.round_number
        released, shared, fit_metrics = self.best.model
        task.save(self.folder, released, shared, config, round_number=number, place=place)
        found = {
            site: task.evaluate(
                released,
                partial(self._load, site),
                "test",
                config,
                place=self._at(site),
                records=Path(self.work.records) / site / self.work.cell.name / place.site,
            )
            for site in self.work.sites
        }
        verdict = task.judge(found, config)
        whole, sites = task.summary(
            found, verdict, {place.site: fit_metrics}, config, round_number=number
        )
        write_json(self.folder / SUMMARY, {"best_round": number, **whole, "sites": sites})
        rows = _curve(found, verdict, number, "test", 0.0)
        return [_result(place.site, row, config, config.run.rounds) for row in rows]

    def _load(self, site: str, split: str) -> Any:
        return self.task.open_split(
            site, Path(self.work.sites[site]), split, self.config, cache_dir()
        )

    def _at(self, site: str) -> Place:
        return replace(self.place, site=site)


def _curve(
    found: Mapping[str, Evaluation], verdict: Verdict, number: int, split: str, seconds: float
) -> list[Row]:
    """Turn evaluations into rows of a metrics log; of a validation, what is kept of it."""
    count = sum(one.count for one in found.values())
    rows = [
        Row(number, site, split, name, value, one.count, seconds)
        for site, one in found.items()
        for name, value in one.metrics.items()
    ]
    rows += [Row(number, POOL, split, name, v, count, seconds) for name, v in verdict.whole.items()]
    return [row for row in rows if split == "test" or row.name in CURVES]


def pooled_config(config: RunConfig, members: int, centralized_batch: str) -> RunConfig:
    """Give a pool of sites the images that they would see one by one, in either reading.

    Raises
    ------
    ConfigError
        If no training can be had with as large a batch or as many steps.
    """
    values = config.to_flower()
    key = "training.batch-size" if centralized_batch == "large" else "training.local-steps"
    return config.replace({key: values[key] * members})


def _result(
    trained_on: str, row: Row, config: RunConfig, rounds: int, participants: int = 1
) -> dict[str, Any]:
    """Turn a row of a metrics log into one of the results, with the budget spent after rounds."""
    steps = rounds * config.training.local_steps
    return {
        "trained_on": trained_on,
        "tested_on": row.site,
        "split": row.split,
        "metric": row.name,
        "value": row.value,
        "n": row.n,
        "steps": steps,
        "images_seen": steps * config.training.batch_size * participants,
        "rounds": rounds,
        "bytes_up": 0,
        "bytes_down": 0,
    }


def _federated(work: Work) -> list[dict[str, Any]]:
    """Run the Flower app through ``flwr run``; its sites keep their own records."""
    from simulations.federate import federate
    from simulations.launch import Resources

    config = work.config.replace({"run.output-dir": work.folder})
    count = len(work.sites)
    resources = Resources(count, config.run.threads, work.gpus / count, work.cpus)
    # The sites' processes inherit it: what they predict goes to their own side of the benchmark.
    os.environ["FEDSCAN_RECORDS"] = work.records
    run_folder, summary = federate(config, resources, quiet=True)
    spent = {"bytes_up": summary["bytes_up"], "bytes_down": summary["bytes_down"]}
    rows = []
    for row in read_rows(run_folder / METRICS):
        if row.name.startswith(BYTES) or row.name == UNUSABLE:
            continue
        if row.split == "test" or (row.split == "val" and row.name in CURVES):
            rounds = summary["rounds"] if row.split == "test" else row.round
            told = _result(POOL, row, config, rounds, participants=count)
            rows.append(told | (spent if row.split == "test" else {}))
    run_folder.rename(run_folder.with_name(POOL))
    for site in work.sites:
        records = Path(work.records) / site
        make_folder(records / work.cell.name)
        shutil.move(records / str(summary["run_id"]), records / work.cell.name / POOL)
    return rows


def _use(work: Work) -> pd.DataFrame:
    """See what the generators' pictures are good for: classifiers trained with and without them."""
    from simulations.synthetic_use import use_of_synthetic

    config = work.config
    poor = work.local[0]
    folders = {site: Path(path) for site, path in work.sites.items()}
    models = {name: Path(path) for name, path in work.models.items()}
    with compute_device(config, granted()) as device:
        table = use_of_synthetic(folders, models, poor, config, config.run.seed, device=device)
    federated = [
        {
            "seed": config.run.seed,
            "row": "federated classifier",
            "site": row["tested_on"],
            **{key: row[key] for key in ("metric", "value", "n")},
        }
        for row in _federated(work)
        if row["split"] == "test" and row["metric"] in set(table["metric"])
    ]
    return pd.concat([table, pd.DataFrame(federated)], ignore_index=True)
