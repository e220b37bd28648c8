"""Whole federations in one process: who takes part, what is averaged, chosen, tested and told."""

from __future__ import annotations

import copy
import json
import logging
import math
import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from safetensors.torch import load_file

from clients import local
from clients.app import app as client_app
from clients.state import SiteState
from common import messages
from common.config.run_config import RunConfig, known_keys
from common.errors import ConfigError, FedscanError, ProvenanceError
from common.evaluation.of_site import Evaluation
from common.messages import EVALUATE, HELLO, TRAIN, Failure
from common.metrics_log import UNUSABLE, UPDATE_NORM, read_rows
from common.paths import cache_dir
from common.tasks.task import SiteContext, load_task
from common.transport import broadcast, encode_update, received, to_keep
from server import exchange, participants
from server.participants import SiteFailure
from server.rounds import federate
from simulations.arms import train_in_place

pytestmark = pytest.mark.usefixtures("in_simulation", "one_thread", "task_identity")

TINY = {
    "run.rounds": 3,
    "training.local-steps": 2,
    "training.batch-size": 4,
    "data.size": 16,
    "run.round-timeout": 7.0,
    "run.connect-timeout": 0.05,
}
Answer = Callable[[Message], Message | None]
TRAINED_AND_VALIDATED = ((TRAIN, "train", 1), (EVALUATE, "val", 0))  # weights come up from one
DEFAULT_SIZE = RunConfig.from_flower({}).data.size


class Clock:
    """Time that passes where somebody sleeps, and at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(participants, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(exchange, "time", Clock())


class InProcessGrid:
    """Stands in for Flower's Grid: SuperNodes are functions, and every message is written down."""

    def __init__(self, nodes: dict[int, Answer], *, shuffle: int | None = None) -> None:
        self.nodes = nodes
        self.requests: list[Message] = []
        self.replies: list[Message] = []
        self.waiting: dict[str, Message | None] = {}
        self._random = random.Random(shuffle) if shuffle is not None else None

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        if self._random:
            self._random.shuffle(sent)
        for message in sent:
            message.metadata.__dict__["_message_id"] = f"request {len(self.requests)}"
            reply = self.nodes[message.metadata.dst_node_id](message)
            self.waiting[message.metadata.message_id] = reply
            self.requests.append(message)
            # As sent, whatever the server then makes of it.
            self.replies += [] if reply is None else [copy.deepcopy(reply)]
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = [self.waiting.pop(one, None) for one in message_ids]
        return [reply for reply in replies if reply is not None]

    def asked(self) -> list[tuple[str, str, int]]:
        """What was asked for, in order: kind, split, round; once for all nodes."""
        seen = []
        for message in self.requests:
            config = message.content[messages.CONFIG]
            what = (message.metadata.message_type, str(config["split"]), int(config["round"]))
            if not seen or seen[-1] != what:
                seen.append(what)
        return seen


@dataclass
class ScriptedSite:
    """A hospital that answers from a script.

    After training in round r, its weights are the global ones plus noise of its own; with
    ``mark``, they are all r instead; with ``drift``, they are the global ones plus as much.
    """

    name: str
    n_train: int = 10
    n_val: int = 5
    val_loss: list[float] = field(default_factory=lambda: [0.5, 0.4, 0.3])
    mark: bool = False
    drift: float = 0.0
    transport: str = "float32"
    claims: dict[str, float] = field(default_factory=dict)
    kept: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, message: Message) -> Message:
        config = message.content[messages.CONFIG]
        round_number, split = int(config["round"]), str(config["split"])
        if message.metadata.message_type == HELLO:
            counts = {"n_train": self.n_train, "n_val": self.n_val, "n_test": self.n_val}
            return messages.identity_reply(message, self.name, counts, "cpu")
        if message.metadata.message_type == TRAIN:
            return self.train(message, round_number)
        loss = self.val_loss[round_number - 1] if split == "val" else 0.7
        metrics = {"loss": loss, "balanced_accuracy": 0.5, "auroc": float("nan")}
        return messages.evaluation_reply(message, Evaluation(self.n_val, metrics))

    def train(self, message: Message, round_number: int) -> Message:
        generator = torch.Generator().manual_seed(sum(self.name.encode()) + round_number)
        reference = received(messages.unpack(message.content[messages.ARRAYS]), self.kept)
        self.kept = to_keep(reference, self.transport)
        weights = {
            name: torch.full_like(weight, round_number)
            if self.mark
            else weight + (self.drift or torch.randn(weight.shape, generator=generator))
            for name, weight in reference.items()
        }
        metrics = {"loss": 0.6, "images-seen": 8.0, **self.claims}
        update, _ = encode_update(weights, reference, {}, self.transport)
        return messages.update_reply(message, self.n_train, metrics, update)


def nodes(*sites: Answer) -> dict[int, Answer]:
    return {101 + 7 * i: site for i, site in enumerate(sites)}


