"""Pictures that a site stores as DICOM files: radiographs, mammograms, photographs.

A reader of the same form as `common.data.photographs.read_photograph`, for a study of storage
``dicom``, whose table lists files of one frame each. Series of slices become volumes by
`fedscan prepare dicom`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.data.dicom_files import (
    EMPTY,
    MOST_BYTES,
    PIXELS,
    TOO_LONG,
    UnusableError,
    frame_count,
    read_header,
    silent,
)
from common.data.dicom_pixels import Frame, read_frames
from common.data.photographs import PERCENTILES, square, to_bytes
from common.errors import DataContractError
from common.site_files import open_inside, relative

DICOM_VERSION = 1  # raise it with any change that alters a byte of what is read
SEVERAL = "a DICOM file holds several frames"


def read_dicom(
    path: Path,
    *,
    size: int,
    channels: int,
    fit: str = "crop",
    intensity: str = "full-range",
    intensity_range: tuple[float, float] | None = None,
    root: Path | None = None,
    site: str = "site",
) -> NDArray[np.uint8]:
    """Read a DICOM file of one frame as a square of bytes.

    Values are those after the file's rescale or modality look-up table. Pixels outside of what was
    imaged, which the file marks as padding, are as dark as the darkest others. MONOCHROME1 is
    inverted, so that larger is brighter whatever the file.

    Parameters
    ----------
    path : Path
    size : int
        S, the pixels along each side.
    channels : int
        C: 1 for grey, 3 for red, green and blue.
    fit : str
        ``crop`` or ``pad``, for pictures that are not square.
    intensity : str
        What becomes 0 and 255: ``full-range``, the ends of what the file's stored bits can mean;
        ``window``, the file's own window or VOI look-up table, and the full range where it has
        none; ``own-range``, the 0.5th and 99.5th percentile of the resized picture;
        ``fixed-range``, ``intensity_range``, in values such as Hounsfield units.
    intensity_range : tuple of float, optional
        Black and white.
    root : Path, optional
        The folder that the file must not leave by a link; by default the one that it lies in.
    site : str
        Name of the site, for errors.

    Returns
    -------
    (S, S, C) uint8
        Rows from the top, columns from the left.

    Raises
    ------
    DataContractError
        The file is missing, no regular one, empty, too large, no DICOM image, damaged, of a
        transfer syntax that cannot be decoded, or holds several frames. Its public words hold
        neither the file's name nor anything read from it.
    """
    root = path.parent if root is None else root

    def refuse(problem: str, remedy: str = "") -> DataContractError:
        return DataContractError(site, problem, where=relative(path, root), remedy=remedy)

    with open_inside(path, root=root, site=site) as stream, silent():
        n_bytes = os.fstat(stream.fileno()).st_size
        if not n_bytes:
            raise refuse(EMPTY)
        if n_bytes > MOST_BYTES:
            raise refuse(TOO_LONG, f"At most {MOST_BYTES} bytes")
        try:
            if frame_count(read_header(stream, PIXELS)) > 1:
                raise refuse(SEVERAL, "One a file; `fedscan prepare dicom` takes files apart")
            stream.seek(0)
            frame = next(read_frames(stream))
            return _to_square(frame, size, channels, fit, intensity, intensity_range)
        except UnusableError as error:
            raise refuse(error.reason) from error


def _to_square(
    frame: Frame,
    size: int,
    channels: int,
    fit: str,
    intensity: str,
    intensity_range: tuple[float, float] | None,
) -> NDArray[np.uint8]:
    from PIL import Image

    values, (low, high) = frame.values, frame.span
    if intensity == "window" and frame.show is not None:
        values, low, high = frame.show(values), 0.0, 1.0
    elif intensity == "fixed-range" and intensity_range is not None:
        low, high = intensity_range
    elif intensity == "own-range":
        low, high = float(values.min()), float(values.max())
    elif intensity not in ("full-range", "window"):
        raise ValueError(f"intensity {intensity!r} with range {intensity_range}")
    if values.ndim == 2:  # black is 0 from here on, so that what `pad` adds is black
        values = high - values if frame.is_inverted else values - low
        low, high = 0.0, high - low
    plane = Image.fromarray(values)
    if plane.mode == "RGB" and channels == 1:
        plane = plane.convert("L")
    small = np.asarray(square(plane, plane.size, size, fit))
    if small.ndim == 2:
        small = np.repeat(small[..., None], channels, axis=2)
    if intensity == "own-range":
        low, high = np.percentile(small, PERCENTILES)
    return to_bytes(small, low, high, inverted=False)
