"""Slices in the classification task: how they are cut and varied, and where a GAN enters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.checkpoints import load_model
from common.config.run_config import RunConfig
from common.disclosure import Disclosure
from common.errors import ConfigError, DataContractError, FedscanError
from common.imaging.prepare import ImageSet
from common.imaging.slices import LEVELS_MM, SEX, WHOLE_HEAD_MM, load_slices
from common.models.slice_classifier import (
    SD_FLOOR,
    DiscriminatorClassifier,
    SliceClassifier,
)
from common.tasks.classification import (
    build_model,
    evaluate,
    fit,
    load_shared,
    load_split,
    save,
    score,
    shared_state,
    warm_start,
)
from common.tasks.generation_networks import architecture, gan_config
from common.tasks.task import SiteContext
from common.training import classifier_augment
from common.training.classifier import predict
from common.training.classifier_augment import CUBE, SHIFT_VOXELS, STACK, augment, axes_of
from common.training.gan import GanTraining
from common.training.gan_checkpoint import load_discriminator, save_checkpoint
from simulations.federate import check_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SITES = ("island", "north")
NORTH = SiteContext("north", SITES, CPU)
LEVELS = len(LEVELS_MM)
SMALL_GAN = "resolution=16 channel-base=128 channel-max=8 z-dim=8 w-dim=8 label-kinds=sex,site"
TINY = {
    "model.gan-changes": SMALL_GAN,
    "training.batch-size": 6,  # no GAN takes it: six are no whole groups of four
    "training.learning-rate": 3e-3,
    "run.rounds": 2,
    "training.local-steps": 5,
}


OF_GENERATION = RunConfig.from_flower(
    {
        "task": "generation",
        "model.gan-changes": SMALL_GAN,
        "training.batch-size": 4,
        "run.rounds": 2,
    }
)


def config(classifier: str = "gan-features", **changes) -> RunConfig:
    return RunConfig.from_flower(
        TINY
        | {"classifier": classifier}
        | {key.replace("_", "-"): value for key, value in changes.items()}
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GAN with the networks of the runs, whose weights are not those of any start."""
    folder = tmp_path_factory.mktemp("gan")
    settings = OF_GENERATION
    training = GanTraining.start(gan_config(settings), architecture(settings, SITES), device=CPU)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in training.discriminator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    save_checkpoint(folder, training)
    return folder


def data(count: int = 12, side: int = 16, women: int | None = None) -> ImageSet:
    """Discs that are larger in men, in air of 0; every second one, or all but ``women``."""
    draws = np.random.default_rng(0)
    axis = np.arange(side) - (side - 1) / 2
    labels = np.arange(count) % 2 if women is None else (np.arange(count) >= women).astype(int)
    radius = (side / 4 + side / 8 * labels)[:, None, None, None]
    disc = axis[:, None] ** 2 + axis**2 < radius**2
    images = disc * draws.uniform(0.3, 0.9, (count, LEVELS, side, side))
    return ImageSet(images.astype(np.float32), labels, tuple(map(str, range(count))))


def of_discriminator(model: torch.nn.Module) -> dict[str, Tensor]:
    classifiers_own = ("head.weight", "head.bias", "log_variance")
    return {k: v.clone() for k, v in model.state_dict().items() if k not in classifiers_own}


# What an image is


