"""A comparison from the command line's request to its report."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.sites import phantom_sites
from simulations import console
from simulations.benchmark import Benchmark
from simulations.federate import count_sites, prepare_phantoms
from simulations.launch import Resources, usable_cpus
from simulations.plan import Plan, load_plan, presets

PROBE_STEPS = 5
# Seconds beside the optimizer steps, as seen on two cores: start of Flower, Ray and messages; or a
# process, its imports and loading.
FEDERATED_OVERHEAD = 35.0
CELL_OVERHEAD = 8.0


@dataclass(frozen=True)
class Request:
    """What was asked for, as the command line has it."""

    preset: str
    overrides: dict[str, Any]
    run: dict[str, Any]
    cohort: Path | None
    sites: int | None
    out: Path
    gpus_per_cell: float
    cell_timeout: float


def compare(request: Request, *, resume: bool, dry_run: bool) -> Path | None:
    """Run or resume a comparison and write its report; or show the plan alone.

    Returns
    -------
    Path or None
        The folder of the comparison; None after a dry run.

    Raises
    ------
    ConfigError
    """
    plan = load_plan(request.preset, request.overrides, request.run)
    count = count_sites(request.cohort, request.sites)
    if count < 2:
        raise ConfigError("a comparison needs at least 2 sites")
    base = {"min-sites": count, "cohort-dir": str(request.cohort or "")}
    for cell in plan.cells():
        # Every fault of the configuration is met before anything starts.
        threads = plan.config(cell, base).threads
    Resources(count, threads, request.gpus_per_cell).check()
    if dry_run:
        _show_plan(plan, count, base)
        return None
    if request.cohort is None:
        sites = prepare_phantoms(phantom_sites(count))
    else:
        from common.imaging.bids import list_sites

        sites = list_sites(request.cohort)
    Benchmark(
        plan,
        sites,
        base,
        request.out,
        gpus_per_cell=request.gpus_per_cell,
        cell_timeout=request.cell_timeout,
    ).run(resume=resume)
    from simulations.report.document import write_report

    write_report(request.out)
    return request.out


def unfinished(folder: Path) -> list[str]:
    """Names of the cells that did not end as done."""
    found = {
        path.parent.name: json.loads(path.read_text())["status"]
        for path in sorted((folder / "cells").glob("*/status.json"))
    }
    return [f"{name} ({status})" for name, status in found.items() if status != "done"]


def show(summary: dict[str, Any]) -> None:
    """Print the headline and every site's balanced accuracy in each arm."""
    from rich.table import Table

    models = list(dict.fromkeys(model for site in summary["scores"].values() for model in site))
    table = Table(title="Balanced accuracy on test scans, 95 % interval", title_justify="left")
    table.add_column("site")
    for model in models:
        table.add_column(model, justify="right")
    for site, scores in summary["scores"].items():
        table.add_row(site, *(_interval(scores.get(m, {})) for m in models))
    console.out.print(table)
    for headline in summary["headline"].values():
        if headline and headline.get("sentence"):
            console.out.print(headline["sentence"], soft_wrap=True)


def _interval(scores: dict[str, Any]) -> str:
    score = scores.get("balanced_accuracy")
    if not score or score["mean"] is None:
        return "–"
    if score["low"] is None:
        return f"{score['mean']:.3f}"
    return f"{score['mean']:.3f} ({score['low']:.2f} to {score['high']:.2f})"


def _show_plan(plan: Plan, sites: int, base: dict[str, Any]) -> None:
    cells = plan.cells()
    config = plan.config(cells[0], base)
    say = console.out.print
    say(f"presets: {', '.join(presets())}", markup=False)
    say(f"{len(cells)} cells: {', '.join(cell.name for cell in cells)}", markup=False)
    say(
        f"{sites} sites, {config.num_server_rounds} rounds × {config.local_steps} steps, "
        f"centralized batch {plan.centralized_batch}",
        markup=False,
    )
    for key, value in sorted(config.to_flower().items()):
        say(f"  {key} = {json.dumps(value)}", markup=False)
    minutes = estimate_seconds(plan, sites, base) / 60
    say(f"about {max(1, math.ceil(minutes))} min on {usable_cpus()} CPUs, phantoms apart")


def estimate_seconds(plan: Plan, sites: int, base: dict[str, Any]) -> float:
    """Estimate a comparison's time from a few optimizer steps timed here."""
    import numpy as np
    import torch

    from common.imaging.prepare import ImageSet
    from common.tasks import load_task

    config = plan.config(plan.cells()[0], base)
    task = load_task(config.task)
    torch.set_num_threads(config.threads)
    generator = np.random.default_rng(0)
    images = generator.random((config.batch_size, *[config.image_size] * 3), np.float32)
    data = ImageSet(images, np.arange(config.batch_size) % 2, (), {})
    model, device = task.build_model(config), torch.device("cpu")
    arguments = {"first_step": 0, "seed": 0, "device": device, "private": {}}
    task.fit(model, data, config, steps=1, **arguments)  # warm
    began = time.perf_counter()
    task.fit(model, data, config, steps=PROBE_STEPS, **arguments)
    step = (time.perf_counter() - began) / PROBE_STEPS
    # Equal images in every arm: each costs as many steps of one site as there are sites.
    training = step * config.total_steps * sites
    seconds = [
        training + (FEDERATED_OVERHEAD if cell.arm == "federated" else CELL_OVERHEAD)
        for cell in plan.cells()
    ]
    lanes = max(1, usable_cpus() // config.threads)
    return max(sum(seconds) / lanes, max(seconds))
