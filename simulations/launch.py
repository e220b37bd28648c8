"""Start ``flwr run`` in a neutral place, follow it, and leave nothing behind.

Flower's engine does the work. What is added here: the switches that keep Flower offline, a port and
a ``FLWR_HOME`` of the run's own (Flower would reuse any SuperLink that answers on its port, with
whatever code that one was started in), a final status, and an end to every process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.config import RunConfig
from common.errors import ConfigError, FedscanError
from common.machine import usable_cpus

OFFLINE = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else `uv sync` before every run
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
STATUS_SECONDS = 120.0
TOO_SLOW = "Failed to start local SuperLink within"  # what `flwr run` then says
ROOT = Path(__file__).parents[1]
_STARTED = re.compile(r"Successfully started run (\d+)")


@dataclass(frozen=True)
class Resources:
    """What a simulation asks for.

    Parameters
    ----------
    sites : int
        Simulated SuperNodes.
    cpus_per_site : int
    gpus_per_site : float
        Share of a GPU; 0 for none.
    cpus : int or None
        CPUs that Ray may use in all; None for every usable one.
    """

    sites: int
    cpus_per_site: int = 1
    gpus_per_site: float = 0.0
    cpus: int | None = None

    def federation_config(self) -> str:
        """Return Flower's ``--federation-config``."""
        words = [
            f"num-supernodes={self.sites}",
            f"client-resources-num-cpus={self.cpus_per_site}",
            f"client-resources-num-gpus={float(self.gpus_per_site)}",
            f"init-args-num-cpus={self.cpus or usable_cpus()}",
        ]
        return " ".join(words)

    def check(self, whose: str = "site") -> None:
        """Refuse what this machine does not have, before anything is started.

        Parameters
        ----------
        whose : {"site", "cell"}
            What has the CPUs and GPUs, as the command line calls it.

        Raises
        ------
        ConfigError
            Naming the number that cannot be had.
        """
        have = usable_cpus()
        if self.cpus is not None and self.cpus > have:
            raise ConfigError(f"{self.cpus} CPUs cannot be had: this machine has {have}")
        available = self.cpus or have
        if self.cpus_per_site > available:
            raise ConfigError(
                f"{self.cpus_per_site} CPUs a {whose} cannot be had: {available} are available. "
                "Lower --set threads"
            )
        if self.gpus_per_site > 0:
            import torch

            gpus = torch.cuda.device_count()
            if self.gpus_per_site > gpus:
                raise ConfigError(
                    f"{self.gpus_per_site:g} GPUs a {whose} cannot be had: this machine has {gpus} "
                    f"that PyTorch can use. Leave --gpus-per-{whose} out to run on the CPU"
                )


