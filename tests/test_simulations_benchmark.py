"""A whole comparison on Ray: killed and resumed it ends as if nothing had happened."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from processes import (
    SCRIPTS,
    break_split,
    environment,
    fedscan,
    fedscan_here,
    flower_processes,
    kill_with_supervisor,
    modes_of_others,
    wait_until_gone,
)
from rich.console import Console

from common.errors import ConfigError, DivergedError
from common.files import write_json
from simulations import arms, compare, console
from simulations.benchmark import Benchmark
from simulations.compare import _fitting, _show_scores, _table, unfinished
from simulations.plan import Cell, Plan, load_plan
from simulations.question import check_folder, differing, question
from simulations.report.document import write_report
from simulations.schedule import BEGAN, _lanes, attempt, end_cell, schedule, status_of

TIMINGS = ["seconds"]


def words(cohort: Path, out: Path, *more: str) -> list[str]:
    return ["benchmark", "--preset", "smoke", "--cohort", str(cohort), "--out", str(out), *more]


@pytest.fixture(scope="module")
def whole(tiny_cohort: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory):
    """A comparison that ran without interruption."""
    out = tmp_path_factory.mktemp("whole") / "comparison"
    before = flower_processes()
    done = fedscan(*words(tiny_cohort, out), cwd=out.parent, cache=session_cache)
    assert done.returncode == 0, done.stderr
    assert not wait_until_gone(before)
    return done, out


@pytest.mark.simulation
def test_it_leaves_results_of_every_arm_a_summary_and_a_report(whole) -> None:
    done, out = whole
    assert done.stdout.splitlines()[-1] == str(out / "report.html")
    results = pd.read_csv(out / "results.csv")
    assert set(results.arm) == {"centralized", "local", "federated"}
    assert set(results.status) == {"done"}
    sent = results[(results.arm == "federated") & (results.split == "test")]
    assert (sent.bytes_up > 0).all()
    assert (results.drop(sent.index).bytes_up == 0).all()  # no other arm, no bytes before the end
    equal = results[results.split == "test"].groupby("arm").steps.unique()
    assert {tuple(steps) for steps in equal} == {(4,)}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["headline"]["gain_of_data_poor_site"]["value"] is not None
    assert "<svg" in (out / "report.html").read_text()
    assert modes_of_others(out) == {}
    for path in (out / "results.csv", out / "summary.json", out / "report.html"):
        assert "sub-" not in path.read_text()


@pytest.mark.simulation
def test_killed_and_resumed_it_gives_the_same_results(
    whole, tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    out = tmp_path / "comparison"
    before = flower_processes()
    short = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # a path of Ray's sockets is bounded
    process = subprocess.Popen(
        [str(SCRIPTS / "fedscan"), *words(tiny_cohort, out)],
        cwd=tmp_path,
        env=environment(session_cache, TMPDIR=str(short)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    ended = homes = []
    while not (ended and len(homes) == 2) and time.monotonic() < deadline:
        time.sleep(0.1)
        ended = list(out.glob("cells/*/status.json"))
        homes = list(short.glob("fedscan-*"))  # of the schedule, and of a federation within it
    assert ended and len(homes) == 2
    kill_with_supervisor(process.pid)
    process.wait()
    assert not (out / "results.csv").exists()
    assert not wait_until_gone(before, 60)
    assert not list(short.glob("fedscan-*"))
    shutil.rmtree(short)

    refused = fedscan_here(*words(tiny_cohort, out), cwd=tmp_path, cache=session_cache)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    refused = fedscan_here("report", str(out), cwd=tmp_path, cache=session_cache)
    assert refused.returncode == 2 and "has not ended" in refused.stderr
    other = words(tiny_cohort, out, "--resume", "--repetitions", "2")
    refused = fedscan_here(*other, cwd=tmp_path, cache=session_cache)
    assert refused.returncode == 2 and "differs in repetitions" in refused.stderr

    resumed = fedscan(*words(tiny_cohort, out, "--resume"), cwd=tmp_path, cache=session_cache)
    assert resumed.returncode == 0, resumed.stderr
    expected, got = (
        pd.read_csv(folder / "results.csv").drop(columns=TIMINGS) for folder in (whole[1], out)
    )
    pd.testing.assert_frame_equal(expected, got)
    predictions = "sites/island/predictions.csv"
    assert (out / predictions).read_bytes() == (whole[1] / predictions).read_bytes()


@pytest.mark.simulation
def test_one_bad_cell_does_not_stop_the_others(
    tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    """Island's test scans are gone: its own model cannot be tested, nor can any other there."""
    cohort = tmp_path / "cohort"
    shutil.copytree(tiny_cohort, cohort)
    break_split(cohort / "island", "test", b"")
    out = tmp_path / "out"
    arms = ("--arms", "local,centralized")
    done = fedscan(*words(cohort, out, *arms), cwd=tmp_path, cache=session_cache)
    assert done.returncode == 1
    assert "centralized-seed0 (error), local-seed0 (error)" in done.stderr
    assert done.stderr.count("local-seed0 failed: error; ") == 1
    why = json.loads((out / "cells" / "local-seed0" / "status.json").read_text())["why"]
    assert "DataContractError" in why and "Traceback" in why
    assert set(pd.read_csv(out / "results.csv").status) == {"error"}


