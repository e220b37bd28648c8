"""Transfer to one hospital: which scans it learns from, what is measured, what is told."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import dataset
from typer.testing import CliRunner

from common.data.phantoms import cohorts as phantom_cohorts
from common.errors import ConfigError
from common.studies import study as built_in_study
from common.studies.study import read_study
from simulations.cli import app
from simulations.plan import Cell
from simulations.schedule import attempt
from simulations.transfer import __main__ as process
from simulations.transfer import bench, cohorts, command
from simulations.transfer.bench import Transfer
from simulations.transfer.cohorts import brains_for, protocol_of
from simulations.transfer.curve import catches_up, markdown, measured, meeting, summarize, told
from simulations.transfer.plan import AS_IT_IS, SOURCE, TARGET, Protocol, load_plan, parse_sizes
from simulations.transfer.subsets import folds, learning_order, whole

TINY = {"data.size": 16, "run.rounds": 2, "training.local-steps": 2, "training.batch-size": 4}


# Which scans


@st.composite
def images(draw) -> tuple[np.ndarray, list[str]]:
    """Labels and persons of images; people may have several, of several classes."""
    count = draw(st.integers(2, 40))
    classes = draw(st.integers(1, 5))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    persons = draw(st.lists(st.integers(0, 15), min_size=count, max_size=count))
    return np.asarray(labels), [f"p{person}" for person in persons]


def order_of(labels: np.ndarray, persons: list[str], seed: int = 0) -> list[int]:
    return learning_order(labels, persons, np.random.default_rng(seed)).tolist()


@given(given_images=images(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_subsets_show_all_classes_as_soon_as_they_can_and_are_by_person(given_images, seed):
    labels, persons = given_images
    order = order_of(labels, persons, seed)
    assert sorted(order) == list(range(len(labels)))
    classes = set(labels.tolist())
    assert {int(labels[k]) for k in order[: len(classes)]} == classes
    later = [persons[k] for k in order[len(classes) :]]
    runs = [name for k, name in enumerate(later) if k == 0 or later[k - 1] != name]
    assert len(runs) == len(set(runs))  # each person's are together


def test_subsets_keep_the_mix_of_all():
    labels = np.asarray([0] * 75 + [1] * 25)
    order = order_of(labels, [f"p{k}" for k in range(100)])
    for n in (20, 40, 80):
        assert np.mean(labels[order[:n]]) == pytest.approx(0.25, abs=0.06)


def test_seed_decides_the_subsets():
    labels, persons = np.arange(40) % 2, [f"p{k}" for k in range(40)]
    assert order_of(labels, persons, 1) == order_of(labels, persons, 1)
    assert order_of(labels, persons, 1) != order_of(labels, persons, 2)


def test_folds_part_nobody_and_test_each_image_once():
    labels = np.arange(48) % 2
    persons = [f"p{k // 4}" for k in range(48)]
    marks = np.arange(48, dtype=np.float32).reshape(48, 1, 1, 1)
    cuts = [slice(0, 18), slice(18, 30), slice(30, 48)]
    parts = [dataset(marks[cut], labels[cut], persons[cut]) for cut in cuts]
    every = whole(parts)  # p4 is in the first two parts
    tested: list[float] = []
    for rest, fold in folds(every, 4, seed=3):
        assert not {*rest.persons} & {*fold.persons}
        assert set(fold.labels.tolist()) == {0, 1}
        tested += fold.images().ravel().tolist()
    assert sorted(tested) == list(range(48))


def test_phantom_target_has_the_scans_that_are_asked_for():
    for scans in range(2, 200):
        n = brains_for(scans)
        assert n - max(2, round(n / 5)) >= scans > n - 1 - max(2, round((n - 1) / 5))


def test_target_with_few_people_is_tested_by_cross_validation(tiny_cohort: Path):
    config = load_plan({}, {"data.size": 16}).config(TARGET, "scratch", 0)
    folder = [tiny_cohort / "north"]
    assert protocol_of("north", folder, config, [2, 5, 80], None) == Protocol(5, (2, 5))
    assert protocol_of("north", folder, config, [2, 5], 0).folds == 0
    with pytest.raises(ConfigError, match="no cross-validation of 12 folds"):
        protocol_of("north", folder, config, [2, 5], 12)
    with pytest.raises(ConfigError, match="smallest of --sizes is 50"):
        protocol_of("north", folder, config, [50], 0)


# What is measured


def test_measures_of_two_classes_and_of_more():
    brains, lesions = read_study("brain-sex"), read_study("skin-lesions")
    labels, said = np.asarray([0, 0, 0, 1, 1]), np.asarray([0.1, 0.2, 0.9, 0.8, 0.3])
    found = measured(brains, labels, said)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["f1"] == pytest.approx(1 / 2)
    of_more = measured(lesions, np.asarray([0, 1, 1]), np.eye(8)[[0, 1, 2]])
    assert of_more["accuracy"] == pytest.approx(2 / 3)
    assert of_more["recall"] == of_more["balanced_accuracy"] == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("ahead", "scratch", "expected"),
    [
        ([0.7, 0.8, 0.9], [0.5, 0.7, 0.9], 20.0),  # at a size
        ([0.8, 0.8, 0.8], [0.6, 0.7, 0.9], 15.0),  # half way between two
        ([0.6, 0.7, 0.8], [0.6, 0.5, 0.4], 5.0),  # from the first on
        ([0.9, 0.9, 0.9], [0.5, 0.6, 0.7], None),  # never
    ],
)
def test_scratch_catches_up_where_the_curves_meet(ahead, scratch, expected):
    found = catches_up([5, 10, 20], ahead, scratch)
    assert found == (None if expected is None else pytest.approx(expected))


def test_words_for_where_scratch_catches_up():
    def words(scans: float | None, known: bool = True) -> str:
        return meeting({"scans": scans, "known": known}, [5, 10, 80])

    assert [words(5.0), words(33.4), words(None)] == ["5 or fewer", "33", "not within 80"]
    assert words(None, known=False) == "not known"


def results(**means: list[float]) -> pd.DataFrame:
    """Two repetitions, one 0.1 above the other, of every method with 5 and 10 scans."""
    rows = [
        (k, method, scans, metric, mean + k / 10)
        for method, values in means.items()
        for scans, mean in zip((5, 10), values, strict=True)
        for k in (0, 1)
        for metric in ("balanced_accuracy", "accuracy")
    ]
    return pd.DataFrame(rows, columns=["seed", "method", "scans", "metric", "value"])


def test_gain_is_paired_within_a_repetition():
    summary = summarize(results(scratch=[0.5, 0.6], warm=[0.7, 0.6]), ["scratch", "warm"], [5, 10])
    score = summary["scores"]["balanced_accuracy"]["warm"]["5"]
    assert score["mean"] == pytest.approx(0.75) and score["high"] - score["low"] > 0.5
    gain = summary["gains"]["balanced_accuracy"]["warm"]["5"]
    assert told({**gain, "mean": -0.2, "low": None}) == "−0.200"
    assert [gain[key] for key in ("mean", "low", "high")] == pytest.approx([0.2] * 3)
    assert summary["catches_up"]["balanced_accuracy"]["warm"]["scans"] == pytest.approx(10)
    assert summary["scores"]["f1"]["warm"]["5"]["mean"] is None
    json.dumps(summary, allow_nan=False)


# What is asked for


def test_methods_differ_from_scratch_in_what_they_begin_with_and_train():
    plan = load_plan({}, {})
    scratch, warm, head, layers = (
        plan.config(TARGET, name, 3, source="/model").to_flower()
        for name in ("scratch", "warm", "warm-head", "warm-layers")
    )

    def changes(one: Mapping, other: Mapping) -> dict:
        return {key: value for key, value in one.items() if value != other[key]}

    assert changes(warm, scratch) == {"model.warm-start": "/model"}
    assert changes(head, warm) == {"model.trains": "head"}
    assert changes(layers, warm) == {"training.layer-decay": 0.5}
    assert scratch["run.rounds"] == 1 and scratch["run.seed"] == 3
    assert plan.config(SOURCE, "", 3).run.rounds > 1


def test_strategy_is_the_sources_alone():
    plan = load_plan({}, {"strategy.name": "fedbn"})
    assert plan.config(SOURCE, "", 0).strategy.name == "fedbn"
    assert plan.config(TARGET, "warm", 0, source="/m").strategy.name == "fedavg"
    built_in = Path(built_in_study.__file__).with_name("brain-sex.toml").read_text()
    text = built_in.replace('adapt = "threshold"', 'strategy = "fedper"')
    of_study = load_plan({}, {"study": text})
    assert of_study.config(SOURCE, "", 0).strategy.name == "fedper"
    assert of_study.config(TARGET, "warm-head", 0, source="/m").strategy.name == "fedavg"


@pytest.mark.parametrize(
    ("overrides", "run", "words"),
    [
        ({"sizes": [10, 5]}, {}, "ascending"),
        ({}, {"run.seed": 3}, "--repetitions"),
        ({}, {"model.warm-start": "/m"}, "trains itself"),
        ({}, {"model.trains": "head"}, "its methods, which differ in it"),
        ({}, {"training.layer-decay": 0.5}, "its methods, which differ in it"),
        ({"repetitions": 0}, {}, "repetitions"),
    ],
)
def test_what_a_transfer_decides_itself_is_refused(overrides, run, words):
    with pytest.raises(ConfigError, match=words):
        load_plan(overrides, run)


def test_sizes_are_whole_numbers():
    assert parse_sizes("5, 10") == [5, 10]
    with pytest.raises(ConfigError, match="--sizes 5;10"):
        parse_sizes("5;10")


# A whole one, in this process


@pytest.fixture(scope="module")
def done(tiny_cohort: Path, session_cache: Path, tmp_path_factory) -> Path:
    """Two folds, sizes 2 and 4, one repetition; the source's federation is north's alone."""
    folder = tmp_path_factory.mktemp("transfer") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSCAN_CACHE", str(session_cache))
        here(patch)
        transfer(folder, tiny_cohort).run(resume=False)
    return folder


def here(patch: pytest.MonkeyPatch, began: list[str] | None = None) -> None:
    """Run cells in this process, one after the other."""

    def schedule(self: Transfer, cells: list[Cell]) -> None:
        for cell in cells:
            if began is not None:
                began.append(cell.name)
            attempt(self._work(cell))

    patch.setattr(Transfer, "_schedule", schedule)


def transfer(folder: Path, cohort: Path) -> Transfer:
    sites = {name: cohort / name for name in ("island", "north")}
    plan = load_plan({"repetitions": 1, "sizes": [2, 4], "first_repetition": 1000}, TINY)
    return Transfer(plan, "island", {1000: sites}, Protocol(2, (2, 4)), folder, cohort="tiny")


@pytest.mark.usefixtures("one_thread")
def test_transfer_leaves_a_curve_of_every_method(done: Path):
    summary = json.loads((done / "summary.json").read_text())
    assert summary["unfinished"] == [], (done / "cells").as_posix()
    scores = summary["scores"]["balanced_accuracy"]
    assert set(scores) == {"scratch", "warm", "warm-head", "warm-layers", AS_IT_IS}
    assert all(0 <= scores[m][n]["mean"] <= 1 for m in summary["methods"] for n in ("2", "4"))
    table = pd.read_csv(done / "results.csv")
    at_target = table[table["method"] != "source"]
    assert set(at_target["n"]) == {8}  # each of the target's scans is tested once
    assert set(table["trained_on"]) == {"all", "island"}
    assert (done / "transfer.png").read_bytes().startswith(b"\x89PNG")
    report = (done / "report.md").read_text()
    assert report == markdown(summary)
    assert "| warm-head − scratch |" in report
    assert "| warm-head |" in report and "2-fold cross-validation" in report


@pytest.mark.usefixtures("one_thread")
def test_finished_cells_are_not_trained_again(
    done: Path, tiny_cohort: Path, session_cache, monkeypatch
):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    began: list[str] = []
    here(monkeypatch, began)
    before = (done / "results.csv").read_bytes()
    transfer(done, tiny_cohort).run(resume=True)
    assert not began
    kept = done / "sites" / "island" / "target-warm-seed1000"
    trained = {path: path.stat().st_mtime_ns for path in kept.glob("*/predictions.csv")}
    lost = min(trained)
    lost.unlink()
    (done / "cells" / "target-warm-seed1000" / "status.json").unlink()
    transfer(done, tiny_cohort).run(resume=True)
    assert began == ["target-warm-seed1000"]
    assert (done / "results.csv").read_bytes() == before
    again = {path: path.stat().st_mtime_ns for path in kept.glob("*/predictions.csv")}
    assert {path for path in again if again[path] != trained[path]} == {lost}


@pytest.mark.usefixtures("one_thread")
def test_what_began_with_a_lost_source_is_trained_again(
    done: Path, tiny_cohort: Path, session_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    shutil.copytree(done, tmp_path / "out")
    (tmp_path / "out" / "cells" / "source-seed1000" / "status.json").unlink()
    began: list[str] = []
    monkeypatch.setattr(
        Transfer, "_schedule", lambda self, cells: began.extend(cell.name for cell in cells)
    )
    transfer(tmp_path / "out", tiny_cohort).run(resume=True)
    assert began == ["source-seed1000"]
    left = {path.name for path in (tmp_path / "out" / "sites" / "island").iterdir()}
    assert left == {"target-scratch-seed1000"}


def test_other_questions_are_not_asked_in_the_same_folder(done: Path, tiny_cohort: Path):
    other = transfer(done, tiny_cohort)
    with pytest.raises(ConfigError, match="--resume"):
        other.run(resume=False)
    other.protocol = Protocol(0, (2,))
    with pytest.raises(ConfigError, match="differs in protocol"):
        other.run(resume=True)


def test_method_whose_source_failed_is_told_and_scratch_goes_on(tmp_path, tiny_cohort, monkeypatch):
    def schedule(self: Transfer, cells: list[Cell]) -> None:
        for cell in cells:
            assert cell.arm == SOURCE or cell.strategy == "scratch"
            bench.make_folder(self._cell(cell))
            bench.end_cell(self._cell(cell), cell, "diverged", "")

    monkeypatch.setattr(Transfer, "_schedule", schedule)
    summary = transfer(tmp_path / "out", tiny_cohort).run(resume=False)
    assert "target-warm-seed1000 (error)" in summary["unfinished"]
    assert "source-seed1000 (diverged)" in summary["unfinished"]


def test_preset_of_a_benchmark_is_the_command(monkeypatch):
    asked = {}
    monkeypatch.setattr(command, "transfer", lambda **options: asked.update(options))
    words = ["benchmark", "--preset", "transfer", "--repetitions", "2", "--dry-run"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert (asked["repetitions"], asked["dry_run"]) == (2, True)


def test_preset_refuses_what_a_transfer_does_not_have():
    done = CliRunner().invoke(app, ["benchmark", "--preset", "transfer", "--arms", "local"])
    assert "no arms and no strategies" in str(done.exception)


# Simulated hospitals, and what the command line says


def test_each_repetition_has_hospitals_of_its_own_and_the_target_enough_scans(
    tmp_path, monkeypatch
):
    made: list[tuple[str, int, int]] = []

    def brains(cache: Path, name: str, *, n: int, seed: int, **_how) -> Path:
        made.append((name, n, seed))
        return cache / name

    def lesions(cache: Path, name: str, *, patients: int | None, seed: int, **_how) -> Path:
        made.append((name, patients or 0, seed))
        return cache / name

    monkeypatch.setenv("FEDSCAN_CACHE", str(tmp_path))
    monkeypatch.setattr(phantom_cohorts, "ensure_brains", brains)
    monkeypatch.setattr(phantom_cohorts, "ensure_lesions", lesions)
    folders = cohorts.phantoms("brain-sex", 3, "island", 80, 1004)
    assert list(folders) == ["north", "south", "island"]
    assert made == [("north", 200, 1004), ("south", 120, 1004), ("island", 100, 1004)]
    made.clear()
    cohorts.phantoms("skin-lesions", 3, "island", 80, 1005)
    assert made == [("north", 0, 1005), ("south", 0, 1005), ("island", 0, 1005)]  # 100 patients
    made.clear()
    cohorts.phantoms("skin-lesions", 3, "island", 500, 1005)
    assert made[-1] == ("island", 500, 1005)
    with pytest.raises(ConfigError, match="--target west: accepted is one of north, island"):
        cohorts.phantoms("brain-sex", 2, "west", 80, 0)


@pytest.mark.parametrize("study", ["brain-sex", "skin-lesions"])
def test_dry_run_tells_cells_and_minutes(study, monkeypatch):
    monkeypatch.setattr("simulations.estimate.step_seconds", lambda config, sites: 0.01)
    options = ["--dry-run", "--study", study, "--repetitions", "2", "--sizes", "5,10"]
    done = CliRunner().invoke(app, ["transfer", *options])
    assert done.exit_code == 0, done.exception
    words = " ".join(done.stdout.split())
    assert "12 cells" in words
    assert "target island" in words and "training scans 5, 10" in words
    assert re.search(r"about \d+ min", words)


def test_work_is_the_same_after_its_way_to_another_process(tmp_path, tiny_cohort, monkeypatch):
    made = transfer(tmp_path / "out", tiny_cohort)
    works = [made._work(cell) for stage in made.plan.stages() for cell in stage]
    path = tmp_path / "work.json"
    path.write_text(json.dumps([asdict(work) for work in works]))
    seen: list = []
    monkeypatch.setattr("sys.argv", ["transfer", str(path)])
    monkeypatch.setattr(process, "schedule", seen.extend)
    process.main()
    assert seen == works
    assert {name for work in works for name in work.sites if work.cell.arm == SOURCE} == {"north"}
    assert {name for work in works for name in work.sites if work.cell.arm == TARGET} == {"island"}
