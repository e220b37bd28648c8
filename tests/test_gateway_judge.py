"""What leaves a site is composed by its gate: a hostile app of any kind gets nothing else out."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)

from clients import local
from clients.app import app
from clients.gateway.form import form_of
from clients.gateway.judge import ERRORS, compose
from clients.gateway.policy import OPEN, GatePolicy
from clients.gateway.run import Asked, SiteRun, require_approved
from clients.gateway.runtime_api import Refused
from clients.policy import SitePolicy
from common import messages
from common.config.run_config import RunConfig
from common.errors import ConfigError, FedscanError
from common.sites import Site
from common.tasks.task import load_task, read_run_config
from common.transport import broadcast, decode_update

pytestmark = pytest.mark.usefixtures("task_identity", "telling_policy")

SITES = ("island", "north")
TINY = {"run.rounds": 3, "training.local-steps": 2, "training.batch-size": 4, "data.size": 16}
FAB = b"the bundle"
HASH = hashlib.sha256(FAB).hexdigest()
SECRET = "sub-anna-smith"
FIRST = "*"  # stands for the name of the first array of an update


@pytest.fixture(autouse=True)
def folders(monkeypatch, session_cache, tmp_path) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    local._remembered.cache_clear()


class Hospital:
    """North in run 7, with its gate's judgement and the app's own, as the server meets them."""

    def __init__(self, cohort: Path, records: Path, policy: SitePolicy, **config: object) -> None:
        self.config: RunConfig = read_run_config(TINY | config)
        self.site = Site("north", cohort / "north", simulated=False)
        self.node = {"site": "north", "data-dir": str(cohort / "north")}
        self.policy, self.records, self.settings = policy, records, OPEN
        model = load_task(self.config.task).build_model(self.config)
        self.start = load_task(self.config.task).shared_state(model, self.config)
        self.run: SiteRun | None = None

    def order(self, kind: str, number: int = 0, split: str = "", weights=None, **changes):
        """Return an order as the gate gets it from Flower's SuperNode."""
        arrays = weights and messages.pack(broadcast(weights, self.config.transport))
        message = messages.request(
            kind, 5, round_number=number, split=split, sites=SITES, arrays=arrays
        )
        message.metadata.__dict__["_message_id"] = message.object_id
        run_config = self.config.to_flower() | changes.pop("config", {})
        run = {"run_id": 7, "fab_hash": HASH, "fab_id": "fedscan/fedscan", "fab_version": "0.1.0"}
        fab = {"content": FAB, "hash_str": HASH} | changes.pop("fab", {})
        return SimpleNamespace(
            message=message,
            given=SimpleNamespace(fab=SimpleNamespace(**fab)),
            run=SimpleNamespace(**(run | changes)),
            context=Context(7, 5, self.node, RecordDict(), run_config),
        )

    def accept(self, order) -> Asked:
        require_approved(order, [HASH])
        if self.run is None:
            self.run = SiteRun(self.site, order, self.policy, self.records)
        return self.run.accept(order)

    def answer(self, order) -> Message:
        """Let the app answer, which here is the honest one."""
        return app(order.message, order.context)

    def compose(self, order, reply: Message):
        asked = self.accept(order)
        form = form_of(
            *(asked.kind, self.config, self.policy),
            site="north",
            sites=asked.sites,
            split=asked.split,
        )
        composed = compose(reply, asked, self.run, form, self.settings)
        if not composed.failure:
            self.run.keep(asked, composed.trained, composed.digest, composed.content)
        return composed

    def ask(self, *order, **weights):
        asked = self.order(*order, **weights)
        return self.compose(asked, self.answer(asked))

    def hello(self) -> None:
        self.ask(messages.HELLO)


@pytest.fixture
def policy(tmp_path: Path) -> SitePolicy:
    return SitePolicy.read(tmp_path / "policy.toml")


