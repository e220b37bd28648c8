"""Whole runs through ``flwr run``: results, exit codes, and nothing left behind."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from conftest import TINY
from processes import (
    ROOT,
    SCRIPTS,
    WITHOUT_NAMESPACES,
    break_split,
    environment,
    fedscan,
    flower_processes,
    kill_with_supervisor,
    listening,
    modes_of_others,
    reached_from_outside,
    wait_until_gone,
)

from common.processes import namespaces

pytestmark = pytest.mark.simulation
SET = [word for assignment in TINY for word in ("--set", assignment)]


@pytest.fixture(scope="module")
def run(finished):
    """One finished run with two actors, as text: its output and its folder."""
    return finished("run", "classification")


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
        "attendance.jsonl",
        "launch.json",
        "report.html",
        "sites.json",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d{4}-brain-sex-fedavg(-\d+)?", folder.name)
    assert str(folder / "report.html") in done.stdout
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
    from common.processes.environment import free_port

    ports = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port())}
    ports["FLWR_LOCAL_CONTROL_API_PORT"] = str(free_port())
    overrides = tmp_path / "overrides.toml"
    lines = [*TINY, f"data.cohort-dir = '{tiny_cohort}'", f"run.output-dir = '{tmp_path / 'out'}'"]
    overrides.write_text("\n".join(lines))
    before = flower_processes()
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "common.processes.supervisor",
            str(SCRIPTS / "flwr"),
            "run",
            ".",
            "--stream",
        ]
        + ["--run-config", str(overrides)],
        cwd=ROOT,
        env=environment(session_cache, FLWR_HOME=str(tmp_path / "flwr"), **ports),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as group:
        group.stdout.readline()  # whether the network is shared
        assert group.stdout.readline() == "exit 0\n"
        _, log = group.communicate()
    assert "Round 2/2" in log
    (folder,) = (tmp_path / "out").iterdir()
    assert (folder / "model.safetensors").read_bytes() == (
        run[1] / "model.safetensors"
    ).read_bytes()
    assert not wait_until_gone(before)


def test_a_failing_site_ends_the_run_by_name_phase_and_cause(
    tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(tiny_cohort, cohort)
    break_split(cohort / "island", "train", gzip.compress(np.zeros(10).tobytes()))
    before = flower_processes()
    done = fedscan("run", "--cohort", str(cohort), *SET, cwd=tmp_path, cache=session_cache)
    assert done.returncode == 1
    assert "site 'island' failed in query.hello" in done.stderr
    assert "no image of brain-sex train can be used" in done.stderr
    assert "Traceback" not in done.stderr  # which a fault of the data does not need
    (folder,) = (tmp_path / "runs").iterdir()
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["site"] == "island"
    assert "Traceback" in failure["traceback"] and "DataContractError" in failure["traceback"]
    assert not (folder / "summary.json").exists()
    assert not wait_until_gone(before)


@contextlib.contextmanager
def endless(cohort: Path, cache: Path, cwd: Path, prefix: Sequence[str] = ()):
    """Start a run that does not end by itself, and wait for its first round."""
    before = flower_processes()
    process = subprocess.Popen(
        [*prefix, sys.executable, str(SCRIPTS / "fedscan"), "run", "--cohort", str(cohort)]
        + [*SET, "--set", "run.rounds=10000"],
        cwd=cwd,
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("Round 1/"):
            break
    else:
        raise AssertionError("".join(said))
    yield SimpleNamespace(process=process, said=said, before=before, cwd=cwd)
    if process.poll() is None:
        process.terminate()
        process.wait(timeout=60)
    process.stderr.close()


@pytest.fixture(scope="module")
def isolated(tiny_cohort: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run in namespaces of its own. The last test that takes it kills it."""
    if not namespaces.possible() & namespaces.CLONE_NEWNET:
        pytest.skip("this system grants no network namespaces")
    with endless(tiny_cohort, session_cache, tmp_path_factory.mktemp("isolated")) as run:
        yield run


