"""Means of what a GAN's training measures, over its iterations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from common.training.gan_state import GanTraining


@dataclass
class Means:
    """Sums and counts by name; tensors stay on their device until they are collected."""

    pending: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0

    def add(self, measured: Mapping[str, Tensor]) -> None:
        """Count what one iteration has measured."""
        self.steps += 1
        for name, value in measured.items():
            self.pending[name] = self.pending[name] + value if name in self.pending else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def collect(self) -> None:
        """Fetch all sums at once, which waits for a GPU a single time."""
        values = torch.stack([value.double() for value in self.pending.values()]).tolist()
        self.sums = dict(zip(self.pending, values, strict=True))

    def merge(self, other: Means) -> None:
        """Add what others have collected."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + other.counts[name]
        self.steps += other.steps
        self.seconds += other.seconds

    def export(self) -> dict[str, Tensor]:
        """Return all of it."""
        numbers = {
            **{f"sums/{name}": value for name, value in self.sums.items()},
            **{f"counts/{name}": count for name, count in self.counts.items()},
            **{"steps": self.steps, "seconds": self.seconds},
        }
        found = {f"pending/{name}": value for name, value in self.pending.items()}
        return found | {n: torch.from_numpy(np.array(one)) for n, one in numbers.items()}

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take over what :meth:`export` gave."""
        for path, tensor in state.items():
            attribute, _, name = path.partition("/")
            if attribute == "pending":
                self.pending[name] = tensor.to(device)
            elif name:
                getattr(self, attribute)[name] = tensor.item()
            else:
                setattr(self, attribute, tensor.item())

    def read(self, training: GanTraining) -> dict[str, float]:
        """Return the means, in the order of their names, and where the training is."""
        means = {name: self.sums[name] / self.counts[name] for name in sorted(self.sums)}
        images = self.steps * training.config.batch_size
        return {
            **means,
            "p": training.p,
            "images-per-second": images / max(self.seconds, 1e-9),
            "images-seen": float(training.images_seen),
        }
