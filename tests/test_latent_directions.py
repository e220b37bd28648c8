"""Directions of labels in W."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import ConfigError
from common.latent.directions import LEAST, Direction, find_direction, orthogonalized


def positions(found: Direction, ws: np.ndarray) -> np.ndarray:
    """How far latents lie along a direction, in its steps."""
    return ws @ found.step / (found.step @ found.step)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.fixture(scope="module")
def ws() -> np.ndarray:
    """Latents whose dimensions vary by unlike amounts."""
    return np.random.default_rng(0).standard_normal((400, 16)) * np.linspace(0.2, 2, 16)


@pytest.fixture(scope="module")
def planted() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(16)


def test_a_planted_direction_is_found(ws: np.ndarray, planted: np.ndarray) -> None:
    found = find_direction("hair", ws, ws @ planted > 0)
    assert cosine(found.step, planted) > 0.9
    assert found.low <= found.accuracy <= found.high
    assert found.low > 0.85
    assert (found.count, found.positive) == (400, int((ws @ planted > 0).sum()))


def test_a_step_is_one_sd_of_the_latents_along_it(ws: np.ndarray, planted: np.ndarray) -> None:
    found = find_direction("hair", ws, ws @ planted > 0)
    assert np.linalg.norm(found.step) == pytest.approx(
        np.std(ws @ found.step) / np.linalg.norm(found.step)
    )
    assert np.std(positions(found, ws)) == pytest.approx(1)
    np.testing.assert_allclose(positions(found, ws + found.step), positions(found, ws) + 1)


def test_labels_that_latents_do_not_know_are_told_by_chance(ws: np.ndarray) -> None:
    shuffled = [np.random.default_rng([7, seed]).permutation(400) < 200 for seed in range(20)]
    found = [find_direction("nothing", ws, labels) for labels in shuffled]
    assert np.mean([one.accuracy for one in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([one.low < 0.5 < one.high for one in found]) >= 0.9


def test_persons_are_not_parted_between_folds() -> None:
    # Each person has its own latent and a label that nobody else's tells.
    rng = np.random.default_rng(0)
    persons = np.repeat(np.arange(60), 6)
    ws = rng.standard_normal((60, 64))[persons] + 0.01 * rng.standard_normal((360, 64))
    labels = (rng.permutation(60) < 30)[persons]
    assert find_direction("site", ws, labels).accuracy > 0.9
    grouped = find_direction("site", ws, labels, groups=persons)
    assert grouped.low < 0.5 < grouped.high


def test_too_few_with_a_label_are_refused(ws: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=f"{LEAST - 1} with and"):
        find_direction("rare", ws, np.arange(400) < LEAST - 1)
    with pytest.raises(ConfigError, match="1 with and"):
        find_direction("one person", ws, np.arange(400) < 30, groups=np.arange(400) // 30)


def test_an_orthogonalized_direction_leaves_the_others_alone(ws: np.ndarray) -> None:
    axes = np.eye(16)
    hair, frame, site = (
        find_direction(name, ws, ws @ axis > 0)
        for name, axis in zip("hfs", (axes[0] + axes[1], axes[1], axes[2]), strict=True)
    )
    free = orthogonalized(hair, [frame, site], ws)
    assert abs(cosine(free.step, frame.step)) < 1e-9
    assert abs(cosine(free.step, site.step)) < 1e-9
    assert np.std(positions(free, ws)) == pytest.approx(1)
    assert orthogonalized(hair, [], ws) is hair
    with pytest.raises(ConfigError, match="nothing is left"):
        orthogonalized(hair, [hair, frame], ws)
