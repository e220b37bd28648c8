"""Nothing on the leash outlives the one who holds it, whatever it does to get away."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

# Starts a process that detaches itself as Flower's SuperLink does, ignores SIGTERM, and tells its
# number; then ends, or waits.
RUNAWAY = """
import subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c",
     "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"],
    start_new_session=True,
)
print(child.pid, file=open(sys.argv[1] + ".part", "w"), flush=True)
import os; os.replace(sys.argv[1] + ".part", sys.argv[1])
time.sleep(float(sys.argv[2])); sys.exit(7)
"""


def start(tmp_path: Path, seconds: float, *words: str) -> tuple[subprocess.Popen, psutil.Process]:
    """Start a runaway on a leash, with more words before its command."""
    told = tmp_path / "pid"
    leash = subprocess.Popen(
        [sys.executable, "-m", "simulations.leash", *words, sys.executable, "-c", RUNAWAY]
        + [str(told), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return leash, psutil.Process(int(told.read_text()))


def test_it_tells_the_exit_code_and_ends_a_detached_orphan(tmp_path: Path) -> None:
    leash, runaway = start(tmp_path, 0)
    assert leash.stdout.readline() == "exit 7\n"
    assert runaway.is_running()  # questions can still be put to it
    leash.stdin.close()
    assert leash.wait(timeout=30) == 0
    assert not runaway.is_running()
    leash.stdout.close()


def test_it_ends_everything_when_its_holder_is_killed(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "leash = subprocess.Popen([sys.executable, '-m', 'simulations.leash', *sys.argv[1:]],\n"
        "                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "time.sleep(600)\n"
    )
    told = tmp_path / "pid"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, "-c", RUNAWAY, str(told), "600"]
    )
    deadline = time.monotonic() + 30
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    runaway = psutil.Process(int(told.read_text()))
    family = psutil.Process(holder.pid).children(recursive=True)
    holder.kill()
    holder.wait()
    _, alive = psutil.wait_procs([*family, runaway], timeout=30)
    assert not alive


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_terminating_the_leash_ends_its_command(tmp_path: Path) -> None:
    leash, runaway = start(tmp_path, 600)
    leash.terminate()
    assert leash.wait(timeout=30) == 0
    assert not runaway.is_running()
    leash.stdin.close()
    leash.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_leash_within_a_leash_removes_its_own_folder(tmp_path: Path) -> None:
    """A benchmark's cell holds one for its federation: it must come to the end of its work."""
    folder = tmp_path / "flower"
    folder.mkdir()
    for number in range(5000):  # which takes a while to remove
        (folder / str(number)).touch()
    inner = [sys.executable, "-m", "simulations.leash", "--remove", str(folder)]
    # What holds the inner one's input goes first, as a cell does.
    cell = "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()"
    leash, runaway = start(tmp_path, 600, sys.executable, "-c", cell, *inner)
    leash.stdin.close()
    assert leash.wait(timeout=30) == 0
    assert not runaway.is_running()
    assert not folder.exists()
    leash.stdout.close()
