"""``fedscan attack``: what is asked for and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import ConfigError
from simulations.gan.commands import OutOption, SeedOption, ThreadsOption
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

OF_KIND = {  # what an option is of
    **dict.fromkeys(("shadows", "pictures"), "membership"),
    **dict.fromkeys(("inversions", "steps"), "inversion"),
}


def attack(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, a training or a cell's model.")
    ],
    out: OutOption = Path("attack"),
    site: Annotated[
        list[str] | None, typer.Option(help="Of those trained on; repeatable. By default: all.")
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            metavar="membership,inversion,attributes",
            help="Attacks, one or several; by default membership.",
        ),
    ] = "membership",
    shadows: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=512,
            help="membership: shadow models a site for LiRA, an even number; by default none.",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, max=100_000, help="People a group and site, at most.")
    ] = 1000,
    pictures: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="membership: of a generator, to compare people with; by default 1000.",
        ),
    ] = None,
    inversions: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="inversion: images a site to look for; by default 4."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="inversion: iterations of a search for an image; by default 300.",
        ),
    ] = None,
    cohort: MovedCohortOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = 1,
    output_format: FormatOption = Format.text,
) -> None:
    """Measure what a trained model, or a site's updates, tell of the people in its training.

    People in training are compared with people of the same hospitals and classes who were not.
    All files but attacks.json are of single patients: they stay at the site. The results are also
    added to the run's summary.json, from where fedscan privacy and reports have them.

    Examples
    --------
    - `fedscan attack runs/2026-11-29-1015-brain-sex-fedavg --out attack`
    - `fedscan attack runs/2026-11-29-1015-brain-sex-fedavg --site island --shadows 16`
    - `fedscan attack gan --kind membership,attributes --format json`
    """
    from simulations.attack.run import Request
    from simulations.attack.run import attack as work

    kinds = tuple(dict.fromkeys(kind.split(",")))
    given = {"shadows": shadows, "pictures": pictures, "inversions": inversions, "steps": steps}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if (wanted := OF_KIND[name]) not in kinds:
            raise ConfigError(
                f"--{name} has no effect without --kind {wanted}: leave it out, or add the kind"
            )
    request = Request(
        run=absolute(run),
        out=absolute(out),
        kinds=kinds,
        sites=tuple(dict.fromkeys(site or ())),
        count=count,
        **given,
        cohort=cohort and absolute(cohort),
        seed=seed,
        device=device.value,
    )
    with computing_with(threads):
        found = work(request)
    tell(found, request.out, output_format, _show)


def _show(found: dict[str, Any]) -> None:
    """Show the results, and name the files that are not to be passed on."""
    _show_attacks(found["attacks"])
    typer.echo(f"These are of single patients and stay at the site: {', '.join(found['stays'])}")


def _show_attacks(attacks: list[dict[str, Any]]) -> None:
    """Show a table of each kind; of moments over the most people."""
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    from simulations.attack.figures import told
    from simulations.console import out

    def share(record: dict[str, Any] | None) -> str:
        return "–" if record is None else f"{record['mean']:.2f}"

    columns = {
        "membership": {
            "AUROC (95 % CI)": lambda one: told(one["auc"]),
            "TPR at\n1 % FPR": lambda one: share(one["tpr"]["0.01"]),
            "at\n10 %": lambda one: share(one["tpr"]["0.1"]),
            "people\nin, out": lambda one: f"{one['persons']['in']}, {one['persons']['out']}",
        },
        "inversion": {
            "PSNR\ndB": lambda one: f"{one['psnr']:.1f}",
            "best\nother": lambda one: f"{one['other_psnr']:.1f}",
            "SSIM": lambda one: f"{one['ssim']:.2f}",
            "best\nother ": lambda one: f"{one['other_ssim']:.2f}",
            "nearer than it\n(95 % CI)": lambda one: told(one["better"]),
        },
        "attributes": {
            "features": lambda one: str(one["features"]),
            "people": lambda one: str(one["people"]),
            "AUROC (95 % CI)": lambda one: told(one["auc"]),
            "predicted": lambda one: f"{one['predicted']:.2f}",
        },
    }
    for kind, cells in columns.items():
        rows = [one for one in attacks if one["kind"] == kind]
        most = {one["site"]: one.get("people", 0) for one in rows}  # the last of each site
        rows = [one for one in rows if one.get("people", 0) == most[one["site"]]]
        if not rows:
            continue
        table = Table("attack", "site", title=kind, title_justify="left", box=SIMPLE, padding=0)
        table.show_edge = False
        for name in cells:
            table.add_column(name, justify="right")
        for one in rows:
            found = [cell(one) for cell in cells.values()]
            table.add_row(escape(one["method"]), escape(one["site"]), *found)
        out.print(table)
