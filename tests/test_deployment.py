"""The deployment of docs/deployment.md, its commands word for word, on the loopback interface."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shlex
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from processes import (
    ROOT,
    SCRIPTS,
    environment,
    flower_processes,
    flwr_run,
    process,
    wait_for_health,
    wait_for_line,
    wait_until_gone,
)

from common.processes.environment import free_port

MISSING = [name for name in ("nginx", "openssl", "ssh-keygen") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]
PAGE = (ROOT / "docs" / "deployment.md").read_text()
NGINX = (ROOT / "docs" / "deployment" / "nginx.conf").read_text()
HOSTILE = Path(__file__).parent / "hostile_app"
REPLY_BYTES = 6_000_000  # more than one of the pieces in which Flower sends an array


@dataclass
class Deployment:
    """A running server with one hospital, and the folder with its certificates."""

    folder: Path
    cache: Path
    link: int
    proxy: int
    cohort: Path

    def here(self, text: str) -> str:
        """Put this machine's ports and folders in place of the page's."""
        for page, ours in (
            ("fl.example.org:443", f"localhost:{self.proxy}"),
            ("fl.example.org", "localhost"),
            ("listen 443", f"listen 127.0.0.1:{self.proxy}"),
            ("9091", str(self.link)),
            ("/etc/fedscan", str(self.folder)),
            ("/data/north", str(self.cohort / "north")),
        ):
            text = text.replace(page, ours)
        return text

    def block(self, beginning: str) -> str:
        """Return the page's commands that begin so."""
        blocks = re.findall(r"```\w+\n(.*?)```", PAGE, flags=re.DOTALL)
        found = next(block for block in blocks if block.startswith(beginning))
        return self.here(found.replace("\\\n", ""))

    def shell(self, commands: str) -> None:
        subprocess.run(["bash", "-euc", commands], cwd=self.folder, check=True, capture_output=True)

    def connection(self, port: int) -> str:
        entry = self.block("[superlink.hospitals]").split("\n", 1)[1]
        return entry.replace(f"127.0.0.1:{self.link}", f"localhost:{port}")

    def flwr(self, *words: str, port: int) -> subprocess.CompletedProcess[str]:
        home = self.folder / f"user-{port}"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(f"[superlink.hospitals]\n{self.connection(port)}")
        return subprocess.run(
            [str(SCRIPTS / "flwr"), *words],
            cwd=self.folder,
            env=environment(self.cache, FLWR_HOME=str(home)),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def status(self, path: str, method: str = "POST") -> int:
        """Ask the proxy for a path exactly as it is written."""
        context = ssl.create_default_context(cafile=self.folder / "ca.crt")
        client = http.client.HTTPSConnection("localhost", self.proxy, context=context, timeout=20)
        with contextlib.closing(client):
            client.request(method, path, body=b"")
            return client.getresponse().status


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[None]:
    """Keep nginx running, as this user and with all of its files in the folder."""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"pid {folder}/nginx.pid;\ndaemon off;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}include {folder}/fedscan.conf;\n}}\n"
    )
    started = subprocess.Popen(
        [shutil.which("nginx"), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    )
    try:
        yield
    finally:
        started.terminate()
        started.wait()


@pytest.fixture(scope="module")
def deployment(
    tiny_cohort: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    before, folder = flower_processes(), tmp_path_factory.mktemp("deployment")
    ours = Deployment(folder, session_cache, link := free_port(), free_port(link), tiny_cohort)
    ours.shell(ours.block("openssl"))
    ours.shell(ours.block("ssh-keygen"))
    (folder / "fedscan.conf").write_text(ours.here(NGINX))
    with contextlib.ExitStack() as stack:
        for beginning in ("flower-superlink", "flower-superexec"):
            words = shlex.split(ours.block(beginning))
            stack.enter_context(process(*words, home=folder / beginning, cache=session_cache))
            wait_for_health(f"https://localhost:{link}", verify=str(folder / "ca.crt"))
        stack.enter_context(nginx(folder))
        register = shlex.split(ours.block("flwr supernode register").splitlines()[0])
        told = ours.flwr(*register[1:], port=link)
        assert told.returncode == 0, told.stdout + told.stderr
        yield ours
    assert not wait_until_gone(before)


def test_a_hospital_with_a_registered_key_works_through_the_proxy(deployment: Deployment) -> None:
    report, temporary = deployment.folder / "report", deployment.folder / "tmp"
    report.mkdir()
    temporary.mkdir()
    words = shlex.split(deployment.block("fedscan supernode"))
    with process(
        *words, home=deployment.folder / "north", cache=deployment.cache, TMPDIR=str(temporary)
    ) as (hospital, log):
        wait_for_line(log, "SuperNode ID")
        told = flwr_run(
            HOSTILE,
            deployment.connection(deployment.link),
            [f"report = '{report}'", f"reply-bytes = {REPLY_BYTES}"],
            home=deployment.folder / "researcher",
            cache=deployment.cache,
        )
        hospital.terminate()
        hospital.wait(timeout=60)
    assert (report / "server.json").exists(), told.stdout + told.stderr + log.read_text()
    [size] = json.loads((report / "server.json").read_text())
    assert size >= REPLY_BYTES
    assert hospital.returncode == 128 + 15
    assert not list(temporary.glob("fedscan-*"))


def test_a_hospital_without_a_registered_key_is_refused(deployment: Deployment) -> None:
    other = deployment.block("ssh-keygen").replace("north.key", "other.key")
    deployment.shell(other)
    words = shlex.split(deployment.block("fedscan supernode").replace("north.key", "other.key"))
    home = deployment.folder / "other"
    with process(*words, home=home, cache=deployment.cache) as (hospital, log):
        assert hospital.wait(timeout=120) == 1
    assert "SuperNode ID" not in log.read_text()


def test_the_proxy_passes_no_run_and_no_question_of_a_researcher(deployment: Deployment) -> None:
    for words in (["supernode", "list", "hospitals"], ["run", str(HOSTILE), "hospitals"]):
        told = deployment.flwr(*words, port=deployment.proxy)
        assert told.returncode != 0
        assert "403" in told.stdout + told.stderr
    assert deployment.flwr("supernode", "list", "hospitals", port=deployment.link).returncode == 0


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "//v1/control/start-run",
        "/health",
        "/docs",
        "/openapi.json",
    ],
)
def test_the_proxy_passes_nothing_but_the_fleet_api(deployment: Deployment, path: str) -> None:
    assert deployment.status(path) == 403
    assert deployment.status(path, "GET") == 403


def test_the_superlink_hands_out_no_task_without_the_secret(deployment: Deployment) -> None:
    client = RuntimeHttpClient.from_server_address(
        f"localhost:{deployment.link}",
        insecure=False,
        root_certificates=str(deployment.folder / "ca.crt"),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
    )
    with contextlib.closing(client), pytest.raises(httpx.HTTPStatusError, match="401"):
        client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
