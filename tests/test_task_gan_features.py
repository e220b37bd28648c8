"""Slices in the classification task: how they are cut and varied, and where a GAN enters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import dataset, load_model, run_config
from torch import Tensor

from common.config.run_config import RunConfig
from common.data.dataset import Dataset
from common.disclosure import Disclosure
from common.errors import ConfigError, DataContractError, FedscanError
from common.imaging.slices import LEVELS_MM, WHOLE_HEAD_MM
from common.models.site_statistics import SD_FLOOR
from common.models.slice_classifier import DiscriminatorClassifier, SliceClassifier
from common.strategies.strategy import load_strategy
from common.studies.study import read_study
from common.tasks.classification import score
from common.tasks.generation_networks import architecture
from common.tasks.task import SiteContext, load_task, read_run_config
from common.training import classifier_augment, variation
from common.training.classifier import features_of, predict
from common.training.classifier_augment import CUBE, STACK, augment, axes_of
from common.training.gan import GanTraining
from common.training.gan_checkpoint import load_discriminator, save_checkpoint
from common.training.gan_presets import stylegan2
from common.training.site_survey import survey
from simulations.federate import check_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

classification = load_task("classification")
STUDY = read_study("brain-sex")
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
    return run_config(TINY, classifier=classifier, **changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GAN with the networks of the runs, whose weights are not those of any start."""
    folder = tmp_path_factory.mktemp("gan")
    settings = OF_GENERATION
    training = GanTraining.start(stylegan2(settings), architecture(settings, SITES), device=CPU)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in training.discriminator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    save_checkpoint(folder, training)
    return folder


def data(count: int = 12, side: int = 16, women: int | None = None) -> Dataset:
    """Discs that are larger in men, in air of 0; every second one, or all but ``women``."""
    draws = np.random.default_rng(0)
    axis = np.arange(side) - (side - 1) / 2
    labels = np.arange(count) % 2 if women is None else (np.arange(count) >= women).astype(int)
    radius = (side / 4 + side / 8 * labels)[:, None, None, None]
    disc = axis[:, None] ** 2 + axis**2 < radius**2
    images = disc * draws.uniform(0.3, 0.9, (count, LEVELS, side, side))
    return dataset(images[:, None].astype(np.float32), labels)


def predicted(model: torch.nn.Module, images: Dataset) -> np.ndarray:
    return predict(model, images, STUDY, CPU)


def of_discriminator(model: torch.nn.Module) -> dict[str, Tensor]:
    classifiers_own = ("head.weight", "head.bias", "log_variance")
    return {k: v.clone() for k, v in model.state_dict().items() if k not in classifiers_own}


# What an image is


@pytest.mark.parametrize("name", ["slices", "gan-features"])
def test_stacks_are_the_generators_slices_person_by_person(
    name: str, tiny_cohort: Path, session_cache: Path
) -> None:
    where = ("north", tiny_cohort / "north", "train")
    stacks = classification.open_split(*where, config(name), session_cache)
    slices = load_task("generation").open_split(*where, OF_GENERATION, session_cache)
    assert stacks.shape == (1, LEVELS, 16, 16) and slices.shape == (1, 16, 16)
    images = stacks.images()
    assert images.min() == 0 and 0.7 < images.max() <= 1
    np.testing.assert_array_equal(slices.images(), images.reshape(-1, 1, 16, 16))
    names = STUDY.label.classes.names
    for row, (person, label) in enumerate(zip(stacks.persons, stacks.labels, strict=True)):
        rows = range(row * LEVELS, (row + 1) * LEVELS)
        assert {slices.persons[k] for k in rows} == {person}
        assert {slices.conditions[k]["sex"] for k in rows} == {names[label]}
        assert [slices.conditions[k]["height"] for k in rows] == [f"{h:g}" for h in LEVELS_MM]


def test_resolution_is_the_gans_and_not_the_cubes(tiny_cohort: Path, session_cache: Path) -> None:
    wide = config("slices", gan_changes="", size=16)
    where = ("island", tiny_cohort / "island", "val")
    stacks = classification.open_split(*where, wide, session_cache)
    assert stacks.shape == (1, LEVELS, 32, 32)
    assert len(predicted(classification.build_model(wide), stacks)) == len(stacks)