def dotted(changes: Mapping[str, object]) -> dict[str, object]:
    """Write run-config keys of a call as Flower has them: their last parts are unique enough."""
    keys = {key.rpartition(".")[2].replace("-", "_"): key for key in known_keys()}
    return {keys.get(name, name): value for name, value in changes.items()}


def run_config(folder: Path, **changes) -> RunConfig:
    return RunConfig.from_flower(TINY | {"run.output-dir": str(folder)} | dotted(changes))


def run(folder: Path, grid: InProcessGrid, **changes) -> Path:
    federate(grid, run_config(folder, **changes), run_id="run")
    return folder / "run"


def fail(folder: Path, grid: InProcessGrid, error: type[Exception], **changes) -> dict:
    """Run a federation that must end in an error; return what it left in failure.json."""
    with pytest.raises(error):
        run(folder, grid, **changes)
    assert not (folder / "run" / "summary.json").exists()
    return json.loads((folder / "run" / "failure.json").read_text())


# A run that goes well


def test_run_leaves_its_whole_folder(tmp_path):
    grid = InProcessGrid(nodes(ScriptedSite("south"), ScriptedSite("north", n_train=30)))
    folder = run(tmp_path, grid)
    assert {path.name for path in folder.iterdir()} == {
        "attendance.jsonl",
        "manifest.json",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
        "summary.json",
    }
    sites = json.loads((folder / "manifest.json").read_text())["sites"]
    assert sites["north"] == {"n_train": 30, "n_val": 5, "n_test": 5, "device": "cpu"}
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["sites"]) == ["north", "south"]
    assert summary["sites"]["north"]["n_train"] == 30
    assert summary["sites"]["north"]["n_test"] == 5
    assert summary["sites"]["north"]["auroc"] is None  # not a number is null, not a crash


def test_rounds_train_and_validate_and_test_scans_are_asked_for_once_at_the_end(tmp_path):
    grid = InProcessGrid(nodes(ScriptedSite("north"), ScriptedSite("south")))
    run(tmp_path, grid)
    assert grid.asked() == [
        (HELLO, "", 0),
        (TRAIN, "train", 1),
        (EVALUATE, "val", 1),
        (TRAIN, "train", 2),
        (EVALUATE, "val", 2),
        (TRAIN, "train", 3),
        (EVALUATE, "val", 3),
        (EVALUATE, "test", 3),
    ]
    splits = [message.content[messages.CONFIG]["split"] for message in grid.requests]
    assert splits.count("test") == 2  # once a site


def test_log_holds_every_number_of_every_site(tmp_path):
    folder = run(tmp_path, InProcessGrid(nodes(ScriptedSite("north"), ScriptedSite("south"))))
    rows = list(read_rows(folder / "metrics.jsonl"))
    losses = [(r.round, r.site, r.split, r.value, r.n) for r in rows if r.name == "loss"]
    assert ("train", 10) in {(split, n) for _, _, split, _, n in losses}
    assert [(r, s, v) for r, s, split, v, _ in losses if split == "val"] == [
        (number, site, loss)
        for number, loss in ((1, 0.5), (2, 0.4), (3, 0.3))
        for site in ("north", "south")
    ]
    assert {r.round for r in rows if r.split == "test"} == {3}
    assert messages.WEIGHT not in {r.name for r in rows}
    assert all(a.seconds <= b.seconds for a, b in pairwise(rows))


def test_bytes_are_those_of_the_weights(tmp_path):
    folder = run(tmp_path, InProcessGrid(nodes(ScriptedSite("north"), ScriptedSite("south"))))
    summary = json.loads((folder / "summary.json").read_text())
    model = load_task("classification").build_model(run_config(tmp_path))
    one = sum(len(array.data) for array in messages.pack(model.state_dict()).values())
    assert summary["bytes_up"] == one * 2 * 3  # two sites, three rounds of training
    assert summary["bytes_down"] == one * 2 * (3 + 3 + 1)  # and of validation, and the test
    rows = [r for r in read_rows(folder / "metrics.jsonl") if r.name.startswith("bytes-")]
    told = [(r.round, r.site, r.split, r.name, r.value) for r in rows]
    expected = [
        (number, site, split, name, value)
        for number, kind, split, up in (
            *((n, kind, split, up) for n in (1, 2, 3) for kind, split, up in TRAINED_AND_VALIDATED),
            (3, EVALUATE, "test", 0),
        )
        for site in ("north", "south")
        for name, value in ((f"bytes-down-{kind}", one), (f"bytes-up-{kind}", one * up))
    ]
    assert told == expected
    assert sum(r.value for r in rows if "-up-" in r.name) == summary["bytes_up"]
    assert sum(r.value for r in rows if "-down-" in r.name) == summary["bytes_down"]


# Averaging


