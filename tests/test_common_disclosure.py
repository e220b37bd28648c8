"""What a site tells of its people: nothing of few, and moments only where they identify nobody."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from common.disclosure import (
    EVERYTHING,
    MOST_POWER,
    Disclosure,
    people_for_moments,
    people_for_variances,
)
from common.evaluation.generation import Moments
from common.evaluation.of_site import Evaluation


def evaluation(people: int, features: int = 4) -> Evaluation:
    statistics = {
        "real.count": torch.tensor(5.0 * people),
        "real.mean": torch.zeros(features),
        "real.covariance": torch.eye(features),
    }
    return Evaluation(5 * people, {"loss": 0.5}, statistics, {"extractor": "x"}, people, people)


@given(people=st.integers(0, 40), least=st.integers(1, 40))
def test_numbers_leave_from_the_least_count_of_people_on(people, least):
    told = Disclosure(least).evaluation(evaluation(people))
    assert bool(told.metrics) == (told.count > 0) == (people >= least)
    if people < least:
        assert told.words == {"withheld": f"fewer than {least} participants"}
        assert not told.statistics


@pytest.mark.parametrize("features", [1, 4, 64])
def test_moments_leave_from_enough_people_for_their_dimensions_on(features):
    enough = people_for_moments(features)
    assert enough >= 100 * features
    assert Disclosure().evaluation(evaluation(enough, features)).statistics
    kept = Disclosure().evaluation(evaluation(enough - 1, features))
    assert not kept.statistics
    assert kept.metrics == {"loss": 0.5}


def test_where_one_owner_holds_all_everything_is_told():
    found = evaluation(1)
    assert EVERYTHING.evaluation(found) is found


def membership(people: int, features: int) -> dict[str, float]:
    """AUC of four tests of who is among the people whose moments are told (one image each)."""
    rng = np.random.default_rng(people)
    members, others = rng.normal(size=(2, people, features))
    told = Moments.of(members)
    inverse = np.linalg.pinv(told.covariance, hermitian=True)
    values, vectors = np.linalg.eigh(told.covariance)
    outside = vectors[:, values < 1e-9 * values.max()]
    tests = {
        "outside": lambda x: np.linalg.norm((x - told.mean) @ outside, axis=1),
        "Mahalanobis": lambda x: np.einsum("ij,jk,ik->i", x - told.mean, inverse, x - told.mean),
        "mean": lambda x: -x @ told.mean,
    }
    # Of a population of mean 0 and covariance 1, which the attacker knows.
    tests["likelihood ratio"] = lambda x: tests["Mahalanobis"](x) - np.einsum("ij,ij->i", x, x)
    truth = np.repeat([1, 0], people)
    found = {name: np.r_[test(members), test(others)] for name, test in tests.items()}
    return {name: float(roc_auc_score(truth, -score)) for name, score in found.items()}


def test_moments_of_fewer_people_than_features_tell_exactly_who_is_among_them():
    assert membership(20, 64)["outside"] == 1.0


@pytest.mark.parametrize("features", [2, 8])
def test_moments_that_leave_hardly_tell_who_is_among_the_people(features):
    people = people_for_moments(features)
    most = norm.cdf(MOST_POWER / math.sqrt(2))
    error = math.sqrt((2 * people + 1) / (12 * people**2))  # of an AUC of 0.5
    assert all(auc < most + 3 * error for auc in membership(people, features).values())


@pytest.mark.parametrize("people", [10, people_for_variances(6) - 1])
def test_variances_of_few_people_are_told_as_one_number(people):
    own = torch.tensor([0.1, 2.0, 3.0, 1.0, 0.5, 4.0]).log()
    told = Disclosure().log_variance(own, torch.zeros(6), people)
    assert torch.allclose(told, own.exp().mean().log().expand(6))


def test_variances_leave_over_enough_people_and_not_at_all_over_very_few():
    own, received = torch.arange(6.0), torch.full((6,), 7.0)
    assert torch.equal(Disclosure().log_variance(own, received, people_for_variances(6)), own)
    assert torch.equal(Disclosure().log_variance(own, received, 9), received)
    assert torch.equal(EVERYTHING.log_variance(own, received, 1), own)


@given(men=st.integers(0, 30))
def test_measures_of_a_class_leave_only_if_each_class_has_enough_people(men):
    metrics = {"loss": 0.5, "calibration_error": 0.1, "auroc": 0.7, "balanced_accuracy": 0.6}
    found = Evaluation(30, metrics, people=30, fewest=min(men, 30 - men))
    told = Disclosure(10).evaluation(found).metrics
    assert told.keys() == (metrics.keys() if 10 <= men <= 20 else {"loss", "calibration_error"})


def test_what_training_measures_on_one_batch_is_not_told():
    metrics = {"loss": 0.7, "r1-penalty": 0.1, "path-length": 2.0}
    assert Disclosure().training(metrics, 100) == {"loss": 0.7}
    assert EVERYTHING.training(metrics, 1) == metrics


def test_losses_of_training_on_few_people_are_not_told():
    metrics = {"loss": 0.7, "p": 0.1, "images-seen": 640.0}
    assert Disclosure().training(metrics, 9) == {"images-seen": 640.0}
    assert Disclosure().training(metrics, 10) == metrics
