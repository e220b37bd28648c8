"""The report behind `fedscan check` says what a run would find, and names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data.check import SiteReport, check_cohort
from common.data.leaks import NEAR, SAME_FILE, SAME_PIXELS
from common.data.site_data import open_split, read_table
from common.studies.study import Study, load_study

BRAINS = load_study("brain-sex")
SPLITS_OF_SIX = ("train", "train", "val", "val", "test", "test")


def put_head(root: Path, name: str, *, code: str = "RAS", zoom: float = 8.0) -> Path:
    """Write a ball with blotches of its own inside."""
    grid = np.indices((26, 28, 26)) - 13
    draws = np.random.default_rng(list(f"{root.name} {name}".encode()))
    blotches = np.kron(draws.integers(200, 500, (7, 7, 7)), np.ones((4, 4, 4)))[:26, :, :26]
    head = (blotches * (np.linalg.norm(grid, axis=0) * 8 < 80)).astype(np.int16)
    image = nib.Nifti1Image(head, np.diag([zoom] * 3 + [1]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code)
    )
    path = root / name / "anat" / f"{name}_T1w.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), path)
    return path


def write_site(root: Path, *, splits=SPLITS_OF_SIX, sexes="MFMFMF") -> Path:
    rows = ["participant_id\tsex\tsplit"]
    for i, (split, sex) in enumerate(zip(splits, sexes, strict=True)):
        put_head(root, f"sub-{i}")
        rows.append(f"sub-{i}\t{sex}\t{split}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def north(tmp_path):
    return write_site(tmp_path / "cohort" / "north")


def check_site(root: Path, study: Study = BRAINS, **options) -> SiteReport:
    (site,) = check_cohort(root, study, **options).sites
    return site


def one_line(problems: list[str]) -> bool:
    return all(problem.isprintable() and problem.startswith("site '") for problem in problems)


def test_sound_site_is_usable_and_counted(north):
    put_head(north, "sub-0", code="LPI", zoom=7.0)
    seen = []
    report = check_site(north, progress=lambda *told: seen.append(told))
    assert report.usable
    assert report.problems == []
    assert report.left_out == {}
    assert report.n == {split: {"female": 1, "male": 1} for split in ("train", "val", "test")}
    assert report.voxel_sizes_mm == {"7.00 × 7.00 × 7.00": 1, "8.00 × 8.00 × 8.00": 5}
    assert report.orientations == {"LPI": 1, "RAS": 5}
    assert seen == [("north", i, 6) for i in range(1, 7)]


def test_site_without_a_split_column_is_usable(tmp_path):
    root = write_site(tmp_path / "north")
    table = (root / "participants.tsv").read_text().splitlines()
    short = "\n".join(line.rsplit("\t", 1)[0] for line in table)
    (root / "participants.tsv").write_text(short)
    report = check_site(root)
    assert report.usable
    assert report.n == {split: {"female": 1, "male": 1} for split in ("train", "val", "test")}


def test_every_bad_scan_is_named_and_the_others_still_count(north):
    (north / "sub-2/anat/sub-2_T1w.nii.gz").write_bytes(b"")
    nan = np.ones((5, 5, 5), np.float32)
    nan[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(nan, np.eye(4)), north / "sub-4/anat/sub-4_T1w.nii.gz")
    report = check_site(north)
    assert report.usable
    assert len(report.problems) == 2
    assert one_line(report.problems)
    assert "sub-2/anat/sub-2_T1w.nii.gz: a scan is empty" in report.problems[0]
    assert "sub-4/anat/sub-4_T1w.nii.gz, voxel (1, 2, 3)" in report.problems[1]
    assert report.left_out == {"a scan is empty": 1, "a scan holds NaN or infinite voxels": 1}
    assert report.n["val"] == {"female": 1, "male": 0}
    assert report.n["test"] == {"female": 1, "male": 0}


def test_link_out_of_the_site_is_named(north, tmp_path):
    put_head(tmp_path / "elsewhere", "sub-4")
    for path in sorted((north / "sub-4").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (north / "sub-4").rmdir()
    (north / "sub-4").symlink_to(tmp_path / "elsewhere" / "sub-4")
    report = check_site(north)
    assert report.problems == ["site 'north': sub-4: leaves the site's folder by a link"]
    assert report.left_out == {"leaves the site's folder by a link": 1}


def test_left_out_without_label_or_scan_is_counted_and_no_problem(north):
    with (north / "participants.tsv").open("a") as table:
        table.write("sub-7\tn/a\ttrain\nsub-8\tM\ttrain\n")
    report = check_site(north)
    assert report.usable
    assert report.problems == []
    assert report.incomplete == ["site 'north': sub-7: no label", "site 'north': sub-8: no scan"]
    assert report.left_out == {"no label": 1, "no scan": 1}


def test_circle_of_links_stops_nothing(north):
    with (north / "participants.tsv").open("a") as table:
        table.write("sub-7\tM\ttrain\n")
    (north / "sub-7").symlink_to("sub-7")
    report = check_cohort(north.parent, BRAINS)
    assert report.usable
    assert report.sites[0].incomplete == ["site 'north': sub-7: no scan"]


@pytest.mark.parametrize(
    ("splits", "sexes", "reasons"),
    [
        (["train"] * 4, "MFMF", ["no usable val scan", "no usable test scan"]),
        (SPLITS_OF_SIX, "MMFFFF", ["all train scans are male; training needs two classes"]),
        (["val", "test"], "MF", ["no usable train scan"]),
    ],
)
def test_site_that_cannot_train_says_why(tmp_path, splits, sexes, reasons):
    report = check_site(write_site(tmp_path / "north", splits=splits, sexes=sexes))
    assert not report.usable
    assert one_line(report.problems)
    assert len(report.problems) == len(reasons)
    for problem, reason in zip(report.problems, reasons, strict=True):
        assert reason in problem


def test_bad_scans_can_make_a_site_unusable(north):
    for i in (4, 5):
        (north / f"sub-{i}/anat/sub-{i}_T1w.nii.gz").write_bytes(b"")
    report = check_site(north)
    assert not report.usable
    assert "no usable test scan" in report.problems[-1]


def test_refused_data_set_is_reported_not_raised(north):
    (north / "participants.tsv").write_text("participant_id\tsex\nsub-0\tX\n")
    report = check_site(north)
    assert not report.usable
    (problem,) = report.problems
    assert "line 2, column sex" in problem
    assert "'X'" in problem


def test_report_agrees_with_what_a_run_loads(north, tmp_path):
    (north / "sub-2/anat/sub-2_T1w.nii.gz").write_bytes(b"")
    report = check_site(north)
    for split, n in report.n.items():
        loaded = open_split(BRAINS, "north", north, split, size=16, cache=tmp_path / "cache")
        assert n == {
            "female": int((loaded.labels == 0).sum()),
            "male": int((loaded.labels == 1).sum()),
        }


def test_cohort_of_sites_sorted_by_name(north):
    write_site(north.parent / "east")
    (north.parent / ".cache").mkdir()
    report = check_cohort(north.parent, BRAINS)
    assert report.usable
    assert [site.site for site in report.sites] == ["east", "north"]


def test_one_unusable_site_makes_the_cohort_unusable_but_all_are_reported(north):
    (north.parent / "east").mkdir()
    report = check_cohort(north.parent, BRAINS)
    assert not report.usable
    assert [site.usable for site in report.sites] == [False, True]
    assert "no participants.tsv" in report.sites[0].problems[0]


def test_one_data_set_alone(north):
    report = check_cohort(north, BRAINS)
    assert report.usable
    assert [site.site for site in report.sites] == ["north"]


def test_cohort_with_a_site_outside_or_none_at_all(north, tmp_path):
    assert "does not exist" in check_cohort(tmp_path / "nowhere", BRAINS).problems[0]
    (tmp_path / "empty").mkdir()
    assert "neither a data set" in check_cohort(tmp_path / "empty", BRAINS).problems[0]
    (tmp_path / "empty/north").symlink_to(north)
    report = check_cohort(tmp_path / "empty", BRAINS)
    assert not report.usable
    assert "by a link" in report.problems[0]


def test_report_is_json(north):
    (north / "sub-2/anat/sub-2_T1w.nii.gz").write_bytes(b"")
    report = check_cohort(north.parent, BRAINS)
    told = json.loads(json.dumps(report.to_dict()))
    assert told == report.to_dict()
    assert told["usable"] is True
    assert told["sites"][0]["site"] == "north"
    assert told["sites"][0]["n"]["val"] == {"female": 1, "male": 0}
    assert len(told["sites"][0]["problems"]) == 1


def test_classes_and_contrast_are_the_study_s(tmp_path):
    """T2-weighted images under three grades; the T1-weighted ones beside them are not opened."""
    grades = Study.from_mapping(
        {
            "name": "atrophy",
            "images": {"storage": "bids", "channels": 1, "contrast": "T2w"},
            "label": {"column": "grade", "classes": ["none", "mild", "severe"]},
        }
    )
    rows = ["participant_id\tgrade\tsplit"]
    for i, split in enumerate(("train", "val", "test", "train", "val", "test", "train")):
        scan = put_head(tmp_path, f"sub-{i}")
        scan.rename(scan.with_name(f"sub-{i}_T2w.nii.gz"))
        scan.write_bytes(b"bad")
        rows.append(f"sub-{i}\t{('none', 'mild')[i % 2]}\t{split}")
    (tmp_path / "participants.tsv").write_text("\n".join(rows))
    report = check_site(tmp_path, grades)
    assert report.n["train"] == {"none": 2, "mild": 1, "severe": 0}
    assert report.usable  # two classes suffice, as they do for pictures
    assert report.problems == []


# As a run reads them, and with leaks


def regroup(root: Path, column: str, cells: list[str]) -> None:
    """Add a column to a site's table."""
    lines = (root / "participants.tsv").read_text().splitlines()
    told = [f"{line}\t{cell}" for line, cell in zip(lines, [column, *cells], strict=True)]
    (root / "participants.tsv").write_text("\n".join(told) + "\n")


