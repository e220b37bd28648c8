"""What a scan shows is measured: what is no head is refused, what is no adult's whole one named."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import DataContractError
from common.imaging.head import measure_head, oddities, require_head
from common.imaging.prepare import FIELD_OF_VIEW_MM, prepare_volume

SHAPE, ZOOM = (44, 52, 60), 5.0
SIZE = 32
RADII_MM = np.array([70.0, 88.0, 75.0])
AFFINE = np.diag([ZOOM, ZOOM, ZOOM, 1.0])


def head(*, neck: float = 0.0, shape=SHAPE, zoom: float = ZOOM) -> np.ndarray:
    """An ellipsoid with a bright core, its crown 20 mm below the top, and so many mm of neck."""
    x, y, z = (index * zoom for index in np.indices(shape))
    top = (shape[2] - 1) * zoom - 20
    x, y = x - x.mean(), y - y.mean()
    z = z - (top - RADII_MM[2])
    distance = (x / RADII_MM[0]) ** 2 + (y / RADII_MM[1]) ** 2 + (z / RADII_MM[2]) ** 2
    volume = np.where(distance < 1, 500.0, 0) + np.where(distance < 0.4, 300.0, 0)
    tube = (x**2 + y**2 < 60**2) & (z < -RADII_MM[2] + 15) & (z > -RADII_MM[2] - neck)
    volume = np.where(tube & (volume == 0) & (neck > 0), 500.0, volume)
    noise = np.random.default_rng(0).rayleigh(12, shape)
    return (volume + noise).astype(np.float32)


def odd(volume: np.ndarray, affine: np.ndarray = AFFINE) -> list[str]:
    cube = prepare_volume(volume, affine, image_size=SIZE)
    return oddities(measure_head(volume, affine), cube)


def middle_mm(volume: np.ndarray, affine: np.ndarray = AFFINE) -> np.ndarray:
    """Where the bright core lies in the cube, from its middle, in mm."""
    cube = prepare_volume(volume, affine, image_size=SIZE)
    core = np.argwhere(cube > 0.8)
    return (core.mean(0) - (SIZE - 1) / 2) * FIELD_OF_VIEW_MM / SIZE


def test_a_whole_head_is_measured_in_mm_and_not_odd():
    found = measure_head(head(), AFFINE)
    require_head(found, site="north", where="scan")
    np.testing.assert_allclose(found.extent_mm, 2 * RADII_MM, atol=3 * ZOOM)
    expected = 4 / 3 * np.pi * np.prod(RADII_MM) / 1000
    assert found.volume_cm3 == pytest.approx(expected, rel=0.1)
    assert not any(found.faces)
    assert odd(head()) == []


@pytest.mark.parametrize("turn", [np.eye(4), np.diag([1.0, 1, -1, 1]), np.eye(4)[[2, 0, 1, 3]]])
@pytest.mark.parametrize("neck", [20, 60, 120])
def test_the_head_s_place_does_not_depend_on_how_much_neck_was_scanned(neck, turn):
    """Whatever way the volume lies: the affine turned back takes it where it was."""
    volume = head(neck=neck)
    indices = np.argmax(np.abs(turn[:3, :3]), axis=0)
    stored = volume.transpose(indices)
    affine = AFFINE.copy()
    if turn[2, 2] < 0:
        stored = stored[:, :, ::-1]
        affine = affine @ np.array(
            [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, SHAPE[2] - 1], [0, 0, 0, 1]]
        )
    else:
        affine = affine[:, [*indices, 3]]
    assert np.abs(middle_mm(stored, affine) - middle_mm(head())).max() < 15


def test_a_neck_is_not_odd_but_cut_off_at_the_bottom_only():
    assert odd(head(neck=80)) == []


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (np.s_[22:], "mm wide"),
        (np.s_[:22], "mm wide"),
        (np.s_[:, 26:], "mm long"),
        (np.s_[:, :26], "mm long"),
        (np.s_[:, :, 42:], "mm high"),
        (np.s_[:, :, :42], "mm high"),
    ],
    ids=["right", "left", "front", "back", "top", "bottom"],
)
def test_half_a_head_is_odd(part, words):
    assert any(words in line for line in odd(head()[part]))


@pytest.mark.parametrize(
    ("part", "place"),
    [
        (np.s_[14:], "left"),
        (np.s_[:30], "right"),
        (np.s_[:, :36], "front"),
        (np.s_[:, :, :51], "top"),
    ],
)
def test_the_face_at_which_a_head_is_cut_off_is_named(part, place):
    assert f"the scan ends within the head at the {place}" in odd(head()[part])


def noise(rng):
    return rng.rayleigh(30, SHAPE)


def noisy_air(rng):
    return np.where(head() > 100, head() * 3 + 600, rng.uniform(0, 4095, SHAPE))


def bright_slices(rng):
    volume = head()
    volume[:, :, :3] = 5 * volume.max()
    return volume


def blobs(rng):
    volume = np.zeros(SHAPE)
    for x, y, z in rng.integers(5, 35, (6, 3)):
        volume[x : x + 3, y : y + 3, z : z + 3] = rng.uniform(3, 8)
    return volume


@pytest.mark.parametrize("make", [noise, noisy_air, bright_slices, blobs])
def test_what_shows_no_head_is_refused(make):
    volume = make(np.random.default_rng(1)).astype(np.float32)
    with pytest.raises(DataContractError, match="shows no head"):
        require_head(measure_head(volume, AFFINE), site="north", where="scan")


def test_any_size_of_volume_is_measured():
    tiny = np.ones((2, 2, 2), np.float32)
    tiny[0] = 5
    with pytest.raises(DataContractError, match="shows no head"):
        require_head(measure_head(tiny, np.diag([1.0, 1, 1, 1])), site="north", where="scan")