@pytest.mark.parametrize("name", ["slices", "gan-features"])
def test_stacks_are_the_generators_slices_person_by_person(
    name: str, tiny_cohort: Path, session_cache: Path
) -> None:
    folder = tiny_cohort / "north"
    stacks = load_split("north", folder, "train", config(name), session_cache)
    slices = load_slices("north", folder, "train", resolution=16, cache=session_cache)
    assert stacks.images.shape == (len(slices) // LEVELS, LEVELS, 16, 16)
    assert stacks.images.dtype == np.float32 and stacks.labels.dtype == np.int64
    assert stacks.images.min() == 0 and 0.7 < stacks.images.max() <= 1
    for person, (stack, label) in enumerate(zip(stacks.images, stacks.labels, strict=True)):
        rows = range(person * LEVELS, (person + 1) * LEVELS)
        np.testing.assert_allclose(2 * stack - 1, slices.images[rows, 0], atol=1e-6)
        assert {slices.labels[k]["sex"] for k in rows} == {SEX[("female", "male")[label]]}
        assert {slices.ids[k] for k in rows} == {stacks.ids[person]}


def test_resolution_is_the_gans_and_not_the_cubes(tiny_cohort: Path, session_cache: Path) -> None:
    wide = config("slices", gan_changes="", image_size=16)
    stacks = load_split("island", tiny_cohort / "island", "val", wide, session_cache)
    assert stacks.images.shape[1:] == (LEVELS, 32, 32)
    assert len(predict(build_model(wide), stacks, CPU)) == len(stacks.labels)


def test_axes_are_told_by_the_shape() -> None:
    assert axes_of(torch.zeros(2, 1, 16, 16, 16)) == CUBE
    assert axes_of(torch.zeros(2, 1, LEVELS, 16, 16)) == STACK


def test_stack_is_mirrored_and_shifted_within_its_slices(monkeypatch) -> None:
    monkeypatch.setattr(classifier_augment, "GAMMA_SD", 0.0)
    image = torch.zeros(1, LEVELS, 9, 9)
    image[:, :, 3, 2] = torch.arange(1, LEVELS + 1.0)  # a point a height: left, in front
    images = image.expand(200, *image.shape)
    found = set()
    for out in augment(images, torch.Generator().manual_seed(0)):
        places = {tuple(one.nonzero()[0].tolist()) for one in out[0]}
        assert len(places) == 1  # the heights stay together and in order
        assert out[0].amax((1, 2)).tolist() == list(range(1, LEVELS + 1))
        found |= places
    near = range(-SHIFT_VOXELS, SHIFT_VOXELS + 1)
    assert found == {(3 + a, column + b) for column in (2, 6) for a in near for b in near}


@pytest.mark.parametrize("name", ["slices", "gan-features"])
def test_mirror_images_get_the_same_prediction(name: str) -> None:
    model, straight = build_model(config(name), NORTH), data()
    mirrored = replace(straight, images=straight.images[..., ::-1].copy())
    turned = replace(straight, images=straight.images[..., ::-1, :].copy())
    expected = predict(model, straight, CPU)
    np.testing.assert_allclose(predict(model, mirrored, CPU), expected, atol=1e-7)
    assert np.abs(predict(model, turned, CPU) - expected).max() > 1e-5


# Training


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("slices", {}),
        ("gan-features", {}),
        ("gan-features", {"features": "tuned", "learning_rate": 1e-3}),
    ],
)
def test_training_learns_what_tells_the_classes_apart(name: str, changes) -> None:
    settings = config(name, local_steps=30, weight_decay=0.0, **changes)
    model, images = build_model(settings, NORTH), data()
    private = {}
    for number in (1, 2):
        done = fit(model, images, settings, place=NORTH, round_number=number, private=private)
        private = done.private
    assert ((predict(model, images, CPU) > 0.5) == (images.labels == 1)).mean() > 0.9


@pytest.mark.parametrize("mu", [0.0, 0.1])
def test_frozen_weights_do_not_change_in_a_bit_and_have_no_moments(mu: float) -> None:
    settings = config(weight_decay=1.0, proximal_mu=mu, strategy="fedprox" if mu else "fedavg")
    model = build_model(settings, NORTH)
    before, head = of_discriminator(model), model.head.weight.clone()
    done = fit(model, data(), settings, place=NORTH, round_number=1, private={})
    again = fit(model, data(), settings, place=NORTH, round_number=2, private=done.private)
    assert all(torch.equal(v, before[k]) for k, v in of_discriminator(model).items())
    assert not torch.equal(model.head.weight, head)
    assert {name.split("/")[0] for name in again.private} == {"head.weight", "head.bias"}


def test_tuned_weights_all_change() -> None:
    model = build_model(config(features="tuned"), NORTH)
    before = of_discriminator(model)
    fit(model, data(), config(features="tuned"), place=NORTH, round_number=1, private={})
    assert not [k for k, v in of_discriminator(model).items() if torch.equal(v, before[k])]


