"""The standardized head knows no gain, and a seed and a size decide the whole network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import dataset
from torch import nn

from common.data.dataset import Dataset
from common.models.classifier import (
    CLIP_SD,
    HEAD,
    SmallClassifier,
    StandardizeHead,
    build_classifier,
)
from common.studies.study import read_study
from common.training.classifier import predict

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
STUDY = read_study("brain-sex")
CLASSES = 3
NAMES = ["small", "efficientnet-b2"]
SMALL = {"image_size": 16, "classes": CLASSES, "seed": 0}
OF_TWO = SMALL | {"classes": 2}
standardize = StandardizeHead()


@pytest.fixture(scope="module")
def efficientnet():
    return build_classifier("efficientnet-b2", **SMALL)


def heads(count: int = 2, side: int = 12, seed: int = 0) -> torch.Tensor:
    """Bright noise in a ball, well above the threshold of a head, in air of exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 + 0.3 * torch.rand(count, 1, side, side, side, generator=generator)
    axis = torch.arange(side) - (side - 1) / 2
    ball = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < (side / 3) ** 2
    return images * ball


# The standardized head


@settings(deadline=None, max_examples=30)
@given(st.floats(0.5, 2.0))
def test_gain_is_taken_out(gain):
    images = heads()
    torch.testing.assert_close(
        standardize(gain * images), standardize(images), atol=2e-3, rtol=1e-3
    )


@settings(deadline=None, max_examples=30)
@given(st.floats(0.0, 0.4))
def test_offset_of_the_head_is_taken_out(offset):
    images = heads()
    shifted = images + offset * (images > HEAD)
    torch.testing.assert_close(standardize(shifted), standardize(images), atol=1e-3, rtol=1e-3)


def test_head_has_mean_zero_and_sd_one():
    images = heads()
    for image, out in zip(images, standardize(images), strict=True):
        inside = out[image > HEAD]
        assert inside.mean().abs() < 1e-4
        assert abs(inside.std(correction=0) - 1) < 1e-3


def test_air_is_exactly_the_mean_of_the_head():
    images = heads()
    faint = images + 0.9 * HEAD * (images == 0)  # noise in the air, below the threshold
    for one in (images, faint):
        assert torch.all(standardize(one)[one <= HEAD] == 0)


def test_faint_air_changes_nothing():
    images = heads()
    faint = images + 0.9 * HEAD * (images == 0)
    assert torch.equal(standardize(faint), standardize(images))


def test_outliers_are_clipped():
    images = heads()
    images[0, 0, 6, 6, 6] = 1e3
    out = standardize(images)
    assert out.max() == CLIP_SD
    assert out.min() >= -CLIP_SD


@pytest.mark.parametrize("value", [0.0, 0.01, 0.5, 1.0])
def test_image_without_contrast_is_all_zero(value):
    out = standardize(torch.full((1, 1, 6, 6, 6), value))
    assert torch.isfinite(out).all()
    assert out.abs().max() < 1e-3


def test_each_image_is_standardized_by_itself():
    images = heads(3) * torch.tensor([0.5, 1.0, 1.5]).view(3, 1, 1, 1, 1)
    together = standardize(images)
    alone = torch.cat([standardize(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_input_is_left_alone_and_nothing_is_learned():
    images = heads()
    before = images.clone()
    standardize(images)
    assert torch.equal(images, before)
    assert standardize.state_dict() == {}


# The networks


@pytest.mark.parametrize("size", [16, 17, 18, 19, 20, 31, 48, 128])
def test_small_network_takes_every_size_and_its_head_sees_no_more_of_large_ones(size):
    model = SmallClassifier(size, CLASSES)
    assert model.head.in_features == SmallClassifier(16, CLASSES).head.in_features
    logits = model(torch.rand(3, 1, size, size, size))
    assert logits.shape == (3, CLASSES)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("size", [16, 21])
def test_efficientnet_takes_small_sizes(efficientnet, size):
    efficientnet.eval()
    with torch.no_grad():
        logits = efficientnet(torch.rand(2, 1, size, size, size))
    assert logits.shape == (2, CLASSES)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_state_can_be_averaged(name, efficientnet):
    """No statistics of a batch, and no integers, which a weighted average makes into fractions."""
    model = efficientnet if name == "efficientnet-b2" else SmallClassifier(16, CLASSES)
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert list(model.buffers()) == []


@pytest.mark.parametrize("name", NAMES)
def test_prediction_depends_on_no_neighbour(name, efficientnet):
    model = efficientnet if name == "efficientnet-b2" else build_classifier(name, **SMALL)
    model.eval()
    images = heads(3, side=16)
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_seed_decides_the_weights():
    one, same = build_classifier("small", **SMALL), build_classifier("small", **SMALL)
    other = build_classifier("small", **SMALL | {"seed": 1})
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert not torch.equal(one.head.weight, other.head.weight)


def test_seed_decides_the_weights_of_the_large_network(efficientnet):
    same = build_classifier("efficientnet-b2", **SMALL).state_dict()
    assert all(
        torch.equal(weight, same[name]) for name, weight in efficientnet.state_dict().items()
    )


@pytest.mark.parametrize("before", [0, 1])
def test_weights_follow_no_earlier_draw_and_disturb_no_later_one(before):
    torch.manual_seed(before)
    expected = torch.rand(4)
    torch.manual_seed(before)
    model = build_classifier("small", **SMALL)
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(model.head.weight, build_classifier("small", **SMALL).head.weight)


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'resnet'"):
        build_classifier("resnet", **SMALL)


# Prediction


def images_of(images: torch.Tensor) -> Dataset:
    return dataset(images.numpy())


def predicted(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    return predict(model, images_of(images), STUDY, CPU)


@pytest.mark.parametrize("name", NAMES)
def test_mirrored_scans_get_the_same_prediction(name, efficientnet):
    model = efficientnet if name == "efficientnet-b2" else build_classifier(name, **SMALL)
    images = heads(4, side=16)
    np.testing.assert_array_equal(predicted(model, images), predicted(model, images.flip(2)))
    model.eval()
    with torch.no_grad():  # which the network alone does not give
        assert not torch.allclose(model(images), model(images.flip(2)), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_prediction_is_in_the_order_of_the_data_however_many(classes):
    """Probabilities of all classes; of two, that of the second, which says all."""
    model, images = build_classifier("small", **SMALL | {"classes": classes}), heads(70, side=16)
    together = predicted(model, images)
    alone = np.concatenate([predicted(model, image[None]) for image in images])
    assert together.shape == ((70,) if classes == 2 else (70, classes))
    assert together.dtype == np.float64
    assert ((together > 0) & (together < 1)).all()
    if classes > 2:
        np.testing.assert_allclose(together.sum(1), 1)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    # Images that look alike would prove nothing.
    assert len(set(np.round(together.reshape(70, -1)[:, 0], 9))) > 60


def test_prediction_of_two_classes_is_the_softmax_of_the_second():
    model, images = build_classifier("small", **OF_TWO), heads(4, side=16)
    with torch.no_grad():
        views = [model(one).double().softmax(1)[:, 1] for one in (images, images.flip(2))]
    np.testing.assert_allclose(predicted(model, images), sum(views) / 2, atol=1e-12)


def test_prediction_leaves_weights_and_data_alone():
    model, data = build_classifier("small", **SMALL), images_of(heads(3, side=16))
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    images = data.images()
    predict(model, data, STUDY, CPU)
    np.testing.assert_array_equal(data.images(), images)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])