def test_order_of_replies_changes_no_bit_of_the_result(tmp_path):
    """Sums of floats depend on their order; sites are summed in order of name."""
    names = ["a", "b", "c", "d", "e"]
    results = set()
    for shuffle in range(4):
        order = names[shuffle:] + names[:shuffle]  # and whoever connects first
        sites = [ScriptedSite(name, n_train=7 + 3 * names.index(name)) for name in order]
        grid = InProcessGrid(nodes(*sites), shuffle=shuffle)
        folder = run(tmp_path / str(shuffle), grid)
        results.add((folder / "model.safetensors").read_bytes())
    assert len(results) == 1


@pytest.mark.parametrize("weighting", ["images", "uniform"])
def test_weighting_of_the_run_decides_the_average_whatever_a_site_claims(tmp_path, weighting):
    """South has three quarters of the scans, and says in vain that it counts for more."""
    results = []
    for claims in ({}, {"images-seen": 1e9}):
        south = ScriptedSite("south", n_train=30, claims=claims)
        grid = InProcessGrid(nodes(ScriptedSite("north"), south))
        run(tmp_path / str(len(results)), grid, weighting=weighting, rounds=1)
        one, other, tested = (
            messages.unpack(m.content[messages.ARRAYS])
            for m in (
                *(r for r in grid.replies if r.metadata.message_type == TRAIN),
                grid.requests[-1],
            )
        )
        share = {"images": 0.75, "uniform": 0.5}[weighting]
        for name, weight in tested.items():
            torch.testing.assert_close(weight, (1 - share) * one[name] + share * other[name])
        results.append(tested)
    assert all(torch.equal(weight, results[1][name]) for name, weight in results[0].items())


# One site and the others


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("weighting", ["images", "uniform"])
def test_site_with_nearly_all_scans_has_no_more_than_its_share(tmp_path, weighting, caplog):
    sites = (ScriptedSite("north"), ScriptedSite("south", n_train=1_000_000))
    grid = InProcessGrid(nodes(*sites))
    changes = {"weighting": weighting, "most_share": 0.8, "rounds": 1}
    folder = run(tmp_path, grid, **changes)
    one, other = (messages.unpack(m.content[messages.ARRAYS]) for m in trained(grid))
    share = {"images": 0.8, "uniform": 0.5}[weighting]
    for name, weight in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(weight, (1 - share) * one[name] + share * other[name])
    bounded = {n: s["rounds_share_bounded"] for n, s in summary_of(folder)["sites"].items()}
    assert bounded == {"north": 0, "south": int(weighting == "images")}
    assert "site 'south' says that it has 1000000 training scans" in caplog.text.replace("S", "s")


def trained(grid: InProcessGrid) -> list[Message]:
    return [reply for reply in grid.replies if reply.metadata.message_type == TRAIN]


def test_site_that_claims_more_scans_than_any_has_cannot_take_part(tmp_path):
    sites = (ScriptedSite("north"), ScriptedSite("south", n_train=1_000_001))
    failure = fail(tmp_path, InProcessGrid(nodes(*sites)), SiteFailure)
    assert (failure["site"], failure["phase"]) == ("south", HELLO)


@pytest.mark.parametrize("transport", ["float32", "float16"])
def test_update_that_is_far_longer_than_the_others_is_shortened(tmp_path, transport, caplog):
    """Three sites go by 0.01 in every weight, one by 0.2: it is taken for 0.1, and told of."""
    drifts = {"a": 0.01, "b": 0.01, "c": 0.01, "loud": 0.2}
    sites = (ScriptedSite(n, drift=d, transport=transport) for n, d in drifts.items())
    grid = InProcessGrid(nodes(*sites))
    folder = run(tmp_path, grid, rounds=1, transport=transport)
    start = load_task("classification").build_model(run_config(tmp_path)).state_dict()
    for name, weight in load_file(folder / "model.safetensors").items():
        moved = (3 * 0.01 + 0.1) / 4
        torch.testing.assert_close(weight, start[name] + moved, rtol=1e-3, atol=2e-3)
    bounded = {n: s["rounds_norm_bounded"] for n, s in summary_of(folder)["sites"].items()}
    assert bounded == {"a": 0, "b": 0, "c": 0, "loud": 1}
    assert "the update of site 'loud'" in caplog.text
    norms = {r.site: r.value for r in rows_of(folder, UPDATE_NORM)}
    assert norms["loud"] == pytest.approx(20 * norms["a"], rel=0.01)  # as it was sent


def rows_of(folder: Path, name: str) -> list:
    return [row for row in read_rows(folder / "metrics.jsonl") if row.name == name]


def test_bounds_that_do_not_bind_change_no_bit(tmp_path):
    models = set()
    for number, changes in enumerate(({}, {"most_share": 1.0, "most_norm": 0.0})):
        sites = (ScriptedSite("north", n_train=30), ScriptedSite("south", drift=0.5))
        folder = run(tmp_path / str(number), InProcessGrid(nodes(*sites)), **changes)
        models.add((folder / "model.safetensors").read_bytes())
    assert len(models) == 1


