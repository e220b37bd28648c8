"""``fedscan transfer``: what a model of other hospitals is worth at one with few scans."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import ConfigError, FedscanError
from common.processes.environment import require_plain_path
from simulations.options import (
    CellTimeoutOption,
    CohortOption,
    DryRunOption,
    Format,
    FormatOption,
    GpusPerCellOption,
    RayAddressOption,
    ResumeOption,
    SetOption,
    SitesOption,
    StudyOption,
    absolute,
    run_overrides,
)

if TYPE_CHECKING:
    from simulations.transfer.plan import Plan, Protocol


PRESET = "transfer"  # of fedscan benchmark, which is then this command


def transfer(
    study: StudyOption = None,
    cohort: CohortOption = None,
    target: Annotated[
        str | None,
        typer.Option(help="The hospital that learns from the others; by default the poorest."),
    ] = None,
    sites: SitesOption = None,
    sizes: Annotated[
        str | None, typer.Option(help="Training scans of the target; 5,10,20,40,80 by default.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=20,
            help="Of a cross-validation by person at the target; 0: its test split. By default 5 "
            "where that has fewer than 30 people.",
        ),
    ] = None,
    repetitions: Annotated[int | None, typer.Option(min=1, help="5 by default.")] = None,
    first_repetition: Annotated[
        int | None, typer.Option(min=0, help="Seed of the first repetition; 0 by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results and report.")] = Path("transfer"),
    set_: SetOption = None,
    gpus_per_cell: GpusPerCellOption = 0.0,
    cell_timeout: CellTimeoutOption = 3600.0,
    ray_address: RayAddressOption = "",
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Learn at one hospital from few scans, from scratch and from a model of the others.

    The others' federation makes a model; with 5, 10, 20, 40 and 80 scans the target then trains
    from scratch, from that model, and its head alone. Each repetition is a new cohort of simulated
    hospitals, or of your own a new choice of scans.

    For example:

    - `fedscan transfer --dry-run`, which is `fedscan benchmark --preset transfer --dry-run`
    - `fedscan transfer --study skin-lesions --repetitions 3`
    - `fedscan transfer --cohort ~/hospitals --target island --sizes 5,10,20`
    """
    from common.paths import cache_dir
    from simulations import console
    from simulations.benchmark import check_folder
    from simulations.hospitals import count_sites
    from simulations.launch import Resources
    from simulations.transfer.bench import FIGURE, REPORT, Transfer
    from simulations.transfer.cohorts import phantoms, poorest, protocol_of
    from simulations.transfer.plan import TARGET, load_plan, parse_sizes

    cohort = cohort and absolute(cohort)
    out = absolute(out)
    overrides = {
        "sizes": parse_sizes(sizes) if sizes else None,
        "repetitions": repetitions,
        "first_repetition": first_repetition,
    }
    plan = load_plan(overrides, run_overrides(set_, study))
    count = count_sites(cohort, sites)
    if count < 2:
        raise ConfigError("a transfer needs at least 2 sites: one to learn from, and the target")
    configs = [
        plan.config(cell.arm, cell.strategy, cell.seed, source="/")
        for stage in plan.stages()
        for cell in stage
    ]  # every fault of the configuration is met before anything starts
    config = configs[0]
    require_plain_path()
    Resources(count, config.run.threads, gpus_per_cell, ray_address=ray_address).check("cell")
    if cohort is None:
        from common.data.phantoms.cohorts import phantom_cohort

        target = target or list(phantom_cohort(config.study).subjects(count))[-1]
        if dry_run:
            _show_plan(plan, count, target, None)
            return
        cache_dir()
        check_folder(out, resume=resume)
        most = max(plan.sizes)
        cohorts = {seed: phantoms(config.study, count, target, most, seed) for seed in plan.seeds}
    else:
        from common.imaging.bids import list_sites

        own = list_sites(cohort)
        target = target or poorest(own, config)
        if target not in own:
            raise ConfigError(f"--target {target}: accepted is one of {', '.join(own)}")
        cohorts = dict.fromkeys(plan.seeds, own)
    at_target = plan.config(TARGET, "scratch", plan.first_repetition)
    folders = [sites_[target] for sites_ in cohorts.values()]
    protocol = protocol_of(target, folders, at_target, plan.sizes, folds)
    if left := [n for n in plan.sizes if n not in protocol.sizes]:
        console.err.print(
            f"Sizes {', '.join(map(str, left))} are left out: {target} has fewer training scans",
            markup=False,
        )
    if dry_run:
        _show_plan(plan, count, target, protocol)
        return
    made = Transfer(
        plan,
        target,
        cohorts,
        protocol,
        out,
        cohort=str(cohort or "phantoms"),
        gpus_per_cell=gpus_per_cell,
        cell_timeout=cell_timeout,
        ray_address=ray_address,
    )
    summary = made.run(resume=resume)
    if output_format is Format.json:
        typer.echo(json.dumps(summary))
    else:
        _show(summary)
        typer.echo(str(out / REPORT))
        typer.echo(str(out / FIGURE))
    if unfinished := summary["unfinished"]:
        raise FedscanError(
            f"{len(unfinished)} cells did not end well: {', '.join(unfinished)}. Their tracebacks "
            f"are in {out / 'cells'}; --resume runs them again, but for diverged ones"
        )


