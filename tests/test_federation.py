"""Each hospital as a process of its own, ``fedscan supernode``, and what a hostile run gets there.

One SuperLink and two hospitals serve a hostile run first, then an honest one, in which a third
hospital sends replies that cannot be put together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import OPEN_POLICY, TINY
from flwr.cli.build import build_fab_from_disk
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from processes import (
    ROOT,
    SCRIPTS,
    fedscan,
    flower_processes,
    flwr_run,
    process,
    wait_for_health,
    wait_for_line,
    wait_until_gone,
)

from common.processes.environment import free_port

pytestmark = pytest.mark.federation
SITES = ("island", "north")
HOSTILE = Path(__file__).parent / "hostile_app"


@dataclass
class History:
    """What has been seen of two runs, the hostile and then the honest one."""

    out: Path
    console: str = ""
    logs: dict[str, str] = field(default_factory=dict)
    reports: dict[str, dict] = field(default_factory=dict)
    command_lines: set[str] = field(default_factory=set)
    answers_to_a_thief: dict[str, int] = field(default_factory=dict)
    poisoned: bool = False
    daemons: list[psutil.Process] = field(default_factory=list)
    exit_code: int | None = None
    folders_left: list[Path] = field(default_factory=list)
    processes_left: set[int] = field(default_factory=set)


@contextlib.contextmanager
def command_lines(of: list[psutil.Process]) -> Iterator[set[str]]:
    """Gather the command lines of all that is started below some processes."""
    found: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            for above in of:
                with contextlib.suppress(psutil.Error):
                    for child in above.children(recursive=True):
                        with contextlib.suppress(psutil.Error):
                            found.add(" ".join(child.cmdline()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def daemons(report: Path) -> list[psutil.Process]:
    """List the processes that the hostile app has left behind."""
    everybody = psutil.process_iter(["cmdline"])
    return [p for p in everybody if f"daemon of {report}" in " ".join(p.info["cmdline"] or [])]


def hostile_commands(folder: Path) -> Path:
    """Return a folder with the ``flwr-clientapp`` of a hostile site."""
    folder.mkdir()
    script = folder / "flwr-clientapp"
    app = Path(__file__).with_name("hostile_clientapp.py")
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{app}" "$@"\n')
    script.chmod(0o755)
    return folder


def steal(port: int) -> int:
    """Ask a SuperNode for a task as any user of the machine can; return the answer's status."""
    client = RuntimeHttpClient.from_server_address(
        f"127.0.0.1:{port}",
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
    )
    try:  # an open connection would hold a server up when it is to end
        client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-clientapp"]))
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    finally:
        client.close()
    return 200