def test_answers_are_waited_for_as_long_as_the_run_says(tmp_path):
    grid = InProcessGrid(nodes(ScriptedSite("north"), ScriptedSite("south")))
    run(tmp_path, grid, **{"run.round-timeout": 50_000.0})  # longer than Flower waits by itself
    assert {message.metadata.ttl for message in grid.requests} == {50_000.0}


def test_next_round_starts_from_the_average(tmp_path):
    grid = InProcessGrid(nodes(ScriptedSite("north"), ScriptedSite("south", n_train=30)))
    run(tmp_path, grid)

    def sent(messages_: list[Message], kind: str, round_number: int) -> list[ArrayRecord]:
        return [
            m.content[messages.ARRAYS]
            for m in messages_
            if m.metadata.message_type == kind and m.metadata.group_id == str(round_number)
        ]

    north, south = (messages.unpack(a) for a in sent(grid.replies, TRAIN, 1))
    for arrays in sent(grid.requests, TRAIN, 2) + sent(grid.requests, EVALUATE, 1):
        for name, weight in messages.unpack(arrays).items():
            torch.testing.assert_close(weight, 0.25 * north[name] + 0.75 * south[name])


# The best round


@pytest.mark.parametrize(
    ("north", "south", "best"),
    [
        ([0.5, 0.3, 0.4], [0.5, 0.3, 0.4], 2),
        ([0.3, 0.2, 0.1], [0.3, 0.2, 0.1], 3),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], 1),
        ([0.4, 0.3, 0.3], [0.4, 0.3, 0.3], 2),  # the earlier of two equal ones
        ([0.3, 0.3, 0.3], [0.3, 0.3, 0.3], 1),
        ([0.4, 0.5, 0.5], [0.9, 0.2, 0.3], 1),  # north has nine tenths of the scans
        ([float("nan"), 0.9, 1.0], [0.1, 0.9, 1.0], 2),  # a loss that is none is never the lowest
        ([float("inf"), 0.9, 1.0], [0.1, 0.9, 1.0], 2),
    ],
)
def test_result_is_the_round_of_the_lowest_pooled_validation_loss(tmp_path, north, south, best):
    sites = (
        ScriptedSite("north", n_val=90, val_loss=north, mark=True),
        ScriptedSite("south", n_val=10, val_loss=south, mark=True),
    )
    grid = InProcessGrid(nodes(*sites))
    folder = run(tmp_path, grid)
    assert json.loads((folder / "summary.json").read_text())["best_round"] == best
    assert json.loads((folder / "model.json").read_text())["round"] == best
    assert grid.asked()[-1] == (EVALUATE, "test", best)
    tested = messages.unpack(grid.requests[-1].content[messages.ARRAYS])
    for state in (tested, load_file(folder / "model.safetensors")):
        assert all(torch.all(weight == best) for weight in state.values())


def test_run_without_one_finite_loss_has_no_result(tmp_path):
    grid = InProcessGrid(nodes(*(ScriptedSite(n, val_loss=[float("nan")] * 3) for n in "ab")))
    failure = fail(tmp_path, grid, FloatingPointError)
    assert "diverged" in failure["error"]
    assert (failure["site"], failure["phase"]) == ("", "server")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert "test" not in {split for _, split, _ in grid.asked()}


def test_rounds_without_validation_are_trained_and_never_selected(tmp_path):
    losses = [0.0, 0.4, 0.0, 0.3, 0.5]  # none but the second, fourth and fifth are asked for
    sites = (ScriptedSite(name, val_loss=losses, mark=True) for name in ("north", "south"))
    grid = InProcessGrid(nodes(*sites))
    folder = run(tmp_path, grid, rounds=5, evaluate_every=2)
    assert grid.asked() == [
        (HELLO, "", 0),
        (TRAIN, "train", 1),
        (TRAIN, "train", 2),
        (EVALUATE, "val", 2),
        (TRAIN, "train", 3),
        (TRAIN, "train", 4),
        (EVALUATE, "val", 4),
        (TRAIN, "train", 5),
        (EVALUATE, "val", 5),
        (EVALUATE, "test", 4),
    ]
    assert json.loads((folder / "summary.json").read_text())["best_round"] == 4
    assert all(torch.all(w == 4) for w in load_file(folder / "model.safetensors").values())


# Who takes part


def test_two_sites_cannot_claim_one_name(tmp_path):
    grid = InProcessGrid(nodes(ScriptedSite("north"), ScriptedSite("north")))
    failure = fail(tmp_path, grid, ConfigError)
    assert "two SuperNodes say that they are site 'north'" in failure["error"]
    assert grid.asked() == [(HELLO, "", 0)]


BOUND = "north:101 south:108"


def test_site_is_taken_for_whom_its_node_is_bound_to(tmp_path):
    """A stranger that connects is not asked anything, whatever name it would say."""
    stranger = ScriptedSite("north", n_train=999)
    grid = InProcessGrid(nodes(ScriptedSite("north"), ScriptedSite("south"), stranger))
    folder = run(tmp_path, grid, site_nodes=BOUND)
    assert list(summary_of(folder)["sites"]) == ["north", "south"]
    assert {m.metadata.dst_node_id for m in grid.requests} == {101, 108}


