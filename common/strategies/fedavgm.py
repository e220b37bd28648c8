"""FedAvgM: FedAvg whose server keeps going the way that it has come.

Hsu et al. 2019, "Measuring the effects of non-identical data distribution for federated visual
classification", arXiv 1909.06335::

    v ← β v + (w - Σ_i p_i w_i)
    w ← w - η v

with p_i site i's share of the votes, β the momentum and η the server's learning rate. With β = 0 it
is FedAvg. In a run whose sites all pull the same way the step grows to η / (1 - β) of FedAvg's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from common.strategies import strategy
from common.strategies.fedavg import FedAvg
from common.strategies.strategy import SiteUpdate, State, mean_of

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig


class FedAvgM(FedAvg):
    """Average, and let the server's steps have momentum."""

    class Options(strategy.Options):
        """Options of FedAvgM."""

        momentum: float = Field(
            0.9, ge=0, lt=1, description="β: share of the last step that is in the next one"
        )

    def first_state(
        self, weights: State, config: RunConfig, sites: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """Return v = 0."""
        del config, sites
        return {name: tensor.new_zeros(tensor.shape) for name, tensor in weights.items()}

    def aggregate(
        self,
        updates: Mapping[str, SiteUpdate],
        weights: State,
        state: State,
        config: RunConfig,
        *,
        participants: int,
        rate: float,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Go η along v."""
        del participants
        momentum, mean = self.options(config).momentum, mean_of(updates)
        steps = {n: momentum * state[n] + (weight - mean[n]) for n, weight in weights.items()}
        moved = {name: weight - rate * steps[name] for name, weight in weights.items()}
        return moved, {**state, **steps}


STRATEGY = FedAvgM()
