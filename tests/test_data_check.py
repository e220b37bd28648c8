"""`fedscan check` on hospitals whose pictures a table lists: what a run would find, and leaks."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import fedscan_here

from common.data.check import check_cohort
from common.data.image_table import NO_LABEL
from common.data.leaks import NEAR, SAME_FILE, SAME_PIXELS
from common.data.photographs import DAMAGED, EMPTY, SHOWS_NOTHING
from common.studies.study import Study

VALUES = {
    "name": "moles",
    "images": {"storage": "table", "table": "t.csv", "file": "file", "channels": 3, "size": 16},
    "label": {"column": "kind", "classes": ["good", "bad"]},
    "groups": {"person": "person", "also": ["lesion"]},
}
STUDY = Study.from_mapping(VALUES)
SPLITS_OF_SIX = ("train", "train", "val", "val", "test", "test")


def picture(seed: int) -> Image.Image:
    """Blotches of their own for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


def write_site(folder: Path, *, first: int = 0, splits=SPLITS_OF_SIX, given: bool = True) -> Path:
    """Write six pictures, each of another person and lesion."""
    folder.mkdir(parents=True)
    lines = ["file,kind,person,lesion,split" if given else "file,kind,person,lesion"]
    for k, split in enumerate(splits):
        picture(first + k).save(folder / f"{k}.png")
        kind, name = ("good", "bad")[k % 2], f"{folder.name}-{k}"
        lines.append(f"{k}.png,{kind},{name},l-{name}" + (f",{split}" if given else ""))
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder


def add(folder: Path, *cells: str) -> None:
    with (folder / "t.csv").open("a") as table:
        table.write(",".join(cells) + "\n")


@pytest.fixture
def north(tmp_path) -> Path:
    return write_site(tmp_path / "cohort" / "north")


def check(folder: Path):
    return check_cohort(folder, STUDY)


def test_sound_table_is_usable_and_counted(north):
    seen = []
    report = check_cohort(north, STUDY, progress=lambda *told: seen.append(told))
    assert report.usable
    (site,) = report.sites
    assert site.n == {split: {"good": 1, "bad": 1} for split in ("train", "val", "test")}
    assert (site.persons, site.groups, site.without_person) == (6, 6, 0)
    assert site.split_given
    assert site.left_out == {}
    assert site.problems == report.problems == report.leaks == []
    assert not any(report.copies.values())
    assert seen == [("north", k, 6) for k in range(1, 7)]


def test_rows_without_label_or_file_and_unreadable_pictures_are_counted_by_reason(north):
    (north / "empty.png").touch()
    (north / "torn.png").write_bytes((north / "0.png").read_bytes()[:600])
    add(north, "0.png", "", "p7", "", "train")
    add(north, "nowhere.png", "good", "p8", "", "train")
    add(north, "empty.png", "good", "p9", "", "train")
    add(north, "torn.png", "good", "", "", "train")
    report = check(north)
    (site,) = report.sites
    assert report.usable
    assert site.left_out == {
        NO_LABEL: 1,
        "a file is missing or its link leads nowhere": 1,
        EMPTY: 1,
        DAMAGED: 1,
    }
    assert [line.split(":")[1].strip() for line in site.problems] == ["empty.png", "torn.png"]
    named = sorted(line.split(":")[1].strip().split()[0] for line in site.incomplete)
    assert named == ["line", "nowhere.png"]
    assert sum(site.n["train"].values()) == 2
    assert site.persons == 6


def test_pictures_without_a_person_are_counted(north):
    picture(50).save(north / "x.png")
    add(north, "x.png", "good", "n/a", "", "train")
    (site,) = check(north).sites
    assert (site.persons, site.groups, site.without_person) == (6, 7, 1)


@pytest.mark.parametrize(
    ("splits", "reasons"),
    [
        (["train"] * 6, ["no usable val picture", "no usable test picture"]),
        (["train", "val", "train", "val", "train", "test"], ["all train pictures are good"]),
    ],
)
def test_site_that_cannot_train_says_why(tmp_path, splits, reasons):
    report = check(write_site(tmp_path / "north", splits=splits))
    assert not report.usable
    (site,) = report.sites
    assert len(site.problems) == len(reasons)
    for problem, reason in zip(site.problems, reasons, strict=True):
        assert reason in problem


def test_table_that_cannot_be_read_is_reported_and_the_other_sites_still_are(north):
    write_site(north.parent / "east", first=20)
    (north / "t.csv").write_text("file,kind\n0.png,good\n")
    report = check(north.parent)
    assert not report.usable
    assert [site.usable for site in report.sites] == [True, False]
    assert "lacks a column" in report.sites[1].problems[0]


def test_cohort_that_is_not_there_is_reported(tmp_path):
    report = check(tmp_path / "nowhere")
    assert not report.usable
    assert "does not exist" in report.problems[0]


def test_person_in_two_given_splits_is_a_problem_and_without_the_column_there_is_none(north):
    picture(50).save(north / "x.png")
    add(north, "x.png", "good", "north-0", "", "test")
    report = check(north)
    assert not report.usable
    (leak,) = report.leaks
    assert (leak.what, leak.splits) == ("person", ["train", "test"])
    lines = [line.rsplit(",", 1)[0] for line in (north / "t.csv").read_text().splitlines()]
    (north / "t.csv").write_text("\n".join(lines) + "\n")
    assert check(north).leaks == []


