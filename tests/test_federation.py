"""Each hospital as a process of its own, as the README has it: the simulation's very weights."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import TINY
from processes import SCRIPTS, environment, fedscan, flower_processes, wait_until_gone

from simulations.launch import ROOT, free_port

pytestmark = pytest.mark.federation


@contextlib.contextmanager
def process(name: str, *arguments: str, home: Path, cache: Path) -> Iterator[Path]:
    """Keep one of Flower's commands running; yield the path of its log."""
    home.mkdir(parents=True)
    log = home / "log.txt"
    with log.open("w") as file:
        started = subprocess.Popen(
            [str(SCRIPTS / name), *arguments],
            cwd=home,
            env=environment(cache, FLWR_HOME=str(home)),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield log
    finally:
        started.terminate()
        try:
            started.wait(timeout=20)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def wait_for_health(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success:
                return
        time.sleep(0.3)
    raise TimeoutError("the SuperLink did not answer")


def test_separate_processes_give_the_simulations_weights(
    tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    before = flower_processes()
    port = free_port()
    out = tmp_path / "out"
    with contextlib.ExitStack() as stack:
        start = lambda name, *words, home: stack.enter_context(  # noqa: E731
            process(name, *words, home=tmp_path / home, cache=session_cache)
        )
        start(
            *("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)),
            home="server",
        )
        wait_for_health(port)
        logs = {
            site: start(
                *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"),
                *("--port", str(free_port())),
                *("--node-config", f'site="{site}" data-dir="{tiny_cohort / site}"'),
                home=site,
            )
            for site in ("north", "island")
        }
        user = tmp_path / "user"
        user.mkdir()
        (user / "config.toml").write_text(
            f'[superlink.hospitals]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        overrides = tmp_path / "overrides.toml"
        overrides.write_text("\n".join([*TINY, f"output-dir = '{out}'", "min-sites = 2"]))
        done = subprocess.run(
            [str(SCRIPTS / "flwr"), "run", str(ROOT), "hospitals", "--stream"]
            + ["--run-config", str(overrides)],
            cwd=user,
            env=environment(session_cache, FLWR_HOME=str(user)),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        site_logs = {site: log.read_text() for site, log in logs.items()}
    assert (summaries := list(out.glob("*/summary.json"))), done.stdout + str(site_logs)
    summary = json.loads(summaries[0].read_text())
    assert list(summary["sites"]) == ["island", "north"]

    simulated = fedscan(
        *("run", "--cohort", str(tiny_cohort), "--format", "json", "--out", str(tmp_path / "sim")),
        *(word for assignment in TINY for word in ("--set", assignment)),
        cwd=tmp_path,
        cache=session_cache,
    )
    run_id = json.loads(simulated.stdout)["run_id"]
    deployed_model = summaries[0].with_name("model.safetensors").read_bytes()
    assert deployed_model == (tmp_path / "sim" / run_id / "model.safetensors").read_bytes()
    for log in site_logs.values():
        assert "sub-" not in log
    assert not wait_until_gone(before)
