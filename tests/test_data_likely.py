"""What a folder without the data that were looked for probably holds, and the command for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.check import check_cohort
from common.data.likely import likely, likely_cohort
from common.studies.study import load_study

BRAINS = load_study("brain-sex")
DICOM = bytes(128) + b"DICM" + bytes(9)


def put(root: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a__IM0001": DICOM}, "fedscan prepare dicom"),
        ({"1.2.840.113619": DICOM, ".DS_Store": b""}, "fedscan prepare dicom"),
        ({"x.dcm": DICOM, "t.csv": b"a,b\n"}, "fedscan prepare dicom"),
        ({"DICOMDIR": b""}, "fedscan prepare dicom"),
        ({"images__1.jpg": b"", "findings.csv": b"file,label\n"}, "fedscan studies new study.toml"),
        ({"1.png": b""}, "without a table"),
        ({"images__1.png": b"", "lesions.csv": b"image\n"}, "--study skin-lesions"),
        ({"brain.nii.gz": b""}, "no BIDS data set"),
        ({"export.zip": b""}, "unpack"),
        ({"notes.docx": b"", "__MACOSX__1.png": b""}, ""),
        ({"IM0001": b"no DICOM"}, ""),
    ],
)
def test_what_is_in_a_folder_is_recognised(tmp_path, files, words):
    told = likely(put(tmp_path, **files))
    assert words in told
    assert bool(told) == bool(words)


def test_a_command_names_the_folder(tmp_path):
    assert str(tmp_path) in likely(put(tmp_path, IM1=DICOM))


def test_a_cohort_one_folder_deeper_is_named(tmp_path):
    put(tmp_path, **{"data__north__participants.tsv": b"participant_id\tsex\n"})
    assert f"name {tmp_path / 'data'}" in likely_cohort(tmp_path)


@pytest.mark.parametrize("files", [{"IM0001": DICOM}, {"export__1__IM0001": DICOM}])
def test_check_tells_what_it_has_found_instead(tmp_path, files):
    report = check_cohort(put(tmp_path, **files), BRAINS)
    told = [*report.problems, *(line for site in report.sites for line in site.problems)]
    assert not report.usable
    assert any("fedscan prepare dicom" in line for line in told)
