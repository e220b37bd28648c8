"""A hospital's table becomes rows with a label, a group and a split, or a refusal in words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.data import tables
from common.data.groups import connect, find_leaks
from common.data.image_table import (
    DUPLICATE,
    NO_FILE,
    NO_LABEL,
    NO_SPLIT,
    UNKNOWN,
    read_image_table,
)
from common.errors import DataContractError
from common.imaging.splits import SPLITS, assign_splits
from common.site_files import ESCAPES
from common.studies.study import Study

STUDY = Study.from_mapping(
    {
        "name": "retina",
        "images": {"storage": "table", "table": "findings.csv", "file": "path", "channels": 1},
        "label": {"column": "grade", "classes": {"none": ["0", "keine"], "mild": ["1"]}},
        "groups": {"person": "patient", "also": ["lesion"]},
        "generator": {
            "conditions": ["grade", "site", "eye"],
            "values": {"eye": {"left": ["OS"], "right": ["OD"]}},
        },
    }
)
HEADER = ("path", "grade", "patient", "lesion", "eye")


def put(folder: Path, rows: list[tuple], *, header=HEADER, separator=",", files=True) -> Path:
    """Write a table, and an empty file for each of its paths."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [separator.join(map(str, row)) for row in (header, *rows)]
    (folder / "findings.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for row in rows if files else ():
        if row[0]:
            (folder / row[0]).parent.mkdir(parents=True, exist_ok=True)
            (folder / row[0]).touch()
    return folder


def people(n: int, *, images: int = 1) -> list[tuple]:
    return [
        (f"{i:03d}-{k}.png", "none" if i % 2 else "mild", f"p{i:03d}", "", "left")
        for i in range(n)
        for k in range(images)
    ]


def read(folder: Path, study: Study = STUDY):
    return read_image_table(folder, "north", study)


def refusal(folder: Path, study: Study = STUDY) -> DataContractError:
    with pytest.raises(DataContractError) as caught:
        read(folder, study)
    return caught.value


# What is read


@pytest.mark.parametrize(
    ("header", "cell"),
    [
        (("age", "age"), ("7", "8")),
        (("note",), ('"never closed',)),
        (("note",), ('5" long',)),
        (("caf\xe9",), ("M\xfcller",)),
        (("note", "more"), ("short",)),
        (("note",), ("long", "", "")),
    ],
    ids=["twice", "open-quote", "inch", "latin-1", "short-row", "long-row"],
)
def test_columns_that_nobody_uses_are_not_judged(tmp_path, header, cell):
    rows = [("1.png", "0", "anna", "l1", "OD"), ("2.png", "1", "bert", "l2", "OS")]
    put(tmp_path, [(*row, *cell) for row in rows], header=(*HEADER, *header))
    path = tmp_path / "findings.csv"
    path.write_bytes(path.read_text().encode("latin-1"))
    assert read(tmp_path).files == ("1.png", "2.png")


def test_value_that_is_none_of_the_classes_is_left_out_and_counted(tmp_path):
    study = STUDY.model_copy(update={"label": STUDY.label.model_copy(update={"other": ("veil",)})})
    put(tmp_path, [("1.png", "0", "a", "", ""), ("2.png", "Veil", "b", "", "")])
    table = read(tmp_path, study)
    assert table.left_out == {"neither none nor mild": 1}
    assert table.unlabelled is None


def test_rows_have_person_label_conditions_and_file_sorted_by_file(tmp_path):
    put(
        tmp_path,
        [
            ("b/2.png", "mild", "anna", "l1", "OD"),
            ("a/1.png", "Keine", "anna", "l2", ""),
            ("c 3.png", "0", "bert", "", "left"),
        ],
    )
    table = read(tmp_path)
    assert table.files == ("a/1.png", "b/2.png", "c 3.png")
    assert table.persons == ("anna", "anna", "bert")
    assert table.labels.tolist() == [0, 1, 0]
    assert table.groups.tolist() == [0, 0, 1]
    assert table.conditions.tolist() == [[0, UNKNOWN], [1, 1], [0, 0]]
    assert not table.split_given
    assert table.left_out == {}
    assert len(table) == 3


def test_row_keeps_the_names_that_join_it_and_no_other(tmp_path):
    put(tmp_path, [("1.png", "0", "anna", "l1", ""), ("2.png", "0", "n/a", "", "")])
    table = read(tmp_path)
    assert table.keys == ((("patient", "anna"), ("lesion", "l1")), ())


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separator_byte_order_mark_and_line_ends_make_no_difference(
    tmp_path, separator, encoding, end
):
    put(tmp_path, [("ä.png", "mild", "anna", "l,1;x", "OD")])
    cells = [HEADER, ("ä.png", '"mild"', "anna", '"l,1;x\ty ""z"""', '" OD "')]
    text = end.join(separator.join(row) for row in cells) + end + end
    (tmp_path / "findings.csv").write_bytes(text.encode(encoding))
    table = read(tmp_path)
    assert table.files == ("ä.png",)
    assert table.conditions.tolist() == [[1, 1]]


def test_other_columns_and_the_case_of_their_names_are_of_no_matter(tmp_path):
    header = ("", "Lesion", "PATH ", "note", "note", "Grade", "patient", "eye")
    put(tmp_path, [("7", "", "a.png", "x", "y", "1", "p", "OS")], header=header, files=False)
    (tmp_path / "a.png").touch()
    assert read(tmp_path).labels.tolist() == [1]


def test_folder_and_suffix_complete_the_names_of_files(tmp_path):
    images = {"folder": "in", "suffix": ".jpg", "storage": "table", "channels": 3}
    values = {
        "name": "x",
        "images": images | {"table": "findings.csv", "file": "path"},
        "label": {"column": "grade", "classes": ["none", "mild"]},
    }
    put(tmp_path, [("ISIC_1", "mild", "", "", "")], files=False)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ISIC_1.jpg").touch()
    assert read(tmp_path, Study.from_mapping(values)).files == ("in/ISIC_1.jpg",)


def test_site_mapping_translates_columns_codes_and_splits(tmp_path):
    header = ("Datei", "Befund", "patient", "lesion", "eye", "Teil")
    put(tmp_path, [("a.png", "Schwer", "p", "", "L", "Lernen")], header=header)
    (tmp_path / "site.toml").write_text(
        '[columns]\nDatei = "path"\nBefund = "grade"\nteil = "split"\n'
        '[codes.grade]\nschwer = "mild"\n[codes.eye]\nl = "left"\n[codes.split]\nlernen = "train"\n'
    )
    table = read(tmp_path)
    assert table.labels.tolist() == [1]
    assert table.conditions.tolist() == [[1, 0]]
    assert table.splits.tolist() == ["train"]


def test_arrays_cannot_be_changed(tmp_path):
    table = read(put(tmp_path, people(3)))
    for array in (table.labels, table.groups, table.splits, table.conditions):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]


