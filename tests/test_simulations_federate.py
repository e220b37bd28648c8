"""Starting Flower on a busy machine, and what counts as the end of a run."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.config import RunConfig
from common.errors import ConfigError, FedscanError
from common.metrics_log import Row
from simulations import federate as module
from simulations import launch
from simulations.federate import STARTS, RunFailed, _completed, federate
from simulations.launch import TOO_SLOW, FlowerRun, Resources

SLOW = f"Starting local SuperLink...\nError: {TOO_SLOW} 15s. See logs at /tmp/x.\n"


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Let Flower's starts end as they are told to; return how many there were."""
    monkeypatch.setenv("FEDSCAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    made: list[int] = []

    def end_as(*outcomes):
        def attempt(config, resources, start, *, quiet):
            made.append(start)
            return outcomes[start - 1]

        monkeypatch.setattr(module, "_attempt", attempt)
        return made

    return end_as


def config(tmp_path: Path, **changes) -> RunConfig:
    values = {"output-dir": str(tmp_path / "runs"), "cohort-dir": str(tmp_path), **changes}
    return RunConfig.from_flower(values)


def test_a_start_that_was_too_slow_is_tried_again(attempts, tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "summary.json").write_text('{"best_round": 1}')
    made = attempts((None, False, SLOW), (folder, True, ""))
    assert federate(config(tmp_path), Resources(2)) == (folder, {"best_round": 1})
    assert made == [1, 2]


def test_a_machine_that_stays_too_busy_is_said_so(attempts, tmp_path: Path) -> None:
    made = attempts(*[(None, False, SLOW)] * STARTS)
    with pytest.raises(RunFailed, match="too busy") as caught:
        federate(config(tmp_path), Resources(2))
    assert made == list(range(1, STARTS + 1))
    assert "See logs at" not in str(caught.value)  # they are gone


def test_any_other_failure_is_final(attempts, tmp_path: Path) -> None:
    made = attempts((None, False, "Error: something else"))
    with pytest.raises(RunFailed, match="something else"):
        federate(config(tmp_path), Resources(2))
    assert made == [1]


def test_a_runs_own_word_is_enough(tmp_path: Path) -> None:
    def silent() -> bool:
        raise FedscanError("nothing")

    run = SimpleNamespace(succeeded=silent)
    with pytest.raises(FedscanError, match="nothing"):
        _completed(run, tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    assert _completed(run, tmp_path)
    (tmp_path / "failure.json").write_text("{}")
    assert not _completed(run, tmp_path)


def test_flower_is_asked_again_until_it_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None, "", "running", "finished:completed"])
    log = tmp_path / "flower.log"
    log.write_text("Successfully started run 7")

    def ask(self, run_id):
        if (status := next(answers)) is None:
            raise subprocess.TimeoutExpired("flwr", 1)
        runs = f'[{{"status": "{status}"}}]' if status else "[]"
        return SimpleNamespace(stdout=f'{{"runs": {runs}}}', stderr="")

    monkeypatch.setattr(FlowerRun, "_ask_status", ask)
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)
    assert FlowerRun(log, {}, None, tmp_path).succeeded()
    assert next(answers, "none left") == "none left"


def test_a_round_of_which_nobody_tells_counts_when_the_next_begins(tmp_path: Path) -> None:
    told: list[str] = []
    bar = SimpleNamespace(done=0)

    def advance(number: int, note: str = "", **more: bool) -> None:
        bar.done += number
        told.append(note)

    bar.advance = advance
    rows = [Row(1, "north", split, "bytes-up-x", 0.0, 0, 0.0) for split in ("train", "val")]
    settings = config(tmp_path, **{"num-server-rounds": 2})
    module._show_new_rounds(rows, bar, settings)
    assert bar.done == 0
    rows.append(Row(2, "north", "train", "loss", 0.5, 8, 1.0))
    rows.append(Row(2, "north", "val", "balanced_accuracy", 0.75, 8, 1.0))
    module._show_new_rounds(rows, bar, settings)
    assert (bar.done, told) == (2, ["validation: not told", "validation: north 0.75"])


def test_a_path_of_any_letters_reaches_flower() -> None:
    values = {"cohort-dir": '/home/𠮷 "ö"\\ \x7f \x01', "seed": 3, "learning-rate": 1e-3}
    assert tomllib.loads(launch._toml(values)) == values
    with pytest.raises(ConfigError, match="not UTF-8"):
        launch._toml({"cohort-dir": "/home/\udcff"})


def test_an_extractor_that_is_not_there_is_refused_first(attempts, tmp_path: Path) -> None:
    made = attempts()
    for path, why in ((str(tmp_path / "nix.pt"), "accepted are"), ("nix.pt", "absolute path")):
        with pytest.raises(ConfigError, match=rf"extractor '.*nix\.pt': .*{why}"):
            federate(config(tmp_path, task="generation", extractor=path), Resources(2))
    assert made == []
