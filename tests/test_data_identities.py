"""`fedscan check` warns of identities in headers and names, by kind, and never repeats one."""

from __future__ import annotations

import datetime
import json
import struct
import zlib
from pathlib import Path

import dicoms
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from common.data.check import check_cohort
from common.data.identities import in_columns, in_path, looks_like, shown
from common.data.identity_headers import in_dicom, in_nifti, in_picture
from common.studies.study import Study, load_study
from simulations.check_command import _show

STUDY = Study.from_mapping(
    {
        "name": "moles",
        "images": {"storage": "table", "table": "t.csv", "file": "file", "channels": 3, "size": 16},
        "label": {"column": "kind", "classes": ["good", "bad"]},
        "groups": {"person": "person", "also": ["lesion"]},
    }
)
FILE = "0.jpg"


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(1000).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize(
    "name",
    [
        *("sub-anna_smith/anat/sub-anna_smith_T1w.nii.gz", "19560312.png", "1956-03-12"),
        *("12.03.1956", "DOE^JOHN", "Müller.png", "SmithJohn.jpg", "smith, john.png", "Anna.jpg"),
        *("sub-19560312/anat/x.nii", "a/anna@example.org.png", "010256-1234.png", "sub-kowal_zbig"),
    ],
)
def test_name_that_looks_like_a_person_or_a_birth_date_is_found(name):
    assert in_path(name)
    assert shown(name, 7) == "file no. 7 by name (name not shown)"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "sub-01/ses-20200101/anat/sub-01_ses-20200101_T1w.nii.gz",
            "sub-IXI002",
            "lesion_1234567",
        ),
        *("images/ISIC_0024306.jpg", "HAM_0000118", "PAT_8_15_820.png", "IXI002-Guys-0828-T1.nii"),
        *("patient64541/study1/view1_frontal.jpg", "002_S_0295", "OAS1_0001_MR1", "vidir_modern"),
        *("Mass-Training_P_00001_LEFT_CC", "1.2.276.0.7230010.3.1.4.83233.20200101.12.dcm"),
        *("Guys-St-Thomas-0001", "sub-NDARAA075AMK", "sub-20200099", "left_eye_12", "IDRiD_01"),
    ],
)
def test_usual_names_of_data_sets_are_no_identities(name):
    assert not in_path(name)
    assert shown(name, 7) == name


def test_columns_are_known_as_identifying_by_their_words():
    assert len(list(in_columns("PatientName;DOB;Straße;e-mail;Telefonnummer;MRN;nachname"))) == 7
    usual = "image_name,patient_id,sex,age_approx,birth_weight,class name,filename,diagnosis"
    assert list(in_columns(usual)) == []


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_exif_and_position_of_pictures_are_found(ending, picture, tmp_path):
    exif = Image.Exif()
    exif[0x013B] = "Anna Smith"
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0Anna Smith"
    picture.save(path := tmp_path / f"0.{ending}", exif=exif)
    assert in_picture(path, root=tmp_path, site="north") == {
        "EXIF field 'Artist'",
        "EXIF field 'UserComment'",
        "EXIF position (GPS)",
    }


def test_xmp_and_comments_of_pictures_are_found(picture, tmp_path):
    picture.save(path := tmp_path / FILE, comment=b"Anna", xmp=b"<a><dc:creator>Anna</a>")
    found = in_picture(path, root=tmp_path, site="north")
    assert found == {"XMP data", "picture's comment"}


def test_texts_of_png_are_found_also_behind_the_pixels_and_no_name_of_its_own_is_repeated(
    picture, tmp_path
):
    info = PngInfo()
    info.add_text("Comment", "Anna Smith", zip=True)
    info.add_itxt("Anna Smith", "born 1956")
    info.add_text("Software", "paint 3")
    picture.save(path := tmp_path / "0.png", pnginfo=info)
    raw, chunk = path.read_bytes(), b"tEXtAuthor\0Anna"
    checksum = struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(raw[:-12] + struct.pack(">I", len(chunk) - 4) + chunk + checksum + raw[-12:])
    assert in_picture(path, root=tmp_path, site="north") == {
        "PNG text 'Author'",
        "PNG text 'Comment'",
        "PNG text of a name of its own",
    }


def put_scan(path: Path, fields: dict[str, bytes]) -> nib.Nifti1Image:
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4))
    for name, text in fields.items():
        image.header[name] = text
    nib.save(image, path)
    return image


def test_fields_extensions_and_sidecar_of_nifti_are_found(tmp_path):
    path = tmp_path / "a_T1w.nii.gz"
    image = put_scan(path, {"descrip": b"Anna Smith", "db_name": b"\0smith", "aux_file": b"none"})
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Anna Smith"))
    nib.save(image, path)
    sidecar = {"PatientName": "A", "x": [{"patientid": "B"}], "InstitutionName": ""}
    (tmp_path / "a_T1w.json").write_text(json.dumps(sidecar))
    assert in_nifti(path, root=tmp_path, site="north") == {
        "NIfTI field 'descrip'",
        "NIfTI field 'db_name'",
        "NIfTI extension with text",
        "JSON sidecar's 'PatientName'",
        "JSON sidecar's 'PatientID'",
    }


