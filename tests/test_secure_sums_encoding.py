"""Real numbers as whole ones modulo 2^k, and secrets in shares."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, SecureSumError
from common.secure_sums.fixed_point import FixedPoint, Layout, largest_total
from common.secure_sums.shamir import PRIME, SECRET, SHARE, combine, share

FREELY = settings(deadline=None)
CODES = st.builds(FixedPoint, st.floats(1e-6, 1e6), st.integers(1, 500), st.sampled_from([32, 64]))

# Fixed point


@FREELY
@given(CODES, st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.randoms())
def test_sum_of_encoded_numbers_is_the_plain_sum_to_the_stated_error(code, shares, rng):
    numbers = np.array([[code.bound * one * rng.choice([-1, 1])] for one in shares[: code.sites]])
    total = np.sum([code.encode(row) for row in numbers], axis=0, dtype=f"<u{code.bits // 8}")
    plain = numbers.sum(axis=0)
    assert np.abs(code.decode(total) - plain) <= len(numbers) * code.step / 2 + 1e-12 * code.bound
    assert len(numbers) * code.step / 2 <= code.error


@FREELY
@given(CODES, st.sampled_from([-1, 1]))
def test_all_sites_at_the_bound_do_not_overflow(code, sign):
    whole = int(code.encode([sign * code.bound]).view(f"<i{code.bits // 8}")[0])
    assert abs(whole) * code.sites <= largest_total(code.bits)


@FREELY
@given(CODES)
def test_half_the_step_would_overflow(code):
    most = code.sites * round(2 * code.bound / code.step)
    assert most > largest_total(code.bits) - 2 * code.sites


@FREELY
@given(CODES, st.integers(-1000, 1000))
def test_multiples_of_the_step_are_exact(code, multiple):
    number = multiple * code.step
    if abs(number) <= code.bound:
        assert code.decode(code.encode([number])) == number


@pytest.mark.parametrize("value", [1.001, -1.001, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bits", [32, 64])
def test_numbers_beyond_the_bound_are_refused(value, bits):
    with pytest.raises(SecureSumError, match="beyond the public bound of 1"):
        FixedPoint(1.0, 3, bits).encode([0.5, value])


@pytest.mark.parametrize(
    ("bound", "sites", "bits"), [(0, 3, 32), (np.nan, 3, 32), (1e31, 3, 32), (1, 0, 32), (1, 3, 16)]
)
def test_unusable_codes_are_refused(bound, sites, bits):
    with pytest.raises(ConfigError, match="accepted is"):
        FixedPoint(bound, sites, bits)


# Arrays and weights

SHAPES = {"layer.weight": (3, 4), "scale": (), "bias": (4,)}
BOUNDS = {"layer.weight": 2.0, "scale": 100.0, "bias": 0.01}


@FREELY
@given(st.lists(st.integers(0, 300), min_size=1, max_size=9), st.integers(0, 99))
def test_weighted_means_equal_plain_ones_to_the_stated_error(weights, seed):
    layout = Layout(SHAPES, BOUNDS, len(weights), most_weight=300)
    rng = np.random.default_rng(seed)
    of_sites = [
        {name: rng.uniform(-BOUNDS[name], BOUNDS[name], shape) for name, shape in SHAPES.items()}
        for _ in weights
    ]
    pairs = list(zip(of_sites, weights, strict=True))
    sums = layout.decode(np.sum([layout.encode(*pair) for pair in pairs], axis=0, dtype="<u4"))
    assert sums.weight == sum(weights)
    if not sums.weight:
        with pytest.raises(SecureSumError, match="weights are all 0"):
            sums.means()
        return
    for name, mean in sums.means().items():
        plain = sum(w * arrays[name] for arrays, w in pairs) / sum(weights)
        assert mean.shape == SHAPES[name]
        assert np.abs(mean - plain).max() <= layout.error(name) / sum(weights) * (1 + 1e-9)


def test_layout_refuses_what_was_not_declared():
    layout = Layout(SHAPES, BOUNDS, 3, most_weight=10)
    good = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    assert layout.encode(good, 10).shape == (layout.length,)
    for arrays, weight in (
        ({**good, "bias": np.zeros(5)}, 1),
        ({**good, "bias": np.full(4, 0.02)}, 0),  # whatever the weight
        ({**good, "more": np.zeros(1)}, 1),
        ({"bias": np.zeros(4)}, 1),
        (good, 11),
        (good, -1),
        (good, 0.5),
    ):
        with pytest.raises(SecureSumError):
            layout.encode(arrays, weight)
    with pytest.raises(ConfigError, match="do not fit"):
        Layout(SHAPES, BOUNDS, 3, most_weight=2**31)


def test_layouts_that_differ_in_anything_have_other_digests():
    changed = [
        Layout(SHAPES, BOUNDS, 3),
        Layout(SHAPES, BOUNDS, 4),
        Layout(SHAPES, BOUNDS, 3, most_weight=2),
        Layout(SHAPES, BOUNDS, 3, bits=64),
        Layout(SHAPES, {**BOUNDS, "bias": 0.02}, 3),
        Layout({**SHAPES, "bias": (5,)}, BOUNDS, 3),
        Layout(dict(reversed(SHAPES.items())), BOUNDS, 3),
    ]
    assert len({layout.digest for layout in changed}) == len(changed)
    assert Layout(dict(SHAPES), dict(BOUNDS), 3).digest == changed[0].digest


# Shares

SECRETS = st.binary(min_size=SECRET, max_size=SECRET)
OF = st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@FREELY
@given(SECRETS, OF, st.integers(0, 99))
def test_any_threshold_of_shares_tells_the_secret(secret, of, seed):
    n, threshold = of
    shares = share(secret, threshold, range(1, n + 1), random.Random(seed).randbytes)
    for some in combinations(shares, threshold):
        assert combine({point: shares[point] for point in some}, threshold) == secret
    assert combine(shares, threshold) == secret


@FREELY
@given(SECRETS, SECRETS, st.integers(2, 7), st.integers(0, 99))
def test_fewer_shares_fit_every_secret(secret, other, threshold, seed):
    """With t - 1 shares there is, for any secret at all, one last share that tells it."""
    shares = share(secret, threshold, range(1, threshold + 1), random.Random(seed).randbytes)
    with pytest.raises(SecureSumError, match="takes"):
        combine({point: shares[point] for point in list(shares)[1:]}, threshold)
    # The secret is linear in the last share, with a slope that is not 0.
    value = int.from_bytes(shares[1], "big")
    weight = 1
    for point in range(2, threshold + 1):
        weight = weight * point * pow(point - 1, -1, PRIME) % PRIME
    wanted = int.from_bytes(other, "big") - int.from_bytes(secret, "big")
    last = (value + wanted * pow(weight, -1, PRIME)) % PRIME
    assert combine({**shares, 1: last.to_bytes(SHARE, "big")}, threshold) == other


@FREELY
@given(SECRETS, st.integers(1, 5), st.data())
def test_a_changed_share_among_more_than_needed_is_noticed(secret, threshold, data):
    shares = share(secret, threshold, range(1, threshold + 2), random.Random(0).randbytes)
    point = data.draw(st.sampled_from(list(shares)))
    changed = (int.from_bytes(shares[point], "big") + 1) % PRIME
    with pytest.raises(SecureSumError, match="do not belong"):
        combine({**shares, point: changed.to_bytes(SHARE, "big")}, threshold)


def test_shamir_refuses_what_it_cannot_share():
    for secret, threshold, points in (
        (bytes(31), 2, [1, 2]),
        (bytes(32), 3, [1, 2]),
        (bytes(32), 0, [1, 2]),
        (bytes(32), 2, [0, 1]),
    ):
        with pytest.raises(ValueError, match="32 bytes"):
            share(secret, threshold, points, random.Random(0).randbytes)
