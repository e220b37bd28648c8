"""``fedscan attendance`` and ``fedscan readmit``: who takes part in a run, and who may again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from simulations.options import Format, FormatOption, absolute

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]


def attendance(run: RunArgument, output_format: FormatOption = Format.text) -> None:
    """Show who took part in which round of a run, and why not; also while it is in progress.

    Examples
    --------
    - `fedscan attendance runs/2026-11-29-1015-brain-sex-fedavg`
    - `fedscan attendance runs/2026-11-29-1015-brain-sex-fedavg --format json`
    """
    from simulations.attendance import count_outcomes, ranges, read_attendance, reasons

    try:
        found = read_attendance(folder := absolute(run))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: this is no folder of a run that has begun") from None
    counts, rounds = count_outcomes(found), reasons(found)
    if output_format is Format.json:
        typer.echo(
            json.dumps(
                {
                    "sites": [
                        {"site": site, "order": order, **number}
                        for (site, order), number in counts.items()
                    ],
                    "reasons": [
                        {"site": s, "order": o, "outcome": kind, "why": why, "rounds": which}
                        for (s, o, kind, why), which in rounds.items()
                    ],
                }
            )
        )
        return
    from rich.box import SIMPLE  # its narrow columns fit into 80
    from rich.markup import escape
    from rich.table import Table

    from common.participation import Outcome
    from simulations.console import out

    shown = [kind for kind in Outcome if any(number[kind] for number in counts.values())]
    table = Table(title="Answers of each site to orders", title_justify="left", box=SIMPLE)
    for heading in ("site", "order"):
        table.add_column(heading)
    for kind in shown:
        table.add_column(str(kind), justify="right")
    for (site, order), number in counts.items():
        table.add_row(escape(site), order, *(str(number[kind] or "–") for kind in shown))
    out.print(table)
    for (site, order, kind, why), which in rounds.items():
        reason = f": {why}" if why else ""
        line = f"Site '{site}', {order}, round {ranges(which)}: {kind}{reason}"
        out.print(line, markup=False, soft_wrap=True)


def readmit(
    run: RunArgument, site: Annotated[str, typer.Argument(help="A suspended site's name.")]
) -> None:
    """Have a suspended site asked again, from the next order on, or when the run is resumed.

    Example: `fedscan readmit runs/2026-11-29-1015-brain-sex-fedavg north`
    """
    from common.files import make_folder, write_atomically
    from common.reading import read_json
    from common.run_folder import MANIFEST, READMITTED, SUMMARY
    from simulations.attendance import suspended_sites

    folder = absolute(run)
    try:
        known = read_json(folder / MANIFEST)["sites"]
    except (FileNotFoundError, KeyError):
        raise ConfigError(f"{folder}: this is no folder of a run that has begun") from None
    if (folder / SUMMARY).is_file():
        raise ConfigError(f"{folder}: this run is whole, no site is asked any more")
    if site not in known:
        raise ConfigError(f"site '{site}': accepted is one of {', '.join(sorted(known))}")
    if site not in (suspended := suspended_sites(folder)):
        others = f"; suspended are {', '.join(suspended)}" if suspended else "; no site is"
        raise ConfigError(f"site '{site}' is not suspended: it is asked already{others}")
    write_atomically(make_folder(folder / READMITTED) / site, b"")
    typer.echo(f"Site '{site}' is asked again from the next order on")
