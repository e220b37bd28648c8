"""Whatever a faulty or hostile site answers costs that site its round, and is told in its name."""

from __future__ import annotations

import io
import json
import logging
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from safetensors.torch import load_file
from test_server_rounds import (
    Clock,
    FailingSite,
    InProcessGrid,
    ScriptedSite,
    fail,
    nodes,
    rounds_lost,
    run,
)

from common import messages
from common.disclosure import WITHHELD
from common.errors import ProvenanceError
from common.messages import ARRAYS, CONFIG, EVALUATE, FAILURE, HELLO, IDENTITY, METRICS, TRAIN
from common.metrics_log import UNUSABLE, read_rows
from server import exchange, participants
from server.replies import SiteFailure

pytestmark = pytest.mark.usefixtures("in_simulation", "one_thread", "task_identity")
Change = Callable[[RecordDict], object]
REFUSED = "its answer is not usable: "
SOUTH = "108"  # the second node, before it has said its name


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(participants, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(exchange, "time", Clock())


@pytest.fixture
def warnings(caplog) -> Callable[[], list[str]]:
    """What the run has warned of."""
    return lambda: [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def answering(change: Change, kind: str = TRAIN, round_number: int = 1) -> InProcessGrid:
    """North answers as it should; of south one answer is changed."""

    def how(message: Message) -> Message:
        reply = ScriptedSite("south")(message)
        change(reply.content)
        return reply

    south = FailingSite("south", kind=kind, round_number=round_number, how=how)
    return InProcessGrid(nodes(ScriptedSite("north"), south))


# Who are you?


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c[IDENTITY].pop("device"), "'device'"),
        (lambda c: c[IDENTITY].pop("extractor-hash"), "'extractor-hash'"),
        (lambda c: c[IDENTITY].update({"device": [1, 2]}), "device is no short text"),
        (lambda c: c[IDENTITY].update({"device": "x" * 1000}), "device is no short text"),
        (lambda c: c[IDENTITY].update({"device": "\x1b[2J"}), "device is no short text"),
        (lambda c: c[IDENTITY].update({"extractor-hash": 7}), "extractor-hash is no short text"),
        (lambda c: c.pop(METRICS), METRICS),
        (lambda c: c[METRICS].pop("n_train"), "n_train is missing"),
        (lambda c: c[METRICS].update(n_val=math.nan), "n_val = nan: accepted is a whole number"),
        (lambda c: c[METRICS].update(n_val=math.inf), "n_val = inf"),
        (lambda c: c[METRICS].update(n_val=2.5), "n_val = 2.5"),
        (lambda c: c[METRICS].update(n_train=1_000_001), "a whole number from 0 to 1,000,000"),
        (lambda c: c[METRICS].update({"n" * 1000: 1}), "no usable name"),
        (lambda c: c[METRICS].update({f"m{k}": 1 for k in range(2000)}), "accepted are up to 1000"),
        (lambda c: c[METRICS].update(n_val=-1), "n_val = -1"),
        (lambda c: c[METRICS].update(n_val=[1, 2]), "'n_val' is not a number"),
    ],
)
def test_broken_answer_at_the_roll_call_is_told_in_its_sites_name(tmp_path, change, why):
    grid = answering(change, HELLO, 0)
    failure = fail(tmp_path, grid, SiteFailure)
    assert (failure["site"], failure["phase"]) == ("south", HELLO)
    assert failure["error"].startswith(REFUSED)
    assert why in failure["error"]
    assert grid.asked() == [(HELLO, "", 0)]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop(IDENTITY),
        lambda c: c.update({IDENTITY: MetricRecord({"site": 1})}),
        lambda c: c[IDENTITY].pop("site"),
        lambda c: c[IDENTITY].pop("source-hash"),
        lambda c: c[IDENTITY].update(site=["south"]),
        lambda c: c[IDENTITY].update(site="../south"),
        lambda c: c[IDENTITY].update(site="all"),
    ],
)
def test_site_that_does_not_say_who_it_is_has_the_number_of_its_node(tmp_path, change):
    failure = fail(tmp_path, answering(change, HELLO, 0), SiteFailure)
    assert (failure["site"], failure["phase"]) == (SOUTH, HELLO)
    assert failure["error"].startswith(REFUSED)


