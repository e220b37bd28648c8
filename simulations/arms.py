"""The arms of the comparison: the same ``fit``, steps and seeds; only the data it may see differ.

*Centralized*: all sites' training scans in one pool. *Local*: one model a site, of its scans alone.
*Federated*: the very Flower app, through ``flwr run``, or its sites one after the other, without
messages, where many short federations are compared. Each arm selects its round on validation
scans and reads the test scans once, when training is over.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from clients.resources import compute_device, granted
from common.config.run_config import RunConfig
from common.data.dataset import Dataset, pool
from common.data.unlabelled import UnlabelledError
from common.errors import AbsentError, DivergedError, FedscanError
from common.files import make_folder, write_atomically, write_json
from common.local_round import judge_at_site, train_one_round
from common.machine import usable_cpus
from common.metrics_log import BYTES, UNUSABLE, MetricsLog, Row, read_rows
from common.participation import in_training, learning_sites
from common.paths import cache_dir
from common.privacy.promises import central_statement
from common.privacy.statement import statement
from common.rounds import begin, run_rounds
from common.run_folder import MANIFEST, METRICS, SUMMARY
from common.run_state import Measured, RunState, Update
from common.selection import Judged
from common.strategies.strategy import State, load_strategy
from common.tasks.task import SiteContext, load_task, read_run_config
from simulations.plan import PRETRAINING, USE
from simulations.results import COLUMNS
from simulations.work import Work

POOL = "all"  # trained_on of a model that learned from every site
NO_NOISE = {f"privacy.central-{key}": v for key, v in (("epsilon", 0), ("delta", 0), ("norm", 1))}
CURVES = (  # what is kept of every validation
    *("loss", "balanced_accuracy"),
    *("frechet_distance", "kernel_distance", "precision", "recall"),
)


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
    if work.cell.arm == "federated" and work.in_place:
        rows = _in_place(work, POOL, {site: [site] for site in work.sites}, work.config)
    elif work.cell.arm in ("federated", PRETRAINING):
        rows = _federated(work)
    elif work.cell.arm == "centralized":
        rows = _alone(work, POOL, list(work.sites))
    elif work.cell.arm == USE:
        from simulations.synthetic_use import use_of_cell

        return use_of_cell(work, _federated(work))
    else:
        rows = [row for site in work.local for row in _own(work, site)]
    identity = {**asdict(work.cell), "seconds": round(time.monotonic() - began, 1)}
    whole = [{**identity, "status": "done", **row} for row in rows]
    return pd.DataFrame(whole, columns=COLUMNS)


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
    return _in_place(work, trained_on, {trained_on: members}, config)


def _in_place(
    work: Work, name: str, participants: Mapping[str, Sequence[str]], config: RunConfig
) -> list[dict[str, Any]]:
    """Train a cell's model of this name in this process."""
    with compute_device(config, granted()) as device:
        return train_in_place(
            participants,
            {site: Path(path) for site, path in work.sites.items()},
            config,
            place=SiteContext(name, tuple(work.sites), device),
            folder=Path(work.folder) / name,
            records=(Path(work.records), Path(work.cell.name) / name),
        )


def train_in_place(
    participants: Mapping[str, Sequence[str]],
    folders: Mapping[str, Path],
    config: RunConfig,
    *,
    place: SiteContext,
    folder: Path,
    records: tuple[Path, Path],
) -> list[dict[str, Any]]:
    """Run all rounds in this process, and test the selected model at every site.

    Parameters
    ----------
    participants : mapping of str to sequence of str
        Whose images each participant trains on: a pool of sites, or a site by itself. With several
        participants it is a federation without messages.
    folders : mapping of str to Path
        Each site's data.
    config : RunConfig
    place : SiteContext
        Its site is the model's name in the results.
    folder : Path
        For the model, its log and its summary.
    records : (Path, Path)
        The folder above all sites' own records, and the model's folder in each.

    Returns
    -------
    list of dict
        Rows of results.

    Raises
    ------
    DivergedError
        If no round had a finite validation loss.
    """
    sites = SitesInPlace(
        participants, folders, config, place=place, log=folder / METRICS, records=records
    )
    state = replace(begin(config, place), secret_noise=False)
    result = run_rounds(state, config, sites, place=place, folder=folder)
    test = result.test
    whole, each = load_task(config.task).summary(
        test.evaluations, test.merged, result.fits, config, round_number=result.round
    )
    told = {site: {**used, **each.get(site, {})} for site, used in sites.used.items()}
    about = {
        "config": config.to_flower(),
        "folders": {site: str(path) for site, path in folders.items()},
        "trained_on": sorted({site for members in participants.values() for site in members}),
    }
    write_json(folder / MANIFEST, about)
    number = len(learning_sites(sites.names, config))
    promised = central_statement(config, number, secret_noise=state.secret_noise)
    promised |= statement(config, result.fits, state.fits)
    about_model = {"best_round": result.round, **whole, **promised, "sites": told}
    write_json(folder / SUMMARY, about_model)
    return sites.rows


