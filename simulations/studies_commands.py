"""``fedscan studies``: the list of studies, a file for a new one, and its text for ``flwr run``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from simulations.options import Format, FormatOption, absolute, study_override

app = typer.Typer(
    help="List the studies that come with fedscan, or begin one of your own.",
    invoke_without_command=True,
)


@app.callback()
def studies(context: typer.Context, output_format: FormatOption = Format.text) -> None:
    """List the studies that come with fedscan, or begin one of your own.

    Example: `fedscan studies --format json`
    """
    if context.invoked_subcommand is not None:
        return
    from common.studies.built_in import summarise_studies

    found = summarise_studies()
    if output_format is Format.json:
        typer.echo(json.dumps([asdict(one) for one in found]))
        return
    from rich.table import Table

    from simulations.console import out

    table = Table("study", "storage", "classes", "about")
    for one in found:
        table.add_row(one.name, one.storage, ", ".join(one.classes), one.about)
    out.print(table)


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="Study to write; ends in .toml.")],
    folder: Annotated[
        Path, typer.Option("--from", help="A hospital's folder, or one with a folder a hospital.")
    ],
) -> None:
    """Look at a folder and write a commented study for it, to be read and corrected.

    Example: `fedscan studies new chest.toml --from hospitals/north`
    """
    from common.data.folder_survey import survey_folder
    from common.data.image_table import read_image_table
    from common.data.new_study import write_study
    from common.errors import DataContractError
    from simulations.console import err

    survey = survey_folder(absolute(folder))
    study = write_study(absolute(file), survey)

    def tell(line: str) -> None:
        err.print(line, markup=False, soft_wrap=True)

    hospitals = f" of {len(survey.folders)} hospitals" if len(survey.folders) > 1 else ""
    tell(f"Looked at {survey.table}{hospitals} in {folder}: {survey.rows} rows.")
    tell(f"Label: column '{survey.label}', {len(survey.classes)} classes. Is it what you ask?")
    if not survey.person and not survey.is_bids:
        tell("No column looks like the person: every picture would count as another's.")
    for why in survey.apart.values():
        tell(f"Not looked at: {why}")
    if not survey.is_bids:
        for home in survey.folders:
            where = f"{home.name}: " if hospitals else ""
            try:
                table = read_image_table(home, home.name, study)
            except DataContractError as error:
                tell(f"The folder cannot be read under it yet: {error}")
            else:
                unusable = sum(table.left_out.values())
                tell(f"{where}{len(table)} pictures can be used, {unusable} rows not.")
    typer.echo(str(file))


@app.command()
def text(
    study: Annotated[str, typer.Argument(help="A study's TOML file, or a built-in study's name.")],
) -> None:
    """Write a study as a run configuration for `flwr run`, since sites cannot read your file.

    The study is checked first. Example:

    `fedscan studies text chest.toml > run.toml`

    Append `[data]` with `cohort-dir`, and what else differs: see docs/configuration.md.
    """
    from common.studies.run_text import run_config_toml

    study_override(study)  # refuses a storage that nothing reads
    typer.echo(run_config_toml(study), nl=False)
