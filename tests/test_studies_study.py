"""A study file says all that a reader must know, and its refusals say what would do."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import ConfigError, DataContractError
from common.studies.sections import check_relative
from common.studies.site_mapping import SiteMapping, load_site_mapping
from common.studies.study import Study, built_in_studies, load_study
from common.studies.vocabulary import Vocabulary, read_vocabulary

RETINA = """
name = "retina"
[images]
storage = "table"
table = "findings.csv"
file = "path"
channels = 1
size = 64
[label]
column = "grade"
classes = ["none", "mild", "moderate", "severe"]
positive = "severe"
[groups]
person = "patient_id"
also = ["lesion_id"]
[generator]
conditions = ["grade", "site"]
"""
NAMES = st.lists(
    st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=2, max_size=100, unique=True
)


def changed(**sections) -> dict:
    """RETINA with some keys set, or taken out where they are None."""
    values = tomllib.loads(RETINA)
    for section, keys in sections.items():
        if not isinstance(keys, dict):
            values[section] = keys
            continue
        for key, value in keys.items():
            values.setdefault(section, {})[key.replace("_", "-")] = value
            if value is None:
                del values[section][key.replace("_", "-")]
    return values


def refusal(values: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        Study.from_mapping(values)
    return str(caught.value)


# What is accepted


def test_a_study_of_twenty_lines_is_read_with_the_rest_by_default(tmp_path):
    path = tmp_path / "retina.toml"
    path.write_bytes(b"\xef\xbb\xbf" + RETINA.encode())
    study = load_study(path)
    assert study.name == "retina"
    assert (study.images.storage, study.images.table, study.images.file) == (
        "table",
        "findings.csv",
        "path",
    )
    assert (study.images.view, study.images.intensity, study.images.fit) == (
        "picture",
        "full-range",
        "crop",
    )
    assert study.label.classes.names == ("none", "mild", "moderate", "severe")
    assert study.label.positive == "severe"
    assert (study.groups.person, study.groups.also) == ("patient_id", ("lesion_id",))
    assert study.condition_columns == (("grade", study.label.classes),)


def test_sections_on_groups_and_generator_may_be_left_out():
    values = changed()
    del values["groups"], values["generator"]
    study = Study.from_mapping(values)
    assert study.groups.person == ""
    assert study.condition_columns == ()


def test_a_study_is_a_value():
    study = Study.from_mapping(changed())
    assert study == Study.from_mapping(copy.deepcopy(changed()))
    assert hash(study) == hash(Study.from_mapping(changed()))
    with pytest.raises(ValidationError):
        study.name = "other"


@pytest.mark.parametrize("name", built_in_studies())
def test_built_in_study_bears_the_name_of_its_file(name):
    study = load_study(name)
    assert study.name == name
    assert len(study.label.classes.names) >= 2


def test_the_built_in_studies_are_those_of_the_documentation():
    assert built_in_studies() == ("brain-sex", "skin-lesions")
    assert load_study("brain-sex").label.classes.names == ("female", "male")
    assert load_study("brain-sex").images.intensity == "head"
    assert load_study("skin-lesions").label.classes.names == (
        *("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"),
    )


def test_volumes_are_the_view_of_bids_and_pictures_of_everything_else():
    bids = {"storage": "bids", "channels": 1}
    study = Study.from_mapping(
        changed(images={**dict.fromkeys(("table", "file")), **bids}, groups={"person": None})
    )
    assert (study.images.view, study.images.intensity) == ("volume", "head")


def test_an_intensity_range_alone_says_that_it_is_fixed():
    study = Study.from_mapping(changed(images={"intensity_range": [0, 4095]}))
    assert (study.images.intensity, study.images.intensity_range) == ("fixed-range", (0.0, 4095.0))


def test_a_condition_that_is_not_the_label_says_what_it_may_hold():
    generator = {"conditions": ["Sex", "site"], "values": {"sex": {"f": ["female"], "m": []}}}
    ((column, values),) = Study.from_mapping(changed(generator=generator)).condition_columns
    assert column == "Sex"
    assert values.names == ("f", "m")


# Labels


def test_a_label_is_known_in_any_case_and_spelling():
    classes = {"none": ["0", "keine"], "mild": [1, "Nävus"]}
    label = Study.from_mapping(changed(label={"classes": classes, "positive": None})).label
    assert [label.read(text) for text in ("NONE ", "0", "0.0", "Keine")] == [0] * 4
    assert [label.read(text) for text in ("mild", "1", "1.0", "na\u0308vus")] == [1] * 4
    assert [label.read(text) for text in ("", " ", "n/a", "NaN")] == [None] * 4


def test_an_unknown_label_is_an_error_that_does_not_repeat_it():
    with pytest.raises(ValueError, match="unknown label") as caught:
        Study.from_mapping(changed()).label.read("anna")
    assert "anna" not in str(caught.value)


def test_what_means_no_label_can_be_said():
    label = Study.from_mapping(changed(label={"missing": ["?", "Unknown"]})).label
    assert label.read("unknown") is label.read("?") is label.read("") is None
    with pytest.raises(ValueError, match="unknown label"):
        label.read("n/a")


def test_a_class_may_bear_a_name_that_means_nothing_elsewhere():
    label = Study.from_mapping(changed(label={"classes": ["NA", "yes"], "positive": None})).label
    assert label.read("na") == 0


@given(NAMES)
def test_classes_keep_their_order(names):
    vocabulary = read_vocabulary(names)
    assert vocabulary.names == tuple(names)
    assert [vocabulary.index(f" {name.upper()} ") for name in names] == list(range(len(names)))


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\x00b", "a\u2028b"])
def test_a_name_that_no_metric_can_bear_is_refused(name):
    """A site would tell a metric of that name, after the training."""
    for classes in ([name, "c"], {"c": [name], "d": []}):
        with pytest.raises(ValueError, match="control character"):
            read_vocabulary(classes)


@given(NAMES, st.data())
def test_a_spelling_belongs_to_one_class(names, data):
    table = {name: [f"{name}-x"] for name in names}
    one, other = data.draw(st.permutations(names).map(lambda order: order[:2]))
    table[one] = [*table[one], f" {other}-X"]
    with pytest.raises(ValueError, match=r"means both|twice"):
        read_vocabulary(table)


def test_a_spelling_told_twice_for_one_class_does_no_harm():
    assert read_vocabulary({"a": ["A", "x", "X"], "b": []}).index("x") == 0


@pytest.mark.parametrize(
    "classes",
    [
        [],
        ["one"],
        [f"c{i}" for i in range(101)],
        ["a", "A "],
        ["a", ""],
        ["a", True],
        ["a", 1.5],
        {"a": "x", "b": ["y"]},
        {"a": ["B"], "b": []},
        "ab",
        7,
    ],
)
def test_classes_that_cannot_be_told_apart_are_refused(classes):
    told = refusal(changed(label={"classes": classes, "positive": None}))
    assert told.startswith("[label]: classes: ")
    assert "accepted is 2 to 100 names" in told


# Refusals


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"images": {"chanels": 3}}, "unknown key 'chanels'; did you mean 'channels'?"),
        ({"images": {"channels": None}}, "channels is missing; accepted is one of 1, 3"),
        ({"images": {"channels": 2}}, "channels = 2: accepted is one of 1, 3"),
        ({"images": {"channels": "1"}}, "channels = '1': accepted"),
        ({"images": {"size": 64.0}}, "size = 64.0: accepted is a whole number from 16 up to 512"),
        ({"images": {"size": 2}}, "size = 2"),
        ({"images": {"storage": "../x"}}, "bids, table, dicom, or a reader of your own"),
        ({"images": {"storage": "bids"}}, "table has no effect with storage 'bids'"),
        ({"images": {"file": None}}, "storage 'table' needs the key file"),
        ({"images": {"table": "../x.csv"}}, "not a path relative to the site's folder"),
        ({"images": {"table": "/x.csv"}}, "not a path relative to the site's folder"),
        ({"images": {"view": "volume"}}, "storage 'table' holds pictures"),
        ({"images": {"intensity": "head"}}, "needs view 'volume' or 'slices'"),
        ({"images": {"intensity": "fixed-range"}}, "need each other"),
        ({"images": {"intensity_range": [1, 0]}}, "the first is not the smaller"),
        ({"images": {"intensity_range": [0, float("inf")]}}, "not two numbers"),
        (
            {"images": {"intensity": "own-range", "intensity_range": [0, 1]}},
            "need each other",
        ),
        ({"label": {"column": None}}, "column is missing"),
        ({"label": {"positive": "bad"}}, "'bad' is none of the classes: none, mild"),
        ({"label": {"missing": ["Mild"]}}, "'Mild' means a class and, in missing, none"),
        ({"groups": {"also": "lesion"}}, "also: not a list"),
        ({"groups": {"also": ["a", "A"]}}, "one stands in it twice"),
        ({"generator": {"conditions": ["age"]}}, "'age' is neither 'site' nor the label's column"),
        ({"generator": {"values": {"age": ["a", "b"]}}}, "'age' is not among the conditions"),
        ({"generator": {"values": 3}}, "values: not a table"),
        ({"generator": {"values": {"Eye": ["a"], "eye": ["b"]}}}, "column stands in it twice"),
        ({"lable": 3}, "unknown key 'lable'; did you mean 'label'?"),
        ({"label": 3}, "label = 3: accepted is a section [label]"),
        ({"name": "../x"}, "cannot name a study"),
        ({"name": 3}, "name = 3"),
    ],
)
def test_refusal_names_the_key_and_what_is_accepted(sections, words):
    assert words in refusal(changed(**sections))


def test_the_label_is_not_to_be_left_out():
    values = changed()
    del values["label"]
    assert "label is missing; accepted is a section [label]" in refusal(values)


def test_every_section_is_refused_at_once():
    told = refusal(changed(images={"size": 0}, label={"colunm": "x"}))
    assert "[images]: size" in told
    assert "did you mean 'column'" in told


def test_person_of_a_bids_study_is_its_participant():
    values = changed(images={"storage": "bids", "table": None, "file": None})
    assert "it is 'participant_id'" in refusal(values)


def test_refused_file_is_named_to_its_owner_only(tmp_path):
    path = tmp_path / "secret.toml"
    path.write_text(RETINA.replace("channels = 1", "channels = 4"))
    with pytest.raises(ConfigError, match=r"secret\.toml: \[images\]: channels = 4") as caught:
        load_study(path)
    assert "secret" not in caught.value.public
    assert "channels = 4" in caught.value.public


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"x = 1\n" * 50_000])
def test_file_that_is_no_toml_or_too_long_is_refused(tmp_path, content):
    path = tmp_path / "secret.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_study(str(path))
    assert "secret" not in caught.value.public


def test_missing_file_and_unknown_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="~ stands for no folder"):
        load_study("~nobody-of-that-name/x.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"one of brain-sex, skin-lesions, or the path of a file"):
        load_study("brain")


# Paths in a site's folder


@pytest.mark.parametrize(
    "path",
    ["/a", "\\a", "../a", "a/../../b", "C:a", "C:\\a", "\\\\host\\share\\a", "a\0b", "a\\.."],
)
def test_path_that_leads_out_of_the_folder_is_refused(path):
    with pytest.raises(ValueError, match="not a path relative"):
        check_relative(path)


def test_path_written_under_windows_has_forward_slashes():
    assert check_relative("images\\a b.png") == "images/a b.png"


@given(st.text(max_size=40))
def test_accepted_path_stays_below_its_folder(path):
    try:
        accepted = check_relative(path)
    except ValueError:
        return
    root = Path("/site/folder")
    assert (root / accepted).is_relative_to(root)
    assert ".." not in (root / accepted).parts


# The site's own names


def test_without_a_mapping_names_are_the_study_s(tmp_path):
    mapping = load_site_mapping(tmp_path, "north")
    assert mapping == SiteMapping()
    assert mapping.column(" Grade ") == "grade"
    assert mapping.value("grade", "mild") == "mild"


def test_mapping_translates_columns_and_codes_in_any_case(tmp_path):
    (tmp_path / "site.toml").write_text(
        '[columns]\nBefund = "Grade"\n[codes.grade]\n"Keine" = "none"\n"2" = "mild"\n'
    )
    mapping = load_site_mapping(tmp_path, "north")
    assert mapping.column("BEFUND ") == "grade"
    assert mapping.column("other") == "other"
    assert mapping.value("GRADE", "keine") == "none"
    assert mapping.value("grade", " 2 ") == "mild"
    assert mapping.value("grade", "severe") == "severe"
    assert mapping.value("sex", "2") == "2"


@pytest.mark.parametrize(
    "text",
    [
        "[columns",
        "[colums]\nSecret = 'grade'",
        "columns = 'Secret'",
        "codes = 'Secret'",
        "[columns]\nSecret = 1",
        "[columns]\nSecret = ''",
        "[columns]\nSecret = 'grade'\nSECRET = 'age'",
        "[columns]\nSecret = 'grade'\nBefund = 'Grade'",
        "[codes]\nSecret = 'x'",
        "[codes.Secret]\na = 'b'\n[codes.secret]\na = 'b'",
        "[codes.grade]\nSecret = ['none']",
    ],
)
def test_refused_mapping_tells_others_nothing_of_it(tmp_path, text):
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(DataContractError, match=r"site\.toml") as caught:
        load_site_mapping(tmp_path, "north")
    assert "secret" not in caught.value.public.lower()
    assert "Accepted are [columns]" in caught.value.public


def test_mapping_that_is_a_link_out_of_the_folder_is_not_read(tmp_path):
    (tmp_path / "other.toml").write_text("[columns]\na = 'b'\n")
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "site.toml").symlink_to(tmp_path / "other.toml")
    with pytest.raises(DataContractError, match="leaves the site's folder"):
        load_site_mapping(tmp_path / "north", "north")


def test_vocabulary_passes_through_as_it_is():
    vocabulary = read_vocabulary(["a", "b"])
    assert isinstance(vocabulary, Vocabulary)
    assert read_vocabulary(vocabulary) is vocabulary