def test_rows_that_cannot_be_used_are_counted_by_reason(tmp_path):
    rows = [
        ("a.png", "mild", "p1", "", "", "train"),
        ("b.png", "", "p2", "", "", "train"),
        ("c.png", "n/a", "p3", "", "", "train"),
        ("", "mild", "p4", "", "", "train"),
        ("d.png", "mild", "p5", "", "", ""),
        ("a.png", "mild", "p1", "", "", "train"),
        ("gone.png", "mild", "p6", "", "", "train"),
        ("link.png", "mild", "p7", "", "", "train"),
    ]
    put(tmp_path / "north", rows, header=(*HEADER, "split"))
    (tmp_path / "north" / "gone.png").unlink()
    (tmp_path / "north" / "link.png").unlink()
    (tmp_path / "north" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "elsewhere.png").touch()
    table = read(tmp_path / "north")
    assert table.files == ("a.png",)
    assert table.left_out == {
        NO_LABEL: 2,
        NO_FILE: 1,
        NO_SPLIT: 1,
        DUPLICATE: 1,
        "a file is missing or its link leads nowhere": 1,
        ESCAPES: 1,
    }


def test_one_file_under_two_names_counts_once(tmp_path):
    put(tmp_path, [("a.png", "mild", "p1", "", ""), ("b.png", "mild", "p1", "", "")])
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to("a.png")
    assert read(tmp_path).left_out == {DUPLICATE: 1}


