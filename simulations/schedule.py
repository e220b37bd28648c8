"""Run cells side by side on Ray, one more than there are CPUs, each in its own process.

With ``RAY_ADDRESS`` in the environment they run on the nodes of that cluster, one for each CPU.

``python -m simulations.schedule WORK.json``, started by :mod:`simulations.benchmark`. A cell ends
as *done*, *diverged*, *timeout* or *error*; one bad cell does not stop the others.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import DivergedError, FileError
from common.files import write_atomically, write_json
from common.reading import LARGEST_JSON, parse_json, read_bytes, read_json
from simulations.arms import run_cell
from simulations.launch import places
from simulations.plan import PRETRAINING, USE, Cell
from simulations.results import COLUMNS
from simulations.work import Work

POLL_SECONDS = 1.0
CANCEL_SECONDS = 10.0  # at most, until a cancelled cell has ended
STATUS, BEGAN = "status.json", ".began"  # in a cell's folder
MISSING = "missing"
ENDS = ("done", "diverged", "timeout", "error")


def status_of(folder: Path) -> str:
    """Return how a cell's training ended, ``missing`` where it has not.

    Raises
    ------
    FileError
        What says so cannot be read.
    """
    remedy = "Remove the cell's folder, and --resume trains it again"
    try:
        status = read_json(folder / STATUS, remedy=remedy).get("status")
    except FileNotFoundError:
        return MISSING
    if status not in ENDS:
        raise FileError(folder / STATUS, f"names no status, one of {', '.join(ENDS)}", remedy)
    return status


def schedule(works: list[Work]) -> None:
    """Run every cell to its end, whatever that is."""
    import ray

    named = "RAY_ADDRESS" in os.environ
    own = {} if named else {"num_cpus": places(), "include_dashboard": False}
    ray.init(address=None if named else "local", log_to_driver=False, **own)
    try:
        # Ray takes what it is given in any order: it is given no more than it can begin.
        queue, lanes = deque(works), _lanes(ray.cluster_resources(), works)
        waiting: dict[Any, Work] = {}
        since: dict[Any, float] = {}  # by our own clock: that of files may be set, or sleep
        while queue or waiting:
            while queue and len(waiting) < lanes:
                work = queue.popleft()
                waiting[_start(ray, work)] = work
            finished, _ = ray.wait(list(waiting), timeout=POLL_SECONDS)
            for reference in finished:
                work = waiting.pop(reference)
                try:
                    ray.get(reference)
                except Exception:  # the process died: memory, a signal, Ray itself
                    end_cell(Path(work.folder), work.cell, "error", traceback.format_exc())
            for reference, work in list(waiting.items()):
                if (Path(work.folder) / BEGAN).is_file():
                    since.setdefault(reference, time.monotonic())
                if time.monotonic() - since.get(reference, math.inf) > work.timeout:
                    waiting.pop(reference)
                    ray.cancel(reference, force=True)
                    ray.wait([reference], timeout=CANCEL_SECONDS)
                    if status_of(Path(work.folder)) == MISSING:  # else it has just ended by itself
                        why = f"ended after {work.timeout:g} s"
                        end_cell(Path(work.folder), work.cell, "timeout", why)
    finally:
        ray.shutdown()


def _lanes(there: Mapping[str, float], works: list[Work]) -> int:
    """Count the cells that can run side by side."""
    lanes = int(there.get("CPU", 0.0)) // max(work.cpus for work in works)
    if share := max(work.gpus for work in works):
        count = int(there.get("GPU", 0.0))
        # A share lies on one GPU; and three thirds of one are whole.
        fit = count * int(1 / share + 1e-9) if share <= 1 else int(count / share)
        lanes = min(lanes, fit)
    return max(1, lanes)


def _start(ray: Any, work: Work) -> Any:
    # max_calls=1: a process of its own, so that nothing of one cell can leak into the next.
    options = {"num_cpus": work.cpus, "num_gpus": work.gpus, "max_calls": 1, "max_retries": 0}
    return ray.remote(**options)(attempt).remote(work)


def attempt(work: Work) -> None:
    """Run a cell and leave its rows, or why there are none or not all, in its folder."""
    folder = Path(work.folder)
    write_atomically(folder / BEGAN, b"")
    try:
        rows = work.run_cell() if hasattr(work, "run_cell") else _run(work)
    except Exception as error:
        diverged = isinstance(error, DivergedError) or "has diverged" in str(error)
        end_cell(folder, work.cell, "diverged" if diverged else "error", traceback.format_exc())
        return
    write_atomically(folder / "results.csv", rows.to_csv(index=False).encode())
    lost = [] if work.cell.arm == USE else rows.loc[rows["status"] != "done", "trained_on"]
    why = ", ".join(f"{site} diverged" for site in lost)
    write_json(folder / STATUS, {"status": "diverged" if why else "done", "why": why})


def _run(work: Work) -> pd.DataFrame:
    rows = run_cell(work)
    if not work.membership or work.cell.arm in (PRETRAINING, USE):
        return rows
    from simulations.attack.cell import with_attacks

    return with_attacks(work, rows)


def end_cell(folder: Path, cell: Cell, status: str, why: str) -> None:
    """Leave a cell's folder with a status that is not *done*, and the reason."""
    row = {"arm": cell.arm, "strategy": cell.strategy, "seed": cell.seed, "status": status}
    frame = pd.DataFrame([row], columns=COLUMNS)
    write_atomically(folder / "results.csv", frame.to_csv(index=False).encode())
    write_json(folder / STATUS, {"status": status, "why": why})


def main() -> None:
    """Read the work and do it."""
    items = parse_json(read_bytes(Path(sys.argv[1]), limit=LARGEST_JSON))
    schedule([Work(**{**item, "cell": Cell(**item["cell"])}) for item in items])


if __name__ == "__main__":
    main()
