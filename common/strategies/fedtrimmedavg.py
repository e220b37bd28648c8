"""FedTrimmedAvg: of each weight, the mean without the sites that are farthest out.

Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates",
arXiv 1803.01498, option II: of the n sites' values of one number, the ⌊β n⌋ largest and as many of
the smallest are left out, and w ← the mean of the others. It withstands ⌊β n⌋ sites; with β = 0 it
is the mean. With so few sites that ⌊β n⌋ = 0 it would be the mean unasked, and is refused. All
sites count alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from common.strategies import strategy
from common.strategies._robust import Robust

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig

ROUNDING = 1e-9  # of β n, which may be a whole number but for it


class FedTrimmedAvg(Robust):
    """Take the mean of each weight, without the sites' largest and smallest."""

    class Options(strategy.Options):
        """Options of FedTrimmedAvg."""

        beta: float = Field(
            0.2, ge=0, lt=0.5, description="β: share of the sites that is cut off at either end"
        )

    def sites_needed(self, config: RunConfig) -> int:
        """Return how many sites it takes to cut off one at either end."""
        beta = self.options(config).beta
        return math.ceil(1 / beta - ROUNDING) if beta else 1

    def center(self, sites: Tensor, config: RunConfig) -> Tensor:
        """Return the trimmed mean."""
        cut = math.floor(self.options(config).beta * len(sites) + ROUNDING)
        return sites.sort(0).values[cut : len(sites) - cut].mean(0)


STRATEGY = FedTrimmedAvg()
