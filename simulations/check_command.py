"""``fedscan check``: whether data can be used, and what is wrong where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ConfigError
from simulations.options import Format, FormatOption, absolute

if TYPE_CHECKING:
    from common.data.check import CohortReport
    from common.data.leaks import Leak

MOST_LINES = 20  # of one kind; --format json has them all
FEW = 3  # places where an identity was found


def check(
    folder: Annotated[Path, typer.Argument(help="A site's data set, or a folder with one a site.")],
    study: Annotated[
        str, typer.Option(metavar="NAME|FILE.toml", help="What is asked of which images.")
    ] = "brain-sex",
    output_format: FormatOption = Format.text,
) -> None:
    """Open every scan or picture of a data set or cohort and say whether fedscan can use it.

    It also finds leaks: a person, a lesion or a copy of an image in two splits or at two hospitals;
    and warns of identities in headers and names, without repeating them.

    Exit code 0: usable; 2: not. Nothing leaves this machine: the report names files.

    For example:

    - `fedscan check ~/hospitals --format json`
    - `fedscan check ~/clinics --study skin-lesions`
    """
    from common.data.check import check_cohort
    from common.data.site_data import reader_of
    from common.studies.study import load_study
    from simulations.console import counting

    asked = load_study(study)
    reader_of(asked, checks=True)  # refuses a storage that there is none for
    with counting("Opening images") as count:
        report = check_cohort(
            absolute(folder),
            asked,
            progress=lambda site, done, total: count(done, total, site),
        )
    if output_format is Format.json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    elif report.sites:
        _show(report)
    if not report.sites:
        raise ConfigError("\n".join(report.problems))
    raise typer.Exit(0 if report.usable else 2)


def _show(report: CohortReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from simulations.console import out

    if report.sites:
        table = Table("site", "")
        for name in ("class", "train", "val", "test", "persons", "groups", "left out"):
            table.add_column(name, justify="left" if name == "class" else "right")
        for site in report.sites:
            columns = [list(counts.values()) for counts in site.n.values()]
            table.add_row(
                escape(site.site),
                _usable(site.usable),
                "\n".join(["all", *map(escape, site.n["train"])]),
                *("\n".join(map(str, [sum(column), *column])) for column in columns),
                str(site.persons or "–"),
                str(site.groups),
                str(sum(site.left_out.values())),
                end_section=True,
            )
        out.print(table)
    for site in report.sites:
        for what, kinds in (("voxels, mm", site.voxel_sizes_mm), ("axes", site.orientations)):
            if kinds:
                told = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
                out.print(f"site '{site.site}': {what}: {told}", markup=False, soft_wrap=True)
        for reason, count in site.left_out.items():
            out.print(f"site '{site.site}': {count} left out: {reason}", markup=False)
        if site.without_person:
            line = f"site '{site.site}': {site.without_person} images name no person"
            out.print(line, markup=False)
        _tell(site.problems)
        if site.odd:
            out.print(f"[bold yellow]odd[/]: {len(site.odd)} of the heads; look at these scans:")
        _tell(site.odd)
        _tell(site.incomplete)
    _show_identities(report)
    _tell(report.problems)
    if any(report.copies.values()):
        told = ", ".join(f"{count} ({kind})" for kind, count in report.copies.items() if count)
        out.print(f"copies of other images: {told}", markup=False)
    _show_leaks(report)
    out.print("[bold green]usable[/]" if report.usable else "[bold red]not usable[/]")


def _show_identities(report: CohortReport) -> None:
    """Say which kinds of identities there seem to be, where, and what to do."""
    from simulations.console import out

    for site in report.sites:
        for found in site.identities:
            where = ", ".join(found.where[:FEW]) + (", …" if found.n > FEW else "")
            line = f"site '{site.site}': {found.kind}, {found.n} ×: {where}"
            out.print("[bold yellow]identity[/]: ", end="")
            out.print(line, markup=False, soft_wrap=True)
    if any(site.identities for site in report.sites):
        advice = "fedscan sends none of these, but whoever gets the folder can read them. Remove"
        out.print(f"{advice} or replace those that tell who somebody is.", markup=False)


def _show_leaks(report: CohortReport) -> None:
    """Leaks of each kind: how many, some by name, and what to do."""
    from common.imaging.splits import SPLITS
    from simulations.console import out

    kinds: dict[tuple[str, bool, bool], list[Leak]] = {}
    for leak in report.leaks:
        kind = leak.what, len(leak.sites) > 1, len(leak.splits) > 1
        kinds.setdefault(kind, []).append(leak)
    given = {site.site for site in report.sites if site.split_given}
    for (what, of_sites, of_splits), leaks in kinds.items():
        places = [*["splits"] * of_splits, *["hospitals"] * of_sites]
        images = Counter(row["split"] for leak in leaks for row in leak.rows)
        counts = ", ".join(f"{split} {images[split]}" for split in SPLITS if images[split])
        head = f"{len(leaks)} × {what} in several {' and '.join(places)}; images: {counts}"
        problem = leaks[0].is_problem
        out.print(
            f"[bold {'red' if problem else 'yellow'}]{'leak' if problem else 'note'}[/]: ", end=""
        )
        out.print(f"{head}. {_advice(leaks, given, of_sites)}", markup=False, soft_wrap=True)
        _tell(map(_line, leaks))


def _advice(leaks: list[Leak], given: set[str], of_sites: bool) -> str:
    if not leaks[0].is_problem:
        if of_sites and len(leaks[0].splits) > 1:
            return "If these names mean the same at all hospitals, give each one split everywhere"
        return "Nothing need be done, but these count more than once"
    remove = "Remove the column 'split', and fedscan splits by groups"
    if all(leak.one_group for leak in leaks) and all(set(leak.sites) <= given for leak in leaks):
        return remove
    if of_sites:
        return "Keep one of the files, or give all of them one split at every hospital"
    join = "Keep one of the files, or give their rows one name under the study's [groups]"
    return f"{join}. {remove}" if given else join


def _line(leak: Leak) -> str:
    from common.site_files import plain

    return "  " + ", ".join(
        f"{row['site']}/{plain(row['file'])} ({row['split']})" for row in leak.rows[:MOST_LINES]
    )


def _tell(lines: Iterable[str]) -> None:
    from simulations.console import out

    lines = list(lines)
    for line in lines[:MOST_LINES]:
        out.print(line, markup=False, soft_wrap=True)
    if len(lines) > MOST_LINES:
        out.print(f"  and {len(lines) - MOST_LINES} more: --format json lists them", markup=False)


def _usable(usable: bool) -> str:
    return "[green]usable[/]" if usable else "[red]unusable[/]"
