"""Where a classifier looks: maps, numbers of attention, shortcuts and nearest cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from common.errors import ConfigError
from common.explanation import saliency as maps_of
from common.explanation.attention import Attention, attention, mean_ratio, mean_value
from common.explanation.neighbours import Reference, features_of, precision_at
from common.explanation.saliency import METHODS, log_odds, saliency
from common.explanation.shortcuts import influence, judge, without
from common.models.architecture import Architecture
from common.models.classifier import SmallClassifier, build_classifier
from common.models.efficientnet import PictureEfficientNet
from common.models.picture_classifier import SmallPictureClassifier
from common.models.slice_classifier import DiscriminatorClassifier, SliceClassifier

pytestmark = pytest.mark.usefixtures("one_thread")


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def seeded(build, *args, **options) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args, **options).eval()


def of_cells() -> DiscriminatorClassifier:
    sizes = {"resolution": 16, "channels": 3, "channel_max": 16}
    return seeded(DiscriminatorClassifier, Architecture(**sizes), 1, 2, mirrored=True)


class Quadrant(nn.Module):
    """Tells two classes apart by the mean of the upper left quadrant."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        mean = x[..., :half, :half].flatten(1).mean(1)
        return torch.stack([0 * mean, 10 * self.weight * mean], dim=1)


# Maps


def test_occlusion_of_a_classifier_of_one_quadrant_lies_there():
    bright = 0.2 * torch.ones(2, 1, 16, 16)
    bright[..., :8, :8] = 0.9
    found = saliency("occlusion", Quadrant(), bright, torch.ones(2, dtype=torch.long))
    near = np.zeros((16, 16), bool)
    near[:10, :10] = True  # a window on its edge reaches half of its width beyond
    share = attention(found, np.stack([near] * 2)).share
    np.testing.assert_allclose(share, 1, atol=1e-6)


def looks_at_one_corner(model: nn.Module, cells: tuple[int, ...]) -> nn.Module:
    """Zero the head's weights everywhere but at the first half of the last two axes."""
    weight = model.head.weight.data.view(2, -1, *cells)
    weight[..., -(-cells[-2] // 2) :, :] = 0
    weight[..., -(-cells[-1] // 2) :] = 0
    return model


@pytest.mark.parametrize(
    ("model", "cells", "shape"),
    [
        (seeded(SliceClassifier, 3, 16, 2), (8, 8), (1, 3, 16, 16)),
        (seeded(SmallClassifier, 24, 2), (3, 3, 3), (1, 24, 24, 24)),
    ],
    ids=["slices", "volumes"],
)
def test_gradcam_of_a_head_that_sees_one_corner_lies_there(model, cells, shape):
    model = looks_at_one_corner(model, cells)
    found = saliency("gradcam", model, images(3, *shape), torch.tensor([0, 1, 1]))
    assert found.shape == (3, *shape[1:])
    corner = np.zeros(found.shape, bool)
    # Cells of features, of which the head's cells are means, and interpolation reach further.
    reach = shape[-1] // 2 + (2 if cells == (8, 8) else 6)
    corner[..., :reach, :reach] = True
    assert found.sum() > 0
    np.testing.assert_allclose(attention(found, corner).share, 1, atol=1e-6)


def test_gradcam_is_monais_where_the_head_sees_means(monkeypatch):
    from monai.visualize import GradCAM

    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = seeded(nn.Sequential, *layers, nn.Linear(4, 3))
    monkeypatch.setattr(maps_of, "_layer_of", lambda m, _: maps_of._Layer(m[1], 1))
    pictures = images(2, 3, 8, 8)
    theirs = GradCAM(model, "1", postprocessing=lambda x: x)(pictures, class_idx=2)
    ours = saliency("gradcam", model, pictures, torch.tensor([2, 2]))
    np.testing.assert_allclose(ours, theirs[:, 0].detach() * 1.0, atol=1e-6)


def test_gradcam_of_an_efficientnet_is_its_class_activation_map():
    model = seeded(PictureEfficientNet, "efficientnet-b0", 3, 2, pretrained=False)
    pooled = []
    model.network._avg_pooling.register_forward_hook(lambda _, given, __: pooled.append(given[0]))
    found = saliency("gradcam", model, images(1, 3, 224, 224), torch.tensor([1]))
    cells = (model.head.weight[1][:, None, None] * pooled[0][0]).sum(0).clamp(min=0) / 49
    # Cell k lies at pixel 32 k.
    np.testing.assert_allclose(found[0, ::32, ::32], cells.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (seeded(SmallPictureClassifier, 3, 4), (3, 32, 32)),
        (seeded(SliceClassifier, 3, 16, 2), (1, 3, 16, 16)),
        (seeded(SmallClassifier, 16, 2), (1, 16, 16, 16)),
    ],
    ids=["pictures", "slices", "volumes"],
)
def test_a_map_does_not_depend_on_its_batch(method, model, shape, monkeypatch):
    given, classes = images(3, *shape), torch.tensor([0, 1, 1])
    together = saliency(method, model, given, classes)
    monkeypatch.setattr(maps_of, "BATCH", 1)
    alone = saliency(method, model, given, classes)
    assert together.shape == (3, *shape[1:])
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 32, 32, 32)], ids=["pictures", "volumes"])
def test_a_map_of_an_efficientnet_does_not_depend_on_its_batch(shape):
    if len(shape) == 3:
        model = seeded(PictureEfficientNet, "efficientnet-b0", 3, 2, pretrained=False)
    else:
        model = build_classifier("efficientnet-b0", image_size=32, classes=2, seed=0).eval()
    given, classes = images(2, *shape), torch.tensor([0, 1])
    together = saliency("gradcam", model, given, classes)
    alone = [saliency("gradcam", model, given[k : k + 1], classes[k : k + 1])[0] for k in (0, 1)]
    assert together.shape == (2, *shape[1:])
    np.testing.assert_allclose(together, alone, atol=1e-4 * np.abs(alone).max())


