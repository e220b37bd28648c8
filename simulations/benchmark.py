"""One comparison in one folder: begin, run what is missing, collect.

A cell leaves its rows and status in its own folder, whole or not at all. What is missing there is
what ``--resume`` runs; ``results.csv`` and what follows from it are made anew from the cells.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import ConfigError, FileError
from common.files import make_folder, write_atomically, write_json
from common.machine import processor, usable_cpus
from common.provenance import versions
from common.reading import read_json
from common.tasks.task import survey
from simulations.arms import POOL
from simulations.cell_progress import run_cells
from simulations.collect import (
    RESULTS,
    SAMPLES,
    SUMMARY,
    read_rows_of,
    summarize_cells,
    write_samples,
)
from simulations.folders import in_words, locked
from simulations.plan import PRETRAINING, USE, Cell, Plan
from simulations.question import (
    MANIFEST,
    check_folder,
    differing,
    question,
    require_same,
    usual,
)
from simulations.results import COLUMNS
from simulations.schedule import MISSING, STATUS, status_of
from simulations.site_details import people_at
from simulations.work import Work

STATE = "state"  # a federation's, at its sites, while it runs
FINAL = ("done", "diverged")  # running such a cell again would end in the same way


class Benchmark:
    """One comparison in one folder.

    Parameters
    ----------
    plan : Plan
    sites : dict of str to Path
        Folder of each site's data set.
    cohorts : dict of int to dict of str to Path, optional
        The same for the seed of every repetition, where each has people of its own; then ``sites``
        are the first's.
    base : dict
        Run-config values that hold for every cell, under the plan's own.
    folder : Path
    gpus_per_cell : float
    cell_timeout : float
        Seconds after which a cell is ended.
    ray_address : str
        Of the Ray cluster on whose nodes the cells run; empty for this machine alone.

    Raises
    ------
    ConfigError
        For a configuration that is not accepted, or a site with the name of a cell's file.
    """

    def __init__(
        self,
        plan: Plan,
        sites: Mapping[str, Path],
        base: Mapping[str, Any],
        folder: Path,
        *,
        gpus_per_cell: float = 0.0,
        cell_timeout: float = 3600.0,
        ray_address: str = "",
        cohorts: Mapping[int, Mapping[str, Path]] | None = None,
    ) -> None:
        self.plan, self.base, self.folder = plan, base, folder
        self.sites = _in_order(sites)
        self.cohorts = {seed: _in_order(found) for seed, found in (cohorts or {}).items()}
        self.gpus_per_cell, self.cell_timeout = gpus_per_cell, cell_timeout
        self.ray_address = ray_address
        if taken := {RESULTS, STATUS} & self.sites.keys():  # a cell's folder has a folder a site
            raise ConfigError(
                f"site '{min(taken)}': a comparison has files of that name. Rename the folder of "
                "the data set"
            )
        self.config = usual(plan, base)

    def run(self, *, resume: bool) -> None:
        """Run every cell that is missing, then write results, summary and samples.

        Raises
        ------
        ConfigError
            If the folder holds another comparison, or one that was not asked to be resumed.
        """
        check_folder(self.folder, resume=resume)
        make_folder(self.folder)
        with locked(self.folder):
            self._run(resume)

    def _run(self, resume: bool) -> None:
        self._begin(resume)
        for stage in self.plan.stages():
            if missing := [cell for cell in stage if self._status(cell) not in FINAL]:
                self._clear(missing)
                try:
                    self._schedule(missing)
                finally:  # nothing of it runs any more
                    self._forget_private_state()
            if stage[0].arm != PRETRAINING:  # what has been compared can be read while others run
                # Its bugs need their traceback; not so what is in a folder that was handed over.
                remedy = "Remove the folder cells, and --resume trains all anew"
                with in_words(self.folder, remedy) if resume else contextlib.nullcontext():
                    self._collect()

    def _clear(self, cells: list[Cell]) -> None:
        """Remove what interrupted attempts left, and what was made from models that now change."""
        stale = [Cell(USE, "", seed) for seed in {cell.seed for cell in cells}]
        for cell in [*cells, *stale]:
            shutil.rmtree(self._cell(cell), ignore_errors=True)
            for site in self.sites:
                shutil.rmtree(self._records / site / cell.name, ignore_errors=True)
        self._forget_private_state()

    def _forget_private_state(self) -> None:
        """Remove what federations that did not come to their end have left at the sites."""
        for site in self.sites:  # their records have the run's number until the end
            for left in [self._records / site / STATE, *(self._records / site).glob("[0-9]*")]:
                if left.name == STATE or left.name[0].isdecimal():
                    shutil.rmtree(left, ignore_errors=True)

    @property
    def _records(self) -> Path:
        return self.folder / "sites"

    def _cell(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name

    def _status(self, cell: Cell) -> str:
        return status_of(self._cell(cell))

    def _begin(self, resume: bool) -> None:
        check_folder(self.folder, resume=resume)  # again: another may have been faster
        asked = {**question(self.plan, self.base), "sites": self._survey(self.sites)}
        asked["repeated"] = self._repeated
        if self.cohorts:
            asked["cohorts"] = {str(k): self._survey(found) for k, found in self.cohorts.items()}
        require_same(self.folder, asked)
        if not (self.folder / MANIFEST).is_file():
            write_json(self.folder / MANIFEST, self._manifest(asked))

    def _survey(self, sites: Mapping[str, str]) -> dict[str, dict[str, int]]:
        return {name: survey(name, Path(path), self.config) for name, path in sites.items()}

    @property
    def _repeated(self) -> str:
        """What varies between repetitions, in words."""
        if self.plan.repetitions == 1:
            return ""
        if self.cohorts:
            return "every repetition has people of its own, to train and to test, and its own seed"
        return "all repetitions are of one cohort and differ in the seed of training alone"

    def _manifest(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        counts, plan = asked["sites"], self.plan
        return {
            **asked,
            "description": plan.description,
            "new_cohorts": bool(self.cohorts),
            "reference": plan.reference_strategy,
            "contrasts": plan.compared_contrasts,
            "differing": differing(self.plan, self.base),
            "poor_site": min(counts, key=lambda name: (counts[name]["n_train"], name)),
            "versions": versions(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": {
                "cpus": usable_cpus(),
                "gpus_per_cell": self.gpus_per_cell,
                "processor": processor(),
            },
        }

    def _schedule(self, cells: list[Cell]) -> None:
        works = [(self._work(cell), self._rounds(cell)) for cell in cells]
        run_cells(self.folder, "Comparing", "simulations.schedule", works, self.ray_address)

    def _rounds(self, cell: Cell) -> int:
        """Rounds of all models that a cell trains."""
        models = len(self._local) if cell.arm == "local" else 1
        return models * self.plan.config(cell, self.base).run.rounds

    @property
    def _local(self) -> list[str]:
        """Sites that train by themselves."""
        return [self._poor] if self.plan.local == "poor" else list(self.sites)

    @cached_property
    def _poor(self) -> str:
        poor = read_json(self.folder / MANIFEST).get("poor_site")
        if poor not in self.sites:
            remedy = "Restore it, or give another --out"
            raise FileError(self.folder / MANIFEST, "names no site of these as poor_site", remedy)
        return poor

    def _work(self, cell: Cell) -> Work:
        def models(name: str) -> str:
            return str((self.folder / "cells" / name).absolute())

        config = self.plan.config(
            cell, self.base, features=models(f"{PRETRAINING}-seed{cell.seed}/{POOL}")
        )
        return Work(
            cell=cell,
            run=config.to_flower(),
            sites=self.cohorts.get(cell.seed, self.sites),
            folder=str(self._cell(cell)),
            records=str(self._records),
            centralized_batch=self.plan.centralized_batch,
            local=[self._poor] if cell.arm == USE else self._local,
            models={
                name: models(f"{made.name}/{trained_on}")
                for name, made, trained_on in self._generators(cell.seed)
            }
            if cell.arm == USE
            else {},
            cpus=config.run.threads,
            gpus=self.gpus_per_cell,
            timeout=self.cell_timeout,
            in_place=self.plan.in_place,
            membership=self.plan.membership,
        )

    def _generators(self, seed: int) -> list[tuple[str, Cell, str]]:
        """Name, cell and site or pool of the seed's generators, as far as they were made."""
        wanted = [
            ("local GAN", Cell("local", "", seed), self._poor),
            ("federated GAN", Cell("federated", self.plan.reference_strategy, seed), POOL),
            ("pooled GAN", Cell("centralized", "", seed), POOL),
        ]
        made = [cell for cell in self.plan.cells() if self._status(cell) == "done"]
        return [one for one in wanted if one[1] in made]

    def _collect(self) -> None:
        """Write results, summary and sample images from the cells' folders."""
        cells = self.plan.cells()
        parts = [
            read_rows_of(self.folder, cell)
            for cell in cells
            if (self._cell(cell) / RESULTS).is_file()
        ]
        order = ["arm", "strategy", "seed", "trained_on", "split", "rounds", "tested_on", "metric"]
        results = pd.concat(parts)[COLUMNS].sort_values(order, kind="stable", ignore_index=True)
        write_atomically(self.folder / RESULTS, results.to_csv(index=False).encode())
        manifest = read_json(self.folder / MANIFEST)
        manifest["seconds"] = round(float(_cell_seconds(results).sum()), 1)
        write_json(self.folder / MANIFEST, manifest)
        every = [cell for stage in self.plan.stages() for cell in stage]
        summary = summarize_cells(
            self.folder,
            self.plan,
            self.config,
            manifest["sites"],
            results,
            new_cohorts=bool(self.cohorts),
            poor_site=self._poor,
            used=[c for c in every if c.arm == USE and self._status(c) == "done"],
        )
        summary["unfinished"] = [
            {"arm": cell.arm, "seed": cell.seed, "status": self._status(cell)}
            for cell in every
            if cell.arm in (PRETRAINING, USE) and self._status(cell) not in ("done", MISSING)
        ]  # cells that the results do not know
        summary["people"] = people_at(self.config.read_study(), self.sites)
        write_json(self.folder / SUMMARY, summary)
        write_samples(self.folder / SAMPLES, self.sites, self.config)


def _in_order(sites: Mapping[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in sorted(sites.items())}


def _cell_seconds(results: pd.DataFrame) -> pd.Series:
    return results.groupby(["arm", "strategy", "seed"], dropna=False)["seconds"].max()
