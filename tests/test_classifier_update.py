"""How much of one scan a hostile server reads off the linear layer of one update.

The strongest case: one image, one step, no augmentation, and weights made for the purpose. The
convolutions pass voxels on instead of filtering, GroupNorm's offset keeps every ReLU open, and a
head of zeros with a confident bias makes the gradient so small that AdamW's first step,
g / (|g| + 1e-8), can be undone (after Geiping et al. 2020, "Inverting Gradients").
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config.run_config import RunConfig
from common.data.dataset import Dataset
from common.data.site_data import open_split
from common.models.classifier import StandardizeHead, build_classifier
from common.studies.study import read_study
from common.training.classifier import train

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, CLASSES = 24, 2
OPEN = 50.0  # GroupNorm's offset, in SDs
CONFIDENT = 11.5  # logits of ±11.5: a gradient of about 1e-10 times the features
EPSILON = 1e-8  # AdamW's
PHASES = list(itertools.product((1, 2), repeat=3))  # the kernel's taps at the 8 places of a stride


class LayerOverPlaces(nn.Module):
    """What the small classifier is not: a linear layer over every place of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            StandardizeHead(),
            nn.Conv3d(1, 16, kernel_size=3, stride=2, padding=1),
            nn.GroupNorm(1, 16),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(16 * (SIZE // 2) ** 3, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@pytest.fixture(scope="module")
def scan(tiny_cohort: Path, session_cache: Path) -> Dataset:
    study, where = read_study("brain-sex"), ("north", tiny_cohort / "north", "test")
    return open_split(study, *where, size=SIZE, cache=session_cache).subset([0])


def standardized(scan: Dataset) -> Tensor:
    return StandardizeHead()(torch.from_numpy(scan.images()))[0, 0]


@torch.no_grad()
def prepare_for_reading(model: nn.Module, label: int) -> None:
    """Give a classifier the weights of the attack."""
    convolutions = [part for part in model.features if isinstance(part, nn.Conv3d)]
    for layer in convolutions:
        layer.weight.zero_()
        layer.bias.zero_()
    for channel, tap in enumerate(PHASES):
        convolutions[0].weight[(channel, 0, *tap)] = 1.0
    # The second convolution has 64 pairs of a channel and a tap, and room for every other one.
    pairs = [(c, tap) for c, tap in itertools.product(range(8), PHASES) if (c + sum(tap)) % 2]
    for layer in convolutions[1:]:
        for channel, (source, tap) in enumerate(pairs):
            layer.weight[(channel, source, *tap)] = 1.0
    for part in model.features:
        if isinstance(part, nn.GroupNorm):
            part.weight.fill_(1.0)
            part.bias.fill_(OPEN)
    model.head.weight.zero_()
    model.head.bias.fill_(-CONFIDENT)
    model.head.bias[label] = CONFIDENT


def features_in_update(model: nn.Module, scan: Dataset) -> Tensor:
    """Return what the head saw of the scan, up to scale, from its weights before and after."""
    config = RunConfig.from_flower(
        {
            "training.local-steps": 1,
            "training.batch-size": 1,
            "training.augment": "none",
            "training.weight-decay": 0.0,
        }
        | {"data.size": SIZE, "run.rounds": 100_000}
    )
    before = model.head.weight.detach().clone()
    train(model, scan, config, device=torch.device("cpu"), seed=0, round_number=1, moments={})
    step = (before - model.head.weight.detach()).double() / config.training.learning_rate
    assert step.abs().max() < 0.999  # else only signs would be left
    return (EPSILON * step / (1 - step.abs()))[1 - int(scan.labels[0])]


def least_squares(features: Tensor, model: nn.Module) -> Tensor:
    """Return the image of least norm that has these features."""
    skipped = (StandardizeHead, nn.GroupNorm, nn.ReLU)
    linear = [part for part in model.features if not isinstance(part, skipped)]
    image = torch.zeros(1, 1, SIZE, SIZE, SIZE, requires_grad=True)
    out = nn.Sequential(*linear)(image)[0]  # with ReLU open, GroupNorm is a shift and a scale
    rows = [torch.autograd.grad(one, image, retain_graph=True)[0].flatten() for one in out]
    operator = torch.stack(rows).double()  # (features, voxels)
    # The shift is the same for all features and unknown: only their differences count.
    operator, told = operator - operator.mean(0), features - features.mean()
    dual = torch.linalg.lstsq(operator @ operator.T, told, driver="gelsd").solution
    return (operator.T @ dual).reshape(image.shape[2:])


def interleaved(features: Tensor) -> Tensor:
    """Put the eight places of a stride side by side."""
    side = SIZE // 2
    volume = torch.empty((2 * side,) * 3, dtype=features.dtype)
    for phase, (x, y, z) in zip(features.reshape(16, side, side, side), PHASES, strict=False):
        volume[x - 1 :: 2, y - 1 :: 2, z - 1 :: 2] = phase
    return volume


def low_pass(image: Tensor, cells: int) -> Tensor:
    """Return the means over a grid of cells, each spread over its cell."""
    means = F.adaptive_avg_pool3d(image[None, None], cells)
    return F.interpolate(means, size=image.shape)[0, 0]


def correlation(one: Tensor, other: Tensor) -> float:
    return float(np.corrcoef(one.flatten().numpy(), other.flatten().numpy())[0, 1])


def test_a_layer_over_places_gives_the_scan_away(scan):
    """The attack works: what it does not find elsewhere is not there for it."""
    model = LayerOverPlaces()
    prepare_for_reading(model, int(scan.labels[0]))
    found = interleaved(features_in_update(model, scan))
    assert correlation(found, standardized(scan)) > 0.9999


def test_the_small_classifiers_layer_gives_a_scan_away_no_finer_than_its_grid(scan):
    """Bound: what no more numbers of the scan show of it as means over a grid of 9 cells a side.

    The layer holds 27 cells x 32 channels of a scan, 864 numbers. The average of many brains, which
    anybody has, correlates with a scan more than such a grid does.
    """
    model = build_classifier("small", image_size=SIZE, classes=CLASSES, seed=0)
    prepare_for_reading(model, int(scan.labels[0]))
    truth = standardized(scan)
    features = features_in_update(model, scan)
    assert 9**3 <= len(features) < 10**3
    found = correlation(least_squares(features, model), truth)
    assert 0.25 < found < correlation(low_pass(truth, 9), truth) < 0.7  # about that of 3 cells
