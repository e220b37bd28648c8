"""Seeds, files, logs, checkpoints and provenance: what a run rests on."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import load_model
from torch import nn

from common import checkpoints, provenance
from common.checkpoints import save_model
from common.config.run_config import RunConfig
from common.errors import ConfigError, DataContractError, ProvenanceError
from common.files import without_nan, write_atomically, write_json
from common.metrics_log import MetricsLog, MetricsTail, Row, read_rows
from common.paths import cache_dir, site_records
from common.predictions import save_predictions
from common.provenance import require_same_source, source_hash
from common.run_folder import RunFolder
from common.seeding import derive_seed
from common.tasks.task import SiteContext, load_task

AXES = st.dictionaries(
    st.from_regex(r"(?!seed\b)[a-z]{1,8}", fullmatch=True),
    st.integers(-(2**63), 2**63) | st.text(max_size=8),
    max_size=4,
)


# Errors


def test_public_words_of_a_data_error_hold_nothing_read_from_the_data():
    error = DataContractError(
        "north",
        "sex is neither F nor M",
        where="participants.tsv, sub-007",
        got="'X'",
        remedy="Fix",
    )
    assert "sub-007" in str(error)
    assert "'X'" in str(error)
    assert error.public == "site 'north': sex is neither F nor M. Fix"


# Seeds


def test_seeds_never_change_between_versions():
    """Computed once; another value here means that no earlier run can be repeated."""
    assert derive_seed(0) == 9057680574682390391
    assert derive_seed(7, site="north", round=3, purpose="batches") == 364872576657708753


@given(st.integers(0, 2**53), AXES, st.randoms())
def test_seed_knows_no_order_of_axes(seed, axes, random):
    shuffled = list(axes.items())
    random.shuffle(shuffled)
    assert derive_seed(seed, **dict(shuffled)) == derive_seed(seed, **axes)


@given(st.tuples(st.integers(0, 2**53), AXES), st.tuples(st.integers(0, 2**53), AXES))
def test_seeds_agree_exactly_when_seed_and_axes_do(one, other):
    same = derive_seed(one[0], **one[1]) == derive_seed(other[0], **other[1])
    assert same == (one == other)


def test_axes_cannot_be_confused():
    seeds = [
        derive_seed(1),
        derive_seed(1, site="1"),
        derive_seed(1, site=1),
        derive_seed(1, round=1),
        derive_seed(11),
        derive_seed(1, site="north", round=12),
        derive_seed(1, site="north1", round=2),
        derive_seed(1, site="north", round=1, purpose="2"),
    ]
    assert len(set(seeds)) == len(seeds)


@given(st.integers(0, 2**53), AXES)
def test_seed_suits_numpy_and_torch(seed, axes):
    derived = derive_seed(seed, **axes)
    assert 0 <= derived < 2**63
    torch.Generator().manual_seed(derived)


# Folders


def test_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSCAN_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("FEDSCAN_CACHE", "~/cache")
    assert cache_dir() == Path.home() / "cache"
    monkeypatch.delenv("FEDSCAN_CACHE")
    assert cache_dir().is_absolute()
    assert cache_dir().name == "fedscan"


def test_records_of_a_site_are_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path))
    assert site_records("north") == tmp_path / "north"
    monkeypatch.delenv("FEDSCAN_RECORDS")
    assert site_records("north").is_absolute()
    assert site_records("north") != site_records("south")


@pytest.mark.parametrize(
    ("variable", "folder"),
    [("FEDSCAN_CACHE", cache_dir), ("FEDSCAN_RECORDS", lambda: site_records("north"))],
)
@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("records", "accepted is an absolute path, since"),
        ("./records", "accepted is an absolute path, since"),
        ("../records", "accepted is an absolute path, since"),
        ("~nobody-here/records", "~ stands for no folder"),
    ],
)
def test_relative_folder_is_refused(monkeypatch, variable, folder, value, rule):
    """Processes of one run have other working directories; it would be another folder in each."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        folder()
    assert str(caught.value).startswith(f"{variable}={value}: {rule}")
    assert caught.value.public.startswith(f"{variable}: {rule}")
    assert value not in caught.value.public


