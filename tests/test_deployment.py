"""The deployment of docs/deployment.md, its commands word for word, on machines of their own.

A coordinator, two hospitals and a stranger have a network each. In a first run a hospital loses its
power, while the stranger tries what it can; a second goes well; then a hospital is removed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import machines
import pytest
from conftest import TINY
from machines import HOME, Machine
from processes import ROOT

WHY = machines.missing()
pytestmark = [pytest.mark.federation, pytest.mark.skipif(bool(WHY), reason=WHY)]
PAGE = (ROOT / "docs" / "deployment.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
ADDRESSES = {
    "coordinator.example": "10.77.0.1",
    "north": "10.77.0.2",
    "south": "10.77.0.3",
    "stranger": "10.77.0.4",
}
HOSPITALS = ("north", "south")
# Installing is pip's, and has been done; the rest of these is done by hand in the course of years.
NOT_FOLLOWED = ("sudo python3 -m venv", "sudo systemctl stop fedscan-supernode\nsudo /opt")
PATIENCE = 400.0  # seconds; on an idle machine all of this file takes less than half of it
RUNS = "/var/lib/fedscan-superexec/runs"
PATHS = [
    "/v1/control/start-run",
    "/v1/control/register-node",
    "/v1/runtime/acquire-task",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/..%2fcontrol/start-run",
    "/v1/control/..%2ffleet/pull-messages",
    "/v1/control/../fleet/pull-messages",
    "/v1/fleet/pull-messages/../../control/start-run",
    "/v1/fleet/pull-messages?/v1/control/start-run",
    "//v1/control/start-run",
    "/v1/fleet//pull-messages",
    "/v1/fleet/pull-messages;a",
    "/health",
    "/docs",
    "/openapi.json",
    "/",
]
ASK = """
import http.client, json, socket, ssl, sys
asked = json.load(sys.stdin)
def status(scheme, method, path, certificate):
    try:
        if scheme == "http":
            client = http.client.HTTPConnection("coordinator.example", 443, timeout=20)
        else:
            context = ssl.create_default_context(cafile=asked["ca"])
            if certificate:
                context.load_cert_chain(*certificate)
            client = http.client.HTTPSConnection(
                "coordinator.example", 443, context=context, timeout=20
            )
        client.putrequest(method, path, skip_accept_encoding=True)
        client.putheader("Content-Length", "0")
        client.endheaders()
        return client.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
json.dump([status(*one) for one in asked["requests"]], sys.stdout)
"""
CONNECT = """
import json, socket, sys
def open_(port):
    with socket.socket() as probe:
        probe.settimeout(3)
        return probe.connect_ex((sys.argv[1], port)) == 0