@pytest.mark.parametrize("names", [("south", "north"), ("north", "east"), ("north", "north")])
def test_site_that_says_a_name_of_another_node_ends_the_run_and_both_are_named(tmp_path, names):
    grid = InProcessGrid(nodes(*map(ScriptedSite, names)))
    failure = fail(tmp_path, grid, ConfigError, site_nodes=BOUND)
    who, own = ("101", "north") if names[0] == "south" else ("108", "south")
    said = names[0] if names[0] == "south" else names[1]
    assert f"SuperNode {who} says that it is site '{said}'" in failure["error"]
    assert f"binds it to site '{own}'" in failure["error"]
    assert grid.asked() == [(HELLO, "", 0)]


def test_too_few_sites_in_time_end_the_run_before_a_question(tmp_path):
    grid = InProcessGrid(nodes(ScriptedSite("north"), ScriptedSite("south")))
    failure = fail(tmp_path, grid, ConfigError, min_sites=3)
    assert failure["phase"] == "server"
    assert "2 sites connected within 0.05 s, run.min-sites = 3" in failure["error"]
    assert grid.requests == []


def test_site_that_connects_late_is_waited_for(tmp_path, monkeypatch):
    grid = InProcessGrid(nodes(ScriptedSite("north")))
    monkeypatch.setattr(
        participants.time, "sleep", lambda _: grid.nodes.update({9: ScriptedSite("south")})
    )
    folder = run(tmp_path, grid, connect_timeout=600.0)
    assert list(json.loads((folder / "manifest.json").read_text())["sites"]) == ["north", "south"]


def test_more_sites_than_needed_all_take_part(tmp_path):
    grid = InProcessGrid(nodes(*(ScriptedSite(name) for name in "abcd")))
    folder = run(tmp_path, grid, min_sites=2)
    assert list(json.loads((folder / "summary.json").read_text())["sites"]) == list("abcd")


def test_enough_sites_start_the_run_even_where_time_is_too_short_to_settle(tmp_path, monkeypatch):
    """Waiting for more sites than min-sites is a courtesy, which no timeout turns into an error."""
    monkeypatch.setattr(participants, "SETTLE_SECONDS", 30.0)
    grid = InProcessGrid(nodes(ScriptedSite("north"), ScriptedSite("south")))
    assert (run(tmp_path, grid) / "summary.json").exists()


def test_site_with_other_sources_is_refused_before_training(tmp_path):
    class Outdated(ScriptedSite):
        def __call__(self, message: Message) -> Message:
            reply = super().__call__(message)
            reply.content[messages.IDENTITY]["source-hash"] = "0" * 64
            return reply

    grid = InProcessGrid(nodes(ScriptedSite("north"), Outdated("south")))
    failure = fail(tmp_path, grid, ProvenanceError)
    assert "site 'south' runs other fedscan sources (000000000000)" in failure["error"]
    assert grid.asked() == [(HELLO, "", 0)]


def test_sites_that_judge_by_different_networks_are_refused_before_training(tmp_path):
    @dataclass
    class Judging(ScriptedSite):
        extractor: str = ""

        def __call__(self, message: Message) -> Message:
            reply = super().__call__(message)
            if messages.IDENTITY in reply.content.config_records:
                reply.content[messages.IDENTITY]["extractor-hash"] = self.extractor
            return reply

    sites = (
        Judging(name, extractor=digest * 64) for name, digest in (("south", "1"), ("north", "0"))
    )
    grid = InProcessGrid(nodes(*sites))
    failure = fail(tmp_path, grid, FedscanError)
    assert "different extractors (north 000000000000, south 111111111111)" in failure["error"]
    assert "--node-config" in failure["error"]
    assert grid.asked() == [(HELLO, "", 0)]


# Sites that fail


@dataclass
class FailingSite(ScriptedSite):
    """Answers as scripted, but for one kind of question in one round."""

    kind: str = TRAIN
    round_number: int = 2
    how: Callable[[Message], Message | None] = lambda message: None
    split: str = ""

    def __call__(self, message: Message) -> Message | None:
        asked = message.metadata.message_type, int(message.content[messages.CONFIG]["round"])
        if asked == (self.kind, self.round_number):
            return self.how(message)
        return super().__call__(message)


def failing(how, **where) -> InProcessGrid:
    return InProcessGrid(nodes(ScriptedSite("north"), FailingSite("south", how=how, **where)))


def own_words(message: Message) -> Message:
    failure = Failure("south", "train, round 2", "disk full", "fit (classification.py:1)")
    return messages.failure_reply(message, failure)


def words_of_flower(message: Message) -> Message:
    return Message(Error(0, "killed"), reply_to=message)


