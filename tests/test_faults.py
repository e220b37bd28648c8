"""Whatever is killed, a run goes on, and its result is that of a run that nothing disturbed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest
from conftest import TINY
from kills import kill_tree, result, resumed, started, wait_for_round
from processes import flower_processes, wait_until_gone

from clients.gateway import sandbox

HOW = [  # with rounds enough that the run has not ended before it is killed
    pytest.param("run", "classification", ["run.rounds=4"], marks=pytest.mark.simulation),
    pytest.param("run", "generation", [], marks=pytest.mark.simulation),
    pytest.param("federate", "classification", [], marks=pytest.mark.federation),
]


@pytest.mark.parametrize(("command", "task", "more"), HOW)
def test_run_that_is_killed_with_all_its_processes_goes_on_to_the_same_result(
    command: str,
    task: str,
    more: list[str],
    finished,
    tiny_cohort: Path,
    tiny_tasks: dict[str, list[str]],
    session_cache: Path,
    tmp_path: Path,
) -> None:
    if command == "federate" and not sandbox.kind():
        pytest.skip("needs a sandbox")
    _, whole = finished(command, task, *more)
    before = flower_processes()
    values = [*tiny_tasks[task], *more]
    words = ["--cohort", str(tiny_cohort), *(w for value in values for w in ("--set", value))]
    at, killed = {"cwd": tmp_path, "cache": session_cache}, tmp_path / "killed"
    process = started(command, [*words, "--out", str(killed)], **at)
    folder = wait_for_round(killed, 1, process)
    kill_tree(process)
    assert not wait_until_gone(before)
    assert not (folder / "summary.json").exists()
    assert resumed(command, folder, **at) == 0
    assert result(folder) == result(whole)
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
