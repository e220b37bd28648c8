"""A comparison from the command line's request to its report."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.evaluation.statistics import NO_INTERVAL, WITHOUT
from common.machine import usable_cpus
from common.metrics_log import WHOLE
from common.paths import cache_dir
from common.processes.environment import require_plain_path
from common.rounds import require_sites
from simulations import console
from simulations.arms import pooled_config
from simulations.benchmark import Benchmark
from simulations.contrasts import AT, QUESTIONS, is_elsewhere, is_home
from simulations.estimate import estimate_seconds
from simulations.federate import check_extractor, survey_cohort
from simulations.hospitals import count_sites, prepare_phantoms, site_names
from simulations.launch import Resources
from simulations.measures import MEMBERSHIP, measure
from simulations.plan import Plan, load_plan
from simulations.preset_files import presets
from simulations.question import check_folder, differing, question, require_same, usual
from simulations.schedule import STATUS, status_of
from simulations.transfer.command import PRESET as TRANSFER

if TYPE_CHECKING:
    from rich.table import Table


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
    ray_address: str = ""


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
    simulated = plan.sites if request.cohort is None else None
    count = count_sites(request.cohort, request.sites or simulated, plan.test_scans)
    if count < 2:
        raise ConfigError("a comparison needs at least 2 sites")
    base = {"run.min-sites": count, "data.cohort-dir": str(request.cohort or "")}
    configs = []
    for cell in (cell for stage in plan.stages() for cell in stage):
        # Every fault of the configuration is met before anything starts.
        configs.append(config := plan.config(cell, base))
        names = site_names(request.cohort, config.study, count)
        require_sites(config, names)
        threads = config.run.threads
        if config.trouble.is_on and cell.arm != "federated":
            raise ConfigError(
                f"trouble.* is of sites in a federation: leave {cell.arm} out of --arms"
            )
        if config.privacy.secure_sums:
            raise ConfigError(
                "a comparison is of each site's own test results, which privacy.secure-sums hides: "
                "leave it out, or see it in one run with fedscan run"
            )
        if cell.arm == "centralized":
            try:
                pooled_config(config, count, plan.centralized_batch)
            except ConfigError as error:
                more = {"large": "training.batch-size", "small": "training.local-steps"}[
                    plan.centralized_batch
                ]
                raise ConfigError(f"arm 'centralized', {count} × {more}: {error}") from None
    for config in {c.model.extractor: c for c in configs if c.task == "generation"}.values():
        check_extractor(config)
    require_plain_path()
    Resources(count, threads, request.gpus_per_cell, ray_address=request.ray_address).check("cell")
    survey_cohort(configs[0])  # all ask the same study
    if dry_run:
        _show_plan(plan, count, base, new_cohorts=request.cohort is None)
        return None
    cache_dir()  # a FEDSCAN_CACHE that cannot be is refused here, not in every training
    check_folder(request.out, resume=resume)
    require_same(request.out, question(plan, base))  # before phantoms are made for nothing
    cohorts: dict[int, dict[str, Path]] = {}
    if request.cohort is None:
        study, test = configs[0].study, plan.test_scans or None
        made = {
            seed: prepare_phantoms(study, names, seed=seed, test=test)
            for seed in dict.fromkeys(plan.cohort_seeds.values())
        }
        sites = made[plan.cohort_seeds[plan.first_repetition]]
        if len(made) > 1:
            cohorts = {seed: made[cohort] for seed, cohort in plan.cohort_seeds.items()}
    else:
        from common.imaging.bids import list_sites

        sites = list_sites(request.cohort)
    Benchmark(
        plan,
        sites,
        base,
        request.out,
        cohorts=cohorts,
        gpus_per_cell=request.gpus_per_cell,
        cell_timeout=request.cell_timeout,
        ray_address=request.ray_address,
    ).run(resume=resume)
    from simulations.report.document import write_report

    write_report(request.out, files=True)
    return request.out


def unfinished(folder: Path) -> list[str]:
    """Names of the cells that did not end as done."""
    ended = sorted(path.parent for path in (folder / "cells").glob(f"*/{STATUS}"))
    found = {cell.name: status_of(cell) for cell in ended}
    return [f"{name} ({status})" for name, status in found.items() if status != "done"]


def show(summary: dict[str, Any]) -> None:
    """Print every model's leading test results in tables, who copies, and the headlines."""
    names = summary["leading"]
    for name in names if summary["task"] == "generation" else names[:1]:
        _show_scores(summary, name)
    if MEMBERSHIP in summary["measures"]:
        _show_scores(summary, MEMBERSHIP)
    for one in summary["copies"]:
        console.out.print(
            f"{one['model']}, repetition {one['seed']}: flagged as copying training images of "
            f"{one['site']}; the site keeps the look-alikes",
            soft_wrap=True,
            markup=False,
        )
    compared = {name.partition("/")[0] for name in summary["cells"]["by_model"]}
    for key, arms in QUESTIONS.items():
        if arms <= compared:
            console.out.print(summary["headline"][key]["sentence"], soft_wrap=True, markup=False)


