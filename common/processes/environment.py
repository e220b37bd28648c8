"""What Flower's and Ray's processes find around them: a folder of their own, and no network."""

from __future__ import annotations

import contextlib
import json
import os
import re
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
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Of a Unix socket's 107 bytes, Ray's own part has 68, with a process number of seven digits, and
# the folder's name 17.
LONGEST_TEMPORARY = 22
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_DIRECT = ("no_proxy", "NO_PROXY")
_PROXY = re.compile(r"(https?|all|grpc|ftp)_proxy", re.IGNORECASE)
_NOT_PLAIN = re.compile(r"[^\w@%+=:,./~-]")  # what a shell may take for more than a letter


@contextlib.contextmanager
def neutral_home() -> Iterator[Path]:
    """Make a folder for what Flower and Ray leave on disk, and remove it with all of that.

    Raises
    ------
    ConfigError
        No folder for temporary files has a path that is short enough for Ray's sockets.
    """
    home = Path(tempfile.mkdtemp(prefix="fedscan-", dir=_short_folder()))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def offline_environment(
    home: Path, ray_address: str = "", *, proxies: bool = False
) -> dict[str, str]:
    """Return the environment for Flower and Ray.

    Offline, without a proxy between processes of this machine unless ``proxies`` keeps them, with
    this Python's commands, disk at home, and Ray on the loopback interface alone, with a new
    password, which every process that is to join has in its environment; or with the Ray cluster
    that the user has started at ``ray_address``, and its password.
    """
    # Within a Ray worker (a benchmark's cell), what that Ray tells its workers is not for ours.
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key != "RAY_ADDRESS"  # a cluster that the user has elsewhere is not ours to use
        and (proxies or not _PROXY.fullmatch(key))
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


def pass_proxies_by() -> None:
    """Let this process, and what it starts, reach its own machine directly, and others as before.

    A SOCKS proxy is left out where the package that it needs is missing: Flower would stop at it,
    also where no address goes through it.
    """
    from importlib.util import find_spec

    names = {name: value for name, value in os.environ.items() if _PROXY.fullmatch(name)}
    for name, value in names.items():
        if value.lower().startswith("socks") and find_spec("socksio") is None:
            del os.environ[name]
    told = [os.environ.get(key, "") for key in _DIRECT]
    hosts = [host.strip() for text in told for host in text.split(",") if host.strip()]
    os.environ.update(dict.fromkeys(_DIRECT, ",".join(dict.fromkeys([*hosts, *LOOPBACK]))))


def require_plain_path() -> None:
    """Refuse an installation whose path Ray would not hand to its workers in one piece.

    Raises
    ------
    ConfigError
    """
    if found := _NOT_PLAIN.search(sys.executable):
        what = "a space" if found[0].isspace() else f"the character {found[0]}"
        raise ConfigError(
            f"Ray cannot start workers from an environment whose path holds {what}: "
            f"{sys.executable}. Install fedscan in an environment with another path",
            public="Ray cannot start workers from an environment of such a path",
        )


def temporary_folders() -> list[Path]:
    """Folders in which :func:`neutral_home`, and others by default, make theirs."""
    found = [tempfile.gettempdir()]
    with contextlib.suppress(ConfigError):
        found.append(_short_folder())
    return list(map(Path, dict.fromkeys(found)))


def _short_folder() -> str:
    """Folder for temporary files, or another one where its path is too long for Ray's sockets."""
    usual = tempfile.gettempdir()
    for folder in (usual, *SHORT_FOLDERS):
        if len(os.fsencode(folder)) <= LONGEST_TEMPORARY and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise ConfigError(
        f"TMPDIR={usual}: too long for Ray's sockets, and neither {', '.join(SHORT_FOLDERS)} can "
        f"be written to. Accepted is a path of at most {LONGEST_TEMPORARY} bytes",
        public="TMPDIR is too long for Ray's sockets",
    )


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
    job = {"runtime_env": {"env_vars": ours}}
    return {
        "RAY_ADDRESS": address,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
        # Ray adds what a program asks for, which holds where both name a variable.
        "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    }


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
