"""What would leave a site is told before a run starts, by the rules that later apply."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clients.gateway.explain import explain
from clients.gateway.form import form_of_training
from clients.gateway.ledger import Entry, Ledger
from clients.gateway.policy import OPEN, GatePolicy
from clients.policy import SIMULATED, SitePolicy
from common.errors import ConfigError
from common.tasks.task import read_run_config
from simulations.cli import app
from simulations.gate_commands import lines

RUN = {"run.rounds": 10, "run.evaluate-every": 4}


def people(folder: Path, **splits: int) -> Path:
    """Write a hospital's table and files without content: nothing opens them."""
    rows, number = ["participant_id\tsex\tsplit"], 0
    for split, count in splits.items():
        for k in range(count):
            number += 1
            rows.append(f"sub-{number:03d}\t{'FM'[k % 2]}\t{split}")
            scan = folder / f"sub-{number:03d}" / "anat" / f"sub-{number:03d}_T1w.nii.gz"
            scan.parent.mkdir(parents=True)
            scan.touch()
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def north(tmp_path_factory) -> Path:
    return people(tmp_path_factory.mktemp("data") / "north", train=24, val=8, test=60)


@pytest.fixture
def told(north):
    def of(policy=None, gate=None, **values: object):
        config = read_run_config(RUN | {k.replace("__", "."): v for k, v in values.items()})
        rules = policy or SitePolicy(), gate or GatePolicy()
        found = explain(config, *rules, site="north", data_dir=north)
        return found, {one.what.split()[0]: one for one in found.messages}

    return of


def test_messages_are_counted_and_measured_before_the_run(told):
    found, of = told()
    assert {what: one.times for what, one in of.items()} == {
        "who": 1,
        "an": 10,
        "validation": 3,
        "test": 1,
    }
    arrays = form_of_training(read_run_config(RUN), ("north",)).arrays
    assert of["an"].arrays == {n: (list(one.shape), "float32") for n, one in arrays.items()}
    assert found.bytes == 10 * of["an"].bytes > 10 * 60_000
    assert found.refused == []


def test_numbers_over_too_few_people_are_withheld_and_the_split_is_named(told):
    _, of = told()
    assert of["validation"].metrics == []
    assert "loss" in of["validation"].withheld
    assert of["validation"].why == "it has 8 people, and the policy wants 10"
    assert of["test"].withheld == []
    assert "auroc" in of["test"].metrics


def test_measures_of_a_small_class_are_withheld_and_the_loss_is_not(told):
    _, of = told(SitePolicy(min_participants=31))
    assert of["test"].metrics == ["calibration_error", "loss"]
    assert of["test"].why == "its smallest class has 30 people, and the policy wants 31"
    assert of["an"].metrics == ["images-seen"]


def test_moments_of_features_leave_only_where_the_policy_shares_them(told):
    run = {"task": "generation"}
    _, of = told(**run)
    assert of["test"].arrays == {}
    _, of = told(SIMULATED, OPEN, **run)
    assert of["test"].arrays["real.covariance"] == ([64, 64], "float64")


@pytest.mark.parametrize(
    ("policy", "gate", "values", "words"),
    [
        ({}, {}, {"training__batch_size": 2}, "training.batch-size = 2, accepted is 4 or more"),
        ({"max_rounds": 9}, {}, {}, "run.rounds = 10, accepted is 9 or fewer (max-rounds)"),
        ({"min_batch_size": 25}, {}, {"training__batch_size": 25}, "24 people to train on"),
        ({}, {"max_message_bytes": 1000}, {}, "accepted is 1000 or fewer (gate.max-message-bytes)"),
        ({}, {"max_run_bytes": 100_000}, {}, "accepted is 100000 or fewer (gate.max-run-bytes)"),
    ],
)
def test_what_the_policy_refuses_is_told_with_the_key(told, policy, gate, values, words):
    values = {key.replace("_size", "-size"): value for key, value in values.items()}
    found, _ = told(SitePolicy(**policy), GatePolicy(**gate), **values)
    assert any(words in one for one in found.refused)
    assert any(line.startswith("REFUSED") for line in lines(found))


