"""Copies of training scans are found, and pictures that only lie near to many scans are not."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import dataset
from tiny_gan import TINY

from common.evaluation.memorization import (
    FALSE_ALARMS,
    authenticity,
    copying,
    judge_copying,
    strongest,
    write_look_alikes,
)
from common.training.gan import GanTraining, fit
from common.training.gan_sampling import sample_rows

SIZES = [(20, 20), (100, 40), (800, 200)]  # of training and held-out images
DIMENSIONS = 12  # of phantom slices, as fedscan-brain sees them


def normal(n: int, *, seed: int = 0, mean: float = 0.0, dimension: int = DIMENSIONS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dimension)) + mean


def near(images: np.ndarray, size: float, seed: int = 9) -> np.ndarray:
    """Images with noise, ``size`` times as large as they are themselves."""
    return images + size * normal(len(images), seed=seed, dimension=images.shape[1])


def averages(images: np.ndarray, of: int, count: int = 100) -> np.ndarray:
    draws = np.random.default_rng(3)
    return np.stack([images[draws.choice(len(images), of, False)].mean(0) for _ in range(count)])


class TestAuthenticity:
    def test_by_hand(self):
        training = np.array([[0.0], [10.0], [14.0]])  # to their nearest other: 10, 4, 4
        generated = np.array([[3.0], [-11.0], [15.0], [19.0]])  # from 0, 0, 14, 14: 3, 11, 1, 5
        assert authenticity(training, generated) == 0.5

    def test_copies_are_not_authentic_and_far_images_are(self):
        training = normal(50)
        assert authenticity(training, training) == 0
        assert authenticity(training, normal(20, mean=30)) == 1


class TestCopying:
    def test_fresh_draws_do_not_copy_and_copies_do(self):
        training, held_out = normal(300, dimension=4), normal(300, seed=1, dimension=4)
        fresh = normal(300, seed=2, dimension=4)
        assert copying(training, fresh, held_out)["share_nearer"] == pytest.approx(0.5, abs=0.07)
        assert copying(training, training[:100] + 1e-3, held_out)["share_nearer"] > 0.98
        far = normal(50, mean=30, dimension=4)
        assert copying(training, far, held_out)["share_nearer"] == 0


class TestJudgement:
    @pytest.mark.parametrize(("n_training", "n_held_out"), SIZES)
    def test_other_real_images_are_seldom_flagged(self, n_training, n_held_out):
        flagged = [
            judge_copying(
                normal(n_training, seed=3 * k),
                normal(n_training, seed=3 * k + 1),
                normal(n_held_out, seed=3 * k + 2),
            ).flagged
            for k in range(40)
        ]
        assert sum(flagged) <= 2  # by FALSE_ALARMS, 0.4 are expected
        assert FALSE_ALARMS == 0.01

    @pytest.mark.parametrize(("n_training", "n_held_out"), SIZES)
    @pytest.mark.parametrize("size", [0.0, 0.1])
    @pytest.mark.parametrize("share", [0.25, 1.0])
    def test_copies_are_flagged(self, n_training, n_held_out, size, share):
        training, held_out = normal(n_training), normal(n_held_out, seed=1)
        generated = normal(n_training, seed=2)
        copies = int(share * n_training)
        generated[:copies] = near(training[:copies], size)
        found = judge_copying(training, generated, held_out)
        assert found.flagged
        assert found.look_alikes == pytest.approx(share, rel=0.2)
        assert f"of {n_training} pictures" in found.reason

    @pytest.mark.parametrize(("n_training", "n_held_out"), SIZES)
    def test_one_exact_copy_is_enough(self, n_training, n_held_out):
        generated = normal(n_training, seed=2)
        generated[7] = normal(n_training)[3]
        found = judge_copying(normal(n_training), generated, normal(n_held_out, seed=1))
        assert found.flagged and found.look_alikes == 1 / n_training

    @pytest.mark.parametrize("of", [3, 20, 100])
    def test_averages_lie_nearer_and_are_not_flagged(self, of):
        training = normal(400)
        found = judge_copying(training, averages(training, of), normal(200, seed=1))
        assert found.share_nearer > 0.8
        assert found.authenticity < found.authenticity_held_out
        assert not found.flagged and found.look_alikes == 0

    def test_copies_of_what_the_training_set_holds_twice_are_flagged(self):
        training = np.repeat(normal(50), 2, axis=0)
        generated = normal(40, seed=2)
        generated[:10] = near(training[:10], 0.05)
        found = judge_copying(training, generated, normal(100, seed=1))
        assert found.flagged and found.look_alikes == 0.25

    def test_a_mirror_image_is_found_if_training_images_are_given_mirrored(self):
        """A change of sign stands for the mirror: what is left is nowhere near what is right."""
        training, held_out = normal(100), normal(100, seed=1)
        assert not judge_copying(training, -training, held_out).flagged
        both = np.concatenate([training, -training])
        assert judge_copying(both, -training, held_out).look_alikes == 1

    def test_units_of_the_features_do_not_matter(self):
        training, generated = normal(60), near(normal(60), 0.3)
        one = judge_copying(training, generated, normal(60, seed=1))
        other = judge_copying(1e3 * training, 1e3 * generated, 1e3 * normal(60, seed=1))
        assert one.look_alikes == other.look_alikes
        assert one.authenticity == other.authenticity

    @pytest.mark.parametrize("counts", [(1, 5, 5), (0, 5, 5), (5, 0, 5), (5, 5, 1), (5, 5, 0)])
    def test_too_few_images_are_not_judged(self, counts):
        found = judge_copying(*(normal(n, seed=k) for k, n in enumerate(counts)))
        assert "needs at least" in found.reason and not found.flagged
        values = dataclasses.asdict(found)
        assert {value for name, value in values.items() if name != "reason"} == {None}

    def test_the_fewest_images_are_judged(self):
        found = judge_copying(normal(2), normal(1, seed=1), normal(2, seed=2))
        assert found.flagged is False

    @pytest.mark.parametrize("generated", [normal(5), np.zeros((5, DIMENSIONS))])
    def test_images_all_alike_give_no_nan(self, generated):
        same = np.zeros((6, DIMENSIONS))
        with np.errstate(all="raise"):
            found = judge_copying(same, generated, same)
        values = [value for value in dataclasses.astuple(found) if isinstance(value, float)]
        assert np.isfinite(values).all()

    def test_memory_grows_with_the_images_and_not_with_their_square(self):
        n = 3000
        training, held_out = normal(n), normal(100, seed=1)
        judge_copying(held_out, held_out, held_out)  # imports what it needs
        tracemalloc.start()
        judge_copying(training, normal(n, seed=2), held_out)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < n**2 * 8 / 2  # bytes of half a matrix of distances


class TestStrongest:
    def test_copies_come_first_once_each(self):
        training, generated = normal(50), normal(30, seed=2)
        generated[[4, 11]] = training[8], training[8] + 0.01
        ours, theirs, distances = strongest(training, generated, 5)
        assert ours[:2].tolist() == [4, 11] and theirs[:2].tolist() == [8, 8]
        assert len(set(ours)) == 5
        np.testing.assert_allclose(
            distances, np.linalg.norm(generated[ours] - training[theirs], axis=1)
        )

    def test_there_are_no_more_than_images(self):
        assert [len(part) for part in strongest(normal(9), normal(3, seed=1), 8)] == [3, 3, 3]

    def test_near_copies_of_what_is_held_twice_come_first_beside_held_out_images(self):
        training, generated = np.repeat(normal(50), 2, axis=0), normal(30, seed=2)
        generated[4] = near(training[:1], 0.05)[0]
        ours, _, _ = strongest(training, generated, 1, held_out=normal(50, seed=1))
        assert ours.tolist() == [4]

    def test_the_figure_stays_with_its_owner(self, tmp_path: Path):
        images = np.linspace(-1, 1, 4, dtype=np.float32)[:, None, None, None] * np.ones((1, 16, 16))
        path = tmp_path / "look-alikes.png"
        write_look_alikes(path, -images, images, [3, 0], [1, 2], [0.25, 1 / 3])
        assert path.stat().st_mode & 0o777 == 0o600
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        tile = 96
        corner = [pixels.shape[0] - 2 * (tile + 4), pixels.shape[1] - 2 * (tile + 4)]
        centres = pixels[corner[0] + tile // 2 :: tile + 4, corner[1] + tile // 2 :: tile + 4]
        assert centres.tolist() == [[0, 255], [85, 170]]


def patterns(count: int, seed: int) -> np.ndarray:
    """Pictures (count, 1, 16, 16) that differ more than heads do: a minute's training copies them.

    Sixteen random levels each, between them a bilinear transition.
    """
    from scipy.ndimage import zoom

    levels = np.random.default_rng(seed).normal(0, 1, (count, 4, 4))
    smooth = np.stack([zoom(one, 4, order=1) for one in levels])
    return np.tanh(1.5 * smooth).astype(np.float32)[:, None]


def pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)


@pytest.fixture(scope="module")
def overtrained() -> tuple[np.ndarray, np.ndarray]:
    """Four pictures and 48 of a generator that saw nothing else, each under a label of its own."""
    few = patterns(4, seed=0)
    labels = tuple({"site": name} for name in "abcd")
    data = dataset((few + 1) / 2, conditions=labels)
    config = TINY.with_changes(
        {
            **{"label-kinds": "site", "mirror": False, "augment": "off", "r1-gamma": 0.01},
            **{"path-weight": 0.0, "style-mixing": 0.0, "ema-kimg": 0.5, "batch-size": 8},
            **{"generator-learning-rate": 0.01, "discriminator-learning-rate": 0.01},
            **{"channel-base": 256, "log-every": 1000},
        }
    )
    architecture = config.architecture({"site": "abcd"})
    training = GanTraining.start(config, architecture, seed=0, device="cpu")
    fit(training, data, steps=600, seed=1)
    return few, sample_rows(training.ema, labels * 12, range(48), seed=3)


class TestOvertrainedGenerator:
    def test_it_is_caught_and_other_pictures_are_not(self, overtrained):
        few, made = overtrained
        training, held_out = pixels(few), pixels(patterns(40, seed=1))
        found = judge_copying(training, pixels(made), held_out)
        assert found.flagged and found.look_alikes > 0.5
        assert found.authenticity == 0 < found.authenticity_held_out
        assert found.generated_median < found.held_out_median / 2
        assert not judge_copying(training, pixels(patterns(48, seed=2)), held_out).flagged

    def test_look_alikes_show_the_scan_that_was_copied(self, overtrained):
        few, made = overtrained
        ours, theirs, _ = strongest(pixels(few), pixels(made), 8)
        assert (ours % 4 == theirs).all()  # the label's own picture
