"""A training small enough for tests: 16 pixels, a few channels, slices with a known content."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from tiny import dataset

from common.data.dataset import Dataset
from common.models.architecture import Architecture
from common.training.gan import GanTraining
from common.training.gan_config import GanConfig, label_values

TINY = GanConfig(
    resolution=16,
    channel_base=128,
    channel_max=16,
    z_dim=16,
    w_dim=16,
    batch_size=4,
    kimg=0.04,
    ada_kimg=1.0,
    augment_p=0.2,
    log_every=5,
    device="cpu",
)


@cache
def toy_slices(count: int = 10, *, channels: int = 1, seed: int = 0) -> Dataset:
    """Blobs off the centre, larger in men; every third slice is a woman's, sites alternate."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    sexes = ["F" if i % 3 == 0 else "M" for i in range(count)]
    images = np.empty((count, channels, 16, 16), np.float32)
    for image, sex in zip(images, sexes, strict=True):
        centre = draws.normal(0, 0.1, 2) + (0, 0.3)
        width = {"F": 0.3, "M": 0.6}[sex]
        image[:] = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / width**2)
    conditions = [{"sex": s, "site": ("north", "south")[i % 2]} for i, s in enumerate(sexes)]
    return dataset(images, None, [f"sub-secret{i}" for i in range(count)], conditions)


def as_seen(data: Dataset) -> np.ndarray:
    """Images as the networks take them, in [-1, 1]."""
    return data.images() * 2 - 1


def architecture_of(config: GanConfig) -> Architecture:
    return config.architecture(label_values(toy_slices().conditions))


def start(*, seed: int = 0, **changes: Any) -> GanTraining:
    """Begin a tiny training; changes by field name."""
    config = TINY.with_changes({key.replace("_", "-"): v for key, v in changes.items()})
    return GanTraining.start(config, architecture_of(config), seed=seed, device="cpu")