def test_maps_leave_the_classifier_and_the_images_alone():
    model, given = seeded(SmallPictureClassifier, 3, 4), images(2, 3, 16, 16)
    before = given.clone()
    for method in METHODS:
        saliency(method, model, given, torch.tensor([0, 1]))
    assert torch.equal(given, before)
    assert not given.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.features._forward_hooks


def test_a_frozen_classifier_is_explained_as_well():
    model, given = seeded(SmallPictureClassifier, 3, 4), images(2, 3, 32, 32)
    whole = saliency("gradcam", model, given, torch.tensor([0, 1]))
    frozen = saliency("gradcam", model.requires_grad_(False), given, torch.tensor([0, 1]))
    np.testing.assert_array_equal(whole, frozen)


def test_a_classifier_of_cells_has_occlusion_only():
    model, given = of_cells(), images(2, 3, 16, 16)
    with pytest.raises(ConfigError, match="--method occlusion"):
        saliency("gradcam", model, given, torch.tensor([0, 1]))
    assert saliency("occlusion", model, given, torch.tensor([0, 1])).shape == (2, 16, 16)


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="gradcam, occlusion"):
        saliency("lime", Quadrant(), images(1, 1, 16, 16), torch.tensor([0]))


@given(arrays.arrays(np.float64, (3, 4), elements=st.floats(-20, 20)))
@settings(max_examples=30, deadline=None)
def test_log_odds_are_those_of_the_probability(logits):
    logits = torch.from_numpy(logits)
    p = logits.softmax(1)[:, 1]
    np.testing.assert_allclose(
        log_odds(logits, torch.ones(3, dtype=torch.long)).sigmoid(), p, rtol=1e-6, atol=1e-12
    )


# Numbers

MASK = np.zeros((1, 8, 8), bool)
MASK[:, :4, :4] = True


def test_even_attention_has_no_preference():
    found = attention(np.ones((1, 8, 8)), MASK)
    assert found.ratio == pytest.approx([1])
    assert found.auroc == pytest.approx([0.5])


def test_attention_on_the_mask_alone_is_all_there():
    found = attention(MASK.astype(float), MASK)
    assert (found.share[0], found.ratio[0], found.auroc[0]) == pytest.approx((1, 4, 1))