@pytest.fixture
def hospital(tiny_cohort, tmp_path, policy) -> Hospital:
    return Hospital(tiny_cohort, tmp_path / "gate", policy)


@pytest.mark.parametrize("transport", ["float32", "float16", "int8"])
def test_an_honest_update_leaves_bit_by_bit(tiny_cohort, tmp_path, policy, transport) -> None:
    north = Hospital(tiny_cohort, tmp_path / "gate", policy, transport=transport)
    north.hello()
    order = north.order(messages.TRAIN, 1, "train", north.start)
    reply = north.answer(order)
    assert messages.failure_in(reply) is None, messages.failure_in(reply)
    left = north.compose(order, reply).content
    theirs, ours = (messages.unpack(one[messages.ARRAYS]) for one in (reply.content, left))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert dict(left[messages.METRICS]) == dict(reply.content[messages.METRICS])


def test_honest_answers_of_a_whole_run_leave(hospital) -> None:
    hospital.hello()
    weights = hospital.start
    for number in (1, 2):
        update = hospital.ask(messages.TRAIN, number, "train", weights).content
        weights = decode_update(messages.unpack(update[messages.ARRAYS]), weights, "float32")
        left = hospital.ask(messages.EVALUATE, number, "val", weights).content
        assert "loss" in left[messages.METRICS]
    left = hospital.ask(messages.EVALUATE, 2, "test", weights).content
    assert "balanced_accuracy" in left[messages.METRICS]
    again = hospital.ask(messages.EVALUATE, 2, "test", weights).content
    assert again.object_id == left.object_id  # as after a crash of the server
    with pytest.raises(FedscanError, match="has ended"):
        hospital.accept(hospital.order(messages.EVALUATE, 1, "val", weights))


def scan(size: int = 4096) -> bytes:
    return np.random.default_rng(0).bytes(size)


def with_metric(content: RecordDict, name: str, value: object) -> None:
    content[messages.METRICS][name] = value


def with_array(
    content: RecordDict, name: str, value: np.ndarray | Callable[[np.ndarray], np.ndarray]
) -> None:
    """Add an array, or change the first one, which is called FIRST here."""
    state = messages.unpack(content[messages.ARRAYS])
    name = next(iter(state)) if name == FIRST else name
    value = value(state[name].numpy()) if callable(value) else value
    content[messages.ARRAYS] = messages.pack(state | {name: torch.from_numpy(value.copy())})


def without_array(content: RecordDict) -> None:
    state = messages.unpack(content[messages.ARRAYS])
    state.popitem()
    content[messages.ARRAYS] = messages.pack(state)


def with_data(content: RecordDict, change: Callable[[bytes], bytes]) -> None:
    data = change(content[messages.ARRAYS][messages.WEIGHTS].data)
    array = Array("uint8", (len(data),), messages.FORMAT, data)
    content[messages.ARRAYS] = ArrayRecord({messages.WEIGHTS: array})


