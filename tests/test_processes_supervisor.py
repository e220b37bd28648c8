"""Nothing in a group outlives the one who started it, or is reached from outside of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import WITHOUT_NAMESPACES, kill_with_supervisor, listening, reached_from_outside

from common.processes import namespaces

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
GROUP = [sys.executable, "-m", "common.processes.supervisor"]
# Starts a process that detaches itself as Flower's SuperLink does, ignores SIGTERM and listens;
# then ends, or waits.
RUNAWAY = """
import subprocess, sys, time
subprocess.Popen(
    [sys.executable, "-c",
     "import signal, socket, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
     "server = socket.create_server(('127.0.0.1', 0)); time.sleep(600)", "runaway"],
    start_new_session=True,
)
time.sleep(float(sys.argv[1])); sys.exit(7)
"""
HOLDER = "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()"


def runaway_of(holder: subprocess.Popen) -> psutil.Process:
    """Wait for the runaway among the descendants to listen; its number there may be another."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in psutil.Process(holder.pid).children(recursive=True):
            try:
                if process.cmdline()[-1:] == ["runaway"] and listening(process):
                    return process
            except psutil.Error:  # it has ended since
                continue
        time.sleep(0.05)
    raise AssertionError("no runaway")


def start(
    seconds: float, *options: str, prefix: list[str] = ()
) -> tuple[subprocess.Popen, psutil.Process]:
    """Start a runaway in a group, with options or more words before its command."""
    group = subprocess.Popen(
        [*prefix, *GROUP, *options, sys.executable, "-c", RUNAWAY, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return group, runaway_of(group)


def end(group: subprocess.Popen) -> None:
    group.stdin.close()
    assert group.wait(timeout=30) == 0
    group.stdout.close()


@pytest.fixture
def processes_isolated() -> None:
    """Skip where the kernel does not end a group with its supervisor."""
    if not namespaces.possible() & namespaces.PROCESSES:
        pytest.skip("this system grants no process namespaces")


@pytest.mark.parametrize("prefix", [[], WITHOUT_NAMESPACES], ids=["isolated", "shared"])
def test_it_tells_the_exit_code_and_ends_a_detached_orphan(prefix: list[str]) -> None:
    group, runaway = start(0, prefix=prefix)
    isolated = namespaces.possible() and not prefix
    assert group.stdout.readline() == ("isolated\n" if isolated else "shared\n")
    assert group.stdout.readline() == "exit 7\n"
    assert runaway.is_running()
    end(group)
    assert not runaway.is_running()


@pytest.mark.parametrize("prefix", [[], WITHOUT_NAMESPACES], ids=["isolated", "shared"])
def test_it_ends_everything_when_its_holder_is_killed(prefix: list[str]) -> None:
    command = [*prefix, *GROUP, sys.executable, "-c", RUNAWAY, "600"]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, *command], stdout=subprocess.DEVNULL)
    runaway_of(holder)
    family = psutil.Process(holder.pid).children(recursive=True)
    holder.kill()
    holder.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def test_it_ends_everything_when_holder_and_supervisor_are_killed_together(
    processes_isolated: None, tmp_path: Path
) -> None:
    folder = tmp_path / "flower"
    folder.mkdir()
    command = [*GROUP, "--remove", str(folder), sys.executable, "-c", RUNAWAY, "600"]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, *command], stdout=subprocess.DEVNULL)
    runaway_of(holder)
    family = psutil.Process(holder.pid).children(recursive=True)
    kill_with_supervisor(holder.pid)
    holder.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert not folder.exists()


def test_the_kernel_ends_everything_when_all_who_could_are_killed(processes_isolated: None) -> None:
    command = [*GROUP, sys.executable, "-c", RUNAWAY, "600"]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, *command], stdout=subprocess.DEVNULL)
    runaway_of(holder)
    family = psutil.Process(holder.pid).children(recursive=True)
    killed = [psutil.Process(holder.pid)]
    killed += [p for p in family if "common.processes.supervisor" in p.cmdline()]
    assert len(killed) == 3
    for process in killed:
        process.suspend()
    for process in killed:
        process.kill()
    holder.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive


@pytest.mark.parametrize("prefix", [[], WITHOUT_NAMESPACES], ids=["isolated", "shared"])
def test_terminating_the_group_ends_its_command(prefix: list[str]) -> None:
    group, runaway = start(600, prefix=prefix)
    group.terminate()
    assert group.wait(timeout=30) == 0
    assert not runaway.is_running()
    group.stdin.close()
    group.stdout.close()


@pytest.mark.parametrize("prefix", [[], WITHOUT_NAMESPACES], ids=["isolated", "shared"])
def test_a_group_within_a_group_removes_its_own_folder(prefix: list[str], tmp_path: Path) -> None:
    """A benchmark's cell holds one for its federation: it must come to the end of its work."""
    folder = tmp_path / "flower"
    folder.mkdir()
    for number in range(5000):  # which takes a while to remove
        (folder / str(number)).touch()
    inner = [*GROUP, "--remove", str(folder)]
    # What holds the inner one's input goes first, as a cell does.
    group, runaway = start(600, sys.executable, "-c", HOLDER, *inner, prefix=prefix)
    group.stdin.close()
    assert group.wait(timeout=60) == 0
    assert not runaway.is_running()
    assert not folder.exists()
    group.stdout.close()


def test_what_listens_in_a_group_is_reached_from_within_alone() -> None:
    if not namespaces.possible():
        pytest.skip("this system grants no network namespaces")
    code = (
        "import socket, sys\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname(), timeout=5).close()\n"
        "sys.exit(5)"
    )
    group, runaway = start(0)
    assert not reached_from_outside({port for _, port in listening(runaway)})
    end(group)
    done = subprocess.Popen(
        [*GROUP, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert done.stdout.readline() + done.stdout.readline() == b"isolated\nexit 5\n"
    end(done)


def test_a_group_that_shares_all_sees_other_processes_and_is_told_to_share_the_network() -> None:
    code = "import psutil, sys; sys.exit(psutil.pid_exists(int(sys.argv[1])))"
    command = [*GROUP, "--share-all", sys.executable, "-c", code, str(os.getpid())]
    group = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert group.stdout.readline() + group.stdout.readline() == b"shared\nexit 1\n"
    end(group)


def test_user_and_group_keep_their_numbers_and_files_their_owner(tmp_path: Path) -> None:
    made = tmp_path / "made"
    code = (
        "import os, sys, pathlib\n"
        "pathlib.Path(sys.argv[1]).write_text(f'{os.getuid()} {os.getgid()}')"
    )
    group = subprocess.Popen(
        [*GROUP, sys.executable, "-c", code, str(made)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    group.stdout.readline()
    assert group.stdout.readline() == b"exit 0\n"
    end(group)
    assert made.read_text() == f"{os.getuid()} {os.getgid()}"
    assert made.stat().st_uid == os.getuid()


def test_the_command_has_not_ended_before_what_is_waited_for() -> None:
    group, runaway = start(0, "--until-ended", "runaway")
    group.stdout.readline()
    os.set_blocking(group.stdout.fileno(), False)
    time.sleep(1.5)  # the command itself takes a moment
    assert group.stdout.readline() == ""
    runaway.kill()
    os.set_blocking(group.stdout.fileno(), True)
    assert group.stdout.readline() == "exit 7\n"
    end(group)
