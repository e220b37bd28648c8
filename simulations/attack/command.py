"""``fedscan attack``: what is asked for and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
        typer.Option(metavar="membership,inversion,attributes", help="Attacks, one or several."),
    ] = "membership",
    shadows: Annotated[
        int,
        typer.Option(
            min=0, max=512, help="Shadow models a site for LiRA, an even number; 0: none of it."
        ),
    ] = 0,
    count: Annotated[
        int, typer.Option(min=1, max=100_000, help="People a group and site, at most.")
    ] = 1000,
    pictures: Annotated[
        int, typer.Option(min=1, max=100_000, help="Of a generator, to compare people with.")
    ] = 1000,
    inversions: Annotated[
        int, typer.Option(min=1, max=1000, help="Images a site that inversion looks for.")
    ] = 4,
    steps: Annotated[
        int, typer.Option(min=1, max=100_000, help="Iterations of a search for an image.")
    ] = 300,
    cohort: MovedCohortOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = 1,
    output_format: FormatOption = Format.text,
) -> None:
    """Measure what a trained model, or a site's updates, tell of the people in its training.

    People in training are compared with people of the same hospitals and classes who were not.
    All files but attacks.json are of single patients: they stay at the site.

    Examples
    --------
    - `fedscan attack runs/2026-11-29-1015-brain-sex-fedavg --out attack`
    - `fedscan attack runs/2026-11-29-1015-brain-sex-fedavg --site island --shadows 16`
    - `fedscan attack gan --kind membership,attributes --format json`
    """
    from simulations.attack.run import Request
    from simulations.attack.run import attack as work

    request = Request(
        run=absolute(run),
        out=absolute(out),
        kinds=tuple(dict.fromkeys(kind.split(","))),
        sites=tuple(dict.fromkeys(site or ())),
        shadows=shadows,
        count=count,
        pictures=pictures,
        inversions=inversions,
        steps=steps,
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
    from rich.markup import escape
    from rich.table import Table

    from simulations.attack.figures import told
    from simulations.console import out

    def share(record: dict[str, Any] | None) -> str:
        return "–" if record is None else f"{record['mean']:.2f}"

    columns = {
        "membership": {
            "AUROC (95 % interval)": lambda one: told(one["auc"]),
            "TPR at 1 % FPR": lambda one: share(one["tpr"]["0.01"]),
            "at 10 %": lambda one: share(one["tpr"]["0.1"]),
            "people in, out": lambda one: f"{one['persons']['in']}, {one['persons']['out']}",
        },
        "inversion": {
            "PSNR, dB": lambda one: f"{one['psnr']:.1f}",
            "best other": lambda one: f"{one['other_psnr']:.1f}",
            "SSIM": lambda one: f"{one['ssim']:.2f}",
            "best other ": lambda one: f"{one['other_ssim']:.2f}",
            "nearer than it": lambda one: told(one["better"]),
        },
        "attributes": {
            "features": lambda one: str(one["features"]),
            "people": lambda one: str(one["people"]),
            "AUROC (95 % interval)": lambda one: told(one["auc"]),
            "predicted": lambda one: f"{one['predicted']:.2f}",
        },
    }
    for kind, cells in columns.items():
        rows = [one for one in attacks if one["kind"] == kind]
        most = {one["site"]: one.get("people", 0) for one in rows}  # the last of each site
        rows = [one for one in rows if one.get("people", 0) == most[one["site"]]]
        if not rows:
            continue
        table = Table("attack", "site", title=kind, title_justify="left")
        for name in cells:
            table.add_column(name, justify="right")
        for one in rows:
            found = [cell(one) for cell in cells.values()]
            table.add_row(escape(one["method"]), escape(one["site"]), *found)
        out.print(table)