def test_failing_site_ends_the_run_and_is_named(tmp_path):
    grid = failing(own_words)
    failure = fail(tmp_path, grid, SiteFailure)
    assert failure == {
        "site": "south",
        "phase": "train, round 2",
        "error": "disk full",
        "traceback": "fit (classification.py:1)",
        "kind": "",
    }
    assert grid.asked()[-1] == (TRAIN, "train", 2)  # nothing is averaged without south
    assert {row.round for row in read_rows(tmp_path / "run" / "metrics.jsonl")} == {1}


def test_site_that_flower_lost_is_named(tmp_path):
    failure = fail(tmp_path, failing(words_of_flower), SiteFailure)
    assert (failure["site"], failure["error"]) == ("south", "killed")
    assert "train" in failure["phase"]
    assert "round 2" in failure["phase"]


def test_site_for_which_flower_answers_itself_is_named(tmp_path):
    """As it does for a SuperNode whose heartbeats have stopped: with no node of the run's."""
    from flwr.server.superlink.linkstate import utils

    def lost(message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = "sent to south"  # as Flower's grid does
        return utils.create_message_error_unavailable_res_message(message.metadata, "node_unavail")

    failure = fail(tmp_path, failing(lost), SiteFailure)
    assert (failure["site"], failure["error"]) == ("south", utils.NODE_UNAVAILABLE_ERROR_REASON)
    assert failure["phase"] == "train, round 2"


@pytest.mark.parametrize("kind", [TRAIN, EVALUATE])
def test_site_that_does_not_answer_is_named(tmp_path, kind):
    failure = fail(tmp_path, failing(lambda message: None, kind=kind), SiteFailure)
    assert (failure["site"], failure["error"]) == ("south", "no answer within 7 s")
    assert kind in failure["phase"]
    assert "round 2" in failure["phase"]


def test_failure_at_hello_ends_the_run(tmp_path):
    grid = failing(lambda message: None, kind=HELLO, round_number=0)
    failure = fail(tmp_path, grid, SiteFailure)
    assert failure["phase"] == HELLO
    assert grid.asked() == [(HELLO, "", 0)]


def test_first_failure_in_order_of_name_is_told(tmp_path):
    sites = [FailingSite(name, how=words_of_flower) for name in ("c", "b")]
    grid = InProcessGrid(nodes(*sites, ScriptedSite("a")), shuffle=0)
    assert fail(tmp_path, grid, SiteFailure)["site"] == "b"


def without_weights(message: Message) -> Message:
    reply = ScriptedSite("south").train(message, 2)
    del reply.content[messages.ARRAYS]
    return reply


def with_weights(change: Callable[[dict[str, torch.Tensor]], None], transport: str = "float32"):
    def how(message: Message) -> Message:
        reply = ScriptedSite("south", transport=transport).train(message, 1)
        update = messages.unpack(reply.content[messages.ARRAYS])
        change(update)
        reply.content[messages.ARRAYS] = messages.pack(update)
        return reply

    return how


def a_name(update: dict[str, torch.Tensor]) -> str:
    return next(name for name in update if not name.endswith("/scale"))


@pytest.mark.parametrize(
    ("transport", "how", "why"),
    [
        ("float32", without_weights, messages.ARRAYS),
        ("float32", with_weights(lambda u: u.pop(a_name(u))), "is missing"),
        ("float32", with_weights(lambda u: u.update(more=torch.zeros(1))), "was not asked for"),
        ("float32", with_weights(lambda u: u[a_name(u)].fill_(math.nan)), "not finite"),
        ("float32", with_weights(lambda u: u.update({a_name(u): torch.zeros(1, 7)})), "the shape"),
        ("float32", with_weights(lambda u: None, "float16"), "float32 is expected"),
        ("float16", with_weights(lambda u: None), "float16 is expected"),
        ("int8", with_weights(lambda u: None, "float16"), "/scale is missing"),
        (
            "int8",
            with_weights(lambda u: u[a_name(u) + "/scale"].fill_(math.inf), "int8"),
            "not finite",
        ),
    ],
)
def test_site_whose_update_does_not_decode_loses_the_round_and_is_named(
    tmp_path, transport, how, why
):
    north = ScriptedSite("north", transport=transport)
    south = FailingSite("south", transport=transport, how=how, round_number=1)
    grid = InProcessGrid(nodes(north, south))
    folder = run(tmp_path, grid, transport=transport, rounds=1)
    assert rounds_lost(folder) == {"north": 0, "south": 1}
    rows = [r for r in read_rows(folder / "metrics.jsonl") if r.name == UNUSABLE]
    assert [(r.round, r.site, r.split, r.value) for r in rows] == [(1, "south", "train", 1.0)]


def rounds_lost(folder: Path) -> dict[str, int]:
    sites = json.loads((folder / "summary.json").read_text())["sites"]
    return {name: site["rounds_lost"] for name, site in sites.items()}


# How weights travel


@pytest.mark.parametrize("transport", ["float16", "int8"])
def test_steps_that_float16_cannot_show_add_up_all_the_same(tmp_path, transport):
    """The server adds differences to its own float32 weights, not to what it rounded for them."""
    drift = 2.0**-20
    sites = (ScriptedSite(name, drift=drift, transport=transport) for name in ("north", "south"))
    grid = InProcessGrid(nodes(*sites))
    folder = run(tmp_path, grid, transport=transport)
    config = run_config(tmp_path)
    start = load_task("classification").build_model(config).state_dict()
    result = load_file(folder / "model.safetensors")
    assert result.keys() == start.keys()
    rounded = received(broadcast(start, "float16"))
    assert max(float((rounded[n] - w).abs().max()) for n, w in start.items()) > 10 * drift
    for name, weight in result.items():  # 3 rounds, of which the last has the lowest loss
        torch.testing.assert_close(
            weight.double(), start[name].double() + 3 * drift, rtol=1e-6, atol=0.05 * drift
        )


# With the clients themselves


@pytest.fixture
def client_folders(monkeypatch, session_cache, tmp_path):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    local._remembered.cache_clear()


def clients(node_configs: list[dict], config: RunConfig) -> tuple[dict[int, Answer], list[Context]]:
    """SuperNodes that run the ClientApp in this process, each with a context of its own."""
    contexts = [
        Context(1, number, node_config, RecordDict(), config.to_flower())
        for number, node_config in enumerate(node_configs)
    ]
    return nodes(
        *(lambda message, context=context: client_app(message, context) for context in contexts)
    ), contexts


def simulated(count: int = 2) -> list[dict]:
    return [{"partition-id": i, "num-partitions": count} for i in range(count)]


@pytest.mark.usefixtures("telling_policy")
def test_deployed_and_simulated_sites_learn_the_same_bits(
    tmp_path, tiny_cohort, client_folders, monkeypatch
):
    """Who asks, in which order, and how a site is started decide nothing."""
    deployed = [{"site": s, "data-dir": str(tiny_cohort / s)} for s in ("north", "island")]
    models, tables, records, grids, steps = set(), [], set(), [], []
    remove = SiteState.remove

    def counted(state: SiteState) -> None:
        last = {k: v for k, v in state.load(3).items() if k.endswith("/step")}
        steps.append((state.site, {float(value) for value in last.values()}))
        remove(state)
        assert not state.folder.exists()

    monkeypatch.setattr(SiteState, "remove", counted)
    for name, node_configs, cohort in (
        ("simulated", simulated(), str(tiny_cohort)),
        ("deployed", deployed, ""),
    ):
        folder = tmp_path / name
        config = run_config(folder, cohort_dir=cohort)
        answers, contexts = clients(node_configs, config)
        grids.append(InProcessGrid(answers, shuffle=len(grids)))
        federate(grids[-1], config, run_id="run")
        models.add((folder / "run" / "model.safetensors").read_bytes())
        sites = json.loads((folder / "run" / "summary.json").read_text())["sites"]
        tables.append(sites)
        records.add(
            tuple(
                (tmp_path / "records" / site / "1" / "predictions.csv").read_bytes()
                for site in ("north", "island")
            )
        )
        assert {  # with the test the private state is gone
            str(path.relative_to(tmp_path / "records"))
            for path in (tmp_path / "records").rglob("*")
            if path.is_file()
        } == {
            f"{s}/{f}" for s in ("island", "north") for f in ("1/predictions.csv", "state/1.ended")
        }
        shutil.rmtree(tmp_path / "records")  # a second run must write its own
        assert not any(context.state for context in contexts)  # nothing in Flower's keeping
    # Six steps of AdamW stay at the site.
    assert sorted(steps) == [("island", {6.0})] * 2 + [("north", {6.0})] * 2
    assert len(models) == len(records) == 1
    assert tables[0] == tables[1]
    assert {name: site["n_test"] for name, site in tables[0].items()} == {"island": 4, "north": 4}
    for grid in grids:
        assert_nothing_private(grid)


def assert_nothing_private(grid: InProcessGrid) -> None:
    """Of replies, only weights leave after training, else numbers; and no participant ever."""
    model = load_task("classification").build_model(RunConfig.from_flower({"data.size": 16}))
    for reply in grid.replies:
        kind = reply.metadata.message_type
        extra = {TRAIN: {messages.ARRAYS}, HELLO: {messages.IDENTITY}}.get(kind, set())
        assert set(reply.content) == {messages.METRICS} | extra
        if kind == TRAIN:
            assert set(messages.unpack(reply.content[messages.ARRAYS])) == set(model.state_dict())
            assert set(reply.content[messages.METRICS]) == {messages.WEIGHT, "loss", "images-seen"}
        for record in reply.content.values():
            if isinstance(record, ConfigRecord):
                assert "sub-" not in str(dict(record))


@pytest.mark.usefixtures("telling_policy")
def test_federation_of_one_site_is_plain_training(tmp_path, tiny_cohort, client_folders):
    """The same fit, seeds, schedule and moments: only who holds the scans differs."""
    config = run_config(tmp_path, min_sites=1)
    answers, _ = clients([{"site": "north", "data-dir": str(tiny_cohort / "north")}], config)
    grid = InProcessGrid(answers)
    federate(grid, config, run_id="run")
    validated = [  # the global model of each round
        messages.unpack(message.content[messages.ARRAYS])
        for message in grid.requests
        if message.content[messages.CONFIG]["split"] == "val"
    ]

    task, place = load_task(config.task), SiteContext("north", ("north",), torch.device("cpu"))
    scans = task.open_split("north", tiny_cohort / "north", "train", config, cache_dir())
    model, private = task.build_model(config), {}
    for round_number, federated in enumerate(validated, start=1):
        private = task.fit(
            model,
            scans,
            config,
            place=place,
            round_number=round_number,
            private=private,
        ).private
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, federated[name])
    assert len(validated) == 3

    train_in_place(  # the local arm of a comparison
        {"north": ["north"]},
        {"north": tiny_cohort / "north"},
        config,
        place=place,
        folder=tmp_path / "local",
        records=(tmp_path / "records", Path("local")),
    )
    results = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "local")]
    assert results[0] == results[1]


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([state[name].flatten() for name in sorted(state)]).double()


