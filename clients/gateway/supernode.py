"""A hospital's part in a federation: Flower's SuperNode, and the gate that its tasks pass.

Left to itself, a SuperNode starts a SuperExec that hands tasks to anybody on the machine, starts
whatever kind of process a run's code asks for, shows a task's token on its command line, and
unpacks every run's code into one folder, where the next run executes what it finds. Here the
SuperNode hands out tasks only for a secret (``--isolation process``), which the gate knows
(:mod:`clients.gateway.gate`). It takes ClientApp tasks and no others.

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clients.gateway.policy import read_policies
from common.errors import ConfigError, FedscanError
from common.processes.environment import (
    free_port,
    neutral_home,
    offline_environment,
    pass_proxies_by,
    toml,
)
from common.processes.group import ProcessGroup, process_group
from common.sites import deployed_site

if TYPE_CHECKING:
    from clients.gateway.gate import Gate
    from clients.gateway.upstream import Tasks

# A child of Flower's logger, so that lines reach its console.
log = logging.getLogger("flwr.fedscan")

LOOPBACK = "127.0.0.1"
CONNECTED = b"SuperNode ID: "  # of the SuperNode's line when the SuperLink has taken it in
POLL_SECONDS = 0.5
TASK_SECONDS = 0.1  # between two looks for a task
GRACE_SECONDS = 10.0


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
    policy : Path
        The site's own rules.
    insecure : bool
        Speak to the SuperLink without TLS.
    root_certificates : Path, optional
        Certificates, as PEM, of whom the SuperLink's may be signed by; the system's by default.
    private_key : Path, optional
        Elliptic-curve key with which the SuperNode proves which node it is.
    client_certificate, client_key : Path, optional
        With which the connection proves to the proxy that it is a hospital's, as PEM.
    extractor : Path, optional
        The site's file of the extractor that judges generated pictures.
    ledger_dir : Path, optional
        For the ledger and the gate's own state; by default beside the site's records.
    port : int, optional
        Of the SuperNode's Runtime API, on the loopback interface; a free one by default.
    """

    superlink: str
    site: str
    data_dir: Path
    policy: Path
    insecure: bool = False
    root_certificates: Path | None = None
    private_key: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    extractor: Path | None = None
    ledger_dir: Path | None = None
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
            "--client-certificate": self.client_certificate,
            "--client-key": self.client_key,
            "--extractor": self.extractor,
            "--policy": self.policy,
        }
        for option, path in files.items():
            if path and not (path.is_file() and os.access(path, os.R_OK)):
                raise ConfigError(f"{option} {path}: accepted is a file that this user can read")
        read_policies(self.policy)
        if self.insecure and (
            self.root_certificates or self.private_key or self.client_certificate
        ):
            raise ConfigError(
                "--insecure is without TLS, and --root-certificates, --client-certificate and "
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
        self._check_client_certificate()

    def _check_client_certificate(self) -> None:
        if bool(self.client_certificate) != bool(self.client_key):
            raise ConfigError("--client-certificate and --client-key: give both or neither")
        if self.client_certificate:
            try:
                context = ssl.create_default_context()
                context.load_cert_chain(self.client_certificate, self.client_key, password="")
            except (ssl.SSLError, ValueError) as error:
                raise ConfigError(
                    f"--client-certificate {self.client_certificate}, --client-key "
                    f"{self.client_key}: accepted are a certificate and the key that it is for, as "
                    "PEM, the key without a password"
                ) from error

    def command(self, port: int, node_config: Path, secret: Path) -> list[str]:
        """Return the command line of Flower's SuperNode; no secret is on it."""
        words = [sys.executable, "-m", "clients.gateway.flower_supernode"]
        if self.client_certificate:
            words += ["--client-certificate", str(self.client_certificate)]
            words += ["--client-key", str(self.client_key)]
        words += ["--", "--superlink", self.superlink]
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
    """Keep a hospital's SuperNode and its gate running until this process is interrupted.

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

    from clients.gateway.gate import Gate  # late: it takes seconds, and a refusal should not
    from clients.gateway.upstream import Tasks

    node.check()
    _warn(node)
    pass_proxies_by()
    port, password = node.port or free_port(), secrets.token_bytes(32)
    site = deployed_site(node.node_config())
    with contextlib.ExitStack() as stack:
        gate = stack.enter_context(Gate(site, node.policy, node.extractor, node.ledger_dir))
        home = stack.enter_context(neutral_home())
        secret = _private_file(home / "superexec-secret", password)
        config = _private_file(home / "node-config.toml", toml(node.node_config()).encode())
        environment = offline_environment(home, proxies=True)
        environment["FLWR_HOME"] = str(home / "flwr")
        command = node.command(port, config, secret)
        log.info("Site %s: starting, on %s:%s", node.site, LOOPBACK, port)
        stderr, connected = stack.enter_context(_lines_watched_for(CONNECTED))
        supernode = stack.enter_context(
            process_group(
                command, cwd=home, environment=environment, share_network=True, stderr=stderr
            )
        )
        _wait_until_listening(supernode, port)
        secret.unlink()  # the SuperNode has read it
        tasks = Tasks(f"{LOOPBACK}:{port}", password)
        stack.callback(tasks.close)
        _answer_tasks(node, gate, supernode, tasks, connected)


def _warn(node: SuperNode) -> None:
    import sysconfig

    host = node.superlink.rpartition(":")[0]
    if node.insecure and host not in (LOOPBACK, "localhost", "[::1]"):
        log.warning(
            "--insecure: whoever is between this machine and %s can read and change everything, "
            "the code that is executed here included",
            host,
        )
    without = read_policies(node.policy)[1].sandbox == "none"
    if without and os.access(packages := sysconfig.get_path("purelib"), os.W_OK):
        log.warning(
            "This user can write to %s, and without a sandbox so can the code of every run: let "
            "another user install fedscan",
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


def _answer_tasks(
    node: SuperNode,
    gate: Gate,
    supernode: ProcessGroup,
    tasks: Tasks,
    connected: threading.Event,
) -> None:
    import httpx

    told = False
    while not supernode.ended(TASK_SECONDS):
        if connected.is_set() and not told:
            told = True
            log.info("Site %s: connected to %s, ready for tasks", node.site, node.superlink)
        try:
            task = tasks.acquire()
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            raise FedscanError(
                f"Flower's SuperNode hands out no task: it answers {code}"
            ) from error
        except httpx.HTTPError as error:
            log.warning("The SuperNode does not answer (%s): asking again", type(error).__name__)
            continue
        if task and not supernode.ended(0):  # else another may have taken its port
            try:
                gate.answer(task)
            except httpx.HTTPError as error:
                log.warning("The SuperNode does not answer (%s)", type(error).__name__)
    raise FedscanError(f"site {node.site}: Flower's SuperNode ended: its own lines tell why")