def test_words_for_people_fit_a_screen_and_name_nobody(told, north):
    found, _ = told(task="generation")
    text = "\n".join(lines(found))
    assert len(text.splitlines()) <= 24
    assert "sub-" not in text
    assert str(north) not in text


# The commands


@pytest.fixture
def gate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def called(*words: object, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["gate", *map(str, words)], catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.stdout

    return called


def test_a_written_policy_can_be_used_at_once_and_is_not_overwritten(gate, north):
    gate("policy", "--site", "north", "--out", "policy.toml")
    said = gate("explain", "--policy", "policy.toml", "--site", "north", "--data-dir", north)
    assert "The policy accepts this run" in said
    with pytest.raises(ConfigError, match="there already"):
        gate("policy", "--site", "north", "--out", "policy.toml")


def test_explanation_is_told_to_machines_too(gate, north):
    gate("policy", "--site", "north", "--out", "policy.toml")
    words = ["--policy", "policy.toml", "--site", "north", "--data-dir", north]
    told = json.loads(gate("explain", *words, "--set", "run.rounds=3", "--format", "json"))
    assert (told["site"], told["rounds"], told["people"]["val"]) == ("north", 3, 8)


def test_apps_are_approved_listed_and_revoked(gate):
    gate("policy", "--site", "north", "--out", "policy.toml")
    site = ["--policy", "policy.toml"]
    assert "every run is refused" in gate("list", *site)
    assert "Identical to the fedscan installed here" in gate("approve", "--installed", *site)
    (one,) = json.loads(gate("list", *site, "--format", "json"))
    assert one["identical"] is True
    gate("revoke", one["hash"][:12], *site)
    assert json.loads(gate("list", *site, "--format", "json")) == []


def test_a_bundle_of_other_code_is_shown_and_not_approved_without_being_asked_to(gate, tmp_path):
    from test_gateway_approvals import installation

    from clients.gateway.bundle import build_installed

    gate("policy", "--site", "north", "--out", "policy.toml")
    fab = tmp_path / "app.fab"
    fab.write_bytes(build_installed(installation(tmp_path / "theirs")))
    words = ["approve", fab, "--policy", "policy.toml"]
    with pytest.raises(ConfigError, match="--accept-changes"):
        gate(*words)
    assert gate("list", "--policy", "policy.toml", "--format", "json") == "[]\n"
    said = gate(*words, "--accept-changes")
    assert "changed: clients/app.py" in said
    assert "added: common/a.py" in said
    (one,) = json.loads(gate("list", "--policy", "policy.toml", "--format", "json"))
    assert one["identical"] is False


@pytest.mark.parametrize("words", [[], ["app.fab", "--installed"]])
def test_one_app_is_approved_at_a_time(gate, words):
    with pytest.raises(ConfigError, match="one of them"):
        gate("approve", *words, "--policy", "policy.toml")


def test_a_list_without_a_policy_beside_is_not_made(gate):
    with pytest.raises(ConfigError, match="see fedscan gate policy"):
        gate("approve", "a" * 64, "--policy", "policy.toml")


def test_verification_ends_with_1_only_if_somebody_changed_the_ledger(gate, tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, "north") as ledger:
        ledger.append(Entry(7, 1, "train", "sent", bytes=5))
        ledger.append(Entry(7, 2, "train", "sent", bytes=5))
        head = ledger.head
    told = gate("verify", path, "--head", head[:12].upper())
    assert f"3 lines are chained; the last one has hash {head}" in told
    assert "only --head tells" in gate("verify", path)
    with pytest.raises(ConfigError, match="8 to 64"):
        gate("verify", path, "--head", "5f2b")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert "line 3 is not whole" in gate("verify", path)
    path.write_bytes(whole.replace(b'"round": 1', b'"round": 9'))
    assert "line 2 was changed" in gate("verify", path, code=1)
    found = json.loads(gate("verify", path, "--format", "json", code=1))
    (one,) = found["findings"]
    assert (one["line"], one["problem"]) == (2, "changed")
