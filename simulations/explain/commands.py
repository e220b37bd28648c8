"""``explain`` and ``similar``: what is asked for and shown."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

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

app = typer.Typer()

RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Folder of a classifier: of a run, or cells/CELL/all of a comparison."
    ),
]
OutOption = Annotated[
    Path, typer.Option(help="Folder to make, on a disk where pictures of patients may be.")
]


class Method(StrEnum):
    """How to ask where a classifier looks."""

    gradcam = "gradcam"
    occlusion = "occlusion"
    both = "both"


class Split(StrEnum):
    """Of which images."""

    val = "val"
    test = "test"


@app.command()
def explain(
    run: RunArgument,
    out: OutOption = Path("explanation"),
    site: Annotated[
        list[str] | None, typer.Option(help="Of the run; repeatable. By default all.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which images.")] = Split.test,
    count: Annotated[
        int,
        typer.Option(min=1, max=100_000, help="Images of each site, evenly over the classes."),
    ] = 24,
    method: Annotated[
        Method, typer.Option(help="gradcam: one pass; occlusion: slow, of any classifier.")
    ] = Method.gradcam,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder with NAME_segmentation.png (as of ISIC 2018) or NAME.png for a picture "
            "NAME.jpg: white is lesion."
        ),
    ] = None,
    cohort: MovedCohortOption = None,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = 1,
    output_format: FormatOption = Format.text,
) -> None:
    """Show where a classifier looks, and measure how much of it is lesion, hair, ruler or frame.

    Writes a grid of images and maps for each class, averages by class and hospital, attention.csv
    and attention.json into the folder of --out, by default explanation. Simulated images have known
    masks; real ones take those of --masks.

    **Grids and averages of real images are pictures of patients.** Run this at the hospital that
    has them, write to its own disk, and leave them there.

    For example:

    - `fedscan explain runs/RUN --method both --out explanation`
    - `fedscan explain runs/RUN --site north --count 200 --format json`
    - `fedscan explain runs/RUN --site clinic --masks ~/ISIC2018_Task1_Training_GroundTruth`
    """
    from common.explanation.saliency import METHODS
    from simulations.explain import run as work

    request = work.Request(
        run=absolute(run),
        out=absolute(out),
        cohort=cohort and absolute(cohort),
        sites=tuple(site or ()),
        split=split.value,
        count=count,
        methods=METHODS if method is Method.both else (method.value,),
        masks=masks and absolute(masks),
        device=device.value,
    )
    with computing_with(threads):
        found = work.explain(request)
    if output_format is Format.json:
        typer.echo(json.dumps(found))
        return
    show_attention(found)
    typer.echo(str(request.out))


@app.command()
def similar(
    run: RunArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="As the study's images are.")],
    out: OutOption = Path("similar"),
    site: Annotated[
        str | None, typer.Option(help="Whose cases; needed where the run has several sites.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=100, help="Cases to show.")] = 5,
    cohort: MovedCohortOption = None,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = 1,
    output_format: FormatOption = Format.text,
) -> None:
    """Show the training cases of one site that a classifier sees as it sees an image.

    Writes similar.png, the image and its nearest cases, and similar.json, with the cases' files,
    into the folder of --out, by default similar. No other site's images
    are opened. Precision at 5 says how far to trust it: how often the five nearest training cases
    of the site's test images have their label.

    **The strip of real images shows patients.** Run this at the hospital that has them, write to
    its own disk, and leave it there.

    For example:

    - `fedscan similar runs/RUN lesion.jpg --site north`
    - `fedscan similar runs/RUN ~/north/images/north-00001-1-1.jpg --site north --format json`
    """
    from simulations.explain import similar as work

    request = work.Request(
        run=absolute(run),
        image=absolute(image),
        out=absolute(out),
        cohort=cohort and absolute(cohort),
        site=site,
        count=count,
        device=device.value,
    )
    with computing_with(threads):
        found = work.similar(request)
    if output_format is Format.json:
        typer.echo(json.dumps(found))
        return
    show_neighbours(found)
    typer.echo(str(request.out / work.STRIP))


def show_attention(summary: dict[str, Any]) -> None:
    """Print ratio and influence of each site, method and mask, and what is flagged."""
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    from simulations.console import out

    told = False
    for method in summary["methods"]:
        table = Table(
            title=f"Attention of the classifier by {method}, {summary['split']} images",
            title_justify="left",
            box=SIMPLE,  # its narrow columns fit into 80
        )
        for heading in ("site", "mask"):
            table.add_column(heading)
        for heading in ("images", "ratio", "influence"):
            table.add_column(heading, justify="right")
        table.add_column("")
        for site, of_site in summary["sites"].items():
            for mask, one in of_site[method].items():
                if one["images"]:
                    flag = "[bold]SHORTCUT[/]" if one["shortcut"] else ""
                    numbers = (_interval(one["ratio"]), _interval(one["influence"]))
                    table.add_row(escape(site), mask, str(one["images"]), *numbers, flag)
        if table.row_count:
            out.print(table)
            told = True
    if told:
        out.print(
            "ratio: attention in the mask over its area, 1 is no preference; influence: log-odds "
            "it changes when covered, beyond covering as much elsewhere; 95 % CI over persons. "
            f"Tests for shortcuts: {summary['tests']}, of all images together"
        )
    else:
        out.print("No masks of these images are known: --masks names a folder of them")
    if left_out := summary["left_out"]:
        names = escape(", ".join(left_out))
        out.print(f"Left out, without a labelled {summary['split']} image: {names}")


def show_neighbours(summary: dict[str, Any]) -> None:
    """Print a query's nearest cases, and how often such cases agree."""
    from rich.markup import escape
    from rich.table import Table

    from simulations.console import out

    table = Table(
        title=f"Nearest training cases at {escape(summary['site'])}; the classifier says "
        f"{escape(summary['predicted'])} ({summary['probability']:.2f})",
        title_justify="left",
    )
    table.add_column("label")
    for heading in ("distance", "person"):
        table.add_column(heading, justify="right")
    table.add_column("file in the site's folder", overflow="fold")
    for one in summary["neighbours"]:
        far = f"{one['distance']:.3f}"
        table.add_row(escape(one["label"]), far, str(one["person"]), escape(one["file"]))
    out.print(table)
    if (found := summary["precision"]) is None:
        out.print("The site has no test image with a label, so that precision is not known")
        return
    out.print(
        f"Precision at {found['at']} of {found['images']} test images: {found['mean']:.2f} "
        f"(mean of classes {found['mean_of_classes']:.2f}; by chance {found['chance']:.2f})"
    )


def _interval(found: dict[str, Any] | None) -> str:
    if found is None or found["mean"] is None:
        return "–"
    ends = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    return f"{found['mean']:.2f}{ends}"