def _show(summary: dict[str, Any]) -> None:
    from rich.table import Table

    from simulations import console
    from simulations.transfer.curve import LEADING, MEASURES, meeting, told

    sizes, scores = summary["sizes"], summary["scores"][LEADING]
    title = f"{MEASURES[LEADING][:1].upper()}{MEASURES[LEADING][1:]} at {summary['target']}"
    table = Table(title=f"{title}, 95 % interval", title_justify="left")
    for column in ("method", *(f"{n} scans" for n in sizes), "scratch catches up"):
        table.add_column(column)
    for method in summary["methods"]:
        meets = summary["catches_up"][LEADING].get(method)
        row = [told(scores[method][str(n)]) for n in sizes]
        table.add_row(method, *row, meeting(meets, sizes) if meets else "")
    console.out.print(table)


def _show_plan(plan: Plan, sites: int, target: str, protocol: Protocol | None) -> None:
    """Tell the cells and about how long they take."""
    from common.machine import usable_cpus
    from simulations import console
    from simulations.estimate import CELL_OVERHEAD, USUAL_IMAGES, step_seconds
    from simulations.transfer.plan import AS_IT_IS, SOURCE

    say, folds = console.out.print, protocol.folds if protocol else 0
    sizes = list(protocol.sizes) if protocol else plan.sizes
    cells = [cell for stage in plan.stages() for cell in stage]
    say(f"{len(cells)} cells: {', '.join(cell.name for cell in cells)}", markup=False)
    say(
        f"target {target}, {sites - 1} source sites, training scans "
        f"{', '.join(map(str, sizes))}, {f'{folds} folds' if folds else 'its test split'}",
        markup=False,
    )
    seconds = []
    each: dict[str, float] = {}
    for cell in cells:
        config = plan.config(cell.arm, cell.strategy, cell.seed, source="/")
        if cell.strategy == AS_IT_IS:
            seconds.append(CELL_OVERHEAD)
            continue
        if (key := f"{cell.arm} {config.model.trains}") not in each:
            each[key] = step_seconds(config, 1)
        steps = config.run.rounds * config.local_steps(USUAL_IMAGES)
        times = sites - 1 if cell.arm == SOURCE else len(sizes) * max(1, folds)
        seconds.append(each[key] * steps * times + CELL_OVERHEAD)
    lanes = max(1, usable_cpus() // config.run.threads)
    minutes = max(1, math.ceil(sum(seconds) / lanes / 60))
    say(
        f"about {minutes} min on {usable_cpus()} CPUs, not counting the making of phantoms",
        markup=False,
    )
