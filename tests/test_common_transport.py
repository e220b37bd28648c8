"""Few bits travel, and what they cannot say is carried, not lost; no update is half believed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DivergedError, FedscanError
from common.transport import (
    ENCODINGS,
    broadcast,
    decode_update,
    encode_update,
    received,
    to_keep,
)

ROUNDED = ["float16", "int8"]
SHAPES = {"conv.weight": (3, 2, 2), "bias": (5,), "gain": (), "none": (0, 4)}
FLOAT32 = 2.0**-23  # distance from 1 to the next float32
quick = settings(deadline=None, max_examples=60)


def weights(seed: int, size: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(s, generator=generator) for name, s in SHAPES.items()}


def plus(one: dict, other: dict) -> dict[str, torch.Tensor]:
    return {name: one[name] + other[name] for name in one}


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


def step(message: dict, name: str, encoding: str) -> torch.Tensor:
    """Distance between neighbouring numbers that the message could have said, in float64."""
    if encoding == "int8":
        return message[f"{name}/scale"].double()
    exponent = message[name].double().abs().clamp(min=2.0**-14).log2().floor()
    return 2 ** (exponent - 10)


def zeros(like: dict) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(value) for name, value in like.items()}


SIZES = st.sampled_from([1e-30, 1e-7, 1e-4, 1e-2, 1.0, 1e3])
SEEDS = st.integers(0, 2**31)


# Down


def test_float32_goes_down_as_it_is():
    state = weights(0)
    assert same(broadcast(state, "float32"), state)
    assert same(received(broadcast(state, "float32")), state)


@pytest.mark.parametrize("encoding", ROUNDED)
@quick
@given(SEEDS, SIZES)
def test_down_rounds_to_the_nearest_float16(encoding, seed, size):
    state = weights(seed, size)
    message = broadcast(state, encoding)
    start = received(message)
    for name, value in state.items():
        assert message[name].dtype == torch.float16
        assert start[name].dtype == torch.float32
        assert torch.equal(start[name].half(), message[name])  # nothing more is rounded
        error = (start[name].double() - value.double()).abs()
        assert (error <= step(message, name, "float16") / 2).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_made_shares_no_memory_with_what_it_was_made_of(encoding):
    state, expected = weights(0), weights(0)
    message = broadcast(state, encoding)
    sent = {name: value.clone() for name, value in message.items()}
    start = received(message)
    trained = plus(start, weights(1, 1e-3))
    up, residual = encode_update(trained, start, {}, encoding)
    whole = decode_update(up, start, encoding)
    for made in (start, trained, up, residual, whole):
        for value in made.values():
            value.zero_()
    assert same(message, sent)
    assert same(state, expected)


def test_gradients_do_not_travel():
    state = {"w": torch.ones(3, requires_grad=True)}
    start = received(broadcast(state, "int8"))
    message, residual = encode_update(state, start, {}, "int8")
    whole = decode_update(message, state, "int8")
    assert not any(
        value.requires_grad for made in (start, message, residual, whole) for value in made.values()
    )


@pytest.mark.parametrize("encoding", ROUNDED)
def test_weight_beyond_float16_is_refused_and_only_its_tensor_named(encoding):
    state = {**weights(0), "bias": torch.tensor([1.0, 70123.0])}
    with pytest.raises(DivergedError, match="bias") as caught:
        broadcast(state, encoding)
    assert "70123" not in str(caught.value)
    assert broadcast({"w": torch.tensor([65504.0])}, encoding)["w"].item() == 65504
    assert broadcast(state, "float32")["bias"][1] == 70123


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_diverged_weights_go_neither_down_nor_up(encoding, bad):
    state, start = {"w": torch.tensor([1.0, bad])}, {"w": torch.ones(2)}
    with pytest.raises(DivergedError, match="w is not finite"):
        broadcast(state, encoding)
    with pytest.raises(DivergedError, match="w is not finite"):
        encode_update(state, start, {}, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_counters_and_masks_are_no_weights(encoding):
    for value in (torch.tensor(3), torch.tensor([True])):
        with pytest.raises(FedscanError, match=r"n is of type .* only floating-point"):
            broadcast({"n": value}, encoding)
        with pytest.raises(FedscanError, match=r"n is of type .* only floating-point"):
            encode_update({"n": value}, {"n": value}, {}, encoding)
        with pytest.raises(FedscanError, match=r"n is of type .* only floating-point"):
            received({"n": value})


def test_unknown_encoding_is_refused():
    for call in (
        lambda: broadcast({}, "int4"),
        lambda: encode_update({}, {}, {}, "int4"),
        lambda: decode_update({}, {}, "int4"),
    ):
        with pytest.raises(FedscanError, match=r"'int4' is no encoding.*float32, float16, int8"):
            call()


# Down, from round to round


@quick
@given(st.lists(st.tuples(SEEDS, SIZES), min_size=1, max_size=8))
def test_server_and_sites_hold_the_same_within_a_step_of_the_newest(rounds):
    """Of whatever weights, near or far from those of the round before; the site sees no others."""
    known, held = {}, {}
    for number, (seed, size) in enumerate(rounds):
        state = weights(seed, size)
        message = broadcast(state, "int8", known)
        known = to_keep(received(message, known), "int8")
        held = to_keep(received(message, held), "int8")
        assert same(held, known)
        for name, value in state.items():
            error = (held[name].double() - value.double()).abs()
            one = step(message, name, "int8" if number else "float16")
            assert (error <= one / 2 * (1 + 2.0**-12) + FLOAT32 * value.abs() + 1e-44).all()


@pytest.mark.parametrize("encoding", ["float32", "float16"])
def test_other_encodings_go_down_whole_and_nothing_is_kept_of_them(encoding):
    state, before = weights(0), weights(1)
    assert same(broadcast(state, encoding, before), broadcast(state, encoding))
    assert to_keep(state, encoding) == {}


def test_weights_that_stand_still_are_reached():
    """Each round pays what the one before rounded away, the first one's float16 included."""
    state, held = weights(0), {}
    for _ in range(5):
        held = received(broadcast(state, "int8", held), held)
    for name, value in state.items():
        torch.testing.assert_close(held[name], value, rtol=FLOAT32, atol=0)


