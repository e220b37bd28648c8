"""How much one site can do to the average: its share of the votes, and how far it may pull."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from common.bounds import bounded_votes, longest_norms, outsized, shortened, update_norms

VOTES = st.lists(st.floats(1e-3, 1e7), min_size=2, max_size=8).map(
    lambda votes: {f"site-{number}": vote for number, vote in enumerate(votes)}
)
SHARES = st.floats(0.01, 1)
FREELY = settings(deadline=None, suppress_health_check=list(HealthCheck))


def shares(votes: dict[str, float]) -> dict[str, float]:
    return {site: vote / sum(votes.values()) for site, vote in votes.items()}


# Votes


@FREELY
@given(VOTES, SHARES)
def test_no_site_has_more_than_its_share(votes, most):
    found = shares(bounded_votes(votes, most))
    assert max(found.values()) <= max(most, 1 / len(votes)) * (1 + 1e-9)
    assert list(found) == list(votes)


@FREELY
@given(VOTES, SHARES)
def test_votes_that_keep_to_the_bound_stay_as_they_are(votes, most):
    assume(max(votes.values()) <= most * sum(votes.values()))
    assert bounded_votes(votes, most) == votes


@FREELY
@given(VOTES, SHARES)
def test_bound_changes_no_order_and_raises_no_vote(votes, most):
    assume(most * len(votes) > 1)
    found = bounded_votes(votes, most)
    ordered = sorted(votes, key=votes.__getitem__)
    assert all(found[a] <= found[b] * (1 + 1e-9) for a, b in pairwise(ordered))
    assert all(found[site] <= votes[site] * (1 + 1e-9) for site in votes)


@FREELY
@given(VOTES, SHARES)
def test_bounded_sites_have_exactly_the_share(votes, most):
    assume(most * len(votes) > 1)
    found = bounded_votes(votes, most)
    for site, share in shares(found).items():
        if found[site] < votes[site] * (1 - 1e-6):
            assert share == pytest.approx(most)


@pytest.mark.parametrize(
    ("votes", "most", "expected"),
    [
        ({"a": 1e7, "b": 30, "c": 10}, 0.8, {"a": 160, "b": 30, "c": 10}),
        ({"a": 1e7, "b": 1e7, "c": 10}, 0.4, {"a": 20, "b": 20, "c": 10}),  # a tie
        ({"a": 1e7, "b": 1e6, "c": 10}, 0.4, {"a": 20, "b": 20, "c": 10}),
        ({"a": 5, "b": 1, "c": 1}, 0.2, {"a": 1, "b": 1, "c": 1}),  # three cannot have a fifth each
        ({"a": 1e7, "b": 1}, 1.0, {"a": 1e7, "b": 1}),
        ({"a": 1e7}, 0.1, {"a": 1e7}),  # alone
    ],
)
def test_bounded_votes_in_numbers(votes, most, expected):
    assert bounded_votes(votes, most) == pytest.approx(expected)


# Updates

W = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}


def test_norm_is_of_all_tensors_together():
    moved = {"a": W["a"] + torch.tensor([2.0, 1.0]), "b": W["b"] + 2}
    assert update_norms({"x": moved, "y": W}, W) == {"x": pytest.approx(3.0), "y": 0.0}


def test_each_site_is_compared_with_the_median_of_the_others():
    norms = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 1e30}
    found = longest_norms(norms, 10.0)
    assert found == {
        site: 10 * median(norm for other, norm in norms.items() if other != site) for site in norms
    }
    assert [site for site in norms if norms[site] > found[site]] == ["d"]


@pytest.mark.parametrize(
    ("norms", "most"),
    [({"a": 1.0}, 10.0), ({"a": 1.0, "b": 1e9}, 0.0), ({"a": 5.0, "b": 0.0, "c": 0.0}, 10.0)],
)
def test_site_is_not_bounded_where_there_is_nothing_to_compare_with(norms, most):
    assert longest_norms(norms, most)["a"] == math.inf


def test_shortened_update_keeps_its_direction():
    moved = {"a": W["a"] + torch.tensor([2.0, 1.0]), "b": W["b"] + 2}
    found = shortened(moved, W, 0.5)
    torch.testing.assert_close(found["a"], W["a"] + torch.tensor([1.0, 0.5]))
    assert found["b"] == 4.0
    assert update_norms({"x": found}, W)["x"] == pytest.approx(1.5)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


# Claims


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"a": 1_000_000, "b": 100, "c": 200}, {"a": 150}),
        ({"a": 10_000, "b": 100}, {}),
        ({"a": 10_001, "b": 100}, {"a": 100}),
        ({"a": 10_001}, {}),
    ],
)
def test_site_with_a_hundred_times_the_others_scans_is_told_of(counts, expected):
    assert outsized(counts) == expected
