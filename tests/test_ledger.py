"""What a run promised and what was found: in its summary, its card and ``fedscan privacy``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tiny import run_config
from typer.testing import CliRunner

from clients.budget import Budget
from common.config.run_config import RunConfig
from common.errors import ConfigError
from common.imaging.bids import list_sites
from common.metrics_log import MetricsLog, Row
from common.privacy.guarantee import Guarantee, central_guarantee_of, guarantee_of
from common.privacy.statement import statement, told
from common.tasks.task import SiteContext
from simulations.arms import train_in_place
from simulations.attack import cell as attacked_cells
from simulations.cli import app
from simulations.ledger import keep, merged, read_ledger
from simulations.ledger_tables import show_promises
from simulations.measures import MEMBERSHIP
from simulations.model_card import metadata, read_facts
from simulations.model_card_text import render
from simulations.report.ledger import (
    FROM_SEED,
    NO_PRIVACY,
    NOT_KNOWN,
    PROMISES,
    UNITS,
    budgets,
    promises,
    result,
    weaknesses,
)
from simulations.report.privacy_blocks import of_run
from simulations.results import COLUMNS

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"run.rounds": 2, "training.local-steps": 2, "training.batch-size": 4, "data.size": 16}
PRIVATE = run_config(TINY, epsilon=8.0, central_epsilon=4.0)  # to people, and to sites
ATTACK = {
    "kind": "membership",
    "method": "loss",
    "site": "north",
    "persons": {"in": 8, "out": 8},
    "auc": {"mean": 0.75, "low": 0.5, "high": 0.9},
}


def trained(above: Path, config: RunConfig, cohort: Path) -> Path:
    """Train a federation in this process; return the folder of its model."""
    folders, folder = list_sites(cohort), above / "cells" / "federated-x-seed0" / "all"
    train_in_place(
        {site: [site] for site in folders},
        folders,
        config,
        place=SiteContext("all", tuple(sorted(folders)), torch.device("cpu")),
        folder=folder,
        records=(above / "sites", Path("x")),
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory):
    """Keep the sites' records and the cache of these tests to themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSCAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("FEDSCAN_RECORDS", str(tmp_path_factory.mktemp("records")))
        yield


@pytest.fixture(scope="module")
def private(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("private"), PRIVATE, tiny_cohort)


@pytest.fixture
def run(private: Path, tmp_path: Path) -> Path:
    """A copy of it, as the folder of a run."""
    folder = tmp_path / "run"
    shutil.copytree(private, folder)
    return folder


def test_a_summary_tells_of_each_site_what_its_guarantee_is(private: Path) -> None:
    found = json.loads((private / "summary.json").read_text())["privacy"]
    assert (found["unit"], found["epsilon"], found["max_norm"]) == ("person", 8.0, 1.0)
    assert not found["secret_noise"]  # a simulation's follows from its seed
    assert set(found["sites"]) == {"north", "island"}
    for one in found["sites"].values():
        expected = guarantee_of(PRIVATE, round(1 / (10 * one["delta"])))
        assert one == {
            "epsilon": expected.spent(2),
            "delta": expected.delta,
            "noise_multiplier": expected.noise_multiplier,
        }


def test_a_summary_tells_what_the_servers_noise_promises_each_site(private: Path) -> None:
    found = json.loads((private / "summary.json").read_text())["central_privacy"]
    expected = central_guarantee_of(PRIVATE, 2)
    assert found == {
        "unit": "site",
        "epsilon": 4.0,
        "delta": expected.delta,
        "noise_multiplier": expected.noise_multiplier,
        "max_norm": 1.0,
        "rounds": 2,
        "sites": 2,
        "secret_noise": False,
    }


def test_of_two_promises_the_one_whose_noise_is_known_is_named() -> None:
    person, site = ({"unit": unit, "secret_noise": True} for unit in UNITS)
    assert weaknesses([person, site]) == []
    assert weaknesses([person, {**site, "secret_noise": False}]) == [f"Unit site: {FROM_SEED}"]


@pytest.mark.parametrize("people", [4, 40])
def test_what_is_spent_grows_with_the_rounds_up_to_the_budget(people: int) -> None:
    spent = [told(PRIVATE, people, k, secret_noise=True)["epsilon"] for k in (1, 2)]
    assert 0 < spent[0] < spent[1] <= PRIVATE.privacy.epsilon