def with_metadata(data: bytes) -> bytes:
    """Hide bytes where safetensors has room for notes, which readers skip."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": {"note": "anna"}, **json.loads(data[8:end])}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


CHANNELS = {
    "list in a metric": lambda c: with_metric(c, "loss", [float(b) for b in scan()]),
    "metric of another name": lambda c: with_metric(c, "anna", 1.0),
    "count": lambda c: with_metric(c, messages.WEIGHT, 123456),
    "fraction as a count": lambda c: with_metric(c, messages.WEIGHT, 2.5),
    "array more": lambda c: with_array(c, "further", np.zeros(9, np.float32)),
    "name of an array": lambda c: with_array(
        c, base64.b64encode(scan(90)).decode(), np.zeros(1, np.float32)
    ),
    "row more": lambda c: with_array(c, FIRST, lambda v: np.concatenate([v, v[:1]])),
    "type of an array": lambda c: with_array(c, FIRST, np.frombuffer(scan(), np.uint8)),
    "NaN": lambda c: with_array(c, FIRST, lambda v: np.full_like(v, np.nan)),
    "array of Flower's": lambda c: c[messages.ARRAYS].update({"scan": Array(np.zeros(9))}),
    "object in an array": lambda c: c[messages.ARRAYS].update(
        {messages.WEIGHTS: Array("object", (1,), "numpy.ndarray", scan())}
    ),
    "bytes after the arrays": lambda c: with_data(c, lambda data: data + scan()),
    "array less": without_array,
    "record more": lambda c: c.update({"notes": ConfigRecord({"scan": scan()})}),
    "words": lambda c: c.update({messages.WORDS: ConfigRecord({"said": SECRET})}),
}


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_scan_in_an_update_is_held_back(hospital, channel) -> None:
    hospital.hello()
    order = hospital.order(messages.TRAIN, 1, "train", hospital.start)
    reply = hospital.answer(order)
    CHANNELS[channel](reply.content)
    with pytest.raises(Refused) as refusal:
        hospital.compose(order, reply)
    assert SECRET not in str(refusal.value)
    assert "anna" not in str(refusal.value)


def test_bytes_in_an_arrays_header_do_not_leave(hospital) -> None:
    hospital.hello()
    order = hospital.order(messages.TRAIN, 1, "train", hospital.start)
    reply = hospital.answer(order)
    with_data(reply.content, with_metadata)
    assert b"anna" in reply.content[messages.ARRAYS][messages.WEIGHTS].data
    left = hospital.compose(order, reply).content
    assert all(b"anna" not in array.data for array in left[messages.ARRAYS].values())


@pytest.mark.parametrize(
    ("record", "key", "value"),
    [
        (messages.IDENTITY, "site", "south"),
        (messages.IDENTITY, "device", SECRET),
        (messages.IDENTITY, "source-hash", "0" * 64),
        (messages.IDENTITY, "extractor-hash", SECRET),
        (messages.IDENTITY, "more", SECRET),
        (messages.METRICS, "n_train", 10**6),
        (messages.METRICS, "n_anna", 1),
    ],
)
def test_an_identity_says_what_the_site_itself_knows(hospital, record, key, value) -> None:
    order = hospital.order(messages.HELLO)
    reply = hospital.answer(order)
    reply.content[record][key] = value
    with pytest.raises(Refused):
        hospital.compose(order, reply)


def test_an_error_leaves_as_kind_and_order_alone(hospital) -> None:
    hospital.hello()
    hospital.settings = GatePolicy()
    order = hospital.order(messages.TRAIN, 1, "train", hospital.start)
    told = messages.Failure(SECRET, SECRET, SECRET, SECRET, SECRET)
    for reply in (
        messages.failure_reply(order.message, told),
        Message(Error(0, SECRET), reply_to=order.message),
    ):
        left = dict(hospital.compose(order, reply).content[messages.FAILURE])
        assert SECRET not in str(left)
        assert (left["site"], left["phase"]) == ("north", "train (train), round 1")
        assert left["kind"] in ERRORS


def test_numbers_leave_with_the_policys_digits(hospital) -> None:
    hospital.hello()
    hospital.settings = GatePolicy(metric_digits=3)
    order = hospital.order(messages.TRAIN, 1, "train", hospital.start)
    reply = hospital.answer(order)
    with_metric(reply.content, "loss", 0.123456789)
    assert hospital.compose(order, reply).content[messages.METRICS]["loss"] == 0.123


def test_mantissas_leave_with_the_policys_bits(hospital) -> None:
    hospital.hello()
    hospital.settings = GatePolicy(mantissa_bits=7)
    left = hospital.ask(messages.TRAIN, 1, "train", hospital.start).content[messages.ARRAYS]
    values = [tensor.numpy().ravel() for tensor in messages.unpack(left).values()]
    words = np.concatenate(values).view(np.uint32)
    assert not (words & 0xFFFF).any()
    assert (words & 0x7F0000).any()


@pytest.mark.parametrize("transport", ["float32", "float16", "int8"])
def test_an_update_leaves_no_longer_than_the_policy_says(
    tiny_cohort, tmp_path, policy, transport
) -> None:
    north = Hospital(tiny_cohort, tmp_path / "gate", policy, transport=transport)
    north.settings = GatePolicy(max_update_norm=1e-3)
    north.hello()
    composed = north.ask(messages.TRAIN, 1, "train", north.start)
    moved = [(composed.trained[n] - north.run.received[n]).norm() for n in composed.trained]
    assert float(torch.stack(moved).norm()) == pytest.approx(1e-3, rel=0.01)


def test_numbers_of_too_few_people_do_not_leave_whatever_the_app_says(
    tiny_cohort, tmp_path, policy
) -> None:
    careful = policy.model_copy(update={"min_participants": 10})
    north = Hospital(tiny_cohort, tmp_path / "gate", careful)
    north.run = None
    order = north.order(messages.HELLO)
    reply = north.answer(order)
    with_metric(reply.content, "min_participants", 10)
    north.compose(order, reply)
    order = north.order(messages.TRAIN, 1, "train", north.start)
    reply = north.answer(order)
    assert "loss" in reply.content[messages.METRICS]  # as the app's own policy is another
    left = north.compose(order, reply).content[messages.METRICS]
    assert set(left) == {messages.WEIGHT, "images-seen"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fab": {"content": FAB + b"!"}}, "not approved"),
        ({"fab": {"hash_str": "0" * 64}}, "another's hash"),
        ({"fab_hash": "0" * 64}, "another's hash"),
        ({"fab_id": "../../root"}, "name or version"),
        ({"fab_version": "0/../../1"}, "name or version"),
        ({"config": {"data.cohort-dir": "/data"}}, "data.cohort-dir"),
        ({"config": {"data.unlabelled": "north"}}, "data.unlabelled"),
        ({"config": {"training.local-steps": -1}}, "training.local-steps"),
    ],
)
def test_a_run_is_refused_before_any_of_its_code_has_run(hospital, changes, expected) -> None:
    with pytest.raises(FedscanError, match=expected):
        hospital.accept(hospital.order(messages.HELLO, **changes))


def test_a_run_outside_the_policy_is_refused(tiny_cohort, tmp_path) -> None:
    north = Hospital(tiny_cohort, tmp_path / "gate", SitePolicy(max_rounds=2))
    with pytest.raises(ConfigError, match="max-rounds"):
        north.accept(north.order(messages.HELLO))


def test_an_app_that_is_swapped_in_a_run_is_refused(hospital) -> None:
    hospital.hello()
    other = {"content": b"other", "hash_str": hashlib.sha256(b"other").hexdigest()}
    order = hospital.order(messages.TRAIN, 1, "train", hospital.start, fab=other)
    with pytest.raises(Refused, match="not approved"):
        hospital.accept(order)
    with pytest.raises(Refused, match="has changed"):  # be it approved as well
        hospital.run.accept(order)


def test_other_first_weights_are_refused(hospital) -> None:
    hospital.hello()
    taps = {name: tensor + 1 for name, tensor in hospital.start.items()}
    with pytest.raises(FedscanError, match="first weights"):
        hospital.accept(hospital.order(messages.TRAIN, 1, "train", taps))


def test_a_round_is_answered_once(hospital) -> None:
    hospital.hello()
    order = hospital.order(messages.TRAIN, 1, "train", hospital.start)
    reply = hospital.answer(order)
    first = hospital.compose(order, reply)
    assert hospital.compose(order, reply).digest == first.digest  # a message that is replayed
    with_metric(reply.content, "loss", 0.5)
    with pytest.raises(FedscanError, match="answered before"):
        hospital.compose(order, reply)


def test_an_order_that_comes_again_gets_the_very_answer_that_was_given(hospital) -> None:
    """Also where an app would not find the same bits again, as on a GPU."""
    order = hospital.order(messages.HELLO)
    assert hospital.accept(order) and hospital.run.given(hospital.accept(order)) is None
    hello = hospital.compose(order, hospital.answer(order)).content
    weights, left = hospital.start, {}
    for number in (1, 2, 3):
        order = hospital.order(messages.TRAIN, number, "train", weights)
        left[number] = order, hospital.compose(order, hospital.answer(order)).content
    assert hospital.run.given(hospital.accept(hospital.order(messages.HELLO))) == hello
    for number in (2, 3):
        order, content = left[number]
        assert hospital.run.given(hospital.accept(order)).object_id == content.object_id
    kept = {path.name.partition("-")[0] for path in hospital.records.rglob("answers/*")}
    assert kept == {"0", "2", "3"}


def test_an_absence_explains_no_more_than_the_policy_says(tiny_cohort, tmp_path, policy) -> None:
    """How long the site was away is the server's word."""
    bounded = policy.model_copy(update={"max_movement": 4.0, "max_absence": 2})
    north = Hospital(tiny_cohort, tmp_path / "gate", bounded, **{"run.rounds": 400})
    north.hello()
    trained = north.ask(messages.TRAIN, 1, "train", north.start).trained
    own = {name: (tensor - north.start[name]).norm() for name, tensor in trained.items()}
    name = max(own, key=lambda one: own[one] / north.start[one].numel() ** 0.5)
    step = own[name] / north.start[name].numel() ** 0.5  # of each number, for a move as long

    def moved(times: float) -> dict[str, torch.Tensor]:
        return north.start | {name: north.start[name] + times * step}

    with pytest.raises(FedscanError, match="max-movement"):
        north.accept(north.order(messages.TRAIN, 400, "train", moved(13.0)))
    assert north.accept(north.order(messages.TRAIN, 400, "train", moved(11.0)))
    with pytest.raises(FedscanError, match="max-movement"):
        north.accept(north.order(messages.TRAIN, 2, "train", moved(5.0)))


