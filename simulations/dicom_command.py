"""``fedscan prepare dicom``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.options import Format, FormatOption, absolute

if TYPE_CHECKING:
    from common.data.dicom_sorting import Summary


class Only(StrEnum):
    """Kinds of output."""

    pictures = "pictures"
    volumes = "volumes"


def dicom(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="Folder with DICOM files, under any names.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make: one hospital's.")],
    only: Annotated[
        Only | None, typer.Option(help="Make these and no others; by default, both.")
    ] = None,
    slices: Annotated[
        bool,
        typer.Option("--slices", help="A picture of each slice of CT, MR and PET; no volumes."),
    ] = False,
    window: Annotated[
        bool,
        typer.Option(help="Grey pictures through the file's window, or over all its bits."),
    ] = True,
    keep_burned_in: Annotated[
        bool,
        typer.Option("--keep-burned-in", help="Keep what the file says shows burned-in text."),
    ] = False,
    keep_undeclared: Annotated[
        bool,
        typer.Option(
            "--keep-undeclared",
            help="Keep captures and ultrasound that do not say that they show no such text.",
        ),
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(help="File of the pseudonyms' key; by default one in the user's data folder."),
    ] = None,
    link: Annotated[
        Path | None,
        typer.Option(help="Table to write, for you alone: which patient's file became what."),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Turn DICOM files into pictures and T1-weighted volumes without anything that names a person.

    Example: `fedscan prepare dicom ~/export --out hospitals/north --link ~/north-link.csv`
    """
    from common.data.dicom_listing import Choice
    from common.data.dicom_sorting import sort_dicom
    from common.data.pseudonyms import load_key
    from common.errors import ConfigError
    from common.paths import site_records
    from simulations.console import counting

    folder = absolute(out)
    # No site's folder: a site's name begins with a letter or digit.
    secret = absolute(key or site_records(".pseudonym-key"))
    if secret.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"--key {key}: the key connects pseudonyms with people: not in --out")
    if slices and only is Only.volumes:
        raise ConfigError("--slices makes pictures: leave --only volumes out")
    choice = Choice(
        only=only.value if only else "",
        slices=slices,
        keep_burned_in=keep_burned_in,
        keep_undeclared=keep_undeclared,
    )
    with counting("Reading DICOM files") as count:
        summary = sort_dicom(
            absolute(source),
            folder,
            choice,
            key=load_key(secret),
            window=window,
            link=absolute(link) if link else None,
            progress=lambda part, done, total: count(done, total, part),
        )
    if output_format is Format.json:
        typer.echo(json.dumps({**summary.to_dict(), "out": str(folder)}))
    else:
        _show(summary)
        typer.echo(str(folder))


def _show(summary: Summary) -> None:
    from simulations.console import counted, out

    made = f"{counted(summary.pictures, 'picture')} and {counted(summary.volumes, 'volume')}"
    people = counted(summary.people, "person", "people")
    lines = [f"{made} of {people}, from {summary.used} of {counted(summary.files, 'file')}"]
    lines += [f"{count} left out: {reason}" for reason, count in summary.left_out.items()]
    lines += [f"{counted(count, 'time')}: {note}" for note, count in summary.notes.items()]
    lines.append(f"Kept of the headers: {', '.join(summary.kept)}. All else is dropped.")
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
