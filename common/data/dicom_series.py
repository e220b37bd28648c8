"""MR series: which of them are T1-weighted volumes of a person, and their conversion to NIfTI.

The conversion is that of dicom2nifti, generic for all vendors: it sees a copy of the allow-listed
elements only, without the vendors' private ones. Its header is not kept either: a new one is made
of voxels and affine matrix.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dicom_apart import apart, is_risky
from common.data.dicom_files import (
    PIXELS,
    UNDECODABLE,
    UnusableError,
    frame_count,
    integer,
    numbers,
    read_header,
    text,
)
from common.errors import ConfigError, DataContractError
from common.site_files import open_inside

FEWEST_SLICES = 10
MOST_VOXELS = 2**27  # of a volume: 512³

LOCALIZER = "MR: a localizer"
DERIVED = "MR: a projection or another derived image"
NOT_T1W = "MR: not T1-weighted"
TOO_FEW = f"MR: a series of fewer than {FEWEST_SLICES} slices"
IRREGULAR = "MR: irregular distances between slices"
TILTED = "MR: slices that are shifted against each other"
ORIENTATIONS = "MR: slices of several orientations in one series"
SEVERAL_VOLUMES = "MR: several volumes in one series"
NO_POSITION = "MR: positions of slices are not told"
TOO_MANY_VOXELS = "MR: a volume of too many voxels"
NOT_CONVERTED = "MR: dicom2nifti cannot convert the series"

_ENHANCED = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_GEOMETRY = (
    *("SOPClassUID", "Modality", "ImageType", "ImageOrientationPatient", "ImagePositionPatient"),
    *("PixelSpacing", "SliceThickness", "SpacingBetweenSlices", *_ENHANCED),
)
_REASONS = {
    "TOO_FEW_SLICES/LOCALIZER": TOO_FEW,
    "SLICE_INCREMENT_INCONSISTENT": IRREGULAR,
    "NON_CUBICAL_IMAGE/GANTRY_TILT": TILTED,
    "IMAGE_ORIENTATION_INCONSISTENT": ORIENTATIONS,
}
_LOCALIZER = re.compile(r"\b(loc|localizer|localiser|scout|survey|3[- ]?plane)\b")
_T1 = re.compile(r"(?<![a-z0-9])t1|mp2?rage")
# Names of sequences that are mostly T1-weighted, unless another contrast is named.
_MOSTLY_T1 = re.compile(r"bravo|spgr|\bmpr\b|3d[- ]?tfe")
_OTHER = re.compile(
    r"(?<![a-z0-9])t2|flair|dwi|dti|diff|adc|trace|tensor|bold|fmri|swi|tof|angio|(?<![a-z])mra"
    r"|perf|(?<![a-z])asl|dsc|dce|field[ _-]?map|\bpd\b|\bproton|spectr|phase|\bstir\b"
)
_MAP = re.compile(r"t1[ _-]?(map|rho)|relax")
_DERIVED = frozenset(
    {"MIP", "MINIP", "MNIP", "MPR", "REFORMATTED", "PROJECTION IMAGE", "SUBTRACT", "SCREEN SAVE"}
)
# Without words: a short echo, and an inversion or a short repetition (milliseconds).
_ECHO, _REPETITION, _INVERSION = 20.0, 1000.0, (400.0, 1500.0)


def why_no_t1w(dataset: Any) -> str:
    """Reason why an MR image is of no T1-weighted volume; empty where it is of one.

    What the series and its protocol are called decides; where they are silent, the times of echo,
    repetition and inversion do.
    """
    kind = set(text(dataset, "ImageType").upper().split("\\"))
    words = f"{text(dataset, 'SeriesDescription')} {text(dataset, 'ProtocolName')}".lower()
    words = words.replace("_", " ")
    if "LOCALIZER" in kind or _LOCALIZER.search(words):
        return LOCALIZER
    if kind & _DERIVED:
        return DERIVED
    if _MAP.search(words):
        return NOT_T1W
    if text(dataset, "AcquisitionContrast").upper() == "T1" or _T1.search(words):
        return ""
    if _OTHER.search(words) or "EP" in text(dataset, "ScanningSequence").upper().split("\\"):
        return NOT_T1W
    if _MOSTLY_T1.search(words):
        return ""
    echo, repetition = numbers(dataset, "EchoTime")[:1], numbers(dataset, "RepetitionTime")[:1]
    inversion = numbers(dataset, "InversionTime")[:1]
    is_short = bool(echo) and 0 < echo[0] <= _ECHO
    is_inverted = bool(inversion) and _INVERSION[0] <= inversion[0] <= _INVERSION[1]
    is_fast = bool(repetition) and 0 < repetition[0] <= _REPETITION
    return "" if is_short and (is_inverted or is_fast) else NOT_T1W


def require_dicom2nifti() -> None:
    """Refuse to go on without the package.

    Raises
    ------
    ConfigError
    """
    try:
        import dicom2nifti  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            'MR series need the package dicom2nifti: run `pip install "fedscan[dicom]"`, or '
            "leave series out with --only pictures"
        ) from error


def convert_series(files: Sequence[Path], root: Path) -> bytes:
    """Convert one MR series to a compressed NIfTI file.

    Parameters
    ----------
    files : sequence of Path
        Of one series, in any order.
    root : Path
        The folder that no file may leave.

    Returns
    -------
    bytes
        Of a ``.nii.gz``: voxels, voxel sizes and orientation, and nothing else.

    Raises
    ------
    UnusableError
        The series is no regular volume, or cannot be converted.
    """
    images = _in_order([_read(path, root) for path in files])
    if any(is_risky(one.file_meta.TransferSyntaxUID) for one in images):
        return next(apart(_converted, files, root))
    return _convert(images)


def _converted(files: Sequence[Path], root: Path) -> Iterator[bytes]:
    yield _convert(_in_order([_read(path, root) for path in files]))


def _convert(images: list[Any]) -> bytes:
    from dicom2nifti.convert_generic import dicom_to_nifti
    from dicom2nifti.exceptions import ConversionError, ConversionValidationError

    try:
        image = dicom_to_nifti(images, None)["NII"]
        voxels, affine = np.asarray(image.dataobj), image.affine
    except ConversionValidationError as error:
        raise UnusableError(_REASONS.get(str(error), NOT_CONVERTED)) from error
    except ConversionError as error:
        raise UnusableError(NOT_CONVERTED) from error
    except Exception as error:  # damaged pixels, elements that are missing or make no sense
        raise UnusableError(NOT_CONVERTED) from error
    if voxels.ndim != 3:
        raise UnusableError(SEVERAL_VOLUMES)
    if voxels.dtype.kind not in "uif" or not (
        np.isfinite(affine).all() and np.isfinite(voxels).all()
    ):
        raise UnusableError(NOT_CONVERTED)
    if min(voxels.shape) < FEWEST_SLICES:
        raise UnusableError(TOO_FEW)
    return _nifti(voxels, affine)


def _read(path: Path, root: Path) -> Any:
    try:
        with open_inside(path, root=root, site="") as stream:
            dataset = read_header(stream, (*_GEOMETRY, *PIXELS, "PixelData"))
    except (DataContractError, OSError) as error:  # gone since it was listed
        raise UnusableError(UNDECODABLE) from error
    if "PixelData" not in dataset:
        raise UnusableError(UNDECODABLE)
    return dataset


def _in_order(images: list[Any]) -> list[Any]:
    """Slices along their normal, numbered so: what InstanceNumber counts differs by device.

    Raises
    ------
    UnusableError
        Too few or too many slices, two at one place, or positions that are not told.
    """
    n_slices = sum(map(frame_count, images))
    if n_slices < FEWEST_SLICES:
        raise UnusableError(TOO_FEW)
    pixels = max(integer(one, "Rows") * integer(one, "Columns") for one in images)
    if n_slices * pixels > MOST_VOXELS:
        raise UnusableError(TOO_MANY_VOXELS)
    if len(images) == 1:
        return images
    if any(frame_count(one) > 1 for one in images):
        raise UnusableError(SEVERAL_VOLUMES)
    axes = [numbers(one, "ImageOrientationPatient") for one in images]
    places = [numbers(one, "ImagePositionPatient") for one in images]
    if {len(axis) for axis in axes} != {6} or {len(place) for place in places} != {3}:
        raise UnusableError(NO_POSITION)
    if not np.allclose(axes, axes[0], atol=1e-2):
        raise UnusableError(ORIENTATIONS)
    along = np.array(places) @ np.cross(axes[0][:3], axes[0][3:])
    order = np.argsort(along, kind="stable")
    if np.diff(along[order]).min() < 1e-3:  # mm
        raise UnusableError(SEVERAL_VOLUMES)
    for number, index in enumerate(order.tolist(), start=1):
        images[index].InstanceNumber = number
    return [images[index] for index in order]


def _nifti(voxels: NDArray, affine: NDArray) -> bytes:
    """Bytes of a compressed NIfTI file, the same for the same voxels."""
    import nibabel

    if voxels.dtype.kind == "f":
        voxels = voxels.astype(np.float32)
    else:
        whole = np.iinfo(np.int16)
        fits = whole.min <= voxels.min() and voxels.max() <= whole.max
        voxels = voxels.astype(np.int16 if fits else np.int32)
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)