def test_another_site_continues_with_what_was_shared() -> None:
    settings = config(features="tuned")
    model = build_model(settings, NORTH)
    fit(model, data(), settings, place=NORTH, round_number=1, private={})
    other = build_model(settings, replace(NORTH, site="island"))
    load_shared(other, shared_state(model, settings))
    np.testing.assert_array_equal(predict(other, data(), CPU), predict(model, data(), CPU))


# Where it begins


def test_untrained_control_is_the_seeds_and_the_same_at_every_site() -> None:
    one = build_model(config(), NORTH)
    warm_start(one, config())
    same, other = (
        build_model(config(), SiteContext("x", SITES, CPU)),
        build_model(config(seed=1), NORTH),
    )
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in one.state_dict().items())
    assert not torch.equal(one.from_image.weight, other.from_image.weight)


@pytest.mark.parametrize("features", ["frozen", "tuned"])
def test_checkpoints_discriminator_is_taken_over(features: str, checkpoint: Path) -> None:
    settings = config(features=features, gan_checkpoint=str(checkpoint))
    model, control = build_model(settings, NORTH), build_model(config(features=features), NORTH)
    assert all(torch.equal(v, control.state_dict()[k]) for k, v in model.state_dict().items())
    check_checkpoint(settings, 2)
    warm_start(model, settings)
    theirs = load_discriminator(checkpoint)[0].state_dict()
    for name, tensor in of_discriminator(model).items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=5e-4)
    assert torch.equal(model.head.weight, control.head.weight)
    wanted = {"frozen": 2, "tuned": len(list(model.parameters()))}[features]
    assert sum(parameter.requires_grad for parameter in model.parameters()) == wanted


def test_site_builds_the_model_without_the_servers_file(checkpoint: Path, tmp_path: Path) -> None:
    settings = config(gan_checkpoint=str(tmp_path / "only-at-the-server"))
    server = build_model(config(), NORTH)
    warm_start(server, config(gan_checkpoint=str(checkpoint)))
    site = build_model(settings, NORTH)
    load_shared(site, shared_state(server, settings))
    np.testing.assert_array_equal(predict(site, data(), CPU), predict(server, data(), CPU))


def test_other_networks_are_refused_with_their_folder_and_the_way_out(checkpoint: Path) -> None:
    wide = SMALL_GAN.replace("channel-max=8", "channel-max=16")
    settings = config(gan_checkpoint=str(checkpoint), gan_changes=wide)
    with pytest.raises(ConfigError, match="channel-max 8 instead of 16") as raised:
        warm_start(build_model(settings, NORTH), settings)
    assert str(checkpoint) in str(raised.value)


def test_kinds_of_labels_do_not_matter(checkpoint: Path) -> None:
    plain = SMALL_GAN.replace("sex,site", "none")
    settings = config(gan_checkpoint=str(checkpoint), gan_changes=plain)
    warm_start(build_model(settings, NORTH), settings)


def test_missing_checkpoint_and_one_without_use_are_refused(tmp_path: Path) -> None:
    settings = config(gan_checkpoint=str(tmp_path / "nothing"))
    with pytest.raises(FedscanError, match="nothing"):
        warm_start(build_model(settings, NORTH), settings)
    with pytest.raises(ConfigError, match=r"^gan-checkpoint: .*/nothing: there is no such folder"):
        check_checkpoint(settings, 3)
    useless = config("slices", gan_checkpoint=str(tmp_path))
    with pytest.raises(ConfigError, match="no effect with classifier 'slices'"):
        warm_start(build_model(useless, NORTH), useless)
    with pytest.raises(ConfigError, match=r"^gan-checkpoint has no effect"):
        check_checkpoint(useless, 3)
    check_checkpoint(config("slices"), 3)
    check_checkpoint(OF_GENERATION, 3)


# What is released


