"""Slices lie where they say, look the way they say, and keep participants together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from common.data.dataset import Dataset, pool
from common.data.readers.bids import read_volume
from common.data.site_data import open_split
from common.errors import ConfigError, DataContractError
from common.evaluation.extractors import brain
from common.imaging.bids import read_site
from common.imaging.prepare import FIELD_OF_VIEW_MM
from common.imaging.slices import LEVELS_MM, axial_slices
from common.studies.study import load_study

BRAINS = load_study("brain-sex")


def load_scans(site: Path, split: str, cache: Path) -> Dataset:
    return open_split(BRAINS, site.name, site, split, size=16, cache=cache)


def load_stacks(site: Path, split: str, cache: Path, **changes) -> Dataset:
    options = {"size": 16, "heights_mm": LEVELS_MM} | changes
    return open_split(BRAINS, site.name, site, split, **options, cache=cache)


def load_slices(site: Path, split: str, cache: Path) -> Dataset:
    return load_stacks(site, split, cache).levels(LEVELS_MM)


@pytest.fixture(scope="module")
def north(tiny_cohort: Path, session_cache: Path) -> Dataset:
    return load_slices(tiny_cohort / "north", "train", session_cache)


def test_front_is_up_and_left_is_left():
    cube = np.zeros((16, 16, 16), dtype=np.float32)
    cube[:4] = 0.25  # the participant's left
    cube[:, 12:] = 1.0  # the front
    (picture,) = axial_slices(cube, [0.0])
    assert (picture[:4] == 1).all()
    assert (picture[4:, :4] == 0.25).all()
    assert (picture[4:, 4:] == 0).all()


@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_slice_lies_at_its_height_at_every_resolution(size):
    heights = (np.arange(size) - (size - 1) / 2) * FIELD_OF_VIEW_MM / size
    cube = np.broadcast_to((heights + 108) / 216, (size,) * 3).astype(np.float32)
    wanted = np.array([-100.0, *LEVELS_MM, 31.4, 100.0])
    found = axial_slices(cube, wanted)[:, 3, 5]
    np.testing.assert_allclose(found * 216 - 108, wanted, atol=1e-3)


def test_slices_are_those_of_the_prepared_scans(north, tiny_cohort, session_cache):
    scans = load_scans(tiny_cohort / "north", "train", session_cache)
    n = len(scans)
    images = north.images()
    assert images.shape == (n * len(LEVELS_MM), 1, 16, 16)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert 0.75 < images.max() <= 1
    assert north.files == n
    assert north.persons == tuple(np.repeat(scans.persons, len(LEVELS_MM)))
    np.testing.assert_array_equal(north.labels, np.repeat(scans.labels, len(LEVELS_MM)))
    assert [one["height"] for one in north.conditions] == [f"{z:g}" for z in LEVELS_MM] * n
    assert [one["sex"] for one in north.conditions] == [
        ("female", "male")[label] for label in north.labels
    ]
    assert {one["site"] for one in north.conditions} == {"north"}
    middle = LEVELS_MM.index(0.0)
    root = tiny_cohort / "north"
    files = [root / f"{name}/anat/{name}_T1w.nii.gz" for name in scans.persons]
    cubes = np.stack([read_volume(file, size=16, root=root, site="north") for file in files])
    expected = cubes[:, :, :, 7:9].mean(axis=3).transpose(0, 2, 1)[:, ::-1]
    half_precision = 2**-10  # of the stored numbers, twice rounded
    np.testing.assert_allclose(
        images[middle :: len(LEVELS_MM), 0], expected, rtol=0, atol=half_precision
    )


def test_every_slice_holds_much_brain(north):
    assert ((north.images() > 0.1).mean(axis=(1, 2, 3)) > 0.2).all()


def test_what_the_extractor_learns_from_has_air_at_minus_one(monkeypatch):
    """As what it judges: slices are kept in [0, 1], and networks see [-1, 1]."""
    monkeypatch.setattr(brain, "SCANNERS", brain.SCANNERS[:1])
    images = brain.training_pictures(4)
    assert images.min() == -1
    assert 0.5 < images.max() <= 1
    assert 0.3 < (images < -0.9).mean() < 0.9


def test_some_slices_are_read_as_among_all_in_any_order(north):
    some = np.array([7, 0, 29, 7, 12])
    np.testing.assert_array_equal(north.take(some), north.images()[some])


def test_splits_share_no_participant(north, tiny_cohort, session_cache):
    test = load_slices(tiny_cohort / "north", "test", session_cache)
    assert not {*test.persons} & {*north.persons}


def test_bad_scans_are_left_out_and_all_bad_is_an_error(tiny_cohort, session_cache, tmp_path):
    site = tmp_path / "north"
    shutil.copytree(tiny_cohort / "north", site)
    index = read_site(site, "north")
    first, *others = [one for one in index.participants if one.split == "train"]
    first.scan.write_bytes(b"no scan")
    kept = load_slices(site, "train", session_cache)
    assert {*kept.persons} == {one.id for one in others}
    for one in others:
        one.scan.write_bytes(b"no scan")
    with pytest.raises(DataContractError, match="no image of brain-sex train can be used"):
        load_slices(site, "train", session_cache)


@pytest.mark.parametrize(
    "wrong", [{"size": 48}, {"heights_mm": (0.0, 104.0)}, {"heights_mm": (-101.5,)}]
)
def test_refuses_what_it_cannot_cut(wrong, tiny_cohort, session_cache):
    with pytest.raises(ConfigError, match="accepted"):
        load_stacks(tiny_cohort / "north", "train", session_cache, **wrong)


def test_stacks_of_other_heights_do_not_mix(tiny_cohort, session_cache):
    both = load_stacks(tiny_cohort / "north", "val", session_cache, heights_mm=(0.0, 9.0))
    one = load_stacks(tiny_cohort / "north", "val", session_cache, heights_mm=(9.0,))
    assert one.shape == (1, 1, 16, 16)
    np.testing.assert_array_equal(one.images()[:, :, 0], both.images()[:, :, 1])


def test_pool_keeps_every_slice_with_its_labels(north, tiny_cohort, session_cache):
    island = load_slices(tiny_cohort / "island", "train", session_cache)
    both = pool([north, island])
    assert len(both) == len(north) + len(island)
    assert [one["site"] for one in both.conditions].count("island") == len(island)
    np.testing.assert_array_equal(both.images()[-len(island) :], island.images())
    women = both.subset([one["sex"] == "female" for one in both.conditions])
    assert {one["sex"] for one in women.conditions} == {"female"}
    assert 0 < len(women) < len(both)
    with pytest.raises(ConfigError, match="shape"):
        pool([])


@pytest.mark.parametrize("none", [[], (), np.zeros(0, dtype=int)])
def test_no_index_gives_no_slice(none, north):
    empty = north.subset(none)
    assert len(empty) == 0
    assert empty.images().shape == (0, 1, 16, 16)
    assert empty.persons == empty.conditions == ()
    assert empty.labels.shape == (0,)
