"""Tiny phantoms, made once; one thread a process, as two spinning thread pools crawl."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

# Before the first import of torch or numpy, here and in every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import functools
import shutil
import signal
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from browser import Browser

    from common.evaluation.extractors.network import PlaceNetwork

# Started in the background of a script, a process ignores Ctrl-C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# In one worker, one after the other: each takes all cores, and some share their runs.
SERIAL = (
    "test_deployment.py",
    "test_docs_commands.py",
    "test_docs_notebooks.py",
    "test_faults.py",
    "test_federation.py",
    "test_ray_cluster.py",
    "test_separate.py",
    "test_simulations_benchmark.py",
    "test_simulations_generation.py",
    "test_simulations_run.py",
)
# A deployed site's, by which it answers as a simulated one: with few people, and from seeds alone.
OPEN_POLICY = """
min-participants = 1
min-batch-size = 1
share-moments = true
private-seed = false
"""
TINY = ["run.rounds=2", "training.local-steps=2", "training.batch-size=4", "data.size=16"]
TINY_GENERATION = [
    'task="generation"',
    'model.gan-changes="resolution=16 channel-max=8 z-dim=8 w-dim=8 label-kinds=sex,height,site"',
    "run.rounds=3",
    "training.local-steps=2",
    "training.batch-size=4",
    "run.evaluate-every=2",
    "run.device='cpu'",
]
# They start Ray and Flower too, but share no run: beside those above, to share the time out.
APART = ("test_dermatology.py", "test_studies_own.py", "test_wheel.py")
# Long ones begin early: the worker that is done first takes what is left, and both end together.
LONG = (
    *APART,
    "test_attack_command.py",
    "test_evaluation_extractor.py",
    "test_evaluation_memorization.py",
    "test_hostile_runs.py",
)


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites, north with 8 and island with 4 training and validation scans, 4 to test each."""
    from common.imaging.cohorts import write_cohort

    out = tmp_path_factory.mktemp("cohort") / "cohort"
    return write_cohort(out, {"north": 8, "island": 4}, n_test=4, seed=5, workers=1)


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that the processes of every test share, and no user's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def quick_network() -> PlaceNetwork:
    """Network of the default extractor with too little training to judge, enough to name."""
    from common.evaluation.extractors import brain

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brain, "SCANNERS", brain.SCANNERS[:2])  # phantoms take most of the time
        return brain.make_network(subjects=4, steps=2)


@pytest.fixture(scope="module")
def quick_default(quick_network: PlaceNetwork) -> Iterator[None]:
    """Take that network for the default extractor's wherever this process makes it."""
    with pytest.MonkeyPatch.context() as patch:
        make = "common.evaluation.extractors.brain.make_network"
        patch.setattr(make, lambda: quick_network)
        yield


@pytest.fixture(scope="session")
def quick_extractor(quick_network: PlaceNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with that network, for processes of their own."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("extractor") / "quick.safetensors"
    save_file(quick_network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_tasks(quick_extractor: Path) -> dict[str, list[str]]:
    """Settings of the smallest run of each task."""
    generation = [*TINY_GENERATION, f"model.extractor='{quick_extractor}'"]
    return {"classification": TINY, "generation": generation}


@pytest.fixture(scope="session")
def finished(
    tiny_cohort: Path,
    tiny_tasks: dict[str, list[str]],
    session_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[CompletedProcess[str], Path]]:
    """Run ``fedscan run`` or ``federate`` once for all tests that ask for the same.

    Given command, task and more settings, it returns what was printed, and the run's folder, in
    which nobody writes.
    """
    from processes import fedscan, flower_processes, wait_until_gone

    @functools.cache
    def run(command: str, task: str, *more: str) -> tuple[CompletedProcess[str], Path]:
        cwd = tmp_path_factory.mktemp("two actors")  # a space: paths are quoted on the way
        before = flower_processes()
        words = [word for value in (*tiny_tasks[task], *more) for word in ("--set", value)]
        cohort = ("--cohort", str(tiny_cohort))
        done = fedscan(command, *cohort, *words, cwd=cwd, cache=session_cache, timeout=900)
        assert done.returncode == 0, done.stderr
        assert not wait_until_gone(before)
        return done, Path(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def in_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this process for an actor of the Simulation Engine, which may give a site a number."""
    monkeypatch.setattr("clients.guard.declared", dict)
    monkeypatch.setattr("clients.local.declared", dict)


@pytest.fixture
def telling_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let sites report and train as simulated ones do, over however few people."""
    policy = tmp_path / "policy.toml"
    policy.write_text(OPEN_POLICY)
    monkeypatch.setenv("FEDSCAN_POLICY", str(policy))


@pytest.fixture(scope="module")
def task_identity() -> Iterator[None]:
    """Tell Flower who sends a message, which it asks when a test composes one."""
    from flwr.supercore.task_identity import TaskIdentity

    with pytest.MonkeyPatch.context() as patch:
        for number in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, number, 1)
        yield


def golden_folder() -> Path:
    """Folder of reference numbers that the golden tests reproduce."""
    default = Path(__file__).parent / "golden" / "stylegan2-ada"
    return Path(os.environ.get("FEDSCAN_GOLDEN", "") or default)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """As :func:`golden_folder`."""
    return golden_folder()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what starts Ray and Flower, then with what else takes long."""
    for item in items:
        starts = any(map(item.get_closest_marker, ("simulation", "federation")))
        if starts and item.path.name not in SERIAL + APART:
            raise pytest.UsageError(f"{item.path.name} starts Ray or Flower: add it to SERIAL")
    items.sort(key=lambda item: (item.path.name not in SERIAL, item.path.name not in LONG))


class Scheduling(LoadFileScheduling):
    """Tests of one file stay together, since they share what is costly to make."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "serial" if Path(file).name in SERIAL else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    """Share the tests out among the workers."""
    return Scheduling(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU that PyTorch can use")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread, whatever a test before has set."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium."""
    if shutil.which("chromium") is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from browser import Browser

    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
