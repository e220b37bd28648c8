"""A model that fits itself to its site: its statistics, its threshold, and that they stay there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from tiny import dataset, run_config
from torch import Tensor, nn

from common.data.dataset import Dataset
from common.models.efficientnet import FILE_COUNTS, FrozenBatchNorm
from common.models.picture_classifier import build_picture_classifier
from common.models.site_statistics import (
    HeadStatistics,
    layers_of_site,
    moderated,
    take_site_statistics,
)
from common.studies.study import read_study
from common.tasks.task import SiteContext, load_task
from common.training import site_survey
from common.training.classifier import predict, survey_site
from common.training.hooks import Batch, Hooks
from common.training.site_survey import survey
from common.training.threshold import MOST, of_each_class, offsets, shifted

pytestmark = pytest.mark.usefixtures("one_thread")

classification = load_task("classification")
CPU = torch.device("cpu")
NORTH = SiteContext("north", ("island", "north"), CPU)
SKIN = read_study("skin-lesions")
ADAPTED = ("center", "statistics", "threshold")
TINY = {
    "data.size": 16,
    "training.batch-size": 4,
    "training.learning-rate": 3e-3,
    "run.rounds": 2,
    "training.local-steps": 4,
}


def config(adapt: str = "none", **changes):
    return run_config(TINY, adapt=adapt, **changes)


def heads(count: int = 12, seed: int = 0, labels: list[int] | None = None) -> Dataset:
    draws = np.random.default_rng(seed)
    images = np.zeros((count, 1, 16, 16, 16), np.float32)
    images[..., 2:-2, 2:-2, 2:-2] = draws.uniform(0.3, 0.9, (count, 1, 12, 12, 12))
    return dataset(images, labels or np.arange(count) % 2)


# The mechanism


class Linear(nn.Module):
    """Mean intensities of two halves of a cube, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.unflatten(3, (2, -1)).mean((1, 2, 4, 5)))


def halves(features: np.ndarray) -> Dataset:
    """Cubes with these means in their two halves."""
    cubes = features[:, None, None, :, None, None].repeat(2, 4).repeat(4, 2).repeat(4, 5)
    images = cubes.reshape(len(features), 1, 4, 4, 4).astype(np.float32)
    return dataset(images, np.arange(len(features)) % 2)


def adapted(model: nn.Module, adapt: str, known: Dataset) -> nn.Module:
    take_site_statistics(model, adapt)
    survey_site(model, known, config(adapt=adapt), CPU)
    return model


def test_images_that_a_scanner_changes_affinely_are_told_apart_again() -> None:
    draws = np.random.default_rng(0)
    clean = draws.normal(0, 1, (60, 2)) + np.arange(60)[:, None] % 2 * [3.0, 0.0]
    model, labels = Linear(), np.arange(60) % 2
    take_site_statistics(model, "statistics")
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[-1.0, 0], [1, 0]]))
        model.head.bias.zero_()

    def accuracy(features: np.ndarray) -> float:
        found = predict(model, halves(features), read_study("brain-sex"), CPU)
        return float(((found > 0.5) == labels).mean())

    survey(model, halves(clean), read_study("brain-sex"), CPU)
    at_home = accuracy(clean)
    elsewhere = clean * [4.0, 0.2] + [-20.0, 5.0]
    abroad = accuracy(elsewhere)
    survey(model, halves(elsewhere), read_study("brain-sex"), CPU)
    assert at_home > 0.85 and abroad < 0.6
    assert accuracy(elsewhere) == at_home


@pytest.mark.parametrize("adapt", ["center", "statistics"])
def test_an_adapted_model_without_its_sites_statistics_refuses_to_answer(adapt: str) -> None:
    model = classification.build_model(config(adapt=adapt))
    with pytest.raises(RuntimeError, match="survey"):
        model(torch.zeros(1, 1, 16, 16, 16))


@pytest.mark.parametrize("adapt", ADAPTED)
def test_nothing_of_a_site_is_part_of_what_is_shared_or_kept(adapt: str) -> None:
    run, plain = config(adapt=adapt), classification.build_model(config())
    model = classification.build_model(run)
    done = classification.fit(model, heads(), run, place=NORTH, round_number=1, private={})
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert classification.shared_state(model, run).keys() == plain.state_dict().keys()
    assert classification.parts(model) == classification.parts(plain)
    assert {name.split("/")[0] for name in done.private} == dict(plain.named_parameters()).keys()


def test_statistics_see_images_alone_and_a_center_all_classes_alike() -> None:
    features = np.concatenate([np.zeros((6, 2)), np.ones((2, 2))])
    few = halves(features)
    few = Dataset(few.pixels, np.array([0] * 6 + [1] * 2), few.persons)
    means = {
        adapt: adapted(Linear(), adapt, few).head.at_site.mean.tolist()
        for adapt in ("center", "statistics")
    }
    assert means["center"] == pytest.approx([0.5, 0.5])
    assert means["statistics"] == pytest.approx([0.25, 0.25])


