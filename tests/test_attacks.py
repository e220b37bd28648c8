"""An attack finds what is there, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn

from common.attacks import attributes, inversion
from common.attacks.membership import (
    by_person,
    confidence,
    halves,
    judge,
    lira,
    loss_scores,
    probability_of_truth,
)
from common.disclosure import MOST_POWER, people_for_moments

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of ten classes that have nothing to do with it: all that can be learnt is by heart."""
    x = torch.randn(count, 64, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(count) % 10


def scores_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return loss_scores(probability_of_truth(model(x).softmax(1).numpy(), y.numpy()))


# Membership


def test_an_overfitted_classifier_tells_whom_it_was_trained_on() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    x, y = noise(40, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    found = judge(scores_of(model, x, y), scores_of(model, *noise(40, 2)))
    assert found["auc"]["mean"] > 0.95
    assert found["auc"]["low"] > 0.85
    assert found["tpr"]["0.1"]["mean"] > 0.9
    assert found["advantage"] > found["advantage_by_chance"]


def test_a_classifier_that_saw_neither_group_tells_nothing() -> None:
    torch.manual_seed(0)
    held = 0
    for seed in range(20):
        model = nn.Linear(64, 10)
        auc = judge(*(scores_of(model, *noise(40, 2 * seed + k)) for k in (0, 1)))["auc"]
        held += auc["low"] <= 0.5 <= auc["high"]
    assert held >= 17


def test_the_advantage_of_who_knows_nothing_is_that_of_chance() -> None:
    rng = np.random.default_rng(0)
    found = [judge(rng.normal(size=20), rng.normal(size=20), seed=k) for k in range(30)]
    excess = np.array([one["advantage"] - one["advantage_by_chance"] for one in found])
    assert abs(excess.mean()) < 3 * excess.std(ddof=1) / 30**0.5


def test_intervals_hold_chance_in_most_attacks_that_know_nothing() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for k in range(60):
        auc = judge(rng.normal(size=12), rng.normal(size=20), seed=k)["auc"]
        held += auc["low"] <= 0.5 <= auc["high"]
    assert held >= 53


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(8)), st.permutations(range(9)))
def test_what_is_found_does_not_depend_on_the_order_of_people(first, second) -> None:
    members, others = np.arange(8.0) % 3, np.arange(9.0) % 4
    one, other = judge(members, others), judge(members[first], others[second])
    for name in ("advantage", "persons"):
        assert one[name] == other[name]
    assert one["auc"]["mean"] == pytest.approx(other["auc"]["mean"], abs=1e-12)


def test_the_auc_is_the_share_of_pairs_in_order_with_ties_by_half() -> None:
    members, others = np.repeat([3.0, 1.0, 2.0], 2), np.repeat([1.0, 0.0], 3)
    assert judge(members, others)["auc"]["mean"] == pytest.approx((2 + 1.5 + 2) / 6)


def test_a_person_counts_once_however_many_images_there_are() -> None:
    names, scores = by_person([1.0, 3.0, 5.0, 5.0, 5.0], ["a", "b", "b", "a", "b"])
    assert names == ["a", "b"]
    np.testing.assert_allclose(scores, [3.0, 13 / 3])
    thrice = by_person(np.tile([1.0, 2.0], 3), ["a", "b"] * 3)[1]
    np.testing.assert_allclose(thrice, [1.0, 2.0])


def test_a_rate_is_told_where_enough_others_can_show_it() -> None:
    few = judge(np.arange(20.0), np.arange(99.0))["tpr"]
    assert few["0.01"] is None and few["0.1"] is not None
    assert judge(np.arange(20.0), np.arange(100.0))["tpr"]["0.01"] is not None


def test_of_fewer_than_five_people_nothing_is_told() -> None:
    for few in ([], np.arange(4.0)):
        found = judge(few, np.arange(20.0))
        assert found["auc"]["mean"] is None and found["advantage"] is None
        assert found["tpr"] == {"0.01": None, "0.1": None}
    assert judge(np.arange(5.0), np.arange(5.0))["auc"]["low"] is not None


