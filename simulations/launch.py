"""Start ``flwr run`` in a neutral place, follow it, and leave nothing behind.

Flower's engine does the work. What is added here: the switches that keep Flower offline, a port and
a ``FLWR_HOME`` of the run's own (Flower would reuse any SuperLink that answers on its port, with
whatever code that one was started in), a password for Ray, a network that no other user reaches,
and an end to every process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.config.run_config import RunConfig
from common.errors import ConfigError
from common.files import write_atomically, write_json
from common.machine import usable_cpus
from common.sites import PHANTOM_FOLDERS
from simulations.process_group import SHARED

OFFLINE = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else `uv sync` before every run
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
SIMULATION = "flwr-simulation"  # the process that a run lives in
TOO_SLOW = "Failed to start local SuperLink within"  # what `flwr run` then says
RAY_TOO_SLOW = "current node timed out during startup"  # the same of Ray
ROOT = Path(__file__).parents[1]
_STARTED = re.compile(r"Successfully started run (\d+)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


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
        CPUs that Ray may use in all; None for :func:`places`.
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
            f"init-args-num-cpus={self.cpus or places()}",
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
                "Lower --set run.threads"
            )
        if self.gpus_per_site > 0:
            import torch

            gpus = torch.cuda.device_count()
            if self.gpus_per_site > gpus:
                raise ConfigError(
                    f"{self.gpus_per_site:g} GPUs a {whose} cannot be had: this machine has {gpus} "
                    f"that PyTorch can use. Leave --gpus-per-{whose} out to run on the CPU"
                )


def places() -> int:
    """Count the single-threaded processes to run side by side: one more than usable CPUs.

    Three equal sites or cells on two CPUs, two at a time, leave one CPU idle for the third's time;
    side by side all end together. What one waits for, such as a message, another computes.
    """
    return usable_cpus() + 1


SHARED_NETWORK = (
    "Warning: this system grants no network namespaces, so while this runs, every user of this "
    "machine can reach Flower's server, which has no password, and run programs as you through it. "
    "Use a machine that you share with nobody, or allow user namespaces on it"
)


class ProcessGroup:
    """A command and all that it started: see :mod:`simulations.process_group`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        # False also of one that has ended before it could say so.
        self.shares_network = process.stdout.readline() == f"{SHARED}\n".encode()

    @property
    def pid(self) -> int:
        """Number of the first ancestor of everything that the command starts."""
        return self._process.pid

    def ended(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds; say whether the command has ended."""
        import select

        if self._process.poll() is not None:
            return True
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        return bool(ready)


@contextlib.contextmanager
def process_group(
    command: list[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log_path: Path | None = None,
    until_ended: str | None = None,
    share_network: bool = False,
    stderr: int | None = None,
) -> Iterator[ProcessGroup]:
    """Run a command; on leaving, end it and all that it started.

    That holds however the block is left, and when this very process is killed; then the folder
    ``cwd``, which is the command's own, is removed too.

    Parameters
    ----------
    command : list of str
    cwd : Path
    environment : mapping of str to str
    log_path : Path, optional
        File for the command's output; without one it goes to this process's standard error.
    until_ended : str, optional
        The command has not ended before every process that it started with this in its command
        line has.
    share_network : bool
        The command is to reach this machine's network.
    stderr : int, optional
        Descriptor for the command's output, where it goes to no file.

    Yields
    ------
    ProcessGroup
    """
    options = ["--remove", str(cwd)]
    if until_ended:
        options += ["--until-ended", until_ended]
    if share_network:
        options.append("--share-network")
    if log_path:
        write_atomically(log_path, b"")  # for its owner alone: a traceback may name scans
    with log_path.open("w") if log_path else contextlib.nullcontext() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "simulations.process_group", *options, *command],
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log or stderr,
            bufsize=0,  # what has been read is not to hide from select
            start_new_session=True,  # Ctrl-C reaches us, and we close the group's input
        )
    try:
        yield ProcessGroup(process)
    finally:
        process.stdin.close()
        process.stdout.read()  # until the last supervisor has ended, even if the first was killed
        process.wait()
        process.stdout.close()


@dataclass
class FlowerRun:
    """A run in progress: its id as soon as it has one, and whether it has ended."""

    log_path: Path
    _group: ProcessGroup

    def run_id(self) -> str | None:
        """Flower's number of the run, or None before Flower gave one."""
        found = _STARTED.search(self.log())
        return found.group(1) if found else None

    def log(self) -> str:
        """Everything that ``flwr run --stream`` has printed so far, without colours."""
        return _COLOUR.sub("", self.log_path.read_text(errors="replace"))

    def ended(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds; say whether the run has ended, well or not."""
        return self._group.ended(timeout)

    @property
    def shares_network(self) -> bool:
        """Whether other users of this machine can connect to what the run listens on."""
        return self._group.shares_network


@contextlib.contextmanager
def flower_run(
    config: RunConfig, resources: Resources, phantoms: Mapping[str, Path] | None = None
) -> Iterator[FlowerRun]:
    """Start ``flwr run`` for a simulation; on leaving, however that happens, all of it is ended.

    Parameters
    ----------
    config : RunConfig
    resources : Resources
    phantoms : mapping of str to Path, optional
        Folder of each simulated hospital, where the run names no cohort.

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
        if phantoms:
            environment[PHANTOM_FOLDERS] = str(home / "phantoms.json")
            write_json(home / "phantoms.json", {name: str(at) for name, at in phantoms.items()})
        overrides = home / "run-config.toml"
        overrides.write_text(toml(config.to_flower()), encoding="utf-8")
        command = [sys.executable, "-m", "simulations.flower_command", "run", str(ROOT)]
        command += ["--stream", "--run-config", str(overrides)]
        command += ["--federation-config", resources.federation_config()]
        log_path = home / "flower.log"
        # A neutral folder: Ray's workers may import what lies in the working directory.
        with process_group(
            command,
            cwd=home,
            environment=environment,
            log_path=log_path,
            until_ended=SIMULATION,  # Flower's log may end before it
        ) as group:
            yield FlowerRun(log_path, group)


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
    """Return the environment for Flower and Ray.

    Offline, with this Python's commands, disk at home, and Ray on the loopback interface alone,
    with a new password, which every process that is to join has in its environment.
    """
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
        # Ray would have its workers give way to every other process: on a machine with other work
        # they get next to nothing, and a federation in a cell less than its neighbours.
        "RAY_worker_niceness": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: no address but 127.0.0.1
        "PYTHONUNBUFFERED": "1",
    }


def scripts() -> Path:
    """Folder of this very environment's commands, wherever PATH points."""
    return Path(sys.executable).parent


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