def _show_scores(summary: dict[str, Any], name: str) -> None:
    """Print a measure of every model at every place; a site's own model stands for the local."""
    from simulations.report.looks import in_order

    scores, one = summary["scores"], measure(name)
    places = {
        where: {m: found for m, all_ in models.items() if (found := all_.get(name))}
        for where, models in scores.items()
    }
    shown = [m for m in in_order(summary["models"]) if any(m in found for found in places.values())]
    if any(map(is_home, places["all"])):  # every site has its own
        shown = [m for m in shown if not is_elsewhere(m)]
    else:  # the few that have one stand by their names, also where they are at home
        shown = [m for m in shown if not is_home(m)]
        for where, found in places.items():
            for home in [*filter(is_home, found)]:
                own = f"{home}{AT}{where}"
                found[own] = found.pop(home)
                shown += [own] * (own not in shown)
    digits = one.digits[0] + (0 if one.pool == "whole" or one.digits[0] > 2 else 1)
    tested = [where for where, found in places.items() if any(m in found for m in shown)]
    cells = {
        (where, m): _interval(places[where].get(m), digits, digits - 1)
        for where in tested
        for m in shown
    }
    of = ": training against test people" if name == MEMBERSHIP else " on test images"
    title = f"{one.words[:1].upper()}{one.words[1:]}{of}, 95 % interval"
    table = _fitting(title, tested, shown, cells)
    if WHOLE in tested and table is None:
        tested = [WHOLE]  # the report has the other places
        table = _fitting(title, tested, shown, cells)
    if tested:
        console.out.print(table or _table(title, tested, shown, cells))
        for line in _reasons({where: places[where] for where in tested}, shown):
            console.out.print(line, soft_wrap=True, markup=False)


def _reasons(places: dict[str, dict[str, Any]], shown: list[str]) -> list[str]:
    """Say what a table's cells do not: why one has no interval, or which sites are in no mean."""
    models: dict[tuple[str, str], list[str]] = {}
    for where, found in places.items():
        for model in (m for m in shown if m in found):
            for note in (found[model].get("note") or "").split("; "):
                few = note.startswith(NO_INTERVAL) and where != WHOLE  # of all, the sites' say it
                if few or note.startswith(WITHOUT) or (note and found[model]["mean"] is None):
                    models.setdefault((where, note), []).append(model)
    return [
        f"{where}: {note}"
        + f" ({', '.join(some)})" * (len(some) < len({*shown} & {*places[where]}))
        for (where, note), some in models.items()
    ]


def _fitting(
    title: str, places: list[str], models: list[str], cells: dict[tuple[str, str], str]
) -> Table | None:
    """Lay a table out with as much room as the terminal has; None where it has too little."""
    wide = console.out.options.update(width=10_000)
    for tight in (None, 1, 0):
        table = _table(title, places, models, cells, tight)
        if console.out.measure(table, options=wide).maximum <= console.out.width:
            return table
    return None


def _table(
    title: str,
    places: list[str],
    models: list[str],
    cells: dict[tuple[str, str], str],
    tight: int | None = None,
) -> Table:
    """Lay out a text for each place and model: whichever are fewer stand side by side.

    Tight, an interval stands below its number, with so many blanks beside it.
    """
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    if tight is not None:
        table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, tight, 0, 0))
        table.show_edge = False
        cells = {key: text.replace(" (", "\n").rstrip(")") for key, text in cells.items()}
    if len(models) > len(places):
        table.add_column("model")
        columns = places
        rows = {model: [cells[place, model] for place in places] for model in models}
    else:
        table.add_column("tested at")
        columns = models
        rows = {place: [cells[place, model] for model in models] for place in places}
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *row)
    return table


def _interval(score: dict[str, Any] | None, digits: int, ends: int) -> str:
    if not score or score["mean"] is None:
        return "–"
    if score["low"] is None:
        return f"{score['mean']:.{digits}f}"
    return f"{score['mean']:.{digits}f} ({score['low']:.{ends}f} to {score['high']:.{ends}f})"


def _show_plan(plan: Plan, sites: int, base: dict[str, Any], *, new_cohorts: bool) -> None:
    cells = [cell for stage in plan.stages() for cell in stage]
    config = usual(plan, base)
    say = console.out.print
    say(f"presets: {', '.join(sorted([*presets(), TRANSFER]))}", markup=False)
    say(f"{len(cells)} cells: {', '.join(cell.name for cell in cells)}", markup=False)
    if plan.repetitions > 1:
        new = new_cohorts and not plan.same_cohort
        people = "each with other people" if new else "of the same people"
        say(f"{plan.repetitions} repetitions, {people}, from {plan.first_repetition} on")
    if plan.test_scans:
        say(f"{plan.test_scans} test scans a hospital")
    alone = ", alone trains the site with the fewest images" if plan.local == "poor" else ""
    epochs, steps = config.training.local_epochs, config.training.local_steps
    each = f"{epochs} epochs" if epochs else f"{steps} steps"
    say(
        f"{sites} sites, {config.run.rounds} rounds × {each}, "
        f"centralized batch {plan.centralized_batch}{alone if 'local' in plan.arms else ''}",
        markup=False,
    )
    for key, value in sorted(config.to_flower().items()):
        say(f"  {key} = {json.dumps(value)}", markup=False)
    for name, values in differing(plan, base).items():
        others = (f"{key} = {json.dumps(value)}" for key, value in values.items())
        say(f"{name}: {', '.join(others) or 'as above'}", markup=False, soft_wrap=True)
    minutes = max(1, math.ceil(estimate_seconds(plan, sites, base) / 60))
    say(f"about {minutes} min on {usable_cpus()} CPUs, not counting the making of phantoms")