class SitesInPlace:
    """Sites of this process as the loop of rounds sees them; see :func:`train_in_place`."""

    def __init__(
        self,
        participants: Mapping[str, Sequence[str]],
        folders: Mapping[str, Path],
        config: RunConfig,
        *,
        place: SiteContext,
        log: Path,
        records: tuple[Path, Path],
    ) -> None:
        self.config, self.folders, self.place, self.records = config, folders, place, records
        self.task, self.log = load_task(config.task), MetricsLog(log)
        self.names = tuple(sorted(participants))
        self.used: dict[str, dict[str, int]] = {site: {} for site in folders}  # files, by split
        members = {site for sites in participants.values() for site in sites}
        self.members = [site for site in folders if site in members]
        # What every round reads; sites that do not take part are tested alone.
        self.opened: dict[str, dict[str, Dataset]] = {
            "train": {site: self._load(site, "train") for site in self.members}
        }
        self.data = {
            name: pool([self.opened["train"][site] for site in participants[name]])
            for name in self.names
        }
        self.opened["val"] = {}
        for site in self.members:
            with suppress(UnlabelledError):  # which validation tells again
                self.opened["val"][site] = self._load(site, "val")
        self.models = {name: self.task.build_model(config, self._at(name)) for name in self.names}
        self.rows: list[dict[str, Any]] = []
        self.rounds_done = 0
        self.began = time.monotonic()

    def train(self, number: int, weights: State, state: RunState) -> dict[str, Update]:
        """Train one participant after the other, but for those that are away."""
        updates = {}
        for name in in_training(number, self.names, self.config):
            first = {} if name in state.private else state.unshared
            try:
                done = train_one_round(
                    self.task,
                    self.models[name],
                    self.data[name],
                    self.config,
                    received={**first, **weights},
                    private=state.private.get(name, {}),
                    place=self._at(name),
                    round_number=number,
                )
            except AbsentError as error:
                state.incidents.lose(number, name, f"train, round {number}", str(error))
                continue
            state.private[name] = done.private
            updates[name] = Update(self.data[name].files, done.metrics, done.sent)
        least = min(max(1, self.config.run.min_replies), len(self.names))
        if len(updates) < least:
            raise FedscanError(
                f"round {number}: {len(updates)} of {len(self.names)} sites are there, and "
                f"run.min-replies is {least}. Lower it, or trouble.dropout"
            )
        return updates

    def evaluate(self, number: int, released: State, split: str, state: RunState) -> Judged:
        """Judge at the participants' sites, or, on test scans, at all; these are read now."""
        private = state.best.private if split == "test" and state.best else state.private
        found = {}
        for site in self.members if split == "val" else self.folders:
            above, below = self.records
            found[site] = judge_at_site(
                self.task,
                released,
                partial(self._opened, site),
                split,
                self.config,
                private=private.get(site, {}),
                place=self._at(site),
                round_number=number,
                records=above / site / below if split == "test" else None,
            )
        found = {site: one for site, one in found.items() if one.count}
        if not found:
            return Judged(None, {})
        merged = self.task.judge(found, self.config)
        undefined = frozenset() if math.isfinite(merged.loss) else frozenset(found)
        return Judged(merged, found, undefined=undefined)

    def settle(
        self, number: int, used: Collection[str], refused: Mapping[str, str], state: RunState
    ) -> None:
        """Count a round in which a participant's update is not used."""
        del used
        for site, why in refused.items():
            state.incidents.lose(number, site, f"train, round {number}", why)

    def keep(self, state: RunState) -> None:
        """Keep nothing but their number: a cell that is interrupted begins anew."""
        self.rounds_done = state.round

    def record(self, number: int, split: str, measured: Measured) -> None:
        """Write the curves to the model's log, and all that is a result to its rows."""
        if split == "train":
            return
        seconds = round(time.monotonic() - self.began, 3)
        rows = [
            Row(number, site, split, name, value, count, seconds)
            for site, (count, metrics) in measured.items()
            for name, value in metrics.items()
            if split == "test" or name in CURVES
        ]
        if split == "val":
            self.log.append(rows)
        rounds = number if split == "val" else self.rounds_done
        images = [len(data) for data in self.data.values()]
        self.rows += [_result(self.place.site, row, self.config, rounds, images) for row in rows]

    def _opened(self, site: str, split: str) -> Dataset:
        known = self.opened.get(split, {})
        return known[site] if site in known else self._load(site, split)

    def _load(self, site: str, split: str) -> Dataset:
        data = self.task.open_split(site, self.folders[site], split, self.config, cache_dir())
        if split == "test" or site in self.members:  # others adapt a model to themselves alone
            self.used[site][f"n_{split}"] = data.files
        return data

    def _at(self, site: str) -> SiteContext:
        return replace(self.place, site=site)


