"""Datasets: what is taken is what is stored, whatever was chosen, cut or pooled before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny import dataset

from common.data.dataset import Dataset, pool
from common.errors import ConfigError

KINDS = (np.uint8, np.float16, np.float32)


def stored(count: int, kind: type, *, shape: tuple[int, ...] = (1, 2, 3), seed: int = 0):
    draws = np.random.default_rng(seed)
    if kind is np.uint8:
        return draws.integers(0, 256, (count, *shape), dtype=np.uint8)
    return draws.uniform(0, 1, (count, *shape)).astype(kind)


def made(count: int, kind: type = np.float32, seed: int = 0, **more) -> Dataset:
    labels = np.random.default_rng(seed).integers(0, 3, count)
    told = [{"place": f"{seed}.{k}"} for k in range(count)]
    return dataset(stored(count, kind, seed=seed, **more), labels, conditions=told)


def assert_same(one: Dataset, other: Dataset) -> None:
    assert len(one) == len(other)
    assert one.shape == other.shape
    np.testing.assert_array_equal(one.images(), other.images())
    np.testing.assert_array_equal(one.labels, other.labels)
    assert (one.persons, one.conditions) == (other.persons, other.conditions)


@given(arrays.arrays(np.uint8, (3, 1, 2, 2)))
def test_bytes_are_taken_as_fractions_of_255_in_float32(pixels):
    found = dataset(pixels).images()
    assert found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1
    np.testing.assert_array_equal(np.rint(found * 255), pixels)  # no level is lost


@given(
    arrays.arrays(np.float16, (3, 1, 2, 2), elements=st.floats(0, 1, width=16)),
)
def test_floats_are_taken_as_they_are_in_float32(pixels):
    found = dataset(pixels).images()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, pixels.astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_taken_is_a_copy(kind):
    data = made(3, kind)
    before = data.images()
    data.take([0, 1])[:] = 0.5
    np.testing.assert_array_equal(data.images(), before)


@given(st.data())
def test_a_subset_of_a_subset_is_the_composed_choice(draw):
    data = made(8)
    first = draw.draw(st.lists(st.integers(0, 7), min_size=1))
    second = draw.draw(st.lists(st.integers(0, len(first) - 1)))
    found = data.subset(first).subset(second)
    assert_same(found, data.subset([first[k] for k in second]))
    index = draw.draw(st.lists(st.integers(0, len(second) - 1))) if second else []
    chosen = [first[second[k]] for k in index]
    np.testing.assert_array_equal(found.take(index), data.take(chosen))


@given(st.lists(st.booleans(), min_size=5, max_size=5))
def test_a_mask_chooses_what_its_indices_do(mask):
    data = made(5)
    assert_same(data.subset(np.array(mask)), data.subset(np.flatnonzero(mask)))


def test_files_and_people_are_counted_once():
    data = dataset(stored(4, np.uint8), persons="abba")
    assert (len(data), data.files, data.people) == (4, 4, 2)
    assert data.subset([1, 2]).people == 1


@given(st.lists(st.integers(0, 11)))
def test_levels_are_the_slices_of_the_stacks_in_order(index):
    heights = (-9.0, 0.0, 4.5, 9.0)
    stacks = dataset(
        stored(3, np.float16, shape=(1, 4, 5, 5)),
        [2, 0, 1],
        conditions=[{"sex": "female"}, {}, {"sex": "male"}],
    )
    slices = stacks.levels(heights)
    assert (len(slices), slices.shape, slices.files, slices.people) == (12, (1, 5, 5), 3, 3)
    whole = stacks.images()[:, 0].reshape(12, 1, 5, 5)
    np.testing.assert_array_equal(slices.take(index), whole[np.array(index, dtype=int)])
    np.testing.assert_array_equal(slices.labels, np.repeat(stacks.labels, 4))
    assert slices.conditions[5] == {"height": "0"}
    assert [row["height"] for row in slices.conditions] == ["-9", "0", "4.5", "9"] * 3
    assert slices.persons[4:8] == stacks.persons[1:2] * 4


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(KINDS)), min_size=1, max_size=4))
def test_a_pool_is_its_parts_one_after_the_other(parts):
    """Whatever their types: a site's bytes are no other site's fractions."""
    sets = [made(count, kind, seed) for seed, (count, kind) in enumerate(parts)]
    pooled = pool(sets)
    assert len(pooled) == sum(map(len, sets))
    assert pooled.people == sum(one.people for one in sets)  # the same name, other people
    np.testing.assert_array_equal(pooled.images(), np.concatenate([one.images() for one in sets]))
    np.testing.assert_array_equal(pooled.labels, np.concatenate([one.labels for one in sets]))
    assert pooled.conditions == tuple(row for one in sets for row in one.conditions)


@given(st.permutations(range(7)), st.integers(0, 7))
def test_a_batch_of_a_pool_is_in_the_order_asked_for(order, size):
    pooled = pool([made(3, np.uint8), made(4, np.float16, 1)])
    np.testing.assert_array_equal(pooled.take(order[:size]), pooled.images()[order[:size]])


def test_pooling_is_associative_but_for_the_names_of_people():
    one, two, three = (made(k + 1, seed=k) for k in range(3))
    nested, flat = pool([pool([one, two]), three]), pool([one, two, three])
    np.testing.assert_array_equal(nested.images(), flat.images())
    np.testing.assert_array_equal(nested.labels, flat.labels)
    assert nested.people == flat.people
    assert nested.conditions == flat.conditions


def test_what_one_site_does_not_tell_is_nothing_of_anothers():
    pooled = pool([dataset(stored(2, np.uint8)), made(1, np.uint8)])
    assert pooled.conditions == ({}, {}, {"place": "0.0"})


def test_images_of_two_shapes_or_none_are_not_pooled():
    with pytest.raises(ConfigError, match="accepted is one and the same"):
        pool([made(1), made(1, shape=(1, 4, 4))])
    with pytest.raises(ConfigError, match="accepted is one and the same"):
        pool([])
