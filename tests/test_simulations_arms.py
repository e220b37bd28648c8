"""The arms are fair: equal budgets, equal starts, and test scans that training cannot reach."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from common.config.run_config import RunConfig, known_keys
from common.data.dataset import pool
from common.errors import ConfigError
from common.paths import cache_dir
from common.tasks.classification import score
from common.tasks.task import SiteContext, load_task
from common.training.classifier import predict
from simulations import arms, federate
from simulations.arms import POOL, Work, pooled_config, run_cell, train_in_place
from simulations.plan import Cell
from simulations.results import COLUMNS

classification = load_task("classification")
TINY = {"run.rounds": 2, "training.local-steps": 3, "training.batch-size": 4, "data.size": 16}


@pytest.fixture
def work(tiny_cohort: Path, session_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose the work of one cell on the tiny cohort."""
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))

    def compose(
        arm: str, sites: tuple[str, ...] = ("island", "north"), batch: str = "large", **run
    ):
        keys = {key.rpartition(".")[2].replace("-", "_"): key for key in known_keys()}
        changed = {keys[name]: value for name, value in run.items()}
        return Work(
            cell=Cell(arm, "", 0),
            run=RunConfig.from_flower(TINY | changed).to_flower(),
            sites={site: str(tiny_cohort / site) for site in sites},
            folder=str(tmp_path / arm / batch),
            records=str(tmp_path / "records"),
            centralized_batch=batch,
            local=list(sites),
            models={},
            cpus=1,
            gpus=0.0,
            timeout=600.0,
        )

    return compose


def test_every_model_is_tested_at_every_site_with_every_metric(work) -> None:
    rows = run_cell(work("local"))
    assert list(rows.columns) == COLUMNS
    test = rows[rows.split == "test"]
    pairs = test.groupby(["trained_on", "tested_on"]).metric.nunique()
    assert len(pairs) == 4 and (pairs == 7).all()
    assert set(run_cell(work("centralized")).query("split == 'test'").trained_on) == {POOL}


def test_only_the_sites_that_are_to_train_alone_do_and_are_tested_everywhere(work) -> None:
    both = run_cell(work("local"))
    one = run_cell(replace(work("local"), local=["island"]))
    expected = both[both.trained_on == "island"].drop(columns="seconds")
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), expected, check_index_type=False)
    assert set(one.query("split == 'test'").tested_on) == {"island", "north"}


def test_arms_make_equal_steps_and_see_equal_images(work) -> None:
    local = run_cell(work("local")).query("split == 'test'")
    large = run_cell(work("centralized")).query("split == 'test'")
    small = run_cell(work("centralized", batch="small")).query("split == 'test'")
    assert set(local.steps) == set(large.steps) == {6}
    assert set(small.steps) == {12}  # sites × as many
    both_sites = local.groupby("trained_on").images_seen.first().sum()
    assert set(large.images_seen) == set(small.images_seen) == {both_sites}


def test_a_federation_in_place_trains_every_site_and_sends_nothing(work) -> None:
    local = run_cell(work("local")).query("split == 'test'")
    rows = run_cell(replace(work("federated"), in_place=True)).query("split == 'test'")
    assert set(rows.trained_on) == {POOL} and set(rows.tested_on) >= {"island", "north"}
    assert set(rows.steps) == {6} and set(rows.bytes_up) == {0}
    assert set(rows.images_seen) == {local.groupby("trained_on").images_seen.first().sum()}


