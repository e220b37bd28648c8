"""A site's policy file: both halves of it, and the text that an engineer starts from."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from clients.gateway.policy import (
    OPEN,
    GatePolicy,
    SumsPolicy,
    default_policy_text,
    open_policy_text,
    read_policies,
    read_sums,
    text_with_sites,
)
from clients.policy import SIMULATED, SitePolicy
from common.errors import ConfigError


@pytest.fixture
def read(tmp_path):
    def written(text: str) -> tuple[SitePolicy, GatePolicy]:
        path = tmp_path / "policy.toml"
        path.write_text(text)
        return read_policies(path)

    return written


def test_one_file_holds_the_bounds_of_a_run_and_the_gates(read):
    site, gate = read('min-participants = 20\n[gate]\nsandbox = "none"\nmetric-digits = 3\n')
    assert site == SitePolicy(min_participants=20)
    assert gate == GatePolicy(sandbox="none", metric_digits=3)


def test_code_of_a_run_reads_the_same_file_without_the_gates_table(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('min-participants = 20\n[gate]\nsandbox = "required"\nunheard-of = 1\n')
    assert SitePolicy.read(path) == SitePolicy(min_participants=20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("min-partcipants = 20", "did you mean 'min-participants'?"),
        ("[gate]\nmetric-digit = 3", "unknown key 'gate.metric-digit'; did you mean"),
        ('[gate]\nsandbox = "off"', "gate.sandbox = 'off': accepted is one of 'required', 'none'"),
        ("[gate]\nmantissa-bits = 24", "a whole number from 1 up to 23"),
        ("[gates]\n", "unknown key 'gates'"),
        ("gate = 3", "accepted is a table, [gate]"),
        ("[gate", "the site's policy cannot be read"),
    ],
)
def test_a_fault_in_either_half_is_refused_in_words_without_the_path(read, tmp_path, text, words):
    with pytest.raises(ConfigError) as refused:
        read(text)
    assert words in refused.value.public
    assert str(tmp_path) not in refused.value.public


def test_without_a_file_there_is_no_policy(tmp_path):
    with pytest.raises(ConfigError) as refused:
        read_policies(tmp_path / "policy.toml")
    assert refused.value.public == "the site's policy cannot be read"


def test_text_to_edit_changes_nothing_and_names_every_key_with_its_default(read):
    text = default_policy_text("north")
    assert read(text) == (SitePolicy(), GatePolicy())
    lines = [line[1:] for line in text.splitlines() if line[:2] not in ("# ", "")]
    text = "\n".join(lines).replace("gate]", "[gate]").replace("secure-sums]", "[secure-sums]")
    values = tomllib.loads(text)
    gate = values.pop("gate")
    assert SumsPolicy.from_mapping(values.pop("secure-sums")) == SumsPolicy()
    assert SitePolicy.from_mapping(values) == SitePolicy()
    assert gate == GatePolicy().to_mapping()
    assert values.keys() == SitePolicy().to_mapping().keys()


def test_text_to_edit_explains_each_key_in_the_line_before(read):
    lines = default_policy_text("north").splitlines()
    assert max(map(len, lines)) <= 100
    for number, line in enumerate(lines):
        if line.startswith("#") and line[1] != " ":
            assert lines[number - 1].startswith("# ")


def test_a_site_of_an_impossible_name_has_no_policy():
    with pytest.raises(ConfigError, match="accepted is up to 64 letters"):
        default_policy_text("north\nsandbox = 'none'")


def test_open_policy_is_a_simulations_and_keeps_the_sandbox(read):
    assert read(open_policy_text()) == (SIMULATED, OPEN)
    assert OPEN.sandbox == "required"
    assert (OPEN.metric_digits, OPEN.mantissa_bits, OPEN.max_update_norm) == (0, 23, 0)


def test_with_whom_a_site_sums_is_read_from_a_table_of_its_own(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('min-participants = 5\n[secure-sums]\nsites = ["north:00"]\nfewest = 4\n')
    assert read_sums(path) == SumsPolicy(sites=("north:00",), fewest=4)
    assert read_policies(path) == (SitePolicy(min_participants=5), GatePolicy())
    assert SitePolicy.read(path) == SitePolicy(min_participants=5)
    path.write_text("[secure-sums]\nfewest = 2\n")
    with pytest.raises(ConfigError, match=r"secure-sums\.fewest = 2"):
        read_sums(path)


def test_every_key_of_the_gate_is_documented():
    page = (Path(__file__).parents[1] / "docs" / "gate.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(any(f"`{key}`" in row for row in rows) for key in GatePolicy().to_mapping())


@pytest.mark.parametrize(
    "text",
    [
        default_policy_text("north"),
        open_policy_text(),
        "min-participants = 5\n",
        '[secure-sums]\nsites = ["north:00"]\nfewest = 4\n[gate]\nmetric-digits = 3\n',
    ],
)
def test_other_sites_in_secure_sums_leave_the_rest_of_a_policy_as_it_is(read, tmp_path, text):
    before = read(text), read_sums(tmp_path / "policy.toml").fewest
    assert read(text_with_sites(text, ["south:11"])) == before[0]
    assert read_sums(tmp_path / "policy.toml") == SumsPolicy(sites=("south:11",), fewest=before[1])