def test_other_sources_are_told_also_where_they_answer_otherwise(tmp_path):
    def older(content: RecordDict) -> None:
        content[IDENTITY] = ConfigRecord({"site": "south", "source-hash": "0" * 64})

    failure = fail(tmp_path, answering(older, HELLO, 0), ProvenanceError)
    assert "site 'south' runs other fedscan sources" in failure["error"]


# A site that says that it failed

WHOLE = {"site": "south", "phase": "train, round 1", "error": "disk full", "traceback": "fit"}


def failed(**told: str) -> Change:
    def change(content: RecordDict) -> None:
        content.clear()
        content[FAILURE] = ConfigRecord(told)

    return change


@pytest.mark.parametrize("lacking", WHOLE)
def test_record_of_a_failure_that_lacks_something_is_a_failure_all_the_same(tmp_path, lacking):
    told = {key: value for key, value in WHOLE.items() if key != lacking}
    failure = fail(tmp_path, answering(failed(**told)), SiteFailure)
    assert failure["site"] == "south"
    assert TRAIN in failure["phase"]
    assert "round 1" in failure["phase"]
    assert failure["error"] == told.get("error", "no reason given")
    assert failure["traceback"] == told.get("traceback", "")


@pytest.mark.parametrize("kind", [TRAIN, EVALUATE])
def test_site_cannot_blame_another(tmp_path, kind):
    grid = answering(failed(**WHOLE | {"site": "north"}), kind)
    failure = fail(tmp_path, grid, SiteFailure)
    assert (failure["site"], failure["error"]) == ("south", "disk full")


@pytest.mark.parametrize(
    ("told", "expected"), [("south", "south"), ("../south", SOUTH), ("", SOUTH), (None, SOUTH)]
)
def test_who_failed_at_the_roll_call_is_called_by_its_name_if_it_is_one(tmp_path, told, expected):
    whole = WHOLE | {"site": told} if told is not None else {"error": "disk full"}
    failure = fail(tmp_path, answering(failed(**whole), HELLO, 0), SiteFailure)
    assert (failure["site"], failure["error"]) == (expected, "disk full")


# Training


def junk(data: bytes, name: str = messages.WEIGHTS, stype: str = messages.FORMAT) -> ArrayRecord:
    return ArrayRecord({name: Array("uint8", (len(data),), stype, data)})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.update({ARRAYS: MetricRecord({"w": 1.0})}), "one record"),
        (lambda c: c.update({METRICS: ConfigRecord({"num-examples": 10})}), "one record"),
        (lambda c: c.update(more=ArrayRecord()), "one record, 'arrays' and 'metrics'"),
        (lambda c: c.update(more=MetricRecord({"loss": 1.0})), "one record"),
        (lambda c: c.update({"other": c.pop(ARRAYS)}), "one record"),
        (lambda c: c.update({ARRAYS: junk(b"")}), "header too small"),
        (lambda c: c.update({ARRAYS: junk(b"PK\3\4junk")}), "longer than"),
        (lambda c: c.update({ARRAYS: junk(b"\2" + bytes(7) + b"((")}), "invalid JSON"),
        (lambda c: c.update({ARRAYS: ArrayRecord({"w": Array(np.zeros(1))})}), "one array"),
        (lambda c: c[METRICS].update({"loss": [1.0]}), "'loss' is not a number"),
        (lambda c: c[METRICS].update({"num-examples": math.nan}), "num-examples = nan"),
        (lambda c: c[METRICS].update({"num-examples": 9}), "9 scans trained on, of 10"),
        (lambda c: c[METRICS].pop("num-examples"), "'num-examples'"),
    ],
)
def test_broken_update_costs_its_site_the_round_and_nobody_else(tmp_path, warnings, change, why):
    folder = run(tmp_path, answering(change))
    assert lost(folder) == [(1, "south", "train")]
    assert rounds_lost(folder) == {"north": 0, "south": 1}
    (told,) = [line for line in warnings() if "left out" in line]
    assert told.startswith(f"Site 'south' is left out of train, round 1: {REFUSED}")
    assert why in told