def test_axes_are_told_by_the_shape() -> None:
    assert axes_of(torch.zeros(2, 1, 16, 16, 16)) == CUBE
    assert axes_of(torch.zeros(2, 1, LEVELS, 16, 16)) == STACK


def test_stack_is_mirrored_and_shifted_within_its_slices(monkeypatch) -> None:
    monkeypatch.setattr(classifier_augment, "GAMMA_SD", 0.0)
    image = torch.zeros(1, LEVELS, 12, 12)
    image[:, :, 3:6, 2:5] = torch.linspace(0.2, 0.9, LEVELS)[:, None, None]  # left, in front
    found = set()
    for out in augment(image.expand(200, *image.shape), torch.Generator().manual_seed(0)):
        rows, columns = out[0, 0].nonzero(as_tuple=True)
        assert all(torch.equal(one > 0, out[0, 0] > 0) for one in out[0])  # heights stay together
        torch.testing.assert_close(out[0].amax((1, 2)), torch.linspace(0.2, 0.9, LEVELS))
        assert abs(float(rows.float().mean()) - 4) <= 1
        found.add(round(float(columns.float().mean())))
    assert {3, 8} <= found <= {2, 3, 4, 7, 8, 9}


@pytest.mark.parametrize("name", ["slices", "gan-features"])
def test_mirror_images_get_the_same_prediction(name: str) -> None:
    model, straight = classification.build_model(config(name), NORTH), data()
    mirrored = dataset(straight.images()[..., ::-1].copy())
    turned = dataset(straight.images()[..., ::-1, :].copy())
    expected = predicted(model, straight)
    np.testing.assert_allclose(predicted(model, mirrored), expected, atol=1e-7)
    assert np.abs(predicted(model, turned) - expected).max() > 1e-5


# Training


@pytest.mark.parametrize("name", ["slices", "gan-features"])
def test_training_learns_what_tells_the_classes_apart(name: str) -> None:
    settings = config(name, local_steps=30, weight_decay=0.0)
    model, images = classification.build_model(settings, NORTH), data()
    private = {}
    for number in (1, 2):
        done = classification.fit(
            model, images, settings, place=NORTH, round_number=number, private=private
        )
        private = done.private
    assert ((predicted(model, images) > 0.5) == (images.labels == 1)).mean() > 0.9


@pytest.mark.parametrize("strategy", [{}, {"name": "fedprox", "strategy.mu": 0.1}])
def test_frozen_weights_do_not_change_in_a_bit_and_have_no_moments(strategy: dict) -> None:
    settings = config(weight_decay=1.0, **strategy)
    model = classification.build_model(settings, NORTH)
    before, head = of_discriminator(model), model.head.weight.clone()
    private = {}
    for number in (1, 2):
        again = classification.fit(
            *(model, data(), settings),
            place=NORTH,
            round_number=number,
            private=private,
            hooks=load_strategy(settings.strategy.name).hooks(settings, {}, {}),
        )
        private = again.private
    assert all(torch.equal(v, before[k]) for k, v in of_discriminator(model).items())
    assert not torch.equal(model.head.weight, head)
    assert {name.split("/")[0] for name in again.private} == {"head.weight", "head.bias"}


def test_another_site_continues_with_what_was_shared() -> None:
    settings = config()
    model = classification.build_model(settings, NORTH)
    classification.fit(model, data(), settings, place=NORTH, round_number=1, private={})
    other = classification.build_model(settings, replace(NORTH, site="island"))
    classification.load_shared(other, classification.shared_state(model, settings))
    np.testing.assert_array_equal(predicted(other, data()), predicted(model, data()))


# Where it begins


def test_untrained_control_is_the_seeds_and_the_same_at_every_site() -> None:
    one = classification.build_model(config(), NORTH)
    classification.warm_start(one, config())
    same, other = (
        classification.build_model(config(), SiteContext("x", SITES, CPU)),
        classification.build_model(config(seed=1), NORTH),
    )
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in one.state_dict().items())
    assert not torch.equal(one.from_image.weight, other.from_image.weight)


