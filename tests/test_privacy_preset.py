"""The preset ``privacy``: what is trained, and the table that its report has."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from benchmark_folders import Page, make_folder

from common.imaging.bids import list_sites
from common.studies.study import built_in_studies
from simulations.measures import MEMBERSHIP
from simulations.plan import Cell, load_plan
from simulations.report.document import write_report
from simulations.results import read_table
from simulations.schedule import attempt
from simulations.summary import summarize
from simulations.work import Work

TINY = {"run.rounds": 1, "training.local-steps": 2, "training.batch-size": 4, "data.size": 16}
EPSILON = (16.0, 8.0, 4.0, 2.0, 1.0)
MODELS = tuple((arm, one) for arm in ("federated", "local") for one in ("no-noise", "epsilon-8"))


@pytest.mark.parametrize("study", built_in_studies())
def test_sites_alone_and_the_federation_are_trained_under_the_same_budgets(study: str) -> None:
    plan = load_plan("privacy", {}, {"study": study})
    for arm in ("federated", "local"):
        cells = [one for one in plan.cells() if one.arm == arm and "epsilon" in one.strategy]
        asked = {plan.config(one, {}).privacy.epsilon for one in cells}
        assert asked == set(EPSILON) and len(cells) == len(EPSILON) * plan.repetitions
        for one in cells:  # from the model without noise they differ in epsilon alone
            private = plan.config(one, {}).to_flower()
            plain = plan.config(Cell(arm, "no-noise", one.seed), {}).to_flower()
            assert {k for k in plain if plain[k] != private[k]} == {"privacy.epsilon"}


def test_variants_that_are_not_asked_for_are_not_trained_alone_either() -> None:
    plan = load_plan("privacy", {"strategies": ["no-noise", "epsilon-8"]}, {})
    names = {one.name.rpartition("-seed")[0] for one in plan.cells()}
    assert names == {"local", *(f"{arm}-{one}" for arm, one in MODELS)}
    assert ["epsilon-8", "local/epsilon-8"] in plan.compared_contrasts
    federated = load_plan("privacy", {"arms": ["federated"]}, {}).compared_contrasts
    assert federated and not any("local" in name for pair in federated for name in pair)


@pytest.mark.parametrize("arm", ["federated", "local"])
def test_a_cell_is_trained_attacked_and_says_what_it_promised(
    arm: str, tiny_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("common.attacks.membership.LEAST_PERSONS", 2)  # each site tests on four
    plan = load_plan("privacy", {}, TINY)
    cell = Cell(arm, "epsilon-8", 1)
    sites = {site: str(path) for site, path in list_sites(tiny_cohort).items()}
    work = Work(
        cell=cell,
        run=plan.config(cell, {"run.min-sites": 2}).to_flower(),
        sites=sites,
        folder=str(tmp_path / "cells" / cell.name),
        records=str(tmp_path / "sites"),
        centralized_batch="large",
        local=list(sites),
        models={},
        cpus=1,
        gpus=0.0,
        timeout=60.0,
        in_place=plan.in_place,
        membership=plan.membership,
    )
    attempt(work)
    rows = read_table(Path(work.folder) / "results.csv")
    attacked = rows[rows["metric"] == MEMBERSHIP]
    assert set(rows["status"]) == {"done"} and attacked["value"].between(0, 1).all()
    of = dict(zip(attacked["tested_on"], attacked["trained_on"], strict=True))
    assert of == {site: site if arm == "local" else "all" for site in sites}
    for model in set(of.values()):
        summary = json.loads((Path(work.folder) / model / "summary.json").read_text())
        trained_on = summary["privacy"]["sites"]
        assert all(0 < one["epsilon"] <= 8 for one in trained_on.values())
        assert {one["method"] for one in summary["attacks"]} == {"loss"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of models without noise and with it, all of them attacked."""
    folder = make_folder(
        tmp_path_factory.mktemp("compared") / "privacy", models=MODELS, seeds=2, rounds=1, draws=20
    )
    table = read_table(folder / "results.csv")
    tests = table[(table["split"] == "test") & (table["metric"] == "auroc")]
    home = (tests["arm"] == "federated") | (tests["trained_on"] == tests["tested_on"])
    more = tests[home].assign(metric=MEMBERSHIP, value=0.5 + tests["seed"] / 10)
    table = pd.concat([table, more], ignore_index=True)
    table.to_csv(folder / "results.csv", index=False)
    summary = summarize(table, poor_site="island", contrasts=[["epsilon-8", "local/epsilon-8"]])
    site = {"epsilon": 7.5, "delta": 1e-3, "noise_multiplier": 2.25}
    promised = {
        "unit": "person",
        "epsilon": 8.0,
        "max_norm": 1.0,
        "sites": {"north": site},
        "secret_noise": False,
    }
    summary["privacy"] = {f"{arm}/epsilon-8": promised for arm in ("federated", "local")}
    central = {"unit": "site", "epsilon": 4.5, "noise_multiplier": 3.25, "sites": 3}
    summary["central_privacy"] = {"federated/no-noise": central}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_sites_own_models_are_told_apart_by_their_variant(folder: Path) -> None:
    scores = json.loads((folder / "summary.json").read_text())["scores"]
    assert {"local/no-noise", "local/epsilon-8"} <= scores["island"].keys() & scores["all"].keys()
    assert {"local/epsilon-8 at north", "local/no-noise at north"} <= scores["island"].keys()


def test_membership_is_a_measure_of_models_where_they_were_trained(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    scores = summary["scores"]
    for model in ("federated/epsilon-8", "local/epsilon-8"):
        assert scores["island"][model][MEMBERSHIP]["values"] == {"0": 0.5, "1": 0.6}
        assert scores["all"][model][MEMBERSHIP]["mean"] == pytest.approx(0.55)
    assert MEMBERSHIP not in scores["island"]["local/epsilon-8 at north"]
    (pair,) = [name for name in summary["differences"]["all"] if "local/" in name]
    assert summary["differences"]["all"][pair][MEMBERSHIP]["mean"] == pytest.approx(0.0)


def test_membership_is_not_resampled_by_the_test_images_of_one_cohort(folder: Path) -> None:
    table = read_table(folder / "results.csv")
    labels = [k % 2 for k in range(24)]
    scans = {"scan": range(24), "person": range(24), "label": labels, "seed": 0}
    model = {"arm": "federated", "strategy": "epsilon-8", "trained_on": "all"}
    said = {"probability.female": [1.0 - k for k in labels], "probability.male": labels}
    frame = pd.DataFrame({**scans, **model, **said})
    once = table[(table["seed"] == 0) & (table["strategy"] == "epsilon-8")]
    found = summarize(once, {"island": frame}, poor_site="island", draws=20)["scores"]["island"]
    one = found["federated/epsilon-8"]
    assert one[MEMBERSHIP]["mean"] == 0.5 and one[MEMBERSHIP]["low"] is None
    assert one["auroc"]["low"] is not None


def test_the_report_sets_accuracy_and_membership_against_epsilon(folder: Path) -> None:
    page = Page(write_report(folder).read_text())
    for words in (
        "Accuracy and membership against ε",
        "AUROC of membership",
        "Budgets",
        "2.25",
        "3.25",
    ):
        assert words in page.text
    assert "4.5 (site)" in page.text and "each of 3" in page.text
    assert "whoever knows the seed can remove it" in page.text


def test_the_console_tells_membership_too(folder: Path, capsys) -> None:
    from simulations.compare import show

    show(json.loads((folder / "summary.json").read_text()))
    assert "AUROC of membership: training against test people" in capsys.readouterr().out
