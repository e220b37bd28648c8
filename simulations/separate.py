"""A federation on one machine whose hospitals are separate processes, each behind its own gate.

Inside a process group (:mod:`common.processes.supervisor`) this module starts, as at real
hospitals, a SuperLink with TLS and node keys, a ``fedscan supernode`` for each site, and the run.

Usage, by :func:`separate_run` alone: ``python -m simulations.separate HOME``, where HOME holds
``federation.json`` and ``run-config.toml``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clients.gateway.policy import open_policy_text, text_with_sites
from common.config.run_config import RunConfig, extensions_of, flatten
from common.errors import FedscanError
from common.evaluation.extractor import DEFAULTS
from common.extensions import allowed
from common.files import make_folder, write_atomically, write_json
from common.fingerprint import fingerprint
from common.processes.environment import (
    APP,
    free_port,
    neutral_home,
    offline_environment,
    scripts,
    toml,
)
from common.processes.group import process_group
from common.reading import read_json
from common.rounds import begin, first_order
from common.run_folder import GATES, SUMMARY
from common.tasks.task import SiteContext
from simulations.launch import FlowerRun

RUN_CONFIG = "run-config.toml"
CONNECTION = "hospitals"  # name of the SuperLink in Flower's configuration
START_SECONDS = 180.0
LOOK_SECONDS = 0.2
READY = "ready for tasks"  # what `fedscan supernode` says


@dataclass(frozen=True)
class Federation:
    """What is started.

    Parameters
    ----------
    sites : dict of str to str
        Folder of each site's data.
    policy : str
        Text of the sites' policy.
    gates : str
        Folder for what each site's gate keeps, by site: policy, approvals, ledger and state.
    extractor : str
        The user's own file of what judges pictures, which every site then has; or empty.
    """

    sites: dict[str, str]
    policy: str
    gates: str
    extractor: str


@contextlib.contextmanager
def separate_run(
    config: RunConfig, sites: Mapping[str, Path], folder: Path, policy: Path | None = None
) -> Iterator[FlowerRun]:
    """Start a federation of separate processes; on leaving, all of it is ended.

    Parameters
    ----------
    config : RunConfig
    sites : mapping of str to Path
        Folder of each site's data, absolute.
    folder : Path
        The run's, in which the gates keep what a resumed run needs.
    policy : Path, optional
        Of all sites; without it they follow the researcher's own orders, whatever these are.

    Yields
    ------
    FlowerRun
    """
    config = config.replace({"data.cohort-dir": ""})  # each site knows its own folder alone
    text = policy.read_text(encoding="utf-8") if policy else open_policy(config, sorted(sites))
    with neutral_home() as home:
        own = "" if config.model.extractor in DEFAULTS else config.model.extractor
        folders, gates = {name: str(path) for name, path in sites.items()}, folder / GATES
        federation = Federation(folders, text, str(gates), own)
        write_json(home / "federation.json", asdict(federation))
        write_atomically(home / RUN_CONFIG, toml(config.to_flower()).encode())
        log_path = home / "flower.log"
        with process_group(
            [sys.executable, "-m", "simulations.separate", str(home)],
            cwd=home,
            environment=offline_environment(home),
            log_path=log_path,
        ) as group:
            yield FlowerRun(log_path, group)


def keep_ledgers(folder: Path) -> None:
    """Lay the gates' ledgers into the run's folder; of a run that is whole the rest is removed."""
    for path in (folder / GATES).glob("*/ledger.jsonl"):
        write_atomically(folder / f"{path.parent.name}.ledger.jsonl", path.read_bytes())
    if (folder / SUMMARY).is_file():
        shutil.rmtree(folder / GATES, ignore_errors=True)


def open_policy(config: RunConfig, sites: Sequence[str]) -> str:
    """Return the policy of sites whose owner is the user, as far as extensions are allowed here."""
    named = allowed() & set(extensions_of(config).values())
    return open_policy_text(_first_weights(config, tuple(sites)), sorted(named))


def _first_weights(config: RunConfig, sites: tuple[str, ...]) -> list[str]:
    """Return the fingerprint of first weights that do not follow from the run's seed, if any."""
    if not (config.model.warm_start or config.model.gan_checkpoint):
        return []
    import torch

    place = SiteContext("server", sites, torch.device("cpu"))
    return [fingerprint(first_order(begin(config, place), config))]


def main() -> None:
    """Run a federation until its run has ended."""
    home = Path(sys.argv[1])
    with contextlib.ExitStack() as stack:
        try:
            sys.exit(_Machine(home, stack).run())
        except FedscanError as error:
            print(error, flush=True)
            sys.exit(1)


