"""Studies are listed, and one is begun from what lies in a folder."""

from __future__ import annotations

import json
import re
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
from dicoms import put as put_dicom
from dicoms import ramp
from flwr.common.config import parse_config_args
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from common.config.run_config import RunConfig
from common.data import new_study
from common.data.check import check_cohort
from common.data.folder_survey import survey_folder
from common.data.image_table import read_image_table
from common.data.new_study import study_text, write_study
from common.data.phantoms.lesion_cohorts import write_hospital
from common.errors import ConfigError
from common.studies.run_text import run_config_study, run_config_toml
from common.studies.sections import Generator, Groups, Images, Label
from common.studies.study import Study, built_in_studies, load_study
from common.studies.vocabulary import normalise
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


OF_TABLES = {"table", "file", "folder", "suffix", "fit", "intensity", "intensity_range"}
OF_TABLES |= {"person", "also"}
OF_BIDS = {"view", "contrast", "aliases"}


@pytest.mark.parametrize("storage", ["table", "bids"])
def test_every_key_of_a_study_is_there_with_its_meaning(tmp_path, tiny_cohort, storage):
    folder = chest(tmp_path) if storage == "table" else tiny_cohort
    text = study_text("x", survey_folder(folder))
    shown = " ".join(line.lstrip("# ") for line in text.splitlines())
    for section in (Images, Label, Groups, Generator):
        for key, field in section.model_fields.items():
            if key in (OF_BIDS if storage == "table" else OF_TABLES):
                continue
            assert key.replace("_", "-") in shown, key
            if field.description and key != "values":
                assert field.description[1:] + "." in shown, key


def test_each_key_in_a_comment_loads_as_it_stands_there(tmp_path):
    text = study_text("x", survey_folder(chest(tmp_path)))
    found = re.findall(r"^# ([a-z-]+) = .+$", text, flags=re.M)
    of_images = {"folder", "suffix", "fit", "intensity", "intensity-range"}
    of_labels = {"positive", "missing", "other", "also"}
    assert set(found) == of_images | of_labels | {"strategy", "adapt", "rounds"}
    for key in found:
        values = tomllib.loads(text.replace(f"\n# {key} = ", f"\n{key} = "))
        assert Study.from_mapping(values)


def test_a_column_of_names_without_ending_or_folder_is_understood(tmp_path):
    write_hospital(tmp_path, "north", seed=0, patients=8, size=16)
    table = tmp_path / "north" / "lesions.csv"
    table.write_text(table.read_text().replace(".jpg", ""))
    survey = survey_folder(tmp_path)  # of a cohort, its first hospital
    assert [folder.name for folder in survey.folders] == ["north"]
    assert (survey.pictures, survey.suffix, survey.channels) == ("images", ".jpg", 3)
    assert (survey.person, survey.also, survey.label) == ("patient_id", ("lesion_id",), "diagnosis")
    study = begin(tmp_path, tmp_path / "lesions.toml")
    assert not read_image_table(tmp_path / "north", "north", study).left_out


@pytest.mark.parametrize("ending", ["", ".dcm"])
def test_a_table_of_dicom_files_gives_a_study_of_that_storage(tmp_path, ending):
    folder = tmp_path / "north"
    lines = ["image,patient,grade"]
    for k in range(12):
        put_dicom(folder / "in" / f"{k:02d}.dcm", ramp(), BitsStored=12)
        lines.append(f"{k:02d}{ending},P{k // 2},{GRADES[k % 3]}")
    (folder / "t.csv").write_text("\n".join(lines))
    images = begin(folder, tmp_path / "x.toml").images
    assert (images.storage, images.folder, images.channels) == ("dicom", "in", 1)
    report = check_cohort(folder, load_study(str(tmp_path / "x.toml"))).sites[0]
    assert report.left_out == {}


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


def test_a_label_that_is_missing_in_two_spellings_is_told_once(tmp_path):
    folder = chest(tmp_path / "north")
    table = folder / "findings.csv"
    table.write_text(table.read_text("utf-8-sig").replace("severe", "NA"))
    assert begin(folder, tmp_path / "x.toml").label.classes.names == ("mild", "none")


def test_a_column_of_sites_is_no_label(tmp_path):
    folder = chest(tmp_path / "north")
    table = folder / "findings.csv"
    table.write_text(table.read_text("utf-8-sig").replace("Grade", "Site"))
    with pytest.raises(ConfigError, match="no column could be a label"):
        survey_folder(folder)


def test_a_column_of_people_in_another_language_is_no_label(tmp_path):
    folder = chest(tmp_path / "north")
    table = folder / "findings.csv"
    text = table.read_text("utf-8-sig").replace("Patient_ID", "PatNr").replace("Grade", "Befund")
    lines = text.replace(",train", "").replace(",split", "").splitlines()
    table.write_text("\n".join(lines))
    survey = survey_folder(folder)
    assert (survey.label, survey.person) == ("Befund", "PatNr")


