"""One comparison in one folder: begin, run what is missing, collect.

A cell leaves its rows and status in its own folder, whole or not at all. What is missing there is
what ``--resume`` runs; ``results.csv`` and what follows from it are made anew from the cells.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import ConfigError, FedscanError
from common.files import write_atomically, write_json
from common.paths import cache_dir
from common.provenance import PACKAGES, source_hash, versions
from common.tasks import load_task
from simulations import console
from simulations.arms import COLUMNS, Work
from simulations.folders import locked, require_empty
from simulations.launch import leashed, neutral_home, offline_environment, usable_cpus
from simulations.plan import Cell, Plan

RESULTS, SUMMARY, MANIFEST, SAMPLES = (
    "results.csv",
    "summary.json",
    "manifest.json",
    "samples.npz",
)
WORK = "work.json"  # what the scheduler is to do; there only while it does
FINAL = ("done", "diverged")  # running such a cell again would end in the same way
SAMPLE_SCANS = 6
POLL_SECONDS = 1.0


class Benchmark:
    """One comparison in one folder.

    Parameters
    ----------
    plan : Plan
    sites : dict of str to Path
        Folder of each site's data set.
    base : dict
        Run-config values that hold for every cell, under the plan's own.
    folder : Path
    gpus_per_cell : float
    cell_timeout : float
        Seconds after which a cell is ended.
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
    ) -> None:
        self.plan, self.base, self.folder = plan, base, folder
        self.sites = {name: str(path) for name, path in sorted(sites.items())}
        self.gpus_per_cell, self.cell_timeout = gpus_per_cell, cell_timeout
        self.config = plan.config(plan.cells()[0], base)

    def run(self, *, resume: bool) -> None:
        """Run every cell that is missing, then write results, summary and samples.

        Raises
        ------
        ConfigError
            If the folder holds another comparison, or one that was not asked to be resumed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MANIFEST).is_file():
            require_empty(self.folder)
        with locked(self.folder):
            self._run(resume)

    def _run(self, resume: bool) -> None:
        self._begin(resume)
        missing = [cell for cell in self.plan.cells() if self._status(cell) not in FINAL]
        for cell in missing:  # what an interrupted attempt left is no part of the result
            shutil.rmtree(self._cell(cell), ignore_errors=True)
            for site in self.sites:
                shutil.rmtree(self._records / site / cell.name, ignore_errors=True)
        if missing:
            self._schedule(missing)
        self._collect()

    @property
    def _records(self) -> Path:
        return self.folder / "sites"

    def _cell(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name

    def _status(self, cell: Cell) -> str:
        path = self._cell(cell) / "status.json"
        return json.loads(path.read_text())["status"] if path.is_file() else "missing"

    def _begin(self, resume: bool) -> None:
        manifest = self._manifest()
        path = self.folder / MANIFEST
        if not path.is_file():
            write_json(path, manifest)
            return
        if not resume:
            raise ConfigError(
                f"{self.folder} holds a comparison. Continue it with --resume, or give another "
                "--out"
            )
        try:
            before = dict(json.loads(path.read_text()))
        except ValueError:
            before = {}
        for key in ("config", "arms", "strategies", "seeds", "budget", "source_hash", "sites"):
            if before.get(key) != json.loads(json.dumps(manifest[key])):
                raise ConfigError(
                    f"{self.folder} holds a comparison with another {key.replace('_', ' ')}. "
                    "Resume it as it was begun, or give another --out"
                )

    def _manifest(self) -> dict[str, Any]:
        config, plan = self.config, self.plan
        task = load_task(config.task)
        counts = {name: task.survey(name, Path(path)) for name, path in self.sites.items()}
        images = config.total_steps * config.batch_size
        return {
            "description": plan.description,
            "config": {**config.to_flower(), **self._proximal(), "seed": 0},
            "arms": list(plan.arms),
            "strategies": list(plan.strategies),
            "seeds": list(range(plan.seeds)),
            "sites": counts,
            "poor_site": min(counts, key=lambda name: (counts[name]["n_train"], name)),
            "budget": {
                "steps": config.total_steps,
                "batch_size": config.batch_size,
                "centralized_batch": plan.centralized_batch,
                "images_by_arm": {
                    "centralized": images * len(self.sites),
                    "local": images,
                    "federated": images * len(self.sites),
                },
            },
            "versions": versions(),
            "source_hash": source_hash(packages=(*PACKAGES, "simulations")),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": {
                "cpus": usable_cpus(),
                "gpus_per_cell": self.gpus_per_cell,
                "processor": _processor(),
            },
        }

    def _proximal(self) -> dict[str, float]:
        """FedProx's μ, where a cell uses it, whichever cell's configuration is shown."""
        mus = [self.plan.config(cell, self.base).proximal_mu for cell in self.plan.cells()]
        return {"proximal-mu": max(mus)}

    def _schedule(self, cells: list[Cell]) -> None:
        """Run cells in a process of their own, on the leash, and show how far they are."""
        work = self.folder / WORK
        write_json(work, [asdict(self._work(cell)) for cell in cells])
        rounds = self.config.num_server_rounds
        with (
            neutral_home() as home,
            console.steps("Comparing", rounds * sum(map(self._models, cells))) as bar,
        ):
            command = [sys.executable, "-m", "simulations.schedule", str(work)]
            log = self.folder / "cells" / "ray.log"
            log.parent.mkdir(exist_ok=True)
            with leashed(
                command, cwd=home, environment=offline_environment(home), log_path=log
            ) as leash:
                while not leash.ended(POLL_SECONDS):
                    self._show_rounds(cells, bar)
                self._show_rounds(cells, bar)
        work.unlink()
        if lost := [cell.name for cell in cells if self._status(cell) == "missing"]:
            raise FedscanError(
                f"the scheduler ended before {', '.join(lost)}; see {log}. Go on with --resume"
            )

    def _models(self, cell: Cell) -> int:
        return len(self.sites) if cell.arm == "local" else 1

    def _work(self, cell: Cell) -> Work:
        config = self.plan.config(cell, self.base)
        return Work(
            cell=cell,
            run=config.to_flower(),
            sites=self.sites,
            folder=str(self._cell(cell)),
            records=str(self._records),
            centralized_batch=self.plan.centralized_batch,
            cpus=config.threads,
            gpus=self.gpus_per_cell,
            timeout=self.cell_timeout,
        )

    def _show_rounds(self, cells: list[Cell], bar: console.Steps) -> None:
        done = 0
        for cell in cells:
            if self._status(cell) != "missing":
                done += self._models(cell) * self.config.num_server_rounds
            else:
                done += sum(map(_rounds_in, self._cell(cell).glob("*/metrics.jsonl")))
        running = [
            cell.name
            for cell in cells
            if (self._cell(cell) / "began").is_file() and self._status(cell) == "missing"
        ]
        if done > bar.done:
            bar.advance(done - bar.done, ", ".join(running))

    def _collect(self) -> None:
        """Write results, summary and sample scans from the cells' folders."""
        from simulations.statistics import summarize

        cells = self.plan.cells()
        parts = [
            pd.read_csv(self._cell(cell) / RESULTS)
            for cell in cells
            if (self._cell(cell) / RESULTS).is_file()
        ]
        order = ["arm", "strategy", "seed", "trained_on", "split", "rounds", "tested_on", "metric"]
        results = pd.concat(parts)[COLUMNS].sort_values(order, kind="stable", ignore_index=True)
        write_atomically(self.folder / RESULTS, results.to_csv(index=False).encode())
        predictions = {site: self._predictions(site) for site in self.sites}
        for site, frame in predictions.items():
            write_atomically(
                self._records / site / "predictions.csv",
                frame.to_csv(index=False).encode(),
                mode=0o600,
            )
        manifest = json.loads((self.folder / MANIFEST).read_text())
        manifest["seconds"] = round(float(_cell_seconds(results).sum()), 1)
        write_json(self.folder / MANIFEST, manifest)
        write_json(
            self.folder / SUMMARY,
            summarize(results, predictions, poor_site=manifest["poor_site"]),
        )
        self._write_samples()

    def _predictions(self, site: str) -> pd.DataFrame:
        parts = []
        for cell in self.plan.cells():
            for path in sorted((self._records / site / cell.name).glob("*.csv")):
                identity = {"arm": cell.arm, "strategy": cell.strategy, "seed": cell.seed}
                frame = pd.read_csv(path)
                parts.append(frame.assign(**identity, trained_on=path.stem))
        columns = ["arm", "strategy", "seed", "trained_on", "scan", "label", "probability"]
        return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)

    def _write_samples(self) -> None:
        """Keep the middle axial slice of a few training scans a site, for the report's strip."""
        import io

        task = load_task(self.config.task)
        strips = {}
        for site, path in self.sites.items():
            data = task.load_split(site, Path(path), "train", self.config, cache_dir())
            middle = data.images.shape[3] // 2
            strips[site] = np.ascontiguousarray(data.images[:SAMPLE_SCANS, :, :, middle])
        file = io.BytesIO()
        np.savez_compressed(file, **strips)
        write_atomically(self.folder / SAMPLES, file.getvalue(), mode=0o600)


def _rounds_in(path: Path) -> int:
    from common.metrics_log import read_rows

    return len({row.round for row in read_rows(path) if row.split == "val"})


def _cell_seconds(results: pd.DataFrame) -> pd.Series:
    return results.groupby(["arm", "strategy", "seed"], dropna=False)["seconds"].max()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