@pytest.fixture(scope="module")
def shared(tiny_cohort: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run where the system grants no namespaces. The last test that takes it ends it."""
    cwd = tmp_path_factory.mktemp("shared")
    with endless(tiny_cohort, session_cache, cwd, WITHOUT_NAMESPACES) as run:
        yield run


def servers(run: SimpleNamespace) -> dict[str, set[tuple[str, int]]]:
    """Addresses that the processes of a run listen on, by command line, once all are there."""
    deadline = time.monotonic() + 30
    while True:
        found = {}
        for process in psutil.Process(run.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if addresses := listening(process):
                    found[command] = found.get(command, set()) | addresses
        missing = [
            name
            for name in ("flower-superlink", "gcs_server")
            if not any(name in command for command in found)
        ]
        if not missing:
            return found
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


def test_no_other_user_reaches_what_a_run_listens_on(isolated) -> None:
    ports = {port for addresses in servers(isolated).values() for _, port in addresses}
    assert len(ports) > 5  # of the SuperLink, the simulation, Ray and its actors
    assert not reached_from_outside(ports)
    assert not any("Warning" in line for line in isolated.said)


def test_rays_password_is_on_no_command_line(isolated) -> None:
    family = psutil.Process(isolated.process.pid).children(recursive=True)
    passwords = {p.environ().get("RAY_AUTH_TOKEN") for p in family if p.name() == "gcs_server"}
    (password,) = passwords
    assert password
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert password not in " ".join(process.cmdline())


def test_nothing_survives_kill_9_of_launcher_and_supervisor_together(isolated) -> None:
    family = psutil.Process(isolated.process.pid).children(recursive=True)
    (home,) = {p.environ()["RAY_TMPDIR"] for p in family if p.name() == "gcs_server"}
    kill_with_supervisor(isolated.process.pid)
    assert isolated.process.wait(timeout=60) == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert not wait_until_gone(isolated.before)
    assert not Path(home).exists()


def test_without_namespaces_one_line_says_what_other_users_can_reach(shared) -> None:
    (line,) = [line for line in shared.said if "user" in line]
    assert "every user of this machine can reach Flower's server" in line
    assert "allow user namespaces" in line


def test_without_namespaces_ray_listens_on_the_loopback_interface_and_asks_for_a_password(
    shared,
) -> None:
    found = servers(shared)
    assert {ip for addresses in found.values() for ip, _ in addresses} == {"127.0.0.1"}
    (port,) = [port for name, all_ in found.items() if "gcs_server" in name for _, port in all_]
    code = (
        "import sys; from ray._raylet import GcsClient\n"
        "print(len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=20)), 'nodes')"
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    family = psutil.Process(shared.process.pid).children(recursive=True)
    (password,) = {p.environ()["RAY_AUTH_TOKEN"] for p in family if p.name() == "gcs_server"}
    for said, token in (("AuthenticationError", "0" * 64), ("1 nodes", password)):
        joined = subprocess.run(
            [sys.executable, "-c", code, f"127.0.0.1:{port}"],
            env={**plain, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert said in joined.stdout + joined.stderr


def ends_on(run: SimpleNamespace, number: int, cache: Path) -> None:
    records = Path(environment(cache)["FEDSCAN_RECORDS"])
    assert len(flower_processes() - run.before) > 3
    run.process.send_signal(number)
    run.process.stderr.close()
    assert run.process.wait(timeout=60) == 128 + number
    assert not wait_until_gone(run.before)
    (failure,) = (run.cwd / "runs").glob("*/failure.json")
    assert json.loads(failure.read_text())["error"] == "interrupted"
    # What the sites keep is there for a resumed run, and no site saves another round.
    kept = {path: path.stat().st_mtime for path in records.glob(f"*/state/{failure.parent.name}/*")}
    time.sleep(1)
    assert kept == {path: path.stat().st_mtime for path in kept}


def test_nothing_survives_an_interrupted_run_without_namespaces(shared, session_cache) -> None:
    ends_on(shared, signal.SIGTERM, session_cache)


def test_nothing_survives_an_interrupted_run(
    tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    with endless(tiny_cohort, session_cache, tmp_path) as run:
        ends_on(run, signal.SIGINT, session_cache)