@pytest.mark.parametrize("nobody", ["", "nan", "UNK"])
def test_rows_without_a_person_are_kept_and_counted(tmp_path, nobody):
    put(tmp_path, [(f"{name}.png", "mild", nobody, "", "") for name in "ab"])
    table = read(tmp_path)
    assert table.without_person == 2
    assert table.persons == ("", "")
    assert len(set(table.groups.tolist())) == 2  # nobody is not one person


# Refusals: the owner learns where, the others only what


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ([("s.png", "SECRET", "p", "", ""), ("t.png", "SECRET2", "p", "", "")], "2 rows"),
        ([("s.png", "mild", "p", "", "SECRET")], "1 rows, the first in line 2"),
        ([("/SECRET.png", "mild", "p", "", "")], "line 2"),
        ([("x/../../SECRET.png", "mild", "p", "", "")], "line 2"),
        ([("C:\\SECRET.png", "mild", "p", "", "")], "line 2"),
        ([("SECRET.png", "mild", "p", "", "", "x")], "line 2: a row of the table does not fit"),
        ([("SECRET.png", label, "p", "", "") for label in ("mild", "1", "0")], "lines 2 and 4"),
        ([("", "", "SECRET", "", "")], "no label: 1"),
        ([('"SECRET.png', "mild", "p", "", "")], "cannot be read as rows of cells"),
        ([], "an empty table"),
    ],
)
def test_refusal_holds_a_value_only_for_whoever_has_the_data(tmp_path, rows, where):
    put(tmp_path, rows, files=False)
    if all(row[0] == "SECRET.png" for row in rows):
        (tmp_path / "SECRET.png").touch()
    error = refusal(tmp_path)
    assert where in str(error)
    assert "SECRET" not in error.public
    assert error.public.startswith("site 'north': ")


def test_unknown_labels_are_told_with_what_is_accepted(tmp_path):
    rows = [(f"{i}.png", f"g{i}", "p", "", "") for i in range(9)]
    error = refusal(put(tmp_path, rows))
    assert "9 rows, the first in line 2" in str(error)
    assert "'g0', 'g1', 'g2', 'g3', 'g4' and 4 more" in str(error)
    assert "column of the study 'grade' holds unknown values" in error.public
    assert "Accepted: none, mild" in error.public


def test_unknown_split_says_which_there_are(tmp_path):
    put(tmp_path, [("a.png", "mild", "p", "", "", "dev")], header=(*HEADER, "split"))
    assert "train, val (or validation), test" in refusal(tmp_path).public


def test_missing_table_column_and_folder(tmp_path):
    assert "data folder does not exist" in str(refusal(tmp_path / "none"))
    assert "table is missing" in str(refusal(tmp_path))
    put(tmp_path, [], header=("path", "SECRET", "lesion", "eye"))
    error = refusal(tmp_path)
    assert "lacks a column of the study: grade, patient" in error.public
    assert "SECRET" in str(error)
    assert "SECRET" not in error.public


def test_column_that_stands_twice_is_refused_also_by_way_of_the_mapping(tmp_path):
    put(tmp_path, [], header=(*HEADER, "Befund"))
    (tmp_path / "site.toml").write_text('[columns]\nBefund = "grade"\n')
    assert "has a column of the study twice: grade" in refusal(tmp_path).public


def test_table_outside_the_folder_is_not_read(tmp_path):
    put(tmp_path / "elsewhere", people(3))
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "findings.csv").symlink_to(tmp_path / "elsewhere" / "findings.csv")
    assert ESCAPES in str(refusal(tmp_path / "north"))


def test_table_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "findings.csv").write_bytes(b"path;grade\n\xff;\xfe\n")
    assert "not UTF-8" in str(refusal(tmp_path))