@pytest.mark.parametrize("name", ["slices", "gan-features"])
def test_released_model_can_be_judged_and_built_again(name: str, tmp_path: Path) -> None:
    settings = config(name)
    model = build_model(settings, NORTH)
    released = shared_state(model, settings)
    found = evaluate(released, lambda split: data(), "test", settings, place=NORTH)
    assert found.count == 12 and 0 <= found.metrics["balanced_accuracy"] <= 1
    save(tmp_path, released, released, settings, round_number=1, place=NORTH)
    again = build_model(config(name, seed=9), NORTH)
    description = load_model(tmp_path, again)
    assert description["gan"] == settings.gan and description["gan_changes"] == SMALL_GAN
    np.testing.assert_array_equal(predict(again, data(), CPU), predict(model, data(), CPU))


# A site's own center


def test_a_site_is_centered_on_its_training_scans_whatever_is_judged() -> None:
    settings, asked = config("slices", adapt="center"), []
    model = build_model(settings, NORTH)

    known = data(8, women=2)

    def load(split: str) -> ImageSet:
        asked.append(split)
        return known if split == "train" else data()

    shared = shared_state(model)
    judged = evaluate(shared, load, "val", settings, place=NORTH)
    assert asked == ["train", "val"]
    assert not any("center" in name for name in shared)
    features = model.features_of(torch.from_numpy(known.images).unsqueeze(1))
    model.survey(features, torch.ones(8))
    assert judged.metrics != score(data(), predict(model, data(), CPU))  # leans to the men
    model.survey(features, torch.tensor([2.0] * 2 + [2 / 3] * 6))
    assert judged.metrics == score(data(), predict(model, data(), CPU))


@pytest.mark.parametrize("augmented", ["all", "none"])
def test_training_is_centered_on_all_scans_of_the_site_between_the_sexes(
    augmented: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, seen = config("slices", adapt="center", augment=augmented), []
    model, classify = build_model(settings, NORTH), SliceClassifier.classify
    known = data(8, women=2)
    features = model.features_of(torch.from_numpy(known.images).unsqueeze(1))
    midway = (features[:2].mean(0) + features[2:].mean(0)) / 2

    def watched(self, features: Tensor) -> Tensor:
        seen.append(self.center.clone())
        return classify(self, features)

    monkeypatch.setattr(SliceClassifier, "classify", watched)
    fit(model, known, settings, place=NORTH, round_number=1, private={})
    assert len(seen) == settings.local_steps
    for center in seen:  # that on entry: what the weights make of the scans changes meanwhile
        torch.testing.assert_close(center, midway, atol=1e-5, rtol=1e-4)


def test_features_are_in_units_of_what_the_sites_have_found_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, used = config(), []
    model, classify = build_model(settings, NORTH), DiscriminatorClassifier.classify
    features = model.features_of(torch.from_numpy(data().images).unsqueeze(1))
    own = features.var(0, correction=0)  # as many women as men
    own = (own + SD_FLOOR**2 * own.mean()).log()

    def watched(self, features: Tensor) -> Tensor:
        used.append(self.log_variance.clone())
        return classify(self, features)

    monkeypatch.setattr(DiscriminatorClassifier, "classify", watched)
    done = fit(model, data(), settings, place=NORTH, round_number=1, private={})
    torch.testing.assert_close(torch.stack(used), own.expand(5, -1), atol=1e-5, rtol=1e-3)
    shared = shared_state(model, settings)
    assert not any("variance" in name for name in done.private)
    shared["log_variance"] = torch.full_like(shared["log_variance"], 7.0)
    load_shared(model, shared)  # what the server made of all sites' own
    used.clear()
    fit(model, data(), settings, place=NORTH, round_number=2, private=done.private)
    assert torch.equal(torch.stack(used), torch.full((5, len(own)), 7.0))
    again = shared_state(model, settings)["log_variance"]
    torch.testing.assert_close(again, own, atol=1e-5, rtol=1e-3)


def test_without_augmentation_frozen_features_are_computed_once_and_learn_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    represent, calls = DiscriminatorClassifier.represent, []
    monkeypatch.setattr(
        DiscriminatorClassifier,
        "represent",
        lambda self, stacks: calls.append(len(stacks)) or represent(self, stacks),
    )
    settings = config(augment="none", adapt="center")
    trained = []
    for frozen, times in ((True, 1), (False, 1 + settings.local_steps)):
        model = build_model(settings, NORTH)
        model.frozen = frozen  # else nothing differs: no other weight has a gradient
        calls.clear()
        fit(model, data(), settings, place=NORTH, round_number=1, private={})
        assert len(calls) == times
        trained.append(model.state_dict())
    for name, tensor in trained[0].items():
        torch.testing.assert_close(tensor, trained[1][name], atol=1e-5, rtol=1e-4)


def test_a_site_of_one_scan_can_be_trained_on() -> None:
    model, settings = build_model(config(), NORTH), config(batch_size=1)
    done = fit(model, data(1), settings, place=NORTH, round_number=1, private={})
    assert 0 <= done.metrics["loss"] < 10
    assert not model.log_variance.any()


@pytest.mark.parametrize("participants", [9, 12])
def test_a_hospital_tells_no_variance_of_features_over_few_people(participants: int) -> None:
    hospital = replace(NORTH, disclosure=Disclosure())
    model = build_model(config(), hospital)
    received = model.log_variance.clone()
    fit(model, data(participants), config(), place=hospital, round_number=1, private={})
    if participants < 10:
        assert torch.equal(model.log_variance, received)
    else:
        assert len(model.log_variance.unique()) == 1
        assert not torch.equal(model.log_variance, received)


def test_augmentation_is_left_out_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "common.training.classifier.augment", lambda images, _: calls.append(1) or images
    )
    for augmented, expected in (("none", 0), ("all", 5)):
        settings = config("slices", augment=augmented)
        model = build_model(settings, NORTH)
        fit(model, data(), settings, place=NORTH, round_number=1, private={})
        assert len(calls) == expected