def lost(folder: Path) -> list[tuple[int, str, str]]:
    rows = [r for r in read_rows(folder / "metrics.jsonl") if r.name == UNUSABLE]
    return [(row.round, row.site, row.split) for row in rows]


def test_round_that_a_site_has_lost_is_the_others_alone(tmp_path):
    south = FailingSite("south", round_number=1, mark=True, how=lambda m: broken(m, "south"))
    grid = InProcessGrid(nodes(ScriptedSite("north"), south))
    folder = run(tmp_path, grid, rounds=1)
    (north,) = [
        messages.unpack(reply.content[ARRAYS])
        for reply in grid.replies
        if reply.metadata.message_type == TRAIN
        and reply.content[METRICS]["num-examples"] == 10
        and "more" not in reply.content
    ]
    for name, weight in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(weight, north[name], rtol=0, atol=0)


def broken(message: Message, name: str) -> Message:
    reply = ScriptedSite(name)(message)
    reply.content["more"] = ArrayRecord()
    return reply


def test_run_without_one_usable_update_names_all_sites(tmp_path):
    sites = (FailingSite(n, how=lambda m, n=n: broken(m, n)) for n in ("south", "north"))
    failure = fail(tmp_path, InProcessGrid(nodes(*sites)), SiteFailure)
    assert (failure["site"], failure["phase"]) == ("north, south", "train, round 2")
    assert failure["error"].count(REFUSED) == 2


def test_site_that_withholds_its_training_metrics_takes_part(tmp_path):
    def quiet(content: RecordDict) -> None:
        content[METRICS] = MetricRecord({"num-examples": 10})

    folder = run(tmp_path, answering(quiet))
    assert lost(folder) == []
    told = {(r.site, r.name) for r in read_rows(folder / "metrics.jsonl") if r.round == 1}
    assert ("north", "loss") in told


# Judging


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.update({ARRAYS: junk(b"")}), "header too small"),
        (lambda c: c[METRICS].update({"loss": [1.0]}), "'loss' is not a number"),
        (lambda c: c[METRICS].update({"num-examples": 0}), "num-examples = 0"),
        (lambda c: c.pop(METRICS), METRICS),
    ],
)
def test_broken_evaluation_does_not_count_and_is_told(tmp_path, warnings, change, why):
    folder = run(tmp_path, answering(change, EVALUATE))
    assert lost(folder) == [(1, "south", "val")]
    (told,) = [line for line in warnings() if "left out" in line]
    assert told.startswith(f"Site 'south' is left out of evaluate (val), round 1: {REFUSED}")
    assert why in told
    rows = [r for r in read_rows(folder / "metrics.jsonl") if r.round == 1 and r.split == "val"]
    assert {r.site for r in rows if r.name == "loss"} == {"north"}


def test_site_without_the_metric_that_rounds_are_chosen_by_does_not_count(tmp_path, warnings):
    folder = run(tmp_path, answering(lambda c: c[METRICS].pop("loss"), EVALUATE))
    assert lost(folder) == [(1, "south", "val")]
    assert "does not report its loss" in warnings()[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({messages.WEIGHT: 10**6}, "judged on 1000000 images, of 5 that were there at first"),
        ({"n_train": 3.0}, "metric 'n_train' is none that this run reports"),
        ({"unusable": 0.0}, "metric 'unusable' has the name of one of the server's"),
        ({"bytes-up-train": 0.0}, "has the name of one of the server's"),
        ({"loss": -1e30}, "no measure is as large"),
        ({"loss": -1.0}, "no cross-entropy is below 0"),
        ({"loss": 1e300}, "no measure is as large"),
        ({"loss": math.nan}, "its loss is no number"),
    ],
)
def test_site_cannot_choose_the_round_or_rewrite_a_count(tmp_path, warnings, change, why):
    grid = answering(lambda content: content[METRICS].update(change), EVALUATE)
    folder = run(tmp_path, grid)
    assert lost(folder) == [(1, "south", "val")]
    assert why in warnings()[0]


