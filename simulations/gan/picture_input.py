"""A picture from a user's file, as a network takes it: PNG, JPEG, ``.npy``, NIfTI slice or scan.

The file may be broken or hostile: what it promises is judged before memory is taken for it, and
nothing in it is executed or unpickled. Messages name the file to whoever gave it, and to nobody
else: a file is often named after a participant.
"""

from __future__ import annotations

import gzip
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from common.errors import ConfigError, DataContractError
from common.imaging import nifti
from common.site_files import open_inside

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 4096  # pixels of a picture
MAX_BYTES = (
    64 * 2**20
)  # of a PNG, JPEG, .npy or slice, as it lies on disk; the NIfTI reader has its own
EMPTY = -0.9  # of [-1, 1]: a slice with nothing brighter shows air
PIXELS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
ACCEPTED = "accepted are .png, .jpg, .npy, and NIfTI (.nii, .nii.gz) slices and scans"
NIFTI = (".nii", ".nii.gz")
GZIP = b"\x1f\x8b"
_HEADER_BYTES = 540  # of NIfTI-2, the longer one
_MAX_OFFSET = 2**20  # of a slice's voxels, behind header extensions
_FIELD_OF_VIEW_TOLERANCE = 0.01


def read_picture(path: Path, *, channels: int, resolution: int, height_mm: float) -> np.ndarray:
    """Read one picture and bring it to a network's channels and resolution.

    Parameters
    ----------
    path : Path
        A square PNG or JPEG, 0 to 255 (or 65535) for -1 to 1, black where it is transparent; a
        ``.npy`` of (R, R) or (C, R, R), floats in [-1, 1] or 8-bit; a NIfTI slice as ``fedscan
        generate --nifti`` writes them, 0 to 1; or a whole NIfTI scan, of which one slice is
        prepared as for training.
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
    if path.is_dir():
        raise _refuse(path, "a folder; name the pictures in it")
    if not path.is_file():
        raise _refuse(path, "there is no such file")
    try:
        name = path.name.lower()
        if kind := PIXELS.get(Path(name).suffix):
            picture = _pixels(path, kind, channels)
        elif name.endswith(".npy"):
            picture = _npy(path)
        elif name.endswith(NIFTI):
            picture = _nifti(path, resolution, height_mm)
        else:
            raise _refuse(path, f"not a picture that fedscan reads; {ACCEPTED}")
    except OSError as error:
        raise _refuse(
            path, "cannot be read", f"cannot be read ({error.strerror or error})"
        ) from None
    if picture.shape[0] != channels:
        raise _refuse(
            path,
            "a wrong number of channels",
            f"{picture.shape[0]} channels, but the generator makes {channels}",
        )
    if picture.shape[1] != picture.shape[2]:
        sides = " × ".join(map(str, picture.shape[1:]))
        remedy = "stretching would change the anatomy. Crop it to a square"
        raise _refuse(path, f"not square; {remedy}", f"{sides} pixels; {remedy}")
    if not np.ptp(picture, axis=(1, 2)).any():
        raise _refuse(path, "it shows nothing: all its pixels are alike")
    return _resampled(picture, resolution)


def is_whole_scan(path: Path) -> bool:
    """Tell whether a slice is to be cut out of a file: NIfTI, of more than one plane.

    Raises
    ------
    ConfigError
        A NIfTI file's header cannot be read.
    """
    if not path.name.lower().endswith(NIFTI):
        return False
    try:
        with _opened(path) as stream:
            return sum(side > 1 for side in _sides(_header(stream, path))) > 2
    except DataContractError as error:
        raise _as_picture(path, error) from None


def _refuse(path: Path, problem: str, detail: str = "") -> ConfigError:
    """Refuse a file; ``detail`` is the problem with values read from it, for its owner alone."""
    return ConfigError(f"{path}: {detail or problem}", public=f"a picture: {problem}")


def _check_size(path: Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise _refuse(path, f"larger than {MAX_BYTES // 2**20} MiB")


def _check_sides(path: Path, sides: tuple[int, ...]) -> None:
    if not all(2 <= side <= MAX_SIDE for side in sides):
        got, rule = " × ".join(map(str, sides)), f"accepted are 2 to {MAX_SIDE} a side"
        raise _refuse(path, f"too many or too few pixels; {rule}", f"{got} pixels; {rule}")


def _pixels(path: Path, kind: str, channels: int) -> np.ndarray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    _check_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(path, formats=[kind])
        with opened as image:
            _check_sides(path, image.size)  # from the header: no pixel is unpacked yet
            if getattr(image, "n_frames", 1) > 1:
                raise _refuse(path, "an animation; accepted is a single picture")
            if image.mode.startswith("I"):  # 16 bits a pixel
                grey = np.asarray(image, dtype=np.float32)[None] / np.float32(65535)
                return np.repeat(grey, channels, axis=0) * 2 - 1
            upright = ImageOps.exif_transpose(image)
            opaque = over_black(upright)
            pixels = np.asarray(opaque.convert("RGB" if channels == 3 else "L"), np.float32)
    # Pillow raises whichever of these a broken stream runs it into.
    except (UnidentifiedImageError, SyntaxError, ValueError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _refuse(path, f"not a whole {kind}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _refuse(path, f"too many pixels; accepted are 2 to {MAX_SIDE} a side") from None
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return planes / np.float32(127.5) - 1


def over_black(image: Image.Image) -> Image.Image:
    """Lay what is transparent over black, which is air; the colour hidden in it may be any."""
    from PIL import Image

    if not (image.has_transparency_data or image.mode in ("La", "RGBa")):
        return image
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "black"), seen)


def _npy(path: Path) -> np.ndarray:
    _check_size(path)
    try:
        # Mapped, not read: a header may promise any shape. Pickled objects are refused.
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, OverflowError, RecursionError, MemoryError):
        raise _refuse(path, "not a whole .npy array of numbers") from None
    if not isinstance(stored, np.ndarray) or stored.ndim not in (2, 3):
        raise _refuse(path, "not an array of shape (R, R) or (C, R, R)")
    _check_sides(path, stored.shape[-2:])
    if stored.ndim == 3 and not 1 <= stored.shape[0] <= 4:
        rule = "accepted are (R, R) and (C, R, R)"
        raise _refuse(path, f"too many channels; {rule}", f"shape {stored.shape}; {rule}")
    if stored.dtype == np.uint8:
        picture = np.asarray(stored, np.float32) / np.float32(127.5) - 1
    elif stored.dtype.kind == "f":
        picture = np.asarray(stored, np.float32)
        if not (np.isfinite(picture).all() and np.abs(picture).max() <= 1 + 1e-3):
            raise _refuse(path, "values beyond [-1, 1]; scale them to it, air at -1")
    else:
        rule = "accepted are 8-bit and floats in [-1, 1]"
        raise _refuse(
            path, f"numbers of another type; {rule}", f"numbers of type {stored.dtype}; {rule}"
        )
    return picture[None] if picture.ndim == 2 else picture


def _nifti(path: Path, resolution: int, height_mm: float) -> np.ndarray:
    if is_whole_scan(path):
        return _scan(path, resolution, height_mm)
    return _slice(path)


def _opened(path: Path) -> BinaryIO:
    target = path.resolve()  # whoever names a link means what it leads to
    return open_inside(target, root=target.parent, site="")


def _header(stream: BinaryIO, path: Path) -> Any:
    """Read a NIfTI header alone, a few hundred bytes of the file and no extension.

    ``nibabel.load`` would read extensions as long as they say that they are, and the rest of the
    file, unpacked, for one that says a negative length.
    """
    packed = stream.read(2) == GZIP
    stream.seek(0)
    if packed:
        with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
            block = nifti.take(unpacked, _HEADER_BYTES, "", path.name)
    else:
        block = stream.read(_HEADER_BYTES)
    header = nifti.nibabel_header(block)
    if header is None:
        raise _refuse(path, f"not a NIfTI file; {ACCEPTED}")
    return header


def _sides(header: Any) -> list[int]:
    """Voxels along each stored axis, as a header promises them: any number."""
    dims = [int(side) for side in header["dim"]]
    return dims[1 : 1 + min(max(dims[0], 0), 7)]


def _as_picture(path: Path, error: DataContractError) -> ConfigError:
    """Put the reader's refusal of a scan into words about a picture."""
    remedy = f". {error.remedy}" if error.remedy else ""
    got = f" (got {error.got})" if error.got else ""
    return _refuse(path, f"{error.problem}{remedy}", f"{error.problem}{got}{remedy}")


