"""From a DICOM image's stored numbers to what they mean: values, their range, the window to show.

The steps of PS3.3 and PS3.4 (Softcopy presentation): stored bits, without overlays that older
devices put in the unused ones; palette or colour space to RGB; modality transformation (rescale or
look-up table); window or VOI look-up table; MONOCHROME1 shown with its smallest values white.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.data.dicom_apart import apart, is_risky
from common.data.dicom_files import (
    MOST_PIXELS,
    NOT_UNDERSTOOD,
    PIXELS,
    TOO_LARGE,
    UNDECODABLE,
    UnusableError,
    frame_count,
    integer,
    numbers,
    read_header,
    text,
)

_GREY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")
_MOST_BITS = 32

Show = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Frame:
    """One decoded frame.

    Parameters
    ----------
    values : (H, W) float32 or (H, W, 3) uint8
        After the modality transformation, such as Hounsfield units; or red, green and blue.
    span : tuple of float
        The smallest and the largest value that the file's integers can mean.
    is_inverted : bool
        Whether small values are white.
    bits : int
        That are stored of each value.
    show : callable, optional
        The file's window: from values to [0, 1], before any inversion; raises `UnusableError` for
        a look-up table that cannot be applied. None: it has none.
    """

    values: NDArray
    span: tuple[float, float]
    is_inverted: bool = False
    bits: int = 8
    show: Show | None = None

    def to_pixels(self, *, window: bool) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Picture with black 0: (H, W) uint8 or, of more than eight bits, uint16; or (H, W, 3).

        Parameters
        ----------
        window : bool
            Through the file's window where it has one; else, ``span`` becomes the full range.

        Raises
        ------
        UnusableError
            The file's look-up table cannot be applied.
        """
        if self.values.ndim == 3:
            return self.values
        unit = self.show(self.values) if window and self.show else scale(self.values, *self.span)
        most, dtype = (255, np.uint8) if self.bits <= 8 else (65535, np.uint16)
        return np.rint(most * (1 - unit if self.is_inverted else unit)).astype(dtype)


def read_frames(stream: BinaryIO) -> Iterator[Frame]:
    """Decode an image file frame by frame.

    Parameters
    ----------
    stream : binary file
        At its beginning, of `MOST_BYTES` at most.

    Raises
    ------
    UnusableError
        The file is none, is damaged, or its pixels are of a form that is not understood.
    """
    dataset = read_header(stream, (*PIXELS, "PixelData"))
    if "PixelData" not in dataset:
        raise UnusableError(UNDECODABLE)
    photometric = text(dataset, "PhotometricInterpretation")
    samples, bits = integer(dataset, "SamplesPerPixel", 1), integer(dataset, "BitsStored")
    is_grey = samples == 1 and photometric in _GREY
    is_colour = samples == 3 and photometric in _COLOUR
    if not (is_grey or is_colour or (samples == 1 and photometric == _PALETTE)):
        raise UnusableError(NOT_UNDERSTOOD)
    if not 1 <= bits <= _MOST_BITS:
        raise UnusableError(NOT_UNDERSTOOD)
    shape = (integer(dataset, "Rows"), integer(dataset, "Columns"))
    make = _grey if is_grey else _colour
    left = frame_count(dataset)
    frames = _stored(dataset, stream)
    while left:
        left -= 1
        try:
            stored = next(frames)
            if stored.size > 3 * MOST_PIXELS:
                raise UnusableError(TOO_LARGE)
            if stored.shape[:2] != shape:
                raise ValueError(f"a frame of {stored.shape}")
            frame = make(stored, dataset, bits)
        except UnusableError:
            raise
        except Exception as error:  # decoders of damaged bytes raise whatever they like
            raise UnusableError(UNDECODABLE) from error
        yield frame


def _stored(dataset: Any, stream: BinaryIO) -> Iterator[NDArray]:
    """Stored numbers, frame by frame."""
    from pydicom.pixels import iter_pixels

    if not is_risky(dataset.file_meta.TransferSyntaxUID):
        yield from iter_pixels(dataset)
        return
    stream.seek(0)
    for frame in apart(_decoded, stream.read()):
        yield np.load(io.BytesIO(frame), allow_pickle=False)


def _decoded(raw: bytes) -> Iterator[bytes]:
    """Frames of a file, each as numpy saves it."""
    from pydicom.pixels import iter_pixels

    for frame in iter_pixels(read_header(io.BytesIO(raw), (*PIXELS, "PixelData"))):
        np.save(file := io.BytesIO(), frame)
        yield file.getvalue()