@pytest.fixture
def learned(tmp_path, tiny_cohort, client_folders):
    """Run the same federation with another transport; give its grid, summary and weights."""

    def learn(transport: str) -> tuple[InProcessGrid, dict, torch.Tensor]:
        folder = tmp_path / transport
        shutil.rmtree(tmp_path / "records", ignore_errors=True)  # where the last run has ended
        # In images of 16 voxels nearly empty cells have gradients that rounding turns around.
        config = run_config(
            folder,
            cohort_dir=str(tiny_cohort),
            transport=transport,
            size=DEFAULT_SIZE,
            adapt="none",
        )
        grid = InProcessGrid(clients(simulated(), config)[0])
        federate(grid, config, run_id="run")
        summary = json.loads((folder / "run" / "summary.json").read_text())
        return grid, summary, flat(load_file(folder / "run" / "model.safetensors"))

    return learn


def in_training(sent: list[Message]) -> list[dict[str, torch.Tensor]]:
    return [
        messages.unpack(message.content[messages.ARRAYS])
        for message in sent
        if message.metadata.message_type == TRAIN
    ]


def tensor_bytes(message: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in message.values())


def test_smaller_updates_give_nearly_the_same_model(tmp_path, learned):
    """Half or a quarter of the bytes, besides a header for every tensor.

    Down, the first round and what is only judged are in float16.
    """
    grid, whole, model = learned("float32")
    config = run_config(tmp_path, size=DEFAULT_SIZE)
    start = load_task("classification").build_model(config)
    way = (model - flat(shared := start.state_dict())).norm()
    raw = tensor_bytes(shared)
    assert [tensor_bytes(update) for update in in_training(grid.replies)] == [raw] * 6
    for transport, share, arrays, farthest in (("float16", 2, 1, 0.01), ("int8", 4, 2, 0.03)):
        grid, summary, smaller = learned(transport)
        scales = 4 * len(shared) * (arrays - 1)
        for update in in_training(grid.replies):
            weights = {str(t.dtype) for name, t in update.items() if not name.endswith("/scale")}
            assert weights == {f"torch.{transport}"}
            assert len(update) == arrays * len(shared)
            assert tensor_bytes(update) == raw // share + scales
        headers = 140 * len(shared)
        up = 6 * (raw // share + scales)
        assert up < summary["bytes_up"] < up + 6 * headers * arrays
        assert [tensor_bytes(order) for order in in_training(grid.requests)] == (
            [raw // 2] * 2 + [raw // share + scales] * 4
        )
        down = 10 * raw // 2  # of two sites' first round, three validations and a test
        down += 4 * (raw // share + scales)  # and of the other rounds
        assert down < summary["bytes_down"] < down + (10 + 4 * arrays) * headers
        assert summary["bytes_up"] < 0.6 * whole["bytes_up"]
        distance = (smaller - model).norm()
        assert 0 < distance < farthest * way
        assert summary["best_round"] == whole["best_round"]
        for site, values in summary["sites"].items():
            assert values["loss"] == pytest.approx(whole["sites"][site]["loss"], rel=1e-3)


def test_bad_data_of_a_deployed_site_end_the_run_in_public_words(tmp_path, client_folders, caplog):
    caplog.set_level(logging.CRITICAL, logger="clients.guard")
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        table = "participant_id\tsex\nsub-007\tunheard-of\n"
        (tmp_path / name / "participants.tsv").write_text(table)
    node_configs = [{"site": n, "data-dir": str(tmp_path / n)} for n in ("south", "north")]
    answers, _ = clients(node_configs, run_config(tmp_path))
    failure = fail(tmp_path / "runs", InProcessGrid(answers), SiteFailure)
    assert failure["site"] in ("north", "south")
    assert failure["phase"] == HELLO
    told = json.dumps(failure)
    assert "unheard-of" not in told
    assert "sub-007" not in told
    assert str(tmp_path) not in told
