"""``fedscan predict``: what is asked for and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ConfigError
from simulations.gan.commands import ThreadsOption
from simulations.options import (
    Device,
    DeviceOption,
    Format,
    FormatOption,
    MovedCohortOption,
    absolute,
    computing_with,
)

if TYPE_CHECKING:
    import pandas as pd

MOST_SHOWN = 5  # images that cannot be used


def predict(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Folder of a classifier: of a run, or cells/CELL/all of a comparison.",
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES...", help="Files, folders of files, or a site's folder as in a cohort."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Table to write.")] = Path("predictions.csv"),
    site: Annotated[
        str | None,
        typer.Option(
            help="Of the run: its own model or adaptation, where the run has one for each site. "
            "That whose folder IMAGES is, or else the model that all share."
        ),
    ] = None,
    cohort: MovedCohortOption = None,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = 1,
    output_format: FormatOption = Format.text,
) -> None:
    """Tell the class of new images, with the probability of each class, by a trained classifier.

    Each image is read, checked and prepared as in training; one that cannot be used has a row with
    the reason. Exit code 0: all images were predicted; 1: some were not.

    Not a medical device: see the limits in the README.

    For example:

    - `fedscan predict runs/RUN scan.nii.gz`
    - `fedscan predict runs/RUN ~/hospitals/north --site north --out north.csv`
    - `fedscan predict runs/RUN new-photographs --format json`
    """
    from common.files import csv_of, without_nan, write_atomically
    from simulations.console import err, steps
    from simulations.predict import PROBLEM, list_images
    from simulations.predict import predict as work
    from simulations.trained import read_trained

    if out.suffix.lower() != ".csv":
        raise ConfigError(f"--out {out}: accepted is the name of a table that ends in .csv")
    trained = read_trained(
        absolute(run), cohort and absolute(cohort), device.value, need_data=False
    )
    asked = images[0] if len(images) == 1 else images
    with computing_with(threads), steps("Image", len(list_images(trained.study, asked))) as bar:
        table = work(
            trained,
            asked,
            site=site or "",
            progress=lambda done, _: bar.advance(done - bar.done),
        )
    write_atomically(absolute(out), csv_of(table))
    lost = table[table[PROBLEM] != ""]
    if trained.config.model.adapt == "threshold" and not table["site"].iloc[0]:
        words = "The model that all share was used, without any site's threshold: see --site"
        err.print(words, markup=False, soft_wrap=True)
    if output_format is Format.json:
        typer.echo(json.dumps(without_nan(table.to_dict("records"))))
    else:
        _show(table)
        typer.echo(str(absolute(out)))
    for row in lost.head(MOST_SHOWN).itertuples():
        err.print(f"{row.image}: {row.problem}", markup=False, soft_wrap=True)
    if len(lost):
        words = f"{len(lost)} of {len(table)} images could not be used; {out} has the reasons"
        err.print(words, markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _show(table: pd.DataFrame) -> None:
    """Print how many images are predicted as each class."""
    from rich.markup import escape
    from rich.table import Table

    from simulations.console import counted, out

    told = table[table["predicted"] != ""]
    where = f", site {escape(table['site'].iloc[0])}" if table["site"].iloc[0] else ""
    shown = Table("predicted", title=f"{counted(len(told), 'image')}{where}", title_justify="left")
    for heading in ("images", "mean probability"):
        shown.add_column(heading, justify="right")
    for name, rows in told.groupby("predicted"):
        mean = rows[f"probability.{name}"].mean()
        shown.add_row(escape(str(name)), str(len(rows)), f"{mean:.2f}")
    out.print(shown)
