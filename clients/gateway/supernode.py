"""A hospital's part in a federation: Flower's SuperNode, and each task in a process without a past.

Left to itself, a SuperNode starts a SuperExec that hands tasks to anybody on the machine, starts
whatever kind of process a run's code asks for, shows a task's token on its command line, and
unpacks every run's code into one folder, where the next run executes what it finds. Here the
SuperNode hands out tasks only for a secret (``--isolation process``), and this module knows it. It
takes ClientApp tasks and no others. Each gets a process, a ``FLWR_HOME`` and a folder for temporary
files of its own, which end with the task, and with them all that it started.

A SuperNode has one message at a time (``flwr.supernode.start_client_internal``): when it hands out
a task, the one before has been answered.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clients.policy import VARIABLE, SitePolicy
from common.errors import ConfigError, FedscanError
from common.files import make_folder
from common.processes.environment import (
    free_port,
    neutral_home,
    offline_environment,
    scripts,
    toml,
)
from common.processes.group import ProcessGroup, process_group
from common.sites import deployed_site

if TYPE_CHECKING:
    from flwr.supercore.runtime import RuntimeHttpClient

# A child of Flower's logger, so that lines reach its console.
log = logging.getLogger("flwr.fedscan")

LOOPBACK = "127.0.0.1"
TASK_TYPE = "flwr-clientapp"
CONNECTED = b"SuperNode ID: "  # of the SuperNode's line when the SuperLink has taken it in
POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0  # for the process of an answered task to end by itself


@dataclass(frozen=True)
class SuperNode:
    """What a hospital says when it joins a federation.

    Parameters
    ----------
    superlink : str
        ``HOST:PORT`` of the SuperLink, or of the proxy before it.
    site : str
        The hospital's name in the federation.
    data_dir : Path
        Its data, absolute.
    insecure : bool
        Speak to the SuperLink without TLS.
    root_certificates : Path, optional
        Certificates, as PEM, of whom the SuperLink's may be signed by; the system's by default.
    private_key : Path, optional
        Elliptic-curve key with which the SuperNode proves which node it is.
    extractor : Path, optional
        The site's file of the extractor that judges generated pictures.
    policy : Path, optional
        The site's own rules, which ClientApps find under the name in ``FEDSCAN_POLICY``.
    port : int, optional
        Of the SuperNode's Runtime API, on the loopback interface; a free one by default.
    """

    superlink: str
    site: str
    data_dir: Path
    insecure: bool = False
    root_certificates: Path | None = None
    private_key: Path | None = None
    extractor: Path | None = None
    policy: Path | None = None
    port: int | None = None

    def node_config(self) -> dict[str, str]:
        """Return what the site's ClientApps read in Flower's node config."""
        config = {"site": self.site, "data-dir": str(self.data_dir)}
        return config | ({"extractor": str(self.extractor)} if self.extractor else {})

    def check(self) -> None:
        """Refuse what cannot work, before anything is started.

        Raises
        ------
        ConfigError
            Naming what is wrong and what is accepted.
        """
        deployed_site(self.node_config())
        host, _, port = self.superlink.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"--superlink {self.superlink}: accepted is HOST:PORT, as in fl.example.org:443"
            )
        files = {
            "--root-certificates": self.root_certificates,
            "--auth-supernode-private-key": self.private_key,
            "--extractor": self.extractor,
            "--policy": self.policy,
        }
        for option, path in files.items():
            if path and not (path.is_file() and os.access(path, os.R_OK)):
                raise ConfigError(f"{option} {path}: accepted is a file that this user can read")
        if self.policy:
            SitePolicy.read(self.policy)
        else:
            SitePolicy.of_site(simulated=False)
        if self.insecure and (self.root_certificates or self.private_key):
            raise ConfigError(
                "--insecure is without TLS, and --root-certificates and "
                "--auth-supernode-private-key need it: leave --insecure out"
            )
        if self.root_certificates:
            try:
                ssl.create_default_context(cafile=self.root_certificates)
            except ssl.SSLError as error:
                raise ConfigError(
                    f"--root-certificates {self.root_certificates}: accepted is a file of "
                    "certificates as PEM (-----BEGIN CERTIFICATE-----)"
                ) from error

    def command(self, port: int, node_config: Path, secret: Path) -> list[str]:
        """Return the command line of Flower's SuperNode; no secret is on it."""
        words = [str(scripts() / "flower-supernode"), "--superlink", self.superlink]
        words += ["--host", LOOPBACK, "--port", str(port), "--isolation", "process"]
        words += ["--superexec-auth-secret-file", str(secret), "--node-config", str(node_config)]
        if self.insecure:
            words.append("--insecure")
        if self.root_certificates:
            words += ["--root-certificates", str(self.root_certificates)]
        if self.private_key:
            words += ["--auth-supernode-private-key", str(self.private_key)]
        return words


def serve(node: SuperNode) -> None:
    """Keep a hospital's SuperNode running, and run its tasks, until this process is interrupted.

    Parameters
    ----------
    node : SuperNode

    Raises
    ------
    ConfigError
        As :meth:`SuperNode.check`.
    FedscanError
        When Flower's SuperNode ends, or refuses to hand out tasks.
    """
    import flwr.supercore.logger  # noqa: F401, it sets up the logger that ours is a child of

    node.check()
    _warn(node)
    port, password = node.port or free_port(), secrets.token_bytes(32)
    with neutral_home() as home:
        secret = _private_file(home / "superexec-secret", password)
        config = _private_file(home / "node-config.toml", toml(node.node_config()).encode())
        environment = offline_environment(home) | {"FLWR_HOME": str(home / "flwr")}
        command = node.command(port, config, secret)
        log.info("Site %s: starting, on %s:%s", node.site, LOOPBACK, port)
        with (
            _lines_watched_for(CONNECTED) as (stderr, connected),
            _group(command, home, environment, stderr) as supernode,
        ):
            _wait_until_listening(supernode, port)
            secret.unlink()  # the SuperNode has read it, and no task shall
            _run_tasks(node, supernode, port, password, connected)