def test_only_a_comparison_is_resumed_and_only_on_demand(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", resume=False)
    check_folder(tmp_path / "new", resume=True)  # nothing is there: it begins
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="no comparison to resume"):
        check_folder(tmp_path, resume=True)
    with pytest.raises(ConfigError, match="holds other files"):
        check_folder(tmp_path, resume=False)
    (tmp_path / "manifest.json").write_text("{}")
    check_folder(tmp_path, resume=True)
    with pytest.raises(ConfigError, match="Continue it with --resume"):
        check_folder(tmp_path, resume=False)


def test_another_question_is_refused_before_phantoms_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args, **kwargs):
        raise AssertionError("phantoms were made")

    monkeypatch.setattr(compare, "prepare_phantoms", never)
    (tmp_path / "manifest.json").write_text(json.dumps(question(Plan(), {"task": "generation"})))
    request = compare.Request("default", {}, {}, None, 2, tmp_path, 0.0, 60.0)
    with pytest.raises(ConfigError, match=r"differs in config \(.*task.*\)"):
        compare.compare(request, resume=True, dry_run=False)


@pytest.mark.parametrize("preset", ["generation", "gan-domain-adaptation"])
def test_a_missing_extractor_is_refused_before_anything_starts(preset: str, tmp_path: Path) -> None:
    """Also where classifiers, which have none, come last in the plan."""
    run = {"model.extractor": str(tmp_path / "nix.pt")}
    request = compare.Request(preset, {}, run, None, 3, tmp_path / "out", 0.0, 60.0)
    with pytest.raises(ConfigError, match=r"extractor '.*nix\.pt'"):
        compare.compare(request, resume=False, dry_run=True)


def test_a_cell_that_did_not_end_well_leaves_one_row_without_a_value(tmp_path: Path) -> None:
    end_cell(tmp_path, Cell("local", "", 3), "timeout", "ended after 5 s")
    (row,) = pd.read_csv(tmp_path / "results.csv").to_dict("records")
    assert row["status"] == "timeout" and row["seed"] == 3
    assert pd.isna(row["metric"]) and pd.isna(row["value"])


GENERATORS = {"run": {"task": "generation"}, "use": {"task": "classification"}, "local": "poor"}


@pytest.fixture
def generators(tmp_path: Path):
    """Compose a comparison of generators of which nothing has run."""

    def compose(**changes) -> Benchmark:
        plan = Plan.model_validate({"repetitions": 2, **GENERATORS, **changes})
        made = Benchmark(plan, {"island": Path(), "north": Path()}, {}, tmp_path / "out")
        made.folder.mkdir()
        write_json(made.folder / "manifest.json", {"poor_site": "island"})
        return made

    return compose


def end(made: Benchmark, status: str, *cells: Cell) -> None:
    for cell in cells:
        made._cell(cell).mkdir(parents=True, exist_ok=True)
        write_json(made._cell(cell) / "status.json", {"status": status, "why": ""})


def test_use_is_made_of_the_generators_that_there_are(generators) -> None:
    variants = {"a": {}, "b": {"transport": "int8"}}
    made = generators(variants=variants, strategies=["a", "b"], reference="b")
    end(made, "done", Cell("federated", "a", 0), Cell("federated", "b", 0), Cell("local", "", 0))
    end(made, "error", Cell("centralized", "", 0))
    cells = made.folder.absolute() / "cells"
    assert made._work(Cell("use", "", 0)).models == {
        "local GAN": str(cells / "local-seed0" / "island"),
        "federated GAN": str(cells / "federated-b-seed0" / "all"),
    }
    assert made._work(Cell("use", "", 1)).models == {}
    assert made._work(Cell("local", "", 0)).models == {}