def with_families(**sections) -> Study:
    return Study.from_mapping(
        {
            "name": "families",
            "images": {"storage": "bids", "channels": 1},
            "label": {"column": "sex", "classes": {"female": ["F"], "male": ["M"]}},
            "groups": {"also": ["family"]},
        }
        | sections
    )


def test_what_a_run_refuses_is_refused(north):
    regroup(north, "hand", ["LINKS"] * 6)
    generator = {"conditions": ["hand"], "values": {"hand": ["left", "right"]}}
    site = check_site(north, with_families(groups={}, generator=generator))
    assert not site.usable
    assert "'hand' holds unknown values" in site.problems[0]


def test_splits_are_those_of_a_run(tmp_path):
    root = write_site(tmp_path / "north", splits=["train"] * 12, sexes="MF" * 6)
    lines = (root / "participants.tsv").read_text().splitlines()
    (root / "participants.tsv").write_text("\n".join(line.rsplit("\t", 1)[0] for line in lines))
    regroup(root, "family", [f"f{k // 2}" for k in range(12)])
    table = read_table(with_families(), "north", root)
    site = check_site(root, with_families())
    assert {split: sum(n.values()) for split, n in site.n.items()} == {
        split: len(table.rows(split)) for split in site.n
    }
    assert (site.persons, site.groups) == (12, 6)


