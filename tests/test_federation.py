"""Each hospital as a process of its own, as the README has it: the simulation's very weights.

Also where a further site takes part whose replies cannot be put together: it costs nobody a bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
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
def process(
    name: str, *arguments: str, home: Path, cache: Path, commands: Path | None = None
) -> Iterator[Path]:
    """Keep one of Flower's commands running; yield the path of its log.

    It finds what it starts in the folder ``commands`` first.
    """
    home.mkdir(parents=True)
    env = environment(cache, FLWR_HOME=str(home))
    if commands:
        env["PATH"] = f"{commands}{os.pathsep}{env['PATH']}"
    log = home / "log.txt"
    with log.open("w") as file:
        started = subprocess.Popen(
            [str(SCRIPTS / name), *arguments],
            cwd=home,
            env=env,
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


def hostile_commands(folder: Path) -> Path:
    """Return a folder with the ``flwr-clientapp`` of a hostile site."""
    folder.mkdir()
    script = folder / "flwr-clientapp"
    app = Path(__file__).with_name("hostile_clientapp.py")
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{app}" "$@"\n')
    script.chmod(0o755)
    return folder


def test_separate_processes_give_the_simulations_weights(
    tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    before = flower_processes()
    port = free_port()
    out = tmp_path / "out"
    with contextlib.ExitStack() as stack:
        start = lambda name, *words, home, **more: stack.enter_context(  # noqa: E731
            process(name, *words, home=tmp_path / home, cache=session_cache, **more)
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
                *("--node-config", f'site="{site}" data-dir="{tiny_cohort / data}"'),
                home=site,
                commands=commands,
            )
            for site, data, commands in (
                ("north", "north", None),
                ("island", "island", None),
                ("mallory", "island", hostile_commands(tmp_path / "bin")),
            )
        }
        user = tmp_path / "user"
        user.mkdir()
        (user / "config.toml").write_text(
            f'[superlink.hospitals]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        overrides = tmp_path / "overrides.toml"
        overrides.write_text("\n".join([*TINY, f"output-dir = '{out}'", "min-sites = 3"]))
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
    lost = {name: site["rounds_lost"] for name, site in summary["sites"].items()}
    assert lost == {"island": 0, "mallory": 2, "north": 0}
    assert [name for name, site in summary["sites"].items() if "loss" in site] == [
        "island",
        "north",
    ]

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