print(json.dumps([port for port in map(int, sys.argv[2:]) if open_(port)]))
"""


THIEF = """
import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
client = RuntimeHttpClient.from_server_address(
    "127.0.0.1:9091",
    insecure=False,
    root_certificates="/etc/fedscan/ca.crt",
    interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
)
try:
    print(client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"])))
except httpx.HTTPStatusError as error:
    print(error.response.status_code)
"""


def block(beginning: str) -> str:
    """Return the page's commands that begin so."""
    return next(one for one in BLOCKS if one.startswith(beginning))


@dataclass
class History:
    """What has been seen."""

    machines: dict[str, Machine]
    sent: list[str] = field(default_factory=list)
    runs: list[subprocess.CompletedProcess[str]] = field(default_factory=list)
    results: list[dict] = field(default_factory=list)
    listening: dict[str, set[str]] = field(default_factory=dict)
    answers: dict[str, list] = field(default_factory=dict)
    without_registered_key: subprocess.CompletedProcess[str] | None = None
    nodes_after_removal: str = ""
    logs: dict[str, str] = field(default_factory=dict)
    contacted: set[str] = field(default_factory=set)
    left: dict[str, list] = field(default_factory=dict)

    @property
    def coordinator(self) -> Machine:
        return self.machines["coordinator.example"]

    def send(self, file: str, from_: Machine, to: Machine) -> None:
        """Carry a file or a folder from one machine's home to another's."""
        source, target = from_.path(f"{HOME}/{file}"), to.path(f"{HOME}/{Path(file).name}")
        if source.is_dir():
            shutil.copytree(source, target)
            self.sent += [str(one.relative_to(source.parent)) for one in source.rglob("*")]
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
            self.sent.append(file)

    def ask(self, name: str, requests: list, machine: str, ca: str) -> None:
        """Send requests to the proxy exactly as they are written."""
        of = self.machines[machine]
        done = subprocess.run(
            of.words("python", "-c", ASK),
            env=of.environment(),
            input=json.dumps({"requests": requests, "ca": ca}),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        self.answers[name] = json.loads(done.stdout)

    def command_of_run(self, rounds: int) -> str:
        """Return the researcher's commands; only the run's size is not the page's."""
        words = " ".join([f"run.rounds={rounds}", *TINY[1:]])
        return block("export FLWR").replace("'run.min-sites=2", f"'{words} run.min-sites=2")

    def run(self) -> None:
        self.keep(self.coordinator.run(self.command_of_run(1), cwd=str(ROOT), check=False))

    def keep(self, done: subprocess.CompletedProcess[str]) -> None:
        """Note what has become of a run."""
        self.runs.append(done)
        folders = self.coordinator.path(RUNS).iterdir()
        files = max(folders, key=lambda one: one.stat().st_mtime, default=Path()).glob("*.json")
        self.results.append({file.name: json.loads(file.read_text()) for file in files})


def wait_for(machine: Machine, unit: str, words: str, times: int = 1) -> None:
    deadline = time.monotonic() + PATIENCE
    while machine.log(unit).count(words) < times:
        assert time.monotonic() < deadline, machine.log(unit)
        time.sleep(0.2)


def set_up(seen: History, cohort: Path) -> None:
    """Follow the page until both hospitals are ready."""
    coordinator = seen.coordinator
    coordinator.run(block("sudo fedscan deploy init"))
    coordinator.run(block("sudo install -m 644 /etc/fedscan/fedscan-superlink.service"))
    connection = re.search(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    config = coordinator.path(f"{HOME}/.flwr/config.toml")
    config.parent.mkdir()
    config.write_text(connection)
    for site in HOSPITALS:
        hospital = seen.machines[site]
        shutil.copytree(cohort / site, hospital.path(f"/data/{site}"))
        seen.send(f"federation/hospitals/{site}", coordinator, hospital)
        hospital.run(block("sudo useradd").replace("north", site), cwd=f"{HOME}/{site}")
        hospital.run(block("sudo fedscan gate approve"))
        for name in (f"{site}.csr", f"{site}.pub"):
            seen.send(f"{site}/{name}", hospital, coordinator)
    wait_for(coordinator, "fedscan-superlink", "Uvicorn running")
    for site in HOSPITALS:
        coordinator.run(block("sudo fedscan deploy admit").replace("north", site))
    coordinator.run(block("sudo install -d -m 700 /etc/fedscan/old"))  # forgets no registration
    wait_for(coordinator, "fedscan-superlink", "Uvicorn running", 2)
    for site in HOSPITALS:
        hospital = seen.machines[site]
        seen.send(f"{site}.crt", coordinator, hospital)
        hospital.path(f"{HOME}/{site}.crt").rename(hospital.path(f"{HOME}/{site}/{site}.crt"))
        hospital.run(
            block("sudo install -m 600 north.crt").replace("north", site), cwd=f"{HOME}/{site}"
        )


def try_as_a_stranger(seen: History) -> None:
    """Knock at every door that the network shows."""
    stranger, north = seen.machines["stranger"], seen.machines["north"]
    stranger.run(
        "fedscan deploy init --sites north --host coordinator.example --out own\n"
        "fedscan deploy keys --site north --out keys\n"
        "fedscan deploy admit --coordinator own/coordinator keys/north.csr keys/north.pub"
    )
    shutil.copyfile(seen.coordinator.path("/etc/fedscan/ca.crt"), stranger.path(f"{HOME}/ca.crt"))
    ca, fleet = f"{HOME}/ca.crt", "/v1/fleet/pull-messages"
    other = [f"{HOME}/north.crt", f"{HOME}/keys/north-tls.key"]
    paths = [fleet, *PATHS]
    for name, scheme, certificate in (
        ("no certificate", "https", None),
        ("another authority's certificate", "https", other),
        ("plain HTTP", "http", None),
    ):
        seen.ask(name, [[scheme, "POST", path, certificate] for path in paths], "stranger", ca)
    own = ["/etc/fedscan/north.crt", "/etc/fedscan/north-tls.key"]
    asked = [["https", method, path, own] for path in PATHS for method in ("POST", "GET")]
    authority = "/etc/fedscan/ca.crt"
    seen.ask("a hospital's", [*asked, ["https", "GET", fleet, own]], "north", authority)
    seen.ask("a hospital's at its own door", [["https", "POST", fleet, own]], "north", authority)
    probe = stranger.run(f"python -c '{CONNECT}' 10.77.0.1 22 80 443 8000 9091 9092 9093 9094")
    seen.answers["open ports"] = json.loads(probe.stdout)
    seen.answers["a thief"] = [int(seen.coordinator.run(f"python -c '{THIEF}'").stdout)]
    seen.without_registered_key = north.run(
        "fedscan deploy keys --site other --out other\n"
        "fedscan supernode --superlink coordinator.example:443 --site other --data-dir /data/north "
        "--root-certificates /etc/fedscan/ca.crt --client-certificate /etc/fedscan/north.crt "
        "--client-key /etc/fedscan/north-tls.key --auth-supernode-private-key other/other.key "
        "--policy /etc/fedscan/policy.toml",
        check=False,
    )


@pytest.fixture(scope="module")
def history(session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    from common.imaging.cohorts import write_cohort

    cohort = tmp_path_factory.mktemp("deployment") / "cohort"
    write_cohort(cohort, {"north": 8, "south": 8}, n_test=4, seed=5, workers=1)
    with machines.network(ADDRESSES, session_cache) as made:
        seen = History(made)
        south, coordinator = made["south"], seen.coordinator
        made["north"].watch()
        set_up(seen, cohort)
        for site in HOSPITALS:
            wait_for(made[site], "fedscan-supernode", "ready for tasks")
        seen.listening = {name: machine.listening() for name, machine in made.items()}
        # A run that a hospital does not live to see the end of.
        long = coordinator.start(seen.command_of_run(50), f"{HOME}/long.log", cwd=str(ROOT))
        wait_for(south, "fedscan-supernode", "Receiving", 2)
        south.lose_power("fedscan-supernode")
        try_as_a_stranger(seen)
        long.wait(timeout=PATIENCE)
        told = coordinator.path(f"{HOME}/long.log").read_text()
        seen.keep(subprocess.CompletedProcess(long.args, long.returncode, told, ""))
        wait_for(south, "fedscan-supernode", "ready for tasks", 2)
        seen.run()
        leave = block("sudo fedscan deploy remove")
        nodes = coordinator.run("flwr supernode list hospitals --format json").stdout
        node = node_of(south, json.loads(nodes))
        coordinator.run(leave.replace("NODE", node))
        seen.nodes_after_removal = coordinator.run("flwr supernode list hospitals").stdout
        own = ["/etc/fedscan/south.crt", "/etc/fedscan/south-tls.key"]
        request = ["https", "POST", "/v1/fleet/pull-messages", own]
        seen.ask("removed", [request], "south", "/etc/fedscan/ca.crt")
        for site in HOSPITALS:
            made[site].run("sudo systemctl stop fedscan-supernode")
        coordinator.run("sudo systemctl stop nginx fedscan-superexec fedscan-superlink")
        for site in HOSPITALS:
            seen.logs[site] = made[site].log("fedscan-supernode")
        seen.contacted = made["north"].contacted()
        for one in made["north"].processes():
            if "watch.py" in one.cmdline():
                one.terminate()
        deadline = time.monotonic() + 30
        while any(one.processes() for one in made.values()) and time.monotonic() < deadline:
            time.sleep(0.3)
        seen.left = {name: one.processes() for name, one in made.items()}
        yield seen


def node_of(machine: Machine, told: dict) -> str:
    """Return the number of a hospital's node, which its log tells."""
    number = re.findall(r"SuperNode ID: (\d+)", machine.log("fedscan-supernode"))[-1]
    assert number in json.dumps(told)
    return number


def test_no_command_of_the_page_is_left_out() -> None:
    followed = (
        "sudo fedscan deploy init",
        "sudo install -m 644 /etc/fedscan/fedscan-superlink.service",
        "sudo useradd",
        "sudo fedscan gate approve",
        "sudo fedscan deploy admit",
        "sudo install -m 600 north.crt",
        "export FLWR",
        "sudo fedscan deploy remove",
        "sudo install -d -m 700 /etc/fedscan/old",
        *NOT_FOLLOWED,
    )
    assert [one for one in BLOCKS if not one.startswith(followed)] == []


def test_no_private_key_leaves_its_machine(history: History) -> None:
    assert {Path(one).name for one in history.sent if "key" in Path(one).name} == set()
    assert {Path(one).suffix for one in history.sent if "." in Path(one).name} == {
        *(".crt", ".toml", ".service", ".md"),
        *(".csr", ".pub"),
    }


def test_nothing_listens_on_a_hospitals_outside_address(history: History) -> None:
    for site in HOSPITALS:
        assert history.listening[site]
        assert all(one.startswith("0100007F:") for one in history.listening[site])


def test_a_hospital_sends_nothing_to_anybody_but_the_coordinator(history: History) -> None:
    assert history.contacted == {f"{ADDRESSES['coordinator.example']} 6 443"}


def test_the_coordinator_shows_the_network_its_proxy_alone(history: History) -> None:
    assert history.answers["open ports"] == [443]


@pytest.mark.parametrize(
    "who", ["no certificate", "another authority's certificate", "plain HTTP", "removed"]
)
def test_a_stranger_is_refused_whatever_it_asks_for(history: History, who: str) -> None:
    assert set(history.answers[who]) == {403}, history.answers[who]


def test_a_hospital_reaches_the_fleet_api_and_nothing_else(history: History) -> None:
    assert set(history.answers["a hospital's"]) == {403}
    assert history.answers["a hospital's at its own door"][0] not in (400, 403, 404)


def test_a_node_whose_key_is_not_registered_is_refused(history: History) -> None:
    told = history.without_registered_key
    assert told.returncode == 1
    assert "SuperNode ID" not in told.stderr + told.stdout


def test_the_superlink_hands_out_no_task_without_the_secret(history: History) -> None:
    assert history.answers["a thief"] == [401]


def test_a_run_whose_hospital_fails_ends_with_an_error_that_names_it(history: History) -> None:
    assert "summary.json" not in history.results[0]
    assert "south" in json.dumps(history.results[0]["failure.json"])
    assert "north" not in history.results[0]["failure.json"]


def test_a_hospital_that_failed_comes_back_by_itself_and_takes_part_in_a_run(history) -> None:
    assert "summary.json" in history.results[1], history.runs[1].stdout
    assert set(history.results[1]["summary.json"]["sites"]) == set(HOSPITALS)


def test_a_removed_hospital_is_no_node_any_more(history: History) -> None:
    number = re.findall(r"SuperNode ID: (\d+)", history.logs["south"])[-1]
    assert number not in history.nodes_after_removal


def test_no_log_of_a_hospital_names_a_participant(history: History) -> None:
    assert all("sub-" not in log for log in history.logs.values())


def test_no_process_is_left(history: History) -> None:
    assert not any(history.left.values())
