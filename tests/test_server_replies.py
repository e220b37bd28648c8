"""Whatever a faulty or hostile site answers: the run ends in that site's name, in clear words."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from test_server_rounds import FailingSite, InProcessGrid, ScriptedSite, fail, nodes, run

from common import messages
from common.errors import FedscanError, ProvenanceError
from common.messages import ARRAYS, EVALUATE, FAILURE, HELLO, IDENTITY, METRICS, TRAIN
from server import roll_call
from server.replies import SiteFailure, Update, require_same_metrics

pytestmark = pytest.mark.usefixtures("in_simulation", "one_thread", "task_identity")
Change = Callable[[RecordDict], object]
UNUSABLE = "its answer is not usable: "
SOUTH = "108"  # the second node, before it has said its name


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(roll_call, "SETTLE_SECONDS", 0.0)


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
        (lambda c: c[METRICS].update(n_train=1e308), "a whole number from 0 to 10,000,000"),
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
    assert failure["error"].startswith(UNUSABLE)
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
    assert failure["error"].startswith(UNUSABLE)


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


def junk(data: bytes) -> ArrayRecord:
    return ArrayRecord({"w": Array("float32", (1,), "numpy.ndarray", data)})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.update({ARRAYS: MetricRecord({"w": 1.0})}), "one record"),
        (lambda c: c.update({METRICS: ConfigRecord({"num-examples": 10})}), "one record"),
        (lambda c: c.update(more=ArrayRecord()), "one record, 'arrays' and 'metrics'"),
        (lambda c: c.update(more=MetricRecord({"loss": 1.0})), "one record"),
        (lambda c: c.update({"other": c.pop(ARRAYS)}), "one record"),
        (lambda c: c.update({ARRAYS: junk(b"")}), "EOFError"),
        (lambda c: c.update({ARRAYS: junk(b"PK\3\4junk")}), "BadZipFile"),
        (lambda c: c.update({ARRAYS: junk(b"\x93NUMPY\1\0\2\0((")}), "not usable"),
        (lambda c: c[METRICS].update({"loss": [1.0]}), "'loss' is not a number"),
        (lambda c: c[METRICS].update({"num-examples": math.nan}), "num-examples = nan"),
        (lambda c: c[METRICS].update({"num-examples": 9}), "9 scans trained on, of 10"),
        (lambda c: c[METRICS].pop("num-examples"), "'num-examples'"),
    ],
)
def test_broken_update_is_told_in_its_sites_name(tmp_path, change, why):
    failure = fail(tmp_path, answering(change), SiteFailure)
    assert (failure["site"], failure["phase"]) == ("south", "train, round 1")
    assert failure["error"].startswith(UNUSABLE)
    assert why in failure["error"]


def test_site_whose_metrics_have_other_names_is_told(tmp_path):
    sites = [ScriptedSite(name) for name in ("a", "c")]
    odd = FailingSite("b", how=lambda m: changed(ScriptedSite("b")(m)), round_number=1)
    failure = fail(tmp_path, InProcessGrid(nodes(*sites, odd)), SiteFailure)
    assert (failure["site"], failure["phase"]) == ("b", "train, round 1")
    assert "metrics 'loss', where others have 'images-seen', 'loss'" in failure["error"]


def changed(reply: Message) -> Message:
    del reply.content[METRICS]["images-seen"]
    return reply


def test_most_sites_decide_which_metrics_there_are():
    def updates(**names: str) -> dict[str, Update]:
        state = {"w": torch.zeros(1)}
        return {
            site: Update(1, dict.fromkeys(metrics, 0.0), state) for site, metrics in names.items()
        }

    require_same_metrics(updates(a="xy"), "train, round 1")
    require_same_metrics(updates(a="xy", b="yx"), "train, round 1")
    with pytest.raises(FedscanError, match="a 'x', 'y'; b 'x'") as caught:  # who is wrong?
        require_same_metrics(updates(a="xy", b="x"), "train, round 1")
    assert not isinstance(caught.value, SiteFailure)
    with pytest.raises(SiteFailure, match="site 'a' failed in train, round 1"):
        require_same_metrics(updates(a="x", b="xy", c="xy"), "train, round 1")


# Judging


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.update({ARRAYS: junk(b"")}), "EOFError"),
        (lambda c: c[METRICS].update({"loss": [1.0]}), "'loss' is not a number"),
        (lambda c: c[METRICS].update({"num-examples": 0}), "num-examples = 0"),
        (lambda c: c.pop(METRICS), METRICS),
    ],
)
def test_broken_evaluation_is_told_in_its_sites_name(tmp_path, change, why):
    failure = fail(tmp_path, answering(change, EVALUATE), SiteFailure)
    assert (failure["site"], failure["phase"]) == ("south", "evaluate (val), round 1")
    assert failure["error"].startswith(UNUSABLE)
    assert why in failure["error"]


@pytest.mark.parametrize("metric", ["loss", "balanced_accuracy"])
def test_site_without_the_metric_that_rounds_are_chosen_by_is_told(tmp_path, metric):
    failure = fail(tmp_path, answering(lambda c: c[METRICS].pop(metric), EVALUATE), SiteFailure)
    assert (failure["site"], failure["phase"]) == ("south", "evaluate (val), round 1")
    assert f"does not tell its {metric}" in failure["error"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({messages.WEIGHT: 10**6}, "judged on 1000000 images, of 5 that were there at first"),
        ({"n_train": 3.0}, "metric 'n_train' has the name of a count"),
        ({"loss": -1e30}, "no cross-entropy is below 0"),
    ],
)
def test_site_cannot_choose_the_round_or_rewrite_a_count(tmp_path, change, why):
    grid = answering(lambda content: content[METRICS].update(change), EVALUATE)
    failure = fail(tmp_path, grid, SiteFailure)
    assert (failure["site"], failure["phase"]) == ("south", "evaluate (val), round 1")
    assert why in failure["error"]


def test_answers_that_are_whole_are_taken(tmp_path):
    folder = run(tmp_path, answering(lambda content: None))
    assert (folder / "summary.json").exists()
    assert messages.WEIGHT not in (folder / "metrics.jsonl").read_text()
