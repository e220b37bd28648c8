"""Cells of a comparison run in processes of their own, and tell how far they are."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from common.errors import FedscanError
from common.files import make_folder, write_json
from common.metrics_log import MetricsTail
from common.processes.environment import neutral_home, offline_environment
from common.processes.group import process_group
from common.run_folder import METRICS
from simulations import console
from simulations.console import Steps
from simulations.launch import SHARED_NETWORK
from simulations.plan import Cell
from simulations.schedule import BEGAN, MISSING, STATUS, status_of
from simulations.work import Work

WORK = "work.json"  # what the scheduler is to do; there only while it does
POLL_SECONDS = 1.0


def run_cells(
    folder: Path, title: str, module: str, works: Sequence[tuple[Work, int]], ray_address: str = ""
) -> None:
    """Run cells in a group of processes, and show how far they are.

    Parameters
    ----------
    folder : Path
        Of the comparison.
    title : str
        Of the progress bar.
    module : str
        Python runs it with the path of the works' file.
    works : sequence of tuple of Work and int
        With the rounds of all models that each cell trains.
    ray_address : str
        Of the Ray cluster on whose nodes the cells are to run; empty for this machine alone.

    Raises
    ------
    FedscanError
        If a cell has no status in the end.
    """
    path, log = folder.absolute() / WORK, folder / "cells" / "ray.log"
    make_folder(log.parent)
    write_json(path, [asdict(work) for work, _ in works])
    progress = CellProgress({work.cell: (Path(work.folder), rounds) for work, rounds in works})
    with (
        contextlib.ExitStack() as after,
        neutral_home() as home,
        console.steps(title, progress.total) as bar,
    ):
        after.callback(path.unlink, missing_ok=True)
        # A cell's group ends by itself what the cell has started; Ray would kill it first.
        environment = {
            **offline_environment(home, ray_address),
            "RAY_kill_child_processes_on_worker_exit": "false",
        }
        command = [sys.executable, "-m", module, str(path)]
        with process_group(
            command,
            cwd=home,
            environment=environment,
            log_path=log,
            share_all=bool(ray_address),  # Ray looks among them for the node to join
        ) as group:
            if group.shares_network and not ray_address:  # there no server of Flower's is in it
                bar.tell(SHARED_NETWORK)
            while not group.ended(POLL_SECONDS):
                progress.show(bar)
            progress.show(bar)
    if lost := [work.cell.name for work, _ in works if status_of(Path(work.folder)) == MISSING]:
        raise FedscanError(
            f"the scheduler ended before {', '.join(lost)}; see {log}. Go on with --resume"
        )


class CellProgress:
    """The rounds that cells have made, and which of them failed.

    Parameters
    ----------
    cells : dict of Cell to tuple of Path and int
        The folder in which each leaves its models and, in the end, its status; and the rounds of
        all models that it trains.
    """

    def __init__(self, cells: Mapping[Cell, tuple[Path, int]]) -> None:
        self.total = sum(rounds for _, rounds in cells.values())
        self._waiting = dict(cells)
        self._ended = 0  # rounds of the others
        self._logs: dict[Path, tuple[MetricsTail, int]] = {}

    def show(self, bar: Steps) -> None:
        """Tell what is new: rounds, and at once what failed, since later it costs hours.

        A federation logs every round, a model that is trained in one place those with a validation.
        """
        for cell, (folder, rounds) in list(self._waiting.items()):
            if (status := status_of(folder)) == MISSING:
                continue
            del self._waiting[cell]
            self._ended += rounds
            if status != "done":
                bar.tell(f"{cell.name} failed: {status}; {folder / STATUS} tells why")
        folders = {cell.name: folder for cell, (folder, _) in self._waiting.items()}
        done = self._ended + sum(map(self._rounds_in, folders.values()))
        if done > bar.done:
            running = [name for name, folder in folders.items() if (folder / BEGAN).is_file()]
            bar.advance(done - bar.done, ", ".join(running))

    def _rounds_in(self, folder: Path) -> int:
        return sum(map(self._rounds_of_model, folder.glob(f"*/{METRICS}")))

    def _rounds_of_model(self, path: Path) -> int:
        log, before = self._logs.get(path) or (MetricsTail(path), 0)
        rounds = [row.round for row in log.new_rows() if row.split != "test"]
        self._logs[path] = log, max(rounds, default=before)
        return self._logs[path][1]
