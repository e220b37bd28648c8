"""Stacks of a head's axial slices, for classifiers of slices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.config import RunConfig

if TYPE_CHECKING:
    from common.imaging.prepare import ImageSet


def load_stacks(site: str, data_dir: Path, split: str, config: RunConfig, cache: Path) -> ImageSet:
    """Cut each scan's slices, as generation does: images (N, L, R, R) in [0, 1]."""
    from common.imaging.bids import LABELS
    from common.imaging.prepare import ImageSet
    from common.imaging.slices import SEX, load_slices
    from common.tasks.generation_networks import gan_config

    heights, classes = heights_mm(config), [SEX[label] for label in LABELS]
    found = load_slices(
        site,
        data_dir,
        split,
        resolution=gan_config(config).resolution,
        cache=cache,
        levels_mm=heights,
    )
    levels = len(heights)
    return ImageSet(
        (found.images.reshape(-1, levels, *found.images.shape[2:]) + 1) / 2,
        np.array([classes.index(row["sex"]) for row in found.labels[::levels]], dtype=np.int64),
        found.ids[::levels],
    )


def heights_mm(config: RunConfig) -> tuple[float, ...]:
    """Return the heights of a head's slices, for classifiers of slices."""
    from common.imaging.slices import LEVELS_MM, WHOLE_HEAD_MM

    return {"generated": LEVELS_MM, "whole-head": WHOLE_HEAD_MM}[config.heights]
