"""Which round's model is the result: chosen on validation scans, never on test scans."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

Model = TypeVar("Model")


@dataclass
class BestRound(Generic[Model]):
    """The round with the lowest validation loss so far, the earlier of two equal ones."""

    round_number: int = 0
    loss: float = math.inf
    model: Model | None = None

    def offer(self, round_number: int, loss: float, model: Model) -> bool:
        """Take a round's model if it is better; say whether it was."""
        if not loss < self.loss:
            return False
        self.round_number, self.loss, self.model = round_number, loss, model
        return True


def due(round_number: int, every: int, rounds: int) -> bool:
    """Tell whether a round is validated: every so many, and the last."""
    return round_number % every == 0 or round_number == rounds