def test_of_many_images_some_are_looked_at_the_same_each_time(monkeypatch) -> None:
    monkeypatch.setattr(site_survey, "MOST", 8)
    known, seen = heads(20), []
    model = adapted(Linear(), "statistics", known)
    first = model.head.at_site.mean.clone()
    model.head.at_site.begin = lambda images: (
        seen.append(images) or HeadStatistics.begin(model.head.at_site, images)
    )
    survey(model, known, read_study("brain-sex"), CPU)
    assert seen == [8] and torch.equal(model.head.at_site.mean, first)


def test_a_survey_leaves_the_models_mode_weights_and_the_random_state_alone() -> None:
    model = classification.build_model(config(adapt="statistics")).train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    state = torch.get_rng_state()
    survey(model, heads(), read_study("brain-sex"), CPU)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


# Few images


def test_variances_of_few_people_are_drawn_together_and_of_many_are_not() -> None:
    draws = torch.Generator().manual_seed(0)
    truth = torch.randn(400, generator=draws).mul(0.3).exp()
    for people, closer in ((8, True), (5000, False)):
        seen = torch.randn(people, 400, generator=draws) * truth.sqrt()
        own = seen.var(0, correction=0)
        found = moderated(own, people)
        error = [(one / truth).log().sub((one / truth).log().mean()).std() for one in (found, own)]
        assert (error[0] < 0.7 * error[1]) == closer
        assert error[0] < 1.01 * error[1]
    torch.testing.assert_close(found, own, rtol=0.01, atol=0)


@pytest.mark.parametrize("people", [1, 2, 12])
def test_features_that_never_vary_do_no_harm(people: int) -> None:
    assert moderated(torch.zeros(5), people).equal(torch.ones(5))
    found = moderated(torch.tensor([0.0, 1.0, 2.0]), people)
    assert found.isfinite().all() and (found > 0).all()


# Networks with running statistics


def test_a_pretrained_network_takes_its_sites_statistics_in_every_layer_and_sends_none() -> None:
    model = build_picture_classifier(
        "efficientnet-b0", channels=3, classes=2, seed=0, pretrained=True
    ).eval()
    images = np.random.default_rng(0).uniform(0, 1, (40, 3, 32, 32)).astype(np.float32)
    known, before = dataset(images), {k: v.clone() for k, v in model.state_dict().items()}
    take_site_statistics(model, "statistics")
    layers = [one for one in model.modules() if isinstance(one, FrozenBatchNorm)]
    assert layers_of_site(model) == layers and not hasattr(model.head, "at_site")
    with pytest.raises(RuntimeError, match="survey"):
        model(torch.zeros(1, 3, 32, 32))
    survey(model, known, SKIN, CPU)
    state = model.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(one, before[name]) for name, one in state.items())
    assert all(one.site_mean is not None for one in layers)
    assert model(torch.from_numpy(images[:2])).isfinite().all()


def test_a_sites_statistics_count_by_its_images_beside_the_files() -> None:
    layer, draws = FrozenBatchNorm(3), torch.Generator().manual_seed(0)
    layer.of_site = True
    seen = 5 + 2 * torch.randn(64, 3, 4, 4, generator=draws)
    layer.begin(64)
    for part in seen.split([32, 24, 8]):
        layer(part)
    layer.end(torch.ones(64), 64)
    trust = 64 / (64 + FILE_COUNTS)
    variance, mean = torch.var_mean(seen, (0, 2, 3), correction=0)
    torch.testing.assert_close(layer.site_mean, trust * mean)
    torch.testing.assert_close(layer.site_variance, trust * variance + (1 - trust))


# The threshold


def predictions(count: int, classes: int, seed: int, sharp: float = 1.0):
    draws = np.random.default_rng(seed)
    labels = draws.integers(classes, size=count)
    z = sharp * (draws.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels])
    p = np.exp(z + np.linspace(-2, 2, classes))
    return p / p.sum(1, keepdims=True), labels


def balanced_loss(p: np.ndarray, labels: np.ndarray, b: np.ndarray, people: int) -> float:
    present = np.unique(labels)
    z = (np.log(p) + b)[:, present]
    each = np.log(np.exp(z).sum(1)) - (np.log(p) + b)[np.arange(len(p)), labels]
    return np.mean([each[labels == k].mean() for k in present]) + b @ b / (2 * people)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 99), st.sampled_from([0.1, 1, 30]))
def test_offsets_are_where_the_balanced_loss_is_least(classes, count, seed, sharp) -> None:
    p, labels = predictions(count, classes, seed, sharp)
    found = offsets(p, labels, count)
    absent = ~np.isin(np.arange(classes), labels)
    assert np.isfinite(found).all() and not found[absent].any()
    assert found.sum() == pytest.approx(0, abs=1e-6)
    best = balanced_loss(p, labels, found, count)
    for step in np.eye(classes)[~absent]:
        for length in (1e-3, -1e-3, 0.5, -0.5):
            moved = found + length * (step - (~absent) / (~absent).sum())
            assert balanced_loss(p, labels, moved, count) >= best - 1e-12


