"""Each hospital as a process of its own behind its gate, and what a hostile app gets there.

One SuperLink and two hospitals serve first an app that they have not approved, then one that they
have, which tries every way out, and at last an honest run, in which a third hospital sends replies
that cannot be put together.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
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
    flower_processes,
    flwr_run,
    process,
    wait_for_health,
    wait_for_line,
    wait_until_gone,
)

from clients.gateway.approvals import Approvals
from clients.gateway.chain import verify
from common.processes.environment import free_port

pytestmark = pytest.mark.federation
SITES = ("island", "north")
HOSTILE = Path(__file__).parent / "hostile_app"
GATE = "[gate]\nmetric-digits = 0\n"
HELD_BACK = (10, 11, 12, 13, 14, 15, 16, 30)  # attacks by what is in the reply
TAKEN_OUT = (17, 18)  # by what is beside it
BOXED = (20, 21, 22, 23, 24)  # by what a process can do


@dataclass
class History:
    """What has been seen of the runs."""

    out: Path
    console: str = ""
    unapproved: dict[str, list[dict]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    report: dict[str, list[dict]] = field(default_factory=dict)
    found: dict[str, list[dict]] = field(default_factory=dict)  # by site, what the app has told
    written: list[Path] = field(default_factory=list)
    ledgers: dict[str, Path] = field(default_factory=dict)
    command_lines: set[str] = field(default_factory=set)
    answers_to_a_thief: dict[str, int] = field(default_factory=dict)
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


def daemons(mark: Path) -> list[psutil.Process]:
    """List the processes that the hostile app has left behind."""
    everybody = psutil.process_iter(["cmdline"])
    return [p for p in everybody if f"daemon of {mark}" in " ".join(p.info["cmdline"] or [])]


def hostile_bundle(folder: Path) -> Path:
    """Return fedscan's sources with apps that mean ill in the place of its own."""
    kept = shutil.ignore_patterns("__pycache__")
    for package in ("common", "server", "clients"):
        shutil.copytree(ROOT / package, folder / package, ignore=kept)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for role, package in (("client", "clients"), ("server", "server")):
        shutil.copy(HOSTILE / f"{role}.py", folder / package / "app.py")
    return folder


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
    temporary, loot, link = folder / "tmp", folder / "loot", free_port()
    temporary.mkdir()
    (folder / "outside.txt").write_text("secret")
    cohort = folder / "cohort"
    shutil.copytree(tiny_cohort, cohort)
    (cohort / "other").mkdir()
    hostile = hostile_bundle(folder / "hostile")
    other = hostile_bundle(folder / "unapproved")
    (other / "server" / "more.py").write_text("")
    policies = {}
    for site in SITES:  # the cohort is tiny, and its weights are the simulation's
        policies[site] = folder / "policies" / site / "policy.toml"
        policies[site].parent.mkdir(parents=True)
        bits = "mantissa-bits = 7\n" if site == "island" else ""
        policies[site].write_text(OPEN_POLICY + GATE + bits)
        for app in (ROOT, hostile):
            digest = hashlib.sha256(build_fab_from_disk(app)).hexdigest()
            Approvals.beside(policies[site]).approve(digest)
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
                    *("--site", site, "--data-dir", str(cohort / site)),
                    *("--port", str(ports[site]), "--policy", str(policies[site])),
                    home=site,
                )
                for site in SITES
            }
            for _, log in started.values():
                wait_for_line(log, "ready for tasks")
            seen.answers_to_a_thief = {site: steal(port) for site, port in ports.items()}
            sites = [psutil.Process(popen.pid) for popen, _ in started.values()]
            with command_lines(sites) as seen.command_lines:
                apart = [*TINY, f"run.output-dir = '{loot}'", "run.min-sites = 2"]
                flwr_run(other, connection, apart, **user)
                seen.unapproved = json.loads((loot / "report.json").read_text())
                attack = [*apart, f"run.seed = {link}"]  # a port that a socket may try
                seen.console = flwr_run(hostile, connection, attack, **user).stdout
                seen.report = json.loads((loot / "report.json").read_text())
                policies["island"].write_text(OPEN_POLICY + GATE)  # read with the next run
                start(
                    *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}"),
                    *("--port", str(free_port()), "--node-config"),
                    f'site="mallory" data-dir="{cohort / "island"}"',
                    home="mallory",
                    PATH=os.pathsep.join(
                        [str(hostile_commands(folder / "bin")), str(SCRIPTS), os.environ["PATH"]]
                    ),
                    FEDSCAN_POLICY=str(policies["north"]),
                )
                honest = [*TINY, f"run.output-dir = '{seen.out}'", "run.min-sites = 3"]
                seen.console += flwr_run(ROOT, connection, honest, **user).stdout
            seen.daemons = daemons(loot)
            seen.written = [*folder.glob("written.txt"), *folder.rglob("poison-ran")]
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
            for site, log in seen.logs.items():
                told = re.findall(r"FOUND (\{.*\})", log)
                seen.found[site] = [json.loads(line) for line in told]
                seen.ledgers[site] = session_cache / "records" / f"gate@{site}" / "ledger.jsonl"
        seen.processes_left = wait_until_gone(before)
        seen.folders_left = list(temporary.glob("fedscan-*"))
        yield seen
    finally:
        for process_ in daemons(loot):
            process_.kill()


