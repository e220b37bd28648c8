"""What a round costs beyond training, and what memory it takes, at 3, 50 and 500 sites.

``python tests/many_sites.py`` makes small hospitals, runs a federation of each number of them in
simulation and prints a table. Training is two steps of a tiny classifier at each site; what it
takes by itself is measured here, on one thread, and shared out among the CPUs. Resident memory is
the largest during the run, with the libraries in it; growth is what it gained per round after the
second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import psutil

from common.data.phantoms.small_hospitals import small_sites, write_small_hospitals
from common.local_round import first_weights, train_one_round
from common.machine import one_thread, usable_cpus
from common.tasks.task import SiteContext, load_task, read_run_config

SETTINGS = {
    "data.size": 16,
    "training.local-steps": 2,
    "training.batch-size": 4,
}
SERVER, ACTOR = "flwr-simulation", "ray::ClientAppActor"
SEED, MIB = 1000, 2**20


@dataclass(frozen=True)
class Measured:
    """One federation: seconds a round, and by round the memory of server and actors in MiB."""

    seconds: float
    server: list[float]
    actor: list[float]


def training_seconds(cohort: Path, cache: Path) -> float:
    """Train one site for some rounds in this process; return the seconds of one."""
    import torch

    one_thread()
    torch.set_num_threads(1)
    config = read_run_config({"study": "skin-lesions", **SETTINGS})
    task, name = load_task(config.task), small_sites(1)[0]
    data = task.open_split(name, cohort / name, "train", config, cache)
    place = SiteContext(name, (name,), torch.device("cpu"))
    model = task.build_model(config, place)
    received = first_weights(task, model, config, place.sites)
    spent = []
    for number in range(1, 11):
        began = time.perf_counter()
        train_one_round(
            *(task, model, data, config),
            **{"received": received, "private": {}, "place": place, "round_number": number},
        )
        spent.append(time.perf_counter() - began)
    return fmean(spent[2:])


def processes(root: psutil.Process) -> Iterator[tuple[str, float]]:
    """Yield server and actors below a process, with their resident memory in MiB."""
    for child in root.children(recursive=True):
        try:
            line = " ".join(child.cmdline()[:2])
            for name in (SERVER, ACTOR):
                if name in line:
                    yield name, child.memory_info().rss / MIB
        except psutil.Error:
            continue


def federate(cohort: Path, home: Path, rounds: int) -> Measured:
    """Run a federation of a cohort's sites, and watch it."""
    settings = {**SETTINGS, "run.rounds": rounds}
    command = [sys.executable, "-m", "simulations.cli", "run", "--study", "skin-lesions"]
    command += ["--cohort", str(cohort), "--out", str(home / "runs")]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    places = {"FEDSCAN_CACHE": str(home / "cache"), "FEDSCAN_RECORDS": str(home / "records")}
    largest: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    running = subprocess.Popen(
        command, env={**os.environ, **places}, stdout=subprocess.DEVNULL, cwd=home
    )
    try:
        while running.poll() is None:
            number = max((row["round"] for row in _rows(home)), default=0)
            for name, size in processes(psutil.Process(running.pid)):
                largest[number][name] = max(largest[number][name], size)
            time.sleep(1.0)
    finally:
        running.terminate()
        running.wait()
    if running.returncode:
        raise SystemExit(f"the federation of {cohort.name} sites failed; see {home}")
    ends = {row["round"]: row["seconds"] for row in _rows(home) if row["split"] != "test"}
    return Measured(
        (ends[rounds] - ends[1]) / (rounds - 1),
        *([largest[k][name] for k in sorted(largest) if k] for name in (SERVER, ACTOR)),
    )


def _rows(home: Path) -> list[dict]:
    logs = list(home.glob("runs/*/metrics.jsonl"))
    lines = logs[0].read_text().split("\n")[:-1] if logs else []
    return [json.loads(line) for line in lines]


def growth(sizes: list[float]) -> float:
    """Return what each round after the second added."""
    return (sizes[-1] - sizes[1]) / max(1, len(sizes) - 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", default="3,50,500", help="numbers of sites")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    print("| sites | seconds a round | of it training | beyond | a site | server MiB | actor MiB |")
    print("|---|---|---|---|---|---|---|")
    for count in map(int, asked.sites.split(",")):
        with tempfile.TemporaryDirectory(prefix="many-") as folder:
            home = Path(folder)
            cohort = write_small_hospitals(
                home / str(count), count, seed=SEED, workers=usable_cpus()
            )
            each = training_seconds(cohort, home / "cache")
            found = federate(cohort, home, asked.rounds)
        training = each * count / min(count, usable_cpus())
        beyond = found.seconds - training
        memory = " | ".join(
            f"{max(sizes):.0f} ({growth(sizes):+.1f} a round)"
            for sizes in (found.server, found.actor)
        )
        print(
            f"| {count} | {found.seconds:.2f} | {training:.2f} | {beyond:.2f} | "
            f"{beyond / count:.3f} | {memory} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