def test_bytes_rows_columns_and_lines_are_bounded(tmp_path, monkeypatch):
    put(tmp_path, people(4))
    read(tmp_path)
    for bound, value, words in [
        ("MOST_BYTES", 50, "too large"),
        ("MOST_ROWS", 3, "more than 3 rows"),
        ("MOST_COLUMNS", 4, "more than 4 columns"),
        ("LONGEST_LINE", 20, "more than 20 characters"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(tables, bound, value)
            assert words in str(refusal(tmp_path))


def test_line_of_a_million_commas_is_refused(tmp_path):
    put(tmp_path, people(3))
    with (tmp_path / "findings.csv").open("a") as table:
        table.write("," * 1_000_000 + "\n")
    assert "a line of the table has more than" in str(refusal(tmp_path))


# Groups and splits

KEYS = st.lists(
    st.lists(st.tuples(st.sampled_from("pl"), st.integers(0, 6)), max_size=3), max_size=14
)


@given(KEYS)
def test_groups_are_the_connected_components(keys):
    found = connect(keys)
    reached = np.eye(len(keys), dtype=bool)
    for i, one in enumerate(keys):
        for j, other in enumerate(keys):
            reached[i, j] |= bool(set(one) & set(other))
    for _ in keys:
        reached = reached @ reached
    assert (found[:, None] == found[None, :]).tolist() == reached.tolist()


@given(KEYS)
def test_a_group_is_numbered_by_its_first_row(keys):
    found = connect(keys)
    assert all(found[group] == group <= row for row, group in enumerate(found))


ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 12), st.booleans()),
    min_size=1,
    max_size=25,
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS, st.randoms())
def test_no_group_straddles_splits_and_the_order_of_rows_is_of_no_matter(
    tmp_path_factory, rows, random
):
    cells = [
        (f"{i}.png", label, f"p{person}" if known else "", f"l{lesion}", "")
        for i, (label, person, lesion, known) in enumerate(rows)
    ]
    folder = tmp_path_factory.mktemp("site")
    table = read(put(folder, cells))
    leaks = find_leaks(table.groups, table.splits)
    assert not leaks
    assert leaks.images == dict.fromkeys(SPLITS, 0)
    assert sum(len(table.rows(split)) for split in SPLITS) == len(rows)
    random.shuffle(cells)
    again = read(put(folder, cells))
    assert again.files == table.files
    assert again.splits.tolist() == table.splits.tolist()
    assert again.groups.tolist() == table.groups.tolist()


def test_one_image_a_person_is_split_as_participants_are(tmp_path):
    table = read(put(tmp_path, people(40)))
    labels = dict(zip(table.persons, table.labels.tolist(), strict=True))
    assert dict(zip(table.persons, table.splits.tolist(), strict=True)) == assign_splits(labels)


def test_splits_are_stratified_by_label_and_hold_a_fifth_each(tmp_path):
    table = read(put(tmp_path, people(50, images=3)))
    for label in (0, 1):
        counts = Counter(table.splits[table.labels == label].tolist())
        assert counts == {"train": 45, "val": 15, "test": 15}


def test_a_person_with_a_rare_label_counts_for_that_label(tmp_path):
    rows = people(30)
    rows = [(file, "none", person, *rest) for file, _, person, *rest in rows]
    rows += [(f"rare-{i}.png", "mild", f"p{i:03d}", "", "") for i in range(3)]
    table = read(put(tmp_path, rows))
    assert set(table.splits[table.labels == 1].tolist()) == set(SPLITS)


def test_a_row_without_label_joins_a_person_and_a_lesion_all_the_same(tmp_path):
    rows = [
        ("a.png", "mild", "anna", "", ""),
        ("b.png", "", "anna", "l1", ""),
        ("c.png", "mild", "", "l1", ""),
        ("d.png", "mild", "", "l2", ""),
    ]
    assert read(put(tmp_path, rows)).groups.tolist() == [0, 0, 1]


def test_a_lesion_and_a_person_of_one_name_are_two_things(tmp_path):
    rows = [("a.png", "mild", "7", "", ""), ("b.png", "mild", "", "7", "")]
    assert read(put(tmp_path, rows)).groups.tolist() == [0, 1]


