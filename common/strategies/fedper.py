"""FedPer: FedAvg in which every site keeps its own last layer.

Arivazhagan et al. 2019, "Federated learning with personalization layers", arXiv 1912.00818: with
body b and heads h_i, a site makes its steps in both, (b_i, h_i) ← (b, h_i) - η ∇F_i(b, h_i), and
b ← Σ_i p_i b_i. The layers that stay are here the head alone, a classifier's last linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from common.config.run_config import RunConfig


class FedPer(FedAvg):
    """Keep each site's own last layer; average the rest."""

    def shares(self, name: str, part: str, config: RunConfig) -> bool:
        """Share all but the head."""
        del name, config
        return part != "head"


STRATEGY = FedPer()
