"""DICOM files, opened without trust: what one is, and its header cut to a short list of elements.

Nothing but the elements of :data:`HEADER` and :data:`PIXELS` is ever read, so that no other can
reach an output, a log or a message. A file is told by its content, whatever its name. pydicom and
dicom2nifti quote values in their warnings and logs; both are silenced here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

MOST_BYTES = 2**30  # of a file
MOST_PIXELS = 2**26  # of a frame
MOST_FRAMES = 10_000
MOST_BITS = 64  # that a value takes
MOST_TEXT = 1024  # characters of an element that are looked at

NO_DICOM = "no DICOM file"
EMPTY = "a file is empty"
TOO_LONG = "a file is too large"
DICOMDIR = "a DICOMDIR, which only lists other files"
NO_IMAGE = "no image"
DAMAGED = "a DICOM file cannot be read"
UNDECODABLE = "pixels cannot be decoded"
TOO_LARGE = "a picture has too many pixels"
NOT_UNDERSTOOD = "pixels of a form that is not understood"

# What is read of every file. Identifying elements among these serve to group and to pseudonymise.
HEADER = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "ImageType"),
    *("Modality", "Manufacturer", "BodyPartExamined", "ViewPosition", "Laterality"),
    *("ImageLaterality", "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate"),
    *("PatientSex", "PatientAge", "StudyDate", "AccessionNumber", "SeriesNumber", "InstanceNumber"),
    *("SeriesDescription", "ProtocolName", "ScanningSequence", "AcquisitionContrast"),
    *("RepetitionTime", "EchoTime", "InversionTime", "ContrastBolusAgent", "BurnedInAnnotation"),
    *("RecognizableVisualFeatures", "ImageOrientationPatient", "ImagePositionPatient"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
)
# What turns stored numbers into a picture.
PIXELS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    "PaletteColorLookupTableUID",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)
DEFLATED = "1.2.840.10008.1.2.1.99"
_DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage
_IMPLICIT = "1.2.840.10008.1.2"
_META_GROUP, _FIRST_GROUP = 2, 8

for _name in ("pydicom", "dicom2nifti"):
    _logger = logging.getLogger(_name)
    _logger.addHandler(logging.NullHandler())  # else logging's last resort prints to stderr
    _logger.propagate = False


class UnusableError(Exception):
    """A DICOM file that is left out; ``reason`` holds nothing that identifies anyone."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without pydicom's warnings, which quote what elements hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(stream: BinaryIO, tags: Sequence[str] = (*HEADER, *PIXELS)) -> Any:
    """Elements of an image file that can be decoded here, without its pixels.

    Parameters
    ----------
    stream : binary file
        At its beginning.
    tags : sequence of str
        Keywords of the elements; ``PixelData`` among them reads the pixels, too.

    Returns
    -------
    pydicom.FileDataset
        With no other element.

    Raises
    ------
    UnusableError
        No DICOM file, no image, damaged, too many pixels, or of a transfer syntax for which no
        decoder is installed.
    """
    from pydicom import dcmread

    syntax = _transfer_syntax(stream)
    if syntax == DEFLATED:  # pydicom would inflate it without a bound
        raise UnusableError(f"{UNDECODABLE}: {syntax.name}")
    stream.seek(0)
    try:
        dataset = dcmread(
            stream,
            stop_before_pixels="PixelData" not in tags,
            force=True,
            specific_tags=["SOPClassUID", *tags],
        )
    except Exception as error:  # damaged bytes raise whatever they like
        raise UnusableError(DAMAGED) from error
    dataset.file_meta.TransferSyntaxUID = syntax
    _check_image(dataset)
    _check_decoder(syntax)
    return dataset