def test_checkpoints_discriminator_is_taken_over(checkpoint: Path) -> None:
    settings = config(gan_checkpoint=str(checkpoint))
    model = classification.build_model(settings, NORTH)
    control = classification.build_model(config(), NORTH)
    assert all(torch.equal(v, control.state_dict()[k]) for k, v in model.state_dict().items())
    check_checkpoint(settings, 2)
    classification.warm_start(model, settings)
    theirs = load_discriminator(checkpoint)[0].state_dict()
    for name, tensor in of_discriminator(model).items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=5e-4)
    assert torch.equal(model.head.weight, control.head.weight)
    learned = [name for name, one in model.named_parameters() if one.requires_grad]
    assert learned == ["head.weight", "head.bias"]


def test_site_builds_the_model_without_the_servers_file(checkpoint: Path, tmp_path: Path) -> None:
    settings = config(gan_checkpoint=str(tmp_path / "only-at-the-server"))
    server = classification.build_model(config(), NORTH)
    classification.warm_start(server, config(gan_checkpoint=str(checkpoint)))
    site = classification.build_model(settings, NORTH)
    classification.load_shared(site, classification.shared_state(server, settings))
    np.testing.assert_array_equal(predicted(site, data()), predicted(server, data()))


def test_other_networks_are_refused_with_their_folder_and_the_way_out(checkpoint: Path) -> None:
    wide = SMALL_GAN.replace("channel-max=8", "channel-max=16")
    settings = config(gan_checkpoint=str(checkpoint), gan_changes=wide)
    with pytest.raises(ConfigError, match="channel-max 8 instead of 16") as raised:
        classification.warm_start(classification.build_model(settings, NORTH), settings)
    assert str(checkpoint) in str(raised.value)


def test_kinds_of_labels_do_not_matter(checkpoint: Path) -> None:
    plain = SMALL_GAN.replace("sex,site", "none")
    settings = config(gan_checkpoint=str(checkpoint), gan_changes=plain)
    classification.warm_start(classification.build_model(settings, NORTH), settings)


def test_missing_checkpoint_and_one_without_use_are_refused(tmp_path: Path) -> None:
    settings = config(gan_checkpoint=str(tmp_path / "nothing"))
    with pytest.raises(FedscanError, match="nothing"):
        classification.warm_start(classification.build_model(settings, NORTH), settings)
    with pytest.raises(
        ConfigError, match=r"^model.gan-checkpoint: .*/nothing: there is no such folder"
    ):
        check_checkpoint(settings, 3)
    with pytest.raises(ConfigError, match="no effect with classifier 'slices'"):
        classification.check(config("slices", gan_checkpoint=str(tmp_path)))
    check_checkpoint(config("slices"), 3)
    check_checkpoint(OF_GENERATION, 3)


# What is released


@pytest.mark.parametrize("name", ["slices", "gan-features"])
def test_released_model_can_be_judged_and_built_again(name: str, tmp_path: Path) -> None:
    settings = config(name)
    model = classification.build_model(settings, NORTH)
    released = classification.shared_state(model, settings)
    found = classification.evaluate(released, lambda split: data(), "test", settings, place=NORTH)
    assert found.count == 12 and 0 <= found.metrics["balanced_accuracy"] <= 1
    classification.save(tmp_path, released, released, settings, round_number=1, place=NORTH)
    again = classification.build_model(config(name, seed=9), NORTH)
    description = load_model(tmp_path, again)
    assert description["gan"] == settings.model.gan and description["gan_changes"] == SMALL_GAN
    np.testing.assert_array_equal(predicted(again, data()), predicted(model, data()))


# A site's own center


