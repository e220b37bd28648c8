"""Whatever is killed, a run goes on, and its result is that of a run that nothing disturbed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import TINY
from kills import kill_tree, result, resumed, started, wait_for_round
from processes import flower_processes, wait_until_gone
from test_simulations_generation import TINY as GENERATION
from test_simulations_generation import quick_extractor  # noqa: F401, a fixture

from clients.gateway import sandbox

TASKS = {"classification": TINY, "generation": GENERATION}
HOW = [
    pytest.param("run", "classification", marks=pytest.mark.simulation),
    pytest.param("run", "generation", marks=pytest.mark.simulation),
    pytest.param("federate", "classification", marks=pytest.mark.federation),
]


@pytest.mark.parametrize(("command", "task"), HOW)
def test_run_that_is_killed_with_all_its_processes_goes_on_to_the_same_result(
    command: str,
    task: str,
    tiny_cohort: Path,
    quick_extractor: Path,  # noqa: F811
    session_cache: Path,
    tmp_path: Path,
) -> None:
    if command == "federate" and not sandbox.kind():
        pytest.skip("needs a sandbox")
    before = flower_processes()
    values = [*TASKS[task], "run.rounds=4"]
    if task == "generation":
        values += [f"model.extractor='{quick_extractor}'"]
    words = ["--cohort", str(tiny_cohort), *(w for value in values for w in ("--set", value))]
    at = {"cwd": tmp_path, "cache": session_cache}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert started(command, [*words, "--out", str(whole)], **at).wait(timeout=900) == 0
    process = started(command, [*words, "--out", str(killed)], **at)
    folder = wait_for_round(killed, 2, process)
    kill_tree(process)
    assert not wait_until_gone(before)
    assert not (folder / "summary.json").exists()
    assert resumed(command, folder, **at) == 0
    (other,) = whole.iterdir()
    assert result(folder) == result(other)
    assert not wait_until_gone(before)


@pytest.mark.simulation
@pytest.mark.parametrize("victim", ["ray::ClientAppActor", "flwr-serverapp|flwr-simulation"])
def test_run_one_of_whose_processes_is_killed_ends_with_an_error_and_goes_on(
    victim: str, tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    before = flower_processes()
    values = [*TINY, "run.rounds=6"]
    words = ["--cohort", str(tiny_cohort), *(w for value in values for w in ("--set", value))]
    at = {"cwd": tmp_path, "cache": session_cache}
    process = started("run", [*words, "--out", str(tmp_path / "out")], **at)
    folder = wait_for_round(tmp_path / "out", 1, process)
    family = psutil.Process(process.pid).children(recursive=True)
    names = victim.split("|")
    killed = [one for one in family if any(n in " ".join(one.cmdline()) for n in names)]
    assert killed
    for one in killed:
        one.kill()
    try:
        code = process.wait(timeout=120)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        raise
    assert not wait_until_gone(before)
    if code:  # Flower starts an actor anew, if it can
        assert not (folder / "summary.json").exists()
        assert resumed("run", folder, **at) == 0
    assert (folder / "summary.json").exists()
