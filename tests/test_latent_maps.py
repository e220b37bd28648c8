"""Maps of points, how mixed two kinds are, and who is near."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from common.errors import ConfigError
from common.evaluation.generation import nearest_points
from common.latent import maps
from common.latent.maps import map_points, require_method, separability

HAVE_UMAP = importlib.util.find_spec("umap") is not None
METHODS = [
    "pca",
    "tsne",
    pytest.param("umap", marks=pytest.mark.skipif(not HAVE_UMAP, reason="needs umap-learn")),
]


def clouds(count: int = 30, apart: float = 20.0, seed: int = 0) -> np.ndarray:
    """Two clouds of points in six dimensions."""
    draws = np.random.default_rng(seed).standard_normal((2 * count, 6))
    draws[count:, 0] += apart
    return draws


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_a_map(method: str) -> None:
    points = clouds()
    first, again = (map_points(points, method, seed=3) for _ in range(2))
    assert first.shape == (60, 2)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("method", METHODS)
def test_groups_that_are_far_apart_are_apart_on_a_map(method: str) -> None:
    places = map_points(clouds(), method)
    nearest, _ = nearest_points(places, places, 2)  # the first is the point itself
    assert all((nearest[:, 0] < 30) == (nearest[:, 1] < 30))


def test_nearest_points_come_nearest_first() -> None:
    points = np.array([[3.0, 4], [0, 1], [0, 0]])
    (index,), (distances,) = nearest_points(np.zeros((1, 2)), points, 2)
    assert index.tolist() == [2, 1]
    assert distances.tolist() == [0.0, 1.0]


def test_principal_components_keep_the_distances_of_a_plane() -> None:
    plane = np.random.default_rng(0).standard_normal((20, 2))
    turned = plane @ np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0][:2]
    places = map_points(turned, "pca")
    centred = plane - plane.mean(0)
    np.testing.assert_allclose(places @ places.T, centred @ centred.T, atol=1e-9)


def test_few_points_are_mapped_and_fewer_are_refused() -> None:
    assert map_points(clouds(3)[: maps.FEWEST], "tsne").shape == (maps.FEWEST, 2)
    with pytest.raises(ConfigError, match="5 or more"):
        map_points(clouds(3)[: maps.FEWEST - 1], "pca")


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"umap-learn.*pip install"):
        require_method("umap")
    with pytest.raises(ConfigError, match="accepted are pca, tsne, umap"):
        require_method("isomap")


def test_one_distribution_is_not_separable_and_two_are() -> None:
    same = separability(clouds(100, 0)[:100], clouds(100, 0)[100:])
    assert same.chance[0] <= same.accuracy <= same.chance[1]
    other = separability(clouds(100)[:100], clouds(100)[100:])
    assert other.accuracy == other.of_first == other.of_second == 1.0


def test_copies_are_nearer_to_the_other_kind() -> None:
    points = clouds(50, 0)[:50]
    assert separability(points, points + 1e-6).accuracy == 0.0


def test_the_larger_kind_gives_as_many_as_the_smaller_has() -> None:
    assert separability(clouds(40), clouds(10)[:10]).count == 10


def slices(people: int, each: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Images of one distribution of persons, those of a person much alike, and whose they are."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(people), each)
    images = rng.standard_normal((people, 4))[owner] + 0.01 * rng.standard_normal((len(owner), 4))
    return images, owner.tolist()


def test_images_of_one_person_are_no_neighbours_of_each_other() -> None:
    (first, mine), (second, others) = slices(8, 8, seed=0), slices(8, 8, seed=1)
    assert separability(first, second).accuracy == 1.0
    found = separability(first, second, persons=(mine, others))
    assert found.of_first < 0.8
    assert found.of_second < 0.8


@pytest.mark.parametrize("each", [8, 1])
def test_one_distribution_of_persons_is_seldom_separable(each: int) -> None:
    inside = []
    for seed in range(40):
        first, mine = slices(8, 8, seed=seed)
        second, others = slices(64 // each, each, seed=100 + seed)
        found = separability(first, second, persons=(mine, others), seed=seed)
        inside.append(found.chance[0] <= found.accuracy <= found.chance[1])
    # One in twenty by the level: 7 or more of 40 have a chance below 1 %.
    assert inside.count(False) < 7


def test_persons_who_differ_are_separable() -> None:
    (first, mine), (second, others) = slices(20, 4, seed=0), slices(20, 4, seed=1)
    found = separability(first, second + 5, persons=(mine, others))
    assert found.accuracy == 1.0 > found.chance[1]
