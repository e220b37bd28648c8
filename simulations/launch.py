"""Start ``flwr run`` in a neutral place, follow it, and leave nothing behind.

Flower's engine does the work. What is added here: the switches that keep Flower offline, a port and
a ``FLWR_HOME`` of the run's own (Flower would reuse any SuperLink that answers on its port, with
whatever code that one was started in), a password for Ray, a network that no other user reaches,
and an end to every process.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.config.run_config import RunConfig
from common.errors import ConfigError
from common.files import write_atomically, write_json
from common.machine import usable_cpus
from common.processes.environment import APP, free_port, neutral_home, offline_environment, toml
from common.processes.group import ProcessGroup, process_group
from common.sites import PHANTOM_FOLDERS
from simulations.cluster import require_cluster

SIMULATION = "flwr-simulation"  # the process that a run lives in
TOO_SLOW = "Failed to start local SuperLink within"  # what `flwr run` then says
RAY_TOO_SLOW = "current node timed out during startup"  # the same of Ray
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
    ray_address : str
        Of a Ray cluster that the user has started; empty for one of the run's own.
    """

    sites: int
    cpus_per_site: int = 1
    gpus_per_site: float = 0.0
    cpus: int | None = None
    ray_address: str = ""

    def federation_config(self) -> str:
        """Return Flower's ``--federation-config``."""
        words = [
            f"num-supernodes={self.sites}",
            f"client-resources-num-cpus={self.cpus_per_site}",
            f"client-resources-num-gpus={float(self.gpus_per_site)}",
        ]
        if not self.ray_address:  # a cluster has its CPUs already
            # Of these Flower makes as many processes as can be, also where there are fewer sites.
            enough = self.sites * self.cpus_per_site
            words.append(f"init-args-num-cpus={min(self.cpus or places(), enough)}")
        return " ".join(words)

    def check(self, whose: str = "site") -> None:
        """Refuse what this machine, or the cluster, does not have, before anything is started.

        Parameters
        ----------
        whose : {"site", "cell"}
            What has the CPUs and GPUs, as the command line calls it.

        Raises
        ------
        ConfigError
            Naming the number that cannot be had.
        """
        if self.ray_address:
            require_cluster(self.ray_address, self.cpus_per_site, self.gpus_per_site, whose)
            return
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
    "Warning: this system grants no network namespaces, or --ray-address is given, so while this "
    "runs, every user of this machine can reach Flower's server, which has no password, and run "
    "programs as you through it. Use a machine that you share with nobody, or allow user "
    "namespaces on it and leave --ray-address out"
)


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

    def save_logs(self, folder: Path) -> None:
        """Keep this log, and those of separate processes, in the run's folder."""
        for path in self.log_path.parent.glob("*.log"):
            text = _COLOUR.sub("", path.read_text(errors="replace"))
            write_atomically(folder / path.name, text.encode())

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
        If the machine lacks what is asked for.
    """
    resources.check()
    with neutral_home() as home:
        port = free_port()
        environment = {
            **offline_environment(home, resources.ray_address),
            "FLWR_HOME": str(home / "flwr"),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
            "FLWR_LOCAL_CONTROL_API_PORT": str(free_port(taken=port)),
        }
        if phantoms:
            environment[PHANTOM_FOLDERS] = str(home / "phantoms.json")
            write_json(home / "phantoms.json", {name: str(at) for name, at in phantoms.items()})
        overrides = home / "run-config.toml"
        write_atomically(overrides, toml(config.to_flower()).encode())
        command = [sys.executable, "-m", "simulations.flower_command", "run", str(APP)]
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
            # Ray looks among this machine's processes for the node to join.
            share_all=bool(resources.ray_address),
        ) as group:
            yield FlowerRun(log_path, group)