def test_separate_processes_give_the_simulations_weights(history: History, finished) -> None:
    assert (summaries := list(history.out.glob("*/summary.json"))), history
    summary = json.loads(summaries[0].read_text())
    lost = {name: site["rounds_lost"] for name, site in summary["sites"].items()}
    assert lost == {"island": 0, "mallory": 2, "north": 0}
    assert [name for name, site in summary["sites"].items() if "loss" in site] == list(SITES)
    _, simulated = finished("run", "classification")
    deployed_model = summaries[0].with_name("model.safetensors").read_bytes()
    assert deployed_model == (simulated / "model.safetensors").read_bytes()


def test_a_sites_log_names_no_participant(history: History) -> None:
    assert all("sub-" not in log for log in history.logs.values())


def test_an_app_that_is_not_approved_is_not_executed(history: History) -> None:
    for reply in itertools.chain(*history.unapproved.values()):
        assert "is not approved here" in reply["failure"]["error"]
    assert not any("more.py" in log for log in history.logs.values())


def test_no_reply_holds_a_part_of_a_scan(history: History) -> None:
    assert len(history.report) == 1 + len(HELD_BACK + TAKEN_OUT + BOXED) + 1
    assert all(len(replies) == len(SITES) for replies in history.report.values())
    assert not [number for number, two in history.report.items() if any(r["leaked"] for r in two)]


@pytest.mark.parametrize("number", HELD_BACK)
def test_a_reply_that_hides_something_is_held_back(history: History, number: int) -> None:
    for reply in history.report[str(number)]:
        assert reply["failure"]["site"] in SITES


@pytest.mark.parametrize("number", (*TAKEN_OUT, *BOXED))
def test_the_run_goes_on_where_nothing_is_hidden_in_a_reply(history: History, number: int) -> None:
    for reply in history.report[str(number)]:
        assert not reply["failure"]
        assert reply["group"] == str(number)


def test_a_process_at_a_site_reaches_nothing_but_its_gate(history: History) -> None:
    nothing = [
        {"read": False, "other": False},
        {"reached": []},
        {"supernodes": [], "traced": False},
        {"task": 0},
    ]
    for told in history.found.values():
        assert told[: len(nothing)] == nothing
        assert set(told[len(nothing)]["written"]) <= {"clients"}  # its own copy of the bundle
    assert not history.written


def test_low_bits_of_weights_do_not_leave_where_mantissas_are_rounded(history: History) -> None:
    assert sorted(reply["low bits"] for reply in history.report["31"]) == [0, 1]


def test_what_a_task_starts_ends_with_its_run(history: History) -> None:
    assert len(history.found) == len(SITES)
    assert not history.daemons


def test_the_ledger_has_a_line_for_each_message_and_verifies(history: History) -> None:
    for path in history.ledgers.values():
        assert verify(path) == []
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        refused = [line["why"] for line in lines if line.get("decision") == "refused"]
        assert len(refused) >= 1 + len(HELD_BACK) - 2 + 1  # errors of the app's own are sent
        assert any("create-task" in why for why in refused)
        assert any("not approved" in why for why in refused)


def test_a_forged_ledger_does_not_verify(history: History, tmp_path: Path) -> None:
    lines = history.ledgers["north"].read_text().splitlines(keepends=True)
    forged = tmp_path / "ledger.jsonl"
    forged.write_text("".join(lines).replace('"refused"', '"sent"', 1))
    assert forged.read_text() != "".join(lines)
    assert verify(forged)


def test_a_supernode_hands_out_no_task_without_the_sites_secret(history: History) -> None:
    assert set(history.answers_to_a_thief.values()) == {401}


def test_no_command_line_at_a_site_holds_a_token(history: History) -> None:
    assert any("clients.gateway" in line for line in history.command_lines)
    assert not [line for line in history.command_lines if re.search("[0-9a-f]{64}", line)]


def test_death_of_flowers_supernode_ends_the_command_with_an_error(history: History) -> None:
    assert history.exit_code == 1
    assert "Flower's SuperNode ended" in history.logs["island"]


def test_a_killed_command_leaves_neither_processes_nor_folders(history: History) -> None:
    assert not history.processes_left
    assert not history.folders_left