def test_family_in_two_given_splits_is_a_leak(north):
    regroup(north, "family", ["Smith", "b", "SMITH", "c", "smith", "n/a"])
    report = check_cohort(north, with_families())
    assert not report.usable
    (leak,) = report.leaks
    assert (leak.what, leak.splits, leak.one_group) == ("family", ["train", "val", "test"], True)


@pytest.mark.parametrize("kind", [SAME_FILE, SAME_PIXELS, NEAR])
@pytest.mark.parametrize("hospital", ["north", "south"])
def test_copy_of_a_scan_in_another_split_is_a_leak_within_and_between_hospitals(
    kind, hospital, north
):
    write_site(north.parent / "south")
    scan = north / "sub-0/anat/sub-0_T1w.nii.gz"
    copy = north.parent / hospital / "sub-4/anat/sub-4_T1w.nii.gz"
    if kind == SAME_FILE:
        copy.write_bytes(scan.read_bytes())
    elif kind == SAME_PIXELS:
        copy.unlink()
        nib.save(nib.load(scan), copy.with_suffix(""))  # not compressed
    else:
        image = nib.load(scan)
        faded = np.rint(0.3 * image.get_fdata()).astype(np.int16)
        nib.save(nib.Nifti1Image(faded, image.affine), copy)
    report = check_cohort(north.parent, BRAINS)
    assert not report.usable
    (leak,) = report.leaks
    assert (leak.what, leak.splits) == (kind, ["train", "test"])
    assert {(row["site"], row["file"][:5]) for row in leak.rows} == {
        ("north", "sub-0"),
        (hospital, "sub-4"),
    }


def test_participants_of_one_number_at_two_hospitals_are_nothing_to_tell(north):
    write_site(north.parent / "south")
    assert check_cohort(north.parent, BRAINS).leaks == []
