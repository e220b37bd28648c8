"""Pictures from a checkpoint into a folder: one file each, a grid, and what they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import ConfigError, FedscanError
from common.files import write_atomically, write_json
from common.imaging.prepare import FIELD_OF_VIEW_MM
from common.paths import cache_dir, expanded
from simulations import console
from simulations.folders import require_empty
from simulations.stopping import signals_noted

if TYPE_CHECKING:
    from common.evaluation.extractor import Extractor

ABOUT = "pictures.json"
GRID = "grid.png"
GRID_PICTURES = 64  # at most, in the grid
HEIGHT = "height"  # the kind of label that is a number, in mm


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
        For a checkpoint, label or folder that cannot be used, before anything is written; for a
        generator that makes NaN, before ``pictures.json`` is.
    SystemExit
        With 128 and the signal's number, when interrupted: what was made by then is whole.
    """
    from common.imaging.pictures import arranged, write_grid, write_picture
    from common.training.gan_sampling import combinations, sample_batches, wanted_labels

    generator, about = open_checkpoint(request.checkpoint, request.device)
    architecture = generator.architecture
    turns = combinations(architecture, wanted_labels(architecture, request.labels))
    rows = [turns[number % len(turns)] for number in range(request.count)]
    if request.nifti and architecture.channels != 1:
        raise ConfigError(
            f"--nifti: a slice has one channel, not {architecture.channels}",
            public="--nifti: a slice has one channel, this generator's pictures have more",
        )
    new_folder(request.out)
    files = [f"picture-{number:05d}" for number in range(request.count)]
    shown: list[np.ndarray] = []  # of all pictures, only the grid's stay in memory
    done = 0
    with signals_noted() as noted, console.steps("Generating", request.count) as bar:
        for images in sample_batches(
            generator,
            rows,
            range(request.count),
            truncation=request.truncation,
            seed=request.seed,
        ):
            if not np.isfinite(images).all():
                raise _no_pictures(request.checkpoint)
            for image in images:
                write_picture(request.out / f"{files[done]}.png", image)
                if request.nifti:
                    path = request.out / f"{files[done]}.nii.gz"
                    write_slice(path, image, height_mm=height_mm(rows[done]) or 0.0)
                if done < GRID_PICTURES:
                    shown.append(image.copy())  # not a view, which would keep its batch
                done += 1
            bar.advance(len(images))
            if noted:
                break
    names = [label_name(row) for row in rows[: len(shown)]] if architecture.labels else None
    lines, titles = arranged(np.stack(shown), names)
    write_grid(request.out / GRID, lines, names=titles)
    description = {
        "generator": about,
        "seed": request.seed,
        "truncation": request.truncation,
        "field_of_view_mm": FIELD_OF_VIEW_MM,
        "pictures": [
            {"file": f"{name}.png", "labels": row}
            for name, row in zip(files[:done], rows[:done], strict=True)
        ],
    }
    write_json(request.out / ABOUT, description)
    if noted:
        console.err.print(f"{done} of {request.count} pictures are in {request.out}", markup=False)
        raise SystemExit(128 + noted[0])
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
            "weights as safetensors; other files, pickles above all, are never opened",
            public="no checkpoint: one is the folder that `fedscan train-gan --out` made",
        )
    try:
        generator, about = load_generator(path)
    except FedscanError as error:  # what was named cannot be used: nothing was tried yet
        raise ConfigError(str(error), public="the checkpoint cannot be used") from error
    return generator.to(resolve_device(device)).eval(), about


def open_extractor(name: str) -> Extractor:
    """Load a feature extractor by name or file, and say that a default one may take a while.

    Raises
    ------
    ConfigError
        No such name or file, or a file that is not accepted.
    """
    from common.evaluation.extractor import DEFAULTS, load_extractor

    if name in DEFAULTS:
        console.err.print("Loading the feature extractor; the first time it is made, in minutes")
        return load_extractor(name, cache_dir())
    return load_extractor(expanded(Path(name)), cache_dir())


def new_folder(out: Path) -> None:
    """Make a folder, or take an empty one, so that no two results mix.

    Raises
    ------
    ConfigError
    """
    from simulations.folders import require_writable

    require_empty(out)
    require_writable(out, "--out")


def label_name(row: Mapping[str, str]) -> str:
    """Labels as a person reads them: ``F, -9 mm, north``."""
    return ", ".join(f"{value} mm" if kind == HEIGHT else value for kind, value in row.items())


def height_mm(row: Mapping[str, str]) -> float | None:
    """Height that labels tell, in mm above the head's centre of mass, or None."""
    try:
        height = float(row[HEIGHT])
    except (KeyError, ValueError):  # a checkpoint may come from anywhere
        return None
    return height if math.isfinite(height) else None


def write_slice(path: Path, image: np.ndarray, *, height_mm: float = 0.0) -> None:
    """Write one picture (1, R, R) as a gzipped NIfTI slice (R, R, 1).

    Axes run to the participant's right, front and top; a voxel is ``FIELD_OF_VIEW_MM / R`` mm
    along each, also in thickness, which stands for the spacing of the cubes that training slices
    are cut from. The origin is the head's centre of mass in the training scans: the middle of the
    picture, from which the slice lies ``height_mm`` up, 0 where its height is not known.
    Intensities are those of the prepared scans: 0 is air, 1 the head's 99th percentile.
    """
    import gzip

    import nibabel as nib

    size = image.shape[-1]
    spacing = FIELD_OF_VIEW_MM / size
    voxels = np.clip((image[0][::-1].T[:, :, None] + 1) / 2, 0, 1).astype(np.float32)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:2, 3] = -spacing * (size - 1) / 2
    affine[2, 3] = height_mm
    volume = nib.Nifti1Image(voxels, affine)
    volume.header.set_xyzt_units("mm")
    # Without a clock in it: the same picture gives the same bytes.
    write_atomically(path, gzip.compress(volume.to_bytes(), mtime=0))


def label_counts(made: dict[str, Any]) -> dict[str, int]:
    """Count the pictures of :func:`generate` by label, for the line that a person reads."""
    names = [label_name(one["labels"]) or "unconditional" for one in made["pictures"]]
    return dict(Counter(names))


def _no_pictures(checkpoint: Path) -> ConfigError:
    problem = "this generator makes NaN. Its training diverged"
    return ConfigError(f"{checkpoint}: {problem}", public=problem)
