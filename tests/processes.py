"""Start commands as a user does, and see what they leave behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
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


@contextlib.contextmanager
def process(
    name: str, *arguments: str, home: Path, cache: Path, **extra: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Keep a command running, with a ``FLWR_HOME`` of its own; yield it and the path of its log."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / f"{name}.log"
    with log.open("w") as file:
        started = subprocess.Popen(
            [str(SCRIPTS / name), *arguments],
            cwd=home,
            env=environment(cache, FLWR_HOME=str(home), **extra),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield started, log
    finally:
        started.terminate()
        try:
            started.wait(timeout=30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def wait_for_health(url: str, **options: object) -> None:
    """Wait until a SuperLink or SuperNode answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=2, **options).is_success:
                return
        time.sleep(0.3)
    raise TimeoutError(f"{url} did not answer")


def wait_for_line(log: Path, line: str, seconds: float = 90.0) -> None:
    """Wait until a log holds a text."""
    deadline = time.monotonic() + seconds
    while line not in log.read_text(errors="replace"):
        if time.monotonic() > deadline:
            raise TimeoutError(log.read_text(errors="replace"))
        time.sleep(0.3)


def flwr_run(
    app: Path, connection: str, overrides: list[str], *, home: Path, cache: Path
) -> subprocess.CompletedProcess[str]:
    """Run an app as a researcher does; ``connection`` is the TOML of the SuperLink's entry."""
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(f"[superlink.hospitals]\n{connection}\n")
    (home / "overrides.toml").write_text("\n".join(overrides))
    return subprocess.run(
        [str(SCRIPTS / "flwr"), "run", str(app), "hospitals", "--stream"]
        + ["--run-config", str(home / "overrides.toml")],
        cwd=home,
        env=environment(cache, FLWR_HOME=str(home)),
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
