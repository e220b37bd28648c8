"""``fedscan strategies``: every strategy is listed, with all that decides a choice."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from common.errors import ConfigError
from common.strategies.strategy import load_strategy, strategy_names
from common.tasks.task import read_run_config
from simulations.cli import app


def told(*words: str) -> str:
    done = CliRunner().invoke(app, ["strategies", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_every_strategy_is_listed_with_its_line():
    listed = [line.split("  ", 1) for line in told().splitlines() if "  " in line]
    assert {name: line.strip() for name, line in listed} == {
        name: load_strategy(name).summary for name in strategy_names()
    }


@pytest.mark.parametrize("name", strategy_names())
def test_every_strategy_has_one_plain_line_and_a_paper(name):
    (one,) = [one for one in json.loads(told("--format", "json")) if one["name"] == name]
    assert len(one["summary"]) < 80
    assert one["summary"].endswith(".")
    assert re.search(r"arXiv\s\d{4}\.\d{5}", one["about"])


def test_it_is_said_for_what_a_strategy_is():
    found = {one["name"]: one for one in json.loads(told("--format", "json"))}
    assert found["fedbn"]["personal"]
    assert not found["fedavg"]["personal"]
    assert found["fedavg"]["generation"]
    assert not found["fedprox"]["generation"]
    assert found["fedadam"]["secure-sums"]
    assert not found["krum"]["secure-sums"]
    assert found["bulyan"]["sites-needed"] == 7


def test_an_option_is_told_with_its_default_its_range_and_its_meaning():
    line = "strategy.beta=0.2: a number from 0 below 0.5 (β: share of the sites"
    assert line in told("fedtrimmedavg")


def test_one_strategy_is_told_with_its_equation_and_paper():
    listed = told("fedadam")
    assert "v ← β₂ v + (1 - β₂) Δ²" in listed
    assert "arXiv 2003.00295" in listed
    assert "fedyogi: " not in listed
    assert json.loads(told("fedadam", "--format", "json"))["name"] == "fedadam"


@pytest.mark.parametrize("name", strategy_names())
def test_options_that_are_listed_are_accepted_by_the_run_config(name):
    options = json.loads(told(name, "--format", "json"))["options"]
    values = {option["key"]: option["default"] for option in options}
    assert read_run_config({"strategy.name": name, **values}).strategy.options == ""


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'fedadm': accepted is .*; did you mean 'fedadam'\?"):
        told("fedadm")
