"""Slices lie where they say, look the way they say, and keep participants together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError, DataContractError
from common.imaging import slices
from common.imaging.bids import read_site
from common.imaging.prepare import FIELD_OF_VIEW_MM, load_images
from common.imaging.slices import LEVELS_MM, axial_slices, load_slices, pool


@pytest.fixture(scope="module")
def north(tiny_cohort: Path, session_cache: Path) -> slices.SliceSet:
    return load_slices("north", tiny_cohort / "north", "train", resolution=16, cache=session_cache)


def test_front_is_up_and_left_is_left():
    cube = np.zeros((16, 16, 16), dtype=np.float32)
    cube[:4] = 0.25  # the participant's left
    cube[:, 12:] = 1.0  # the front
    (picture,) = axial_slices(cube, [0.0])
    assert (picture[:4] == 1).all()
    assert (picture[4:, :4] == -0.5).all()
    assert (picture[4:, 4:] == -1).all()


@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_slice_lies_at_its_height_at_every_resolution(size):
    heights = (np.arange(size) - (size - 1) / 2) * FIELD_OF_VIEW_MM / size
    cube = np.broadcast_to((heights + 108) / 216, (size,) * 3).astype(np.float32)
    wanted = np.array([-100.0, *LEVELS_MM, 31.4, 100.0])
    found = axial_slices(cube, wanted)[:, 3, 5]
    np.testing.assert_allclose((found + 1) / 2 * 216 - 108, wanted, atol=1e-3)


def test_slices_are_those_of_the_prepared_scans(north, tiny_cohort, session_cache):
    scans = load_images(
        read_site(tiny_cohort / "north", "north"), "train", image_size=16, cache=session_cache
    )
    n = len(scans.ids)
    assert north.images.shape == (n * len(LEVELS_MM), 1, 16, 16)
    assert north.images.dtype == np.float32
    assert north.images.min() == -1
    assert 0.5 < north.images.max() <= 1
    assert north.ids == tuple(np.repeat(scans.ids, len(LEVELS_MM)))
    assert north.heights_mm.tolist() == list(LEVELS_MM) * n
    sexes = [label["sex"] for label in north.labels]
    assert sexes == ["FM"[label] for label in np.repeat(scans.labels, len(LEVELS_MM))]
    assert {label["site"] for label in north.labels} == {"north"}
    middle = LEVELS_MM.index(0.0)
    expected = scans.images[:, :, :, 7:9].mean(axis=3).transpose(0, 2, 1)[:, ::-1] * 2 - 1
    np.testing.assert_allclose(north.images[middle :: len(LEVELS_MM), 0], expected, atol=1e-6)


def test_every_slice_holds_much_brain(north):
    assert ((north.images > -0.8).mean(axis=(1, 2, 3)) > 0.2).all()


def test_small_batches_change_nothing(north, tiny_cohort, session_cache, monkeypatch):
    monkeypatch.setattr(slices, "_BATCH_BYTES", 1)
    again = load_slices("north", tiny_cohort / "north", "train", resolution=16, cache=session_cache)
    np.testing.assert_array_equal(again.images, north.images)
    assert again.ids == north.ids


def test_splits_share_no_participant(north, tiny_cohort, session_cache):
    test = load_slices("north", tiny_cohort / "north", "test", resolution=16, cache=session_cache)
    assert not {*test.ids} & {*north.ids}


def test_bad_scans_are_left_out_and_all_bad_is_an_error(
    tiny_cohort, session_cache, tmp_path, monkeypatch
):
    import shutil

    site = tmp_path / "north"
    shutil.copytree(tiny_cohort / "north", site)
    index = read_site(site, "north")
    first, *others = [one for one in index.participants if one.split == "train"]
    monkeypatch.setattr(slices, "_BATCH_BYTES", 1)
    first.scan.write_bytes(b"no scan")
    kept = load_slices("north", site, "train", resolution=16, cache=session_cache)
    assert {*kept.ids} == {one.id for one in others}
    for one in others:
        one.scan.write_bytes(b"no scan")
    with pytest.raises(DataContractError, match="no train scan can be used"):
        load_slices("north", site, "train", resolution=16, cache=session_cache)


@pytest.mark.parametrize(
    "wrong", [{"resolution": 48}, {"levels_mm": ()}, {"levels_mm": (0.0, 104.0)}]
)
def test_refuses_what_it_cannot_cut(wrong, tiny_cohort, session_cache):
    with pytest.raises(ConfigError, match="accepted"):
        load_slices(
            "north",
            tiny_cohort / "north",
            "train",
            **{"resolution": 16, "cache": session_cache, **wrong},
        )


def test_pool_keeps_every_slice_with_its_labels(north, tiny_cohort, session_cache):
    island = load_slices(
        "island", tiny_cohort / "island", "train", resolution=16, cache=session_cache
    )
    both = pool([north, island])
    assert len(both) == len(north) + len(island)
    assert [label["site"] for label in both.labels].count("island") == len(island)
    np.testing.assert_array_equal(both.images[-len(island) :], island.images)
    women = both.subset([label["sex"] == "F" for label in both.labels])
    assert {label["sex"] for label in women.labels} == {"F"}
    assert 0 < len(women) < len(both)
    with pytest.raises(ConfigError, match="resolution"):
        pool([])


@pytest.mark.parametrize("none", [[], (), np.zeros(0, dtype=int)])
def test_no_index_gives_no_slice(none, north):
    empty = north.subset(none)
    assert len(empty) == 0
    assert empty.images.shape == (0, 1, 16, 16)
    assert empty.labels == empty.ids == ()
    assert empty.heights_mm.shape == (0,)
