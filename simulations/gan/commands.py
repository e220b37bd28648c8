"""``train-gan``, ``generate``, ``project`` and ``bench-gan``: what is asked for and shown."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from simulations.options import (
    Device,
    DeviceOption,
    Format,
    FormatOption,
    StudyOption,
    absolute,
    computing_with,
    finite,
    parse_set,
    study_override,
)

app = typer.Typer()

CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a training, train-gan's --out.")
]
OutOption = Annotated[Path, typer.Option(help="Folder to make for the results.")]
LabelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="[KIND=]VALUE",
        help="For example F, or sex=F; once a kind. A kind that is not named takes all its values "
        "in turn.",
    ),
]
ExtractorOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="Network whose features tell how far pictures are apart: fedscan-brain, fedscan-skin "
        "(auto: by the images), or a safetensors or TorchScript file. TorchScript is a program: "
        "name only files you trust.",
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Same seed, same pictures.")]
ThreadsOption = Annotated[int, typer.Option(min=1, max=256, help="CPU threads.")]


@app.command("train-gan")
def train_gan(
    out: Annotated[Path, typer.Option(help="Folder of the training.")] = Path("gan"),
    study: StudyOption = None,
    cohort: Annotated[
        Path | None,
        typer.Option(help="Folder with a folder for each site. Without it: phantom hospitals."),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(help="Train on this site; repeat it to pool several. By default: all."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="tiny-32 (the default), tiny-32-federated, brain-64, brain-128, paper-256."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override the preset; repeatable."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="What the generator is told: some of the study's conditions, as in sex,height, or "
            "none."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            callback=finite, help="Stop training after this time, even before the preset's kimg."
        ),
    ] = None,
    epsilon: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1000.0,
            callback=finite,
            help="Differential privacy of each person trained on, by DP-SGD; 0: none.",
        ),
    ] = 0.0,
    delta: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, callback=finite, help="δ, with --epsilon; 0: 1 / (10 · people)."
        ),
    ] = 0.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    device: Annotated[Device | None, typer.Option(help="By default a GPU if there is one.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="CPU threads; 1 by default.")
    ] = None,
    extractor: ExtractorOption = "auto",
    output_format: FormatOption = Format.text,
) -> None:
    """Train StyleGAN2-ADA on one site's images, or several sites' pooled; of volumes, on slices.

    Writes a grid of pictures and a checkpoint every few hundred iterations, and at the end
    distances to the test images. Ctrl-C saves; --resume then comes to the weights, bit for
    bit on a CPU, that it would have come to without the stop; only the first means that it writes
    to metrics.jsonl are over the iterations since the stop alone.

    For example:

    - `fedscan train-gan --site north --minutes 15 --threads 2` — a phantom hospital
    - `fedscan train-gan --cohort ~/hospitals --site north --site south --out pooled`
    - `fedscan train-gan --study skin-lesions --minutes 15 --threads 2 --out skin`
    - `fedscan train-gan --preset brain-64 --labels sex,site --set seed=1 --out brains`
    - `fedscan train-gan --out brains --resume --set kimg=1000`
    - `fedscan train-gan --site north --epsilon 8 --set batch-size=64 --out private`
    """
    from simulations.gan.plan import Request
    from simulations.gan.tables import show_summary
    from simulations.gan.train import train

    changes = parse_set(set_ or [])
    options = {
        "label-kinds": labels,
        "device": device and device.value,
        "threads": threads,
    }
    for key, value in options.items():
        if value is not None:
            if key in changes:
                raise ConfigError(f"--set {key} and its option: give one of them")
            changes[key] = value
    if minutes is not None and not 0 < minutes < 1e6:
        raise ConfigError(f"--minutes {minutes:g}: accepted is a time above 0")
    summary = train(
        Request(
            out=absolute(out),
            study=study_override(study).get("study"),
            cohort=cohort and absolute(cohort),
            sites=tuple(site or ()),
            preset=preset,
            changes=changes,
            minutes=minutes,
            resume=resume,
            extractor=extractor,
            epsilon=epsilon,
            delta=delta,
        )
    )
    if output_format is Format.json:
        typer.echo(json.dumps(summary))
        return
    show_summary(summary)
    typer.echo(str(absolute(out)))


@app.command()
def generate(
    checkpoint: CheckpointArgument,
    out: OutOption = Path("pictures"),
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Pictures.")] = 64,
    label: LabelOption = None,
    truncation: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=2.0,
            callback=finite,
            help="ψ: below 1 for more typical, less varied pictures.",
        ),
    ] = 1.0,
    seed: SeedOption = 0,
    nifti: Annotated[
        bool,
        typer.Option(
            "--nifti", help="Also NIfTI slices, 216 mm wide, at their height, 0 air to 1."
        ),
    ] = False,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = 1,
    output_format: FormatOption = Format.text,
) -> None:
    """Make pictures with a trained generator: a PNG each, grid.png, and pictures.json.

    Picture k depends on the seed, its label and k alone: a larger --count adds pictures.

    For example:

    - `fedscan generate gan --out pictures`
    - `fedscan generate gan --count 16 --label female --truncation 0.7 --seed 1 --out women`
    - `fedscan generate gan --label sex=F --label site=north --nifti --out slices`
    """
    from simulations.gan.generate import GRID, Request, label_counts
    from simulations.gan.generate import generate as make

    request = Request(
        checkpoint=absolute(checkpoint),
        out=absolute(out),
        count=count,
        labels=tuple(label or ()),
        truncation=truncation,
        seed=seed,
        nifti=nifti,
        device=device.value,
    )
    with computing_with(threads):
        made = make(request)
    if output_format is Format.json:
        typer.echo(json.dumps(made))
        return
    counts = "; ".join(f"{number} × {name}" for name, number in label_counts(made).items())
    typer.echo(f"{count} {'picture' if count == 1 else 'pictures'} ({counts})")
    typer.echo(str(request.out / GRID))


class Space(StrEnum):
    """Latent spaces to project into."""

    w = "w"
    w_plus = "w+"


@app.command()
def project(
    checkpoint: CheckpointArgument,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE…", help="PNG, JPEG, .npy, NIfTI slices, or whole NIfTI scans."
        ),
    ],
    out: OutOption = Path("projections"),
    space: Annotated[
        Space, typer.Option(help="w: one style; w+: one a layer, closer and less plausible.")
    ] = Space.w,
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Iterations a picture.")] = 1000,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="[KIND=]VALUE",
            help="What is known of the pictures, for example F, or height=9; once a kind. The "
            "search starts at the mean of all latents that fit.",
        ),
    ] = None,
    height: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            help="Slice of a whole scan: mm above the head's centre of mass, 0 by default; also "
            "its height label.",
        ),
    ] = None,
    extractor: ExtractorOption = "auto",
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = 1,
    output_format: FormatOption = Format.text,
) -> None:
    """Find the latent whose picture comes closest to a given one, and show how close.

    Results are numbered in the order of the pictures: 000, 001, … Each holds comparison.png,
    path.png and w.safetensors; projections.json holds the distances.

    For example:

    - `fedscan project gan picture.png --out projections`
    - `fedscan project gan pictures/picture-00000.png slice.nii.gz --space w+ --steps 500`
    - `fedscan project gan ~/north/sub-001/anat/sub-001_T1w.nii.gz --height 9 --label female`
    """
    from simulations.gan.project import Request, project_all
    from simulations.gan.tables import show_projections

    request = Request(
        checkpoint=absolute(checkpoint),
        images=tuple(absolute(path) for path in images),
        out=absolute(out),
        space=space.value,
        steps=steps,
        labels=tuple(label or ()),
        height_mm=height,
        extractor=extractor,
        seed=seed,
        device=device.value,
    )
    with computing_with(threads):
        found = project_all(request)
    if output_format is Format.json:
        typer.echo(json.dumps(found))
        return
    show_projections(found)
    typer.echo(str(request.out))


@app.command("bench-gan")
def bench_gan(
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="R/BASE/MAX/BATCH",
            help="Resolution, channel base, channel maximum, batch; repeatable. By default four.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="float32, bfloat16 or float16; repeatable. By default the first two."),
    ] = None,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each phase is measured.")] = 5,
    output_format: FormatOption = Format.text,
) -> None:
    """Measure how fast StyleGAN2-ADA trains here, and what share of the machine that is.

    The share is the operations of an iteration over its seconds, over the rate of a large float32
    matrix product in the same process: a figure that travels between machines.

    For example:

    - `fedscan bench-gan --threads 2`
    - `fedscan bench-gan --size 32/4096/64/16 --precision float32 --format json`
    - `fedscan bench-gan --device cuda --size 128/8192/128/32 --size 256/16384/512/32`
    """
    from simulations.console import steps
    from simulations.gan import bench
    from simulations.gan.tables import show_speeds

    cases = [
        bench.Case(one, number, device.value, threads, repeats)
        for one in size or bench.SIZES
        for number in precision or bench.PRECISIONS
    ]
    speeds = []
    with steps("Measuring", len(cases)) as bar:
        for speed in bench.bench(cases):
            bar.advance(1, f"{speed.size} {speed.precision}", always=True)
            speeds.append(speed)
    if output_format is Format.json:
        typer.echo(json.dumps(bench.as_json(speeds)))
        return
    show_speeds(speeds)
