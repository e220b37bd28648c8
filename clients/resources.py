"""What a site may compute with: the share that Ray granted, or the whole machine it runs on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.config.run_config import RunConfig
from common.errors import ConfigError
from common.machine import usable_cpus
from common.training.allocator import keep_freed_memory

if TYPE_CHECKING:
    import torch

PARTITION_KEYS = ("partition-id", "num-partitions")


@dataclass(frozen=True)
class Grant:
    """CPUs and GPUs of one client, as whole or fractional numbers."""

    cpus: float
    gpus: float


def in_simulation() -> bool:
    """Tell whether this process is an actor of Flower's Simulation Engine, that is, of Ray."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def declared(node_config: Mapping[str, object]) -> dict[str, object]:
    """Return what a node says of itself, less what only the Simulation Engine may say.

    A number instead of a name means that the server chooses the folder and is told everything. A
    hospital whose node config holds one, as in many examples of Flower, must not fall for that.
    """
    simulated = in_simulation()
    return {k: v for k, v in node_config.items() if simulated or k not in PARTITION_KEYS}


def granted() -> Grant:
    """Ask Ray for this actor's share; without Ray a site has its machine for itself.

    Flower's simulation does not tell a client what ``client-resources`` it was given. Ray does.
    """
    if in_simulation():
        share = sys.modules["ray"].get_runtime_context().get_assigned_resources()
        return Grant(share.get("CPU", 0.0), share.get("GPU", 0.0))
    import torch

    return Grant(float(usable_cpus()), 1.0 if torch.cuda.is_available() else 0.0)


@contextlib.contextmanager
def compute_device(config: RunConfig, share: Grant) -> Iterator[torch.device]:
    """Set threads and device for one call, and give a GPU's memory back after it.

    Memory of the processor that training frees stays with the process until it ends, since every
    step asks for the same again.

    Parameters
    ----------
    config : RunConfig
        ``threads`` is set whatever was granted, so that a result does not depend on the grant.
    share : Grant

    Raises
    ------
    ConfigError
        If fewer CPUs were granted than the run's threads need.
    """
    import torch

    if config.run.threads > max(share.cpus, 1):
        advice = f"Lower threads to at most {max(int(share.cpus), 1)}"
        if in_simulation():  # only there the researcher decides what a site is granted
            advice = (
                "Run with --federation-config "
                f'"client-resources-num-cpus={config.run.threads}", or '
                "fewer threads"
            )
        raise ConfigError(
            f"run.threads = {config.run.threads} but the site was granted {share.cpus:g} CPUs. "
            f"{advice}"
        )
    torch.set_num_threads(config.run.threads)
    keep_freed_memory()
    if config.run.device == "cpu" or share.gpus <= 0 or not torch.cuda.is_available():
        yield torch.device("cpu")
        return
    # Ray's fractions are for scheduling only: without this line one site could take all.
    torch.cuda.set_per_process_memory_fraction(min(share.gpus, 1.0))
    try:
        yield torch.device("cuda")
    finally:
        torch.cuda.empty_cache()