def _warn(node: SuperNode) -> None:
    import sysconfig

    host = node.superlink.rpartition(":")[0]
    if node.insecure and host not in (LOOPBACK, "localhost", "[::1]"):
        log.warning(
            "--insecure: whoever is between this machine and %s can read and change everything, "
            "the code that is executed here included",
            host,
        )
    if os.access(packages := sysconfig.get_path("purelib"), os.W_OK):
        log.warning(
            "This user can write to %s, and so can the code of every run: let another user install "
            "fedscan",
            packages,
        )


def _private_file(path: Path, content: bytes) -> Path:
    """Write a file that only this user can read, from its first byte on."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
        file.write(content)
    return path


def _wait_until_listening(supernode: ProcessGroup, port: int) -> None:
    """Wait until the port is open, and the SuperNode's own.

    Whoever else on this machine listened there could hand us any code as a task.
    """
    import psutil

    while not supernode.ended(POLL_SECONDS):
        for process in psutil.Process(supernode.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                for socket in process.net_connections(kind="tcp"):
                    if socket.status == psutil.CONN_LISTEN and socket.laddr.port == port:
                        return
    raise FedscanError("Flower's SuperNode ended before it was ready: its own lines tell why")


@contextlib.contextmanager
def _lines_watched_for(words: bytes) -> Iterator[tuple[int, threading.Event]]:
    """Yield a descriptor whose lines go on to standard error, and whether one held the words.

    Whoever writes to it must have ended when the block is left.
    """
    seen, (reading, writing) = threading.Event(), os.pipe()

    def hand_on() -> None:
        with open(reading, "rb") as lines:  # noqa: PTH123
            for line in lines:
                with contextlib.suppress(OSError, ValueError):  # nobody listens any more
                    sys.stderr.write(line.decode(errors="replace"))
                    sys.stderr.flush()
                if words in line:
                    seen.set()

    thread = threading.Thread(target=hand_on, daemon=True)
    thread.start()
    try:
        yield writing, seen
    finally:
        os.close(writing)
        thread.join(GRACE_SECONDS)


def _run_tasks(
    node: SuperNode,
    supernode: ProcessGroup,
    port: int,
    password: bytes,
    connected: threading.Event,
) -> None:
    from flwr.supercore.interceptors import (
        RuntimeVersionHttpInterceptor,
        SuperExecAuthHttpInterceptor,
    )
    from flwr.supercore.runtime import RuntimeHttpClient

    address = f"{LOOPBACK}:{port}"
    client = RuntimeHttpClient.from_server_address(
        address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=password, protected_methods=["/flwr.proto.Runtime/AcquireTask"]
            ),
        ],
    )
    with contextlib.closing(client), contextlib.ExitStack() as current:
        running: ProcessGroup | None = None
        told = False
        while not supernode.ended(POLL_SECONDS):
            if connected.is_set() and not told:
                told = True
                log.info("Site %s: connected to %s, ready for tasks", node.site, node.superlink)
            token = _acquire(client)
            if running and (running.ended(GRACE_SECONDS if token else 0) or token):
                running = None
                current.close()
            if token and not supernode.ended(0):  # else another may have taken its port
                running = current.enter_context(_task(node, address, token))
    raise FedscanError(f"site {node.site}: Flower's SuperNode ended: its own lines tell why")


def _acquire(client: RuntimeHttpClient) -> str | None:
    """Ask for a task; return its token, or None where there is no task yet.

    Raises
    ------
    FedscanError
        If the SuperNode refuses to answer.
    """
    import httpx
    from flwr.proto.runtime_pb2 import AcquireTaskRequest

    try:
        answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TASK_TYPE]))
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        raise FedscanError(f"Flower's SuperNode hands out no task: it answers {code}") from error
    except httpx.HTTPError as error:
        log.warning("The SuperNode does not answer (%s): asking again", type(error).__name__)
        return None
    if not answer.token or answer.task.type != TASK_TYPE:
        return None
    log.info("Task %s of run %s", answer.task.task_id, answer.task.run_id)
    return answer.token


@contextlib.contextmanager
def _task(node: SuperNode, address: str, token: str) -> Iterator[ProcessGroup]:
    """Run a task with a home of its own; on leaving, nothing of it is left."""
    with neutral_home() as home:
        file = _private_file(home / "token", token.encode())
        command = [str(scripts() / TASK_TYPE), "--insecure", "--runtime-api-address", address]
        command += ["--token-file", str(file)]
        with _group(command, home, _task_environment(node, home)) as task:
            yield task


def _group(
    command: list[str], home: Path, environment: Mapping[str, str], stderr: int | None = None
) -> contextlib.AbstractContextManager[ProcessGroup]:
    return process_group(
        command, cwd=home, environment=environment, share_network=True, stderr=stderr
    )


def _task_environment(node: SuperNode, home: Path) -> Mapping[str, str]:
    temporary = make_folder(home / "tmp")
    return {
        **offline_environment(home),
        "FLWR_HOME": str(home / "flwr"),
        "TMPDIR": str(temporary),
        "PYTHONDONTWRITEBYTECODE": "1",
        **({VARIABLE: str(node.policy)} if node.policy else {}),
    }
