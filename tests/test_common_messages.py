"""What is packed comes out bit for bit, and a failure is told in words that fit who reads it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from common import messages
from common.evaluation.of_site import Evaluation
from common.messages import Failure
from common.provenance import source_hash

pytestmark = pytest.mark.usefixtures("task_identity")


@pytest.fixture
def asked() -> Message:
    return messages.request(messages.TRAIN, 5, round_number=3, split="train")


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert other[name].dtype == tensor.dtype
        assert other[name].shape == tensor.shape
        assert bits(other[name]) == bits(tensor)


# Weights

DTYPES = [np.float16, np.float32, np.float64, np.uint8, np.int32, np.int64, np.bool_]


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.text("abc./_0", min_size=1, max_size=8),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: arrays_of.arrays(
                dtype, arrays_of.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
            )
        ),
        max_size=4,
    )
)
def test_packing_keeps_every_bit_and_the_order(state):
    """NaN, infinities, signed zeros, scalars and empty tensors included."""
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    assert_same_bits(tensors, messages.unpack(messages.pack(tensors)))


def test_scalar_stays_a_scalar():
    """AdamW counts its steps in a tensor without dimensions, and refuses one with a dimension."""
    step = messages.unpack(messages.pack({"weight/step": torch.tensor(7.0)}))["weight/step"]
    assert step.shape == ()
    assert step == 7


@pytest.mark.parametrize(
    "scattered",
    [
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(24.0)[::2],
        torch.arange(3.0).expand(2, 3),
    ],
    ids=["permuted", "strided", "expanded"],
)
def test_tensors_that_lie_scattered_in_memory_come_out_as_they_read(scattered):
    out = messages.unpack(messages.pack({"w": scattered}))["w"]
    assert torch.equal(out, scattered)


def test_packed_weights_are_a_copy_and_unpacked_ones_can_be_trained():
    weight = torch.nn.Parameter(torch.zeros(3))
    packed = messages.pack({"w": weight})
    with torch.no_grad():
        weight += 1
    out = messages.unpack(packed)["w"]
    assert torch.equal(out, torch.zeros(3))
    out += 1
    assert torch.equal(messages.unpack(packed)["w"], torch.zeros(3))


# Bytes


def test_payload_is_the_weights_and_a_line_each(asked):
    state = {"a": torch.zeros(10, 10), "b": torch.zeros(7, dtype=torch.float64)}
    reply = messages.update_reply(asked, 3, {"loss": 1.0}, state)
    raw = 4 * 100 + 8 * 7
    assert raw < messages.payload_bytes(reply) < raw + 2 * 256


def test_payload_adds_up_over_tensors(asked):
    def payload(state):
        return messages.payload_bytes(messages.update_reply(asked, 3, {}, state))

    one, two = {"a": torch.zeros(50)}, {"b": torch.zeros(30, 30)}
    shared = payload({})  # what a message without tensors takes, and up to 8 bytes to round it up
    assert abs(payload(one | two) - payload(one) - payload(two) + shared) <= 8 + shared


def test_all_tensors_are_one_array_of_flowers():
    """Of which it sends each as objects of its own, with several requests for each."""
    assert len(messages.pack({f"layer.{i}": torch.zeros(3) for i in range(100)})) == 1


def test_numbers_and_errors_weigh_nothing(asked):
    judged = messages.evaluation_reply(asked, Evaluation(4, {"loss": 1.0}, words={"a": "b"}))
    assert messages.payload_bytes(judged) == 0
    assert messages.payload_bytes(Message(Error(0, "why"), reply_to=asked)) == 0


# Requests and replies


def test_request_says_round_split_and_sources(asked):
    assert asked.metadata.dst_node_id == 5
    assert asked.metadata.message_type == messages.TRAIN
    assert dict(asked.content[messages.CONFIG]) == {
        "round": 3,
        "split": "train",
        "best": 0,
        "sites": [],
        "source-hash": source_hash(),
    }
    assert messages.ARRAYS not in asked.content


def test_request_carries_weights_and_the_sites_in_order():
    arrays = messages.pack({"w": torch.ones(2)})
    sent = messages.request(messages.EVALUATE, 5, arrays=arrays, split="val", sites=("a", "b"))
    assert_same_bits({"w": torch.ones(2)}, messages.unpack(sent.content[messages.ARRAYS]))
    assert sent.content[messages.CONFIG]["sites"] == ["a", "b"]


def test_update_goes_back_to_the_sender_with_its_numbers(asked):
    state = {"w": torch.ones(2), "w/scale": torch.tensor(0.5)}
    reply = messages.update_reply(asked, 4, {"loss": float("nan")}, state)
    assert reply.metadata.src_node_id == 5
    assert reply.metadata.dst_node_id == asked.metadata.src_node_id
    assert np.isnan(reply.content[messages.METRICS]["loss"])
    assert reply.content[messages.METRICS][messages.WEIGHT] == 4
    assert set(reply.content) == {messages.METRICS, messages.ARRAYS}
    assert_same_bits(state, messages.unpack(reply.content[messages.ARRAYS]))


def test_evaluation_arrives_as_it_was_sent_and_nothing_besides(asked):
    metrics = {"loss": 0.5, "auroc": 1.0}
    plain = Evaluation(4, metrics)
    reply = messages.evaluation_reply(asked, plain)
    assert reply.metadata.src_node_id == 5
    assert set(reply.content) == {messages.METRICS}
    assert messages.evaluation_in(reply) == plain
    statistics = {"mean": torch.arange(3.0, dtype=torch.float64), "count": torch.tensor(7)}
    rich = Evaluation(4, metrics, statistics, {"extractor": "one"})
    found = messages.evaluation_in(messages.evaluation_reply(asked, rich))
    assert (found.count, found.metrics, found.words) == (4, metrics, {"extractor": "one"})
    assert_same_bits(statistics, found.statistics)


def test_identity_is_name_device_hashes_and_counts(asked):
    reply = messages.identity_reply(asked, "north", {"n_train": 8, "n_val": 2}, "cpu", "1f")
    assert dict(reply.content[messages.IDENTITY]) == {
        "site": "north",
        "source-hash": source_hash(),
        "device": "cpu",
        "extractor-hash": "1f",
    }
    assert dict(reply.content[messages.METRICS]) == {"n_train": 8, "n_val": 2}


# Failures


TEXT = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "))


@settings(deadline=None, max_examples=30)
@given(st.builds(Failure, TEXT, TEXT, TEXT, TEXT))
def test_failure_arrives_as_it_was_sent(failure):
    asked = messages.request(messages.TRAIN, 5)
    assert messages.failure_in(messages.failure_reply(asked, failure)) == failure


def test_failure_brings_no_escape_codes_and_is_not_endless(asked):
    hostile = Failure(
        "north", "\x1b]0;owned\x07", "why\n\tand where", "begin" + "x" * 10**6 + "end"
    )
    found = messages.failure_in(messages.failure_reply(asked, hostile))
    assert (found.phase, found.error) == ("\ufffd]0;owned\ufffd", "why\n\tand where")
    assert found.traceback.startswith("begin") and found.traceback.endswith("end")
    assert len(found.traceback) < 1.1 * messages.LONGEST_TEXT
    reply = Message(Error(0, "\x1b[2J" + "x" * 10**6), reply_to=asked)
    assert "\x1b" not in messages.failure_in(reply).error
    assert len(messages.failure_in(reply).error) < 1.1 * messages.LONGEST_TEXT


def test_site_that_fails_names_itself(asked):
    sent = messages.failure_reply(asked, Failure("north", "train, round 3", "why", ""))
    assert messages.failure_in(sent, "7", "query.hello").site == "north"


@pytest.mark.parametrize("lacking", ["site", "phase", "error", "traceback"])
def test_failure_that_lacks_something_is_one_all_the_same(asked, lacking):
    sent = messages.failure_reply(asked, Failure("north", "train", "why", "where"))
    del sent.content[messages.FAILURE][lacking]
    found = vars(messages.failure_in(sent, "7", "query.hello"))
    stands_in = {"site": "7", "phase": "query.hello", "error": "no reason given", "traceback": ""}
    told = {"site": "north", "phase": "train", "error": "why", "traceback": "where", "kind": ""}
    assert found == told | {lacking: stands_in[lacking]}


def test_error_of_flower_takes_the_name_and_phase_that_the_server_knows(asked):
    found = messages.failure_in(Message(Error(0, "killed"), reply_to=asked), "north", "train")
    assert found == Failure("north", "train", "killed", "")


def test_error_of_flower_without_a_reason_still_says_something(asked):
    found = messages.failure_in(Message(Error(0), reply_to=asked))
    assert found.site
    assert found.error


def test_success_is_no_failure(asked):
    assert messages.failure_in(messages.update_reply(asked, 1, {"loss": 1.0}, {})) is None
    assert messages.failure_in(messages.identity_reply(asked, "north", {}, "cpu")) is None
    other = RecordDict({"config": ConfigRecord({"failure": "none"})})
    assert messages.failure_in(Message(other, reply_to=asked)) is None
