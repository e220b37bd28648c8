"""What Flower's and Ray's processes find around them: a folder of their own, and no network."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.errors import ConfigError
from common.paths import cache_dir, site_records

APP = Path(__file__).parents[2]  # what Flower runs, and what holds the packages: a wheel's is no
# folder that Python looks in by itself
OFFLINE = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else `uv sync` before every run
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}


@contextlib.contextmanager
def neutral_home() -> Iterator[Path]:
    """Make a folder for what Flower and Ray leave on disk, and remove it with all of that."""
    # Short: Ray keeps Unix sockets below it, and their paths may have 107 characters.
    home = Path(tempfile.mkdtemp(prefix="fedscan-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def offline_environment(home: Path, ray_address: str = "") -> dict[str, str]:
    """Return the environment for Flower and Ray.

    Offline, with this Python's commands, disk at home, and Ray on the loopback interface alone,
    with a new password, which every process that is to join has in its environment; or with the
    Ray cluster that the user has started at ``ray_address``, and its password.
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
        "RAY_DEDUP_LOGS": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": python_path(),
        **(_cluster(ray_address) if ray_address else _own_ray(home)),
    }


def _own_ray(home: Path) -> dict[str, str]:
    return {
        "RAY_TMPDIR": str(home),
        # Ray would have its workers give way to every other process: on a machine with other work
        # they get next to nothing, and a federation in a cell less than its neighbours.
        "RAY_worker_niceness": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: no address but 127.0.0.1
    }


def _cluster(address: str) -> dict[str, str]:
    """Name a cluster, whose workers have its nodes' environment and get what they need of ours."""
    ours = {
        **{name: value for name, value in os.environ.items() if name.startswith("FEDSCAN_")},
        "FEDSCAN_CACHE": str(cache_dir()),
        "FEDSCAN_RECORDS": str(site_records("any").parent),
        "PYTHONPATH": python_path(),
    }
    job = {"runtime_env": {"env_vars": ours}}  # Ray adds what a program asks for
    return {"RAY_ADDRESS": address, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}


def python_path() -> str:
    """Return ``PYTHONPATH`` of processes that import this very fedscan."""
    return os.pathsep.join(filter(None, (str(APP), os.environ.get("PYTHONPATH"))))


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
