"""Whatever the bytes of a scan, a picture or a DICOM file: an image or an error, and no harm."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import dicoms
import nibabel as nib
import numpy as np
import pytest
from hostile import CASES, Case, hostile, keeps_its_promise
from hypothesis import given, settings
from PIL import Image
from pydicom.uid import ImplicitVRLittleEndian

from common.data import dicom_files
from common.data.dicom import SEVERAL, read_dicom
from common.data.identity_headers import in_dicom, in_nifti, in_picture
from common.data.photographs import read_photograph
from common.errors import DataContractError
from common.imaging.nifti import load_scan, scan_header

# Nothing that a file says is among what is told of it.
DICOM_REASONS = (SEVERAL, *(v for k, v in vars(dicom_files).items() if k.isupper() and str(v) == v))
MOST_PICTURE_BYTES = 400 * 2**20  # 2**26 pixels are accepted, and may be four bytes each


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def scans() -> list[bytes]:
    voxels = np.arange(210, dtype=np.int16).reshape(5, 6, 7)
    scaled = nib.Nifti1Image(voxels, np.diag([1, 2, 1, 1]))
    scaled.header.set_slope_inter(2, 1)
    scaled.header["descrip"] = b"Anna"
    scaled.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Anna Smith"))
    turned = nib.Nifti2Image(voxels.astype(">f4"), np.diag([-1, 1, 3, 1]), dtype=">f4")
    return [scaled.to_bytes(), turned.to_bytes()]


@hostile
@given(CASES)
def test_any_bytes_are_a_scan_or_an_error(folder, scans, case: Case):
    path, raw = folder / "sub-1_T1w.nii", case.choice(scans)
    ways = [
        case.damaged(raw),
        gzip.compress(case.damaged(raw), 1),
        case.damaged(gzip.compress(raw, 1)),
    ]
    path.write_bytes(case.choice(ways))
    given = {"site": "north", "root": folder}
    found = keeps_its_promise(lambda: load_scan(path, **given), folder)
    if isinstance(found, tuple):
        volume, affine = found
        assert volume.dtype == np.float32 and volume.ndim == 3 and np.isfinite(volume).all()
        assert np.isfinite(affine).all()
        keeps_its_promise(lambda: scan_header(path, **given), folder, errors=())
    keeps_its_promise(lambda: in_nifti(path, **given), folder, errors=())


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    colour, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x013B], exif[0x0112] = "Anna", 6
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256)
    made = [
        (colour, "PNG", {"exif": exif}),
        (deep, "PNG", {}),
        (colour.quantize(8), "PNG", {"transparency": 1}),
        (colour, "JPEG", {"exif": exif, "comment": b"Anna"}),
        (colour, "JPEG", {"progressive": True}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (deep, "TIFF", {"tiffinfo": {270: "Anna"}}),
        (colour, "BMP", {}),
        (colour, "WEBP", {"lossless": True, "exif": exif}),
    ]
    raws = []
    for picture, kind, how in made:
        picture.save(file := io.BytesIO(), kind, **how)
        raws.append(file.getvalue())
    return raws


def with_checksums(png: bytes) -> bytes:
    """Give every chunk of a PNG the checksum of what it holds now: else all damage ends there."""
    data, at = bytearray(png), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


@hostile
@given(CASES)
def test_any_bytes_are_a_picture_or_an_error(folder, pictures, case: Case):
    path, raw = folder / "anna.png", case.damaged(case.choice(pictures))
    path.write_bytes(with_checksums(raw) if raw.startswith(b"\x89PNG") else raw)
    channels, fit = case.choice([(1, "crop"), (3, "pad")])

    def read() -> np.ndarray:
        return read_photograph(path, size=8, channels=channels, fit=fit, intensity="own-range")

    found = keeps_its_promise(read, folder, most_bytes=MOST_PICTURE_BYTES)
    if isinstance(found, DataContractError):
        assert "anna" not in found.public
    else:
        assert (found.shape, found.dtype) == ((8, 8, channels), np.uint8)
    about = keeps_its_promise(lambda: in_picture(path, root=folder, site="north"), folder)
    assert isinstance(about, set)


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    home, numbers = tmp_path_factory.mktemp("dicom"), dicoms.ramp(8, 8)
    window = {"BitsStored": 12, "WindowCenter": 1000, "WindowWidth": 500, "RescaleSlope": 2}
    colour = np.stack([numbers.astype(np.uint8)] * 3, axis=-1)
    made = [
        dicoms.put(home / "a", numbers, **window),
        dicoms.put(home / "b", numbers, VOILUTSequence=[dicoms.look_up_table()], BitsStored=12),
        dicoms.put(home / "c", numbers, syntax=ImplicitVRLittleEndian, PixelPaddingValue=0),
        dicoms.put(home / "d", colour),
    ]
    return [path.read_bytes() for path in made]


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pixels = np.stack([dicoms.ramp(8, 8).astype(np.uint8)] * 3, axis=-1)
    return dicoms.put_jpeg(tmp_path_factory.mktemp("jpeg") / "a", pixels).read_bytes()


@hostile
@given(CASES)
def test_any_bytes_are_a_dicom_picture_or_an_error(folder, dicom, case: Case):
    are_a_dicom_picture_or_an_error(folder, case.damaged(case.choice(dicom)), case)


@settings(hostile, max_examples=25)  # GDCM ends its process at some, and another starts
@given(CASES)
def test_any_bytes_within_a_dicom_file_are_a_jpeg_or_an_error(folder, jpeg, case: Case):
    at = jpeg.rindex(b"\xff\xd8\xff")
    are_a_dicom_picture_or_an_error(folder, jpeg[:at] + case.damaged(jpeg[at:]), case)


def are_a_dicom_picture_or_an_error(folder: Path, raw: bytes, case: Case) -> None:
    path, intensity = folder / "anna", case.choice(["window", "own-range", "full-range"])
    path.write_bytes(raw)

    def read() -> np.ndarray:
        return read_dicom(path, size=8, channels=1, intensity=intensity)

    found = keeps_its_promise(read, folder, most_bytes=MOST_PICTURE_BYTES)
    if isinstance(found, DataContractError):
        assert found.problem.startswith(DICOM_REASONS)
    else:
        assert (found.shape, found.dtype) == ((8, 8, 1), np.uint8)
    about = keeps_its_promise(lambda: in_dicom(path, root=folder, site="north"), folder)
    assert isinstance(about, set)
