"""A generator that memorizes is told from an honest one by the distances of its projections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.evaluation.authenticity import (
    GENERATED,
    HELD_OUT,
    MEMORIZES,
    NOT_JUDGED,
    NOT_SEPARATED,
    TRAINING,
    choose_matched,
    judge,
    weighted_median,
)
from common.models.architecture import Architecture
from common.models.stylegan2 import Generator, build
from common.training.projector import project_many

SIDE = 16


def judged(near, far, persons=None):
    return judge({TRAINING: near, HELD_OUT: far}, persons or {})


class TestJudgement:
    def test_nearer_training_images_are_memorized(self):
        draws = np.random.default_rng(0)
        found = judged(draws.uniform(0, 1, 30), draws.uniform(0.8, 2, 30))
        assert found["verdict"] == MEMORIZES
        assert found["auroc"]["low"] > 0.5
        assert found["gap"] > 0
        assert found["ks"]["p"] < 0.001

    def test_groups_of_one_distribution_are_seldom_separated(self):
        verdicts = []
        for seed in range(40):
            near, far = np.random.default_rng(seed).lognormal(size=(2, 25))
            verdicts.append(judged(near, far)["verdict"])
        # One in forty by the interval's level: more than 4 of 40 has a chance of 0.3 %.
        assert verdicts.count(MEMORIZES) <= 4

    def test_auroc_is_the_share_of_pairs_in_order_ties_by_half(self):
        found = judged([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 6.0, 7.0, 8.0, 9.0])
        wrong, ties = 3, 1  # 3, 4 and 5 lie beyond 2
        assert found["auroc"]["mean"] == pytest.approx((25 - wrong - ties / 2) / 25)

    def test_of_several_seeds_the_closest_counts(self):
        near, far = np.arange(5.0), np.arange(5.0) + 10
        noisy = np.stack([near, near + 100], axis=1), np.stack([far + 7, far], axis=1)
        assert judged(*noisy) == judged(near, far)

    def test_the_gap_is_that_of_the_medians_by_the_held_out_one(self):
        assert judged([1.0] * 5, [4.0] * 5)["gap"] == pytest.approx(0.75)

    def test_copies_of_a_persons_image_do_not_narrow_the_interval(self):
        draws = np.random.default_rng(1)
        near, far = draws.normal(0, 1, 10), draws.normal(0.3, 1, 10)
        people = np.repeat(range(10), 6).tolist()
        repeated = judged(
            np.repeat(near, 6), np.repeat(far, 6), {TRAINING: people, HELD_OUT: people}
        )
        assert repeated["auroc"] == pytest.approx(judged(near, far)["auroc"])

    def test_too_few_people_are_not_judged(self):
        people = {TRAINING: [0, 0, 0, 0, 1], HELD_OUT: range(5)}
        found = judged(range(5), range(10, 15), people)
        assert found["verdict"] == NOT_JUDGED
        assert found["auroc"] is found["gap"] is found["ks"] is None
        assert TRAINING in found["reason"] and HELD_OUT not in found["reason"]

    def test_the_distance_of_few_people_is_told_by_no_median(self):
        people = {TRAINING: [0, 0, 0, 0, 1], HELD_OUT: range(5)}
        groups = judged(range(5), range(10, 15), people)["groups"]
        assert set(groups[TRAINING]["median"].values()) == {None}
        assert groups[HELD_OUT]["median"]["mean"] == 12

    def test_generated_images_are_told_but_do_not_decide(self):
        near, far = np.arange(6.0), np.arange(6.0)
        with_them = judge({TRAINING: near, HELD_OUT: far, GENERATED: near / 100}, {})
        assert with_them["verdict"] == judged(near, far)["verdict"] == NOT_SEPARATED
        assert with_them["groups"][GENERATED]["median"]["mean"] == np.median(near / 100)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8).filter(any), st.randoms())
def test_a_weighted_median_is_the_median_of_repeated_values(counts, random):
    values = np.array([random.random() for _ in counts])
    expected = np.median(np.repeat(values, counts))
    assert weighted_median(values, np.array([counts]))[0] == pytest.approx(expected)


IMAGES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=20)


def group(images):
    return {"stratum": [s for s, _ in images], "person": [p for _, p in images]}


@given(IMAGES, IMAGES, st.integers(1, 15))
def test_matched_groups_have_as_many_of_each_stratum(training, held_out, count):
    first, second = choose_matched(group(training), group(held_out), count, seed=0)
    strata = [
        [images[k][0] for k in chosen] for images, chosen in ((training, first), (held_out, second))
    ]
    assert strata[0] == strata[1]
    assert len(set(first)) == len(first) and len(set(second)) == len(second)
    possible = sum(
        min(sum(s == one for s, _ in images) for images in (training, held_out)) for one in "abc"
    )
    assert len(first) == min(count, possible)


def test_matched_groups_have_many_people_and_strata_by_their_share():
    images = [("a", k // 4) for k in range(40)] + [("b", 100 + k) for k in range(20)]
    first, _ = choose_matched(group(images), group(images), 12, seed=0)
    chosen = [images[k] for k in first]
    assert sum(stratum == "a" for stratum, _ in chosen) == 8
    assert len({person for _, person in chosen}) == 12


# Generators that remember, and such that do not.


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean((1, 2, 3))


def blobs(count: int, seed: int) -> Tensor:
    """Smooth random pictures (count, 1, 16, 16) of one distribution in [-1, 1]."""
    coarse = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    size = (SIDE, SIDE)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").tanh()


def fitted(images: Tensor, steps: int) -> Generator:
    """Fit a generator whose k-th latent gives the k-th image, by regression.

    Few images are learnt by heart (Bojanowski et al. 2018, arXiv 1707.05776, of fixed latents).
    """
    architecture = Architecture(SIDE, channel_base=512, channel_max=16, z_dim=16, w_dim=16)
    generator = build(architecture, seed=1)[0]
    draws = torch.Generator().manual_seed(2)
    z, none = torch.randn(len(images), 16, generator=draws), torch.zeros(len(images), 0)
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.01)
    for _ in range(steps):
        chosen = torch.randperm(len(images), generator=draws)[:16]
        loss = squared(generator(z[chosen], none[chosen]), images[chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return generator.eval()


def verdict_on(generator: Generator, training: Tensor, held_out: Tensor) -> dict:
    both = torch.cat([training, held_out])
    found = [one.distance for one in project_many(generator, both, squared, steps=60, waypoints=2)]
    return judged(found[: len(training)], found[len(training) :])


@pytest.mark.usefixtures("one_thread")
def test_a_generator_that_learnt_images_by_heart_memorizes():
    training, held_out = blobs(12, seed=0), blobs(12, seed=1)
    found = verdict_on(fitted(training, steps=200), training, held_out)
    assert found["verdict"] == MEMORIZES
    assert found["auroc"]["mean"] > 0.9 and found["gap"] > 0.1


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("fit_to", [0, 400], ids=["untrained", "fitted to many"])
def test_a_generator_that_saw_none_or_many_images_does_not_memorize(fit_to):
    seen, held_out = blobs(400, seed=0), blobs(12, seed=1)
    generator = fitted(seen, steps=200 if fit_to else 0)
    assert verdict_on(generator, seen[:12], held_out)["verdict"] == NOT_SEPARATED