def _scan(path: Path, resolution: int, height_mm: float) -> np.ndarray:
    from common.imaging.prepare import FIELD_OF_VIEW_MM, prepare_volume
    from common.imaging.slices import axial_slices

    if not abs(height_mm) < FIELD_OF_VIEW_MM / 2 - FIELD_OF_VIEW_MM / resolution:
        rule = f"beyond the cube of {FIELD_OF_VIEW_MM:g} mm"
        raise ConfigError(f"--height {height_mm:g}: {rule}", public=f"--height: {rule}")
    target = path.resolve()
    try:
        volume, affine = nifti.load_scan(target, site="", root=target.parent)
    except DataContractError as error:
        raise _as_picture(path, error) from None
    cube = prepare_volume(volume, affine, image_size=resolution)
    if not cube.any():
        raise _refuse(path, "no head can be told from the background")
    picture = 2 * axial_slices(cube, [height_mm]) - 1
    if picture.max() <= EMPTY:
        raise _refuse(
            path,
            "no head at the asked height",
            f"no head at {height_mm:g} mm; --height is counted from the head's centre of mass",
        )
    return picture


def _slice(path: Path) -> np.ndarray:
    """Read an axial slice, stored with air at 0 and x to the right, y to the front."""
    import nibabel as nib

    from common.imaging.prepare import FIELD_OF_VIEW_MM

    _check_size(path)
    try:
        with _opened(path) as stream:
            raw = stream.read(min(os.fstat(stream.fileno()).st_size, MAX_BYTES))
        header = _slice_header(path, raw)
        unpacked = nifti.unpack(raw, header, "", path.name)  # no more than the header promises
    except DataContractError as error:
        raise _as_picture(path, error) from None
    side = header.shape[:2]
    voxels = np.frombuffer(unpacked, header.dtype, side[0] * side[1], header.offset)
    voxels = voxels.reshape(side, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused just below
        if header.slope is not None:
            voxels = nib.volumeutils.apply_read_scaling(voxels, header.slope, header.inter)
        voxels = voxels.astype(np.float32)
    sizes = np.asarray(header.zooms_mm[:2]) * side
    if not np.allclose(sizes, FIELD_OF_VIEW_MM, rtol=_FIELD_OF_VIEW_TOLERANCE):
        got = " × ".join(f"{size:.4g}" for size in sizes)
        rule = f"accepted are {FIELD_OF_VIEW_MM:g} mm a side"
        raise _refuse(path, f"covers another field of view; {rule}", f"covers {got} mm; {rule}")
    if not (np.isfinite(voxels).all() and voxels.min() >= -1e-3 and voxels.max() <= 1 + 1e-3):
        raise _refuse(path, "values beyond 0 (air) to 1; scale them to it")
    return (voxels.T[::-1] * 2 - 1)[None].astype(np.float32)


def _slice_header(path: Path, raw: bytes) -> nifti.ScanHeader:
    """Judge the header of a slice, as the reader of scans does that of a volume."""
    import nibabel as nib

    header = _header(io.BytesIO(raw), path)
    sides = _sides(header)
    _check_sides(path, tuple(sides[:2]))
    axes = "accepted is a slice (R, R, 1) with axes right, anterior, superior"
    if len(sides) < 3 or any(side != 1 for side in sides[2:]):
        raise _refuse(path, axes)
    try:
        dtype = header.get_data_dtype()
        affine = np.asarray(header.get_best_affine(), float)
        offset = int(header.get_data_offset())
        slope, inter = header.get_slope_inter()
    except Exception:  # nibabel raises many kinds for types, quaternions and factors that are none
        raise _refuse(path, "a header that contradicts itself") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise _refuse(path, "its voxels are not numbers of at most 64 bits")
    if not np.isfinite(affine).all() or nib.aff2axcodes(affine) != ("R", "A", "S"):
        raise _refuse(path, axes)
    if not int(header["sizeof_hdr"]) <= offset <= _MAX_OFFSET:
        raise _refuse(path, "header extensions that are too long, or voxels inside the header")
    return nifti.ScanHeader((sides[0], sides[1], 1), affine, dtype, offset, slope, inter)


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