def test_an_arm_that_is_not_compared_gives_no_generator(generators) -> None:
    made = generators(arms=["federated"])
    end(made, "done", Cell("federated", "fedavg", 0), Cell("local", "", 0))
    assert list(made._work(Cell("use", "", 0)).models) == ["federated GAN"]


def test_what_an_interrupted_federation_left_at_its_sites_is_removed(generators) -> None:
    made = generators()
    end(made, "done", Cell("use", "", 0), Cell("use", "", 1), Cell("local", "", 0))
    island = made.folder / "sites" / "island"
    for name in ("state/17", "17", "federated-fedavg-seed0/all", "local-seed0/island"):
        (island / name).mkdir(parents=True)
    made._clear([Cell("federated", "fedavg", 0)])
    assert [path.name for path in island.iterdir()] == ["local-seed0"]
    # What was made of the seed's generators is made anew with the one that now comes.
    assert [made._status(Cell("use", "", seed)) for seed in (0, 1)] == ["missing", "done"]
    assert made._status(Cell("local", "", 0)) == "done"


def test_cells_before_and_after_are_named_where_they_failed(generators) -> None:
    made = generators()
    end(made, "timeout", Cell("use", "", 1), Cell("pretraining", "", 0))
    assert unfinished(made.folder) == ["pretraining-seed0 (timeout)", "use-seed1 (timeout)"]


def test_another_plan_is_not_resumed(tiny_cohort: Path, tmp_path: Path) -> None:
    sites = {site: tiny_cohort / site for site in ("island", "north")}

    def begin(plan: Plan, *, resume: bool) -> None:
        Benchmark(plan, sites, {}, tmp_path)._begin(resume)

    plan = load_plan("gan-domain-adaptation", {}, {})
    begin(plan, resume=False)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["reference"] == "gan-frozen" and len(manifest["contrasts"]) == 4
    frozen = manifest["plan"]["variants"]["gan-frozen"]
    assert frozen["model.classifier"] == "gan-features"
    assert manifest["config"]["model.classifier"] == "slices"  # of no variant
    begin(plan, resume=True)
    variants = {**plan.variants, "gan-frozen": {"model.classifier": "gan-features"}}
    with pytest.raises(ConfigError, match=r"differs in plan \(variants\)"):
        begin(plan.model_copy(update={"variants": variants}), resume=True)


def test_the_manifest_tells_where_configurations_differ() -> None:
    plan = load_plan("gan-domain-adaptation", {"strategies": ["scratch", "gan-frozen"]}, {})
    told = differing(plan, {})
    assert told.keys() == {"pretraining", "scratch", "gan-frozen"}
    assert told["scratch"] == {}
    assert told["gan-frozen"] == {
        **{"model.classifier": "gan-features", "training.learning-rate": 3e-4}
    }
    # Also what suits the task and stands in no table of the preset.
    assert (
        told["pretraining"]["training.batch-size"] == 4
        and told["pretraining"]["strategy.weighting"] == "uniform"
    )


def test_a_site_may_not_have_the_name_of_a_cells_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site 'results\.csv'"):
        Benchmark(Plan(), {"results.csv": tmp_path, "north": tmp_path}, {}, tmp_path / "out")


