"""When a training ends before its last round: a validation metric has got no better for a while."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.config.run_config import RunConfig
    from common.selection import Judged

LOSS = "loss"  # what rounds are selected by, whatever that is
LESS_IS_BETTER = ("loss", "_distance", "_error")  # ends of names


@dataclass
class EarlyStopping:
    """What is known of a run's validations so far.

    Parameters
    ----------
    best : float, optional
        The best value of ``run.stop-metric``.
    stalled : int
        Validations since then.
    """

    best: float | None = None
    stalled: int = 0

    def is_over(self, config: RunConfig) -> bool:
        """Tell whether the training ends."""
        return 0 < config.run.patience <= self.stalled

    def note(self, judged: Judged, config: RunConfig) -> None:
        """Take account of a validation; one without a finite value is no better."""
        value = metric_of(judged, config.run.stop_metric)
        sign = 1 if config.run.stop_metric.endswith(LESS_IS_BETTER) else -1
        if math.isfinite(value) and (self.best is None or sign * value < sign * self.best):
            self.best, self.stalled = value, 0
        else:
            self.stalled += 1


def metric_of(judged: Judged, name: str) -> float:
    """Return a metric of all sites together, or the mean of those that the sites tell; or NaN."""
    if judged.merged is None:
        return math.nan
    if name == LOSS:
        return judged.merged.loss
    if name in judged.merged.whole:
        return judged.merged.whole[name]
    told = [one.metrics[name] for one in judged.evaluations.values() if name in one.metrics]
    return sum(told) / len(told) if told else math.nan