def test_site_that_judges_on_other_images_than_before_does_not_count(tmp_path, warnings):
    grid = answering(lambda c: c[METRICS].update({"num-examples": 4}), EVALUATE, 2)
    assert lost(run(tmp_path, grid)) == [(2, "south", "val")]
    assert "judged on 4 images, of 5 before" in warnings()[0]


def test_run_in_which_no_evaluation_is_usable_names_all_sites(tmp_path):
    def how(message: Message) -> Message:
        reply = ScriptedSite("south")(message)
        del reply.content[METRICS]["loss"]
        return reply

    sites = (FailingSite(n, kind=EVALUATE, round_number=1, how=how) for n in ("south", "north"))
    failure = fail(tmp_path, InProcessGrid(nodes(*sites)), SiteFailure)
    assert (failure["site"], failure["phase"]) == ("north, south", "evaluate (val), round 1")


def test_answers_that_are_whole_are_taken(tmp_path):
    folder = run(tmp_path, answering(lambda content: None))
    assert (folder / "summary.json").exists()
    assert messages.WEIGHT not in (folder / "metrics.jsonl").read_text()


# Withholding


def withheld(content: RecordDict) -> None:
    content.clear()
    content[METRICS] = MetricRecord({"num-examples": 0})
    content[messages.WORDS] = ConfigRecord({WITHHELD: "fewer than 10 people"})


class Withholding(ScriptedSite):
    """It trains, and tells of no evaluation."""

    def __call__(self, message: Message) -> Message:
        reply = super().__call__(message)
        if message.metadata.message_type == EVALUATE:
            withheld(reply.content)
        return reply


def test_site_that_withholds_its_evaluation_is_not_judged_by(tmp_path, warnings):
    north = ScriptedSite("north", val_loss=[0.5, 0.3, 0.4], mark=True)
    folder = run(tmp_path, InProcessGrid(nodes(north, Withholding("south", mark=True))))
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["best_round"], summary["selected_by"]) == (2, "validation")
    assert "loss" in summary["sites"]["north"]
    assert summary["sites"]["south"] == {
        **dict.fromkeys(("n_val", "n_test"), 5),
        "n_train": 10,
        **dict.fromkeys(("rounds_lost", "rounds_share_bounded", "rounds_norm_bounded"), 0),
    }
    assert lost(folder) == []
    assert warnings() == []


class BrokenTest(ScriptedSite):
    """One whose last test file turns out to be broken."""

    def __call__(self, message: Message) -> Message:
        reply = super().__call__(message)
        if message.metadata.message_type == HELLO:
            reply.content[METRICS]["left_out"] = 2
        elif message.content[CONFIG]["split"] == "test":
            reply.content[METRICS]["num-examples"] = self.n_val - 1
        return reply


def test_test_files_that_cannot_be_read_are_left_out_of_the_summary(tmp_path):
    folder = run(tmp_path, InProcessGrid(nodes(BrokenTest("north"), ScriptedSite("south"))))
    north = json.loads((folder / "summary.json").read_text())["sites"]["north"]
    assert (north["n_test"], north["left_out"]) == (4, 3)
    listed = json.loads((folder / "manifest.json").read_text())["sites"]["north"]
    assert (listed["n_test"], listed["left_out"]) == (5, 2)