# Files


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_file_and_its_folders_are_written(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.chmod"])
def test_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(step, disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_value_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_json_without_nan_is_json_that_every_reader_takes(value):
    cleaned = without_nan(value)
    assert json.loads(json.dumps(cleaned, allow_nan=False)) == cleaned
    assert without_nan(cleaned) == cleaned


def test_nan_is_null_and_the_original_is_left_alone(tmp_path):
    value = {"auroc": math.nan, "sites": [(1.5, math.inf)], "n": 3}
    write_json(tmp_path / "file.json", value)
    written = json.loads((tmp_path / "file.json").read_text())
    assert written == {"auroc": None, "sites": [[1.5, None]], "n": 3}
    assert math.isnan(value["auroc"])


# The log of metrics


def row(**values) -> Row:
    return Row(**{**ROW, **values})


ROW = {
    "round": 1,
    "site": "north",
    "split": "val",
    "name": "loss",
    "value": 0.5,
    "n": 40,
    "seconds": 1.25,
}


def test_log_gives_back_its_rows_in_order(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    assert list(read_rows(log.path)) == []
    log.append([row(), row(site="south")])
    log.append([])
    log.append([row(round=2, value=0.1 + 0.2)])
    assert list(read_rows(log.path)) == [row(), row(site="south"), row(round=2, value=0.1 + 0.2)]


def test_opening_a_log_again_keeps_its_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append([row()])
    MetricsLog(path).append([row(round=2)])
    assert [one.round for one in read_rows(path)] == [1, 2]


def test_nan_in_the_log_is_null_on_disk_and_nan_again(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append([row(value=math.nan), row(value=1.0)])
    assert "NaN" not in log.path.read_text()
    values = [one.value for one in read_rows(log.path)]
    assert math.isnan(values[0])
    assert values[1] == 1.0


def test_line_still_being_written_is_left_for_later_wherever_it_ends(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append([row(), row(round=2)])
    whole = log.path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        log.path.write_bytes(whole[:length])
        assert list(read_rows(log.path)) == [row()]


def test_a_tail_gives_every_row_once_wherever_the_writer_pauses(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append([row(), row(round=2, value=math.nan), row(round=3)])
    whole = log.path.read_bytes()
    for pause in range(len(whole) + 1):
        tail = MetricsTail(tmp_path / f"{pause}.jsonl")
        assert tail.new_rows() == []  # it is not there yet
        tail.path.write_bytes(whole[:pause])
        rows = tail.new_rows()
        assert [one.round for one in rows] == [1, 2, 3][: whole[:pause].count(b"\n")]
        tail.path.write_bytes(whole)
        rows += tail.new_rows()
        assert list(map(repr, rows)) == list(map(repr, read_rows(log.path)))
        assert tail.new_rows() == []


# Predictions


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 2), st.tuples(*[st.floats(0, 1)] * 3)), max_size=6))
def test_predictions_are_read_back_to_the_last_bit(tmp_path, scans):
    classes = ("MEL", 'a, "b"', "Größe")
    labels = np.array([label for label, _ in scans], dtype=np.int64)
    probabilities = np.array([each for _, each in scans], dtype=np.float64).reshape(-1, 3)
    persons = [f"sub-{k}" for k in range(len(scans))]
    save_predictions(tmp_path / "run.csv", labels, probabilities, persons, classes)
    with (tmp_path / "run.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["scan"]) for row in rows] == list(range(len(scans)))
    found = [
        (int(row["label"]), tuple(float(row[f"probability.{name}"]) for name in classes))
        for row in rows
    ]
    assert found == scans


def test_predictions_of_two_classes_may_be_those_of_the_second(tmp_path):
    save_predictions(tmp_path / "a.csv", np.array([1, 0]), np.array([0.75, 0.5]), "xy", "FM")
    both = np.array([[0.25, 0.75], [0.5, 0.5]])
    save_predictions(tmp_path / "b.csv", np.array([1, 0]), both, "xy", "FM")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_predictions_tell_who_belongs_together_and_no_name(tmp_path):
    persons = ["sub-anna", "sub-bob", "sub-anna", "#3"]
    save_predictions(tmp_path / "run.csv", np.zeros(4, int), np.zeros(4), persons, ("F", "M"))
    text = (tmp_path / "run.csv").read_text()
    assert [line.split(",")[1] for line in text.splitlines()[1:]] == ["0", "1", "0", "2"]
    assert not any(name in text for name in persons)


# Checkpoints


def small_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


@pytest.fixture
def saved(tmp_path):
    save_model(tmp_path, small_model().state_dict(), {"task": "classification"})
    return tmp_path


def test_checkpoint_round_trip_is_bitwise(saved):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    assert load_model(saved, model) == {"task": "classification"}
    for name, tensor in small_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_same_state_is_the_same_bytes(saved, tmp_path):
    state = small_model().state_dict()
    save_model(tmp_path / "again", dict(reversed(state.items())), {"task": "classification"})
    for name in ("model.safetensors", "model.json"):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_state_that_lies_scattered_in_memory_is_saved_as_it_reads(tmp_path):
    scattered = torch.arange(6.0).reshape(2, 3).T
    save_model(tmp_path, {"weight": scattered}, {})
    assert torch.equal(load_file(tmp_path / "model.safetensors")["weight"], scattered)


def test_weights_say_which_they_are_where_the_writer_ended_before_the_sidecar(
    tmp_path, monkeypatch
):
    """A process that ends in between, or a reader who comes then, sees the sidecar of before."""
    state = small_model().state_dict()
    save_model(tmp_path, state, {"round": 5, "loss": 0.5})
    newer = {name: tensor + 1 for name, tensor in state.items()}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", disk_full)
        with pytest.raises(OSError, match="No space left"):
            save_model(tmp_path, newer, {"round": 6, "loss": math.nan})
    assert json.loads((tmp_path / "model.json").read_text()) == {"round": 5, "loss": 0.5}
    model = small_model()
    assert load_model(tmp_path, model) == {"round": 6, "loss": None}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in newer.items())


def test_sidecar_says_the_same_as_the_weights(saved):
    assert json.loads((saved / "model.json").read_text()) == load_model(saved, small_model())


# Provenance


@pytest.fixture
def sources(tmp_path):
    root = tmp_path / "sources"
    for package in provenance.PACKAGES:
        (root / package / "inner").mkdir(parents=True)
        (root / package / "inner" / "module.py").write_text(f"NAME = '{package}'\n")
    return root


def fresh_hash(root: Path) -> str:
    return source_hash.__wrapped__(root)  # without the cache: these sources change


def test_copy_has_the_same_hash(sources, tmp_path):
    shutil.copytree(sources, tmp_path / "elsewhere")
    assert fresh_hash(tmp_path / "elsewhere") == fresh_hash(sources)


@pytest.mark.parametrize("package", provenance.PACKAGES)
def test_hash_changes_with_a_byte_and_with_a_name(sources, package):
    module = sources / package / "inner" / "module.py"
    before = fresh_hash(sources)
    module.rename(module.with_name("other.py"))
    renamed = fresh_hash(sources)
    module.with_name("other.py").rename(module)
    module.write_text(module.read_text().replace("=", "!"))
    assert len({before, renamed, fresh_hash(sources)}) == 3


def test_hash_changes_when_a_module_comes_or_two_trade_contents(sources):
    before = fresh_hash(sources)
    one, two = (sources / p / "inner" / "module.py" for p in ("server", "clients"))
    texts = one.read_text(), two.read_text()
    one.write_text(texts[1])
    two.write_text(texts[0])
    traded = fresh_hash(sources)
    (sources / "common" / "more.py").touch()
    assert len({before, traded, fresh_hash(sources)}) == 3


def test_hash_ignores_whatever_is_not_source(sources):
    before = fresh_hash(sources)
    (sources / "common" / "README.md").write_text("words")
    (sources / "common" / "__pycache__").mkdir()
    (sources / "common" / "__pycache__" / "module.cpython-311.pyc").write_bytes(b"\0")
    (sources / "tests").mkdir()
    (sources / "tests" / "test_module.py").write_text("answer = 42\n")
    assert fresh_hash(sources) == before


def test_hash_is_of_the_sources_in_use():
    here = Path(__file__).parents[1]
    assert source_hash() == fresh_hash(here)
    assert len(source_hash()) == 64
    assert int(source_hash(), 16) >= 0


def test_same_source_is_accepted_and_another_refused_with_both_hashes():
    require_same_source(source_hash(), "the server")
    with pytest.raises(ProvenanceError, match=f"the server.*{'0' * 12}.*{source_hash()[:12]}"):
        require_same_source("0" * 64, "the server")
    with pytest.raises(ProvenanceError, match="none"):
        require_same_source("", "the server")


def test_library_that_is_missing_is_said_to_be(monkeypatch):
    monkeypatch.setattr(provenance, "LIBRARIES", ("torch", "no-such-library"))
    found = provenance.versions()
    assert found["torch"].startswith("2.")
    assert found["no-such-library"] == "not installed"


# The run folder


def test_run_folder_holds_what_is_needed_to_repeat_the_run(tmp_path):
    config = RunConfig.from_flower(
        {"run.output-dir": str(tmp_path), "run.seed": 3, "data.size": 16}
    )
    folder = RunFolder(config, "42")
    assert folder.path == tmp_path / "42"
    folder.write_manifest({"north": {"n_train": 8}}, "0f")
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert RunConfig.from_flower(manifest["config"]) == config
    assert manifest["source_hash"] == source_hash()
    assert manifest["sites"] == {"north": {"n_train": 8}}
    state = small_model().state_dict()
    place = SiteContext("server", ("north",), torch.device("cpu"))
    load_task(config.task).save(folder.path, state, state, config, round_number=5, place=place)
    described = load_model(folder.path, small_model())
    assert (described["round"], described["image_size"]) == (5, 16)


def test_whole_run_and_failed_run_can_be_told_apart(tmp_path):
    config = RunConfig.from_flower({"run.output-dir": str(tmp_path)})
    RunFolder(config, "whole").write_summary({"auroc": math.nan})
    RunFolder(config, "failed").write_failure({"site": "north", "error": "why"})
    assert json.loads((tmp_path / "whole" / "summary.json").read_text()) == {"auroc": None}
    assert not (tmp_path / "failed" / "summary.json").exists()
    assert json.loads((tmp_path / "failed" / "failure.json").read_text())["site"] == "north"