@pytest.fixture(scope="module")
def history(
    tiny_cohort: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[History]:
    folder = tmp_path_factory.mktemp("federation")
    before, seen = flower_processes(), History(folder / "out")
    temporary, report, poison = folder / "tmp", folder / "report", folder / "poison-ran"
    bundle, link = folder / "bundle", free_port()
    for made in (temporary, report, bundle):
        made.mkdir()
    policy = folder / "policy.toml"
    policy.write_text(OPEN_POLICY)  # the cohort is tiny, and its weights are the simulation's
    fab = build_fab_from_disk(ROOT)
    with zipfile.ZipFile(BytesIO(fab)) as archive:
        archive.extractall(bundle)
    connection = f'address = "127.0.0.1:{link}"\ninsecure = true'
    user = {"home": folder / "user", "cache": session_cache}
    try:
        with contextlib.ExitStack() as stack:
            start = lambda name, *words, home, **more: stack.enter_context(  # noqa: E731
                process(
                    *(name, *words),
                    home=folder / home,
                    cache=session_cache,
                    **{"TMPDIR": str(temporary), **more},
                )
            )
            start(
                *("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(link)),
                home="server",
            )
            wait_for_health(f"http://127.0.0.1:{link}")
            ports = {site: free_port() for site in SITES}
            started = {
                site: start(
                    *("fedscan", "supernode", "--insecure", "--superlink", f"127.0.0.1:{link}"),
                    *("--site", site, "--data-dir", str(tiny_cohort / site)),
                    *("--port", str(ports[site]), "--policy", str(policy)),
                    home=site,
                )
                for site in SITES
            }
            for _, log in started.values():
                wait_for_line(log, "ready for tasks")
            seen.answers_to_a_thief = {site: steal(port) for site, port in ports.items()}
            sites = [psutil.Process(popen.pid) for popen, _ in started.values()]
            with command_lines(sites) as seen.command_lines:
                attack = [f"sites = {len(SITES)}", "attack = true", f"report = '{report}'"]
                attack.append(
                    f"bundle = 'fedscan.fedscan.0.1.0.{hashlib.sha256(fab).hexdigest()[:8]}'"
                )
                attack += [f"source = '{bundle}'", f"poison = '{poison}'"]
                seen.console = flwr_run(HOSTILE, connection, attack, **user).stdout
                seen.reports = {
                    site: json.loads((report / f"{site}.json").read_text()) for site in SITES
                }
                start(
                    *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}"),
                    *("--port", str(free_port()), "--node-config"),
                    f'site="mallory" data-dir="{tiny_cohort / "island"}"',
                    home="mallory",
                    PATH=os.pathsep.join(
                        [str(hostile_commands(folder / "bin")), str(SCRIPTS), os.environ["PATH"]]
                    ),
                    FEDSCAN_POLICY=str(policy),
                )
                honest = [*TINY, f"run.output-dir = '{seen.out}'", "run.min-sites = 3"]
                seen.console += flwr_run(ROOT, connection, honest, **user).stdout
            seen.poisoned = poison.exists()
            seen.daemons = daemons(report)
            # One hospital's SuperNode dies; the other's command is killed, and can end nothing.
            island, north = (started[site][0] for site in SITES)
            for child in psutil.Process(island.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):  # a task's process may just have ended
                    if "clients.gateway.flower_supernode" in child.cmdline()[:3]:
                        child.kill()
            seen.exit_code = island.wait(timeout=60)
            north.send_signal(signal.SIGKILL)
            north.wait()
            seen.logs = {site: log.read_text() for site, (_, log) in started.items()}
        seen.processes_left = wait_until_gone(before)
        seen.folders_left = list(temporary.glob("fedscan-*"))
        yield seen
    finally:
        for process_ in daemons(report):
            process_.kill()


def test_separate_processes_give_the_simulations_weights(
    history: History, tiny_cohort: Path, session_cache: Path, tmp_path: Path
) -> None:
    assert (summaries := list(history.out.glob("*/summary.json"))), history
    summary = json.loads(summaries[0].read_text())
    lost = {name: site["rounds_lost"] for name, site in summary["sites"].items()}
    assert lost == {"island": 0, "mallory": 2, "north": 0}
    assert [name for name, site in summary["sites"].items() if "loss" in site] == list(SITES)
    simulated = fedscan(
        *("run", "--cohort", str(tiny_cohort), "--format", "json", "--out", str(tmp_path / "sim")),
        *(word for assignment in TINY for word in ("--set", assignment)),
        cwd=tmp_path,
        cache=session_cache,
    )
    run_id = json.loads(simulated.stdout)["run_id"]
    deployed_model = summaries[0].with_name("model.safetensors").read_bytes()
    assert deployed_model == (tmp_path / "sim" / run_id / "model.safetensors").read_bytes()


def test_a_sites_log_names_no_participant(history: History) -> None:
    assert all("sub-" not in log for log in history.logs.values())


def test_code_that_a_run_plants_is_not_executed_in_a_later_run(history: History) -> None:
    assert all(told["planted"] for told in history.reports.values())
    assert not history.poisoned


def test_what_a_task_starts_ends_with_it(history: History) -> None:
    assert len(history.reports) == len(SITES)
    assert not history.daemons


def test_a_run_can_start_no_connector(history: History) -> None:
    assert all(told["task"] for told in history.reports.values())
    assert any("flwr-clientapp" in line for line in history.command_lines)
    assert not [line for line in history.command_lines if "flwr-connector" in line]


def test_a_supernode_hands_out_no_task_without_the_sites_secret(history: History) -> None:
    assert set(history.answers_to_a_thief.values()) == {401}


def test_no_command_line_at_a_site_holds_a_token(history: History) -> None:
    assert any("flwr-clientapp" in line for line in history.command_lines)
    assert not [line for line in history.command_lines if re.search("[0-9a-f]{64}", line)]


def test_death_of_flowers_supernode_ends_the_command_with_an_error(history: History) -> None:
    assert history.exit_code == 1
    assert "Flower's SuperNode ended" in history.logs["island"]


def test_a_killed_command_leaves_neither_processes_nor_folders(history: History) -> None:
    assert not history.processes_left
    assert not history.folders_left
