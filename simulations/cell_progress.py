"""How far the cells of a comparison are, told while they run in processes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.metrics_log import MetricsTail
from common.run_folder import METRICS
from simulations.console import Steps
from simulations.plan import Cell
from simulations.schedule import BEGAN, MISSING, STATUS, status_of


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