@pytest.mark.parametrize(
    "text", ["FSL5.0", "6.0.5:9e026117", "TE=2.3;Time=141229.5;phase=1", "FreeSurfer Nov 20 2008"]
)
def test_what_programs_write_of_themselves_is_no_identity(text, tmp_path):
    put_scan(path := tmp_path / "a.nii", {"descrip": text.encode()})
    assert in_nifti(path, root=tmp_path, site="north") == set()


def test_elements_of_dicom_and_text_in_its_pixels_are_found(tmp_path):
    path = dicoms.put(tmp_path / "a", dicoms.ramp(), BurnedInAnnotation="YES", InstitutionName="St")
    assert in_dicom(path, root=tmp_path, site="north") == {
        "DICOM element 'InstitutionName'",
        "DICOM element 'PatientBirthDate'",
        "DICOM element 'PatientID'",
        "DICOM element 'PatientName'",
        "DICOM: text burned into the pixels",
    }


def test_pseudonym_of_dicom_that_was_made_anonymous_is_no_identity(tmp_path):
    pseudonym = {"PatientName": "P17", "PatientID": "P17", "PatientBirthDate": None}
    path = dicoms.put(tmp_path / "a", dicoms.ramp(), PatientIdentityRemoved="YES", **pseudonym)
    assert in_dicom(path, root=tmp_path, site="north") == set()


SURNAMES = st.text("abcdefghijklmnopqrstuvwxyz", min_size=5, max_size=9)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.builds(
        "{}{}{}".format, st.sampled_from(["anna", "Karl"]), st.sampled_from("_-. "), SURNAMES
    )
    | st.dates(datetime.date(1910, 1, 1), datetime.date(2030, 1, 1)).map(str),
    broken=st.booleans(),
)
def test_nothing_that_is_printed_holds_the_identity_that_was_planted(
    name, broken, picture, tmp_path_factory, capsys
):
    """In names of files and people, in EXIF, in a file that is damaged and one that is missing."""
    folder = tmp_path_factory.mktemp("cohort") / "north"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x013B] = name
    picture.save(folder / f"{name}.jpg", exif=exif)
    picture.save(folder / "1.jpg", exif=exif)
    if broken:
        (folder / f"{name}.jpg").write_bytes(b"\xff\xd8\xff")
    rows = [f"{name}.jpg,good,{name},l-{name}", f"1.jpg,bad,{name},2", f"{name}-x.jpg,bad,P1,3"]
    (folder / "t.csv").write_text("\n".join(["file,kind,person,lesion", *rows]) + "\n")
    report = check_cohort(folder, STUDY)
    _show(report)
    printed = capsys.readouterr()
    told = printed.out + printed.err + json.dumps(report.to_dict())
    assert looks_like(name, of_person=True)
    assert name not in told
    assert {one.kind: one.n for one in report.sites[0].identities}["EXIF field 'Artist'"] >= 1
    assert any(one.kind.startswith("name of a file") for one in report.sites[0].identities)


def test_identities_are_warnings_and_leave_the_data_usable(picture, tmp_path):
    rows = ["file,kind,person,lesion,patient_name,split"]
    for k, split in enumerate(["train", "train", "val", "test"]):
        noise = np.random.default_rng(1000 + k).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{('good', 'bad')[k % 2]},p{k},l{k},x,{split}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    report = check_cohort(tmp_path, STUDY)
    assert report.usable
    (found,) = report.sites[0].identities
    assert (found.kind, found.n, found.where) == ("a column of names", 1, ["column 5 of t.csv"])


def test_no_line_about_a_bids_data_set_repeats_a_participants_name(tmp_path, capsys):
    """Of a scan that is no head, of a folder that is not listed, and of keys in sidecars."""
    root = tmp_path / "north"
    for name in ("sub-anna_smith", "sub-karl_jones"):
        (root / name / "anat").mkdir(parents=True)
        put_scan(root / name / "anat" / f"{name}_T1w.nii", {"descrip": b"anna_smith"})
    (root / "T1w.json").write_text('{"PatientName": "anna_smith"}')
    (root / "participants.tsv").write_text("participant_id\tsex\tdob\nsub-anna_smith\tF\t1956\n")
    report = check_cohort(root, load_study("brain-sex"))
    _show(report)
    told = capsys.readouterr().out + json.dumps(report.to_dict())
    assert "anna_smith" not in told
    assert "karl_jones" not in told
    kinds = {one.kind: one.where for one in report.sites[0].identities}
    assert kinds["JSON sidecar's 'PatientName'"] == ["T1w.json"]
    assert kinds["a column of dates of birth"] == ["column 3 of participants.tsv"]
    assert kinds["NIfTI field 'descrip'"] == ["file no. 1 by name (name not shown)"]