def pooled_config(config: RunConfig, members: int, centralized_batch: str) -> RunConfig:
    """Give a pool of sites the images that they would see one by one, in either reading.

    Raises
    ------
    ConfigError
        If no training can be had with as large a batch or as many steps.
    """
    # Nobody is averaged with: there is neither a server's step along an average nor its noise.
    values = {**config.to_flower(), "strategy.server-learning-rate": 0.0, **NO_NOISE}
    key = "training.batch-size" if centralized_batch == "large" else "training.local-steps"
    return read_run_config({**values, key: values[key] * members})


def _result(
    trained_on: str, row: Row, config: RunConfig, rounds: int, images: Sequence[int]
) -> dict[str, Any]:
    """Turn a row of a metrics log into one of the results, with the budget spent after rounds.

    ``images`` are those of each participant; ``steps`` is what the one with the most has made.
    """
    steps = [rounds * config.local_steps(count) for count in images]
    return {
        "trained_on": trained_on,
        "tested_on": row.site,
        "split": row.split,
        "metric": row.name,
        "value": row.value,
        "n": row.n,
        "steps": max(steps),
        "images_seen": sum(steps) * config.training.batch_size,
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
    # One site more side by side than the cell's CPUs hold, as far as there are more: else the arm
    # that takes longest would end on one CPU while the others are idle.
    cpus = max(work.cpus, min(work.cpus + config.run.threads, usable_cpus()))
    resources = Resources(count, config.run.threads, work.gpus / count, cpus)
    # The sites' processes inherit it: what they predict goes to their own side of the benchmark.
    os.environ["FEDSCAN_RECORDS"] = work.records
    phantoms = {site: Path(at) for site, at in work.sites.items()}
    run_folder, summary = federate(config, resources, phantoms=phantoms, quiet=True)
    spent = {"bytes_up": summary["bytes_up"], "bytes_down": summary["bytes_down"]}
    strategy = load_strategy(config.strategy.name)
    trained = {n: one for n, one in summary["sites"].items() if strategy.trains_at(n, config)}
    images, rows = [one["n_train"] for one in trained.values()], []
    for row in read_rows(run_folder / METRICS):
        if row.name.startswith(BYTES) or row.name == UNUSABLE:
            continue
        if row.split == "test" or (row.split == "val" and row.name in CURVES):
            rounds = summary["rounds_done"] if row.split == "test" else row.round
            found = _result(POOL, row, config, rounds, images)
            rows.append(found | (spent if row.split == "test" else {}))
    run_folder.rename(run_folder.with_name(POOL))
    for site in work.sites:
        records = Path(work.records) / site
        make_folder(records / work.cell.name)
        shutil.move(records / str(summary["run_id"]), records / work.cell.name / POOL)
    return rows
