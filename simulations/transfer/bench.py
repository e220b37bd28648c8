"""One transfer in one folder: begin, run what is missing, collect."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from common.files import make_folder, write_atomically, write_json
from common.machine import processor, usable_cpus
from common.provenance import PACKAGES, source_hash, versions
from simulations.arms import POOL
from simulations.benchmark import FINAL
from simulations.cell_progress import run_cells
from simulations.collect import RESULTS, SUMMARY
from simulations.folders import locked
from simulations.plan import Cell
from simulations.question import MANIFEST, check_folder, require_same
from simulations.results import read_table
from simulations.schedule import end_cell, status_of
from simulations.transfer.curve import markdown, summarize
from simulations.transfer.figure import draw
from simulations.transfer.plan import AS_IT_IS, SCRATCH, SOURCE, TARGET, Plan, Protocol
from simulations.transfer.run import COLUMNS, TransferWork

REPORT, FIGURE = "report.md", "transfer.png"
NUMBERS = ("seed", "scans", "value", "n", "steps")


class Transfer:
    """One transfer in one folder.

    Parameters
    ----------
    plan : Plan
    target : str
    cohorts : dict of int to dict of str to Path
        Each repetition's hospitals.
    protocol : Protocol
    folder : Path
    cohort : str
        What the hospitals are, for the manifest.
    gpus_per_cell : float
    cell_timeout : float
        Seconds after which a cell is ended.
    """

    def __init__(
        self,
        plan: Plan,
        target: str,
        cohorts: Mapping[int, Mapping[str, Path]],
        protocol: Protocol,
        folder: Path,
        *,
        cohort: str,
        gpus_per_cell: float = 0.0,
        cell_timeout: float = 3600.0,
        ray_address: str = "",
    ) -> None:
        self.plan, self.target, self.protocol, self.folder = plan, target, protocol, folder
        self.cohorts = {
            seed: {name: str(path) for name, path in sorted(sites.items())}
            for seed, sites in cohorts.items()
        }
        self.cohort, self.gpus_per_cell, self.cell_timeout = cohort, gpus_per_cell, cell_timeout
        self.ray_address = ray_address

    def run(self, *, resume: bool) -> dict[str, Any]:
        """Run every cell that is missing, then write results, summary, figure and report.

        Raises
        ------
        ConfigError
            If the folder holds something else, or was not asked to be resumed.
        """
        check_folder(self.folder, resume=resume)
        make_folder(self.folder)
        with locked(self.folder):
            check_folder(self.folder, resume=resume)  # again: another may have been faster
            asked = self._question()
            require_same(self.folder, asked)
            if not (self.folder / MANIFEST).is_file():
                about = {"versions": versions(), "processor": processor(), "cpus": usable_cpus()}
                began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                write_json(self.folder / MANIFEST, {**asked, **about, "started": began})
            for stage in self.plan.stages():
                missing = [cell for cell in stage if status_of(self._cell(cell)) not in FINAL]
                ready = [cell for cell in missing if self._has_source(cell)]
                for cell in missing:
                    if cell not in ready:
                        make_folder(self._cell(cell))
                        end_cell(self._cell(cell), cell, "error", "its source has no model")
                if ready:
                    self._clear(ready)
                    self._schedule(ready)
            return self._collect()

    def unfinished(self) -> list[str]:
        """Names of the cells that did not end as done."""
        cells = [cell for stage in self.plan.stages() for cell in stage]
        found = {cell.name: status_of(self._cell(cell)) for cell in cells}
        return [f"{name} ({status})" for name, status in found.items() if status != "done"]

    def _question(self) -> dict[str, Any]:
        config = self.plan.config(TARGET, SCRATCH, self.plan.first_repetition)
        return {
            "kind": "transfer",
            "plan": self.plan.model_dump(),
            "config": config.to_flower(),
            "target": self.target,
            "sites": list(self.cohorts[self.plan.first_repetition]),
            "cohort": self.cohort,
            "protocol": {"folds": self.protocol.folds, "sizes": list(self.protocol.sizes)},
            "source_hash": source_hash(packages=(*PACKAGES, "simulations")),
        }

    def _cell(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name

    def _source(self, seed: int) -> Path:
        return self._cell(Cell(SOURCE, "", seed)) / POOL

    def _has_source(self, cell: Cell) -> bool:
        """Tell whether there is what a cell begins with."""
        if cell.arm == SOURCE or cell.strategy == SCRATCH:
            return True
        return status_of(self._cell(Cell(SOURCE, "", cell.seed))) == "done"

    def _clear(self, cells: list[Cell]) -> None:
        """Remove what interrupted attempts left, but for the trainings that have ended."""
        for cell in cells:
            shutil.rmtree(self._cell(cell), ignore_errors=True)
            if cell.arm == SOURCE:  # and with it all that began with its model
                begun = [name for name in (AS_IT_IS, *self.plan.methods) if name != SCRATCH]
                for stale in [cell, *(Cell(TARGET, name, cell.seed) for name in begun)]:
                    shutil.rmtree(self._cell(stale), ignore_errors=True)
                    for records in (self.folder / "sites").glob(f"*/{stale.name}"):
                        shutil.rmtree(records, ignore_errors=True)

    def _work(self, cell: Cell) -> TransferWork:
        sites = self.cohorts[cell.seed]
        of_source = cell.arm == SOURCE
        method, source = cell.strategy, str(self._source(cell.seed).absolute())
        config = self.plan.config(cell.arm, method, cell.seed, source=source)
        return TransferWork(
            cell=cell,
            seed=cell.seed,
            run=config.to_flower(),
            sites={n: path for n, path in sites.items() if (n == self.target) != of_source},
            folder=str(self._cell(cell).absolute()),
            records=str((self.folder / "sites").absolute()),
            sizes=[0] if method == AS_IT_IS else list(self.protocol.sizes),
            folds=self.protocol.folds,
            cpus=config.run.threads,
            gpus=self.gpus_per_cell,
            timeout=self.cell_timeout,
        )

    def _steps(self, work: TransferWork) -> int:
        """Count what the progress bar counts of a cell: rounds, or trainings."""
        if work.cell.arm == SOURCE:
            return int(work.run["run.rounds"])
        return len(work.sizes) * max(1, work.folds)

    def _schedule(self, cells: list[Cell]) -> None:
        title = "Source" if cells[0].arm == SOURCE else "Target"
        works = [(work, self._steps(work)) for work in map(self._work, cells)]
        run_cells(self.folder, title, "simulations.transfer", works, self.ray_address)

    def _collect(self) -> dict[str, Any]:
        """Write results, summary, figure and report from the cells' folders."""
        parts = []
        for cell in (cell for stage in self.plan.stages() for cell in stage):
            if status_of(self._cell(cell)) == "done":
                remedy = f"Remove {self._cell(cell)}, and --resume trains it again"
                columns = {
                    "numbers": NUMBERS,
                    "texts": tuple(name for name in COLUMNS if name not in NUMBERS),
                }
                path = self._cell(cell) / RESULTS
                parts.append(read_table(path, self.folder, remedy=remedy, **columns))
        results = pd.concat(parts) if parts else pd.DataFrame(columns=COLUMNS)
        write_atomically(self.folder / RESULTS, results.to_csv(index=False).encode())
        sizes, methods = list(self.protocol.sizes), list(self.plan.methods)
        folds = self.protocol.folds
        tested = (
            f"Tested by {folds}-fold cross-validation by person over all scans of the target."
            if folds
            else "Tested on the target's test scans."
        )
        config = self.plan.config(TARGET, SCRATCH, self.plan.first_repetition)
        summary = {
            "kind": "transfer",
            "study": config.read_study().name,
            "target": self.target,
            "tested": tested,
            "folds": folds,
            "sizes": sizes,
            "methods": methods,
            "repetitions": self.plan.repetitions,
            "unfinished": self.unfinished(),
            **summarize(results[results["method"] != SOURCE], methods, sizes),
        }
        write_json(self.folder / SUMMARY, summary)
        write_atomically(self.folder / REPORT, markdown(summary).encode())
        write_atomically(self.folder / FIGURE, draw(summary))
        return summary
