"""Start commands as a user does, and see what they leave behind."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pandas as pd
import psutil
import pytest

from common.processes import namespaces
from simulations.federate import MOST_OPENED

SCRIPTS = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
MARK = "FEDSCAN_TEST"  # in the environment of everything that the tests start
WITHOUT_NAMESPACES = [sys.executable, str(ROOT / "tests" / "without_namespaces.py")]
OURS = ("flower-", "flwr", "ray::", "raylet", "gcs_server", "/ray/")


def environment(cache: Path, **extra: str) -> dict[str, str]:
    """Return this environment with its commands on the path, offline, with a cache of its own."""
    from common.processes.environment import OFFLINE

    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **OFFLINE, "PATH": path, **caches(cache), **extra}


def caches(cache: Path) -> dict[str, str]:
    """Keep what a site stores out of the user's home."""
    records = str(cache / "records")
    return {"FEDSCAN_CACHE": str(cache), "FEDSCAN_RECORDS": records, MARK: str(os.getpid())}


def fedscan(
    *arguments: str, cwd: Path, cache: Path, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run ``fedscan`` to its end."""
    return subprocess.run(
        [str(SCRIPTS / "fedscan"), *arguments],
        cwd=cwd,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def fedscan_here(
    *arguments: str, cwd: Path, cache: Path, **extra: str
) -> subprocess.CompletedProcess[str]:
    """As :func:`fedscan`, but in this process, which saves the seconds that imports take."""
    from simulations.cli import main
    from simulations.stopping import STOP

    handlers = {number: signal.getsignal(number) for number in STOP}
    os.umask(umask := os.umask(0))  # the command sets its own
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: str | int | None = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["fedscan", *arguments])
        for name, value in {**caches(cache), **extra}.items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            os.umask(umask)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    told = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess(["fedscan", *arguments], code or 0, *told)


def break_split(site: Path, split: str, content: bytes) -> None:
    """Break all scans of a split, of which there are more than a command opens beforehand."""
    path = site / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str)
    more = table.query("split == @split").iloc[[0] * (MOST_OPENED + 1)]
    more = more.assign(participant_id=[f"sub-more{k}" for k in range(len(more))])
    table = pd.concat([table, more])
    table.to_csv(path, sep="\t", index=False)
    for name in table.query("split == @split").participant_id:
        scan = site / name / "anat" / f"{name}_T1w.nii.gz"
        scan.parent.mkdir(parents=True, exist_ok=True)
        scan.write_bytes(content)


def flower_processes() -> set[int]:
    """Numbers of the processes of Flower and Ray that these tests started."""
    found = set()
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        command = " ".join(process.info["cmdline"] or [])
        head = command.split(" -")[0][:200]
        ours = ("common.processes.supervisor", "clients.gateway.flower_supernode")
        if any(word in command for word in ours) or any(word in head for word in OURS):
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
        time.sleep(0.1)
    return left


def modes_of_others(folder: Path) -> dict[str, str]:
    """Return what of a tree other users have rights on, or its owner has not all of."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o700 if path.is_dir() else 0o600):
            found[str(path.relative_to(folder))] = oct(mode)
    return found


def kill_with_supervisor(launcher: int) -> None:
    """Kill a process and what it has started to look after its group, all in one moment.

    Where there are no namespaces nothing could end the group then: the launcher is killed alone.
    """
    killed = [psutil.Process(launcher)]
    if namespaces.possible() & namespaces.PROCESSES:
        killed += killed[0].children()
    for process in killed:  # none of them sees another one's end
        process.suspend()
    for process in killed:
        process.kill()


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Return the addresses that a process, also in another network namespace, listens on."""
    if sys.platform != "linux":
        found = process.net_connections("tcp")
        return {(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN}
    own = Path(f"/proc/{process.pid}")
    with contextlib.suppress(OSError):  # it may just have ended
        links = {str(file.readlink()) for file in (own / "fd").iterdir()}
        lines = [
            line.split()
            for table in ("tcp", "tcp6")
            for line in (own / "net" / table).read_text().splitlines()[1:]
        ]
        return {
            (_address(local), int(local.rpartition(":")[2], 16))
            for _, local, _, state, _, _, _, _, _, inode, *_ in lines
            if state == "0A" and f"socket:[{inode}]" in links
        }
    return set()


def _address(local: str) -> str:
    """Read an address from the kernel's table: words of 32 bits, each in this machine's order."""
    digits = local.partition(":")[0]
    words = [bytes.fromhex(digits[k : k + 8]) for k in range(0, len(digits), 8)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    address = ipaddress.ip_address(b"".join(words))
    return str(getattr(address, "ipv4_mapped", None) or address)


def reached_from_outside(ports: set[int]) -> set[int]:
    """Return the ports of this machine that another user, or where we may be none, we can reach."""
    code = (
        "import socket, sys\n"
        "for port in map(int, sys.argv[1:]):\n"
        "    with socket.socket() as probe:\n"
        "        probe.settimeout(5)\n"
        "        if probe.connect_ex(('127.0.0.1', port)) == 0: print(port)\n"
    )
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
    # The system's Python, if there is one, since ours may lie where nobody else can read.
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin") or sys.executable
    command = [python, "-I", "-c", code, *map(str, ports)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True, **nobody)
    return set(map(int, done.stdout.split()))


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
        time.sleep(0.1)
    raise TimeoutError(f"{url} did not answer")


def wait_for_line(log: Path, line: str, seconds: float = 90.0) -> None:
    """Wait until a log holds a text."""
    deadline = time.monotonic() + seconds
    while line not in log.read_text(errors="replace"):
        if time.monotonic() > deadline:
            raise TimeoutError(log.read_text(errors="replace"))
        time.sleep(0.1)


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