def test_sites_that_train_by_epochs_make_the_steps_that_their_results_tell(
    work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs in batches of 2; a federation's are the most steps, and all sites' images."""
    made: dict[str, int] = {}
    fit = classification.fit

    def spy(*arguments, place, **named):
        found = fit(*arguments, place=place, **named)
        made[place.site] = int(found.private["head.bias/step"])
        return found

    monkeypatch.setattr(classification, "fit", spy)
    given = work("local", local_steps=0, local_epochs=2, batch_size=2)
    local = run_cell(given).query("split == 'test'").groupby("trained_on")
    files = {
        site: json.loads((Path(given.folder) / site / "summary.json").read_text())["sites"][site]
        for site in given.sites
    }
    rounds = 2
    assert made == {n: rounds * 2 * math.ceil(one["n_train"] / 2) for n, one in files.items()}
    assert made["north"] > made["island"]
    assert local.steps.first().to_dict() == made
    assert local.images_seen.first().to_dict() == {site: 2 * made[site] for site in made}
    rows = train_in_place(
        {site: [site] for site in given.sites},
        {site: Path(path) for site, path in given.sites.items()},
        given.config,
        place=SiteContext(POOL, tuple(given.sites), torch.device("cpu")),
        folder=tmp_path / "together",
        records=(tmp_path / "records", Path("together")),
    )
    assert {row["steps"] for row in rows if row["split"] == "test"} == {made["north"]}
    assert {r["images_seen"] for r in rows if r["split"] == "test"} == {2 * sum(made.values())}


def test_a_pools_configuration_is_validated() -> None:
    config = RunConfig.from_flower(
        {"task": "generation", "training.batch-size": 2, "training.local-steps": 5}
    )
    assert pooled_config(config, 1, "large") == config
    assert pooled_config(config, 2, "large").training.batch_size == 4
    assert pooled_config(config, 3, "small").training.local_steps == 15
    with pytest.raises(ConfigError):
        pooled_config(config, 3, "large")


def test_a_pool_of_one_site_is_that_site_alone(work) -> None:
    alone = run_cell(work("local", ("north",)))
    pooled = run_cell(work("centralized", ("north",)))
    # The same but for the name under which the batches are drawn.
    assert list(alone.steps) == list(pooled.steps)
    assert list(alone.images_seen) == list(pooled.images_seen)
    assert list(alone.metric) == list(pooled.metric)


@pytest.mark.parametrize("arm", ["local", "centralized"])
def test_each_model_is_plain_training_with_the_lowest_validation_loss(
    arm: str, work, tmp_path: Path
) -> None:
    """Whatever validates in between: what fit gives, round after round, is what is tested."""
    given = work(arm, rounds=5, evaluate_every=2, adapt="none")
    rows = run_cell(given)
    config, cpu = given.config, torch.device("cpu")
    pools = {POOL: ["island", "north"]} if arm == "centralized" else {s: [s] for s in given.sites}

    def load(site: str, split: str):
        return classification.open_split(site, Path(given.sites[site]), split, config, cache_dir())

    for trained_on, members in pools.items():
        run = config.replace({"training.batch-size": 4 * len(members)})
        place = SiteContext(trained_on, tuple(given.sites), cpu)
        data = pool([load(site, "train") for site in members])
        model, private, losses, states = classification.build_model(run), {}, {}, {}
        for number in range(1, 6):
            private = classification.fit(
                model, data, run, place=place, round_number=number, private=private
            ).private
            if number in (2, 4, 5):
                states[number] = classification.shared_state(model, run)
                scans = pool([load(site, "val") for site in members])
                study = config.read_study()
                found = predict(model, scans, study, cpu)
                losses[number] = score(study, scans.labels, found)["loss"]
        best = min(losses, key=losses.get)
        folder = Path(given.folder) / trained_on
        saved = load_file(folder / "model.safetensors")
        assert saved.keys() == states[best].keys()
        assert all(torch.equal(tensor, states[best][name]) for name, tensor in saved.items())
        assert json.loads((folder / "summary.json").read_text())["best_round"] == best
        curve = rows[(rows.trained_on == trained_on) & (rows.split == "val")]
        assert sorted(set(curve.rounds)) == [2, 4, 5]
        assert set(curve.metric) == {"loss", "balanced_accuracy"}
        for number, loss in losses.items():
            told = curve[(curve.rounds == number) & (curve.metric == "loss")]
            assert (told.value * told.n).sum() / told.n.sum() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("arm", ["local", "centralized"])
def test_no_test_scan_is_opened_before_training_and_selection_are_over(
    arm: str, work, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    load, fit = classification.open_split, classification.fit

    def spy_load(site, data_dir, split, config, cache):
        events.append(f"load {split} {site}")
        return load(site, data_dir, split, config, cache)

    def spy_fit(*arguments, **named):
        events.append("fit")
        return fit(*arguments, **named)

    monkeypatch.setattr(classification, "open_split", spy_load)
    monkeypatch.setattr(classification, "fit", spy_fit)
    sites = ("north",) if arm == "local" else ("island", "north")
    run_cell(work(arm, sites))
    last_fit = max(i for i, event in enumerate(events) if event == "fit")
    tests = [event for event in events if event.startswith("load test")]
    assert tests == [f"load test {site}" for site in sites]  # each once
    assert events.index(tests[0]) > last_fit


@pytest.mark.parametrize("arm", ["local", "centralized"])
@pytest.mark.parametrize("adapt", ["statistics", "threshold"])
def test_every_arms_models_are_adapted_to_each_place_by_its_own_training_scans(
    arm: str, adapt: str, work, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, seen = classification.evaluate, []

    def spy(released, load, split, config, *, place, records=None):
        given = {split: load(split).persons for split in ("train", "test")}
        seen.append((split, place.site, given["train"]))
        return evaluate(released, load, split, config, place=place, records=records)

    monkeypatch.setattr(classification, "evaluate", spy)
    given = replace(work(arm, adapt=adapt), local=["island"])
    run_cell(given)
    own = {
        site: classification.open_split(site, Path(path), "train", given.config, cache_dir())
        for site, path in given.sites.items()
    }
    assert {site for split, site, _ in seen if split == "test"} == set(own)
    assert all(persons == own[site].persons for _, site, persons in seen)
    trained_on = POOL if arm == "centralized" else "island"
    told = json.loads((Path(given.folder) / trained_on / "summary.json").read_text())["sites"]
    trained = {site for site, one in told.items() if "n_train" in one}
    assert trained == (set(own) if arm == "centralized" else {"island"})


@pytest.mark.parametrize("arm", ["local", "centralized"])
def test_training_does_not_depend_on_the_test_scans(arm: str, work, tmp_path: Path) -> None:
    given = work(arm)
    before = run_cell(given).query("split == 'val'").drop(columns="seconds")
    # The same cohort with every test scan replaced by one that cannot be read, save one a site.
    cohort = tmp_path / "broken"
    for site, path in given.sites.items():
        shutil.copytree(path, cohort / site)
        table = pd.read_csv(cohort / site / "participants.tsv", sep="\t")
        for name in table.query("split == 'test'").participant_id[1:]:
            (cohort / site / name / "anat" / f"{name}_T1w.nii.gz").write_bytes(b"")
    broken = replace(
        given, sites={s: str(cohort / s) for s in given.sites}, records=str(tmp_path / "other")
    )
    after = run_cell(broken).query("split == 'val'").drop(columns="seconds")
    pd.testing.assert_frame_equal(before, after)


def test_a_models_summary_counts_the_files_that_could_be_read(work, tmp_path: Path) -> None:
    given = work("centralized")
    shutil.copytree(Path(given.sites["north"]).parent, tmp_path / "broken")
    table = pd.read_csv(tmp_path / "broken" / "north" / "participants.tsv", sep="\t")
    for split in ("train", "test"):
        name = table.query(f"split == '{split}'").participant_id.iloc[0]
        scan = tmp_path / "broken" / "north" / name / "anat" / f"{name}_T1w.nii.gz"
        scan.write_bytes(b"")
    run_cell(replace(given, sites={s: str(tmp_path / "broken" / s) for s in given.sites}))
    told = json.loads((Path(given.folder) / POOL / "summary.json").read_text())["sites"]["north"]
    listed = table.split.value_counts()
    assert (told["n_train"], told["n_val"]) == (listed["train"] - 1, listed["val"])
    assert told["n_test"] == listed["test"] - 1


def test_predictions_stay_in_each_sites_own_records(work, tmp_path: Path) -> None:
    run_cell(work("local"))
    for site in ("island", "north"):
        folder = tmp_path / "records" / site / "local-seed0"
        assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {
            "island/predictions.csv",
            "north/predictions.csv",
        }
        frame = pd.read_csv(folder / "north" / "predictions.csv")
        assert list(frame.columns) == [
            "scan",
            "person",
            "label",
            "probability.female",
            "probability.male",
        ]
        assert len(frame) == 4


@pytest.mark.parametrize(("usable", "expected"), [(1, 1), (2, 2), (16, 2)])
def test_a_federation_has_one_site_more_side_by_side_than_its_cell_has_cpus(
    work, monkeypatch: pytest.MonkeyPatch, usable: int, expected: int
) -> None:
    asked = []

    def refuse(config, resources, *, phantoms, quiet):
        asked.append(resources.cpus)
        raise RuntimeError

    monkeypatch.setattr(arms, "usable_cpus", lambda: usable)
    monkeypatch.setattr(federate, "federate", refuse)
    with pytest.raises(RuntimeError):
        run_cell(work("federated"))
    assert asked == [expected]
