"""How the sites' updates become one model: Flower's strategies, by their name in the run config."""

from __future__ import annotations

from flwr.serverapp.strategy import FedAvg, FedProx

from common.config import RunConfig
from common.messages import WEIGHT


def make_strategy(config: RunConfig) -> FedAvg:
    """Build the strategy whose ``aggregate_train`` merges the replies of a round.

    The average is weighted by the sites' training examples (McMahan et al. 2017). FedProx averages
    in the same way; its term is added by the sites, which know μ from the same run config.
    """
    if config.strategy == "fedprox":
        return FedProx(weighted_by_key=WEIGHT, proximal_mu=config.proximal_mu)
    return FedAvg(weighted_by_key=WEIGHT)
