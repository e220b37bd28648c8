"""Copies of a picture are found however they were made, other pictures are not, and leaks are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.data.copies import (
    MOST_BITS,
    READ_SIZE,
    are_copies,
    describe,
    near_hashes,
    picture_hashes,
    sets_of_copies,
)
from common.data.leaks import (
    GROUP,
    NEAR,
    SAME_FILE,
    SAME_PIXELS,
    Rows,
    copies_in_several_places,
    things_in_several_places,
)
from common.data.phantoms.lesion_cohorts import HOSPITALS, patient_pictures, take
from common.data.photographs import read_photograph

SEED = 3
HALF = (64, 64)


@pytest.fixture(scope="module")
def lesions() -> tuple[list[Image.Image], list[str]]:
    """Pictures of 128 pixels from three dermatoscopes, some of one lesion, and their lesions."""
    taken = [
        picture
        for hospital in HOSPITALS
        for patient in range(14)
        for picture in patient_pictures(hospital, patient, SEED)
    ]
    return [Image.fromarray(take(one, SEED, 128)) for one in taken], [t.lesion_id for t in taken]


@pytest.fixture(scope="module")
def described(lesions, tmp_path_factory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("pictures")
    return np.array([read(stored(picture), folder) for picture in lesions[0]])


def stored(picture: Image.Image, form: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def read(data: bytes, folder: Path) -> np.ndarray:
    path = folder / "picture"
    path.write_bytes(data)
    return describe(read_photograph(path, size=READ_SIZE, channels=3))


def found(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each of two lists of descriptions, whether the pair is in one set."""
    n = len(first)
    _, near = sets_of_copies(np.concatenate([first, second]), range(2 * n))
    return near[:n] == near[n:]