def scale(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Values on [0, 1], clipped; all 0 where the ends are equal."""
    if not high > low:
        return np.zeros_like(values)
    return np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)


def window_values(
    values: NDArray[np.float32], center: float, width: float, function: str = "LINEAR"
) -> NDArray[np.float32]:
    """Values through a window, on [0, 1] (PS3.3, C.11.2.1.2 and C.11.2.1.3).

    Parameters
    ----------
    values : (H, W) float32
    center, width : float
    function : str
        ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.
    """
    if function == "SIGMOID":
        # Beyond ±50 the exponential says nothing new, and overflows later.
        return 1 / (1 + np.exp(-np.clip(4 * (values - center) / width, -50, 50)))
    if function != "LINEAR_EXACT":
        center, width = center - 0.5, width - 1
    if width <= 0:
        return (values > center).astype(np.float32)
    return scale(values, center - width / 2, center + width / 2)


def _colour(stored: NDArray, dataset: Any, bits: int) -> Frame:
    """Red, green and blue in eight bits each."""
    from pydicom.pixels import apply_color_lut

    if stored.ndim == 2:
        stored = apply_color_lut(stored, dataset)[..., :3]
        bits = 16 if stored.dtype == np.uint16 else 8
    if stored.ndim != 3 or stored.shape[2] != 3 or not 8 <= bits <= 16:
        raise UnusableError(NOT_UNDERSTOOD)
    return Frame((stored >> (bits - 8)).astype(np.uint8), (0.0, 255.0))


def _grey(stored: NDArray, dataset: Any, bits: int) -> Frame:
    from pydicom.pixels import apply_modality_lut

    if stored.ndim != 2:
        raise UnusableError(NOT_UNDERSTOOD)
    is_signed = integer(dataset, "PixelRepresentation") == 1
    span = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if is_signed else (0.0, 2.0**bits - 1)
    is_padding = _padding(stored, dataset, is_signed, bits)
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)
    slope, intercept = numbers(dataset, "RescaleSlope"), numbers(dataset, "RescaleIntercept")
    if dataset.get("ModalityLUTSequence"):
        span = (0.0, 2.0 ** _lut_bits(dataset.ModalityLUTSequence[0]) - 1)
    elif slope and intercept:
        low, high = sorted(end * slope[0] + intercept[0] for end in span)
        span = (low, high)
    if not np.isfinite(values).all():
        raise UnusableError(NOT_UNDERSTOOD)
    is_inverted = text(dataset, "PhotometricInterpretation") == "MONOCHROME1"
    if is_padding is not None and is_padding.any() and not is_padding.all():
        rest = values[~is_padding]
        values[is_padding] = rest.max() if is_inverted else rest.min()  # the darkest there is
    return Frame(values, span, is_inverted, bits, _window(dataset))


def _padding(stored: NDArray, dataset: Any, is_signed: bool, bits: int) -> NDArray[np.bool_] | None:
    """Pixels outside of what was imaged, which PixelPaddingValue marks."""
    found = numbers(dataset, "PixelPaddingValue")
    if not found:
        return None
    first = int(found[0])
    last = integer(dataset, "PixelPaddingRangeLimit", first)
    if is_signed:  # some write the unsigned number of the same bits
        first, last = (end - 2**bits if end >= 2 ** (bits - 1) else end for end in (first, last))
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _window(dataset: Any) -> Show | None:
    """The file's first VOI look-up table or window."""
    from pydicom.pixels import apply_voi

    if sequence := dataset.get("VOILUTSequence"):
        most = 2.0 ** _lut_bits(sequence[0]) - 1

        def look_up(values: NDArray[np.float32]) -> NDArray[np.float32]:
            whole = np.rint(values).astype(np.int64)
            try:
                looked_up = apply_voi(whole, dataset)
            except Exception as error:  # entries that are missing, too few or of another form
                raise UnusableError(NOT_UNDERSTOOD) from error
            return scale(looked_up.astype(np.float32), 0, most)

        return look_up
    center, width = numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth")
    if not (center and width) or width[0] <= 0:
        return None
    function = text(dataset, "VOILUTFunction") or "LINEAR"
    return functools.partial(window_values, center=center[0], width=width[0], function=function)


def _lut_bits(item: Any) -> int:
    """Bits of a look-up table's entries.

    Raises
    ------
    UnusableError
        A number that the standard does not allow.
    """
    descriptor = numbers(item, "LUTDescriptor")
    if len(descriptor) != 3 or not 8 <= descriptor[2] <= 16:
        raise UnusableError(NOT_UNDERSTOOD)
    return int(descriptor[2])