def test_a_name_in_another_case_is_the_same_person_or_lesion(tmp_path):
    rows = [
        ("a.png", "mild", "Pat7", "", ""),
        ("b.png", "mild", "PAT7", "L\u00e4 1", ""),
        ("c.png", "mild", "pat8", "la\u0308 1", ""),  # an accent of its own
        ("d.png", "mild", "Pat9", "", ""),
    ]
    table = read(put(tmp_path, rows))
    assert table.groups.tolist() == [0, 0, 0, 1]
    assert table.persons == ("PAT7", "PAT7", "pat8", "Pat9")
    assert table.keys[1][1] == table.keys[2][1]


def test_a_file_under_two_names_joins_its_persons(tmp_path):
    rows = [
        ("0.png", "mild", "p0", "", ""),
        ("1.png", "mild", "pX", "", ""),
        ("link.png", "mild", "pX", "", ""),
    ]
    put(tmp_path, rows)
    (tmp_path / "link.png").unlink()
    (tmp_path / "link.png").symlink_to("0.png")
    table = read(tmp_path)
    assert table.files == ("0.png", "1.png")
    assert table.groups.tolist() == [0, 0]


def test_lesions_numbered_anew_for_each_person_are_refused_not_joined(tmp_path):
    rows = [(f"{i}.png", "mild", f"p{i}", str(1 + i % 3), "") for i in range(40)]
    assert read(put(tmp_path / "few", rows[:9])).splits.tolist()  # too few to tell
    rows = [(*row[:3], "1", "") for row in rows]
    error = refusal(put(tmp_path / "many", rows))
    assert "40 of 40 rows, of 40 persons" in str(error)
    assert "starts anew for each person" in error.public
    assert "40" not in error.public


def test_given_split_is_kept_and_its_leaks_are_counted(tmp_path):
    rows = [
        ("a.png", "mild", "anna", "", "", "train"),
        ("b.png", "mild", "anna", "", "", "TEST"),
        ("c.png", "mild", "bert", "l", "", "train"),
        ("d.png", "mild", "carl", "l", "", "validation"),
        ("e.png", "none", "dora", "", "", "test"),
        ("f.png", "none", "dora", "", "", "test"),
    ]
    table = read(put(tmp_path, rows, header=(*HEADER, "split")))
    assert table.split_given
    assert table.splits.tolist() == ["train", "test", "train", "val", "test", "test"]
    leaks = find_leaks(table.groups, table.splits)
    assert leaks
    assert leaks.groups.tolist() == [table.groups[0], table.groups[2]]
    assert leaks.images == {"train": 2, "val": 1, "test": 1}


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(SPLITS)), min_size=1, max_size=20))
def test_leaks_are_the_groups_with_images_in_several_splits(rows):
    groups, splits = (np.array(column) for column in zip(*rows, strict=True))
    leaks = find_leaks(groups, splits)
    expected = [g for g in range(6) if len({split for group, split in rows if group == g}) > 1]
    assert leaks.groups.tolist() == expected
    assert sum(leaks.images.values()) == sum(group in expected for group, _ in rows)


def test_an_alias_of_the_label_stands_for_its_column_where_that_is_missing(tmp_path):
    label = {"column": "grade", "aliases": ["severity"], "classes": ["none", "mild"]}
    study = Study.from_mapping(
        {
            "name": "retina",
            "images": {"storage": "table", "table": "findings.csv", "file": "path", "channels": 1},
            "label": label,
        }
    )
    rows = [("a.png", "none"), ("b.png", "mild")]
    plain = read(put(tmp_path / "a", rows, header=("path", "grade")), study)
    named = read(put(tmp_path / "b", rows, header=("path", "severity")), study)
    assert plain.labels.tolist() == named.labels.tolist() == [0, 1]
    both = [(*row, "mild") for row in rows]
    kept = read(put(tmp_path / "c", both, header=("path", "grade", "severity")), study)
    assert kept.labels.tolist() == [0, 1]
