"""A site's rounds: what it keeps outlives its process, repeats to the bit, ends with the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from safetensors.torch import load_file, save_file

from clients import local
from clients.app import app
from clients.state import SiteState
from common import messages
from common.config.run_config import RunConfig
from common.errors import FedscanError
from common.messages import EVALUATE, TRAIN
from common.tasks.task import load_task
from common.transport import broadcast, decode_update, received, to_keep

pytestmark = pytest.mark.usefixtures("task_identity")

ROOT = Path(__file__).parents[1]
TINY = {"run.rounds": 3, "training.local-steps": 2, "training.batch-size": 4, "data.size": 16}
SITES = ("island", "north")
Weights = dict[str, torch.Tensor]

# Answers one order to train, as a SuperNode's process for a single message does.
ONE_MESSAGE = """
import json, sys
from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.torch import load_file, save_file
TaskIdentity._run_id = TaskIdentity._node_id = TaskIdentity._task_id = 1
from clients.app import app
from common import messages

node, run, weights, number, sites, answer = map(json.loads, sys.argv[1:])
order = messages.request(
    messages.TRAIN, 5, round_number=number, split="train", sites=sites,
    arrays=messages.pack(load_file(weights)),
)
reply = app(order, Context(7, 5, node, RecordDict(), run))
assert messages.failure_in(reply) is None, messages.failure_in(reply)
save_file(messages.unpack(reply.content[messages.ARRAYS]), answer)
"""


@pytest.fixture(autouse=True)
def folders(monkeypatch, session_cache, tmp_path) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    local._remembered.cache_clear()


@pytest.fixture(params=["float32", "int8"])
def config(request) -> RunConfig:
    return RunConfig.from_flower(TINY | {"transport": request.param})


class Site:
    """A deployed hospital, north, as the server meets it in run 7."""

    def __init__(self, config: RunConfig, cohort: Path) -> None:
        self.config = config
        self.node = {"site": "north", "data-dir": str(cohort / "north")}
        self.state = SiteState("north", 7)
        model = load_task(config.task).build_model(config)
        self.start = load_task(config.task).shared_state(model, config)
        self.held: dict[int, Mapping[str, torch.Tensor]] = {}  # by round, as the server knows it

    def sent(self, kind: str, number: int, weights: Weights) -> Weights:
        """Return the weights as they travel to the site."""
        encoding = self.config.transport
        if kind == EVALUATE:
            return broadcast(weights, encoding)
        before = self.held.get(number - 1)
        message = broadcast(weights, encoding, before)
        self.held[number] = to_keep(received(message, before), encoding)
        return message

    def ask(self, kind: str, number: int, split: str, weights: Weights) -> Message:
        """Put an order to the site; its context is new each time, as after a restart."""
        arrays = messages.pack(self.sent(kind, number, weights))
        order = {"round_number": number, "split": split, "sites": SITES, "arrays": arrays}
        context = Context(7, 5, self.node, RecordDict(), self.config.to_flower())
        reply = app(messages.request(kind, 5, **order), context)
        assert not context.state  # the site's state is in nobody else's keeping
        return reply

    def train(self, number: int, weights: Weights) -> Weights:
        """Return the update as it travels."""
        if number == 1:  # as every server does first
            context = Context(7, 5, self.node, RecordDict(), self.config.to_flower())
            reply = app(messages.request(messages.HELLO, 5), context)
            assert messages.failure_in(reply) is None, messages.failure_in(reply)
        reply = self.ask(TRAIN, number, "train", weights)
        assert messages.failure_in(reply) is None, messages.failure_in(reply)
        assert set(reply.content) == {messages.METRICS, messages.ARRAYS}
        return messages.unpack(reply.content[messages.ARRAYS])

    def after(self, weights: Weights, update: Weights) -> Weights:
        """Return the weights that a server with this one site goes on with."""
        return decode_update(update, weights, self.config.transport)


@pytest.fixture
def site(config, tiny_cohort) -> Site:
    return Site(config, tiny_cohort)


def same(one: Weights, other: Weights) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_private_state_is_the_tasks_and_what_the_transport_owes(site):
    site.train(1, site.start)
    private = site.state.load(1)
    moments = {name for name in private if name.startswith("task/")}
    assert {float(private[name]) for name in moments if name.endswith("/step")} == {2.0}
    parts = ["reference/", "largest-update/"]
    parts += ["residual/"] if site.config.transport == "int8" else []
    assert set(private) - moments == {part + name for part in parts for name in site.start}
    assert moments


@pytest.mark.parametrize("config", ["int8"], indirect=True)
def test_site_holds_what_the_server_knows_that_it_holds(site):
    weights = site.start
    for number in (1, 2, 3):
        weights = site.after(weights, site.train(number, weights))
        private = site.state.load(number)
        held = {n.removeprefix("reference/"): t for n, t in private.items() if "reference/" in n}
        assert same(held, site.held[number])


def test_second_round_in_a_process_of_its_own_goes_on_bit_for_bit(site, tmp_path):
    first = site.train(1, site.start)
    between = site.after(site.start, first)
    save_file(site.sent(TRAIN, 2, between), tmp_path / "sent")

    values = (site.node, site.config.to_flower(), str(tmp_path / "sent"), 2, SITES)
    done = subprocess.run(
        [sys.executable, "-c", ONE_MESSAGE]
        + [json.dumps(value) for value in (*values, str(tmp_path / "answer"))],
        cwd=ROOT,
        env=dict(os.environ),
        timeout=120,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    elsewhere, kept_elsewhere = load_file(tmp_path / "answer"), site.state.load(2)

    site.state.remove()  # and the same two rounds without interruption
    assert same(site.train(1, site.start), first)
    here = site.train(2, between)
    assert same(here, elsewhere)
    assert same(site.state.load(2), kept_elsewhere)
    steps = {float(v) for name, v in kept_elsewhere.items() if name.endswith("/step")}
    assert steps == {4.0}


def test_order_that_is_repeated_gets_the_same_answer(site):
    first = site.train(1, site.start)
    between = site.after(site.start, first)
    second = site.train(2, between)
    kept = site.state.load(2)
    assert same(site.train(2, between), second)
    assert same(site.state.load(2), kept)
    assert same(site.train(1, site.start), first)
    assert same(site.train(2, between), second)


def test_private_state_decides_the_next_round(site):
    between = site.after(site.start, site.train(1, site.start))
    second = site.train(2, between)
    first = site.state.load(1)
    forgotten = {n: torch.zeros_like(t) if n.endswith("/exp_avg") else t for n, t in first.items()}
    site.state.save(1, forgotten)
    assert not same(site.train(2, between), second)


def test_round_whose_state_is_lost_is_a_failure_and_no_new_beginning(site, tmp_path):
    between = site.after(site.start, site.train(1, site.start))
    site.state.remove()
    failure = messages.failure_in(site.ask(TRAIN, 2, "train", between))
    assert (failure.site, failure.phase) == ("north", "train, round 2")
    assert "the record of the data with which run 7 began is missing" in failure.error
    assert str(tmp_path) not in failure.error + failure.traceback
    assert not site.state.folder.exists()


@pytest.mark.parametrize("config", ["int8"], indirect=True)
def test_differences_from_weights_that_a_site_lost_are_not_trained_on(site):
    between = site.after(site.start, site.train(1, site.start))
    private = site.state.load(1)
    site.state.save(1, {n: t for n, t in private.items() if not n.startswith("reference/")})
    failure = messages.failure_in(site.ask(TRAIN, 2, "train", between))
    assert (failure.site, failure.phase) == ("north", "train, round 2")
    assert "those of the round before, which are missing at this site" in failure.error
    assert "Start the run anew, or with transport = 'float16' or 'float32'" in failure.error
    with pytest.raises(FedscanError, match="round 2 of run 7 is missing"):
        site.state.load(2)


@pytest.mark.parametrize("config", ["int8"], indirect=True)
@pytest.mark.parametrize("what", ["unknown", "endless"])
def test_broadcast_that_is_no_difference_from_what_the_site_holds_is_refused(
    site, what, monkeypatch
):
    between = site.after(site.start, site.train(1, site.start))
    good = site.sent(TRAIN, 2, between)
    name = next(name for name in good if name.endswith("/scale"))
    bad = {
        "unknown": {**good, "more": torch.zeros(1)},
        "endless": {**good, name: torch.tensor(torch.inf)},
    }[what]
    monkeypatch.setattr(site, "sent", lambda *order: bad)
    failure = messages.failure_in(site.ask(TRAIN, 2, "train", between))
    assert (failure.site, failure.phase) == ("north", "train, round 2")
    assert "an update was refused, and nothing of it used" in failure.error


@pytest.mark.usefixtures("telling_policy")
def test_validation_leaves_the_private_state_and_the_test_removes_it(site, tmp_path):
    trained = site.after(site.start, site.train(1, site.start))
    kept = site.state.load(1)
    for split in ("val", "test"):
        reply = site.ask(EVALUATE, 1, split, trained)
        assert messages.failure_in(reply) is None, messages.failure_in(reply)
        assert set(reply.content) == {messages.METRICS}
        if split == "val":
            assert same(site.state.load(1), kept)
    records = tmp_path / "records" / "north"
    files = {path for path in records.rglob("*") if path.is_file()}
    assert files == {records / "7" / "predictions.csv", records / "state" / "7.ended"}
    assert not site.state.folder.exists()


@pytest.mark.usefixtures("telling_policy")
def test_state_that_cannot_be_removed_costs_no_test_result(site, monkeypatch, caplog):
    trained = site.after(site.start, site.train(1, site.start))
    site.ask(EVALUATE, 1, "val", trained)

    def refused(folder: Path) -> None:
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr("clients.state.shutil.rmtree", refused)
    with caplog.at_level("WARNING", "flwr.fedscan"):
        reply = site.ask(EVALUATE, 1, "test", trained)
    assert messages.failure_in(reply) is None
    assert "loss" in reply.content[messages.METRICS]
    assert "the private state of the run that has ended cannot be removed" in caplog.text


def test_state_of_another_run_of_the_site_is_left_alone(site):
    other = SiteState("north", 8)
    other.save(1, {"moment": torch.ones(2)})
    trained = site.after(site.start, site.train(1, site.start))
    for split in ("val", "test"):
        site.ask(EVALUATE, 1, split, trained)
    assert not site.state.folder.exists()
    assert torch.equal(other.load(1)["moment"], torch.ones(2))


def test_a_deployed_site_is_not_told_that_it_has_no_labels(tiny_cohort):
    """It would take weights that its own training does not explain, and test them."""
    config = RunConfig.from_flower(TINY | {"data.unlabelled": "north"})
    hospital = Site(config, tiny_cohort)
    context = Context(7, 5, hospital.node, RecordDict(), config.to_flower())
    failure = messages.failure_in(app(messages.request(messages.HELLO, 5), context))
    assert "leave the site's name out" in failure.error


def test_what_an_actor_remembers_does_not_grow_with_the_sites_that_it_serves():
    kept = [
        cache.cache_parameters()["maxsize"]
        for cache in (local._remembered, local._remembered_roster)
    ]
    assert kept == [8, 64]
