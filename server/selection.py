"""Which round's model is the result: chosen on validation scans, never on test scans."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Model = TypeVar("Model")


def pooled(metrics: Mapping[str, Mapping[str, float]], name: str, weight: str) -> float:
    """Mean of a metric over sites, weighted by their examples."""
    total = sum(values[weight] for values in metrics.values())
    return sum(values[name] * values[weight] for values in metrics.values()) / total


@dataclass
class BestRound(Generic[Model]):
    """The round with the lowest validation loss so far, the earlier of two equal ones.

    The loss, not an accuracy: on a few dozen validation scans accuracy moves in steps of percents
    and ties.
    """

    round_number: int = 0
    loss: float = math.inf
    model: Model | None = None

    def offer(self, round_number: int, loss: float, model: Model) -> bool:
        """Take a round's model if it is better; say whether it was."""
        if not loss < self.loss:
            return False
        self.round_number, self.loss, self.model = round_number, loss, model
        return True
