"""Stacks of slices: places differ, a head by itself, frozen weights left alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from common.models.architecture import Architecture
from common.models.site_statistics import SD_FLOOR, layers_of_site, take_site_statistics
from common.models.slice_classifier import CELLS, DiscriminatorClassifier, SliceClassifier
from common.models.stylegan2 import build
from common.training.classifier import class_weights
from common.transport import broadcast, decode_update, encode_update, received

pytestmark = pytest.mark.usefixtures("one_thread")

LEVELS, SIDE, CLASSES = 3, 16, 3
TINY = Architecture(resolution=SIDE, channel_base=128, channel_max=8, z_dim=8, w_dim=8)
KINDS = ["slices", "gan-features"]
# By a classifier; the rest is a discriminator's.
LEARNED = ("head.weight", "head.bias", "log_variance")


def classifier(
    kind: str = "gan-features",
    seed: int = 0,
    architecture: Architecture = TINY,
    *,
    adapt: str = "none",
) -> torch.nn.Module:
    torch.manual_seed(seed)
    if kind == "slices":
        model = SliceClassifier(LEVELS, SIDE, CLASSES, width=4)
    else:
        model = DiscriminatorClassifier(architecture, LEVELS, CLASSES)
    take_site_statistics(model, adapt)
    return model


def survey(model: torch.nn.Module, features: torch.Tensor, weights: torch.Tensor) -> None:
    (layer,) = layers_of_site(model)
    layer.begin(len(features))
    with torch.no_grad():
        model.classify(features)
    layer.end(weights, len(features))


def stacks(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Bright noise in a disc, in air of exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 + 0.6 * torch.rand(count, 1, LEVELS, SIDE, SIDE, generator=generator)
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    return images * (axis[:, None] ** 2 + axis**2 < (SIDE / 3) ** 2)


def trained_discriminator(architecture: Architecture = TINY, seed: int = 5) -> torch.nn.Module:
    """A discriminator with biases that are not those of the start."""
    discriminator = build(architecture, seed)[1]
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return discriminator


@pytest.mark.parametrize("kind", KINDS)
def test_a_logit_a_class_which_depends_on_that_head_alone(kind: str) -> None:
    model, images = classifier(kind), stacks()
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    assert together.shape == (4, CLASSES)
    assert len(set(np.round(together[:, 0].tolist(), 5))) == 4
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_heights_and_places_are_told_apart(kind: str) -> None:
    model, images = classifier(kind), stacks(1)
    with torch.no_grad():
        straight = model(images)
        for other in (images.flip(2), images.flip(3), images.roll(1, 4)):
            assert not torch.allclose(model(other), straight, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_heads_sides_are_told_apart_by_the_small_network_alone(kind: str) -> None:
    model, images = classifier(kind), stacks(33)  # more than are computed at once
    with torch.no_grad():
        same = torch.allclose(model(images.flip(4)), model(images), atol=1e-4)
        assert same == (kind != "slices")
        features = model.features_of(images)
        both = (model.represent(images) + model.represent(images.flip(4))) / 2
    torch.testing.assert_close(features, both, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.features_of(images.flip(4)), features, atol=1e-5, rtol=1e-4)


def test_gain_of_a_scan_is_taken_out_by_the_small_network() -> None:
    model, images = classifier("slices"), stacks()
    with torch.no_grad():
        torch.testing.assert_close(model(0.7 * images), model(images), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("resolution", [16, 32])
def test_features_are_the_first_layers_activations_in_cells_slice_by_slice(resolution: int) -> None:
    fine = replace(TINY, resolution=resolution)
    model = classifier(architecture=fine).double()
    discriminator = trained_discriminator(fine).double()
    model.take_over(discriminator)
    scale = resolution // SIDE
    images = torch.nn.functional.interpolate(stacks(2), scale_factor=(1, scale, scale)).double()
    with torch.no_grad():
        found = model.represent(images)
        for image, one in zip(images, found, strict=True):
            sides = []
            for side in (image, image.flip(-1)):
                x = discriminator.from_image(2 * side[0][:, None] - 1)  # a batch of the slices
                size = x.shape[3] // CELLS
                sides.append(x.unflatten(3, (CELLS, size)).unflatten(2, (CELLS, size)).mean((3, 5)))
            x = (sides[0] + sides[1])[..., : CELLS // 2] / 2  # the rest is its mirror image
            expected = ((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()).flatten()
            # Frozen weights are rounded to float16, whose relative error is 5e-4 at most.
            torch.testing.assert_close(one, expected, atol=2e-2, rtol=0)


def test_linear_layer_is_the_same_whatever_discriminator_is_below() -> None:
    fresh, warm = classifier(), classifier()
    warm.take_over(trained_discriminator())
    assert torch.equal(fresh.head.weight, warm.head.weight)
    assert not torch.equal(fresh.from_image.weight, warm.from_image.weight)


def test_frozen_weights_get_no_gradient() -> None:
    model = classifier()
    model(stacks()).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("head."), name


@pytest.mark.parametrize("votes", [(1, 1, 1), (160, 96, 16), (7, 0.3, 1 / 3)])
def test_average_of_equal_frozen_weights_is_the_same_weights_again(votes) -> None:
    """Averaged as Flower does it, in float32, time and again; the last bits would drift."""
    model = classifier()
    model.take_over(trained_discriminator())
    start = {k: v.clone() for k, v in model.state_dict().items() if k not in LEARNED}
    shares = np.float32(np.array(votes) / sum(votes))
    drifted = False
    for _ in range(5):
        state = model.state_dict()
        averaged = {
            k: torch.from_numpy(sum(share * v.numpy() for share in shares))
            for k, v in state.items()
        }
        drifted |= any(not torch.equal(averaged[k], v) for k, v in start.items())
        model.load_state_dict(averaged)
        for name, tensor in start.items():
            assert torch.equal(model.state_dict()[name], tensor), name
    assert drifted or votes == (1, 1, 1)  # else there was nothing to protect them from


def test_frozen_weights_travel_in_float16_unharmed_and_the_linear_layer_is_not_rounded() -> None:
    model = classifier()
    model.take_over(trained_discriminator())
    model.log_variance.copy_(model.log_variance_of(model.features_of(stacks()), torch.ones(4)))
    for name, tensor in model.state_dict().items():
        whole = torch.equal(tensor.half().float(), tensor)
        assert whole == (name not in LEARNED), name


def test_labels_and_latents_of_the_gan_do_not_matter() -> None:
    other = replace(TINY, labels=(("sex", ("female", "male")),), z_dim=4, mapping_layers=3)
    model = classifier()
    model.take_over(trained_discriminator(other))
    names = set(model.state_dict())
    assert not [name for name in names if "embed" in name or "dense" in name or "output" in name]
    assert names == set(classifier(architecture=other).state_dict())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resolution": 32}, "resolution 32 instead of 16"),
        ({"channel_max": 4}, "channel-max 4 instead of 8"),
        ({"channel_base": 64}, "channel-base 64 instead of 128"),
    ],
)
def test_other_networks_are_refused_with_the_way_out(change, said: str) -> None:
    model = classifier()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ConfigError, match=said) as raised:
        model.take_over(trained_discriminator(replace(TINY, **change)))
    assert "model.gan-changes" in str(raised.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_discriminator_that_was_never_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.share = 'both'"):
        classifier().take_over(build(TINY, 0)[1])


def test_a_coloured_picture_is_seen_with_all_its_channels() -> None:
    colour = replace(TINY, channels=3)
    torch.manual_seed(0)
    model = DiscriminatorClassifier(colour, 1, CLASSES)
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(4, 3, SIDE, SIDE, generator=generator)
    assert model(pictures).shape == (4, CLASSES)
    with torch.no_grad():
        alone = torch.cat([model(picture[None]) for picture in pictures])
        torch.testing.assert_close(model(pictures), alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model(pictures.flip(3)), alone, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(model(pictures.flip(1)), alone, atol=1e-4)  # red is not blue


@pytest.mark.parametrize("kind", KINDS)
def test_centered_on_its_site_a_shift_of_all_features_changes_nothing(kind: str) -> None:
    images, weights = stacks(6), torch.tensor([1.0, 1, 1, 1, 2, 2])
    model = classifier(kind, adapt="center")
    survey(model, model.features_of(images), weights)
    represent, before = model.represent, model(images)
    model.represent = lambda stacks: represent(stacks) + 3.0  # another scanner, in all its scans
    assert not torch.allclose(model(images), before, atol=1e-2)
    survey(model, model.features_of(images), weights)
    torch.testing.assert_close(model(images), before, atol=1e-4, rtol=1e-4)


def test_the_variance_of_a_site_is_its_scans_about_their_center() -> None:
    model, weights = classifier(), torch.tensor([1.0, 1, 1, 1, 2, 2])
    features = model.features_of(stacks(6))
    found = model.log_variance_of(features, weights)
    twice = torch.cat([features, features[4:]]).double()  # as often as each one counts
    expected = twice.var(0, correction=0)
    expected += SD_FLOOR**2 * expected.mean()
    torch.testing.assert_close(found.double().exp(), expected, atol=1e-6, rtol=1e-3)
    # It is the training's to say when it is taken, and the federation's to average.
    assert torch.equal(model.state_dict()["log_variance"], torch.zeros(len(found)))
    assert "log_variance" not in classifier("slices").state_dict()


def test_a_features_unit_is_its_sd_and_one_that_never_varies_does_no_harm() -> None:
    model, images = classifier(adapt="center"), stacks()
    features, weights = model.features_of(images), torch.ones(4)
    features[:, 0] = 0.3
    with torch.no_grad():
        model.log_variance.copy_(model.log_variance_of(features, weights))
        survey(model, features, weights)
        widest = features.var(0).argmax()
        model.head.weight.zero_()
        model.head.weight[0, 0] = model.head.weight[1, widest] = 1
        model.head.bias.zero_()
        scaled = model.classify(features)
        torch.testing.assert_close(scaled[:, 0], torch.zeros(4), atol=1e-3, rtol=0)
        assert scaled[:, 1].square().mean().item() == pytest.approx(1, rel=1e-2)
        # One scan alone has no variance, and is left in the unit that it has.
        alone = model.log_variance_of(features[:1], weights[:1])
    assert torch.equal(alone, torch.zeros(len(alone)))


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
def test_a_variance_survives_its_way_to_the_server_and_back(encoding: str) -> None:
    """Variances span orders of magnitude; a rounding of them as they are would lose the least."""
    model = classifier()
    start = {"log_variance": model.log_variance.clone()}
    found = model.log_variance_of(model.features_of(stacks(8)), torch.ones(8))
    assert found.max() - found.min() > math.log(100)
    sent, _ = encode_update({"log_variance": found}, start, {}, encoding)
    averaged = decode_update(sent, start, encoding)
    kept = received(broadcast(averaged, encoding, start), start if encoding == "int8" else None)
    torch.testing.assert_close(kept["log_variance"], found, atol=0.1, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sites_center_is_no_part_of_the_state_and_must_be_told(kind: str) -> None:
    plain, model = classifier(kind), classifier(kind, adapt="center")
    with pytest.raises(RuntimeError, match="survey"):
        model(stacks())
    survey(model, model.features_of(stacks()), torch.ones(len(stacks())))
    assert model(stacks()).isfinite().all()
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_a_center_lies_midway_between_the_sexes_whatever_a_sites_mix() -> None:
    """Only then does a site with ten men and six women decide where one with eight of each does."""
    model = classifier(adapt="center")
    features = model.features_of(stacks(16))
    labels = np.array([1] * 10 + [0] * 6)
    survey(model, features, torch.from_numpy(class_weights(labels, 2)[labels]))
    midway = (features[:10].mean(0) + features[10:].mean(0)) / 2
    torch.testing.assert_close(model.head.at_site.mean, midway, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(features.mean(0), midway, atol=1e-3)