def test_int8_goes_down_as_a_difference_even_beyond_float16():
    before = {"w": torch.tensor([60000.0, 1.0])}
    message = broadcast({"w": torch.tensor([70000.0, 1.0])}, "int8", before)
    assert {name: tensor.dtype for name, tensor in message.items()} == {
        "w": torch.int8,
        "w/scale": torch.float32,
    }
    assert received(message, before)["w"].tolist() == pytest.approx([70000, 1])


def test_differences_without_what_they_differ_from_are_refused():
    message = broadcast(weights(1), "int8", received(broadcast(weights(0), "int8")))
    for nothing in (None, {}):
        with pytest.raises(FedscanError, match=r"missing at this site.*float16.*float32"):
            received(message, nothing)


def test_whole_weights_are_taken_as_they_are_whatever_is_held():
    """As a site gets them that was away from rounds."""
    held = received(broadcast(weights(0), "int8"))
    sent = received(broadcast(weights(1), "int8", held), held)
    assert all(torch.equal(received(sent, held)[name], sent[name]) for name in sent)


def test_broadcast_that_does_not_fit_what_is_held_is_refused():
    held = received(broadcast(weights(0), "int8"))
    good = broadcast(weights(1), "int8", held)
    for bad in (
        {**good, "more": torch.zeros(())},
        {**good, "bias": good["bias"][None]},
        {**good, "bias/scale": torch.tensor(torch.nan)},
        {name: value for name, value in good.items() if name != "bias"},
    ):
        with pytest.raises(FedscanError, match="nothing of it used"):
            received(bad, held)
    with pytest.raises(FedscanError, match="do not belong together"):
        broadcast({"w": torch.ones(1)}, "int8", held)


# Up


def test_float32_goes_up_whole_and_leaves_no_remainder():
    trained, start = weights(1), weights(0)
    message, residual = encode_update(trained, start, {}, "float32")
    assert residual == {}
    assert same(message, trained)
    assert same(decode_update(message, start, "float32"), trained)


