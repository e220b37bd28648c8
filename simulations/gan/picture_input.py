"""A picture from a user's file, as a network takes it: PNG, ``.npy``, NIfTI slice or whole scan.

The file may be broken or hostile: what it promises is judged before memory is taken for it, and
nothing in it is executed or unpickled. Messages name the file to whoever gave it, and to nobody
else: a file is often named after a participant.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from common.errors import ConfigError, DataContractError

MAX_SIDE = 4096  # pixels of a picture
MAX_BYTES = 64 * 2**20  # of a PNG, .npy or slice, as it lies on disk; the NIfTI reader has its own
ACCEPTED = "accepted are .png, .npy, and NIfTI (.nii, .nii.gz) slices and scans"
_FIELD_OF_VIEW_TOLERANCE = 0.01


def read_picture(path: Path, *, channels: int, resolution: int, height_mm: float) -> np.ndarray:
    """Read one picture and bring it to a network's channels and resolution.

    Parameters
    ----------
    path : Path
        A square PNG, 0 to 255 (or 65535) for -1 to 1; a ``.npy`` of (R, R) or (C, R, R), floats
        in [-1, 1] or 8-bit; a NIfTI slice as ``fedscan generate --nifti`` writes them, 0 to 1; or
        a whole NIfTI scan, of which one slice is prepared as for training.
    channels, resolution : int
        C and R. A square of another size is resampled.
    height_mm : float
        Which slice of a scan: mm above the head's centre of mass.

    Returns
    -------
    np.ndarray
        (C, R, R) float32 in [-1, 1].

    Raises
    ------
    ConfigError
        With the file's name, what is wrong with it and what is accepted.
    """
    if not path.is_file():
        raise _refuse(path, "there is no such file")
    try:
        name = path.name.lower()
        if name.endswith(".png"):
            picture = _png(path, channels)
        elif name.endswith(".npy"):
            picture = _npy(path)
        elif name.endswith((".nii", ".nii.gz")):
            picture = _nifti(path, resolution, height_mm)
        else:
            raise _refuse(path, "not a picture that fedscan reads")
    except OSError as error:
        raise _refuse(path, f"cannot be read ({error.strerror or error})") from None
    if picture.shape[0] != channels:
        raise _refuse(
            path, f"{picture.shape[0]} channels, but the generator makes {channels}", accepted=False
        )
    if picture.shape[1] != picture.shape[2]:
        sides = " × ".join(map(str, picture.shape[1:]))
        raise _refuse(
            path, f"{sides} pixels; stretching would change the anatomy. Crop it to a square", False
        )
    return _resampled(picture, resolution)


def _refuse(path: Path, problem: str, accepted: bool = True) -> ConfigError:
    rule = f"; {ACCEPTED}" if accepted else ""
    return ConfigError(f"{path}: {problem}{rule}", public=f"a picture: {problem}{rule}")


def _check_size(path: Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise _refuse(path, f"larger than {MAX_BYTES // 2**20} MiB", False)


def _check_sides(path: Path, sides: tuple[int, ...]) -> None:
    if not all(2 <= side <= MAX_SIDE for side in sides):
        got = " × ".join(map(str, sides))
        raise _refuse(path, f"{got} pixels; accepted are 2 to {MAX_SIDE} a side", False)


def _png(path: Path, channels: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    _check_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(path, formats=["PNG"])
        with opened as image:
            _check_sides(path, image.size)  # from the header: no pixel is unpacked yet
            if getattr(image, "n_frames", 1) > 1:
                raise _refuse(path, "an animation; accepted is a single picture", False)
            if image.mode.startswith("I"):  # 16 bits a pixel
                grey = np.asarray(image, dtype=np.float32)[None] / np.float32(65535)
                return np.repeat(grey, channels, axis=0) * 2 - 1
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"), dtype=np.float32)
    # Pillow raises whichever of these a broken stream runs it into.
    except (UnidentifiedImageError, SyntaxError, ValueError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _refuse(path, "not a whole PNG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _refuse(
            path, f"too many pixels; accepted are 2 to {MAX_SIDE} a side", False
        ) from None
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return planes / np.float32(127.5) - 1


def _npy(path: Path) -> np.ndarray:
    _check_size(path)
    try:
        # Mapped, not read: a header may promise any shape. Pickled objects are refused.
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, OverflowError):
        raise _refuse(path, "not a whole .npy array of numbers") from None
    if not isinstance(stored, np.ndarray) or stored.ndim not in (2, 3):
        raise _refuse(path, "not an array of shape (R, R) or (C, R, R)", False)
    _check_sides(path, stored.shape[-2:])
    if stored.ndim == 3 and not 1 <= stored.shape[0] <= 4:
        raise _refuse(path, f"shape {stored.shape}; accepted are (R, R) and (C, R, R)", False)
    if stored.dtype == np.uint8:
        picture = np.asarray(stored, np.float32) / np.float32(127.5) - 1
    elif stored.dtype.kind == "f":
        picture = np.asarray(stored, np.float32)
        if not (np.isfinite(picture).all() and np.abs(picture).max() <= 1 + 1e-3):
            raise _refuse(path, "values beyond [-1, 1]; scale them to it, air at -1", False)
    else:
        raise _refuse(
            path, f"numbers of type {stored.dtype}; accepted are 8-bit and floats in [-1, 1]", False
        )
    return picture[None] if picture.ndim == 2 else picture


def _nifti(path: Path, resolution: int, height_mm: float) -> np.ndarray:
    import nibabel as nib

    try:
        image = nib.load(path)
        shape = image.shape
    except OSError:
        raise
    except Exception:  # nibabel raises many kinds for a broken header
        raise _refuse(path, "not a NIfTI file") from None
    if sum(side > 1 for side in shape) > 2:
        return _scan(path, resolution, height_mm)
    return _slice(path, image)


def _scan(path: Path, resolution: int, height_mm: float) -> np.ndarray:
    from common.imaging.nifti import load_scan
    from common.imaging.prepare import FIELD_OF_VIEW_MM, prepare_volume
    from common.imaging.slices import axial_slices

    if not abs(height_mm) < FIELD_OF_VIEW_MM / 2 - FIELD_OF_VIEW_MM / resolution:
        raise ConfigError(f"--height {height_mm:g}: beyond the cube of {FIELD_OF_VIEW_MM:g} mm")
    try:
        volume, affine = load_scan(path, site="", root=path.parent)
    except DataContractError as error:
        got = f" (got {error.got})" if error.got else ""
        remedy = f". {error.remedy}" if error.remedy else ""
        raise _refuse(path, f"{error.problem}{got}{remedy}", False) from None
    cube = prepare_volume(volume, affine, image_size=resolution)
    if not cube.any():
        raise _refuse(path, "no head can be told from the background", False)
    return axial_slices(cube, [height_mm])


def _slice(path: Path, image: object) -> np.ndarray:
    """Read an axial slice, stored with air at 0 and x to the right, y to the front."""
    import nibabel as nib

    from common.imaging.prepare import FIELD_OF_VIEW_MM

    _check_size(path)
    _check_sides(path, image.shape[:2])
    if image.get_data_dtype().kind not in "iuf":
        raise _refuse(path, "its voxels are not numbers", False)
    if len(image.shape) < 3 or "".join(nib.aff2axcodes(image.affine)) != "RAS":
        raise _refuse(
            path, "accepted is a slice (R, R, 1) with axes right, anterior, superior", False
        )
    try:
        voxels = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(image.shape[:2])
    except Exception:  # truncated or corrupted: zlib's, gzip's, nibabel's and NumPy's errors
        raise _refuse(path, "truncated or corrupted. Copy the file again", False) from None
    sizes = np.asarray(image.header.get_zooms()[:2], float) * image.shape[:2]
    if not np.allclose(sizes, FIELD_OF_VIEW_MM, rtol=_FIELD_OF_VIEW_TOLERANCE):
        got = " × ".join(f"{size:.4g}" for size in sizes)
        raise _refuse(path, f"covers {got} mm; accepted are {FIELD_OF_VIEW_MM:g} mm a side", False)
    if not (np.isfinite(voxels).all() and voxels.min() >= -1e-3 and voxels.max() <= 1 + 1e-3):
        raise _refuse(path, "values beyond 0 (air) to 1; scale them to it", False)
    return (voxels.T[::-1] * 2 - 1)[None].astype(np.float32)


def _resampled(picture: np.ndarray, resolution: int) -> np.ndarray:
    """Bring a square picture to R pixels a side; where pixels are lost, they are averaged."""
    from PIL import Image

    if picture.shape[1] != resolution:
        size = (resolution, resolution)
        picture = np.stack(
            [
                np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC))
                for plane in np.ascontiguousarray(picture, np.float32)
            ]
        )
    return np.clip(picture, -1, 1).astype(np.float32)