def test_a_site_of_one_sex_has_no_center() -> None:
    men = data(8, women=0)
    for adapt in ("none", "center"):
        settings = config("slices", adapt=adapt)
        model = build_model(settings, NORTH)
        train = partial(fit, model, men, settings, place=NORTH, round_number=1, private={})
        if adapt == "none":
            train()
        else:
            with pytest.raises(DataContractError, match="all training scans are of one sex"):
                train()


@pytest.mark.parametrize(
    ("key", "value", "without"),
    [
        ("heights", "whole-head", "small"),
        ("adapt", "center", "small"),
        ("feature-layer", 1, "small"),
        ("feature-layer", 1, "slices"),
        ("features", "tuned", "slices"),
    ],
)
def test_what_a_classifier_does_not_have_is_refused(key: str, value, without: str) -> None:
    changes = {"model.gan-changes": "", key: value} if without == "small" else {key: value}
    with pytest.raises(ConfigError, match=f"{key} has no effect with classifier '{without}'"):
        config(without, **changes)


def test_a_layer_that_is_not_there_is_refused_before_anything_starts() -> None:
    assert build_model(config(feature_layer=2), NORTH).head.in_features == LEVELS * 8 * 4 * 2
    with pytest.raises(ConfigError, match=r"feature-layer 3: .* 16 pixels .* layers 0 to 2"):
        config(feature_layer=3)


@pytest.mark.parametrize(
    "changes",
    [{"server-momentum": 0.5}, {"strategy.server-learning-rate": 2.0}],
    ids=lambda c: next(iter(c)),
)
def test_no_step_is_taken_in_a_variance(changes) -> None:
    with pytest.raises(ConfigError, match="Set both 0"):
        config(**changes)
    config("slices", **changes)
    config(server_learning_rate=1.0)


def test_a_whole_head_has_the_generated_heights_among_its_own(tiny_cohort, tmp_path) -> None:
    few, many = (
        load_split("north", tiny_cohort / "north", "test", config(heights=heights), tmp_path)
        for heights in ("generated", "whole-head")
    )
    assert many.images.shape[1] == len(WHOLE_HEAD_MM)
    place = [WHOLE_HEAD_MM.index(level) for level in LEVELS_MM]
    np.testing.assert_array_equal(many.images[:, place], few.images)
