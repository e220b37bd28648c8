"""Whatever a folder of results, a model or a ledger holds: read, or refused in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import benchmark_folders
import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hostile import ALTERATIONS, EDITS, altered, as_json, damaged, hostile, keeps_its_promise
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gateway_ledger import sent
from tiny_gan import start

from clients.gateway.approvals import NAME as APPROVED
from clients.gateway.approvals import Approvals
from clients.gateway.chain import last_line, verify
from clients.gateway.ledger import Ledger
from common import messages
from common.checkpoints import read_model, read_snapshot, save_model, save_snapshot
from common.metrics_log import MetricsLog, MetricsTail, Row, read_rows
from common.predictions import save_predictions
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

    def put(self, folder: Path, name: str, alterations: list, edits: list) -> None:
        """Write all files, one of them altered and damaged."""
        for one, raw in self.files.items():
            (folder / one).write_bytes(raw)
        raw = self.files[name]
        if name.endswith(".json"):
            raw = as_json(altered(json.loads(raw), alterations))
        (folder / name).write_bytes(damaged(raw, edits))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("made") / "benchmark"
    small = {"sites": {"island": 4, "north": 6}, "seeds": 1, "rounds": 2, "n_test": 6, "draws": 20}
    benchmark_folders.make_folder(home, **small)
    columns = {"seed": [0], "row": ["real"], "site": ["north"], "metric": ["auroc"]}
    pd.DataFrame(columns | {"value": [0.5], "n": [6]}).to_csv(home / "use.csv", index=False)
    document.write_report(home)  # what it imports is there from now on
    (home / document.REPORT).unlink()
    return Made(home)


FILES = st.sampled_from(["summary.json", "manifest.json", "results.csv", "samples.npz", "use.csv"])


@hostile
@given(FILES, ALTERATIONS | st.just([]), EDITS | st.just([]))
def test_any_files_of_a_comparison_are_read_or_refused(
    folder, comparison, name, alterations, edits
):
    comparison.put(folder, name, alterations, edits)
    with pytest.MonkeyPatch.context() as patch:  # to draw them takes longest
        patch.setattr(document, "Content", MagicMock())
        patch.setattr(document, "fill", str)
        keeps_its_promise(lambda: document.write_report(folder), folder)


@settings(hostile, max_examples=100)
@given(st.sampled_from(["summary.json", "manifest.json"]), ALTERATIONS)
def test_a_report_says_whatever_the_files_say_or_is_refused(folder, comparison, name, alterations):
    comparison.put(folder, name, alterations, [])
    keeps_its_promise(lambda: document.write_report(folder), folder)


@hostile
@given(EDITS)
def test_any_predictions_are_read_or_refused(folder, edits):
    path = folder / "predictions.csv"
    save_predictions(path, np.array([1, 0]), np.array([0.75, 0.5]), "xy", "FM")
    path.write_bytes(damaged(path.read_bytes(), edits))
    keeps_its_promise(lambda: read_predictions(path, folder), folder)


ROW = Row(1, "north", "val", "loss", 0.5, 12, 3.25)


@hostile
@given(ALTERATIONS, EDITS | st.just([]))
def test_any_log_of_metrics_is_read_or_refused(folder, alterations, edits):
    path = folder / "metrics.jsonl"
    path.write_bytes(b"")
    MetricsLog(path).append([ROW, ROW])
    line = as_json(altered(json.loads(path.read_bytes().splitlines()[0]), alterations))
    path.write_bytes(damaged(path.read_bytes() + line + b"\n", edits))
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


def header_changed(raw: bytes, alterations: list) -> bytes:
    """Alter the header of a safetensors file, and give it the length that it has then."""
    size = int.from_bytes(raw[:8], "little")
    header = as_json(altered(json.loads(raw[8 : 8 + size]), alterations))
    return len(header).to_bytes(8, "little") + header + raw[8 + size :]


@hostile
@given(ALTERATIONS | st.just([]), EDITS | st.just([]))
def test_any_model_is_read_or_refused(folder, model, alterations, edits):
    (folder / "model.safetensors").write_bytes(damaged(header_changed(model, alterations), edits))
    found = keeps_its_promise(lambda: read_model(folder), folder)
    if isinstance(found, tuple):
        description, tensors = found
        assert isinstance(description, dict)
        assert all(isinstance(one, torch.Tensor) for one in tensors.values())


@hostile
@given(st.booleans(), ALTERATIONS, EDITS)
def test_any_snapshot_is_read_or_refused(folder, in_weights, alterations, edits):
    home = folder / "snapshot"
    shutil.rmtree(home, ignore_errors=True)
    save_snapshot(home, "state", STATE, ABOUT)
    if in_weights:
        (path,) = home.glob("*.safetensors")
        path.write_bytes(damaged(path.read_bytes(), edits))
    else:
        sidecar = home / "state.json"
        sidecar.write_bytes(as_json(altered(json.loads(sidecar.read_bytes()), alterations)))
    found = keeps_its_promise(lambda: read_snapshot(home, "state"), folder)
    if isinstance(found, tuple):
        assert all(torch.equal(found[1][name], one) for name, one in STATE.items())


@hostile
@given(ALTERATIONS | st.just([]), EDITS | st.just([]))
def test_any_weights_of_a_message_are_unpacked_or_refused(folder, alterations, edits):
    (array,) = messages.pack(STATE).values()
    data = damaged(header_changed(array.data, alterations), edits)
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
@given(st.sampled_from([load_checkpoint, load_generator]), ALTERATIONS)
def test_any_sidecar_of_a_gan_is_read_or_refused(tmp_path_factory, gan, load, alterations):
    home = tmp_path_factory.getbasetemp() / "gan"
    home.mkdir(exist_ok=True)
    gan.put(home, "gan.json", alterations, [])
    keeps_its_promise(lambda: load(home), home)


# What a site keeps


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gate") / "ledger.jsonl"
    with Ledger(path, "north") as opened:
        for number in range(1, 4):
            opened.append(sent(number))
    return path.read_bytes()


@hostile
@given(st.integers(0, 3), ALTERATIONS | st.just([]), EDITS | st.just([]))
def test_any_ledger_is_verified_or_refused(folder, ledger, which, alterations, edits):
    lines = ledger.splitlines()
    lines[which] = as_json(altered(json.loads(lines[which]), alterations))
    path = folder / "ledger.jsonl"
    path.write_bytes(damaged(b"\n".join(lines) + b"\n", edits))
    for finding in keeps_its_promise(lambda: verify(path), folder):
        assert len(finding.words) < 1000 and finding.words.isprintable()
    keeps_its_promise(lambda: last_line(path), folder)

    def opened() -> None:
        with Ledger(path, "north"):
            pass

    keeps_its_promise(opened, folder)


APPROVAL = {
    **{"action": "approved", "hash": "ab" * 32, "name": "fedscan/fedscan", "version": "1"},
    **{"identical": True, "when": "2026-01-01T00:00:00+00:00", "by": "anna", "note": "seen"},
}


@hostile
@given(ALTERATIONS | st.just([]), EDITS | st.just([]))
def test_any_list_of_approved_apps_is_read_or_refused(folder, alterations, edits):
    lines = [as_json(APPROVAL), as_json(altered(APPROVAL, alterations)), b""]
    (folder / APPROVED).write_bytes(damaged(b"\n".join(lines), edits))
    approvals = Approvals(folder / APPROVED)
    found = keeps_its_promise(approvals.current, folder)
    if isinstance(found, list):
        assert all(one.action == "approved" for one in found)