@pytest.mark.parametrize("encoding", ROUNDED)
@quick
@given(SEEDS, SIZES, st.booleans())
def test_what_is_sent_and_what_is_kept_make_up_the_difference(encoding, seed, size, first):
    start = received(broadcast(weights(seed), encoding))
    trained = plus(start, weights(seed + 1, size))
    before = {} if first else weights(seed + 2, size / 10)
    message, after = encode_update(trained, start, before, encoding)
    sent = decode_update(message, zeros(start), encoding)
    assert list(after) == list(start)
    for name in start:
        wanted = trained[name].double() - start[name].double()
        wanted += before.get(name, torch.zeros(())).double()
        error = wanted - sent[name].double() - after[name].double()
        assert (error.abs() <= FLOAT32 * (sent[name].abs() + after[name].abs()) + 1e-44).all()
        # To the nearest by way of float32, and 1e-44 for what float32 itself cannot tell apart.
        half = step(message, name, encoding) / 2 * (1 + 2.0**-12) + 1e-44
        assert (after[name].double().abs() <= half).all()


@pytest.mark.parametrize("encoding", ROUNDED)
@quick
@given(SEEDS, st.sampled_from([1e-6, 1e-4, 1e-2, 1.0]), st.integers(1, 12))
def test_error_is_carried_however_many_rounds(encoding, seed, size, rounds):
    """The sum of what was sent stays within a step of the sum of what was trained."""
    server, residual = weights(seed), {}
    total, told = ({name: torch.zeros(s).double() for name, s in SHAPES.items()} for _ in "ab")
    for number in range(rounds):
        start = received(broadcast(server, encoding))
        trained = plus(start, weights(seed + number + 1, size))
        message, residual = encode_update(trained, start, residual, encoding)
        sent = decode_update(message, zeros(start), encoding)
        for name in SHAPES:
            total[name] += trained[name].double() - start[name].double()
            told[name] += sent[name].double()
        server = decode_update(message, server, encoding)
    for name in SHAPES:
        slack = FLOAT32 * rounds * 10 * size  # of float32, in which the remainders are kept
        assert ((total[name] - told[name]).abs() <= step(message, name, encoding) + slack).all()
        torch.testing.assert_close(
            told[name] + residual[name], total[name], rtol=1e-5, atol=1e-6 * size
        )


@pytest.mark.parametrize("encoding", ROUNDED)
def test_steps_too_small_for_a_message_arrive_in_the_end(encoding):
    """Each round 1e-3 of a step of the message: without feedback nothing would ever be sent."""
    large = 1e-5 if encoding == "float16" else 1.0
    small = {"float16": 1e-9, "int8": 1e-3 / 127}[encoding]
    start, residual, told = {"w": torch.zeros(2)}, {}, torch.zeros(2).double()
    for _ in range(2000):
        trained = {"w": torch.tensor([large, small])}
        message, residual = encode_update(trained, start, residual, encoding)
        told += decode_update(message, start, encoding)["w"]
    assert told[1].item() == pytest.approx(2000 * small, rel=0.6)
    assert (told + residual["w"])[1].item() == pytest.approx(2000 * small, rel=1e-4)


@pytest.mark.parametrize("encoding", ROUNDED)
def test_rounding_on_the_way_down_does_not_accumulate(encoding):
    """A weight of 1 moves by 1e-4 a round, a tenth of a step of float16, and does move.

    It would not if the difference were added to what the site received.
    """

    def after_50_rounds(keeps_float32: bool) -> torch.Tensor:
        server, residual = {"w": torch.ones(4)}, {}
        for _ in range(50):
            start = received(broadcast(server, encoding))
            trained = {"w": start["w"] + 1e-4}
            message, residual = encode_update(trained, start, residual, encoding)
            server = decode_update(message, server if keeps_float32 else start, encoding)
        return server["w"]

    moved, stuck = torch.full((4,), 1.005), torch.full((4,), 1.0)
    torch.testing.assert_close(after_50_rounds(True), moved, rtol=0, atol=1e-5)
    torch.testing.assert_close(after_50_rounds(False), stuck, rtol=0, atol=2e-4)


