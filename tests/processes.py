"""Start commands as a user does, and see what they leave behind."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil

SCRIPTS = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
MARK = "FEDSCAN_TEST"  # in the environment of everything that the tests start
OURS = ("flower-", "flwr", "ray::", "raylet", "gcs_server", "/ray/")


def environment(cache: Path, **extra: str) -> dict[str, str]:
    """Return this environment with its commands on the path, offline, with a cache of its own."""
    from simulations.launch import OFFLINE

    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **OFFLINE, "PATH": path, **caches(cache), **extra}


def caches(cache: Path) -> dict[str, str]:
    """Keep what a site stores out of the user's home."""
    records = str(cache / "records")
    return {"FEDSCAN_CACHE": str(cache), "FEDSCAN_RECORDS": records, MARK: str(os.getpid())}


def fedscan(*arguments: str, cwd: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run ``fedscan`` to its end."""
    return subprocess.run(
        [str(SCRIPTS / "fedscan"), *arguments],
        cwd=cwd,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def flower_processes() -> set[int]:
    """Numbers of the processes of Flower and Ray that these tests started."""
    found = set()
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        command = " ".join(process.info["cmdline"] or [])
        head = command.split(" -")[0][:200]
        if "simulations.leash" in command or any(word in head for word in OURS):
            # Others may run Flower on this machine. A Ray worker overwrites its environment with
            # its title, but it is not there without its raylet.
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == str(os.getpid()):
                    found.add(process.info["pid"])
    return found


def wait_until_gone(before: set[int], seconds: float = 30.0) -> set[int]:
    """Return the processes of Flower and Ray that are not in ``before``, after a grace."""
    deadline = time.monotonic() + seconds
    while (left := flower_processes() - before) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def modes_of_others(folder: Path) -> dict[str, str]:
    """Return what of a tree other users have rights on, or its owner has not all of."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o700 if path.is_dir() else 0o600):
            found[str(path.relative_to(folder))] = oct(mode)
    return found
