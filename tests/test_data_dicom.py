"""DICOM files that a study's table lists become the squares that a run sees, or a clear refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicoms import dataset, look_up_table, put, put_encapsulated, put_jpeg, ramp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from common.data.check import check_cohort
from common.data.dicom import SEVERAL, read_dicom
from common.data.dicom_files import (
    DAMAGED,
    EMPTY,
    NO_DICOM,
    NO_IMAGE,
    NOT_UNDERSTOOD,
    TOO_LARGE,
    UNDECODABLE,
)
from common.data.dicom_pixels import window_values
from common.data.site_data import open_split
from common.errors import ConfigError, DataContractError
from common.imaging.splits import SPLITS
from common.site_files import ESCAPES
from common.studies.study import Study

VALUES = {
    "name": "chest",
    "images": {"storage": "dicom", "table": "t.csv", "file": "file", "channels": 1, "size": 16},
    "label": {"column": "finding", "classes": ["none", "nodule"]},
}


def read(path: Path, **options) -> np.ndarray:
    """Read without resizing, (16, 16)."""
    return read_dicom(path, **{"size": 16, "channels": 1, **options})[..., 0].astype(int)


def refusal(path: Path, **options) -> DataContractError:
    with pytest.raises(DataContractError) as caught:
        read_dicom(path, **{"size": 8, "channels": 1, "site": "north", **options})
    assert path.name not in caught.value.public
    return caught.value


# Values


@pytest.fixture
def twelve(tmp_path) -> Path:
    return put(tmp_path / "a", ramp(), BitsStored=12)


def test_full_range_is_that_of_the_bits_stored(twelve):
    np.testing.assert_array_equal(read(twelve), np.rint(ramp() / 4095 * 255))


def test_bits_that_are_not_stored_are_no_part_of_the_value(tmp_path, twelve):
    overlay = put(tmp_path / "b", ramp() | 0xF000, BitsStored=12)
    np.testing.assert_array_equal(read(overlay), read(twelve))


@settings(max_examples=15, deadline=None)
@given(hnp.arrays(np.uint16, (16, 16), elements=st.integers(0, 4095)))
def test_monochrome1_is_the_negative_of_monochrome2(tmp_path_factory, pixels):
    folder = tmp_path_factory.mktemp("files")
    positive = put(folder / "2", pixels, BitsStored=12)
    negative = put(
        folder / "1", 4095 - pixels, BitsStored=12, PhotometricInterpretation="MONOCHROME1"
    )
    for intensity in ("full-range", "own-range"):
        found = (read(path, intensity=intensity) for path in (positive, negative))
        np.testing.assert_allclose(*found, atol=1)


def test_a_fixed_range_is_in_rescaled_values(tmp_path):
    path = put(tmp_path / "a", ramp(), BitsStored=12, RescaleSlope=2, RescaleIntercept=-1024)
    expected = np.rint(np.clip((ramp() * 2.0 - 1024) / 400, 0, 1) * 255)
    found = read(path, intensity="fixed-range", intensity_range=(0.0, 400.0))
    np.testing.assert_allclose(found, expected, atol=1)


def test_signed_numbers_of_fewer_bits_keep_their_sign(tmp_path):
    signed = (ramp().astype(np.int16) - 2048) & 0x0FFF  # as devices store twelve bits
    path = put(tmp_path / "a", signed.astype(np.int16), BitsStored=12)
    np.testing.assert_array_equal(read(path), np.rint(ramp() / 4095 * 255))


def test_the_files_window_is_applied_where_the_study_asks_for_it_alone(tmp_path, twelve):
    path = put(tmp_path / "b", ramp(), BitsStored=12, WindowCenter=[1000, 9], WindowWidth=[500, 9])
    expected = np.rint(255 * window_values(ramp().astype(np.float32), 1000, 500))
    np.testing.assert_array_equal(read(path, intensity="window"), expected)
    np.testing.assert_array_equal(read(path), read(twelve))
    np.testing.assert_array_equal(read(twelve, intensity="window"), read(twelve))  # has none


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        ("LINEAR", 99.5 - 25, 0.5 - 25 / 49),  # PS3.3, C.11.2.1.2: (x - (c - 0.5)) / (w - 1) + 0.5
        ("LINEAR", 99.5, 0.5),
        ("LINEAR_EXACT", 110, 0.7),
        ("SIGMOID", 100, 0.5),
        ("SIGMOID", 112.5, 1 / (1 + np.exp(-1))),
        ("LINEAR_EXACT", 1e9, 1.0),
    ],
)
def test_windows_are_those_of_the_standard(function, value, expected):
    found = window_values(np.array([[value]], np.float32), 100, 50, function)
    assert found.item() == pytest.approx(max(expected, 0), abs=1e-6)


def test_a_voi_look_up_table_is_a_window(tmp_path):
    path = put(tmp_path / "a", ramp(), BitsStored=12, VOILUTSequence=[look_up_table()])
    expected = np.rint((65535 - 16.0 * ramp()) / 65535 * 255)
    np.testing.assert_allclose(read(path, intensity="window"), expected, atol=1)


@pytest.mark.parametrize("entries", [None, 0, 100])
def test_a_look_up_table_without_its_entries_is_refused_where_it_is_asked_for(
    tmp_path, twelve, entries
):
    path = put(
        tmp_path / "b", ramp(), BitsStored=12, VOILUTSequence=[look_up_table(entries=entries)]
    )
    assert refusal(path, intensity="window").problem == NOT_UNDERSTOOD
    np.testing.assert_array_equal(read(path), read(twelve))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_as_dark_as_the_darkest_pixel(tmp_path, photometric):
    pixels = ramp() // 2 + 1000
    padded = pixels.copy()
    padded[:, :3] = 4000
    told = {"BitsStored": 12, "PhotometricInterpretation": photometric}
    path = put(tmp_path / "a", padded, PixelPaddingValue=4000, **told)
    found = read(path)
    assert (found[:, :3] == found[:, 3:].min()).all()
    np.testing.assert_array_equal(found[:, 3:], read(put(tmp_path / "b", pixels, **told))[:, 3:])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_what_pad_adds_is_black(tmp_path, photometric):
    told = {"PhotometricInterpretation": photometric, "RescaleIntercept": -1024, "RescaleSlope": 1}
    path = put(tmp_path / "a", ramp(8, 16) + 500, BitsStored=13, **told)
    found = read(path, fit="pad", intensity="fixed-range", intensity_range=(-800.0, 4000.0))
    assert not found[:3].any() and not found[-3:].any()
    assert found[8].any()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_the_transfer_syntax_makes_no_difference(tmp_path, twelve, syntax):
    made = dataset(ramp(), BitsStored=12)
    if syntax == RLELossless:
        made.compress(syntax)
    else:
        made.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            made.PixelData = ramp().astype(">u2").tobytes()
            made["PixelData"].VR = "OW"
    made.save_as(tmp_path / "b", enforce_file_format=True)
    np.testing.assert_array_equal(read(tmp_path / "b"), read(twelve))


def test_a_file_without_preamble_is_read(tmp_path, twelve):
    made = dataset(ramp(), BitsStored=12)
    del made.file_meta
    made.save_as(tmp_path / "b", implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(read(tmp_path / "b"), read(twelve))


def test_colour_is_red_green_and_blue_whatever_the_file_holds(tmp_path):
    colour = np.zeros((16, 16, 3), np.uint8) + np.array([200, 100, 30], np.uint8)
    luma = colour @ np.array(
        [[0.299, -0.1687, 0.5], [0.587, -0.3313, -0.4187], [0.114, 0.5, -0.0813]]
    )
    ycc = np.rint(luma + [0, 128, 128]).astype(np.uint8)
    files = [
        put(tmp_path / "rgb", colour),
        put(tmp_path / "ybr", ycc, PhotometricInterpretation="YBR_FULL"),
        put_jpeg(tmp_path / "jpeg", colour),
    ]
    for path in files:
        np.testing.assert_allclose(
            read_dicom(path, size=4, channels=3)[2, 2], [200, 100, 30], atol=3
        )
        assert read(path)[8, 8] == pytest.approx(122, abs=3)  # ITU-R 601 luma


def test_a_palette_becomes_colour(tmp_path):
    colours = {"Red": [0, 250], "Green": [10, 100], "Blue": [20, 0]}
    told = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, entries in colours.items():
        told[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, 8]
        told[f"{colour}PaletteColorLookupTableData"] = bytes(entries)
    path = put(tmp_path / "a", np.ones((16, 16), np.uint8), **told)
    np.testing.assert_array_equal(read_dicom(path, size=4, channels=3)[2, 2], [250, 100, 0])


# Refusals


def test_files_that_are_no_pictures_are_refused_by_reason(tmp_path):
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "text.dcm").write_text("no image at all " * 20)
    put(tmp_path / "report.dcm", SOPClassUID=BasicTextSRStorage, Modality="SR")
    put(tmp_path / "cine.dcm", np.stack([ramp()] * 3), NumberOfFrames=3)
    put(tmp_path / "odd.dcm", ramp(), PhotometricInterpretation="HSV")
    put(tmp_path / "huge.dcm", ramp(), Rows=60000, Columns=60000)
    put(tmp_path / "short.dcm", ramp(), Rows=600)
    put_encapsulated(tmp_path / "htj2k.dcm", ramp(), b"x" * 100, HTJ2KLossless)
    put_encapsulated(tmp_path / "unknown.dcm", ramp(), b"x" * 100, "1.2.3.4.5")
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "cine.dcm").read_bytes()[:300])
    expected = {
        "empty": EMPTY,
        "text": NO_DICOM,
        "report": f"{NO_IMAGE}: Basic Text SR Storage",
        "cine": SEVERAL,
        "odd": NOT_UNDERSTOOD,
        "huge": TOO_LARGE,
        "short": UNDECODABLE,
        "htj2k": f"{UNDECODABLE}: {HTJ2KLossless.name}",
        "unknown": f"{UNDECODABLE}: an unknown transfer syntax",
    }
    assert {name: refusal(tmp_path / f"{name}.dcm").problem for name in expected} == expected
    assert refusal(tmp_path / "cut.dcm").problem in (NO_IMAGE, DAMAGED)


def test_a_deflated_file_is_not_inflated(tmp_path, monkeypatch):
    path = tmp_path / "x.dcm"
    made = dataset(ramp())
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    made.save_as(path, enforce_file_format=True)
    monkeypatch.setattr("zlib.decompress", lambda *_: pytest.fail("inflated"))
    assert "Deflated" in refusal(path).problem


def test_a_link_out_of_the_sites_folder_is_not_followed(tmp_path, twelve):
    site = tmp_path / "site"
    site.mkdir()
    (site / "x.dcm").symlink_to(twelve)
    assert refusal(site / "x.dcm").problem == ESCAPES


def test_warnings_that_quote_the_header_are_not_shown(tmp_path, recwarn, caplog):
    made = dataset(ramp(), BitsStored=12)
    made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    made.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    raw = (tmp_path / "x.dcm").read_bytes().replace(b"MONOCHROME2 ", b"mono-secret ")
    (tmp_path / "x.dcm").write_bytes(raw)
    assert refusal(tmp_path / "x.dcm").problem == NOT_UNDERSTOOD
    assert not recwarn.list and "secret" not in caplog.text


# Studies


def write_site(folder: Path) -> Path:
    lines = ["file,finding,split"]
    for k in range(6):
        pixels = np.random.default_rng(k).integers(0, 4096, (16, 16)).astype(np.uint16)
        put(folder / f"{k}.dcm", pixels, BitsStored=12)
        lines.append(f"{k}.dcm,{('none', 'nodule')[k % 2]},{('train', 'val', 'test')[k // 2]}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_study_of_storage_dicom_is_checked_and_cached(tmp_path):
    site, study = write_site(tmp_path / "north"), Study.from_mapping(VALUES)
    report = check_cohort(site, study)
    assert report.usable
    assert report.sites[0].n == {split: {"none": 1, "nodule": 1} for split in SPLITS}
    (site / "5.dcm").write_bytes(b"")
    report = check_cohort(site, study)
    assert report.sites[0].left_out == {EMPTY: 1}
    cache = tmp_path / "cache"
    pictures = open_split(study, "north", site, "train", size=16, cache=cache).pixels
    first = pictures.take([0])[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(first, read_dicom(site / "0.dcm", size=16, channels=1))


def test_an_installed_decoder_makes_the_cache_new(tmp_path, monkeypatch):
    monkeypatch.setattr("common.data.cache._RACY_NS", -1)  # trust what was written just now
    site, study = write_site(tmp_path / "north"), Study.from_mapping(VALUES)

    def count() -> int:
        return len(open_split(study, "north", site, "train", size=16, cache=tmp_path / "c").pixels)

    def without(syntax: object) -> None:
        raise NotImplementedError

    put_jpeg(site / "1.dcm", (ramp() // 16).astype(np.uint8))
    decoder = pydicom.pixels.get_decoder
    with monkeypatch.context() as patch:
        patch.setattr(
            "pydicom.pixels.get_decoder",
            lambda syntax: without(syntax) if syntax == JPEGBaseline8Bit else decoder(syntax),
        )
        assert count() == 1
    assert count() == 2


def test_a_study_of_volumes_in_dicom_is_told_of_prepare():
    values = {**VALUES, "images": {**VALUES["images"], "view": "volume"}}
    with pytest.raises(ConfigError, match="`fedscan prepare dicom`"):
        Study.from_mapping(values)


def test_a_window_is_for_dicom_alone():
    images = {**VALUES["images"], "intensity": "window"}
    assert Study.from_mapping({**VALUES, "images": images}).images.intensity == "window"
    with pytest.raises(ConfigError, match="storage 'dicom'"):
        Study.from_mapping({**VALUES, "images": {**images, "storage": "table"}})
