"""Distances between sets: closed forms, theorems, and what a result must carry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import FedscanError
from common.evaluation.generation import (
    MEASURES,
    Moments,
    density_coverage,
    frechet_distance,
    judge_features,
    kernel_distance,
    nearest_neighbours,
    perceptual_path_length,
    precision_recall,
    require_extractor,
)


def normal(n: int, dimension: int = 4, *, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dimension)) + mean


def rotation(dimension: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(normal(dimension, dimension, seed=seed))[0]


class TestMoments:
    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
    def test_merged_equal_pooled(self, sizes, seed):
        parts = [normal(n, 3, seed=seed + i, mean=100.0 * i) for i, n in enumerate(sizes)]
        merged = Moments.merged([Moments.of(part) for part in parts])
        pooled = Moments.of(np.concatenate(parts))
        assert merged.count == sum(sizes)
        np.testing.assert_allclose(merged.mean, pooled.mean, atol=1e-10)
        np.testing.assert_allclose(merged.covariance, pooled.covariance, atol=1e-10, rtol=1e-10)

    def test_agree_with_numpy(self):
        features = normal(50)
        np.testing.assert_allclose(Moments.of(features).covariance, np.cov(features.T), atol=1e-12)

    def test_one_image_has_no_spread(self):
        assert not Moments.of(normal(1)).covariance.any()


class TestFrechet:
    def test_commuting_gaussians_in_closed_form(self):
        turn = rotation(5)
        a, b = np.array([1.0, 4, 9, 0.25, 2]), np.array([2.0, 1, 4, 0.5, 2])
        shift = np.arange(5.0)
        first = Moments(10, np.zeros(5), turn @ np.diag(a) @ turn.T)
        second = Moments(10, shift, turn @ np.diag(b) @ turn.T)
        expected = (shift**2).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
        assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)

    def test_any_gaussians_as_by_the_matrix_root(self):
        from scipy.linalg import sqrtm

        a, b = Moments.of(normal(60)), Moments.of(normal(60, seed=1) @ rotation(4) * 3 + 1)
        root = sqrtm(a.covariance @ b.covariance).real
        expected = np.square(a.mean - b.mean).sum() + np.trace(
            a.covariance + b.covariance - 2 * root
        )
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)

    def test_covariances_that_lack_rank(self):
        one = np.zeros((3, 3))
        one[0, 0] = 4
        other = np.zeros((3, 3))
        other[1, 1] = 9
        zero = np.zeros(3)
        distance = frechet_distance(Moments(5, zero, one), Moments(5, zero, other))
        assert distance == pytest.approx(13)
        few = Moments.of(normal(5, 40))
        assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)

    def test_identical_sets_are_at_zero(self):
        moments = Moments.of(normal(100))
        assert 0 <= frechet_distance(moments, moments) < 1e-9


class TestKernel:
    def test_no_bias_for_one_distribution(self):
        values = [
            kernel_distance(normal(80, seed=2 * i), normal(80, seed=2 * i + 1), subsets=1)[0]
            for i in range(60)
        ]
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values)) < 3 * error
        assert min(values) < 0 < max(values)

    def test_of_two_points_by_hand(self):
        """Sets {0, 0} and {v, v} with |v|² = 2 in 2 dimensions: 1 + 8 − 2 · 1."""
        zeros, ones = np.zeros((2, 2)), np.ones((2, 2))
        mean, error = kernel_distance(zeros, ones, subsets=3)
        assert mean == pytest.approx(7)
        assert np.isnan(error)  # each subset is the whole set

    def test_an_error_needs_subsets_that_differ(self):
        few, many = normal(40), normal(300)
        assert judge_features(few + 1, few)["kernel_distance_se"] is None
        assert "standard error" in judge_features(few + 1, few)["reasons"]["kernel_distance_se"]
        for real, generated in ((few, normal(41)), (many, many + 1)):
            assert judge_features(generated, real)["kernel_distance_se"] > 0

    def test_grows_with_the_shift_and_repeats_itself(self):
        real = normal(200)
        near, far = (kernel_distance(real, normal(150, seed=1, mean=m)) for m in (0.5, 1))
        assert 0 < near[0] < far[0]
        assert near == kernel_distance(real, normal(150, seed=1, mean=0.5))
        assert near != kernel_distance(real, normal(150, seed=1, mean=0.5), seed=1, subset_size=99)


class TestManifolds:
    def test_identical_sets_are_all_in_one_another(self):
        real = normal(50)
        assert precision_recall(real, real) == (1, 1)
        assert density_coverage(real, real)[1] == 1

    def test_disjoint_sets_are_not_in_one_another(self):
        assert precision_recall(normal(50), normal(60, mean=50)) == (0, 0)
        assert density_coverage(normal(50), normal(60, mean=50)) == (0, 0)

    def test_on_a_line_by_hand(self):
        """Real at 0, 1, 2, 3 reach 1 to either side; generated at 0.5, 10, 20, 30 reach 10."""
        real = np.arange(4.0)[:, None]
        generated = np.array([0.5, 10, 20, 30])[:, None]
        assert precision_recall(real, generated, k=1) == (0.25, 1)
        density, coverage = density_coverage(real, generated, k=1)
        assert density == pytest.approx(2 / 4)  # 0.5 lies in the balls of 0 and 1
        assert coverage == pytest.approx(2 / 4)

    def test_a_lost_mode_costs_recall_and_a_false_one_precision(self):
        both = np.concatenate([normal(200), normal(200, seed=1, mean=20)])
        left = normal(200, seed=2)
        precision, recall = precision_recall(both, left)
        assert precision > 0.9
        assert 0.4 < recall <= 0.5
        precision, recall = precision_recall(left, both)
        assert 0.4 < precision <= 0.5
        assert recall > 0.9

    def test_density_of_one_distribution_is_about_one(self):
        density, coverage = density_coverage(normal(800), normal(800, seed=1))
        assert density == pytest.approx(1, abs=0.1)
        assert coverage > 0.9  # 1 - 2^-5 is expected

    def test_blocks_change_nothing(self, monkeypatch):
        real, generated = normal(40), normal(30, seed=1)
        whole = precision_recall(real, generated), density_coverage(real, generated)
        monkeypatch.setattr("common.evaluation.generation._BLOCK", 7)
        assert (precision_recall(real, generated), density_coverage(real, generated)) == whole


class TestNearestNeighbours:
    def test_by_hand(self):
        training = np.array([[0.0], [10.0]])
        distances, indices = nearest_neighbours(training, np.array([[1.0], [7.0], [10.0]]))
        assert distances.tolist() == [1, 3, 0]
        assert indices.tolist() == [0, 1, 1]


class TestPathLength:
    def test_of_a_linear_generator(self):
        """Steps of ε (w2 − w1) in 8 dimensions, variance 2 each, distance |Δ|²: 16."""

        def distance(a, b):
            return (a - b).square().flatten(1).sum(1)

        def sample(n, generator):
            return torch.randn(n, 8, generator=generator, dtype=torch.float64)

        def length(**options):
            return perceptual_path_length(
                lambda w: w.reshape(-1, 2, 2, 2), sample, distance, **options
            )

        assert length(count=4000, discard=0) == pytest.approx(16, rel=0.03)
        assert length(count=100) == length(count=100)
        assert length(count=100) != length(count=100, seed=1)

    def test_a_generator_that_ignores_w_has_none(self):
        length = perceptual_path_length(
            lambda w: torch.zeros(len(w), 1, 4, 4),
            lambda n, generator: torch.randn(n, 3, 8, generator=generator),
            lambda a, b: (a - b).square().mean((1, 2, 3)),
            count=10,
        )
        assert length == 0


class TestJudge:
    def test_enough_images_have_every_measure(self):
        result = judge_features(normal(60, 9), normal(50, 9, seed=1))
        assert (result["n_generated"], result["n_real"], result["n_features"]) == (60, 50, 9)
        assert result["reasons"] == {}
        assert all(isinstance(result[name], float) for name in MEASURES)

    def test_a_result_names_its_extractor(self):
        extractor = {"name": "pixels", "hash": "0" * 64}
        assert require_extractor({"extractor": extractor, "recall": 1.0}) == extractor

    def test_too_few_images_for_a_covariance(self):
        result = judge_features(normal(20, 30), normal(100, 30))
        assert result["frechet_distance"] is None
        assert "31" in result["reasons"]["frechet_distance"]
        assert result["kernel_distance"] is not None
        assert list(result["reasons"]) == ["frechet_distance"]

    def test_a_single_image_has_reasons_only(self):
        result = judge_features(normal(1), normal(100))
        assert all(result[name] is None for name in MEASURES)
        assert set(result["reasons"]) == set(MEASURES)

    @pytest.mark.parametrize(
        "result",
        [
            {"frechet_distance": 1.0},
            {"extractor": "inception"},
            {"extractor": {"name": "inception"}},
            {"extractor": {"name": "", "hash": "0" * 64}},
        ],
    )
    def test_a_result_without_extractor_is_refused(self, result):
        with pytest.raises(FedscanError, match="extractor's"):
            require_extractor(result)
