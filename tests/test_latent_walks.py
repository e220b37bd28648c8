"""Pictures along ways through W, of a tiny generator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gan import start

from common.latent.artefacts import measure
from common.latent.directions import find_direction
from common.latent.walks import (
    COARSE,
    STEPS,
    interpolate,
    latents_of,
    mix_styles,
    response,
    synthesize,
    truncate,
    walk,
)
from common.models.stylegan2 import Generator
from common.training.gan_sampling import combinations, sample_rows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    """A generator of sexes and sites; untrained, but that its mean of w is not the origin."""
    made = start(label_kinds=("sex", "site")).ema.eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made.mapping.w_average.normal_()
    yield made


@pytest.fixture(scope="module")
def ws(generator: Generator) -> np.ndarray:
    rows = (combinations(generator.architecture) * 5)[:19]  # no whole number of batches
    return latents_of(generator, rows, range(19), seed=4)


def test_latents_give_the_pictures_that_are_drawn(generator: Generator, ws: np.ndarray) -> None:
    rows = (combinations(generator.architecture) * 5)[:19]
    drawn = sample_rows(generator, rows, range(19), seed=4)
    np.testing.assert_array_equal(synthesize(generator, ws), drawn)


def test_no_step_is_the_picture_itself(generator: Generator, ws: np.ndarray) -> None:
    strip = synthesize(generator, walk(ws[3], ws[5] - ws[4], STEPS))
    itself = synthesize(generator, ws[3:4])[0]
    np.testing.assert_array_equal(strip[STEPS.index(0)], itself)
    assert np.abs(strip[0] - itself).max() > 1e-3


def test_an_interpolation_ends_at_the_two_pictures(generator: Generator, ws: np.ndarray) -> None:
    strip = synthesize(generator, interpolate(ws[0], ws[1], 5))
    np.testing.assert_array_equal(strip[[0, -1]], synthesize(generator, ws[:2]))
    middle = synthesize(generator, (ws[:1].astype(float) + ws[1:2]) / 2)
    np.testing.assert_allclose(strip[2], middle[0], atol=1e-6)


def test_truncation_goes_from_the_mean_picture_to_the_picture(
    generator: Generator, ws: np.ndarray
) -> None:
    mean = generator.mapping.w_average.numpy()
    sweep = synthesize(generator, truncate(ws[2], mean))
    np.testing.assert_array_equal(sweep[0], synthesize(generator, mean[None])[0])
    np.testing.assert_allclose(sweep[-1], synthesize(generator, ws[2:3])[0], atol=1e-5)


def test_truncation_is_the_generators_own(generator: Generator) -> None:
    rows, mean = combinations(generator.architecture)[:1], generator.mapping.w_average.numpy()
    w = latents_of(generator, rows, [0], seed=1)[0]
    drawn = sample_rows(generator, rows, [0], truncation=0.5, seed=1)
    np.testing.assert_allclose(synthesize(generator, truncate(w, mean, [0.5])), drawn, atol=1e-5)


def test_the_diagonal_of_mixed_styles_is_the_sources(generator: Generator, ws: np.ndarray) -> None:
    number = generator.architecture.num_ws
    mixed = mix_styles(ws[:3], ws[:3], number)
    for k in range(3):
        picture = synthesize(generator, mixed[k, k][None])
        np.testing.assert_array_equal(picture, synthesize(generator, ws[k : k + 1]))


@given(cutoff=st.integers(0, 8))
def test_rows_give_the_coarse_styles_and_columns_the_fine_ones(cutoff: int) -> None:
    coarse, fine = np.full((2, 3), 1.0), np.full((4, 3), 2.0)
    mixed = mix_styles(coarse, fine, 8, cutoff)
    assert mixed.shape == (2, 4, 8, 3)
    assert (mixed[:, :, :cutoff] == 1).all()
    assert (mixed[:, :, cutoff:] == 2).all()


def test_coarse_styles_are_those_up_to_8_pixels(generator: Generator) -> None:
    layers = [len(block.convolutions) for block in generator.synthesis.blocks[:2]]
    assert sum(layers) == COARSE - 1  # and the picture layer of 8 pixels, the next block's first


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=4))
def test_a_walk_is_linear(steps: list[float]) -> None:
    w, step = np.array([1.0, -2.0]), np.array([0.5, 3.0])
    np.testing.assert_allclose(walk(w, step, steps) - w, np.outer(steps, step), atol=1e-12)


def drawn_lesions(ws: np.ndarray) -> np.ndarray:
    """A stand-in for a synthesis: w's first number draws hairs, its second colours the lesion."""
    size = 64
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    images = np.empty((len(ws), 3, size, size))
    for image, w in zip(images, ws, strict=True):
        image[:] = 0.5
        image[0] -= (0.5 + 0.1 * w[1]) * np.exp(-8 * (x**2 + y**2))
        darkness = 1 / (1 + np.exp(-w[0]))
        for at in (-0.5, -0.1, 0.45):
            hair = np.abs(y - 0.3 * x - at) < 0.02
            image[:, hair] -= darkness * (image[:, hair] + 1)
    return images


def redness(images: np.ndarray) -> np.ndarray:
    """What the class of a lesion is told by: the red of its middle."""
    return images[:, 0, 30:34, 27:30].mean(axis=(1, 2))


def test_a_direction_of_hair_changes_hair_and_not_the_class() -> None:
    ws = np.random.default_rng(0).standard_normal((200, 8))
    hair = measure(drawn_lesions(ws))[:, 0]
    found = find_direction("hair", ws, hair > np.median(hair))
    assert found.low > 0.8
    means = response(drawn_lesions, ws[:6], found.step, lambda x: measure(x)[:, 0])
    assert (np.diff(means) > 0).all()
    reds = response(drawn_lesions, ws[:6], found.step, redness)
    along = find_direction("red", ws, ws[:, 1] < 0)
    changed = response(drawn_lesions, ws[:6], along.step, redness)
    assert np.ptp(reds) < 0.2 * np.ptp(changed)