class _Machine:
    """The processes of one federation, which end with the stack."""

    def __init__(self, home: Path, stack: contextlib.ExitStack) -> None:
        self.home, self._stack = home, stack
        self.federation = Federation(**read_json(home / "federation.json"))
        self.port = free_port()  # in this group's own network, where there is one
        self.tls, self.keys = make_folder(home / "tls"), make_folder(home / "keys")
        self._started: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}

    @property
    def address(self) -> str:
        """Where the SuperLink is reached."""
        return f"localhost:{self.port}"

    def run(self) -> int:
        """Start everything, and wait for the end of ``flwr run``; return its exit code."""
        from flwr.cli.build import build_fab_from_disk

        from simulations.deploy.keys import make_authority, make_node_key, make_server_certificate

        make_authority(self.tls)
        make_server_certificate(self.tls, ["localhost"])
        self._start_server()
        approved = hashlib.sha256(build_fab_from_disk(APP)).hexdigest()
        for site in self.federation.sites:
            make_node_key(self.keys, site)
        self._sums = self._make_sums_keys()
        nodes = self._register()
        for site in self.federation.sites:
            self._start_site(site, approved)
        for site in self.federation.sites:
            self._wait_for(site, lambda log: READY in log.read_text(errors="replace"))
        bound = " ".join(f"{site}:{node}" for site, node in nodes.items())
        overrides = tomllib.loads((self.home / RUN_CONFIG).read_text(encoding="utf-8"))
        write_atomically(
            self.home / RUN_CONFIG, toml(flatten(overrides) | {"run.site-nodes": bound}).encode()
        )
        command = [sys.executable, "-m", "simulations.flower_command", "run", str(APP)]
        command += [CONNECTION, "--stream", "--run-config", str(self.home / RUN_CONFIG)]
        return subprocess.run(command, check=False).returncode

    def _start(self, name: str, *command: str) -> None:
        """Start a process with a Flower home and a log of its own."""
        log = self.home / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "FLWR_HOME": str(self.home / f"flwr-{name}")},
            )
        self._started[name] = process, log
        self._stack.callback(_end, process)

    def _start_server(self) -> None:
        secret, tls = self.home / "superexec.secret", self.tls
        write_atomically(secret, os.urandom(32))
        self._start(
            "superlink",
            *(str(scripts() / "flower-superlink"), "--host", "127.0.0.1"),
            *("--port", str(self.port), "--enable-supernode-auth"),
            *("--ssl-ca-certfile", str(tls / "ca.crt")),
            *("--ssl-certfile", str(tls / "server.crt"), "--ssl-keyfile", str(tls / "server.key")),
            *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        )
        self._wait_for("superlink", lambda _: self._is_healthy())
        self._start(
            "superexec",
            *(str(scripts() / "flower-superexec"), "--runtime-api-address", self.address),
            *("--root-certificates", str(tls / "ca.crt")),
            *("--superexec-auth-secret-file", str(secret)),
        )
        home = self.home / "flwr"
        os.environ["FLWR_HOME"] = str(home)
        write_atomically(
            home / "config.toml",
            f"[superlink.{CONNECTION}]\n".encode()
            + toml({"address": self.address, "root-certificates": str(tls / "ca.crt")}).encode(),
        )

    def _is_healthy(self) -> bool:
        import httpx

        context = ssl.create_default_context(cafile=self.tls / "ca.crt")
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"https://{self.address}/health", verify=context).is_success
        return False

    def _register(self) -> dict[str, int]:
        """Make every site's key known to the SuperLink; return the numbers of the nodes."""
        from flwr.cli.supernode.register import try_load_public_key
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        client = ControlHttpClient.from_server_address(
            self.address,
            insecure=False,
            root_certificates=(self.tls / "ca.crt").read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        with contextlib.closing(client):
            return {
                site: client.RegisterNode(
                    RegisterNodeRequest(public_key=try_load_public_key(self.keys / f"{site}.pub"))
                ).node_id
                for site in self.federation.sites
            }

    def _make_sums_keys(self) -> list[str]:
        """Make each site's key for secure sums, once; return the sites with their public keys."""
        from simulations.deploy.sums_keys import make_sums_key, sums_key

        named = []
        for site in self.federation.sites:
            folder = make_folder(Path(self.federation.gates) / site)
            if not (folder / f"{site}-sums.key").exists():  # a run that goes on has it
                make_sums_key(folder, site)
            named.append(f"{site}:{sums_key(folder, site)}")
        return named

    def _start_site(self, site: str, approved: str) -> None:
        from clients.gateway.approvals import Approvals

        policy = make_folder(Path(self.federation.gates) / site) / "policy.toml"
        write_atomically(policy, text_with_sites(self.federation.policy, self._sums).encode())
        Approvals.beside(policy).approve(approved)
        self._start(
            site,
            *(str(scripts() / "fedscan"), "supernode", "--superlink", self.address),
            *("--site", site, "--data-dir", self.federation.sites[site]),
            *(
                "--policy",
                str(policy),
                "--ledger-dir",
                str(policy.parent),
                "--root-certificates",
                str(self.tls / "ca.crt"),
            ),
            *("--auth-supernode-private-key", str(self.keys / f"{site}.key")),
            *(("--extractor", self.federation.extractor) if self.federation.extractor else ()),
        )

    def _wait_for(self, name: str, ready: Callable[[Path], bool]) -> None:
        process, log = self._started[name]
        deadline = time.monotonic() + START_SECONDS
        while not ready(log):
            text = log.read_text(errors="replace")
            if process.poll() is not None:
                raise FedscanError(f"{name} ended before it was ready:\n{text}")
            if time.monotonic() > deadline:
                raise FedscanError(
                    f"{name} was not ready in {START_SECONDS:.0f} s. If this machine is too busy, "
                    f"try again when it is less so:\n{text}"
                )
            time.sleep(LOOK_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
