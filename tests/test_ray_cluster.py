"""A Ray cluster that the user names does the work of simulated sites and of a benchmark's cells."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import TINY
from processes import SCRIPTS, environment, fedscan_here, flower_processes, process, wait_until_gone
from processes import wait_for_line as wait_for

from common.processes.environment import free_port

SET = [word for assignment in TINY for word in ("--set", assignment)]
NODES = ("head", "second")


@pytest.fixture(scope="module")
def cluster(session_cache: Path) -> Iterator[dict]:
    """Two nodes of one CPU each: their processes by name, the address, and the password."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    password = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    words = ["start", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
    before = flower_processes()
    with contextlib.ExitStack() as running:
        # Ray puts sockets below this folder, and a socket's path has 107 bytes at most.
        home = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="ray-")))
        started = {
            "head": ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={home}"],
            "second": [f"--address={address}"],
        }
        nodes = {}
        for name in NODES:
            node, log = running.enter_context(
                process(
                    *("ray", *words, *started[name]),
                    home=home / name,
                    cache=session_cache,
                    **password,
                )
            )
            wait_for(log, "Ray runtime started.")
            nodes[name] = node.pid
        yield {"nodes": nodes, "address": address, "password": password}
    assert not wait_until_gone(before)


def on_nodes(cluster: dict, *words: str, cwd: Path, cache: Path) -> tuple[str, dict[str, set]]:
    """Run ``fedscan`` on the cluster; return its output, and what each node's workers were."""
    command = [str(SCRIPTS / "fedscan"), *words, "--ray-address", cluster["address"]]
    seen: dict[str, set[str]] = {name: set() for name in NODES}
    with (cwd / "out.txt").open("w") as out:
        running = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(cache, **cluster["password"]),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            while running.poll() is None:
                for name, pid in cluster["nodes"].items():
                    for child in psutil.Process(pid).children(recursive=True):
                        with contextlib.suppress(psutil.Error):
                            seen[name].add(" ".join(child.cmdline()))
                time.sleep(0.2)
        finally:
            running.terminate()
            running.wait()
    told = (cwd / "out.txt").read_text()
    assert running.returncode == 0, told
    return told, seen


@pytest.mark.simulation
def test_simulated_sites_are_served_by_the_nodes_of_the_cluster(
    cluster: dict, tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    told, seen = on_nodes(
        *(cluster, "run", "--cohort", str(tiny_cohort), *SET), cwd=tmp_path, cache=session_cache
    )
    folder = Path(told.splitlines()[-1])
    assert set(json.loads((folder / "summary.json").read_text())["sites"]) == {"north", "island"}
    for name in NODES:
        assert any("ClientAppActor" in title for title in seen[name]), seen


@pytest.mark.simulation
def test_cells_of_a_benchmark_run_on_the_nodes_of_the_cluster(
    cluster: dict, tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    words = ("--cohort", str(tiny_cohort), "--arms", "centralized,federated", *SET)
    _, seen = on_nodes(cluster, "benchmark", *words, cwd=tmp_path, cache=session_cache)
    for name in NODES:
        assert any("attempt" in title for title in seen[name]), seen
    assert json.loads((tmp_path / "benchmark" / "summary.json").read_text())["unfinished"] == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--ray-address", "here"), "accepted is HOST:PORT"),
        (("--ray-address", "127.0.0.1:1"), "nobody answers there"),
        (("--ray-address", "127.0.0.1:1", "--cpus", "2"), "--cpus"),
    ],
)
def test_an_address_without_a_cluster_is_refused_before_anything_starts(
    words: tuple[str, ...], why: str, tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    done = fedscan_here(
        *("run", "--cohort", str(tiny_cohort), *words), cwd=tmp_path, cache=session_cache
    )
    assert done.returncode == 2
    assert why in " ".join(done.stderr.split())


@pytest.mark.simulation
def test_more_than_any_node_has_is_refused(
    cluster: dict, tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    words = ("--cohort", str(tiny_cohort), "--set", "run.threads=2")
    done = fedscan_here(
        *("run", *words, "--ray-address", cluster["address"]),
        cwd=tmp_path,
        cache=session_cache,
        **cluster["password"],
    )
    assert done.returncode == 2
    assert "no node has 2 CPUs" in " ".join(done.stderr.split())
