"""Projections of a user's pictures into a generator's latent space, and what to keep of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import ConfigError
from common.files import write_atomically, write_json
from simulations import console
from simulations.gan.generate import HEIGHT, height_mm, new_folder, open_checkpoint, open_extractor
from simulations.gan.picture_input import is_whole_scan, read_picture

if TYPE_CHECKING:
    from common.models.architecture import Architecture
    from common.training.projector import Projection

ABOUT = "projections.json"


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    checkpoint : Path
    images : tuple of Path
    out : Path
    space : {"w", "w+"}
    steps : int
    labels : tuple of str
        Of the pictures, where they are known: the search starts at the mean of such latents.
    height_mm : float, optional
        Of a whole scan, which slice: mm above the head's centre of mass, by default 0. It is also
        the slice's height label, where the generator has this one and ``labels`` name none.
    extractor : str
        Name or file of the network that tells how far two pictures are apart; ``auto``: the
        default one for the generator's channels.
    seed : int
    device : str
    """

    checkpoint: Path
    images: tuple[Path, ...]
    out: Path
    space: str = "w"
    steps: int = 1000
    labels: tuple[str, ...] = ()
    height_mm: float | None = None
    extractor: str = "auto"
    seed: int = 0
    device: str = "auto"


def project_all(request: Request) -> dict[str, Any]:
    """Project each picture and write its folder, ``000``, ``001``, … in the order given.

    Folders are numbered, since a file's name may be a participant's.

    Returns
    -------
    dict
        What ``projections.json`` holds.

    Raises
    ------
    ConfigError
        For a picture, label, checkpoint or folder that cannot be used, before any work.
    """
    import torch

    from common.models.architecture import encode_labels
    from common.training.gan_sampling import combinations, wanted_labels
    from common.training.projector import project_many

    generator, about = open_checkpoint(request.checkpoint, request.device)
    architecture = generator.architecture
    told = wanted_labels(architecture, request.labels)
    height = request.height_mm or 0.0
    targets = [
        read_picture(
            path,
            channels=architecture.channels,
            resolution=architecture.resolution,
            height_mm=height,
        )
        for path in request.images
    ]
    whole = [is_whole_scan(path) for path in request.images]
    if request.height_mm is not None and not any(whole):
        raise ConfigError(
            "--height cuts a slice out of a whole scan, and none of the pictures is one. The "
            "height of a picture is a label: --label height=9"
        )
    heights = _height_label(architecture, height)
    if any(whole) and not heights and HEIGHT in dict(architecture.labels) and HEIGHT not in told:
        known_ones = ", ".join(dict(architecture.labels)[HEIGHT])
        console.err.print(
            f"Note: the generator knows the heights {known_ones} mm, not {height:g}: projected "
            "without a height label",
            markup=False,
            soft_wrap=True,
        )
    known = [{**heights, **told} if scan else told for scan in whole]
    suited = "fedscan-skin" if architecture.channels == 3 else "fedscan-brain"
    extractor = open_extractor(suited if request.extractor == "auto" else request.extractor)
    new_folder(request.out)
    found = []
    with console.steps("Projecting", request.steps * len(targets)) as bar:

        def tell(step: int, apart: torch.Tensor) -> None:
            note = f"step {step} of {request.steps}, mean distance {apart.mean():.3g}"
            bar.advance(len(apart), note)

        projections = project_many(
            generator,
            torch.from_numpy(np.stack(targets)),
            extractor.perceptual_distance,
            space=request.space,
            steps=request.steps,
            seed=request.seed,
            labels=[encode_labels(architecture, combinations(architecture, one)) for one in known],
            on_step=tell,
        )
        each = zip(targets, known, projections, strict=True)
        for number, (target, labels, done) in enumerate(each):
            about_one = _write(request.out / f"{number:03d}", target, done)
            found.append({**about_one, "labels": labels})
    description = {
        "generator": about,
        "weights": about["weights"].get("sha256"),
        "extractor": extractor.identity(),
        "space": request.space,
        "steps": request.steps,
        "seed": request.seed,
        "projections": found,
    }
    write_json(request.out / ABOUT, description)
    return description


def _height_label(architecture: Architecture, height: float) -> dict[str, str]:
    """Label of slices at a height in mm; empty where the generator knows none such."""
    values = dict(architecture.labels).get(HEIGHT, ())
    same = [value for value in values if height_mm({HEIGHT: value}) == height]
    return {HEIGHT: same[0]} if same else {}


def _write(folder: Path, target: np.ndarray, done: Projection) -> dict[str, Any]:
    """Keep one projection: pictures, latent and noise maps, distances; no other user reads them."""
    from safetensors.torch import save

    from common.imaging.pictures import write_grid, write_path, write_picture

    reached = done.reconstruction.numpy()
    write_picture(folder / "target.png", target)
    write_picture(folder / "reconstruction.png", reached)
    apart = np.abs(reached - target) * 2 - 1  # black where they agree, white from half the range
    write_grid(
        folder / "comparison.png",
        [np.stack([target, reached, apart])],
        captions=["target", "reached", "difference"],
    )
    write_path(
        folder / "path.png",
        target,
        [point.step for point in done.path],
        np.stack([point.image.numpy() for point in done.path]),
        [point.distance for point in done.path],
    )
    state = {"w": done.ws, **{f"noise.{k:02d}": one for k, one in enumerate(done.noise)}}
    write_atomically(folder / "w.safetensors", save(state))
    return {
        "folder": folder.name,
        "distance_start": done.path[0].distance,
        "distance": done.distance,
        "rms_start": _rms(target, done.path[0].image.numpy()),
        "rms": _rms(target, reached),
        "path": [{"step": point.step, "distance": point.distance} for point in done.path],
    }


def _rms(one: np.ndarray, other: np.ndarray) -> float:
    """Root of the mean squared difference of pixels, on the scale of [-1, 1]."""
    return float(np.sqrt(np.mean((one - other) ** 2)))
