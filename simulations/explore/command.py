"""``fedscan explore``: what is asked for and shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.gan.commands import ExtractorOption, SeedOption, ThreadsOption
from simulations.options import (
    Device,
    DeviceOption,
    Format,
    FormatOption,
    MovedCohortOption,
    absolute,
    computing_with,
    tell,
)


def explore(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Folder of a generation run, of train-gan, or cells/CELL/all of a comparison.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make for the results.")] = Path("explore"),
    count: Annotated[
        int, typer.Option(min=8, max=5000, help="Real images, and as many generated ones.")
    ] = 200,
    site: Annotated[
        list[str] | None, typer.Option(help="Real images of this site; repeatable. By default all.")
    ] = None,
    maps: Annotated[
        str | None,
        typer.Option(help="Of pca,tsne,umap; by default all, umap where umap-learn is installed."),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of the sites' tables, such as hair as a person saw it: its direction is "
            "found from projected images; repeatable.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIRECTION",
            help="Take this direction, as directions.csv names it, out of all others; repeatable.",
        ),
    ] = None,
    neighbours_of: Annotated[
        Path | None,
        typer.Option(metavar="IMAGE", help="Show its nearest real and generated images."),
    ] = None,
    projections: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Of `fedscan authenticity` or `fedscan project`, instead of projecting anew.",
        ),
    ] = None,
    project: Annotated[
        int, typer.Option(min=0, help="Of the real images, how many to project into W.")
    ] = 40,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a projection.")] = 200,
    artefacts: Annotated[
        bool | None,
        typer.Option(
            "--artefacts/--no-artefacts",
            help="Directions of hair, rulers and frames by detectors trained on phantoms; by "
            "default where the lesions are phantoms.",
        ),
    ] = None,
    extractor: ExtractorOption = "auto",
    cohort: MovedCohortOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = 1,
    output_format: FormatOption = Format.text,
) -> None:
    """Look into a generator's latent space: maps, directions of labels, strips, mixed styles.

    Maps and projections of real images are derived from patients: at a deployed site they stay with
    the site, as do directions by --attribute. `stays` in explore.json lists these files. Pictures
    of generated images alone are in strips, interpolation.png, truncation.png and mixing.png.

    For example:

    - `fedscan explore gan`
    - `fedscan explore runs/2026-11-29-1015-brain-sex-fedavg --maps pca,tsne --site island`
    - `fedscan explore skin --without frame --out lesions` — directions that keep the frame
    - `fedscan explore skin --projections authenticity --attribute hair`
    - `fedscan explore skin --neighbours-of lesion.png --project 0 --format json`
    """
    from common.latent.maps import INSTALL, METHODS, installed_methods
    from simulations.console import err
    from simulations.explore.explore import Request
    from simulations.explore.explore import explore as look

    chosen = tuple(dict.fromkeys(maps.split(","))) if maps else installed_methods()
    if not maps and chosen != METHODS:
        err.print(f"Note: no UMAP, for which umap-learn is to be installed: {INSTALL}")
    request = Request(
        run=absolute(run),
        out=absolute(out),
        count=count,
        sites=tuple(site or ()),
        maps=chosen,
        attributes=tuple(attribute or ()),
        without=tuple(without or ()),
        neighbours_of=neighbours_of and absolute(neighbours_of),
        projections=projections and absolute(projections),
        project=project,
        steps=steps,
        artefacts=artefacts,
        extractor=extractor,
        cohort=cohort and absolute(cohort),
        seed=seed,
        device=device.value,
    )
    with computing_with(threads):
        found = look(request)
    tell(found, request.out, output_format, show)


def show(found: Mapping[str, Any]) -> None:
    """Print how mixed the kinds of images are, and how well each label can be told in W."""
    from rich.markup import escape
    from rich.table import Table

    from simulations.console import out

    table = Table(title="Nearest neighbour of the same kind", title_justify="left")
    for heading in ("kinds", "images of each", "accuracy", "by chance"):
        table.add_column(heading, justify="left" if heading == "kinds" else "right")
    for name, one in found["separability"].items():
        low, high = one["chance"]
        cells = (str(one["count"]), f"{one['accuracy']:.2f}", f"{low:.2f} to {high:.2f}")
        table.add_row(name, *cells)
    out.print(table)
    table = Table(title="Directions of W", title_justify="left")
    for heading in ("direction", "labels of", "balanced accuracy", "95 % CI"):
        table.add_column(heading, justify="right" if heading[0] in "b9" else "left")
    for one in found["directions"]:
        numbers = ("–", "–")
        if "accuracy" in one:
            numbers = (f"{one['accuracy']:.2f}", f"{one['low']:.2f} to {one['high']:.2f}")
        table.add_row(escape(one["direction"]), one["labels_of"], *numbers)
    out.print(table)
    if any("accuracy" not in one for one in found["directions"]):
        out.print("–: too few images with the label, or without")