def test_both_classes_of_two_are_read_alike() -> None:
    p = np.array([0.2, 0.9])
    np.testing.assert_allclose(probability_of_truth(p, [0, 1]), [0.8, 0.9])
    wide = probability_of_truth(np.stack([1 - p, p], 1), [0, 1])
    np.testing.assert_allclose(wide, probability_of_truth(p, [0, 1]))
    assert confidence(0.5) == 0
    assert np.isfinite(confidence(probability_of_truth([0.0, 1.0], [1, 1]))).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=30), st.integers(0, 5))
def test_each_person_is_outside_half_of_the_shadows(strata, seed) -> None:
    chosen = halves(strata, 6, seed)
    assert (chosen.sum(axis=0) == 3).all()
    for name in set(strata):
        of_it = chosen[:, [one == name for one in strata]].sum(axis=1)
        assert abs(of_it[0] - of_it[1]) <= 1
    sizes = chosen.sum(axis=1)
    assert abs(sizes[0] - sizes[1]) <= 1


def test_shadows_beat_the_loss_where_people_are_unequally_hard() -> None:
    rng = np.random.default_rng(0)
    people, shadows = 200, 8
    hardness = rng.normal(0, 3, people)  # of each image, for every model
    member = np.arange(people) < people // 2

    def phi(trained: np.ndarray) -> np.ndarray:
        return hardness + 1.0 * trained + rng.normal(0, 0.5, people)

    target = phi(member)
    trained = halves([""] * people, shadows, 0)
    by_shadows = lira(target, np.stack([phi(one) for one in trained]), trained)
    aucs = [judge(s[member], s[~member])["auc"] for s in (by_shadows, target)]
    assert aucs[0]["low"] > aucs[1]["high"]


def test_an_image_that_every_shadow_was_trained_on_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        lira([0.0], [[0.0]], [[True]])
    with pytest.raises(ValueError, match="even"):
        halves(["a"], 3, 0)


