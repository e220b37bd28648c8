"""A run's configuration from a file, and the list of keys that the documentation shows."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.config.run_config import GROUPS, RunConfig, flatten, known_keys
from common.errors import ConfigError
from simulations.cli import app
from simulations.config_file import ConfigFile, asked_run, read_config_file
from simulations.config_keys import list_keys, markdown, template
from simulations.run_commands import _config

ROOT = Path(__file__).parents[1]


def test_every_key_is_listed_once_with_its_default_and_in_words() -> None:
    defaults = flatten(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"])
    found = {one.name: one for one in list_keys()}
    assert list(found) == known_keys()
    for name, one in found.items():
        assert one.default == defaults[f"config.{name}"]
        assert one.meaning and one.type


def test_the_page_of_keys_is_what_the_command_prints() -> None:
    """After a change: fedscan config --format markdown > docs/keys.md."""
    assert (ROOT / "docs" / "keys.md").read_text() == markdown(list_keys())


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_listed_alone(group: str) -> None:
    assert {one.name.partition(".")[0] for one in list_keys(group)} == {group}


def test_a_part_of_a_key_finds_it_and_nothing_is_refused() -> None:
    assert "training.learning-rate" in {one.name for one in list_keys("learning")}
    with pytest.raises(ConfigError, match="did you mean 'training'"):
        list_keys("trainig")


def test_the_list_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.console.out._width", 80)
    shown = CliRunner().invoke(app, ["config"]).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "server-learning-rate" in shown


def test_the_template_changes_nothing_and_uncommented_it_is_the_default(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    assert CliRunner().invoke(app, ["config", "--out", str(file)]).exit_code == 0
    assert read_config_file(file) == ConfigFile({})
    lines = template(list_keys()).splitlines()
    whole = [one.removeprefix("# ") if " = " in one and one[2:3].islower() else "" for one in lines]
    kept = [bare or one for bare, one in zip(whole, lines, strict=True) if "cohort =" not in one]
    values = flatten(tomllib.loads("\n".join(kept)))
    assert RunConfig.from_flower(values) == RunConfig.from_flower({})


def test_a_file_gives_keys_study_and_cohort_relative_to_itself(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('study = "skin-lesions"\ncohort = "here"\nout = "there"\n[run]\nrounds = 7\n')
    told = read_config_file(file)
    assert told.values == {"study": "skin-lesions", "run.rounds": 7}
    assert (told.cohort, told.out) == (tmp_path / "here", tmp_path / "there")


def test_a_study_may_be_a_file_beside_it(tmp_path: Path) -> None:
    text = (ROOT / "common" / "studies" / "skin-lesions.toml").read_text()
    (tmp_path / "own.toml").write_text(text.replace('"skin-lesions"', '"own"'))
    (tmp_path / "run.toml").write_text('study = "own.toml"\n')
    config = RunConfig.from_flower(read_config_file(tmp_path / "run.toml").values)
    assert config.read_study().name == "own"


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('study = "skin-lesions"\n[run]\nrounds = 7\nseed = 3\n')
    config, _ = _config(file, "brain-sex", None, None, tmp_path / "out", None, ["run.seed=5"])
    assert (config.study, config.run.rounds, config.run.seed) == ("brain-sex", 7, 5)
    assert config.run.output_dir == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[run\n", "no TOML"),
        ('cohort = "a"\n[data]\ncohort-dir = "b"\n', "mean the same"),
        ("cohort = 3\n", "accepted is a path"),
        ('study = "nothing"\n', "nothing"),
        ("[run]\nround = 3\n", "did you mean 'run.rounds'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(tmp_path: Path, text, words) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        _config(file, None, None, None, None, None, None)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_config_file(tmp_path / "run.toml")


def test_keys_are_told_as_json() -> None:
    told = json.loads(CliRunner().invoke(app, ["config", "run.seed", "--format", "json"]).stdout)
    assert [one["name"] for one in told] == ["run.seed"]


@pytest.mark.parametrize(
    ("key", "instead"), [("data.cohort-dir", "cohort"), ("run.output-dir", "out")]
)
def test_a_path_that_has_an_option_is_not_taken_as_a_key(key: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=f"give {instead} instead"):
        asked_run(None, {key: "/there"}, cohort=None, sites=None, out=None, test_scans=None)
