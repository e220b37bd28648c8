"""FedBN: FedAvg in which every site keeps its own normalizations.

Li et al. 2021, "FedBN: Federated learning on non-IID features via local batch normalization",
arXiv 2102.07623: a scanner shifts and scales features, and a site's own gains, offsets and
statistics take that out again. Here it holds for whatever normalizes, so for a GroupNorm's gains
and offsets as well: these are all that a GroupNorm has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from common.config.run_config import RunConfig


class FedBN(FedAvg):
    """Keep each site's own normalization layers; average the rest."""

    def shares(self, name: str, part: str, config: RunConfig) -> bool:
        """Share all but normalizations."""
        del name, config
        return part != "norm"


STRATEGY = FedBN()