@pytest.mark.parametrize("kind", [SAME_FILE, SAME_PIXELS, NEAR])
@pytest.mark.parametrize("hospital", ["north", "south"])
def test_copy_in_another_split_is_a_problem_within_and_between_hospitals(kind, hospital, north):
    home = north if hospital == "north" else write_site(north.parent / "south", first=20)
    if kind == SAME_FILE:
        shutil.copyfile(north / "0.png", home / "copy")
    elif kind == SAME_PIXELS:
        picture(0).save(home / "copy", "BMP")
    else:
        picture(0).resize((32, 32)).save(home / "copy", "JPEG", quality=60)
    add(home, "copy", "good", "somebody", "", "test")
    report = check(north.parent)
    assert not report.usable
    (leak,) = report.leaks
    assert (leak.what, leak.splits) == (kind, ["train", "test"])
    assert {(row["site"], row["file"]) for row in leak.rows} == {
        ("north", "0.png"),
        (hospital, "copy"),
    }
    assert {what: n for what, n in report.copies.items() if n} == {kind: 1}


def test_copy_in_the_same_split_is_counted_and_no_problem(north):
    shutil.copyfile(north / "0.png", north / "copy.png")
    add(north, "copy.png", "good", "somebody", "", "train")
    report = check(north)
    assert report.usable
    assert report.leaks == []
    assert report.copies[SAME_FILE] == 1


def test_lesion_at_two_hospitals_is_told_and_no_problem(north):
    south = write_site(north.parent / "south", first=20)
    picture(50).save(south / "x.png")
    add(south, "x.png", "good", "somebody", "l-north-0", "test")
    report = check(north.parent)
    assert report.usable
    (leak,) = report.leaks
    assert (leak.what, leak.sites) == ("lesion", ["north", "south"])


def test_pictures_without_contrast_are_one_only_where_their_files_are_equal(tmp_path):
    """Dark ones of 16 bits, each another, of which the declared range leaves next to nothing."""
    root = write_site(tmp_path / "north")
    for k in range(6):
        noise = np.random.default_rng(k).integers(0, 900, (64, 64)).astype(np.uint16)
        Image.fromarray(noise).save(root / f"{k}.png")
    assert check(root).leaks == []
    shutil.copyfile(root / "0.png", root / "5.png")
    (leak,) = check(root).leaks
    assert (leak.what, leak.splits) == (SAME_FILE, ["train", "test"])


def test_pictures_that_show_nothing_are_named_and_left_out(north):
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(north / "0.png")
    (report,) = check(north).sites
    assert report.left_out == {SHOWS_NOTHING: 1}
    assert "0.png: a picture shows nothing" in report.problems[0]


def test_pointers_are_told_in_one_line_with_what_fetches_them(north):
    for k in range(4):
        (north / f"{k}.png").write_text("version https://git-lfs.github.com/spec/v1\noid 7\n")
    told = [line for line in check(north).sites[0].problems if "git-LFS" in line]
    assert len(told) == 1
    assert "4 × a file is a pointer of git-LFS" in told[0] and "git lfs pull" in told[0]


def test_lesion_of_one_name_in_another_case_is_one_at_two_hospitals(north):
    south = write_site(north.parent / "south", first=20)
    picture(50).save(south / "x.png")
    add(south, "x.png", "good", "somebody", "L-NORTH-0", "test")
    (leak,) = check(north.parent).leaks
    assert (leak.what, leak.sites) == ("lesion", ["north", "south"])


def test_report_is_json_with_files_and_without_persons(north):
    picture(50).save(north / "x.png")
    add(north, "x.png", "good", "north-0", "", "test")
    text = json.dumps(check(north).to_dict())
    told = json.loads(text)
    assert told["usable"] is False
    assert told["leaks"][0]["rows"][1] == {"site": "north", "split": "test", "file": "x.png"}
    assert "north-0" not in text


def write_study(folder: Path) -> Path:
    path = folder / "moles.toml"
    path.write_text(
        'name = "moles"\n[images]\nstorage = "table"\ntable = "t.csv"\nfile = "file"\n'
        'channels = 3\n[label]\ncolumn = "kind"\nclasses = ["good", "bad"]\n'
        '[groups]\nperson = "person"\nalso = ["lesion"]\n'
    )
    return path


def test_command_exits_0_without_and_2_with_a_leak_and_gives_advice(north, tmp_path):
    words = ("check", str(north.parent), "--study", str(write_study(tmp_path)))
    sound = fedscan_here(*words, cwd=tmp_path, cache=tmp_path / "cache")
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert sound.stdout.splitlines()[-1] == "usable"
    file = io.BytesIO()
    picture(0).save(file, "JPEG", quality=50)
    (north / "copy.jpg").write_bytes(file.getvalue())
    add(north, "copy.jpg", "good", "north-0", "", "test")
    leaking = fedscan_here(*words, cwd=tmp_path, cache=tmp_path / "cache")
    assert leaking.returncode == 2
    assert "leak: 1 × person in several splits" in leaking.stdout
    assert "Remove the column 'split'" in leaking.stdout
    assert "north/copy.jpg (test)" in leaking.stdout
    assert leaking.stdout.splitlines()[-1] == "not usable"
    machine = fedscan_here(*words, "--format", "json", cwd=tmp_path, cache=tmp_path / "cache")
    assert machine.returncode == 2
    assert {leak["what"] for leak in json.loads(machine.stdout)["leaks"]} == {"person", NEAR}
