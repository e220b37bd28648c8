"""Whatever a table, a study, a site's file or a run config holds: read, or refused in words."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hostile import CASES, Case, as_json, as_toml, hostile, keeps_its_promise
from hypothesis import given

from common.config.run_config import RunConfig
from common.data.image_table import read_image_table
from common.errors import DataContractError
from common.imaging.bids import read_site
from common.studies.site_mapping import load_site_mapping
from common.studies.study import Study, load_study, read_study

STUDY = Study.from_mapping(
    {
        "name": "retina",
        "images": {"storage": "table", "table": "t.csv", "file": "path", "channels": 1},
        "label": {"column": "grade", "classes": {"none": ["0", "keine"], "mild": ["1"]}},
        "groups": {"person": "patient", "also": ["lesion"]},
        "generator": {"conditions": ["eye"], "values": {"eye": {"left": ["OS"], "right": ["OD"]}}},
    }
)
PICTURES = [
    ["path", "grade", "patient", "lesion", "eye", "split"],
    ["a.png", "none", "p1", "l1", "OS", "train"],
    ["b.png", "1", "p2", "", "right", "val"],
    ["c.png", "mild", "p3", "l2", "n/a", "test"],
    ["d.png", "", "p3", "l3", "left", "train"],
]
PEOPLE = [
    ["participant_id", "sex", "age", "split"],
    ["sub-1", "F", "30", "train"],
    ["sub-2", "1", "n/a", "val"],
    ["sub-3", "n/a", "41", "test"],
]
LEVELS = {"sex": {"Levels": {"1": "male", "2": {"Description": "female"}}}, "age": {"Units": "a"}}
MAPPING = {"columns": {"Befund": "grade", "Auge": "eye"}, "codes": {"grade": {"k": "none"}}}

STUDIES = [
    {
        "name": "brain-sex",
        "images": {"storage": "bids", "channels": 1, "size": 64},
        "label": {"column": "sex", "aliases": ["gender"], "classes": {"female": ["F"], "m": ["M"]}},
        "classifier": {"strategy": "fedavg", "rounds": 3},
    },
    {
        "name": "retina",
        "images": {
            **{"storage": "table", "table": "t.csv", "file": "path", "folder": "pictures"},
            **{"channels": 3, "suffix": ".jpg", "intensity-range": [0, 4095]},
        },
        "label": {"column": "grade", "classes": ["none", "mild"], "positive": "mild"},
        "groups": {"person": "patient", "also": ["lesion"]},
        "generator": {"conditions": ["eye", "site"], "values": {"eye": ["left", "right"]}},
    },
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("site")
    for name in "abcd":
        (home / f"{name}.png").touch()
    for name in ("sub-1", "sub-2", "sub-3"):
        (home / name / "anat").mkdir(parents=True)
        (home / name / "anat" / f"{name}_T1w.nii").touch()
    return home


def as_csv(rows: object, separator: str) -> bytes:
    """Write rows, whatever they have become, as a table."""
    lines = rows if isinstance(rows, list) else [[rows]]
    text = io.StringIO()
    write = csv.writer(text, delimiter=separator).writerow
    for line in lines:
        write(line if isinstance(line, list) else [line])
    return text.getvalue().encode("utf-8", "replace")


@hostile
@given(CASES)
def test_any_table_of_pictures_is_read_or_refused(folder, case: Case):
    separator = case.choice(",;\t")
    raw = case.tree_or_bytes(PICTURES, lambda rows: as_csv(rows, separator))
    (folder / "t.csv").write_bytes(raw)
    (folder / "site.toml").unlink(missing_ok=True)
    found = keeps_its_promise(lambda: read_image_table(folder, "north", STUDY), folder)
    if not isinstance(found, DataContractError):
        assert {*found.files} <= {"a.png", "b.png", "c.png", "d.png"}


@hostile
@given(CASES)
def test_any_table_of_people_is_read_or_refused(folder, case: Case):
    table, levels = as_csv(PEOPLE, "\t"), as_json(LEVELS)
    if case.random() < 0.7:
        table = case.tree_or_bytes(PEOPLE, lambda rows: as_csv(rows, "\t"))
    else:
        levels = case.tree_or_bytes(LEVELS, as_json)
    (folder / "participants.tsv").write_bytes(table)
    (folder / "participants.json").write_bytes(levels)
    (folder / "site.toml").unlink(missing_ok=True)
    found = keeps_its_promise(lambda: read_site(folder, "north"), folder)
    if not isinstance(found, DataContractError):
        assert {one.id for one in found.participants} <= {"sub-1", "sub-2", "sub-3"}


@hostile
@given(CASES)
def test_any_mapping_of_a_site_is_read_or_refused(folder, case: Case):
    (folder / "site.toml").write_bytes(case.tree_or_bytes(MAPPING, as_toml))
    found = keeps_its_promise(lambda: load_site_mapping(folder, "north"), folder)
    if not isinstance(found, DataContractError):
        assert found.column(" x ") in {"x", *found.columns.values()}


@hostile
@given(CASES)
def test_any_study_is_read_or_refused(folder, case: Case):
    path = folder / "study.toml"
    path.write_bytes(case.tree_or_bytes(case.choice(STUDIES), as_toml))
    text = path.read_bytes().decode("utf-8", "replace") + "\n"
    read = case.choice([lambda: load_study(path), lambda: read_study(text)])
    found = keeps_its_promise(read, folder)
    if isinstance(found, Study):
        assert found.images.size in range(16, 513)


@pytest.fixture(scope="module")
def config() -> dict:
    return RunConfig.from_flower({}).to_flower()


@hostile
@given(CASES)
def test_any_run_config_is_read_or_refused(folder, config, case: Case):
    changed = case.altered(config)
    if isinstance(changed, dict):
        found = keeps_its_promise(lambda: RunConfig.from_flower(changed), folder)
        if isinstance(found, RunConfig):
            assert RunConfig.from_flower(found.to_flower()) == found