@pytest.mark.parametrize("encoding", ENCODINGS)
@quick
@given(SEEDS, st.sampled_from([1e-6, 1e-4, 1e-2, 1.0]))
def test_round_trip_gives_the_trained_weights_within_half_a_step(encoding, seed, size):
    start = received(broadcast(weights(seed), encoding))
    trained = plus(start, weights(seed + 1, size))
    message, _ = encode_update(trained, start, {}, encoding)
    whole = decode_update(message, start, encoding)
    assert list(whole) == list(start)
    for name, value in trained.items():
        error = (whole[name].double() - value.double()).abs()
        bound = 0 if encoding == "float32" else step(message, name, encoding) * (0.5 + 2.0**-12)
        slack = 0 if encoding == "float32" else FLOAT32 * value.abs()
        assert whole[name].dtype == torch.float32
        assert (error <= bound + slack).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_same_training_gives_the_same_bytes(encoding):
    start = received(broadcast(weights(0), encoding))
    one, other = (
        encode_update(plus(start, weights(1, 0.01)), start, weights(2, 1e-4), encoding)
        for _ in range(2)
    )
    assert same(one[0], other[0])
    assert same(one[1], other[1])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_training_that_changed_nothing_is_told_exactly(encoding):
    start = received(broadcast(weights(0), encoding))
    message, residual = encode_update(start, start, {}, encoding)
    assert same(decode_update(message, start, encoding), start)
    assert all((value == 0).all() for value in residual.values())


def test_int8_uses_its_whole_range_alike_on_both_sides():
    difference = torch.tensor([-1.0, 1.0, 0.5 / 127, 1.5 / 127, 0.7 / 127])
    message, _ = encode_update({"w": difference}, {"w": torch.zeros(5)}, {}, "int8")
    assert message["w"].tolist()[:2] == [-127, 127]
    assert message["w"].tolist()[4] == 1
    assert message["w"].dtype == torch.int8
    assert message["w/scale"].dtype == torch.float32
    assert message["w/scale"].shape == ()
    assert message["w/scale"].item() == pytest.approx(1 / 127)


@pytest.mark.parametrize("encoding", ROUNDED)
@pytest.mark.parametrize("size", [1e-45, 1e-43, 2e-43, 3e-42, 1e-39])
def test_differences_near_the_end_of_float32_are_no_trouble(encoding, size):
    start, trained = {"w": torch.zeros(3)}, {"w": torch.tensor([size, -size / 3, 0.0])}
    message, residual = encode_update(trained, start, {}, encoding)
    whole = decode_update(message, start, encoding)
    assert torch.equal(whole["w"] + residual["w"], trained["w"])
    assert (message["w"].float() * trained["w"].sign() >= 0).all()  # none ran over
    assert message.get("w/scale", 1) != 0 or not message["w"].any()


def test_difference_too_large_is_refused():
    start = {"w": torch.zeros(2)}
    with pytest.raises(DivergedError, match="float16"):
        encode_update({"w": torch.tensor([7e4, 0])}, start, {}, "float16")
    with pytest.raises(DivergedError, match="float32"):
        encode_update({"w": torch.full((2,), 3e38)}, {"w": torch.full((2,), -3e38)}, {}, "int8")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_states_of_a_site_must_belong_together(encoding):
    good = {"w": torch.ones(2), "b": torch.ones(1)}
    for bad in ({"w": torch.ones(2)}, {**good, "more": torch.ones(1)}):
        with pytest.raises(FedscanError, match="only one of them has"):
            encode_update(good, bad, {}, encoding)
    with pytest.raises(FedscanError, match=r"w has the shape \(2,\) in one and \(2, 1\)"):
        encode_update(good, {**good, "w": torch.ones(2, 1)}, {}, encoding)


@pytest.mark.parametrize("encoding", ROUNDED)
def test_remainder_must_belong_to_the_weights(encoding):
    good = {"w": torch.ones(2), "b": torch.ones(1)}
    with pytest.raises(FedscanError, match=r"remainder of the round before .* only one .* has b"):
        encode_update(good, good, {"w": torch.ones(2)}, encoding)
    with pytest.raises(FedscanError, match=r"remainder of the round before .* shape"):
        encode_update(good, good, {**good, "w": torch.ones(1)}, encoding)
    with pytest.raises(DivergedError, match="w is not finite"):
        encode_update(good, good, {**good, "w": torch.full((2,), torch.nan)}, encoding)


def test_weight_named_like_a_scale_is_refused():
    state = {"w": torch.ones(2), "w/scale": torch.ones(())}
    with pytest.raises(FedscanError, match="no weight may be named w/scale"):
        encode_update(state, state, {}, "int8")
    with pytest.raises(FedscanError, match="no weight may be named w/scale"):
        decode_update(state, state, "int8")