@given(
    arrays.arrays(np.float64, (1, 8, 8), elements=st.floats(-1, 1, width=16)),
    st.floats(0.01, 100),
)
@settings(max_examples=30, deadline=None)
def test_attention_does_not_depend_on_the_scale_of_a_map(heat, factor):
    one, other = attention(heat, MASK), attention(factor * heat, MASK)
    np.testing.assert_allclose(one.share, other.share, rtol=1e-6)
    np.testing.assert_allclose(one.auroc, other.auroc, rtol=1e-6)


@pytest.mark.parametrize("mask", [np.zeros_like(MASK), np.ones_like(MASK)], ids=["empty", "all"])
def test_a_mask_that_tells_no_place_has_no_numbers(mask):
    found = attention(np.ones((1, 8, 8)), mask)
    assert np.isnan([found.area, found.share, found.auroc]).all()


def test_what_lies_outside_of_the_image_does_not_count():
    within = np.zeros_like(MASK)
    within[:, :4] = True
    heat = np.where(within, 1.0, 50.0)
    found = attention(heat, MASK, within)
    assert (found.area[0], found.ratio[0]) == pytest.approx((0.5, 1))


def test_an_interval_of_a_ratio_needs_five_persons():
    area, share = np.full(8, 0.25), np.linspace(0.2, 0.6, 8)
    found, rng = Attention(area, share, share), np.random.default_rng
    assert mean_ratio(found, [0, 0, 1, 1, 2, 2, 3, 3], rng(0))["low"] is None
    told = mean_ratio(found, range(8), rng(0))
    assert told["low"] < told["mean"] < told["high"]
    assert told["mean"] == pytest.approx(1.6)
    assert told == mean_ratio(found, range(8), rng(0))


def test_means_leave_out_images_without_a_value():
    told = mean_value(np.array([1.0, np.nan, 3.0]), ["a", "b", "c"], np.random.default_rng(0))
    assert (told["images"], told["persons"], told["mean"]) == (2, 2, 2.0)
    nothing = mean_value(np.array([np.nan]), ["a"], np.random.default_rng(0))
    assert (nothing["images"], nothing["mean"]) == (0, None)


# Shortcuts


def test_covering_changes_nothing_outside_of_the_mask_nor_an_even_picture():
    given, mask = images(1, 3, 16, 16), np.zeros((1, 16, 16), bool)
    mask[:, 4:8, 4:8] = True
    covered = without(given, mask)
    assert torch.equal(
        covered[..., ~torch.from_numpy(mask[0])], given[..., ~torch.from_numpy(mask[0])]
    )
    even = torch.full((1, 3, 16, 16), 0.6)
    np.testing.assert_allclose(without(even, mask), even, atol=1e-6)


def test_influence_is_of_the_place_that_decides():
    given = 0.2 * torch.ones(1, 1, 16, 16)
    given[..., 2:6, 2:6] = 0.9
    one = torch.ones(1, dtype=torch.long)
    decisive, other = np.zeros((2, 1, 16, 16), bool)
    decisive[:, 2:6, 2:6] = True
    other[:, 10:14, 10:14] = True
    assert influence(Quadrant(), given, one, decisive)[0] > 0
    assert influence(Quadrant(), given, one, other)[0] < 0
    assert np.isnan(influence(Quadrant(), given, one, np.zeros_like(other)))


def lesions(count: int, ruled: str, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Draw pictures of two classes, rulers on all of class 1 (``shortcut``) or on any half.

    Class 1 is redder in the middle, faintly if there is a shortcut to be taken instead.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 2)
    pictures = 0.75 + 0.03 * rng.standard_normal((count, 3, 32, 32))
    y, x = np.mgrid[:32, :32]
    masks = np.zeros((count, 32, 32), bool)
    for k, label in enumerate(labels):
        blob = np.exp(-((x - 15.5) ** 2 + (y - 15.5) ** 2) / 50)
        redness = 0.03 if ruled == "shortcut" else 0.3
        pictures[k] -= (0.25 + redness * label * np.array([0, 1, 1]))[:, None, None] * blob
        if label if ruled == "shortcut" else rng.random() < 0.5:
            masks[k, 27:31, rng.integers(4) :: 4] = True
            pictures[k, :, masks[k]] = 0.25
    given = torch.from_numpy(pictures.clip(0, 1).astype(np.float32))
    return given, torch.from_numpy(labels), masks


