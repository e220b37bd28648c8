"""A run's metrics reach TensorBoard and MLflow as the server logged them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import ConfigError
from common.metrics_log import MetricsLog, Row
from simulations.cli import app
from simulations.track import BACKENDS, follow, name_of, open_sink

ROWS = [
    Row(1, "north", "val", "loss", 0.75, 8, 1.0),
    Row(2, "north", "val", "loss", 0.5, 8, 2.0),
    Row(2, "all", "val", "auroc", math.nan, 8, 2.0),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "2026-11-28-1530-brain-sex-fedavg"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"config": {"run.seed": 3, "study": "x" * 9}}))
    MetricsLog(folder / "metrics.jsonl").append(ROWS)
    return folder


def track(run: Path, to: str, out: Path) -> None:
    done = CliRunner().invoke(app, ["track", str(run), "--to", to, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)


def test_tensorboard_shows_every_number_under_its_round(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(run, "tensorboard", tmp_path / "board")
    events = EventAccumulator(str(tmp_path / "board" / run.name))
    events.Reload()
    told = [(one.step, one.value) for one in events.Scalars(name_of(ROWS[0]))]
    assert told == [(1, 0.75), (2, 0.5)]


def test_mlflow_holds_a_run_with_its_parameters_and_numbers(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    track(run, "mlflow", tmp_path / "store")
    client = MlflowClient((tmp_path / "store").as_uri())
    experiment = client.get_experiment_by_name("fedscan")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == run.name and found.info.status == "FINISHED"
    assert found.data.params["run.seed"] == "3"
    history = client.get_metric_history(found.info.run_id, name_of(ROWS[0]))
    assert [(one.step, one.value) for one in history] == [(1, 0.75), (2, 0.5)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_library_is_named_with_its_extra(backend, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, backend, None)
    with pytest.raises(ConfigError, match=rf"pip install 'fedscan\[{backend}\]'"):
        open_sink(backend, tmp_path, "run", {})


def test_what_comes_last_is_written_although_the_work_fails() -> None:
    written: list[Row] = []

    class Kept:
        def write(self, rows):
            written.extend(rows)

    left = [ROWS[:1], [], ROWS[1:]]
    with pytest.raises(RuntimeError), follow(Kept(), lambda: left.pop(0)) as step:
        step()
        step()
        raise RuntimeError
    assert written == ROWS


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    arguments = ["track", str(tmp_path), "--to", "mlflow", "--out", str(tmp_path / "store")]
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigError)