class Leashed:
    """A command on the leash: see :mod:`simulations.leash`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Number of the leash, the first ancestor of everything that the command starts."""
        return self._process.pid

    def ended(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds; say whether the command has ended."""
        import select

        if self._process.poll() is not None:
            return True
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        return bool(ready)


@contextlib.contextmanager
def leashed(
    command: list[str], *, cwd: Path, environment: Mapping[str, str], log_path: Path | None = None
) -> Iterator[Leashed]:
    """Run a command; on leaving, end it and all that it started.

    That holds however the block is left, and when this very process is killed; then the folder
    ``cwd``, which is the command's own, is removed too. Its output goes to a file, or without one
    to this process's standard error.
    """
    with contextlib.nullcontext() if log_path is None else log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "simulations.leash", "--remove", str(cwd), *command],
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C reaches us, and we close the leash's input
        )
    try:
        yield Leashed(process)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@dataclass
class FlowerRun:
    """A run in progress: its id as soon as it has one, its exit code once it has ended."""

    log_path: Path
    _environment: Mapping[str, str]
    _leash: Leashed
    _home: Path

    def run_id(self) -> str | None:
        """Flower's number of the run, or None before Flower gave one."""
        found = _STARTED.search(self.log())
        return found.group(1) if found else None

    def log(self) -> str:
        """Everything that ``flwr run --stream`` has printed so far."""
        return self.log_path.read_text(errors="replace")

    def ended(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds; say whether ``flwr run`` has ended."""
        return self._leash.ended(timeout)

    def succeeded(self) -> bool:
        """Ask Flower for the run's final status: ``flwr run --stream`` exits 0 even on failure.

        Raises
        ------
        FedscanError
            If Flower tells no final status for two minutes.
        """
        run_id = self.run_id()
        if run_id is None:
            return False
        deadline = time.monotonic() + STATUS_SECONDS
        while True:  # the log may end a moment before the status is final
            status = self._status(run_id)
            if status.startswith("finished"):
                return status == "finished:completed"
            if time.monotonic() > deadline:
                raise FedscanError(
                    f"Flower's log ended, but of run {run_id} it says {status or 'nothing'}"
                )
            time.sleep(1.0)

    def _status(self, run_id: str) -> str:
        """Return the status; empty where a busy machine keeps Flower from telling it."""
        try:
            return str(json.loads(self._ask_status(run_id).stdout)["runs"][0]["status"])
        except (subprocess.TimeoutExpired, ValueError, LookupError):
            return ""

    def _ask_status(self, run_id: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_flwr(), "list", "--run-id", run_id, "--format", "json"],
            env=self._environment,
            cwd=self._home,
            capture_output=True,
            text=True,
            timeout=STATUS_SECONDS / 3,
            check=False,
        )


@contextlib.contextmanager
def flower_run(config: RunConfig, resources: Resources) -> Iterator[FlowerRun]:
    """Start ``flwr run`` for a simulation; on leaving, however that happens, all of it is ended.

    Parameters
    ----------
    config : RunConfig
    resources : Resources

    Yields
    ------
    FlowerRun

    Raises
    ------
    ConfigError
        If fedscan was not installed from its folder, or the machine lacks what is asked for.
    """
    if not (ROOT / "pyproject.toml").is_file():
        raise ConfigError(
            "Flower runs fedscan from its folder. Install it with `pip install -e .` there"
        )
    resources.check()
    with neutral_home() as home:
        port = free_port()
        environment = {
            **offline_environment(home),
            "FLWR_HOME": str(home / "flwr"),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
            "FLWR_LOCAL_CONTROL_API_PORT": str(free_port(taken=port)),
        }
        overrides = home / "run-config.toml"
        overrides.write_text(toml(config.to_flower()), encoding="utf-8")
        command = [_flwr(), "run", str(ROOT), "--stream", "--run-config", str(overrides)]
        command += ["--federation-config", resources.federation_config()]
        log_path = home / "flower.log"
        # A neutral folder: Ray's workers may import what lies in the working directory.
        with leashed(command, cwd=home, environment=environment, log_path=log_path) as leash:
            yield FlowerRun(log_path, environment, leash, home)


@contextlib.contextmanager
def neutral_home() -> Iterator[Path]:
    """Make a folder for what Flower and Ray leave on disk, and remove it with all of that."""
    # Short: Ray keeps Unix sockets below it, and their paths may have 107 characters.
    home = Path(tempfile.mkdtemp(prefix="fedscan-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def offline_environment(home: Path) -> dict[str, str]:
    """Return the environment for Flower and Ray: offline, this Python's commands, disk at home."""
    # Within a Ray worker (a benchmark's cell), what that Ray tells its workers is not for ours.
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key != "RAY_ADDRESS"  # a cluster that the user has elsewhere is not ours to use
        and ("RAY_JOB_ID" not in os.environ or not key.startswith("RAY_"))
    }
    return {
        **inherited,
        **OFFLINE,
        # Flower finds its own commands by PATH, which need not hold this environment.
        "PATH": f"{scripts()}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "RAY_TMPDIR": str(home),
        "RAY_DEDUP_LOGS": "0",
        "PYTHONUNBUFFERED": "1",
    }


def scripts() -> Path:
    """Folder of this very environment's commands, wherever PATH points."""
    return Path(sys.executable).parent


def _flwr() -> str:
    return str(scripts() / "flwr")


def free_port(taken: int = 0) -> int:
    """Find a port of this machine that nobody listens on, other than ``taken``."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := probe.getsockname()[1]) != taken:
                return port


def toml(values: Mapping[str, bool | int | float | str]) -> str:
    """Write values as TOML, for Flower to read.

    Raises
    ------
    ConfigError
        For a text that is no UTF-8, such as some paths.
    """
    # JSON's bools, numbers and strings are TOML's too, but for escaped pairs of surrogates.
    text = "".join(f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in values.items())
    text = text.replace("\x7f", "\\u007f")  # which JSON leaves as it is, and TOML forbids
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError("a path is not UTF-8, and Flower takes nothing else: rename the folder")
    return text