def test_noise_is_called_secret_only_where_every_site_says_so() -> None:
    secret, known = (told(PRIVATE, 8, 1, secret_noise=one) for one in (True, False))
    for fits, expected, words in (
        ({"a": secret}, True, []),
        ({"a": secret, "b": known}, False, [FROM_SEED]),
        ({}, None, [NOT_KNOWN]),  # with secure sums no site tells
    ):
        found = statement(PRIVATE, fits)["privacy"]
        assert found["secret_noise"] is expected and weaknesses([found]) == words
    assert list(budgets(found)) == [("each", "–", "–", "–")]


def test_of_a_site_that_was_away_in_the_last_round_an_earlier_one_tells() -> None:
    first, last = ({"a": told(PRIVATE, 8, k, secret_noise=True)} for k in (1, 2))
    found = statement(PRIVATE, {**first, "b": first["a"]}, last)["privacy"]["sites"]
    assert found["a"]["epsilon"] == last["a"]["epsilon"] > found["b"]["epsilon"]


def test_without_differential_privacy_nothing_is_promised() -> None:
    plain = run_config(TINY)
    assert statement(plain, {"a": {"loss": 1.0}}) == told(plain, 8, 1, secret_noise=True) == {}
    assert promises({}) == [] and not list(of_run({}))


