"""``fedscan federate``: hospitals as separate processes give the simulation's results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TINY, TINY_GENERATION
from processes import fedscan, fedscan_here, flower_processes, modes_of_others, wait_until_gone

from clients.gateway import sandbox
from clients.gateway.chain import verify

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(not sandbox.kind(), reason="needs a sandbox"),
]
SECURE = {
    "secure sums": TINY,
    "generation in secure sums": [
        *(value.replace(",site", "") for value in TINY_GENERATION),
        "run.rounds=1",
    ],
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return three sites."""
    from common.imaging.cohorts import write_cohort

    out = tmp_path_factory.mktemp("three") / "cohort"
    return write_cohort(out, {"north": 8, "south": 6, "island": 4}, n_test=4, seed=5, workers=1)


def run(command: str, cohort: Path, values: list[str], *, cwd: Path, cache: Path) -> Path:
    """Run a federation; return its folder."""
    words = [word for value in values for word in ("--set", value)]
    done = fedscan(
        *(command, "--cohort", str(cohort), "--out", str(cwd / command), "--format", "json"),
        *words,
        cwd=cwd,
        cache=cache,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd / command / json.loads(done.stdout)["run_id"]


@pytest.fixture(scope="module", params=["classification", "generation", *SECURE])
def runs(
    request: pytest.FixtureRequest,
    cohort: Path,
    finished,
    quick_extractor: Path,
    session_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """Return the folders of a task's simulated and of its separate run."""
    commands = ("run", "federate")
    if request.param not in SECURE:
        return tuple(finished(command, request.param)[1] for command in commands)
    cwd, before = tmp_path_factory.mktemp("runs"), flower_processes()
    values = [*SECURE[request.param], "privacy.secure-sums=true"]
    if request.param.startswith("generation"):
        values.append(f"model.extractor='{quick_extractor}'")
    found = tuple(run(one, cohort, values, cwd=cwd, cache=session_cache) for one in commands)
    assert not wait_until_gone(before)
    return found


def sites_of(folder: Path) -> set[str]:
    return set(json.loads((folder / "summary.json").read_text())["sites"])


def test_separate_processes_give_the_bytes_of_the_simulation(runs: tuple[Path, Path]) -> None:
    simulated, separate = runs
    assert len(sites_of(simulated)) > 1
    assert sites_of(simulated) == sites_of(separate)
    names = {path.name for path in simulated.glob("*.safetensors")}
    assert names == {path.name for path in separate.glob("*.safetensors")} != set()
    for name in names:
        assert (simulated / name).read_bytes() == (separate / name).read_bytes(), name


def test_a_separate_run_leaves_the_same_files_and_the_sites_logs(runs: tuple[Path, Path]) -> None:
    simulated, separate = runs
    names = [{path.name for path in folder.iterdir()} for folder in (simulated, separate)]
    logs = {f"{site}.log" for site in sites_of(simulated)}
    ledgers = {f"{site}.ledger.jsonl" for site in sites_of(simulated)}
    assert names[1] - names[0] == logs | ledgers | {"superlink.log", "superexec.log"}
    assert not names[0] - names[1]
    assert not modes_of_others(separate)
    assert not [log for log in logs if "sub-" in (separate / log).read_text()]


def test_every_sites_ledger_verifies(runs: tuple[Path, Path]) -> None:
    for site in sites_of(runs[0]):
        ledger = runs[1] / f"{site}.ledger.jsonl"
        assert verify(ledger) == []
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert {line.get("decision", "sent") for line in lines} == {"sent"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-rounds = 1\n", "max-rounds"),
        ("[gate]\nmetric-digits = 99\n", "gate.metric-digits"),
        ("[secure-sums]\nfewest = 2\n", "secure-sums.fewest"),
    ],
)
def test_a_policy_that_refuses_the_run_or_is_wrong_is_met_before_anything_starts(
    cohort: Path, session_cache: Path, tmp_path: Path, text: str, words: str
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(text)
    done = fedscan_here(
        *("federate", "--cohort", str(cohort), "--policy", str(policy)),
        cwd=tmp_path,
        cache=session_cache,
    )
    assert done.returncode == 2
    assert words in done.stderr
