"""What is told of a comparison's cells while they run."""

from __future__ import annotations

from pathlib import Path

from bars import Told

from common.metrics_log import MetricsLog, Row
from simulations.cell_progress import CellProgress
from simulations.plan import Cell
from simulations.schedule import BEGAN, end_cell


def log_round(model: Path, number: int, split: str) -> None:
    MetricsLog(model / "metrics.jsonl").append([Row(number, "north", split, "p", 0.0, 1, 1.0)])


def test_rounds_of_every_model_count_and_a_failure_is_told_at_once(tmp_path: Path) -> None:
    one, two = Cell("local", "", 0), Cell("federated", "fedavg", 0)
    folders = {cell: tmp_path / cell.name for cell in (one, two)}
    progress = CellProgress({one: (folders[one], 20), two: (folders[two], 10)})
    bar = Told()
    progress.show(bar)  # no folder is there yet
    assert (progress.total, bar.done, bar.lines) == (30, 0, [])

    for cell in (one, two):
        folders[cell].mkdir()
        (folders[cell] / BEGAN).touch()
    log_round(folders[one] / "north", 1, "val")
    log_round(folders[one] / "south", 2, "val")
    log_round(folders[two] / "17", 3, "train")
    progress.show(bar)
    assert (bar.done, bar.notes[-1]) == (1 + 2 + 3, "local-seed0, federated-fedavg-seed0")

    (folders[two] / "17").rename(folders[two] / "all")  # as a federation does when it has ended
    log_round(folders[two] / "all", 4, "train")
    log_round(folders[two] / "all", 9, "test")  # of the selected round
    progress.show(bar)
    assert bar.done == 1 + 2 + 4

    end_cell(folders[two], two, "timeout", "ended after 5 s")
    for _ in range(2):
        progress.show(bar)
    assert (bar.done, bar.notes[-1]) == (1 + 2 + 10, "local-seed0")
    assert bar.lines == [
        f"federated-fedavg-seed0 failed: timeout; {folders[two] / 'status.json'} tells why"
    ]
