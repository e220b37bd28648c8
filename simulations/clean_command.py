"""``fedscan clean``: what lies on the disk beside results, and what of it can go."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from simulations.options import Format, FormatOption


def clean(
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove it; without this, it is shown alone.")
    ] = False,
    records: Annotated[
        bool,
        typer.Option(
            "--records",
            help="Also what sites have recorded of finished runs: predictions, and the own models "
            "of personal strategies.",
        ),
    ] = False,
    hospitals: Annotated[
        bool,
        typer.Option(
            "--hospitals",
            help="Also simulated hospitals and feature extractors, which are made anew.",
        ),
    ] = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Show caches, records and leftovers with their sizes, and remove them with --yes.

    Leftovers are what interrupted runs could be resumed from, and temporary folders, locks and
    claims of names that no process holds. Folders of finished runs, cohorts and what a running
    command or a hospital's SuperNode uses are never touched.

    For example:

    - `fedscan clean`
    - `fedscan clean --yes`
    - `fedscan clean --yes --records --hospitals`
    """
    from simulations.clean import EXTRACTORS, HOSPITALS, ON_REQUEST, RECORDS, find, remove

    asked = {RECORDS: records, HOSPITALS: hospitals, EXTRACTORS: hospitals}
    told = []
    for one in find():
        wanted = one.what not in ON_REQUEST or asked[one.what]
        gone = yes and wanted and remove(one)
        state = "removed" if gone else "in use" if one.in_use else "" if wanted else "kept"
        told.append({**asdict(one), "path": str(one.path), "state": state})
    if output_format is Format.json:
        typer.echo(json.dumps(told))
        return
    from rich.markup import escape
    from rich.table import Table

    from simulations.console import out

    if not told:
        out.print("Nothing is left of earlier runs, and the cache is empty.")
        return
    table = Table("what", "path", "size", "")
    table.columns[1].overflow = "fold"
    table.columns[2].justify = "right"
    for row in told:
        size = f"{row['size'] / 1e6:,.1f} MB"
        table.add_row(row["what"], escape(row["path"]), size, row["state"])
    out.print(table)
    if not yes:
        out.print(
            "--yes removes what is neither in use nor kept; --records and --hospitals, with "
            "--yes, remove these as well. A stopped run cannot be resumed then.",
            soft_wrap=True,
        )