def test_last_round_is_the_result_where_no_site_tells_how_a_round_fared(tmp_path, warnings):
    sites = (Withholding(name, mark=True) for name in ("north", "south"))
    folder = run(tmp_path, InProcessGrid(nodes(*sites)))
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["best_round"], summary["selected_by"]) == (3, "last round")
    assert [site["n_test"] for site in summary["sites"].values()] == [5, 5]
    assert json.loads((folder / "model.json").read_text())["round"] == 3
    assert all(torch.all(w == 3) for w in load_file(folder / "model.safetensors").values())
    assert any("last round" in line for line in warnings())


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[METRICS].update({"num-examples": 5}),
        lambda c: c[METRICS].update({"loss": 0.1}),
        lambda c: c.update({ARRAYS: ArrayRecord({"w": Array(np.zeros(1))})}),
        lambda c: c[messages.WORDS].update({WITHHELD: "\x1b[2J"}),
    ],
)
def test_site_that_withholds_and_tells_does_not_count(tmp_path, change):
    def both(content: RecordDict) -> None:
        withheld(content)
        change(content)

    assert lost(run(tmp_path, answering(both, EVALUATE))) == [(1, "south", "val")]


# Arrays that are other than they say


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def promised(dtype: str, shape: object, end: object, name: str = "0/w") -> dict[str, object]:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w", b"\0" * 4_000_000)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        file_of(promised("F32", [2_700_000_000], 10_800_000_000), b"\0" * 64),  # 10 GB
        file_of(promised("F32", [2_700_000_000], 64), b"\0" * 64),
        file_of(promised("F32", [10**30], 4), b"\0" * 4),
        file_of(promised("F32", [2**62, 4], 4), b"\0" * 4),  # 0 in 64 bits
        file_of(promised("F32", [0, 99999999999999], 4), b"\0" * 4),
        file_of(promised("F32", [-1, -4], 16), b"\0" * 16),
        file_of(promised("F32", [1], -4), b"\0" * 4),
        file_of(promised("O", [1], 4), b"\x80\x04N."),
        file_of(promised("BF16", [2], 4), b"\0" * 4),
        file_of(promised("C64", [1], 8), b"\0" * 8),
        file_of(promised("F32", [1], 4) | promised("F32", [1], 4, "1/w"), b"\0" * 4),
        file_of(promised("F32", [1], 4), b"\0" * 400),
        file_of(b"[" * 3000 + b"]" * 3000),
        file_of({f"{i}/w": promised("F32", [0], 0)["0/w"] for i in range(50_000)}),
        file_of(b"__import__('os').getcwd()"),
        (2**63).to_bytes(8, "little"),
        zipped(),
        b"cos\nsystem\n(S'true'\ntR.",
        b"",
    ],
)
def test_arrays_are_read_only_where_their_bytes_bear_out_what_they_promise(data):
    import tracemalloc

    record = junk(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match="tensor"):
        messages.unpack(record)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "record",
    [
        ArrayRecord(),
        junk(b"", name="w"),
        junk(b"", stype="numpy.ndarray"),
        ArrayRecord({**junk(b""), **junk(b"", name="w")}),
    ],
)
def test_weights_are_one_array_under_one_name(record):
    with pytest.raises(ValueError, match="one array"):
        messages.unpack(record)


def test_two_tensors_cannot_have_one_name():
    data = promised("F32", [0], 0) | promised("F32", [0], 0, "1/w")
    with pytest.raises(ValueError, match="same name"):
        messages.unpack(junk(file_of(data)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "float64", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 1, 2)])
def test_plain_arrays_come_back_as_they_were(dtype, shape):
    sent = np.asarray(np.arange(math.prod(shape)).reshape(shape), dtype)
    found = messages.unpack(messages.pack({"w": torch.from_numpy(sent)}))["w"].numpy()
    np.testing.assert_array_equal(found, sent)
    assert (found.dtype, found.shape) == (sent.dtype, sent.shape)
