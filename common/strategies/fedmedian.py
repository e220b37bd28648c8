"""FedMedian: each weight goes to the median of the sites' weights.

Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates",
arXiv 1803.01498, option I: w ← median {w_i}, of each number by itself; of an even number of sites
the mean of both in the middle. Fewer than half of the sites cannot pull it beyond what the others
say. Of two sites it is the mean, and withstands nobody. All sites count alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.strategies._robust import Robust

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig


class FedMedian(Robust):
    """Take the median of the sites, of each weight by itself."""

    def center(self, sites: Tensor, config: RunConfig) -> Tensor:
        """Return the median."""
        del config
        ordered = sites.sort(0).values
        return (ordered[(len(sites) - 1) // 2] + ordered[len(sites) // 2]) / 2


STRATEGY = FedMedian()