# Bytes


def tensor_bytes(message: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in message.values())


def test_bytes_are_those_of_the_numbers():
    state = {"w": torch.zeros(100, 100), "b": torch.zeros(100), "gain": torch.zeros(())}
    n = 10_101
    assert [tensor_bytes(broadcast(state, e)) for e in ENCODINGS] == [4 * n, 2 * n, 2 * n]
    up = [tensor_bytes(encode_update(state, state, {}, e)[0]) for e in ENCODINGS]
    assert up == [4 * n, 2 * n, n + 3 * 4]
    assert up[2] / up[0] == pytest.approx(0.25, rel=0.01)


# A site that means ill


def update(encoding: str) -> tuple[dict, dict]:
    start = received(broadcast(weights(0), encoding))
    return encode_update(plus(start, weights(1, 0.01)), start, {}, encoding)[0], start


@pytest.mark.parametrize("encoding", ENCODINGS)
class TestHostile:
    def refused(self, message: dict, start: dict, encoding: str, match: str) -> None:
        before = {name: value.clone() for name, value in start.items()}
        with pytest.raises(FedscanError, match=match) as caught:
            decode_update(message, start, encoding)
        assert "nothing of it used" in str(caught.value)
        assert len(str(caught.value)) < 400
        assert same(start, before)

    def test_each_name_is_needed(self, encoding):
        message, start = update(encoding)
        for name in message:
            rest = {key: value for key, value in message.items() if key != name}
            self.refused(rest, start, encoding, f"{name} is missing")
        self.refused({}, start, encoding, r"is missing \(and \d more\)")

    @pytest.mark.parametrize("name", ["extra", "bias/scale/scale", "x" * 10_000, "a\nforged line"])
    def test_no_other_name_is_taken(self, encoding, name):
        message, start = update(encoding)
        self.refused({**message, name: torch.zeros(())}, start, encoding, "was not asked for")

    def test_names_are_told_on_one_line(self, encoding):
        message, start = update(encoding)
        with pytest.raises(FedscanError) as caught:
            decode_update({**message, "a\nforged line": torch.zeros(())}, start, encoding)
        assert "\n" not in str(caught.value)

    def test_scales_belong_to_int8(self, encoding):
        message, start = update("int8")
        if encoding != "int8":
            self.refused(message, start, encoding, "scale' was not asked for")

    def test_each_type_is_checked(self, encoding):
        message, start = update(encoding)
        for name, value in message.items():
            for dtype in (torch.float64, torch.int32, torch.bool, torch.complex64):
                wrong = {**message, name: value.to(dtype)}
                self.refused(wrong, start, encoding, f"{name} is of type .* is expected")

    def test_other_encodings_are_refused(self, encoding):
        message, start = update(encoding)
        for other in set(ENCODINGS) - {encoding}:
            self.refused(message, start, other, "is of type|is missing|not asked for")

    def test_each_shape_is_checked(self, encoding):
        message, start = update(encoding)
        for name, value in message.items():
            wrong = {**message, name: value[None]}  # would broadcast
            self.refused(wrong, start, encoding, f"{name} has the shape .* is expected")

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_numbers_must_be_finite(self, encoding, bad):
        message, start = update(encoding)
        for name, value in message.items():
            if value.is_floating_point() and value.numel():
                wrong = {**message, name: torch.full_like(value, bad)}
                self.refused(wrong, start, encoding, f"{name} .*not finite")


def test_scale_must_not_be_negative():
    message, start = update("int8")
    with pytest.raises(FedscanError, match="bias/scale is negative"):
        decode_update({**message, "bias/scale": torch.tensor(-1.0)}, start, "int8")


def test_minus_128_is_refused():
    message, start = update("int8")
    message["bias"][0] = -128
    with pytest.raises(FedscanError, match="bias holds -128"):
        decode_update(message, start, "int8")


def test_finite_scale_that_leads_beyond_float32_is_refused():
    message, start = update("int8")
    with pytest.raises(FedscanError, match=r"bias .*leads to one"):
        decode_update({**message, "bias/scale": torch.tensor(3e38)}, start, "int8")
