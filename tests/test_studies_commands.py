"""Studies are listed, and one is begun from what lies in a folder."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from common.data.folder_survey import survey_folder
from common.data.image_table import read_image_table
from common.data.new_study import study_text, write_study
from common.data.phantoms.lesion_cohorts import write_hospital
from common.errors import ConfigError
from common.studies.study import (
    Generator,
    Groups,
    Images,
    Label,
    Study,
    built_in_studies,
    load_study,
)
from simulations.cli import app

GRADES = ("none", "mild", "severe")


def put(path: Path, *, mode: str = "L", brightest: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)))
    shape = (9, 9, 3) if mode == "RGB" else (9, 9)
    kind = np.uint16 if mode == "I;16" else np.uint8
    Image.fromarray(rng.integers(0, brightest, shape).astype(kind)).save(path)


def chest(folder: Path, *, separator: str = ",", **pictures) -> Path:
    """Twelve grey pictures of six patients, three grades."""
    lines = [["Path", "Patient_ID", "Grade", "Age", "split"]]
    for k in range(12):
        lines.append([f"in/{k:02d}.png", f"P{k // 2}", GRADES[k % 3], str(30 + k), "train"])
        put(folder / "in" / f"{k:02d}.png", **pictures)
    text = "\n".join(separator.join(line) for line in lines)
    (folder / "findings.csv").write_text(text + "\n", encoding="utf-8-sig")
    return folder


def begin(folder: Path, file: Path) -> Study:
    write_study(file, survey_folder(folder))
    return load_study(str(file))


# The list


def test_the_list_holds_every_built_in_study_with_a_sentence():
    told = CliRunner().invoke(app, ["studies", "--format", "json"])
    found = {one["name"]: one for one in json.loads(told.stdout)}
    assert tuple(found) == built_in_studies()
    for name, one in found.items():
        study = load_study(name)
        assert one["storage"] == study.images.storage
        assert tuple(one["classes"]) == study.label.classes.names
        assert one["about"].endswith(".")
    told = CliRunner().invoke(app, ["studies"])
    assert all(name in told.stdout for name in built_in_studies())


# A new study


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_new_study_reads_the_folder_that_it_was_made_from(tmp_path, separator):
    folder = chest(tmp_path / "north", separator=separator)
    study = begin(folder, tmp_path / "Chest X.toml")
    assert study.name == "chest-x"
    assert (study.images.table, study.images.file) == ("findings.csv", "Path")
    assert study.images.channels == 1
    assert study.label.column == "Grade"
    assert study.label.classes.names == ("mild", "none", "severe")
    assert study.groups.person == "Patient_ID"
    assert study.generator.conditions == ("Grade", "site")
    assert len(read_image_table(folder, "north", study)) == 12


def test_every_key_of_a_study_is_there_with_its_meaning(tmp_path):
    text = study_text("x", survey_folder(chest(tmp_path)))
    shown = " ".join(line.lstrip("# ") for line in text.splitlines())
    for section in (Images, Label, Groups, Generator):
        for key, field in section.model_fields.items():
            if key == "view":  # of volumes alone
                continue
            assert key.replace("_", "-") in shown, key
            if field.description and key != "values":
                assert field.description[1:] + "." in shown, key


def test_each_key_in_a_comment_loads_as_it_stands_there(tmp_path):
    text = study_text("x", survey_folder(chest(tmp_path)))
    found = re.findall(r"^# ([a-z-]+) = .+$", text, flags=re.M)
    assert set(found) == {"folder", "suffix", "fit", "intensity", "intensity-range", "positive"} | {
        "missing",
        "also",
    }
    for key in found:
        values = tomllib.loads(text.replace(f"\n# {key} = ", f"\n{key} = "))
        assert Study.from_mapping(values)


def test_a_column_of_names_without_ending_or_folder_is_understood(tmp_path):
    write_hospital(tmp_path, "north", seed=0, patients=8, size=16)
    table = tmp_path / "north" / "lesions.csv"
    table.write_text(table.read_text().replace(".jpg", ""))
    survey = survey_folder(tmp_path)  # of a cohort, its first hospital
    assert survey.folder.name == "north"
    assert (survey.pictures, survey.suffix, survey.channels) == ("images", ".jpg", 3)
    assert (survey.person, survey.also, survey.label) == ("patient_id", ("lesion_id",), "diagnosis")
    study = begin(tmp_path, tmp_path / "lesions.toml")
    assert not read_image_table(tmp_path / "north", "north", study).left_out


def test_pictures_that_use_little_of_sixteen_bits_are_scaled_by_their_own_range(tmp_path):
    folder = chest(tmp_path / "north", mode="I;16", brightest=4000)
    assert begin(folder, tmp_path / "dark.toml").images.intensity == "own-range"
    folder = chest(tmp_path / "south", mode="I;16", brightest=65000)
    assert begin(folder, tmp_path / "bright.toml").images.intensity == "full-range"


def test_grey_pictures_stored_in_colour_have_one_channel_and_coloured_ones_three(tmp_path):
    folder = chest(tmp_path / "a", mode="RGB")
    assert survey_folder(folder).channels == 3
    for path in (folder / "in").iterdir():
        Image.open(path).convert("L").convert("RGB").save(path)
    assert survey_folder(folder).channels == 1


def test_unknown_values_of_the_label_are_missing_ones_and_numbers_are_in_order(tmp_path):
    folder = chest(tmp_path / "north")
    table = folder / "findings.csv"
    text = table.read_text("utf-8-sig").replace("none", "10").replace("mild", "9")
    table.write_text(text.replace("severe", "Unknown"))
    study = begin(folder, tmp_path / "x.toml")
    assert study.label.classes.names == ("9", "10")
    assert study.label.read("unknown") is None


def test_quotes_and_control_characters_of_a_table_stay_inside_their_strings(tmp_path):
    folder = chest(tmp_path / "north")
    table = folder / "findings.csv"
    hostile = 'x""]\\ \u0007positive'
    table.write_text(table.read_text("utf-8-sig").replace("mild", f'"{hostile}"'))
    study = begin(folder, tmp_path / "x.toml")
    assert hostile.replace('""', '"') in study.label.classes.names
    assert len(read_image_table(folder, "north", study)) == 12


def test_a_bids_data_set_gives_a_study_of_volumes(tiny_cohort, tmp_path):
    study = begin(tiny_cohort, tmp_path / "brain.toml")
    assert (study.images.storage, study.images.view) == ("bids", "volume")
    assert study.label.column == "sex"
    assert set(study.label.classes.names) == {"F", "M"}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (None, "there is no table"),
        ("a,b\n1,2\n", "no column of a table names pictures"),
        ("path,note\nin/00.png,x\nin/01.png,x\n", "no column could be a label"),
        ("path;x\n" + "in/00.png\n", "does not fit its header"),
    ],
)
def test_a_folder_that_shows_no_study_is_refused_in_words(tmp_path, table, expected):
    folder = chest(tmp_path / "north")
    (folder / "findings.csv").unlink()
    if table is not None:
        (folder / "t.csv").write_text(table)
    with pytest.raises(ConfigError, match=expected):
        survey_folder(folder)


def test_a_file_that_is_there_or_is_no_toml_is_refused(tmp_path):
    survey = survey_folder(chest(tmp_path / "north"))
    write_study(tmp_path / "x.toml", survey)
    before = (tmp_path / "x.toml").read_text()
    for name in ("x.toml", "x.txt", "-.toml"):
        with pytest.raises(ConfigError, match=r"accepted|there already"):
            write_study(tmp_path / name, survey)
    assert (tmp_path / "x.toml").read_text() == before


def test_the_command_says_what_it_took_for_the_label(tmp_path):
    folder = chest(tmp_path / "north")
    words = ["studies", "new", str(tmp_path / "chest.toml"), "--from", str(folder)]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert "column 'Grade', 3 classes" in told.stderr
    assert "12 pictures can be used" in told.stderr
    assert told.stdout.strip() == str(tmp_path / "chest.toml")