def decoders() -> dict[str, list[str]]:
    """Names of the installed decoders by transfer syntax, of those that pydicom could decode."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import AllTransferSyntaxes

    found = {}
    for syntax in AllTransferSyntaxes:
        with contextlib.suppress(NotImplementedError):
            found[str(syntax)] = sorted(get_decoder(syntax).available_plugins)
    return found


def text(dataset: Any, keyword: str) -> str:
    """Stripped text of an element; empty where it is missing or makes no sense."""
    try:
        value = dataset.get(keyword)
        if value is None:
            return ""
        parts = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
        if hasattr(value, "family_name"):  # a person's name, which has an iterator, too
            parts = [value]
        return "\\".join(str(part).strip() for part in parts)[:MOST_TEXT]
    except Exception:
        return ""


def numbers(dataset: Any, keyword: str) -> tuple[float, ...]:
    """Finite numbers of an element; none where it is missing or any of them makes no sense."""
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            return ()
        parts = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
        found = tuple(float(part) for part in parts)
    except Exception:
        return ()
    return found if all(map(math.isfinite, found)) else ()


def integer(dataset: Any, keyword: str, default: int = 0) -> int:
    """First whole number of an element, or the default."""
    found = numbers(dataset, keyword)
    return int(found[0]) if found and abs(found[0]) < 2**53 else default


def frame_count(dataset: Any) -> int:
    """Frames of an image, at least one."""
    return max(integer(dataset, "NumberOfFrames", 1), 1)


def _transfer_syntax(stream: BinaryIO) -> str:
    """Transfer syntax of a file, looked at before pydicom would inflate a deflated one.

    Raises
    ------
    UnusableError
        No DICOM file, or one of a kind that is not read.
    """
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import UID, ExplicitVRLittleEndian

    start = stream.read(136)
    if not start:
        raise UnusableError(EMPTY)
    is_bare = start[128:132] != b"DICM"
    groups = (bytes([_META_GROUP, 0]), bytes([_FIRST_GROUP, 0]))
    if is_bare and not (len(start) > 8 and start[:2] in groups and start[3] == 0):
        raise UnusableError(NO_DICOM)
    stream.seek(0)
    try:
        if not is_bare:
            read_preamble(stream, force=False)
        meta = read_dataset(
            stream,
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=lambda tag, vr, length: tag.group != _META_GROUP,
        )
        syntax = text(meta, "TransferSyntaxUID")
        kind = text(meta, "MediaStorageSOPClassUID")
    except Exception as error:
        raise UnusableError(DAMAGED) from error
    if kind == _DIRECTORY:
        raise UnusableError(DICOMDIR)
    if not syntax:  # a bare data set: explicit if its first element names its type
        first = start[0:8] if is_bare and start[0] == _FIRST_GROUP else b""
        syntax = ExplicitVRLittleEndian if first[4:6].isalpha() else _IMPLICIT
    return UID(syntax)


def _check_image(dataset: Any) -> None:
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if not (rows > 0 and columns > 0 and integer(dataset, "BitsAllocated") > 0):
        from pydicom.uid import UID

        name = UID(text(dataset, "SOPClassUID")).name if text(dataset, "SOPClassUID") else ""
        # The name of an unknown class is its number, which a device may have made of a person's.
        known = name and not name[0].isdigit() and UID(text(dataset, "SOPClassUID")).type
        if not known:
            raise UnusableError(NO_IMAGE)
        raise UnusableError(f"{NO_IMAGE}: {name}")
    if rows * columns > MOST_PIXELS or frame_count(dataset) > MOST_FRAMES:
        raise UnusableError(TOO_LARGE)
    if integer(dataset, "BitsAllocated") > MOST_BITS:
        raise UnusableError(NOT_UNDERSTOOD)


def _check_decoder(syntax: Any) -> None:
    """Refuse a transfer syntax that cannot be decoded, by its name.

    Raises
    ------
    UnusableError
    """
    from pydicom.pixels import get_decoder

    name = syntax.name if syntax.type == "Transfer Syntax" else "an unknown transfer syntax"
    try:
        is_available = get_decoder(syntax).is_available
    except NotImplementedError:
        is_available = False
    if not is_available:
        raise UnusableError(f"{UNDECODABLE}: {name}")