def test_an_eyelid_is_no_grouping(tmp_path):
    folder = chest(tmp_path / "north")
    table = folder / "findings.csv"
    table.write_text(table.read_text("utf-8-sig").replace("Age", "eyelid_score"))
    assert survey_folder(folder).also == ()


def test_line_ends_of_an_old_macintosh_are_read(tmp_path):
    folder = chest(tmp_path / "north")
    table = folder / "findings.csv"
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r"))
    assert survey_folder(folder).label == "Grade"


def test_quotes_of_a_table_stay_inside_their_strings_and_control_characters_are_refused(tmp_path):
    folder = chest(tmp_path / "north")
    table = folder / "findings.csv"
    hostile = 'x""]\\ positive'
    table.write_text(table.read_text("utf-8-sig").replace("mild", f'"{hostile}"'))
    study = begin(folder, tmp_path / "x.toml")
    assert hostile.replace('""', '"') in study.label.classes.names
    assert len(read_image_table(folder, "north", study)) == 12
    table.write_text(table.read_text().replace("positive", "\u0007positive"))
    with pytest.raises(ConfigError, match="control character"):
        begin(folder, tmp_path / "y.toml")


# All hospitals of a cohort


def columns_of(folder: Path, change) -> None:
    table = folder / "findings.csv"
    table.write_text(change(table.read_text("utf-8-sig")))


def test_classes_are_those_of_all_hospitals(tmp_path):
    """As where the small hospital, the first by name, has never seen the rarest class."""
    columns_of(chest(tmp_path / "island"), lambda text: text.replace("severe", "mild"))
    columns_of(chest(tmp_path / "north"), lambda text: text.replace("mild", "MILD"))
    columns_of(chest(tmp_path / "south"), lambda text: text.replace("none", "Unknown"))
    study = begin(tmp_path, tmp_path / "x.toml")
    assert study.label.classes.names == ("mild", "none", "severe")
    assert study.label.read("unknown") is None
    for site in ("island", "north", "south"):
        table = read_image_table(tmp_path / site, site, study)
        assert len(table) + table.left_out.get("no label", 0) == 12


def test_a_hospital_of_one_class_is_no_hindrance(tmp_path):
    columns_of(
        chest(tmp_path / "island"),
        lambda text: text.replace("severe", "none").replace("mild", "none"),
    )
    chest(tmp_path / "north")
    survey = survey_folder(tmp_path)
    assert (survey.label, survey.classes) == ("Grade", ("mild", "none", "severe"))
    assert survey.rows == 24


def test_colour_at_one_hospital_is_colour_for_all(tmp_path):
    chest(tmp_path / "island")
    chest(tmp_path / "north", mode="RGB")
    assert survey_folder(tmp_path / "island").channels == 1
    assert survey_folder(tmp_path).channels == 3


def test_a_hospital_that_is_dark_among_bright_ones_changes_no_scale(tmp_path):
    chest(tmp_path / "island", mode="I;16", brightest=4000)
    chest(tmp_path / "north", mode="I;16", brightest=65000)
    assert survey_folder(tmp_path / "island").dark
    assert not survey_folder(tmp_path).dark


def test_a_hospital_s_own_mapping_is_followed(tmp_path):
    chest(tmp_path / "island")
    north = chest(tmp_path / "north")
    columns_of(north, lambda text: text.replace("Grade", "Befund").replace("severe", "schwer"))
    mapping = '[columns]\nBefund = "Grade"\n[codes.Grade]\nschwer = "severe"\n'
    (north / "site.toml").write_text(mapping)
    survey = survey_folder(tmp_path)
    assert not survey.apart
    assert survey.classes == ("mild", "none", "severe")
    assert survey.rows == 24


def test_hospitals_that_cannot_be_joined_are_named_with_the_way_out(tmp_path):
    chest(tmp_path / "island")
    columns_of(chest(tmp_path / "north"), lambda text: text.replace("Grade", "Befund"))
    (chest(tmp_path / "south") / "findings.csv").rename(tmp_path / "south" / "other.csv")
    survey = survey_folder(tmp_path)
    assert [folder.name for folder in survey.folders] == ["island"]
    assert "no column grade" in survey.apart["north"]
    assert "site.toml" in survey.apart["north"]
    assert "the study's table is missing" in survey.apart["south"]
    words = ["studies", "new", str(tmp_path / "x.toml"), "--from", str(tmp_path)]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert "Not looked at: site 'north'" in told.stderr


def test_the_command_counts_pictures_of_each_hospital(tmp_path):
    for name in ("island", "north"):
        chest(tmp_path / name)
    words = ["studies", "new", str(tmp_path / "x.toml"), "--from", str(tmp_path)]
    told = CliRunner().invoke(app, words)
    assert "of 2 hospitals" in told.stderr
    assert "24 rows" in told.stderr
    assert "island: 12 pictures can be used" in told.stderr
    assert "north: 12 pictures can be used" in told.stderr