def test_the_closing_lines_of_a_run_tell_the_budget_and_that_the_noise_is_known(
    private: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_promises(json.loads((private / "summary.json").read_text()))
    said = capsys.readouterr().out
    assert "unit: person" in said and "unit: site" in said and "noise multiplier" in said
    assert "each of 2" in said and said.count(FROM_SEED) == 1
    show_promises({})
    assert not capsys.readouterr().out


def test_a_card_tells_the_promise_of_its_run_and_the_results_of_attacks(run: Path) -> None:
    keep(run, [ATTACK])
    facts = read_facts(_as_run(run))
    body = render(facts, metadata(facts))
    assert body.count(FROM_SEED) == 1 and "| person | `north` |" in body
    assert "| site | `each of 2` | 4 | 0.05 |" in body and "(privacy.central-norm)" in body
    assert "AUROC 0.75 (0.50 to 0.90)" in body and "no proof of privacy" in body
    summary = json.loads((run / "summary.json").read_text())
    none = {key: {} for key in PROMISES}
    (run / "summary.json").write_text(json.dumps({**summary, **none, "attacks": []}))
    facts = read_facts(run)
    assert f"{NO_PRIVACY}." in render(facts, metadata(facts))


def _as_run(folder: Path) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sites"] = {site: {"n_train": 8} for site in manifest["folders"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_report_of_a_run_has_a_section_of_its_budgets_and_attacks(run: Path) -> None:
    keep(run, [ATTACK])
    (section,) = of_run(json.loads((run / "summary.json").read_text()))
    shown, attacks = (block for kind, block in section.blocks if kind == "table")
    assert (shown.title, attacks.title) == ("Budgets", "Attacks")
    units = [(row[0].text, row[1].text) for group in shown.groups for row in group]
    assert units == [("island", "person"), ("north", "person"), ("each of 2", "site")]


def test_the_ledger_tells_this_run_and_the_sum_of_a_sites_runs(run: Path) -> None:
    for name in (run.name, "another"):
        Budget("north").reserve(name, Guarantee(8.0, 1e-3, 0.5, 2, 2))
    Budget("island").reserve("another", Guarantee(8.0, 1e-3, 0.5, 2, 2))  # has not had this run
    found = json.loads(_said(run, "--format", "json"))
    assert set(found["privacy"]["sites"]) == {"north", "island"}
    assert found["totals"] == {"north": {"epsilon": 16.0, "delta": 2e-3, "runs": 2}}
    assert FROM_SEED in found["not_protected"]
    assert any("secure sums" in line for line in found["not_protected"])
    assert found["central_privacy"]["unit"] == "site"
    text = _said(run)
    assert "Not protected" in text and "16 (2)" in text and "fedscan attack" in text
    assert "unit: site" in text and "each of 2" in text


def test_what_protected_a_deployed_run_is_told(run: Path) -> None:
    for name, changes in (
        ("summary.json", {"min_participants": 10}),
        ("manifest.json", {"privacy.secure-sums": True}),
    ):
        values = json.loads((run / name).read_text())
        if name == "summary.json":
            for key in PROMISES:
                values[key]["secret_noise"] = True
            values["sites"]["north"] |= changes
        else:
            values["config"] |= changes
        (run / name).write_text(json.dumps(values))
    found = read_ledger(run)
    first, second, sums, least = found["protected_by"]
    assert "ε = 8" in first and "each site as a whole" in second and "ε = 4" in second
    assert sums.startswith("Secure sums") and "fewer than 10" in least
    assert FROM_SEED not in found["not_protected"]


def test_the_bound_of_the_gates_is_told_where_the_policy_is_known(run: Path) -> None:
    policy = run.parent / "policy.toml"
    policy.write_text("[gate]\nmax-update-norm = 2.5\n")
    launch = {"separate": True, "policy": str(policy), "folders": {}}
    (run / "launch.json").write_text(json.dumps(launch))
    assert any("2.5 (max-update-norm)" in line for line in read_ledger(run)["protected_by"])
    policy.unlink()
    assert any("max-update-norm" in line for line in read_ledger(run)["not_protected"])


def test_a_run_without_privacy_says_so_and_one_that_has_not_ended_what_is_spent(
    run: Path,
) -> None:
    (run / "summary.json").unlink()
    assert read_ledger(run)["privacy"]["epsilon"] == 8.0
    log = MetricsLog(run / "metrics.jsonl")
    for number in (1, 2):
        site = told(PRIVATE, 8, number, secret_noise=True)
        log.append(
            [Row(number, "north", "train", name, value, 8, 1.0) for name, value in site.items()]
        )
    found = read_ledger(run)["privacy"]
    assert found["sites"]["north"]["epsilon"] == site["epsilon"] and found["secret_noise"]
    manifest = json.loads((_as_run(run) / "manifest.json").read_text())
    for separate in (False, True):  # simulated sites in one engine, or processes of their own
        (run / "launch.json").write_text(json.dumps({"separate": separate}))
        central = read_ledger(run)["central_privacy"]
        assert (central["sites"], central["secret_noise"]) == (2, separate)
    manifest["config"] |= run_config(TINY).to_flower()
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert NO_PRIVACY in read_ledger(run)["not_protected"]


def test_results_of_an_attack_beside_a_run_are_found_by_the_hash_of_its_weights(
    run: Path,
) -> None:
    from simulations.trained import weights_hash

    for name, weights in (("own", weights_hash(run)), ("others", "of another model")):
        folder = run.parent / name
        folder.mkdir()
        about = {"weights": weights, "attacks": [{**ATTACK, "site": name}]}
        (folder / "attacks.json").write_text(json.dumps(about))
    assert [one["site"] for one in read_ledger(run)["attacks"]] == ["own"]
    assert "0.75 (0.50 to 0.90)" in _said(run)


def test_the_last_result_of_a_question_holds() -> None:
    other, again = {**ATTACK, "site": "south"}, {**ATTACK, "auc": {"mean": 0.6}}
    assert merged([ATTACK, other], [again]) == [again, other]
    assert result(again) == ("AUROC", "0.60")


def test_what_is_no_run_has_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        read_ledger(tmp_path)


def test_a_cell_of_a_comparison_tells_the_area_at_each_site(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {**ATTACK, "site": "all"}
    few = {**ATTACK, "site": "island", "auc": {"mean": None}}
    monkeypatch.setattr(attacked_cells, "released", lambda *_, **__: [every, ATTACK, few])
    row = {"trained_on": run.name, "tested_on": "island", "split": "test", "status": "done"}
    rows = pd.DataFrame([{**row, "metric": "auroc", "value": 0.9}], columns=COLUMNS)
    sites, cell = dict.fromkeys(("north", "island"), ""), SimpleNamespace(seed=0)
    work = SimpleNamespace(folder=str(run.parent), config=PRIVATE, sites=sites, cell=cell)
    found = attacked_cells.with_attacks(work, rows)
    more = found[found["metric"] == MEMBERSHIP]
    assert more[["tested_on", "value", "n"]].values.tolist() == [["north", 0.75, 16]]
    assert len(json.loads((run / "summary.json").read_text())["attacks"]) == 3


def _said(run: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["privacy", str(run), *words])
    assert done.exit_code == 0, done.output
    return done.stdout
