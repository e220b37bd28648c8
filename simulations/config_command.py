"""``fedscan config``: every key of a run configuration, with what it accepts and means."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from simulations.options import absolute


class Shape(StrEnum):
    """How keys are listed."""

    text = "text"
    json = "json"
    markdown = "markdown"


def config(
    wanted: Annotated[
        str, typer.Argument(metavar="[GROUP]", help="A group, such as training, or part of a key.")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="File to write for `fedscan run --config`, all commented out."
        ),
    ] = None,
    output_format: Annotated[
        Shape, typer.Option("--format", help="json: for machines; markdown: as in docs/keys.md.")
    ] = Shape.text,
) -> None:
    """List every key of a run configuration: its type, default, range and meaning.

    For example:

    - `fedscan config`
    - `fedscan config training`
    - `fedscan config --out run.toml`
    """
    from common.files import write_atomically
    from simulations.config_keys import list_keys, markdown, template

    keys = list_keys(wanted)
    if out:
        if (path := absolute(out)).exists():
            raise ConfigError(f"{path}: it is there already. Name another file")
        write_atomically(path, template(keys).encode())
        typer.echo(str(path))
    elif output_format is Shape.json:
        typer.echo(json.dumps([asdict(one) for one in keys]))
    elif output_format is Shape.markdown:
        typer.echo(markdown(keys), nl=False)
    else:
        from rich.markup import escape
        from rich.table import Table

        from simulations.console import out as show

        table = Table("key", "default", "accepted and meaning", show_lines=False)
        table.columns[0].overflow = table.columns[1].overflow = "fold"
        table.columns[0].width = min(29, max(len(one.name) for one in keys))
        table.columns[1].max_width = 14
        for one in keys:
            range_ = f"; {one.accepted}" if one.accepted else ""
            about = f"{escape(one.meaning)}\n[dim]{escape(f'{one.type}{range_}')}[/]"
            table.add_row(one.name, escape(one.toml), about)
        show.print(table)