def test_a_site_is_centered_on_its_training_scans_whatever_is_judged() -> None:
    settings, asked = config("slices", adapt="center"), []
    model = classification.build_model(settings, NORTH)

    known = data(8, women=2)

    def load(split: str) -> Dataset:
        asked.append(split)
        return known if split == "train" else data()

    shared = classification.shared_state(model, settings)
    judged = classification.evaluate(shared, load, "val", settings, place=NORTH)
    assert asked == ["train", "val"]
    assert not any("center" in name for name in shared)
    survey(model, known, STUDY, CPU)
    assert judged.metrics != score(
        STUDY, data().labels, predicted(model, data())
    )  # leans to the men
    survey(model, known, STUDY, CPU, weights=np.array([2.0] * 2 + [2 / 3] * 6))
    found = score(STUDY, data().labels, predicted(model, data()))
    assert judged.metrics == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("augmented", ["all", "none"])
def test_training_is_centered_on_all_scans_of_the_site_between_the_sexes(
    augmented: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, seen = config("slices", adapt="center", augment=augmented), []
    model, classify = classification.build_model(settings, NORTH), SliceClassifier.classify
    known = data(8, women=2)
    features = features_of(model, known)
    midway = (features[:2].mean(0) + features[2:].mean(0)) / 2

    def watched(self, features: Tensor) -> Tensor:
        seen.append(self.head.at_site.mean.clone()) if self.training else None
        return classify(self, features)

    monkeypatch.setattr(SliceClassifier, "classify", watched)
    classification.fit(model, known, settings, place=NORTH, round_number=1, private={})
    assert len(seen) == settings.training.local_steps
    for center in seen:  # that on entry: what the weights make of the scans changes meanwhile
        torch.testing.assert_close(center, midway, atol=1e-5, rtol=1e-4)


def test_features_are_in_units_of_what_the_sites_have_found_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, used = config(), []
    model, classify = classification.build_model(settings, NORTH), DiscriminatorClassifier.classify
    features = features_of(model, data())
    own = features.var(0, correction=0)  # as many women as men
    own = (own + SD_FLOOR**2 * own.mean()).log()

    def watched(self, features: Tensor) -> Tensor:
        used.append(self.log_variance.clone())
        return classify(self, features)

    monkeypatch.setattr(DiscriminatorClassifier, "classify", watched)
    done = classification.fit(model, data(), settings, place=NORTH, round_number=1, private={})
    torch.testing.assert_close(torch.stack(used), own.expand(5, -1), atol=1e-5, rtol=1e-3)
    shared = classification.shared_state(model, settings)
    assert not any("variance" in name for name in done.private)
    shared["log_variance"] = torch.full_like(shared["log_variance"], 7.0)
    classification.load_shared(model, shared)  # what the server made of all sites' own
    used.clear()
    classification.fit(model, data(), settings, place=NORTH, round_number=2, private=done.private)
    assert torch.equal(torch.stack(used), torch.full((5, len(own)), 7.0))
    again = classification.shared_state(model, settings)["log_variance"]
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
    for frozen, times in ((True, 1), (False, 1 + settings.training.local_steps)):
        model = classification.build_model(settings, NORTH)
        model.frozen = frozen  # else nothing differs: no other weight has a gradient
        calls.clear()
        classification.fit(model, data(), settings, place=NORTH, round_number=1, private={})
        assert len(calls) == times
        trained.append(model.state_dict())
    for name, tensor in trained[0].items():
        torch.testing.assert_close(tensor, trained[1][name], atol=1e-5, rtol=1e-4)


def test_a_site_of_one_scan_can_be_trained_on() -> None:
    model, settings = classification.build_model(config(), NORTH), config(batch_size=1)
    done = classification.fit(model, data(1), settings, place=NORTH, round_number=1, private={})
    assert 0 <= done.metrics["loss"] < 10
    assert not model.log_variance.any()


@pytest.mark.parametrize("participants", [9, 12])
def test_a_hospital_tells_no_variance_of_features_over_few_people(participants: int) -> None:
    hospital = replace(NORTH, disclosure=Disclosure())
    model = classification.build_model(config(), hospital)
    received = model.log_variance.clone()
    classification.fit(
        model, data(participants), config(), place=hospital, round_number=1, private={}
    )
    if participants < 10:
        assert torch.equal(model.log_variance, received)
    else:
        assert len(model.log_variance.unique()) == 1
        assert not torch.equal(model.log_variance, received)


def test_augmentation_is_left_out_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, varied = [], variation.variation_of(STUDY)
    counting = replace(varied, augment=lambda images, _: calls.append(1) or images)
    monkeypatch.setattr("common.training.classifier.variation_of", lambda study: counting)
    for augmented, expected in (("none", 0), ("all", 5)):
        settings = config("slices", augment=augmented)
        model = classification.build_model(settings, NORTH)
        classification.fit(model, data(), settings, place=NORTH, round_number=1, private={})
        assert len(calls) == expected


def test_a_site_of_one_sex_has_no_center() -> None:
    men = data(8, women=0)
    for adapt in ("none", "center"):
        settings = config("slices", adapt=adapt)
        model = classification.build_model(settings, NORTH)
        train = partial(
            classification.fit, model, men, settings, place=NORTH, round_number=1, private={}
        )
        if adapt == "none":
            train()
        else:
            with pytest.raises(
                DataContractError, match="the training images are not of all classes"
            ):
                train()


def test_what_a_classifier_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.heights has no effect with classifier 'small'"):
        config("small", gan_changes="", heights="whole-head")


def test_a_whole_head_has_the_generated_heights_among_its_own(tiny_cohort, tmp_path) -> None:
    where = ("north", tiny_cohort / "north", "test")
    few, many = (
        classification.open_split(*where, config(heights=heights), tmp_path).images()
        for heights in ("generated", "whole-head")
    )
    assert many.shape[2] == len(WHOLE_HEAD_MM)
    place = [WHOLE_HEAD_MM.index(level) for level in LEVELS_MM]
    np.testing.assert_array_equal(many[:, :, place], few)


# Pictures


PICTURES = {
    "study": "skin-lesions",
    "model.classifier": "gan-features",
    "model.gan-changes": "resolution=16 channel-base=128 channel-max=8 z-dim=8 w-dim=8",
    "training.batch-size": 8,
    "training.learning-rate": 0.01,
    "training.augment": "none",
    "run.rounds": 1,
    "training.local-steps": 60,
}


def test_a_discriminators_features_tell_pictures_of_eight_classes_apart() -> None:
    settings = read_run_config(PICTURES)
    draws, labels = np.random.default_rng(0), np.arange(48) % 8
    images = draws.uniform(0.0, 0.4, (48, 3, 16, 16)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[label % 3, 8 * row : 8 * row + 8, 4 * column : 4 * column + 4] += 0.6
    pictures = dataset((255 * images).astype(np.uint8), labels)
    model = classification.build_model(settings, NORTH)
    classification.fit(model, pictures, settings, place=NORTH, round_number=1, private={})
    found = model(torch.from_numpy(pictures.images())).argmax(1).numpy()
    assert (found == labels).mean() > 0.8


@pytest.mark.parametrize("channels", [1, 3])
def test_sides_of_an_x_ray_are_told_apart_and_those_of_a_photograph_are_not(channels: int) -> None:
    study = f"""
name = "own"
images = {{ storage = "table", table = "own.csv", file = "path", channels = {channels} }}
label = {{ column = "grade", classes = ["none", "mild"] }}
"""
    settings = read_run_config({**PICTURES, "study": study})
    model = classification.build_model(settings, NORTH)
    pictures = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    same = torch.allclose(model(pictures.flip(-1)), model(pictures), atol=1e-5)
    assert same == (channels == 3)


def test_whole_head_is_refused_for_pictures() -> None:
    with pytest.raises(ConfigError, match=r"whole-head' is of a volume's slices.*leave it out"):
        read_run_config({**PICTURES, "model.heights": "whole-head"})


def test_pictures_may_be_larger_than_slices_of_scans() -> None:
    large = {"model.gan-changes": "resolution=512", "model.classifier": "gan-features"}
    assert read_run_config({**large, "study": "skin-lesions"})
    with pytest.raises(ConfigError, match="resolution = 512: accepted for slices of scans"):
        read_run_config(large)


def test_a_classifier_of_slices_is_refused_for_pictures() -> None:
    with pytest.raises(ConfigError, match="'slices' is for volumes"):
        read_run_config({"study": "skin-lesions", "model.classifier": "slices"})