def test_weights_that_have_moved_too_far_are_refused(tiny_cohort, tmp_path, policy) -> None:
    bounded = policy.model_copy(update={"max_movement": 4.0})
    north = Hospital(tiny_cohort, tmp_path / "gate", bounded)
    north.hello()
    north.ask(messages.TRAIN, 1, "train", north.start)
    far = {name: tensor + 10 for name, tensor in north.start.items()}
    with pytest.raises(FedscanError, match="max-movement"):
        north.accept(north.order(messages.TRAIN, 2, "train", far))


def test_an_order_of_another_form_is_refused(hospital) -> None:
    hospital.hello()
    order = hospital.order(messages.TRAIN, 1, "train", hospital.start)
    order.message.content["more"] = MetricRecord({"a": 1})
    with pytest.raises(Refused):
        hospital.accept(order)


def test_records_of_arrays_are_those_that_were_asked_for(hospital) -> None:
    order = hospital.order(messages.HELLO)
    reply = hospital.answer(order)
    reply.content[messages.ARRAYS] = ArrayRecord([np.frombuffer(scan(), np.uint8)])
    with pytest.raises(Refused, match="a record"):
        hospital.compose(order, reply)


def test_not_a_number_leaves_without_what_it_may_hold(hospital) -> None:
    hospital.hello()
    order = hospital.order(messages.TRAIN, 1, "train", hospital.start)
    reply = hospital.answer(order)
    hidden = np.array([0x7FF8_0000_DEAD_BEEF], np.uint64).view(np.float64)[0]
    with_metric(reply.content, "loss", float(hidden))
    left = hospital.compose(order, reply).content[messages.METRICS]["loss"]
    assert np.array([left]).view(np.uint64)[0] == np.array([np.nan]).view(np.uint64)[0]
