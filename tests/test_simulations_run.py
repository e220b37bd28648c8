"""Whole runs through ``flwr run``: results, exit codes, and nothing left behind."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from processes import (
    ROOT,
    SCRIPTS,
    environment,
    fedscan,
    flower_processes,
    modes_of_others,
    wait_until_gone,
)

pytestmark = pytest.mark.simulation
SET = [word for assignment in TINY for word in ("--set", assignment)]


@pytest.fixture(scope="module")
def run(tiny_cohort: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory):
    """One finished run with two actors, as text: its output and its folder."""
    cwd = tmp_path_factory.mktemp("two actors")  # a space: paths are quoted somewhere on the way
    before = flower_processes()
    done = fedscan("run", "--cohort", str(tiny_cohort), *SET, cwd=cwd, cache=session_cache)
    assert done.returncode == 0, done.stderr
    assert not wait_until_gone(before)
    return done, Path(done.stdout.splitlines()[-1])


def test_last_line_is_the_run_folder_and_it_is_whole(run) -> None:
    done, folder = run
    assert folder.is_absolute() and folder.parent.name == "runs"
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
        "model.json",
        "summary.json",
        "flower.log",
    }
    assert modes_of_others(folder.parent) == {}
    for site in ("north", "island"):
        assert site in done.stdout
    assert "Round 2/2" in done.stderr and "━" not in done.stderr  # plain lines, no bar


def test_summary_tells_each_site_by_name(run) -> None:
    summary = json.loads((run[1] / "summary.json").read_text())
    assert summary["arm"] == "federated" and summary["rounds"] == 2
    assert list(summary["sites"]) == ["island", "north"]
    assert summary["sites"]["north"]["n_test"] == 4
    assert summary["sites"]["island"]["n_train"] == 2
    assert 0 <= summary["sites"]["north"]["balanced_accuracy"] <= 1
    # Down: training and validation of 2 rounds and one test at 2 sites; up: training only.
    weights = summary["bytes_up"] / 4
    assert summary["bytes_down"] == weights * 10


def test_metrics_hold_every_round_site_and_split_and_the_test_once(run) -> None:
    rows = [json.loads(line) for line in (run[1] / "metrics.jsonl").read_text().splitlines()]
    losses = [(r["round"], r["site"], r["split"]) for r in rows if r["name"] == "loss"]
    assert len(losses) == len(set(losses)) == 2 * 2 * 2 + 2
    assert [split for *_, split in losses].count("test") == 2
    assert losses[-1][2] == "test"


def test_nothing_identifying_is_in_the_run_folder(run, tiny_cohort: Path) -> None:
    for name in ("manifest.json", "metrics.jsonl", "summary.json", "model.json", "flower.log"):
        text = (run[1] / name).read_text()
        assert "sub-" not in text, name


def test_one_actor_and_two_give_the_same_bytes(
    run, tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    done = fedscan(
        *("run", "--cohort", str(tiny_cohort), *SET, "--cpus", "1"),
        *("--format", "json", "--out", str(tmp_path / "out")),
        cwd=tmp_path,
        cache=session_cache,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # and nothing else on standard output
    model = tmp_path / "out" / summary["run_id"] / "model.safetensors"
    assert model.read_bytes() == (run[1] / "model.safetensors").read_bytes()


def test_flwr_run_works_from_the_root_with_flowers_defaults(
    run, tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    """Two supernodes with two CPUs each, in whatever number of actors fits, same weights."""
    from simulations.launch import free_port

    ports = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port())}
    ports["FLWR_LOCAL_CONTROL_API_PORT"] = str(free_port())
    overrides = tmp_path / "overrides.toml"
    lines = [*TINY, f"cohort-dir = '{tiny_cohort}'", f"output-dir = '{tmp_path / 'out'}'"]
    overrides.write_text("\n".join(lines))
    before = flower_processes()
    with subprocess.Popen(
        [sys.executable, "-m", "simulations.leash", str(SCRIPTS / "flwr"), "run", ".", "--stream"]
        + ["--run-config", str(overrides)],
        cwd=ROOT,
        env=environment(session_cache, FLWR_HOME=str(tmp_path / "flwr"), **ports),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as leash:
        assert leash.stdout.readline() == "exit 0\n"
        _, log = leash.communicate()
    assert "Round 2/2" in log
    (folder,) = (tmp_path / "out").iterdir()
    assert (folder / "model.safetensors").read_bytes() == (
        run[1] / "model.safetensors"
    ).read_bytes()
    assert not wait_until_gone(before)


def test_a_failing_site_ends_the_run_by_name_phase_and_traceback(
    tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(tiny_cohort, cohort)
    for scan in (cohort / "island").rglob("*.nii.gz"):
        scan.write_bytes(gzip.compress(np.zeros(10).tobytes()))
    before = flower_processes()
    done = fedscan("run", "--cohort", str(cohort), *SET, cwd=tmp_path, cache=session_cache)
    assert done.returncode == 1
    assert "site 'island' failed in query.hello" in done.stderr
    assert "Traceback" in done.stderr and "DataContractError" in done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "failure.json").read_text())["site"] == "island"
    assert not (folder / "summary.json").exists()
    assert not wait_until_gone(before)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 128 + signal.SIGINT),
        (signal.SIGTERM, 128 + signal.SIGTERM),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_nothing_survives_an_interrupted_run(
    number: int, code: int, tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    before = flower_processes()
    records = Path(environment(session_cache)["FEDSCAN_RECORDS"])
    kept = set(records.glob("*/state/*"))
    process = subprocess.Popen(
        [str(SCRIPTS / "fedscan"), "run", "--cohort", str(tiny_cohort)]
        + [*SET, "--set", "num-server-rounds=10000"],
        cwd=tmp_path,
        env=environment(session_cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("Round 1/"):
            break
    assert len(flower_processes() - before) > 3
    process.send_signal(number)
    process.stderr.close()
    assert process.wait(timeout=60) == code
    assert not wait_until_gone(before)
    if number != signal.SIGKILL:
        assert set(records.glob("*/state/*")) == kept  # no site has saved another round since
        (failure,) = (tmp_path / "runs").glob("*/failure.json")
        assert json.loads(failure.read_text())["error"] == "interrupted"