def test_a_bids_data_set_gives_a_study_of_volumes(tiny_cohort, tmp_path):
    study = begin(tiny_cohort, tmp_path / "brain.toml")
    assert (study.images.storage, study.images.view) == ("bids", "volume")
    assert study.label.column == "sex"
    assert set(study.label.classes.names) == {"F", "M"}
    assert study.images.contrast == "T1w"
    assert len(survey_folder(tiny_cohort).folders) == 2


@pytest.mark.parametrize(
    ("there", "expected"),
    [(("T2w", "T2w", "FLAIR"), "T2w"), (("T2w", "T2w", "T1w"), "T1w"), ((), "T1w")],
)
def test_contrast_is_the_one_that_is_there(tmp_path, there, expected):
    rows = ["participant_id\tgrade"]
    for k in range(6):
        anat = tmp_path / f"sub-{k}" / "ses-1" / "anat"
        anat.mkdir(parents=True)
        for contrast in there[k % 3 : k % 3 + 1]:
            (anat / f"sub-{k}_ses-1_{contrast}.nii.gz").touch()
        rows.append(f"sub-{k}\t{'ab'[k % 2]}")
    (tmp_path / "participants.tsv").write_text("\n".join(rows))
    assert begin(tmp_path, tmp_path / "x.toml").images.contrast == expected


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


# Its text, for `flwr run`


def sent(file: Path) -> str:
    """Study that sites read where the command's output is given to `flwr run --run-config`."""
    told = CliRunner().invoke(app, ["studies", "text", str(file)])
    assert told.exit_code == 0, told.output
    run_file = file.with_name("run.toml")
    run_file.write_text(told.stdout, encoding="utf-8")
    return parse_config_args([str(run_file)])["study"]


def test_a_study_in_the_home_folder_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    begin(chest(tmp_path / "north"), tmp_path / "x.toml")
    assert run_config_study("~/x.toml") == run_config_study(tmp_path / "x.toml")


def test_what_is_sent_is_the_study_of_the_file(tmp_path):
    study = begin(chest(tmp_path / "north"), tmp_path / "chest.toml")
    text = sent(tmp_path / "chest.toml")
    assert text == (tmp_path / "chest.toml").read_text()
    assert RunConfig.from_flower({"study": text}).read_study() == study


def test_the_text_stays_readable(tmp_path):
    begin(chest(tmp_path / "north"), tmp_path / "chest.toml")
    told = CliRunner().invoke(app, ["studies", "text", str(tmp_path / "chest.toml")])
    assert told.stdout == f"study = '''\n{(tmp_path / 'chest.toml').read_text()}'''\n"


@given(
    name=st.text(min_size=1, max_size=20).filter(str.strip), ends=st.sampled_from(["\n", "\r\n"])
)
@settings(deadline=None, max_examples=50)
def test_any_text_reaches_the_sites_as_it_is(name, ends):
    """Quotes of every kind, accents: what TOML takes, Flower hands on."""
    assume(normalise(name) != "b" and len(name.strip()) == len(name))
    shown = name.encode("utf-8", "replace").decode()  # no lone surrogates in a file
    assume(shown.isprintable())  # others name no class
    lines = [
        'name = "x"',
        "# ''' and \\ and \"",
        "[images]",
        'storage = "bids"',
        "channels = 1",
        "[label]",
        'column = "y"',
        f"classes = [{new_study._quoted(shown)}, 'b']  # '''",
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.toml"
        file.write_bytes(b"\xef\xbb\xbf" + ends.join(lines).encode())
        study = load_study(str(file))
        text = run_config_study(file)
        assert tomllib.loads(run_config_toml(file)) == {"study": text}
    assert RunConfig.from_flower({"study": text}).read_study() == study


def test_built_in_studies_are_sent_by_name():
    told = CliRunner().invoke(app, ["studies", "text", "skin-lesions"])
    assert tomllib.loads(told.stdout) == {"study": "skin-lesions"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read"),
        ("name = ", "cannot be read"),
        ('name = "x"\n', "images is missing"),
        ("# " + "x" * 2**16, "more than 65536 bytes"),
    ],
)
def test_what_is_no_study_is_not_sent(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "x.toml").write_text(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        run_config_toml(tmp_path / "x.toml")
    assert len(str(caught.value)) < 2000


def test_a_study_whose_storage_nothing_reads_is_not_sent(tmp_path):
    (tmp_path / "x.toml").write_text(
        'name = "x"\n[images]\nstorage = "csv"\nchannels = 1\nsize = 32\n'
        '[label]\ncolumn = "k"\nclasses = ["a", "b"]\n'
    )
    told = CliRunner().invoke(app, ["studies", "text", str(tmp_path / "x.toml")])
    assert isinstance(told.exception, ConfigError) and "storage 'csv'" in str(told.exception)
    assert told.stdout == ""
