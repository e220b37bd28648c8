"""``fedscan privacy``: what a run promised, what protected it, and what attacks have found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.options import Format, FormatOption, absolute

if TYPE_CHECKING:
    from collections.abc import Mapping


def privacy(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Folder of a run, of a training of train-gan, or cells/CELL/all of a comparison.",
        ),
    ],
    output_format: FormatOption = Format.text,
) -> None:
    """Show the ledger of a run's privacy: budgets, what protected it and what did not, attacks.

    Of each site it tells what this run has spent and, where the site's records are on this machine,
    what all runs have spent together.

    Examples
    --------
    - `fedscan privacy runs/20261129-101500-3f2a`
    - `fedscan privacy runs/20261129-101500-3f2a --format json`
    """
    from simulations.ledger import read_ledger

    found = read_ledger(absolute(run))
    if output_format is Format.json:
        typer.echo(json.dumps(found))
        return
    _show(found)


def _show(found: Mapping[str, Any]) -> None:
    from simulations.console import out
    from simulations.ledger_tables import show_attacks, show_budgets
    from simulations.report.ledger import promises, told, unit_of

    for one in promises(found):
        show_budgets(one, found["totals"] if unit_of(one) == "person" else None)
    for title, key in (("Protected by", "protected_by"), ("Not protected", "not_protected")):
        out.print(f"{title}:" if found[key] else f"{title}: nothing", markup=False)
        for line in found[key]:
            out.print(f"- {line.rstrip('.')}", soft_wrap=True, markup=False)
    if found["attacks"]:
        show_attacks(told(found["attacks"]))
    else:
        out.print("Attacks: none was measured; fedscan attack does", markup=False)
