"""Small DICOM files as devices write them, for tests."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MRImageStorage,
)

from common.data.dicom_files import silent

BASE = {
    "Modality": "CR",
    "PatientID": "P1",
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "19500102",
    "PatientSex": "F",
    "StudyDate": "20200101",
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.4",
}


_numbers = itertools.count(10**9)


def number() -> str:
    """Return a unique identifier, always of one length."""
    return f"1.2.826.{next(_numbers)}"


def dataset(pixels: np.ndarray | None, syntax: UID = ExplicitVRLittleEndian, **elements) -> Dataset:
    """Return an image of (H, W), (H, W, 3) or, with NumberOfFrames, (N, H, W) numbers."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    told = {"SOPClassUID": ComputedRadiographyImageStorage, **BASE}
    if pixels is not None:
        is_colour = pixels.shape[-1] == 3
        bits = pixels.dtype.itemsize * 8
        rows, columns = pixels.shape[:2] if is_colour else pixels.shape[-2:]
        told |= {
            "Rows": rows,
            "Columns": columns,
            "SamplesPerPixel": 3 if is_colour else 1,
            "PhotometricInterpretation": "RGB" if is_colour else "MONOCHROME2",
            "BitsAllocated": bits,
            "BitsStored": bits,
            "PixelRepresentation": int(pixels.dtype.kind == "i"),
            "PixelData": pixels.tobytes(),
        }
        if is_colour:
            told["PlanarConfiguration"] = 0
    told |= {"SOPInstanceUID": number(), **elements}
    if "BitsStored" in told:
        told["HighBit"] = told["BitsStored"] - 1
    with silent():  # some values are wrong on purpose
        for keyword, value in told.items():
            if value is not None:
                setattr(made, keyword, value)
    return made


def put(path: Path, pixels: np.ndarray | None = None, **elements) -> Path:
    """Write a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with silent():
        dataset(pixels, **elements).save_as(path, enforce_file_format=True)
    return path


def put_encapsulated(path: Path, pixels: np.ndarray, data: bytes, syntax: UID, **elements) -> Path:
    """Write a file whose pixels are compressed, whether or not they can be decoded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = dataset(pixels, syntax=syntax, **elements)
    made.PixelData = encapsulate([data])
    made["PixelData"].is_undefined_length = True
    with silent():
        made.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return path


def put_jpeg(path: Path, pixels: np.ndarray, **elements) -> Path:
    """Write a file of JPEG baseline, as cameras for skin do."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    kind = {"PhotometricInterpretation": "YBR_FULL"} if pixels.ndim == 3 else {}
    return put_encapsulated(path, pixels, stream.getvalue(), JPEGBaseline8Bit, **kind, **elements)


def look_up_table(entries: int | None = 4096) -> Dataset:
    """Return an item of 16 bits for 12 that makes a negative; with fewer entries it is broken."""
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    if entries is not None:
        table.LUTData = (65535 - 16 * np.arange(entries)).astype(np.uint16).tobytes()
        table["LUTData"].VR = "OW"
    return table


def ramp(height: int = 16, width: int = 16, most: int = 4095) -> np.ndarray:
    """Numbers from 0 to ``most``, (H, W) uint16."""
    return np.linspace(0, most, height * width).round().astype(np.uint16).reshape(height, width)


def slices(n: int = 12, height: int = 16, width: int = 14, seed: int = 0) -> np.ndarray:
    """Voxels of a series, (N, H, W) int16."""
    return np.random.default_rng(seed).integers(0, 900, (n, height, width)).astype(np.int16)


def put_series(folder: Path, voxels: np.ndarray, *, gap: float = 2.0, **elements) -> list[Path]:
    """Write a T1-weighted series of axial slices, from the feet up, one file a slice."""
    told = {
        "Modality": "MR",
        "SOPClassUID": MRImageStorage,
        "SeriesDescription": "t1_mprage_sag",
        "SeriesInstanceUID": number(),
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1.5, 1.25],
        "SliceThickness": gap,
        **elements,
    }
    paths = []
    for k, plane in enumerate(voxels):
        # Written in another order than they lie in.
        name = folder / f"{(k * 7) % len(voxels):03d}-{k}"
        place = {"ImagePositionPatient": [-10.0, -20.0, -30.0 + gap * k], "InstanceNumber": k + 1}
        paths.append(put(name, plane, **{**told, **place, **elements}))
    return paths


def put_enhanced(path: Path, voxels: np.ndarray, *, gap: float = 2.0, **elements) -> Path:
    """Write a T1-weighted series as one multi-frame file."""
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 1.25], gap
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    frames = []
    for k in range(len(voxels)):
        frame, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-10.0, -20.0, -30.0 + gap * k]
        content.StackID, content.InStackPositionNumber = "1", k + 1
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frame.PixelMeasuresSequence = [measures]
        frame.PlaneOrientationSequence = [orientation]
        frames.append(frame)
    return put(
        path,
        voxels,
        **{
            "Modality": "MR",
            "SOPClassUID": EnhancedMRImageStorage,
            "SeriesDescription": "T1 3D",
            "NumberOfFrames": len(voxels),
            "SharedFunctionalGroupsSequence": [shared],
            "PerFrameFunctionalGroupsSequence": frames,
            **elements,
        },
    )
