"""``fedscan authenticity``: whether a generator reproduces its training images too closely."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.gan.commands import ExtractorOption, OutOption, SeedOption, ThreadsOption
from simulations.options import (
    Device,
    DeviceOption,
    Format,
    FormatOption,
    MovedCohortOption,
    absolute,
    computing_with,
    tell,
)


def authenticity(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a generation run, or of train-gan.")
    ],
    out: OutOption = Path("authenticity"),
    site: Annotated[
        list[str] | None, typer.Option(help="Of those trained on; repeatable. By default: all.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Images a group, at most.")] = 50,
    space: Annotated[
        str, typer.Option(metavar="w,w+", help="Latent spaces to project into.")
    ] = "w,w+",
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Searches an image; the closest counts.")
    ] = 2,
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Iterations a search.")] = 100,
    extractor: ExtractorOption = "auto",
    cohort: MovedCohortOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = 1,
    output_format: FormatOption = Format.text,
) -> None:
    """Measure whether a generator reproduces its training images more closely than unseen ones.

    Training images, test images of the same hospitals and classes, and generated images are
    projected into the latent space. Where training images end nearer to their projections than
    test images, the generator memorizes. All files but authenticity.json are of single patients:
    they stay at the site.

    Examples
    --------
    - `fedscan authenticity gan --out authenticity`
    - `fedscan authenticity runs/RUN --site north --count 100 --threads 2`
    - `fedscan authenticity gan --space w --seeds 4 --steps 500 --format json`
    """
    from simulations.authenticity import Request, measure

    request = Request(
        run=absolute(run),
        out=absolute(out),
        sites=tuple(site or ()),
        count=count,
        spaces=tuple(dict.fromkeys(space.split(","))),
        seeds=seeds,
        steps=steps,
        extractor=extractor,
        cohort=cohort and absolute(cohort),
        seed=seed,
        device=device.value,
    )
    with computing_with(threads):
        found = measure(request)
    tell(found, request.out, output_format, _show)


def _show(found: dict[str, Any]) -> None:
    """Show each space's medians, AUROC and verdict."""
    from rich.markup import escape
    from rich.table import Table

    from common.evaluation.authenticity import GROUPS
    from simulations.console import out

    table = Table(
        title=f"Distance to the projection, median (95 % interval); {found['steps']} steps, "
        f"extractor {escape(found['extractor']['name'])}",
        title_justify="left",
    )
    table.add_column("images")
    spaces = found["spaces"]
    for space in spaces:
        table.add_column(space.upper(), justify="right")
    for name in GROUPS:
        groups = [one["groups"][name] for one in spaces.values()]
        table.add_row(f"{groups[0]['images']} {name}", *(_told(g["median"]) for g in groups))
    table.add_row("AUROC", *(_told(one["auroc"]) for one in spaces.values()))
    out.print(table)
    for space, one in spaces.items():
        out.print(f"{space.upper()}: {one['verdict']}: {one['reason']}", markup=False)
    out.print(f"These are of single patients and stay at the site: {', '.join(found['stays'])}")


def _told(record: dict[str, float | None] | None) -> str:
    if record is None or record["mean"] is None:
        return "–"
    if record["low"] is None:
        return f"{record['mean']:.3g}"
    return f"{record['mean']:.3g} ({record['low']:.3g} to {record['high']:.3g})"
