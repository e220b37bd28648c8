"""Whatever a folder of results or a model holds: read, or refused in words."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from unittest.mock import MagicMock

import benchmark_folders
import pandas as pd
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hostile import CASES, Case, as_json, as_lines, hostile, keeps_its_promise
from hypothesis import given, settings
from tiny_gan import start

from common import messages
from common.checkpoints import read_model, read_snapshot, save_model, save_snapshot
from common.metrics_log import MetricsTail, Row, read_rows
from common.training.gan_checkpoint import load_checkpoint, load_generator, save_checkpoint
from simulations.report import document
from simulations.results import read_predictions

STATE = {"conv.weight": torch.arange(12.0).view(3, 4), "steps": torch.tensor(3)}
ABOUT = {"task": "classification", "classes": ["F", "M"], "image_size": 16, "at-sites": ["conv"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


# Folders of results


class Made:
    """Files by name; hypothesis would show bytes whole."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.changed = set(self.files)  # since they were written

    def put(self, folder: Path, case: Case, *names: str) -> None:
        """Write all files, one of some altered or damaged; the folder is always the same."""
        for name in self.changed:
            (folder / name).write_bytes(self.files[name])
        name = case.choice(names or sorted(self.files))
        self.changed, raw = {name}, self.files[name]
        tree = name.endswith(".json")
        hostile = case.tree_or_bytes(json.loads(raw), as_json) if tree else case.damaged(raw)
        (folder / name).write_bytes(hostile)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("made") / "benchmark"
    small = {"sites": {"north": 6}, "seeds": 1, "rounds": 1, "n_test": 4, "draws": 20}
    benchmark_folders.make_folder(home, models=benchmark_folders.MODELS[::2], **small)
    columns = {"seed": [0], "row": ["real"], "site": ["north"], "metric": ["auroc"]}
    pd.DataFrame(columns | {"value": [0.5], "n": [6]}).to_csv(home / "use.csv", index=False)
    document.write_report(home)  # what it imports is there from now on
    (home / document.REPORT).unlink()
    return Made(home)


@hostile
@given(CASES)
def test_any_files_of_a_comparison_are_read_or_refused(folder, comparison, case: Case):
    comparison.put(folder, case)
    with pytest.MonkeyPatch.context() as patch:  # to draw them takes longest
        patch.setattr(document, "Content", MagicMock())
        patch.setattr(document, "fill", str)
        keeps_its_promise(lambda: document.write_report(folder), folder)


@settings(hostile, max_examples=40)
@given(CASES)
def test_a_report_says_whatever_the_files_say_or_is_refused(folder, comparison, case: Case):
    comparison.put(folder, case, "summary.json", "manifest.json")
    keeps_its_promise(lambda: document.write_report(folder), folder)


PREDICTIONS = b"""scan,person,label,probability.F,probability.M
0,1,1,0.25,0.75
1,2,0,0.5,0.5
"""


@hostile
@given(CASES)
def test_any_predictions_are_read_or_refused(folder, case: Case):
    path = folder / "predictions.csv"
    path.write_bytes(case.damaged(PREDICTIONS))
    keeps_its_promise(lambda: read_predictions(path, folder), folder)


ROW = Row(1, "north", "val", "loss", 0.5, 12, 3.25)


@hostile
@given(CASES)
def test_any_log_of_metrics_is_read_or_refused(folder, case: Case):
    path = folder / "metrics.jsonl"
    path.write_bytes(case.tree_or_bytes([asdict(ROW)] * 2, as_lines))
    found = keeps_its_promise(lambda: list(read_rows(path)), folder)
    if isinstance(found, list):
        assert all(isinstance(one, Row) for one in found)
        assert MetricsTail(path).new_rows() is not None


# Models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    home = tmp_path_factory.mktemp("model")
    save_model(home, STATE, ABOUT)
    return (home / "model.safetensors").read_bytes()


def hostile_tensors(raw: bytes, case: Case) -> bytes:
    """Change the header of a safetensors file, which keeps its length or has another then."""
    size = int.from_bytes(raw[:8], "little")
    header = case.tree_or_bytes(json.loads(raw[8 : 8 + size]), as_json)
    whole = len(header).to_bytes(8, "little") + header + raw[8 + size :]
    return whole if case.random() < 0.8 else case.damaged(raw)


@hostile
@given(CASES)
def test_any_model_is_read_or_refused(folder, model, case: Case):
    (folder / "model.safetensors").write_bytes(hostile_tensors(model, case))
    found = keeps_its_promise(lambda: read_model(folder), folder)
    if isinstance(found, tuple):
        description, tensors = found
        assert isinstance(description, dict)
        assert all(isinstance(one, torch.Tensor) for one in tensors.values())


@hostile
@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("state")
    save_snapshot(home, "state", STATE, ABOUT)
    return Made(home)


@hostile
@given(CASES)
def test_any_snapshot_is_read_or_refused(folder, snapshot, case: Case):
    snapshot.put(folder, case)
    found = keeps_its_promise(lambda: read_snapshot(folder, "state"), folder)
    if isinstance(found, tuple):
        assert all(torch.equal(found[1][name], one) for name, one in STATE.items())


@pytest.fixture(scope="module")
def packed() -> bytes:
    (array,) = messages.pack(STATE).values()
    return array.data


@hostile
@given(CASES)
def test_any_weights_of_a_message_are_unpacked_or_refused(folder, packed, case: Case):
    data = hostile_tensors(packed, case)
    record = ArrayRecord({"weights": Array("uint8", (len(data),), "safetensors", data)})
    found = keeps_its_promise(lambda: messages.unpack(record), folder, errors=(ValueError,))
    if isinstance(found, dict):
        assert all(isinstance(one, torch.Tensor) for one in found.values())


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("gan")
    save_checkpoint(home, start())
    load_checkpoint(home), load_generator(home)
    return Made(home)


@hostile
@given(CASES)
def test_any_checkpoint_of_a_gan_is_read_or_refused(folder, gan, case: Case):
    gan.put(folder, case)
    load = case.choice([load_checkpoint, load_generator])
    keeps_its_promise(lambda: load(folder), folder)