def test_a_shift_of_all_logits_of_a_class_is_taken_out_given_people_enough() -> None:
    p, labels = predictions(4000, 2, seed=1)
    told = offsets(p[:, 1], labels, 10**9)
    assert told[1] - told[0] == pytest.approx(-4, abs=0.3)
    assert ((shifted(p[:, 1], told) > 0.5) == labels).mean() > 0.8


def test_separable_images_keep_offsets_finite_and_the_threshold_near_its_place() -> None:
    p = np.array([1e-12, 1e-9, 1 - 1e-9, 1.0])
    found = offsets(p, np.array([0, 0, 1, 1]), 4)
    assert np.abs(found).max() < 1e-2


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(-5, 5))
def test_auroc_of_two_classes_is_the_same_at_every_threshold(seed: int, by: float) -> None:
    p, labels = predictions(50, 2, seed)
    moved = shifted(p[:, 1], np.array([-by, by]))
    assert moved.shape == (50,)
    labels[:2] = 0, 1
    assert roc_auc_score(labels, moved) == roc_auc_score(labels, p[:, 1])


def test_without_offsets_predictions_are_what_they_were() -> None:
    p, _ = predictions(20, 4, seed=0)
    np.testing.assert_allclose(shifted(p, np.zeros(4)), p, rtol=1e-12)
    np.testing.assert_allclose(shifted(p[:, 1], np.zeros(2)), p[:, 1], rtol=1e-12)


def test_of_a_large_class_some_images_decide_of_a_rare_one_all() -> None:
    labels = np.array([0] * 1000 + [2] * 7)
    chosen = of_each_class(labels)
    assert np.bincount(labels[chosen]).tolist() == [MOST, 0, 7]
    assert chosen.min() == 0 and len(set(chosen.tolist())) == len(chosen)


# At a site


def test_a_threshold_is_learned_from_training_images_as_they_are_judged() -> None:
    run, asked = config(adapt="threshold"), []
    model = classification.build_model(run)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.0, 4.0]))  # says "1" of everybody
    released = classification.shared_state(model, run)
    sets = {"train": heads(40, seed=1), "test": heads(40, seed=2)}

    def load(split: str) -> Dataset:
        asked.append(split)
        return sets[split]

    plain = classification.evaluate(released, load, "test", config(), place=NORTH)
    assert asked == ["test"] and plain.metrics["balanced_accuracy"] == 0.5
    found = classification.evaluate(released, load, "test", run, place=NORTH)
    assert asked[1:] == ["train", "test"]
    of_known = predict(model, sets["train"], run.read_study(), CPU)
    by = offsets(of_known, sets["train"].labels, 40)
    assert by[1] < -1
    assert found.metrics["auroc"] == plain.metrics["auroc"]
    assert found.metrics["loss"] < plain.metrics["loss"]
    assert found.metrics.keys() == plain.metrics.keys()  # what is reported names no offset


@pytest.mark.parametrize("adapt", ["none", "statistics", "threshold"])
def test_a_site_that_lacks_a_class_is_trained_and_judged(adapt: str) -> None:
    run = config(adapt=adapt)
    model, men = classification.build_model(run), heads(8, labels=[1] * 8)
    classification.fit(model, men, run, place=NORTH, round_number=1, private={})
    released = classification.shared_state(model, run)
    sets = {"train": men, "val": heads()}
    found = classification.evaluate(released, sets.__getitem__, "val", run, place=NORTH)
    assert np.isfinite(found.metrics["loss"])
    if adapt == "threshold":
        plain = classification.evaluate(released, sets.__getitem__, "val", config(), place=NORTH)
        assert found.metrics == pytest.approx(plain.metrics)


@pytest.mark.parametrize("adapt", ADAPTED)
def test_training_with_it_is_repeatable(adapt: str) -> None:
    run = config(adapt=adapt)
    trained = []
    for _ in range(2):
        model = classification.build_model(run)
        done = classification.fit(model, heads(), run, place=NORTH, round_number=1, private={})
        trained.append(model.state_dict())
        assert 0 <= done.metrics["loss"] < 50
    assert all(torch.equal(one, trained[1][name]) for name, one in trained[0].items())
    fresh = classification.build_model(run).state_dict()
    assert not torch.equal(trained[0]["head.weight"], fresh["head.weight"])


@pytest.mark.parametrize("adapt", ["center", "statistics"])
def test_a_strategy_may_copy_the_model_as_it_is_at_the_site(adapt: str) -> None:
    copies = []

    class Copying(Hooks):
        def before_round(self, model: nn.Module) -> None:
            copies.append(copy.deepcopy(model))

        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            return copies[0](batch.images).square().mean()

    run = config(adapt=adapt)
    done = classification.fit(
        classification.build_model(run),
        heads(),
        run,
        place=NORTH,
        round_number=1,
        private={},
        hooks=Copying(),
    )
    assert np.isfinite(done.metrics["loss"]) and len(copies) == 1


def test_a_saved_model_says_how_it_is_to_be_adapted(tmp_path) -> None:
    run = config(adapt="statistics")
    state = classification.shared_state(classification.build_model(run), run)
    classification.save(tmp_path, state, state, run, round_number=1, place=NORTH)
    assert '"adapt": "statistics"' in (tmp_path / "model.json").read_text()
