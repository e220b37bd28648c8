"""A downloaded archive becomes hospitals that the study of skin lesions reads; nothing is lost."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import zipfile
from collections import Counter
from pathlib import Path

import archives as made
import pytest
from typer.testing import CliRunner

from common.data import archive_files, archive_sorting
from common.data.archive_files import LINKED_FOLDER, LINKED_OUT
from common.data.archive_rows import LISTED_AGAIN, NO_DIAGNOSIS, NOT_ONE, OTHER_DIAGNOSIS
from common.data.archive_sorting import (
    DAMAGED,
    EMPTY,
    MOVED,
    NO_CENTRE,
    NO_PICTURE,
    SAME,
    UNLISTED,
    Sorting,
    sort_archive,
)
from common.data.archives import ARCHIVES
from common.data.groups import find_leaks
from common.data.image_table import read_image_table
from common.errors import ConfigError
from common.studies.study import Study, load_study
from simulations.cli import app

STUDY = load_study("skin-lesions")
HALVES = Sorting(shares={"north": 1, "south": 1})


def read(out: Path, site: str, study: Study = STUDY):
    return read_image_table(out / site, site, study)


def names(out: Path, site: str) -> set[str]:
    return {Path(file).stem for file in read(out, site).files}


def cells(out: Path, site: str) -> dict[str, dict[str, str]]:
    with (out / site / "lesions.csv").open(newline="") as file:
        return {Path(row["image"]).stem: row for row in csv.DictReader(file)}


def refusal(name: str, source: Path, out: Path, how: Sorting | None = None) -> str:
    before = sorted(out.parent.iterdir())
    with pytest.raises(ConfigError) as caught:
        sort_archive(name, source, out, how)
    assert sorted(out.parent.iterdir()) == before  # nothing half-made is left
    return str(caught.value)


def simple_2019(folder: Path) -> Path:
    rows = [(f"ISIC_{k:07d}", ("MEL", "NV")[k % 2], f"BCN_{k // 2:07d}") for k in range(8)]
    return made.isic2019(folder, rows)


# Each archive as it is downloaded


def test_isic2019_is_sorted_by_the_collection_in_its_lesion_numbers(tmp_path):
    rows = [
        ("ISIC_0000001", "MEL", "BCN_0000001"),
        ("ISIC_0000002", "NV", "HAM_0000001"),
        ("ISIC_0000003_downsampled", "SCC", "MSK4_0000001"),
        ("ISIC_0000004", "VASC", ""),
    ]
    summary = sort_archive("isic2019", made.isic2019(tmp_path / "in", rows), tmp_path / "out")
    assert {site: names(tmp_path / "out", site) for site in summary.hospitals} == {
        "bcn": {"ISIC_0000001"},
        "ham": {"ISIC_0000002"},
        "msk": {"ISIC_0000003_downsampled"},
    }
    assert summary.left_out == {NO_CENTRE: 1}
    row = cells(tmp_path / "out", "msk")["ISIC_0000003_downsampled"]
    assert row == {
        "image": "ISIC_0000003_downsampled.jpg",
        "patient_id": "",
        "lesion_id": "MSK4_0000001",
        "diagnosis": "SCC",
        "age": "55",
        "sex": "female",
        "site": "anterior torso",
    }


def test_isic2019_tells_the_sources_of_ham10000_where_its_table_lies_beside(tmp_path):
    source = made.isic2019(tmp_path / "in", [("ISIC_1", "MEL", "HAM_1"), ("ISIC_2", "NV", "HAM_2")])
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
    rows = [
        ("HAM_1", "ISIC_1", "mel", "histo", 80, "male", "scalp", "rosendahl"),
        ("HAM_2", "ISIC_2", "nv", "histo", 80, "male", "scalp", "vidir_modern"),
    ]
    made.put(source / "HAM10000_metadata", made.table(header, rows))
    assert set(sort_archive("isic2019", source, tmp_path / "out").hospitals) == {
        "rosendahl",
        "vidir_modern",
    }


def test_isic2019_is_read_from_a_zip_of_pictures_beside_its_tables(tmp_path):
    source = simple_2019(tmp_path / "in")
    folder = source / "ISIC_2019_Training_Input"
    members = {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}
    made.zipped(source / "ISIC_2019_Training_Input.zip", members)
    for path in folder.iterdir():
        path.unlink()
    summary = sort_archive("isic2019", source, tmp_path / "out")
    assert len(read(tmp_path / "out", "bcn")) == summary.hospitals["bcn"].images == 8
    assert summary.hospitals["bcn"].linked == 0
    assert not list((tmp_path / "out").glob("**/*.zip"))


def test_isic2020_draws_hospitals_and_leaves_out_listed_duplicates(tmp_path):
    rows = [(f"ISIC_{k:03d}", f"IP_{k // 3}", "nevus", "benign") for k in range(12)]
    rows += [("ISIC_100", "IP_9", "melanoma", "malignant"), ("ISIC_101", "IP_9", "lentigo NOS", "")]
    rows += [("ISIC_102", "IP_9", "unknown", "benign"), ("ISIC_103", "IP_9", "cafe-au-lait", "")]
    source = made.isic2020(tmp_path / "in", rows, same=[("ISIC_000", "ISIC_001")])
    summary = sort_archive("isic2020", source, tmp_path / "out", HALVES)
    tables = [read(tmp_path / "out", site) for site in ("north", "south")]
    assert sum(map(len, tables)) == 13
    assert not set(tables[0].persons) & set(tables[1].persons)
    assert summary.left_out == {
        SAME: 1,
        f"{OTHER_DIAGNOSIS}: unknown": 1,
        f"{OTHER_DIAGNOSIS}: cafe-au-lait": 1,
    }
    labels = Counter(STUDY.label.classes.names[k] for t in tables for k in t.labels.tolist())
    assert labels == {"NV": 11, "MEL": 1, "BKL": 1}


def test_isic2020_with_all_pictures_serves_a_study_of_benign_and_malignant(tmp_path):
    rows = [(f"ISIC_{k}", f"IP_{k}", "unknown", "benign") for k in range(4)]
    rows += [("ISIC_9", "IP_9", "melanoma", "malignant")]
    how = Sorting(shares={"north": 1}, keep_unlabelled=True)
    sort_archive("isic2020", made.isic2020(tmp_path / "in", rows), tmp_path / "out", how)
    assert len(read(tmp_path / "out", "north")) == 1
    assert read(tmp_path / "out", "north").left_out == {"no label": 4}
    images = {"storage": "table", "table": "lesions.csv", "folder": "images", "file": "image"}
    label = {"column": "benign_malignant", "classes": ["benign", "malignant"]}
    two = Study.from_mapping({"name": "x", "images": images | {"channels": 3}, "label": label})
    assert sorted(read(tmp_path / "out", "north", two).labels.tolist()) == [0, 0, 0, 0, 1]


def test_ham10000_is_sorted_by_its_column_of_sources(tmp_path):
    rows = [
        ("ISIC_1", "HAM_1", "akiec", "rosendahl"),
        ("ISIC_2", "HAM_1", "akiec", "rosendahl"),
        ("ISIC_3", "HAM_2", "vasc", "vidir_molemax"),
        ("ISIC_4", "HAM_3", "bkl", "vienna_dias"),
    ]
    summary = sort_archive("ham10000", made.ham10000(tmp_path / "in", rows), tmp_path / "out")
    assert {site: one.diagnoses for site, one in summary.hospitals.items()} == {
        "rosendahl": {"AK": 2},
        "vidir_molemax": {"VASC": 1},
        "vienna_dias": {"BKL": 1},
    }
    assert read(tmp_path / "out", "rosendahl").groups.tolist() == [0, 0]
    assert list(summary.notes.values()) == [2]  # what 'akiec' holds


def test_ham10000_without_sources_asks_for_hospitals(tmp_path):
    source = made.ham10000(tmp_path / "in", [("ISIC_1", "HAM_1", "nv", "")], dataset=False)
    assert "--sites north=0.5" in refusal("ham10000", source, tmp_path / "out")


def test_pad_ufes_is_read_from_zips_in_a_zip(tmp_path):
    rows = [("PAT_1", 10, "NEV"), ("PAT_1", 10, "NEV"), ("PAT_2", 10, "ACK"), ("PAT_3", 11, "SEK")]
    source = made.pad_ufes(tmp_path / "in.zip", rows)
    how = Sorting(shares={"north": 1})
    summary = sort_archive("pad-ufes", source, tmp_path / "out", how)
    table = read(tmp_path / "out", "north")
    assert summary.hospitals["north"].diagnoses == {"AK": 1, "BKL": 1, "NV": 2}
    assert table.groups.tolist() == [0, 0, 1, 2]  # lesion 10 of two patients is two lesions
    assert {row["sex"] for row in cells(tmp_path / "out", "north").values()} == {"", "female"}
    assert all(file.endswith(".png") for file in table.files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.zip", "out"]


def test_a_hospital_may_be_called_as_the_scratch_folder_is(tmp_path):
    source = made.pad_ufes(tmp_path / "in.zip", [("PAT_1", 10, "NEV"), ("PAT_2", 10, "ACK")])
    sort_archive("pad-ufes", source, tmp_path / "out", Sorting(shares={"zips": 1}))
    assert len(read(tmp_path / "out", "zips")) == 2


def fed_rows(n: int = 10) -> list[tuple[str, str, str, int, str]]:
    """Half of the test pictures show a lesion that is in training."""
    rows = [(f"ISIC_{k}", "NV", f"BCN_{k}", 0, "train") for k in range(n)]
    rows += [(f"ISIC_{n + k}", "NV", f"BCN_{k}", 0, "test") for k in range(2)]
    return rows + [(f"ISIC_{n + 2 + k}", "MEL", f"MSK4_{k}", 4, "test") for k in range(2)]


def test_fed_isic2019_is_split_anew_and_its_published_leak_is_told(tmp_path):
    source = made.fed_isic2019(tmp_path / "in", fed_rows())
    summary = sort_archive("fed-isic2019", source, tmp_path / "out")
    assert summary.published_leaks == {"groups": 2, "images": 4, "test": 2, "all_test": 4}
    assert set(summary.hospitals) == {"bcn", "msk"}
    for site in summary.hospitals:
        table = read(tmp_path / "out", site)
        assert not table.split_given
        assert not find_leaks(table.groups, table.splits)


def test_fed_isic2019_keeps_the_published_test_set_where_asked_and_validates_on_its_training(
    tmp_path,
):
    source = made.fed_isic2019(tmp_path / "in", fed_rows())
    sort_archive("fed-isic2019", source, tmp_path / "out", Sorting(keep_split=True))
    table = read(tmp_path / "out", "bcn")
    assert table.split_given
    assert {table.files[k] for k in table.rows("test")} == {
        "images/ISIC_10.jpg",
        "images/ISIC_11.jpg",
    }
    assert len(table.rows("val")) == 2
    assert len(table.rows("train")) == 8


def test_fed_isic2019_takes_its_own_pictures_not_the_raw_ones_beside_them(tmp_path):
    source = made.fed_isic2019(tmp_path / "in", fed_rows())
    sort_archive("fed-isic2019", source, tmp_path / "out")
    own = source / "ISIC_2019_Training_Input_preprocessed" / "ISIC_3.jpg"
    assert (tmp_path / "out" / "bcn" / "images" / "ISIC_3.jpg").read_bytes() == own.read_bytes()


@pytest.mark.parametrize("mark", ["1", "1.0"])
def test_an_index_in_front_other_columns_and_both_ways_to_mark_are_read(tmp_path, mark):
    source = simple_2019(tmp_path / "in")
    header = ",image," + ",".join(made.ISIC_2019) + ",diagnosis,target"
    rows = [
        (k, f"ISIC_{k:07d}", *made.one_hot("DF", mark, mark.replace("1", "0")), "x", "0")
        for k in range(8)
    ]
    made.put(source / "ISIC_2019_Training_GroundTruth.csv", made.table(header, rows))
    summary = sort_archive("isic2019", source, tmp_path / "out")
    assert summary.hospitals["bcn"].diagnoses == {"DF": 8}


@pytest.mark.parametrize("separator", [";", "\t"])
def test_separator_byte_order_mark_and_line_ends_make_no_difference(tmp_path, separator):
    source = simple_2019(tmp_path / "in")
    for path in source.glob("*.csv"):
        text = path.read_text().replace(",", separator).replace("\n", "\r\n")
        path.write_bytes(text.encode("utf-8-sig"))
    assert sort_archive("isic2019", source, tmp_path / "out").hospitals["bcn"].images == 8


# Hospitals and groups


def test_a_lesion_told_at_two_hospitals_goes_whole_to_the_one_with_most_of_it(tmp_path):
    rows = [(f"ISIC_{k}", "HAM_1", "nv", "rosendahl" if k else "vidir_modern") for k in range(3)]
    rows += [("ISIC_9", "HAM_2", "nv", "vidir_modern")]
    summary = sort_archive("ham10000", made.ham10000(tmp_path / "in", rows), tmp_path / "out")
    assert names(tmp_path / "out", "rosendahl") == {"ISIC_0", "ISIC_1", "ISIC_2"}
    assert summary.notes == {MOVED: 1}


def test_a_column_may_tell_the_hospitals(tmp_path):
    rows = [("PAT_1", 1, "NEV"), ("PAT_2", 2, "MEL"), ("PAT_3", 3, "BCC")]
    source = made.pad_ufes(tmp_path / "in.zip", rows)
    summary = sort_archive("pad-ufes", source, tmp_path / "out", Sorting(by="DIAGNOSTIC"))
    assert set(summary.hospitals) == {"bcc", "mel", "nev"}


def test_a_draw_gives_each_diagnosis_its_share_and_depends_on_the_seed_alone(tmp_path):
    rows = [(f"ISIC_{k:03d}", ("MEL", "NV")[k < 80], f"BCN_{k}") for k in range(100)]
    source = made.isic2019(tmp_path / "in", rows)
    shares = {"north": 50.0, "south": 30.0, "island": 20.0}
    homes = []
    for k, seed in enumerate((0, 0, 1)):
        out = tmp_path / f"out{k}"
        summary = sort_archive("isic2019", source, out, Sorting(shares=shares, seed=seed))
        homes.append({name: site for site in shares for name in names(out, site)})
        assert {s: one.diagnoses for s, one in summary.hospitals.items()} == {
            "north": {"MEL": 10, "NV": 40},
            "south": {"MEL": 6, "NV": 24},
            "island": {"MEL": 4, "NV": 16},
        }
    assert homes[0] == homes[1] != homes[2]
    for path in source.glob("*.csv"):  # nor does the order of rows matter
        first, *others = path.read_text().splitlines()
        path.write_text("\n".join([first, *reversed(others)]))
    sort_archive("isic2019", source, tmp_path / "again", Sorting(shares=shares))
    again = {name: site for site in shares for name in names(tmp_path / "again", site)}
    assert again == homes[0]


def test_a_smaller_copy_of_a_picture_that_is_there_is_left_out(tmp_path):
    rows = [("ISIC_1", "NV", "BCN_1"), ("ISIC_1_downsampled", "NV", ""), ("ISIC_2", "NV", "BCN_2")]
    source = made.isic2019(tmp_path / "in", rows)
    summary = sort_archive("isic2019", source, tmp_path / "out", Sorting(shares={"north": 1}))
    assert names(tmp_path / "out", "north") == {"ISIC_1", "ISIC_2"}
    assert summary.left_out == {SAME: 1}


# What is left out is counted


def test_every_row_is_at_a_hospital_or_left_out_for_a_reason(tmp_path):
    source = simple_2019(tmp_path / "in")
    folder = source / "ISIC_2019_Training_Input"
    (folder / "ISIC_0000000.jpg").unlink()
    (folder / "ISIC_0000001.jpg").write_bytes(b"")
    made.put(folder / "ISIC_0099999.jpg", made.picture())
    path = source / "ISIC_2019_Training_GroundTruth.csv"
    lines = path.read_text().splitlines()
    lines[3] = "ISIC_0000002," + ",".join(made.one_hot("UNK"))
    lines[4] = "ISIC_0000003," + ",".join(made.one_hot(""))
    lines.append(lines[-1])
    path.write_text("\n".join(lines))
    summary = sort_archive("isic2019", source, tmp_path / "out")
    assert summary.left_out == {
        EMPTY: 1,
        LISTED_AGAIN: 1,
        NO_PICTURE: 1,
        f"{OTHER_DIAGNOSIS}: UNK": 1,
        NOT_ONE: 1,
    }
    assert summary.notes == {UNLISTED: 1}
    assert summary.hospitals["bcn"].images + sum(summary.left_out.values()) == 9


def test_an_empty_diagnosis_and_a_missing_row_of_the_second_table_are_counted(tmp_path):
    rows = [("ISIC_1", "HAM_1", "nv", "rosendahl"), ("ISIC_2", "HAM_2", "", "rosendahl")]
    summary = sort_archive("ham10000", made.ham10000(tmp_path / "ham", rows), tmp_path / "h")
    assert summary.left_out == {NO_DIAGNOSIS: 1}
    source = simple_2019(tmp_path / "in")
    path = source / "ISIC_2019_Training_Metadata.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    summary = sort_archive("isic2019", source, tmp_path / "out")
    assert summary.notes == {"pictures without a row in ISIC_2019_Training_Metadata.csv": 1}
    assert summary.left_out == {NO_CENTRE: 1}


def test_a_picture_that_is_damaged_in_the_zip_is_left_out_and_the_others_are_kept(tmp_path):
    source = simple_2019(tmp_path / "in")
    folder = source / "ISIC_2019_Training_Input"
    data = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for path in folder.iterdir():
        path.unlink()
    raw = made.zipped(source / "in.zip", data).read_bytes()
    at = raw.index(data["ISIC_0000004.jpg"]) + 100
    (source / "in.zip").write_bytes(raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1 :])
    summary = sort_archive("isic2019", source, tmp_path / "out")
    assert summary.left_out == {DAMAGED: 1}
    assert len(read(tmp_path / "out", "bcn")) == 7


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_picture_whose_packed_bytes_are_damaged_is_left_out(tmp_path, kind):
    source = simple_2019(tmp_path / "in")
    folder = source / "ISIC_2019_Training_Input"
    with zipfile.ZipFile(source / "in.zip", "w", kind) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
            path.unlink()
        last = archive.infolist()[-1]
        begins = last.header_offset + 30 + len(last.filename)
    raw = bytearray((source / "in.zip").read_bytes())
    raw[begins + 9 : begins + 60] = bytes(51)
    (source / "in.zip").write_bytes(raw)
    assert sort_archive("isic2019", source, tmp_path / "out").left_out == {DAMAGED: 1}


def test_a_picture_that_cannot_be_opened_is_left_out(tmp_path, monkeypatch):
    source = simple_2019(tmp_path / "in")
    opened = os.open

    def refuse(path, *rest, **more):
        if str(path).endswith("ISIC_0000004.jpg") and "in" in Path(path).parts:
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    summary = sort_archive("isic2019", source, tmp_path / "out", Sorting(copy=True))
    assert summary.left_out == {DAMAGED: 1}


# What is written


def test_pictures_are_linked_and_copied_where_asked(tmp_path):
    source = simple_2019(tmp_path / "in")
    original = (source / "ISIC_2019_Training_Input" / "ISIC_0000000.jpg").stat()
    for copy in (False, True):
        out = tmp_path / f"out{copy}"
        summary = sort_archive("isic2019", source, out, Sorting(copy=copy))
        assert summary.hospitals["bcn"].linked == (0 if copy else 8)
        mine = (out / "bcn" / "images" / "ISIC_0000000.jpg").stat()
        assert (mine.st_ino == original.st_ino) is not copy
    assert stat.S_IMODE(mine.st_mode) == 0o600
    assert stat.S_IMODE((out / "bcn").stat().st_mode) == 0o700


def test_a_folder_that_is_not_empty_is_refused_and_an_empty_one_is_filled(tmp_path):
    source = simple_2019(tmp_path / "in")
    (tmp_path / "out").mkdir()
    sort_archive("isic2019", source, tmp_path / "out")
    before = sorted((tmp_path / "out").rglob("*"))
    assert "exists and is not empty" in refusal("isic2019", source, tmp_path / "out")
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_what_is_interrupted_leaves_nothing(tmp_path):
    def interrupt(site: str, done: int, total: int) -> None:
        assert (site, total) == ("bcn", 8)
        if done == 3:
            raise KeyboardInterrupt

    source = simple_2019(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        sort_archive("isic2019", source, tmp_path / "out", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_copied(tmp_path, monkeypatch):
    source = made.pad_ufes(tmp_path / "in.zip", [("PAT_1", 1, "NEV")])
    disk = archive_files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive_files.shutil, "disk_usage", lambda _: disk._replace(free=10))
    assert "too little space" in refusal("pad-ufes", source, tmp_path / "out", HALVES)


def test_a_disk_that_fills_up_is_an_error_in_words(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive_sorting, "write_atomically", full)
    source = simple_2019(tmp_path / "in")
    assert "cannot be written: No space" in refusal("isic2019", source, tmp_path / "out")


# Broken and hostile archives


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_missing_table_is_named_with_where_it_comes_from(tmp_path, name):
    (tmp_path / "in").mkdir()
    told = refusal(name, tmp_path / "in", tmp_path / "out", HALVES)
    assert ARCHIVES[name].tables[0].names[0] in told
    assert ARCHIVES[name].where in told


def test_two_tables_of_one_name_that_differ_are_refused_and_equal_ones_are_one(tmp_path):
    source = simple_2019(tmp_path / "in")
    text = (source / "ISIC_2019_Training_GroundTruth.csv").read_text()
    made.put(source / "copy" / "ISIC_2019_Training_GroundTruth.csv", text)
    sort_archive("isic2019", source, tmp_path / "out")
    made.put(source / "copy" / "ISIC_2019_Training_GroundTruth.csv", text + "\n")
    told = refusal("isic2019", source, tmp_path / "again")
    assert "two files of this name differ" in told
    assert "copy/ISIC_2019_Training_GroundTruth.csv" in told


def test_two_pictures_of_one_name_that_differ_are_refused(tmp_path):
    source = simple_2019(tmp_path / "in")
    made.put(source / "a" / "ISIC_0000003.jpg", made.picture(3))
    sort_archive("isic2019", source, tmp_path / "out")  # the archive's own folder is taken
    made.put(source / "a" / "PAT_1_1_100.png", made.picture(1, "PNG"))
    source = made.ham10000(tmp_path / "ham", [("ISIC_1", "HAM_1", "nv", "rosendahl")])
    made.put(
        source / "x" / "ISIC_1.jpg", (source / "HAM10000_images_part_2/ISIC_1.jpg").read_bytes()
    )
    (source / "HAM10000_images_part_2").rename(source / "y")
    sort_archive("ham10000", source, tmp_path / "equal")
    made.put(source / "x" / "ISIC_1.jpg", made.picture(99))
    assert "two files of this name differ" in refusal("ham10000", source, tmp_path / "unlike")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text.replace("MEL", "Melanoma"), "lacks a column: mel"),
        (lambda text: text.replace("image,", "image,MEL,", 1), "column twice: mel"),
        (lambda text: text + "ISIC_0000000," + ",".join(made.one_hot("DF")) + "\n", "listed twice"),
        (lambda text: text + "ISIC_7,1\n", "does not fit its header"),
        (lambda text: text + "../x," + ",".join(made.one_hot("DF")) + "\n", "no name of a picture"),
        (lambda text: text + ".x," + ",".join(made.one_hot("DF")) + "\n", "begin with a dot"),
        (lambda text: text + "," + ",".join(made.one_hot("DF")) + "\n", "no name of a picture"),
        (lambda text: text.replace("1.0", "yes"), "got 'yes'"),
        (lambda text: text.encode("utf-16"), "no UTF-8 text"),
        (lambda text: (text + "ISIC_é\n").encode("latin-1"), "no UTF-8 text"),
        (lambda text: text + '"', "cannot be read as rows"),
        (lambda text: "", "lacks a column"),
        (lambda text: text.splitlines()[0], "no picture that the tables list"),
    ],
)
def test_a_table_that_is_not_understood_is_refused_by_name(tmp_path, change, expected):
    source = simple_2019(tmp_path / "in")
    path = source / "ISIC_2019_Training_GroundTruth.csv"
    made.put(path, change(path.read_text()))
    told = refusal("isic2019", source, tmp_path / "out")
    assert expected in told
    if "no picture" not in expected:
        assert told.startswith(path.name)
    assert "site.toml" not in told


def test_an_archive_without_its_pictures_says_what_was_looked_for(tmp_path):
    source = simple_2019(tmp_path / "in")
    (source / "ISIC_2019_Training_Input").rename(tmp_path / "elsewhere")
    told = refusal("isic2019", source, tmp_path / "out")
    assert "0 pictures" in told
    assert NO_PICTURE in told


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "C:\\x.jpg", "a/../../x.jpg"])
def test_a_zip_that_names_files_outside_of_it_is_refused(tmp_path, name):
    source = simple_2019(tmp_path / "in")
    made.zipped(source / "more.zip", {name: made.picture()})
    assert "more.zip: names a file outside of it" in refusal("isic2019", source, tmp_path / "out")


def test_a_damaged_or_encrypted_zip_is_refused_by_name(tmp_path):
    source = simple_2019(tmp_path / "in")
    path = made.put(source / "more.zip", b"PK\x03\x04 cut off")
    assert "more.zip: cannot be read as a zip" in refusal("isic2019", source, tmp_path / "out")
    raw = bytearray(made.zipped(path, {"x.jpg": made.picture()}).read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    assert "more.zip: is encrypted" in refusal("isic2019", source, tmp_path / "out")


def test_zips_in_zips_end_somewhere(tmp_path):
    data = made.picture()
    for _ in range(5):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("in.zip" if _ else "x.jpg", data)
        data = stream.getvalue()
    source = made.put(tmp_path / "in.zip", data)
    assert "lies in too many zips" in refusal("pad-ufes", source, tmp_path / "out", HALVES)


def test_links_out_of_the_archive_are_not_followed_and_links_within_are(tmp_path):
    source = simple_2019(tmp_path / "in")
    folder = source / "ISIC_2019_Training_Input"
    secret = made.put(tmp_path / "secret.jpg", made.picture(77))
    for number, target in ((0, secret), (1, source / "annex" / "one"), (2, Path("nowhere"))):
        path = folder / f"ISIC_000000{number}.jpg"
        if number == 1:
            made.put(target, path.read_bytes())
        path.unlink()
        path.symlink_to(target)
    made.put(tmp_path / "outside" / "ISIC_0000000.jpg", made.picture(78))
    (source / "linked").symlink_to(tmp_path / "outside")
    summary = sort_archive("isic2019", source, tmp_path / "out")
    assert summary.notes == {LINKED_FOLDER: 1, LINKED_OUT: 2}
    assert summary.left_out == {NO_PICTURE: 2}
    written = list((tmp_path / "out" / "bcn" / "images").iterdir())
    assert len(written) == 6
    assert not any(path.is_symlink() for path in written)


def test_pipes_hidden_files_and_those_of_other_systems_are_passed_over(tmp_path):
    source = simple_2019(tmp_path / "in")
    os.mkfifo(source / "ISIC_0000000.png")
    made.put(source / "__MACOSX" / "ISIC_0000001.jpg", b"junk")
    made.put(source / "._ISIC_0000001.jpg", b"junk")
    assert sort_archive("isic2019", source, tmp_path / "out").left_out == {}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Sorting(by="centre"), "no table of the archive has this column"),
        (Sorting(by="lesion_id", shares={"a": 1}), "exclude each other"),
        (Sorting(shares={"all": 1}), "hospital 'all'"),
        (Sorting(shares={"../x": 1}), "hospital '../x'"),
        (Sorting(shares={"a": float("nan")}), "no positive number"),
        (Sorting(shares={f"h{k}": 1 for k in range(8)}), "would be empty"),
        (Sorting(keep_split=True), "fed-isic2019 has"),
    ],
)
def test_hospitals_that_cannot_be_made_are_refused(tmp_path, how, expected):
    assert expected in refusal("isic2019", simple_2019(tmp_path / "in"), tmp_path / "out", how)


def test_a_column_that_gives_a_hospital_for_each_person_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("common.data.archive_hospitals.MOST_HOSPITALS", 3)
    source = simple_2019(tmp_path / "in")
    told = refusal("isic2019", source, tmp_path / "out", Sorting(by="lesion_id"))
    assert "4 hospitals" in told


# The command line


def test_the_command_sorts_and_tells_what_it_left_out(tmp_path):
    source = made.fed_isic2019(tmp_path / "in", fed_rows())
    words = ["prepare", "fed-isic2019", str(source), "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert "2 of 4 test pictures" in told.output
    words[-1] = str(tmp_path / "again")
    told = CliRunner().invoke(app, [*words, "--format", "json", "--sites", "a=2,b=1"])
    summary = json.loads(told.stdout)
    assert {site: one["images"] for site, one in summary["hospitals"].items()} == {"a": 9, "b": 5}
    assert summary["published_leaks"]["test"] == 2


def test_the_command_refuses_parts_that_are_no_numbers(tmp_path):
    words = ["prepare", "isic2020", str(tmp_path), "--out", str(tmp_path / "out")]
    for sites in ("north", "north=x", "north=-1", "a=1,a=2", ""):
        told = CliRunner().invoke(app, [*words, "--sites", sites])
        assert isinstance(told.exception, ConfigError)
        assert "--sites" in str(told.exception)


def test_prepare_lesions_writes_hospitals_that_the_study_reads(tmp_path):
    out = tmp_path / "hospitals"
    words = ["prepare", "lesions", str(out), "--size", "16", "--patients"]
    told = CliRunner().invoke(app, [*words, "north=4,island=3"])
    assert told.exit_code == 0, told.output
    assert {path.name for path in out.iterdir()} == {"island", "north"}
    assert len(set(read(out, "north").persons)) == 4
    for patients, expected in (("west=3", "accepted are north"), ("north=2", "not empty")):
        told = CliRunner().invoke(app, [*words, patients])
        assert expected in str(told.exception)


def test_a_new_archive_is_one_entry(tmp_path, monkeypatch):
    from common.data.archives import Archive, Table

    entry = Archive(
        title="a new one",
        tables=(Table(("new.csv",), image="pic", columns=("what",)),),
        diagnoses={"naevus": "NV"},
        diagnosis="what",
        centre=lambda row: "north",
    )
    monkeypatch.setitem(archive_sorting.ARCHIVES, "new", entry)
    made.put(tmp_path / "in" / "new.csv", "pic,what\na.JPG,Naevus\n")
    made.put(tmp_path / "in" / "a.JPG", made.picture())
    sort_archive("new", tmp_path / "in", tmp_path / "out")
    assert read(tmp_path / "out", "north").files == ("images/a.jpg",)
