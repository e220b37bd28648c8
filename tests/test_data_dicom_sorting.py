"""`fedscan prepare dicom`: pictures and volumes of DICOM files, and nothing that names anyone."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import stat
import string
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicoms import (
    look_up_table,
    put,
    put_encapsulated,
    put_enhanced,
    put_jpeg,
    put_series,
    ramp,
    slices,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import fedscan_here
from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    HTJ2KLossless,
    MediaStorageDirectoryStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    OphthalmicPhotography8BitImageStorage,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    VLPhotographicImageStorage,
)

from common.data.check import check_cohort
from common.data.dicom_files import DICOMDIR, EMPTY, NO_DICOM, NO_IMAGE, NOT_UNDERSTOOD, UNDECODABLE
from common.data.dicom_listing import (
    BURNED_IN,
    LINKS,
    NOBODY,
    OTHER_MODALITY,
    UNDECLARED,
    Choice,
)
from common.data.dicom_series import (
    DERIVED,
    IRREGULAR,
    LOCALIZER,
    NOT_CONVERTED,
    NOT_T1W,
    ORIENTATIONS,
    SEVERAL_VOLUMES,
    TOO_FEW,
)
from common.data.dicom_sorting import OTHER_SERIES, SAME, Summary, sort_dicom
from common.data.dicom_terms import age_in_years
from common.data.pseudonyms import load_key
from common.errors import ConfigError
from common.imaging.bids import read_site
from common.studies.study import Study
from simulations.dicom_command import dicom as prepare_dicom

KEY = bytes(32)


@pytest.fixture
def source(tmp_path) -> Path:
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def sort(source: Path, out: Path, choice: Choice | None = None, **options) -> Summary:
    summary = sort_dicom(source, out, choice, **{"key": KEY, **options})
    assert summary.files == summary.used + sum(summary.left_out.values())  # none is lost
    assert not list(out.parent.glob(".*"))
    return summary


def refused(source: Path, out: Path, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        sort_dicom(source, out, **{"key": KEY, **options})
    assert not list(out.parent.glob(".*")), "something half-made is left"
    return str(caught.value)


def rows(out: Path, name: str = "images.csv") -> list[dict[str, str]]:
    delimiter = "\t" if name.endswith(".tsv") else ","
    return list(csv.DictReader((out / name).open(newline=""), delimiter=delimiter))


def pictures(out: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(out / "images" / row["image"])) for row in rows(out)]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# Nothing that identifies anyone

# Begins as no word of the tables does: Hypothesis also tries parts of this project's own words.
words = st.text(string.ascii_letters, min_size=5, max_size=11).map("qxz".__add__)
digits = st.text("123456789", min_size=9, max_size=9)
days = st.dates().map(lambda day: f"{day.year:04d}{day.month:02d}{day.day:02d}")


@st.composite
def identities(draw) -> dict[str, object]:
    """Elements of a header that tell who, when, where or by whom."""
    private = Dataset()
    private.add_new(0x00091010, "LO", draw(words))
    texts = (
        *("PatientID", "IssuerOfPatientID", "AccessionNumber", "InstitutionName", "StationName"),
        *("InstitutionAddress", "StudyDescription", "ImageComments", "PatientComments", "StudyID"),
        *(
            "PatientAddress",
            "BodyPartExamined",
            "ViewPosition",
            "Manufacturer",
            "DeviceSerialNumber",
        ),
        *("ManufacturerModelName", "SoftwareVersions", "EthnicGroup", "Occupation", "Laterality"),
        *(
            "AdditionalPatientHistory",
            "RequestedProcedureDescription",
            "PatientSex",
            "ContrastBolusAgent",
        ),
    )
    names = ("PatientName", "ReferringPhysicianName", "OperatorsName", "PerformingPhysicianName")
    dates = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
    uids = ("StudyInstanceUID", "FrameOfReferenceUID")
    told: dict[str, object] = {keyword: draw(words) for keyword in texts}
    told |= {name: f"{draw(words)}^{draw(words)}" for name in names}
    told |= {keyword: draw(days) for keyword in dates}
    told |= {uid: f"1.2.{draw(digits)}.{draw(digits)}" for uid in uids}
    told |= {"ReferencedStudySequence": [private], "OtherPatientIDs": [draw(words), draw(words)]}
    # With a fraction: six digits alone are found in any table of numbers.
    told |= {"StudyTime": f"101112.{draw(st.text('123456789', min_size=6, max_size=6))}"}
    return told


def secrets_of(told: dict[str, object]) -> set[str]:
    found = set()
    for value in told.values():
        for part in value if isinstance(value, list) else [value]:
            text = part[0x00091010].value if isinstance(part, Dataset) else str(part)
            found |= {text, *text.split("^"), *(t for t in text.split(".") if len(t) > 6)}
    return found


@settings(max_examples=10, deadline=None)
@given(identities(), words, words, digits)
def test_no_value_of_an_identifying_element_is_in_any_output(
    tmp_path_factory, told, folder, name, uid
):
    tmp_path = tmp_path_factory.mktemp("dicom")
    source, out = tmp_path / folder, tmp_path / "out"
    instance = {"SOPInstanceUID": f"1.3.{uid}", "SeriesInstanceUID": f"1.4.{uid}"}
    series = {**told, "SeriesInstanceUID": f"1.5.{uid}", "ContrastBolusAgent": None}
    put_series(source / name, slices(10, 10, 10), **series)
    put(source / f"{name}.dcm", ramp(), BitsStored=12, **told, **instance)
    put_jpeg(source / f"{name}.jpg", np.zeros((8, 8, 3), np.uint8), **{**told, "Modality": "XC"})
    put(source / "1", **{**told, "SOPClassUID": f"1.2.{uid}"})
    put(source / "2", ramp(), **{**told, "Modality": name})
    put(source / "3", ramp(), **{**told, "PhotometricInterpretation": name})
    put_encapsulated(source / "4", ramp(), b"x" * 80, f"1.2.{uid}", **told)
    summary = sort(source, out)
    assert (summary.pictures, summary.volumes, summary.people) == (2, 1, 1)
    made = [repr(summary).encode()]
    for path, data in contents(out).items():
        made.append(path.encode())
        made.append(gzip.decompress(data) if path.endswith(".gz") else data)
        if path.endswith(".png"):
            assert not Image.open(io.BytesIO(data)).info
    hidden = secrets_of({**told, **instance, "a": folder, "b": name, "c": uid})
    for secret in hidden:
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            assert not any(secret.encode(encoding) in data for data in made), secret
    assert {row["age"] for row in rows(out)} <= {"", "90+", *map(str, range(90))}


def test_pictures_hold_no_chunk_but_pixels(source, out):
    put(source / "a", ramp())
    sort(source, out)
    (data,) = [data for path, data in contents(out).items() if path.endswith(".png")]
    kinds, at = [], 8
    while at < len(data):
        kinds.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]


def test_columns_hold_listed_terms_and_numbers(source, out):
    told = {
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "Manufacturer": "SIEMENS Healthineers",
    }
    put(source / "a", ramp(), ImagerPixelSpacing=[0.14, 0.15], PatientAge="093Y", **told)
    sort(source, out)
    (row,) = rows(out)
    assert {key: row[key] for key in list(row)[2:]} == {
        "series": "1",
        "modality": "CR",
        "body_part": "CHEST",
        "view": "PA",
        "laterality": "",
        "sex": "F",
        "age": "90+",
        "manufacturer": "Siemens",
        "row_spacing_mm": "0.14",
        "column_spacing_mm": "0.15",
    }


@pytest.mark.parametrize(
    ("age", "born", "examined", "expected"),
    [
        ("045Y", "", "", "45"),
        ("089Y", "", "", "89"),
        ("090Y", "", "", "90+"),
        ("023M", "", "", "1"),
        ("", "19500102", "20200101", "69"),
        ("", "19500101", "20200101", "70"),
        ("", "19000101", "20200101", "90+"),
        ("", "20210101", "20200101", ""),
        ("", "1950", "20200101", ""),
        ("", "00010101", "20200101", ""),
    ],
)
def test_ages_are_whole_years_and_one_category_from_90_on(age, born, examined, expected):
    assert age_in_years(age, born, examined) == expected


def test_pseudonyms_depend_on_person_and_key_alone(source, out, tmp_path):
    put(source / "1", ramp(), PatientID="P1")
    put(source / "2", ramp(), PatientID="P1", StudyInstanceUID="9.9")
    put(source / "3", ramp(), PatientID="P2")
    sort(source, out)
    people = {row["person"] for row in rows(out)}
    assert len(people) == 2
    (source / "3").unlink()
    sort(source, tmp_path / "again")
    assert {row["person"] for row in rows(tmp_path / "again")} < people
    sort(source, tmp_path / "other", key=b"1" * 32)
    assert not {row["person"] for row in rows(tmp_path / "other")} & people


@pytest.mark.parametrize("number", ["anonymous", "0", "UNK", "NaN"])
def test_files_without_a_patients_number_are_told_apart_by_study(source, out, number):
    for k in range(4):
        nobody = {"PatientID": number, "PatientName": "", "PatientBirthDate": ""}
        put(source / str(k), ramp(), StudyInstanceUID=f"1.{k // 2}", **nobody)
    summary = sort(source, out)
    assert (summary.people, summary.notes) == (2, {NOBODY: 4})


def test_the_issuer_of_a_number_in_some_files_alone_makes_no_other_person(source, out):
    put(source / "1", ramp(), IssuerOfPatientID="North")
    put(source / "2", ramp())
    put(source / "3", ramp(), PatientID="P2", IssuerOfPatientID="South")
    assert sort(source, out).people == 2


def test_one_number_of_two_issuers_is_of_two_people(source, out):
    put(source / "1", ramp(), IssuerOfPatientID="North")
    put(source / "2", ramp(), IssuerOfPatientID="South")
    assert sort(source, out).people == 2


def test_processes_that_make_one_key_at_once_have_the_same(tmp_path, monkeypatch):
    path = tmp_path / "key"
    link, others = os.link, []

    def late(new: Path, there: Path) -> None:
        assert not path.exists(), "a key that is not whole can be read"
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", link)
            others.append(load_key(path))
        link(new, there)

    monkeypatch.setattr(os, "link", late)
    assert [load_key(path)] == others
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        load_key(tmp_path / "key")
    assert not list(tmp_path.iterdir())


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "deep" / "key"
    key = load_key(path)
    assert len(key) == 32 and load_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes"):
        load_key(path)


def test_everything_is_for_its_owner_alone(source, out):
    put(source / "a", ramp())
    put_series(source / "mr", slices())
    sort(source, out)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (out, *out.rglob("*"))}
    assert modes == {0o600, 0o700}


# What is left out, by reason


def test_what_is_no_image_or_cannot_be_read_is_counted_by_reason(source, out):
    put(source / "good", ramp())
    put(source / "report", SOPClassUID=BasicTextSRStorage, Modality="SR")
    put(source / "letter.pdf", SOPClassUID=EncapsulatedPDFStorage, Modality="DOC")
    put(source / "state", SOPClassUID=GrayscaleSoftcopyPresentationStateStorage, Modality="PR")
    put(source / "raw", SOPClassUID=RawDataStorage, Modality="MR")
    put(source / "DICOMDIR", SOPClassUID=MediaStorageDirectoryStorage)
    put(source / "seg", ramp(), Modality="SEG")
    put_encapsulated(source / "htj2k", ramp(), b"x" * 80, HTJ2KLossless)
    (source / "notes.txt").write_text("no image at all " * 20)
    (source / "empty").touch()
    whole = (source / "good").read_bytes()
    (source / "short").write_bytes(whole[:-100].replace(b"1.2.826.", b"1.2.827."))
    (source / "link").symlink_to(source / "good")
    summary = sort(source, out)
    assert summary.left_out == {
        f"{NO_IMAGE}: Basic Text SR Storage": 1,
        f"{NO_IMAGE}: Encapsulated PDF Storage": 1,
        f"{NO_IMAGE}: Grayscale Softcopy Presentation State Storage": 1,
        f"{NO_IMAGE}: Raw Data Storage": 1,
        DICOMDIR: 1,
        OTHER_MODALITY: 1,
        f"{UNDECODABLE}: {HTJ2KLossless.name}": 1,
        NO_DICOM: 1,
        EMPTY: 1,
        UNDECODABLE: 1,
    }
    assert summary.notes == {LINKS: 1}
    assert summary.pictures == 1


def test_text_in_pixels_is_left_out_unless_asked_for(source, tmp_path):
    put(source / "clean", ramp())
    put(source / "declared", ramp(), BurnedInAnnotation="YES")
    put(source / "ultrasound", ramp(), Modality="US")
    put(source / "clean-ultrasound", ramp(), Modality="US", BurnedInAnnotation="NO")
    put(source / "capture", ramp(), SOPClassUID=SecondaryCaptureImageStorage)
    found = sort(source, tmp_path / "1")
    assert (found.pictures, found.left_out) == (2, {BURNED_IN: 1, UNDECLARED: 2})
    found = sort(source, tmp_path / "2", Choice(keep_undeclared=True))
    assert found.left_out == {BURNED_IN: 1}
    found = sort(source, tmp_path / "3", Choice(keep_burned_in=True))
    assert found.left_out == {UNDECLARED: 2}


@pytest.mark.parametrize(
    "kind", [VLPhotographicImageStorage, OphthalmicPhotography8BitImageStorage]
)
def test_a_photograph_by_visible_light_is_no_secondary_capture(source, out, kind):
    put(source / "a", ramp(), Modality="XC", SOPClassUID=kind)
    assert sort(source, out).pictures == 1


def test_every_kind_of_secondary_capture_is_one(source, out):
    put(source / "good", ramp())
    put(source / "a", ramp(), SOPClassUID=MultiFrameGrayscaleByteSecondaryCaptureImageStorage)
    assert sort(source, out).left_out == {UNDECLARED: 1}


@pytest.mark.parametrize("entries", [None, 100])
def test_a_file_whose_look_up_table_is_broken_is_left_out_and_counted(source, out, entries):
    put(source / "good", ramp())
    put(source / "bad", ramp(), BitsStored=12, VOILUTSequence=[look_up_table(entries=entries)])
    assert sort(source, out).left_out == {NOT_UNDERSTOOD: 1}


def test_an_image_that_is_there_twice_is_taken_once(source, out):
    path = put(source / "a", ramp())
    (source / "b").write_bytes(path.read_bytes())
    assert sort(source, out).left_out == {SAME: 1}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_damaged_files_never_end_the_work(tmp_path_factory, data):
    tmp_path = tmp_path_factory.mktemp("dicom")
    raw = bytearray(put(tmp_path / "in" / "a", ramp(8, 8)).read_bytes())
    put(tmp_path / "in" / "good", ramp(8, 8))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "in" / "a").write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    assert sort(tmp_path / "in", tmp_path / "out").pictures >= 1


# Pictures


def test_grey_pictures_span_the_range_of_their_bits(source, tmp_path):
    put(source / "2", ramp(), BitsStored=12, WindowCenter=1000, WindowWidth=501)
    put(source / "1", 4095 - ramp(), BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    put(source / "3", (ramp() // 16).astype(np.uint8))
    sort(source, tmp_path / "bits", window=False)
    whole = np.rint(ramp() / 4095 * 65535)
    small = [picture for picture in pictures(tmp_path / "bits") if picture.dtype == np.uint8]
    np.testing.assert_array_equal(small, [ramp() // 16])
    for picture in pictures(tmp_path / "bits"):
        if picture.dtype == np.uint16:
            np.testing.assert_array_equal(picture, whole)
    sort(source, tmp_path / "window")
    windowed = [p for p in pictures(tmp_path / "window") if (p == 65535).sum() > 9]
    assert len(windowed) == 1  # the one with a window


def test_each_frame_is_a_picture_of_one_series(source, out):
    put(source / "cine", np.stack([ramp() // (k + 1) for k in range(3)]), NumberOfFrames=3)
    put(source / "still", ramp(), SeriesInstanceUID="9.9", SeriesNumber=1)
    summary = sort(source, out)
    assert (summary.pictures, summary.used) == (4, 2)
    assert sorted(row["series"] for row in rows(out)) == ["1", "1", "1", "2"]
    assert len({row["image"] for row in rows(out)}) == 4


def test_slices_become_pictures_where_asked_for(source, tmp_path):
    put_series(source / "mr", slices(12))
    put_series(source / "ct", slices(5), Modality="CT")
    found = sort(source, tmp_path / "1")
    assert (found.volumes, found.pictures) == (1, 0)
    assert found.left_out == {"a slice of CT: --slices makes a picture of each": 5}
    found = sort(source, tmp_path / "2", Choice(slices=True))
    assert (found.volumes, found.pictures) == (0, 17)


def test_a_study_reads_the_pictures(source, out):
    for k in range(6):
        pixels = np.random.default_rng(k).integers(0, 4096, (16, 16)).astype(np.uint16)
        put(source / str(k), pixels, BitsStored=12, PatientID=str(k + 1), PatientSex="MF"[k % 2])
    sort(source, out)
    images = {"storage": "table", "table": "images.csv", "file": "image", "folder": "images"}
    values = {
        "name": "sex",
        "images": {**images, "channels": 1, "size": 16},
        "label": {"column": "sex", "classes": ["F", "M"]},
        "groups": {"person": "person"},
    }
    (report,) = check_cohort(out, Study.from_mapping(values)).sites
    assert (report.persons, report.left_out) == (6, {})


# Volumes


@pytest.mark.parametrize("form", [put_series, put_enhanced])
def test_a_volume_has_its_voxels_at_their_places(source, out, form):
    voxels = slices(12)
    form(source / "mr", voxels)
    sort(source, out)
    (row,) = rows(out, "participants.tsv")
    name = row["participant_id"]
    assert (row["sex"], row["age"]) == ("F", "69")
    image = nibabel.load(out / name / "anat" / f"{name}_T1w.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels.transpose(2, 1, 0))
    # Column 3, row 4 of slice 5, from the patient's left and back to right and front.
    found = image.affine @ [3, 4, 5, 1]
    np.testing.assert_allclose(found[:3], [10 - 3 * 1.25, 20 - 4 * 1.5, -30 + 5 * 2.0])


def test_volumes_are_a_bids_data_set(source, out):
    for k in range(3):
        put_series(source / str(k), slices(seed=k), PatientID=f"P{k}", PatientSex="MFM"[k])
    put_series(source / "3", slices(seed=3), PatientID="P3", PatientSex="O")
    sort(source, out)
    index = read_site(out, "north")
    assert sorted(one.label for one in index.participants) == [0, 1, 1]
    assert index.left_out == {"no label": 1}


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"SeriesDescription": "localizer_3_plane"}, LOCALIZER),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, LOCALIZER),
        ({"SeriesDescription": "t2_tse_tra"}, NOT_T1W),
        ({"SeriesDescription": "FLAIR", "EchoTime": 9, "RepetitionTime": 500}, NOT_T1W),
        ({"SeriesDescription": "T1 map"}, NOT_T1W),
        ({"SeriesDescription": "AX T2 FLAIR MPR"}, NOT_T1W),
        ({"SeriesDescription": "SAG T2 SPACE MPR"}, NOT_T1W),
        ({"SeriesDescription": "T2W_3D_TFE"}, NOT_T1W),
        ({"SeriesDescription": "ax_t2_spgr"}, NOT_T1W),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}, DERIVED),
        ({"Rows": [16, 16]}, NOT_CONVERTED),
        ({"SeriesDescription": "x", "EchoTime": 90, "RepetitionTime": 4000}, NOT_T1W),
        ({"ImagePositionPatient": [0, 0, 0]}, SEVERAL_VOLUMES),
    ],
)
def test_series_that_are_no_t1_weighted_volume_are_left_out(source, out, elements, reason):
    put(source / "good", ramp())
    put_series(source / "mr", slices(12), **elements)
    assert sort(source, out).left_out == {reason: 12}


@pytest.mark.parametrize("name", ["MPR sag", "FSPGR BRAVO", "3D_TFE", "AX T1 FLAIR", "mprage swi"])
def test_a_name_that_is_mostly_of_t1_weighted_series_tells_the_weighting(source, out, name):
    put_series(source / "mr", slices(12), SeriesDescription=name)
    assert sort(source, out).volumes == 1


def test_the_times_tell_the_weighting_where_no_word_does(source, out):
    told = {"EchoTime": 3, "RepetitionTime": 2300, "InversionTime": 900}
    put_series(source / "mr", slices(12), SeriesDescription="head", **told)
    assert sort(source, out).volumes == 1


def test_series_of_irregular_slices_are_left_out(source, out):
    put(source / "good", ramp())
    put_series(source / "few", slices(9), PatientID="few")
    gap = put_series(source / "gap", slices(13), PatientID="gap")
    gap[6].unlink()
    uid = {"SeriesInstanceUID": "5.5", "PatientID": "two"}
    put_series(source / "two" / "a", slices(11), **uid)
    put_series(source / "two" / "b", slices(11), **uid, ImageOrientationPatient=[0, 1, 0, 0, 0, 1])
    assert sort(source, out).left_out == {TOO_FEW: 9, IRREGULAR: 12, ORIENTATIONS: 22}


def test_a_person_has_one_volume_the_best_that_can_be_converted(source, out):
    broken = put_series(source / "broken", slices(14), PatientID="P1")
    broken[3].unlink()
    put_series(source / "contrast", slices(13), ContrastBolusAgent="Gd")
    put_series(source / "coarse", slices(11))
    put_series(source / "best", slices(12))
    summary = sort(source, out)
    assert summary.left_out == {IRREGULAR: 13, OTHER_SERIES: 24}
    (scan,) = out.glob("*/anat/*.nii.gz")
    assert nibabel.load(scan).shape[2] == 12


def test_without_dicom2nifti_the_way_out_is_named(source, out, monkeypatch):
    put_series(source / "mr", slices(12))
    put(source / "picture", ramp())
    monkeypatch.setitem(sys.modules, "dicom2nifti", None)
    assert 'pip install "fedscan[dicom]"' in refused(source, out)
    assert sort(source, out, Choice(only="pictures")).pictures == 1


# The folder


def test_the_output_is_whole_or_not_there(source, out, monkeypatch):
    put(source / "a", ramp())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("common.data.dicom_sorting._write_tables", full)
        assert "No space left" in refused(source, out)
    assert not out.exists()
    sort(source, out)
    assert "not empty" in refused(source, out)


def test_nothing_to_make_is_an_error_with_reasons(source, out):
    put(source / "report", SOPClassUID=BasicTextSRStorage, Modality="SR")
    assert "Basic Text SR Storage: 1" in refused(source, out)
    assert "no such folder" in refused(source / "nowhere", out)


def test_the_same_files_give_the_same_bytes(source, tmp_path):
    put(source / "a", ramp())
    put_series(source / "mr", slices(12))
    sort(source, tmp_path / "1")
    sort(source, tmp_path / "2")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_of_two_files_of_one_picture_the_one_that_can_be_decoded_is_kept(source, out):
    raw = put(source / "b", ramp()).read_bytes()
    (source / "a").write_bytes(raw[:-40])
    (source / "c").write_bytes(raw)
    summary = sort(source, out)
    assert (summary.pictures, summary.left_out[SAME], sum(summary.left_out.values())) == (1, 1, 2)


def test_output_inside_the_source_is_refused(source):
    put(source / "a", ramp())
    assert "lies in the folder that is read" in refused(source, source / "made")


def test_of_two_files_of_one_slice_the_longer_is_kept(source, out):
    paths = put_series(source, slices())
    raw = paths[3].read_bytes()
    (source / "a-cut").write_bytes(raw[:-40])
    summary = sort(source, out)
    assert (summary.volumes, summary.left_out) == (1, {SAME: 1})


def test_the_link_table_tells_the_site_which_file_became_what(source, out, tmp_path):
    put(source / "deep" / "a.dcm", ramp(), PatientID="P7", AccessionNumber="A1")
    link = tmp_path / "link.csv"
    sort(source, out, link=link)
    (row,) = csv.DictReader(link.open(newline=""))
    assert (row["file"], row["patient_id"], row["accession_number"]) == ("deep/a.dcm", "P7", "A1")
    assert (out / row["output"]).exists()
    assert stat.S_IMODE(link.stat().st_mode) == 0o600
    again = tmp_path / "again"
    assert "exists" in refused(source, again, link=link)
    assert "identifies people" in refused(source, again, link=again / "link.csv")


def test_no_link_table_stays_where_the_output_cannot_be_put_in_place(
    source, out, tmp_path, monkeypatch
):
    put(source / "a", ramp())
    link, replace = tmp_path / "link.csv", Path.replace

    def full(path: Path, target: Path) -> Path:
        if target == out:
            raise OSError(28, "No space left on device")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert "No space left" in refused(source, out, link=link)
    assert not link.exists()
    sort(source, out, link=link)


def test_command_reports_for_people_and_machines(source, tmp_path):
    put(source / "a", ramp(), RecognizableVisualFeatures="YES")
    put(source / "report", SOPClassUID=BasicTextSRStorage, Modality="SR")
    words = ("prepare", "dicom", "in", "--out")
    done = fedscan_here(*words, "hospitals/north", cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert "1 picture and 0 volumes of 1 person, from 1 of 2 files" in done.stdout
    assert "1 time: the file says" in done.stdout
    assert f"1 left out: {NO_IMAGE}: Basic Text SR Storage" in done.stdout
    assert "Kept of the headers: modality" in done.stdout
    machine = fedscan_here(*words, "x", "--format", "json", cwd=tmp_path, cache=tmp_path / "cache")
    told = json.loads(machine.stdout)
    assert (told["pictures"], told["files"], told["out"]) == (1, 2, str(tmp_path / "x"))
    assert contents(tmp_path / "x") == contents(tmp_path / "hospitals" / "north")  # one key


def test_the_key_does_not_lie_in_the_output(source, out):
    with pytest.raises(ConfigError, match="not in --out"):
        prepare_dicom(source, out, key=out / "key")
    assert not out.exists()
