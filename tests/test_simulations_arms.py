"""The arms are fair: equal budgets, equal starts, and test scans that training cannot reach."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from common.config import RunConfig
from common.tasks import classification
from simulations.arms import COLUMNS, POOL, Work, run_cell
from simulations.plan import Cell

TINY = {"num-server-rounds": 2, "local-steps": 3, "batch-size": 4, "image-size": 16}


@pytest.fixture
def work(tiny_cohort: Path, session_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compose the work of one cell on the tiny cohort."""
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))

    def compose(arm: str, sites: tuple[str, ...] = ("island", "north"), batch: str = "large"):
        return Work(
            cell=Cell(arm, "", 0),
            run=RunConfig.from_flower(TINY).to_flower(),
            sites={site: str(tiny_cohort / site) for site in sites},
            folder=str(tmp_path / arm / batch),
            records=str(tmp_path / "records"),
            centralized_batch=batch,
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


def test_arms_make_equal_steps_and_see_equal_images(work) -> None:
    local = run_cell(work("local")).query("split == 'test'")
    large = run_cell(work("centralized")).query("split == 'test'")
    small = run_cell(work("centralized", batch="small")).query("split == 'test'")
    assert set(local.steps) == set(large.steps) == {6}
    assert set(small.steps) == {12}  # sites × as many
    both_sites = local.groupby("trained_on").images_seen.first().sum()
    assert set(large.images_seen) == set(small.images_seen) == {both_sites}


def test_a_pool_of_one_site_is_that_site_alone(work) -> None:
    alone = run_cell(work("local", ("north",)))
    pooled = run_cell(work("centralized", ("north",)))
    # The same but for the name under which the batches are drawn.
    assert list(alone.steps) == list(pooled.steps)
    assert list(alone.images_seen) == list(pooled.images_seen)
    assert list(alone.metric) == list(pooled.metric)


@pytest.mark.parametrize("arm", ["local", "centralized"])
def test_no_test_scan_is_opened_before_training_and_selection_are_over(
    arm: str, work, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    load, fit = classification.load_split, classification.fit

    def spy_load(site, data_dir, split, config, cache):
        events.append(f"load {split} {site}")
        return load(site, data_dir, split, config, cache)

    def spy_fit(*arguments, **named):
        events.append("fit")
        return fit(*arguments, **named)

    monkeypatch.setattr(classification, "load_split", spy_load)
    monkeypatch.setattr(classification, "fit", spy_fit)
    sites = ("north",) if arm == "local" else ("island", "north")
    run_cell(work(arm, sites))
    last_fit = max(i for i, event in enumerate(events) if event == "fit")
    tests = [event for event in events if event.startswith("load test")]
    assert tests == [f"load test {site}" for site in sites]  # each once
    assert events.index(tests[0]) > last_fit


@pytest.mark.parametrize("arm", ["local", "centralized"])
def test_training_does_not_depend_on_the_test_scans(arm: str, work, tmp_path: Path) -> None:
    import shutil
    from dataclasses import replace

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


def test_predictions_stay_in_each_sites_own_records(work, tmp_path: Path) -> None:
    run_cell(work("local"))
    for site in ("island", "north"):
        folder = tmp_path / "records" / site / "local-seed0"
        assert {path.name for path in folder.iterdir()} == {"island.csv", "north.csv"}
        frame = pd.read_csv(folder / "north.csv")
        assert list(frame.columns) == ["scan", "label", "probability"]
        assert len(frame) == 4