@pytest.mark.parametrize("diverge", [("island",), ("island", "north")])
def test_a_local_model_that_diverges_costs_the_others_nothing(
    diverge: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(work: arms.Work, trained_on: str, members: list[str]) -> list[dict]:
        if trained_on in diverge:
            raise DivergedError("no finite loss")
        return [{"trained_on": trained_on, "tested_on": trained_on, "value": 1.0}]

    monkeypatch.setattr(arms, "_alone", alone)
    cell = Cell("local", "", 0)
    work = arms.Work(
        *(cell, {}, {}, str(tmp_path), "", "large", ["island", "north"], {}, 1, 0.0, 9.0)
    )
    attempt(work)
    rows = pd.read_csv(tmp_path / "results.csv")
    assert list(rows["status"]) == ["diverged" if s in diverge else "done" for s in work.local]
    told = json.loads((tmp_path / "status.json").read_text())
    assert told == {"status": "diverged", "why": ", ".join(f"{site} diverged" for site in diverge)}


def test_cells_begin_in_the_plans_order_and_no_more_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    began, running = [], []

    def start(work: SimpleNamespace) -> str:
        began.append(work.folder)
        running.append(work.folder)
        assert len(running) <= 2
        return work.folder

    def wait(references: list[str], **about: object) -> tuple[list[str], list[str]]:
        running.remove(references[-1])
        return references[-1:], references[:-1]

    ray = SimpleNamespace(
        init=lambda **about: None,
        cluster_resources=lambda: {"CPU": 16.0, "GPU": 1.0},
        remote=lambda **about: lambda run: SimpleNamespace(remote=start),
        wait=wait,
        get=lambda reference: None,
        shutdown=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    works = [
        SimpleNamespace(folder=str(tmp_path / f"{k}"), cell=None, cpus=1, gpus=0.5, timeout=60.0)
        for k in range(5)
    ]
    schedule(works)
    assert began == [work.folder for work in works]
    assert not running


@pytest.mark.parametrize("ended", [True, False])
def test_a_cell_that_ends_as_its_time_is_up_keeps_its_result(
    ended: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cancelled = []
    ray = SimpleNamespace(
        init=lambda **about: None,
        cluster_resources=lambda: {"CPU": 2.0},
        remote=lambda **about: lambda run: SimpleNamespace(remote=lambda work: work.folder),
        wait=lambda references, **about: ([], references),
        cancel=lambda reference, force: cancelled.append(reference),
        shutdown=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    (tmp_path / BEGAN).touch()
    os.utime(tmp_path / BEGAN, (0, 0))  # a clock that was set tells nothing
    if ended:
        write_json(tmp_path / "status.json", {"status": "done", "why": ""})
    work = SimpleNamespace(folder=str(tmp_path), cell=Cell("local", "", 0), cpus=1, gpus=0.0)
    work.timeout = 0.2
    began = time.monotonic()
    schedule([work])
    assert time.monotonic() - began > 0.2
    assert cancelled == [str(tmp_path)]
    assert status_of(tmp_path) == ("done" if ended else "timeout")


@pytest.mark.parametrize(
    ("cpus", "gpus", "there", "lanes"),
    [
        (1, 0.0, {"CPU": 2.0}, 2),
        (2, 0.0, {"CPU": 5.0, "GPU": 1.0}, 2),
        (1, 1 / 3, {"CPU": 16.0, "GPU": 1.0}, 3),
        (1, 0.6, {"CPU": 16.0, "GPU": 4.0}, 4),  # a share lies on one GPU
        (1, 2.0, {"CPU": 16.0, "GPU": 5.0}, 2),
        (4, 0.0, {"CPU": 2.0}, 1),
    ],
)
def test_lanes_are_what_cpus_and_gpus_allow(
    cpus: int, gpus: float, there: dict[str, float], lanes: int
) -> None:
    assert _lanes(there, [SimpleNamespace(cpus=cpus, gpus=gpus)]) == lanes


def finished(cohort: Path, out: Path) -> Benchmark:
    """Run a comparison without a federation in this process, to its results and summary."""
    run = {"data.size": 16, "training.local-steps": 2, "training.batch-size": 4, "run.rounds": 1}
    plan = Plan(arms=["local", "centralized"], run=run, repetitions=1)
    sites = {site: cohort / site for site in ("island", "north")}
    made = Benchmark(plan, sites, {"run.min-sites": 2}, out)
    made.folder.mkdir()
    made._begin(resume=False)
    for cell in plan.cells():
        attempt(made._work(cell))
    made._collect()
    return made


def test_a_report_counts_the_images_that_could_be_read(
    tiny_cohort: Path, session_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    shutil.copytree(tiny_cohort, tmp_path / "cohort")
    table = pd.read_csv(tmp_path / "cohort" / "north" / "participants.tsv", sep="\t")
    name = table.query("split == 'test'").participant_id.iloc[0]
    scan = tmp_path / "cohort" / "north" / name / "anat" / f"{name}_T1w.nii.gz"
    scan.write_bytes(b"")
    made = finished(tmp_path / "cohort", tmp_path / "out")
    listed = json.loads((made.folder / "manifest.json").read_text())["sites"]["north"]
    used = json.loads((made.folder / "summary.json").read_text())["images"]["north"]
    assert used == {**listed, "n_test": listed["n_test"] - 1, "left_out": listed["left_out"] + 1}
    said = f"{listed['n_train']} training and {listed['n_test'] - 1} test scans"
    assert said in write_report(made.folder).read_text()


def test_what_cells_leave_becomes_results_summary_and_report(
    tiny_cohort: Path, session_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    made = finished(tiny_cohort, tmp_path / "out")
    summary = json.loads((made.folder / "summary.json").read_text())
    assert summary["classes"] == ["female", "male"]
    record = summary["scores"]["island"]["local"]["loss"]
    assert record["over"] == "people" and record["low"] <= record["mean"] <= record["high"]
    page = write_report(made.folder).read_text()
    assert "Confusion matrices at island" in page and "Sample scans of every site" in page


@pytest.fixture
def cohorts(tiny_cohort: Path, tmp_path: Path) -> dict[int, dict[str, Path]]:
    """Hospitals of two repetitions, of other people and other numbers of them."""
    from common.imaging.cohorts import write_cohort

    other = write_cohort(tmp_path / "c", {"north": 7, "island": 4}, n_test=3, seed=6, workers=1)
    return {k: {s: at / s for s in ("north", "island")} for k, at in ((4, tiny_cohort), (5, other))}


def test_every_repetition_works_on_people_of_its_own(
    cohorts, session_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    run = {"data.size": 16, "training.local-steps": 2, "training.batch-size": 4, "run.rounds": 1}
    about = {"repetitions": 2, "first-repetition": 4}
    plan = Plan.model_validate({"arms": ["local", "centralized"], "run": run, **about})
    out = tmp_path / "out"
    made = Benchmark(plan, cohorts[4], {"run.min-sites": 2}, out, cohorts=cohorts)
    made.folder.mkdir()
    made._begin(resume=False)
    manifest = json.loads((out / "manifest.json").read_text())
    tested = {k: {s: n["n_test"] for s, n in v.items()} for k, v in manifest["cohorts"].items()}
    assert tested == {"4": {"island": 4, "north": 4}, "5": {"island": 3, "north": 3}}
    assert manifest["sites"] == manifest["cohorts"]["4"] and manifest["new_cohorts"] is True
    for cell in plan.cells():
        work = made._work(cell)
        assert work.sites == {site: str(cohorts[cell.seed][site]) for site in ("island", "north")}
        attempt(work)
    made._collect()
    predictions = pd.read_csv(out / "sites" / "north" / "predictions.csv")
    assert predictions.groupby("seed")["scan"].nunique().to_dict() == {4: 4, 5: 3}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["new_cohorts"] is True and summary["repetitions"] == [4, 5]
    record = summary["scores"]["north"]["local"]["loss"]
    assert record["over"] == "repetitions" and record["repetitions"] == 2
    assert summary["images"]["north"]["n_test"] == 4
    text = write_report(out).read_text()
    assert "Every repetition has people of its own" in text
    assert "Scans at every site, first repetition" in text
    changed = {**cohorts, 5: cohorts[4]}
    again = Benchmark(plan, cohorts[4], {"run.min-sites": 2}, out, cohorts=changed)
    with pytest.raises(ConfigError, match=r"differs in cohorts \(5\)"):
        again._begin(resume=True)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"repetitions": 3}, {0: 0, 1: 1, 2: 2}),
        ({"repetitions": 2, "first-repetition": 7}, {7: 7, 8: 8}),
        ({"repetitions": 3, "same-cohort": True}, {}),
        ({}, {}),
    ],
)
def test_simulated_hospitals_have_new_people_in_every_repetition_unless_asked_otherwise(
    asked: dict, expected: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, built = [], []

    def prepare(study: str, sites: list[str], *, seed: int, test: int | None) -> dict[str, Path]:
        made.append((seed, test))
        return {site: Path(f"/cohort{seed}") / site for site in sites}

    class Comparison:
        def __init__(self, plan: Plan, sites: dict, base: dict, out: Path, **about: object) -> None:
            built.append((sites, about["cohorts"]))

        def run(self, *, resume: bool) -> None:
            raise InterruptedError

    monkeypatch.setattr(compare, "prepare_phantoms", prepare)
    monkeypatch.setattr(compare, "Benchmark", Comparison)
    overrides = {**asked, "test-scans": 30}
    request = compare.Request("smoke", overrides, {}, None, 2, tmp_path / "out", 0.0, 60.0)
    with pytest.raises(InterruptedError):
        compare.compare(request, resume=False, dry_run=False)
    first = asked.get("first-repetition", 0)
    assert made == [(seed, 30) for seed in (expected or [first])]
    ((sites, cohorts),) = built
    assert sites == {s: Path(f"/cohort{first}") / s for s in sites}
    where = {seed: {path.parent.name for path in found.values()} for seed, found in cohorts.items()}
    assert where == {seed: {f"cohort{cohort}"} for seed, cohort in expected.items()}


def test_a_federation_is_of_the_hospitals_of_its_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulations import federate, launch

    asked, told = [], []

    def run(config: object, resources: object, *, phantoms: dict, quiet: bool) -> None:
        asked.append(phantoms)
        raise InterruptedError

    monkeypatch.setattr(federate, "federate", run)
    sites = {"island": "/c5/island", "north": "/c5/north"}
    work = arms.Work(
        *(Cell("federated", "fedavg", 5), {}, sites, str(tmp_path), str(tmp_path), "large"),
        *([], {}, 1, 0.0, 9.0),
    )
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path))
    with pytest.raises(InterruptedError):
        arms._federated(work)
    assert asked == [{site: Path(at) for site, at in sites.items()}]

    def start(command: list[str], *, environment: dict[str, str], **about: object) -> None:
        told.append(json.loads(Path(environment["FEDSCAN_PHANTOM_FOLDERS"]).read_text()))
        raise InterruptedError

    monkeypatch.setattr(launch, "process_group", start)
    with (
        pytest.raises(InterruptedError),
        launch.flower_run(work.config, launch.Resources(2), asked[0]),
    ):
        pass
    assert told == [sites]


@pytest.mark.parametrize(
    ("models", "columns"),
    [(["a", "b"], ["tested at", "a", "b"]), (["a", "b", "c"], ["model", "all", "island"])],
)
def test_of_models_and_places_the_fewer_are_columns(models, columns):
    places = ["all", "island"]
    table = _table("x", places, models, {(p, m): f"{p} {m}" for p in places for m in models})
    assert [column.header for column in table.columns] == columns
    down, across = (models, places) if columns[0] == "model" else (places, models)
    found = dict(zip(across, (list(column.cells) for column in table.columns[1:]), strict=True))
    assert list(table.columns[0].cells) == down
    for one, cells in found.items():
        for other, cell in zip(down, cells, strict=True):
            assert set(cell.split()) == {one, other}


def test_models_have_their_whole_names_in_a_narrow_terminal(monkeypatch):
    places = ["all", "island", "north", "south"]
    models = [
        f"federated/fed{name}" for name in ("adagrad", "avg-epochs", "nova-epochs", "yogi", "bn")
    ]
    cell = "0.702 (0.67 to 0.73)"
    monkeypatch.setattr(console, "out", Console(width=80, file=(lines := io.StringIO())))
    console.out.print(_fitting("x", places, models, {(p, m): cell for p in places for m in models}))
    assert all(model in lines.getvalue() for model in models)


def test_of_more_places_than_a_terminal_is_wide_the_mean_is_shown(monkeypatch):
    score = {"mean": 0.702, "low": 0.671, "high": 0.73, "note": None}
    models = [f"federated/fedtrimmedavg-label-flip-{k}" for k in range(9)]
    found = {model: {"balanced_accuracy": score} for model in models}
    scores = dict.fromkeys(("all", *(f"site-{k:03d}" for k in range(7))), found)
    for width, places in ((80, 1), (200, 8)):
        lines = io.StringIO()
        monkeypatch.setattr(console, "out", Console(file=lines, width=width))
        _show_scores({"scores": scores, "models": {m: {} for m in models}}, "balanced_accuracy")
        assert lines.getvalue().count("0.702") == 9 * places


def test_a_hospital_that_alone_trains_by_itself_has_one_name_everywhere(monkeypatch):
    def scored(**values: float) -> dict:
        found = {name.replace("_", " "): value for name, value in values.items()}
        unknown = {"low": None, "high": None, "note": None}
        return {m: {"balanced_accuracy": {"mean": v, **unknown}} for m, v in found.items()}

    scores = {
        "all": scored(federated=0.5, local_at_island=0.25),
        "island": scored(federated=0.5, local=0.75),
        "north": scored(federated=0.5, local_at_island=0.125),
    }
    lines = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=lines, width=160))
    models = ["federated", "local", "local at island"]
    _show_scores({"scores": scores, "models": {m: {} for m in models}}, "balanced_accuracy")
    told = [re.findall(r"[\w.]+", line) for line in lines.getvalue().splitlines()]
    assert ["island", "0.500", "0.750"] in told
    assert ["north", "0.500", "0.125"] in told