# Inversion


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Sigmoid())
        self.head = nn.Linear(8 * 64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def blobs(count: int, seed: int) -> torch.Tensor:
    """Pictures of one bright spot each, somewhere else."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.mgrid[:16, :16])
    centers = rng.uniform(3, 13, (count, 2, 1, 1))
    return torch.from_numpy(np.exp(-((grid - centers) ** 2).sum(1) / 8)[:, None]).float()


def attacked(network: nn.Module, noise: float) -> inversion.Judged:
    truth, labels = blobs(1, 0), torch.tensor([2])
    gradient = inversion.gradient_of(network, truth, labels)
    draws = torch.Generator().manual_seed(3)
    for name, one in gradient.items():
        scale = noise * one.square().mean().sqrt()
        gradient[name] = one + scale * torch.randn(one.shape, generator=draws)
    found = inversion.invert(network, gradient, labels, (1, 16, 16), steps=300, variation=1e-3)
    return inversion.judge(found, truth, blobs(30, 1))


def test_the_image_of_one_gradient_is_nearer_than_any_other(network: nn.Module) -> None:
    found = attacked(network, 0.0)
    assert found.psnr[0] > found.other_psnr[0] + 3
    assert found.ssim[0] > found.other_ssim[0]


def test_noise_on_the_update_hides_the_image(network: nn.Module) -> None:
    found = attacked(network, 10.0)
    assert found.psnr[0] < found.other_psnr[0]


def test_an_average_image_is_no_reconstruction() -> None:
    truth, others = blobs(1, 0), blobs(30, 1)
    found = inversion.judge(others.mean(0, keepdim=True), truth, others)
    assert found.psnr[0] <= found.other_psnr[0]
    exact = inversion.judge(truth.clone(), truth, others)
    assert exact.ssim[0] == pytest.approx(1) and exact.psnr[0] > 60


def test_a_batch_is_matched_to_the_truth_in_whatever_order() -> None:
    truth = blobs(4, 0)
    order = [2, 0, 3, 1]
    found = inversion.judge(truth[order], truth, blobs(5, 1))
    assert found.order.tolist() == [1, 3, 0, 2]
    assert (found.ssim > 0.999).all()


@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (1, 3, 16, 16), (3, 16, 16), (1, 8, 8)])
def test_volumes_stacks_and_pictures_are_judged(shape) -> None:
    images = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    found = inversion.judge(images[:2].clone(), images[:2], images[2:])
    np.testing.assert_allclose(found.ssim, 1, atol=1e-5)
    assert (found.other_ssim < 0.9).all()


@pytest.mark.parametrize("labels", [[0], [3], [1, 2], [0, 0, 3]])
def test_labels_are_read_from_the_bias(network: nn.Module, labels) -> None:
    images = blobs(len(labels), 4)
    gradient = inversion.gradient_of(network, images, torch.tensor(labels))
    with torch.no_grad():
        prior = network(torch.full((1, 1, 16, 16), 0.5)).softmax(1)[0]
    found = inversion.infer_labels(gradient["head.bias"], len(labels), prior)
    assert found.tolist() == labels


@pytest.mark.parametrize("label", range(4))
def test_the_label_of_one_image_is_certain_whatever_is_predicted(network, label) -> None:
    gradient = inversion.gradient_of(network, blobs(1, 5), torch.tensor([label]))
    for prior in torch.eye(4):
        assert inversion.infer_labels(gradient["head.bias"], 1, prior).tolist() == [label]


def test_adamws_first_step_moves_against_the_sign_of_the_gradient(network: nn.Module) -> None:
    import copy

    truth, labels = blobs(1, 0), torch.tensor([2])
    gradient = inversion.gradient_of(network, truth, labels)
    model = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    nn.functional.cross_entropy(model(truth), labels).backward()
    optimizer.step()
    found = inversion.gradient_from_update(
        network.state_dict(), model.state_dict(), dict.fromkeys(gradient, 0.01), 0.3
    )
    clear = gradient["head.weight"].abs() > 1e-4
    expected = gradient["head.weight"].sign()[clear]
    torch.testing.assert_close(found["head.weight"][clear], expected, atol=1e-3, rtol=0)


# Moments


@pytest.mark.parametrize(("features", "people"), [(4, 100), (8, 200), (16, 400)])
def test_the_moments_attacks_have_the_power_that_theory_predicts(features, people) -> None:
    rng = np.random.default_rng(features)
    population = rng.normal(size=(20 * people, features))
    found = attributes.measure(population, people, trials=60)
    for name in (attributes.MEAN, attributes.RATIO):
        auc, theory = found["auc"][name], found["predicted"][name]
        wide = 0.01  # of the normal approximation, for n of 25 D
        assert auc["low"] - wide <= theory <= auc["high"] + wide


def test_no_other_attack_gets_more_than_the_likelihood_ratio() -> None:
    population = np.random.default_rng(0).normal(size=(4000, 16))
    auc = attributes.measure(population, 200, trials=40)["auc"]
    assert auc["distance"]["low"] > 0.5 and auc["mean"]["low"] > 0.5
    highest = max(auc["distance"]["high"], auc["mean"]["high"])
    assert auc["likelihood ratio"]["low"] > highest


@pytest.mark.parametrize("features", [1, 8, 64])
def test_moments_that_may_leave_give_an_attacker_hardly_anything(features) -> None:
    found = attributes.predicted(features, people_for_moments(features))
    assert max(found.values()) <= norm.cdf(MOST_POWER / 2**0.5) + 1e-9


def test_moments_of_fewer_people_than_features_tell_exactly_who_is_in() -> None:
    population = np.random.default_rng(0).normal(size=(300, 32))
    found = attributes.measure(population, 20, trials=5)
    assert found["auc"]["distance"]["mean"] == 1.0


def test_power_falls_with_people_and_rises_with_features() -> None:
    for name in attributes.predicted(8, 100):
        assert attributes.predicted(8, 100)[name] > attributes.predicted(8, 200)[name]
        assert attributes.predicted(16, 100)[name] > attributes.predicted(8, 100)[name]
    assert attributes.predicted(1, 100)["mean"] == pytest.approx(norm.cdf(0.1 / 2**0.5))


def test_principal_components_keep_distances() -> None:
    x = np.random.default_rng(0).normal(size=(30, 5))
    y = attributes.principal(x, 5)
    np.testing.assert_allclose(np.linalg.norm(y[0] - y[1]), np.linalg.norm(x[0] - x[1]))
    with pytest.raises(ValueError, match="needs 30"):
        attributes.measure(x[:20], 10)