COPIES = {
    "quality 50": lambda p: stored(p, quality=50),
    "half size": lambda p: stored(p.resize(HALF), quality=90),
    "half size without JPEG": lambda p: stored(p.resize(HALF, Image.Resampling.BOX), "PNG"),
    "twice the size": lambda p: stored(p.resize((256, 256)), quality=80),
    "brightness + 5 %": lambda p: stored(p.point(lambda v: min(255, v * 1.05)), quality=90),
    "darker by a fifth": lambda p: stored(p.point(lambda v: v * 0.8), quality=75),
    "grey": lambda p: stored(p.convert("L")),
    "mirrored": lambda p: stored(p.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "turned": lambda p: stored(p.transpose(Image.Transpose.ROTATE_90)),
    "turned and mirrored": lambda p: stored(p.transpose(Image.Transpose.TRANSVERSE)),
}


@pytest.mark.parametrize("how", COPIES)
def test_copy_is_found(how, lesions, described, tmp_path):
    copies = np.array([read(COPIES[how](picture), tmp_path) for picture in lesions[0]])
    assert found(described, copies).all()


def test_no_two_lesions_and_no_two_views_of_one_are_copies(lesions, described):
    equal, near = sets_of_copies(described, range(len(described)))
    assert len(set(lesions[1])) < len(described)  # there are lesions with several views
    assert len(set(near.tolist())) == len(described)
    assert equal.tolist() == near.tolist()


def test_picture_of_twice_the_contrast_is_no_copy(described):
    assert are_copies(described, 1.2 * described).all()
    assert not are_copies(described, 2 * described).any()


def test_pictures_without_contrast_are_copies_only_where_their_pixels_are_equal(tmp_path):
    grey = [stored(Image.new("RGB", (64, 64), (v, v, v)), "PNG") for v in (0, 0, 128)]
    told = np.array([read(one, tmp_path) for one in grey])
    equal, near = sets_of_copies(told, ["black", "black", "grey"])
    assert equal[0] == equal[1] != equal[2]
    assert near[0] == near[1] != near[2]


HEADS = 12


def head(k: int) -> np.ndarray:
    """Aligned head from 0 to 1 whose outlines are all heads' and whose details are its own."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, 64)] * 2)
    inside = 1 / (1 + np.exp(40 * (np.hypot(x, y * 1.1) - 0.8)))
    draws = np.random.default_rng(k)
    common, own = (
        sum(
            rng.normal() * np.cos(np.pi * (a * x + b * y) + rng.uniform(0, 7))
            for a in range(3)
            for b in range(3)
        )
        for rng in (np.random.default_rng(0), draws)
    )
    return inside * np.clip(0.6 + 0.08 * common + 0.05 * own, 0, 1)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_dark_pictures_are_copies_by_what_differs_of_their_own_contrast(bits, tmp_path):
    """As of 12 bits in files of 16, where black to white is a sixteenth of the scale."""

    def dark(k: int, side: int = 64) -> np.ndarray:
        values = Image.fromarray((head(k) * (2**bits - 1)).astype(np.float32))
        small = np.asarray(values.resize((side, side), Image.Resampling.BOX))
        return read(stored(Image.fromarray(np.rint(small).astype(np.uint16)), "PNG"), tmp_path)

    heads = np.array([dark(k) for k in range(HEADS)])
    _, near = sets_of_copies(heads, range(HEADS))
    assert len(set(near.tolist())) == HEADS
    assert found(heads, np.array([dark(k, 32) for k in range(HEADS)])).all()


def test_hash_of_a_turned_picture_is_that_of_the_picture_under_the_symmetry(described):
    hashes = picture_hashes(described)
    turned = {
        0: described,
        1: described * (-1.0) ** np.arange(16),
        2: described * ((-1.0) ** np.arange(16))[:, None],
        4: described.transpose(0, 2, 1),
    }
    for symmetry, low in turned.items():
        assert picture_hashes(low.astype(np.float32))[:, 0].tolist() == hashes[:, symmetry].tolist()
        assert are_copies(described, low.astype(np.float32), symmetry).all()


def test_size_of_a_description_is_the_contrast_in_grey_levels():
    ramp = np.broadcast_to(np.linspace(0, 255, 32), (32, 32))[..., None].astype(np.uint8)
    assert np.linalg.norm(describe(ramp)) == pytest.approx(ramp.std(), rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 150), most=st.integers(0, 40))
def test_pairs_of_near_hashes_are_those_of_brute_force(seed, n, most):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, (n, 3), dtype=np.uint64)
    for _ in range(n // 3):  # some that differ in few bits
        i, j = rng.integers(0, n, 2)
        hashes[j, 0] = hashes[i, rng.integers(0, 3)] ^ np.uint64(1 << int(rng.integers(0, 64)))
    wanted = {
        (i, j, s)
        for i in range(n)
        for j in range(i + 1, n)
        for s in range(3)
        if (int(hashes[i, s]) ^ int(hashes[j, 0])).bit_count() <= most
    }
    pairs = [
        (i, j, s)
        for one, other, s in near_hashes(hashes, most)
        for i, j in zip(one.tolist(), other.tolist(), strict=True)
    ]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == wanted


def test_pairs_of_near_hashes_are_found_across_blocks():
    hashes = np.random.default_rng(0).integers(0, 2**64, (9000, 1), dtype=np.uint64)
    hashes[8999], hashes[4500] = hashes[3], hashes[70]
    pairs = [(i.tolist(), j.tolist()) for i, j, _ in near_hashes(hashes, 5)]
    assert pairs == [([3], [8999]), ([70], [4500])]


def test_a_thousand_copies_of_one_picture_are_one_set(described):
    noise = np.random.default_rng(0).normal(0, 0.05, (1000, 16, 16))
    _, near = sets_of_copies((described[:1] + noise).astype(np.float32), range(1000))
    assert len(set(near.tolist())) == 1


def test_copies_of_copies_are_of_one_set_and_all_others_of_their_own(described):
    two = np.concatenate([described[:5], described[2:4], described[2:3]])
    _, near = sets_of_copies(two, range(8))
    assert near.tolist() == [0, 1, 2, 3, 4, 2, 3, 2]


# Leaks


def rows(*each: tuple[str, str, dict[str, str], object]) -> Rows:
    """Rows from site, split, keys and group."""
    return Rows(
        [one[0] for one in each],
        [one[1] for one in each],
        [f"{k}.jpg" for k in range(len(each))],
        [tuple(one[2].items()) for one in each],
        [(one[0], one[3]) for one in each],
    )


def told(leaks) -> list[tuple]:
    return [(leak.what, leak.sites, leak.splits, leak.is_problem) for leak in leaks]


def test_person_in_two_splits_of_a_hospital_is_a_leak_with_its_files():
    table = rows(
        ("north", "train", {"person": "anna"}, 0),
        ("north", "test", {"person": "anna"}, 0),
        ("north", "test", {"person": "bert"}, 1),
    )
    (leak,) = things_in_several_places(table)
    assert told([leak]) == [("person", ["north"], ["train", "test"], True)]
    assert [row["file"] for row in leak.rows] == ["0.jpg", "1.jpg"]
    assert leak.one_group


def test_lesion_and_person_are_told_each_and_their_group_only_where_neither_tells():
    one, other = {"person": "a", "lesion": "1"}, {"person": "b", "lesion": "1"}
    table = rows(
        ("north", "train", one, 0),
        ("north", "val", other, 0),
        ("south", "train", {"person": "c"}, 0),
        ("south", "train", {"person": "c", "lesion": "2"}, 0),
        ("south", "test", {"person": "d"}, 0),  # joined by a row that is left out
    )
    assert told(things_in_several_places(table)) == [
        ("lesion", ["north"], ["train", "val"], True),
        (GROUP, ["south"], ["train", "test"], True),
    ]


def test_name_at_two_hospitals_is_told_and_no_problem():
    table = rows(("a", "train", {"person": "1"}, 0), ("b", "test", {"person": "1"}, 0))
    assert told(things_in_several_places(table)) == [
        ("person", ["a", "b"], ["train", "test"], False)
    ]


@pytest.mark.parametrize(
    ("files", "equal", "kind", "copies"),
    [
        ([b"x", b"x"], [0, 0], SAME_FILE, {SAME_FILE: 1, SAME_PIXELS: 0, NEAR: 0}),
        ([b"x", b"y"], [0, 0], SAME_PIXELS, {SAME_FILE: 0, SAME_PIXELS: 1, NEAR: 0}),
        ([0, 1], [0, 1], NEAR, {SAME_FILE: 0, SAME_PIXELS: 0, NEAR: 1}),
    ],
)
@pytest.mark.parametrize("sites", [("a", "a"), ("a", "b")])
def test_copy_in_another_split_is_a_leak_of_the_closest_kind(files, equal, kind, copies, sites):
    table = rows((sites[0], "train", {}, 0), (sites[1], "test", {}, 1))
    near = np.zeros(2, np.int64)
    leaks, counts = copies_in_several_places(table, files, np.array(equal), near)
    assert told(leaks) == [(kind, sorted(set(sites)), ["train", "test"], True)]
    assert counts == copies
    assert not leaks[0].one_group


def test_copies_in_one_split_of_one_hospital_are_counted_and_no_leak():
    table = rows(*[("a", "train", {}, k) for k in range(3)])
    leaks, counts = copies_in_several_places(
        table, [b"x", b"x", 2], np.array([0, 0, 1]), np.zeros(3, np.int64)
    )
    assert leaks == []
    assert counts == {SAME_FILE: 1, SAME_PIXELS: 0, NEAR: 1}


def test_copy_in_the_same_split_of_two_hospitals_is_told_and_no_problem():
    table = rows(("a", "train", {}, 0), ("b", "train", {}, 0))
    leaks, _ = copies_in_several_places(table, [0, 1], np.arange(2), np.zeros(2, np.int64))
    assert told(leaks) == [(NEAR, ["a", "b"], ["train"], False)]


def test_a_set_leaks_as_the_kind_that_crosses_splits_not_as_the_closest_in_it():
    table = rows(("a", "train", {}, 0), ("a", "train", {}, 1), ("a", "test", {}, 2))
    leaks, _ = copies_in_several_places(
        table, [b"x", b"x", 2], np.array([0, 0, 1]), np.zeros(3, np.int64)
    )
    assert told(leaks) == [(NEAR, ["a"], ["train", "test"], True)]


def test_hashes_of_copies_lie_well_within_the_limit(lesions, described, tmp_path):
    copies = np.array([read(COPIES["quality 50"](p), tmp_path) for p in lesions[0]])
    bits = np.bitwise_count(picture_hashes(described)[:, 0] ^ picture_hashes(copies)[:, 0])
    assert bits.max() < MOST_BITS
