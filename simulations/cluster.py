"""A Ray cluster that the user has started and names: whether it is there, and what its nodes have.

``python -m simulations.cluster HOST:PORT`` prints the resources of its nodes as JSON. It is a
process of its own, since Ray takes over the signals of one that joins a cluster.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

from common.errors import ConfigError
from common.processes.environment import python_path

CONNECT_SECONDS, JOIN_SECONDS = 10.0, 60.0


def require_cluster(address: str, cpus: int, gpus: float, whose: str) -> None:
    """Refuse an address where no cluster is, or one of which no node has what a site or cell needs.

    Parameters
    ----------
    address : str
    cpus : int
    gpus : float
    whose : {"site", "cell"}
        What has the CPUs and GPUs, as the command line calls it.

    Raises
    ------
    ConfigError
    """
    option = f"--ray-address {address}"
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{option}: accepted is HOST:PORT, as `ray start --head` prints it")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{option}: nobody answers there ({error}). Start Ray with `ray start --head`"
        ) from None
    nodes = _nodes(address)
    if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
        raise ConfigError(
            f"{option}: no node has {cpus} CPUs and {gpus:g} GPUs for a {whose}. Lower --set "
            f"run.threads or --gpus-per-{whose}, or start a larger node"
        )


def _nodes(address: str) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "simulations.cluster", address]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": python_path()},
            capture_output=True,
            text=True,
            timeout=JOIN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        why = f"it did not answer within {JOIN_SECONDS:.0f} seconds"
    else:
        if not done.returncode:
            return json.loads(done.stdout)
        why = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
    raise ConfigError(
        f"--ray-address {address}: this machine cannot join the cluster: {why}. It has to be a "
        "node of it (`ray start --address`), with the same versions of Python and Ray, and with "
        "the cluster's RAY_AUTH_TOKEN where it has one"
    )


def main() -> None:
    """Join a cluster, print what its nodes have, and leave it."""
    import ray

    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sys.stdout.write(json.dumps(nodes))
    ray.shutdown()


if __name__ == "__main__":
    main()
