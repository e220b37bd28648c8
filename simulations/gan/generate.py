"""Pictures from a checkpoint into a folder: one file each, a grid, and what they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import ConfigError, FedscanError
from common.files import write_atomically, write_json
from common.imaging.prepare import FIELD_OF_VIEW_MM
from common.paths import cache_dir
from simulations import console

if TYPE_CHECKING:
    from common.evaluation.extractor import Extractor

ABOUT = "pictures.json"
GRID = "grid.png"
GRID_PICTURES = 64  # at most, in the grid


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    checkpoint : Path
        Folder of a training.
    out : Path
        Folder to make.
    count : int
    labels : tuple of str
        ``F`` or ``sex=F``; kinds that are not named take their values in turn.
    truncation : float
        ψ.
    seed : int
    nifti : bool
        Write NIfTI slices beside the PNGs.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    """

    checkpoint: Path
    out: Path
    count: int = 64
    labels: tuple[str, ...] = ()
    truncation: float = 1.0
    seed: int = 0
    nifti: bool = False
    device: str = "auto"


def generate(request: Request) -> dict[str, Any]:
    """Make the pictures.

    Returns
    -------
    dict
        What ``pictures.json`` holds: where they come from, and each picture's file and labels.

    Raises
    ------
    ConfigError
        For a checkpoint, label or folder that cannot be used; nothing is written then.
    """
    from common.training.gan_sampling import combinations, sample_rows, wanted_labels
    from simulations.gan.pictures import arranged, write_grid, write_picture

    generator, about = open_checkpoint(request.checkpoint, request.device)
    architecture = generator.architecture
    turns = combinations(architecture, wanted_labels(architecture, request.labels))
    rows = [turns[number % len(turns)] for number in range(request.count)]
    if request.nifti and architecture.channels != 1:
        raise ConfigError(f"--nifti: a slice has one channel, not {architecture.channels}")
    new_folder(request.out)
    with console.steps("Generating", request.count) as bar:
        images = sample_rows(
            generator,
            rows,
            range(request.count),
            truncation=request.truncation,
            seed=request.seed,
            on_picture=bar.advance,
        )
    if not np.isfinite(images).all():
        raise ConfigError(f"{request.checkpoint}: this generator makes NaN. Its training diverged")
    files = [f"picture-{number:05d}" for number in range(request.count)]
    for name, image in zip(files, images, strict=True):
        write_picture(request.out / f"{name}.png", image)
        if request.nifti:
            write_slice(request.out / f"{name}.nii.gz", image)
    shown = slice(0, GRID_PICTURES)
    names = [label_name(row) for row in rows[shown]] if architecture.labels else None
    lines, titles = arranged(images[shown], names)
    write_grid(request.out / GRID, lines, names=titles)
    description = {
        "generator": about,
        "seed": request.seed,
        "truncation": request.truncation,
        "field_of_view_mm": FIELD_OF_VIEW_MM,
        "pictures": [
            {"file": f"{name}.png", "labels": row} for name, row in zip(files, rows, strict=True)
        ],
    }
    write_json(request.out / ABOUT, description)
    return description


def open_checkpoint(path: Path, device: str) -> tuple[Any, dict[str, Any]]:
    """Load the generator of a training's folder, onto a device.

    Raises
    ------
    ConfigError
        If the path is no such folder, or the checkpoint is broken, or made by code of another
        architecture. Nothing is ever unpickled.
    """
    from common.training.gan_checkpoint import load_generator
    from common.training.gan_state import resolve_device

    if path.is_file() and path.suffix not in (".json", ".safetensors"):
        raise ConfigError(
            f"{path} is no checkpoint. One is the folder that `fedscan train-gan --out` made, with "
            "weights as safetensors; other files, pickles above all, are never opened"
        )
    try:
        generator, about = load_generator(path)
    except FedscanError as error:  # what was named cannot be used: nothing was tried yet
        raise ConfigError(str(error), public=error.public) from error
    return generator.to(resolve_device(device)).eval(), about


def open_extractor(name: str) -> Extractor:
    """Load a feature extractor by name or file, and say that the default one may take a while.

    Raises
    ------
    ConfigError
        No such name or file, or a file that is not accepted.
    """
    from common.evaluation.extractor import DEFAULT, load_extractor

    if name == DEFAULT:
        console.err.print("Loading the feature extractor; the first time it is made, in a minute")
        return load_extractor(name, cache_dir())
    return load_extractor(Path(name).expanduser(), cache_dir())


def new_folder(out: Path) -> None:
    """Make a folder, or take an empty one, so that no two results mix.

    Raises
    ------
    ConfigError
    """
    from simulations.federate import require_writable

    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} holds files. Give --out a folder that does not exist")
    require_writable(out, "--out")


def label_name(row: dict[str, str]) -> str:
    """Labels as a person reads them: ``F, north``."""
    return ", ".join(row.values())


def write_slice(path: Path, image: np.ndarray) -> None:
    """Write one picture (1, R, R) as a gzipped NIfTI slice (R, R, 1).

    Axes run to the participant's right, front and top; a voxel is ``FIELD_OF_VIEW_MM / R`` mm
    along each, also in thickness, which stands for the spacing of the cubes that training slices
    are cut from. The origin is the middle of the picture, the head's centre of mass in the
    training scans; the height is not known and stands at 0. Intensities are those of the prepared
    scans: 0 is air, 1 the head's 99th percentile.
    """
    import gzip

    import nibabel as nib

    size = image.shape[-1]
    spacing = FIELD_OF_VIEW_MM / size
    voxels = np.clip((image[0][::-1].T[:, :, None] + 1) / 2, 0, 1).astype(np.float32)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:2, 3] = -spacing * (size - 1) / 2
    volume = nib.Nifti1Image(voxels, affine)
    volume.header.set_xyzt_units("mm")
    # Without a clock in it: the same picture gives the same bytes.
    write_atomically(path, gzip.compress(volume.to_bytes(), mtime=0))


def label_counts(made: dict[str, Any]) -> dict[str, int]:
    """Count the pictures of :func:`generate` by label, for the line that a person reads."""
    names = [label_name(one["labels"]) or "unconditional" for one in made["pictures"]]
    return dict(Counter(names))
