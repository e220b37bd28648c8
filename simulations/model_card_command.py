"""``fedscan model-card``: a README of a trained model, in the Hugging Face format."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from simulations.options import Format, FormatOption, absolute

LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


def model_card(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Folder of a run, of a training of train-gan, or cells/CELL/all of a comparison.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="File to write; RUN/README.md by default.")
    ] = None,
    licence: Annotated[
        str,
        typer.Option(
            "--license", help="Identifier of the model's licence, as apache-2.0; none by default."
        ),
    ] = "",
    authenticity: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `fedscan authenticity` wrote; RUN/authenticity by default, if it is "
            "there."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that this command has not written.")
    ] = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Write a model card: what was trained on what, how well it does, and what it is not for.

    A README in the Hugging Face format, all from the files of the run. It holds no path of this
    machine, and no image; of counts of people it tells no more than the sites have told.

    Examples
    --------
    - `fedscan model-card runs/2026-11-29-1015-brain-sex-fedavg`
    - `fedscan model-card benchmark/cells/federated-fedavg-seed0/all --license apache-2.0`
    - `fedscan model-card gan --authenticity gan/authenticity --format json`
    """
    from common.files import write_atomically
    from simulations.model_card import metadata, read_facts
    from simulations.model_card_text import render

    if licence and not LICENCE.fullmatch(licence):
        raise ConfigError(
            f"--license {licence!r}: accepted is an identifier of small letters, digits, '.', '+' "
            "and '-', such as apache-2.0 or other"
        )
    folder = absolute(run)
    facts = read_facts(folder, authenticity and absolute(authenticity))
    front = metadata(facts, licence)
    target = absolute(out) if out else folder / "README.md"
    if not force:
        _require_ours(target)
    write_atomically(target, render(facts, front).encode())
    typer.echo(json.dumps(front) if output_format is Format.json else str(target))


def _require_ours(path: Path) -> None:
    """Refuse to replace a file that no model card is in.

    Raises
    ------
    ConfigError
    """
    from common.reading import read_bytes
    from simulations.model_card_text import MARK

    remedy = "Give --out another file, or replace it with --force"
    try:
        ours = MARK.encode() in read_bytes(path, limit=2**22)
    except FileNotFoundError:
        return
    if not ours:
        raise ConfigError(f"{path} was not written by this command. {remedy}")
