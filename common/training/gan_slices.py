"""Training slices on the device, in an order that follows from the seed alone."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError
from common.models.architecture import Architecture, encode_labels
from common.seeding import derive_seed
from common.training.gan_config import GanConfig

if TYPE_CHECKING:
    from common.data.dataset import Dataset

PART = 256  # images in memory at once


class RealSlices:
    """What D sees of the data: each slice, or each slice and its mirror image, once an epoch.

    Parameters
    ----------
    data : Dataset
    architecture : Architecture
        Which labels of the slices are used.
    config : GanConfig
        ``batch_size`` and ``mirror``.
    device : torch.device
        Where batches go.

    Raises
    ------
    ConfigError
        If there is no slice, or resolution, channels or labels do not fit the architecture.
    """

    def __init__(
        self, data: Dataset, architecture: Architecture, config: GanConfig, device: torch.device
    ) -> None:
        side, channels = architecture.resolution, architecture.channels
        if not len(data) or data.shape != (channels, side, side):
            raise ConfigError(
                f"{len(data)} training images of shape {data.shape}: accepted are 1 or more of "
                f"({channels}, {side}, {side}), as the networks were built for"
            )
        kinds = [kind for kind, _ in architecture.labels]
        rows = [{kind: row[kind] for kind in kinds if kind in row} for row in data.conditions]
        self.data, self.device = data, device
        self.labels = encode_labels(architecture, rows).to(device)
        self.batch_size, self.mirror = config.batch_size, config.mirror

    def batch(self, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return the batch of an iteration, whatever came before in this process.

        Returns
        -------
        images : Tensor
            (B, C, R, R).
        labels : Tensor
            (B, label_dim).
        """
        count = len(self.data)
        size = 2 * count if self.mirror else count
        place = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(place, size)
        chosen = np.concatenate(
            [_order(seed, int(epoch), size)[within[epochs == epoch]] for epoch in np.unique(epochs)]
        )
        index = chosen % count
        images = torch.from_numpy(self.data.take(index) * 2 - 1).to(self.device)
        if self.mirror:
            mirrored = torch.from_numpy(chosen >= count).to(images.device)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images, self.labels[torch.from_numpy(index).to(self.device)]

    @cached_property
    def spread(self) -> float:
        """Mean squared distance of two slices that share all labels: twice their variance.

        Of the slices as they are, without their mirror images. 0 where no two slices share their
        labels: then nothing is known of it.
        """
        groups = np.zeros(len(self.data), dtype=np.int64)
        if self.labels.shape[1]:
            groups = self.labels.unique(dim=0, return_inverse=True)[1].cpu().numpy()
        squares = pairs = 0.0
        for group in range(int(groups.max()) + 1):
            mine = np.flatnonzero(groups == group)
            parts = np.split(mine, range(PART, len(mine), PART))
            mean = sum(self._read(part).sum(0) for part in parts) / len(mine)
            squares += float(sum((self._read(part) - mean).square().sum() for part in parts))
            pairs += len(mine) - 1  # degrees of freedom
        return 2 * squares / max(pairs, 1)

    def _read(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(self.data.take(index)).double() * 2 - 1

    def draw_labels(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw labels for fakes, as often as the slices have them: (count, label_dim)."""
        device = self.labels.device
        rows = torch.randint(len(self.labels), (count,), generator=generator, device=device)
        return self.labels[rows]


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    draws = np.random.default_rng(derive_seed(seed, epoch=epoch, purpose="order of slices"))
    return draws.permutation(size)