@pytest.fixture(scope="module", params=["shortcut", "fair"])
def ruled(request):
    """A classifier of pictures with rulers, and whether they are its shortcut."""
    model = seeded(SmallPictureClassifier, 3, 2, width=8).train()
    given, labels, _ = lesions(96, request.param, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        batch = torch.arange(32) + 32 * (step % 3)
        loss = nn.functional.cross_entropy(model(given[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return request.param, model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_trained_on_a_planted_ruler_is_caught_and_another_is_not(method, ruled):
    kind, model = ruled
    given, labels, masks = lesions(48, kind, 1)
    predicted = model(given).argmax(1)
    assert (predicted == labels).float().mean() > 0.9  # it has learned one or the other
    found = attention(saliency(method, model, given, predicted), masks)
    moved = influence(model, given, predicted, masks)
    told = judge(found, moved, range(48), np.random.default_rng(0))
    assert told["images"] == masks.any((1, 2)).sum()
    assert told["shortcut"] is (kind == "shortcut"), told


def test_too_few_persons_are_no_proof():
    sure = Attention(np.full(4, 0.1), np.full(4, 0.9), np.full(4, 0.99))
    told = judge(sure, np.ones(4), range(4), np.random.default_rng(0))
    assert told["shortcut"] is None
    assert told["ratio"]["mean"] == pytest.approx(9)


# Nearest cases


def test_an_image_is_its_own_nearest_case():
    rng = np.random.default_rng(0)
    reference = Reference(rng.standard_normal((20, 6)), np.arange(20) % 2)
    order, far = reference.nearest(reference.features[3:5], 3)
    assert order[:, 0].tolist() == [3, 4]
    np.testing.assert_allclose(far[:, 0], 0, atol=1e-12)
    assert (np.diff(far, axis=1) >= 0).all()


@given(arrays.arrays(np.float64, 6, elements=st.floats(0.01, 100)))
@settings(max_examples=20, deadline=None)
def test_the_scale_of_a_feature_does_not_matter(scale):
    rng = np.random.default_rng(0)
    features, queries = rng.standard_normal((20, 6)), rng.standard_normal((4, 6))
    _, one = Reference(features, np.zeros(20, int)).nearest(queries, 20)
    _, other = Reference(features * scale, np.zeros(20, int)).nearest(queries * scale, 20)
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_cases_that_do_not_vary_are_all_as_near():
    order, far = Reference(np.ones((5, 3)), np.zeros(5, int)).nearest(np.zeros((2, 3)), 4)
    assert order.shape == (2, 4)
    assert (far == 0).all()


def test_precision_is_one_of_classes_apart_and_chance_of_classes_alike():
    rng = np.random.default_rng(0)
    labels, asked = np.arange(40) % 2, np.arange(400) % 2
    apart = Reference(rng.standard_normal((40, 3)) + 20 * labels[:, None], labels)
    precision, chance = precision_at(apart, 20.0 * asked[:, None] + np.zeros((400, 3)), asked, 5)
    assert (precision == 1).all()
    assert (chance == 0.5).all()
    alike = Reference(rng.standard_normal((40, 3)), labels)
    precision, _ = precision_at(alike, rng.standard_normal((400, 3)), asked, 5)
    assert precision.mean() == pytest.approx(0.5, abs=0.1)  # 4 standard errors of independent ones


def test_features_of_an_image_and_its_mirror_image_are_the_same():
    model, given = seeded(SmallPictureClassifier, 3, 4), images(3, 3, 32, 32)

    def views(x):
        return [x, x.flip(-1)]

    one, other = features_of(model, given, views), features_of(model, given.flip(-1), views)
    assert one.shape == (3, 128)
    np.testing.assert_allclose(one, other, atol=1e-5)
