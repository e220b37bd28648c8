"""The ledger of a run's privacy on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from simulations.console import out
from simulations.report.ledger import (
    about_whom,
    budgets,
    promises,
    result,
    short,
    unit_of,
    weaknesses,
)


def show_promises(summary: Mapping[str, Any]) -> None:
    """Print what a run promised, where it did, as its closing lines."""
    given = promises(summary)
    for one in given:
        show_budgets(one)
    for line in weaknesses(given):
        out.print(line, soft_wrap=True, markup=False)


def show_budgets(
    promise: Mapping[str, Any], totals: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Print a promise as a table, with the sum over all runs of each site where it is known."""
    table = Table(title=f"Differential privacy, unit: {unit_of(promise)}", title_justify="left")
    table.add_column("site")
    for heading in ("ε spent", "of", "δ", "noise multiplier", "max-norm"):
        table.add_column(heading, justify="right")
    if totals:
        table.add_column("ε of all runs", justify="right")
    whole, norm = short(promise.get("epsilon")), short(promise.get("max_norm"))
    for site, spent, delta, noise in budgets(promise):
        row = [escape(site), spent, whole, delta, noise, norm]
        if totals:
            all_runs = totals.get(site, {})
            runs = f" ({all_runs['runs']})" if all_runs else ""
            row.append(f"{short(all_runs.get('epsilon'))}{runs}")
        table.add_row(*row)
    out.print(table)


def show_attacks(attacks: Sequence[Mapping[str, Any]]) -> None:
    """Print the results of attacks as a table."""
    table = Table(title="Attacks", title_justify="left", box=SIMPLE, padding=0)
    table.show_edge = False
    for heading in ("attack", "site", "of"):
        table.add_column(heading)
    table.add_column("result (95 % CI)", justify="right")
    for one in attacks:
        name, text = result(one)
        words = [f"{one.get('kind')}, {one.get('method')}", str(one.get("site")), about_whom(one)]
        table.add_row(*map(escape, words), f"{name} {text}")
    out.print(table)
