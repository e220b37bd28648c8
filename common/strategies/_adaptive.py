"""A server that scales each weight's step by what that weight's steps have been.

Reddi et al. 2021, "Adaptive federated optimization", arXiv 2003.00295, algorithm 2: with
Δ = Σ_i p_i w_i - w and p_i site i's share of the votes::

    m ← β₁ m + (1 - β₁) Δ
    v ← as the strategy says, from v = τ²
    w ← w + η m / (√v + τ)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from common.strategies import strategy
from common.strategies.strategy import SiteUpdate, State, Strategy, mean_of

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig

M, V = "m/", "v/"  # before the names of weights, in the server's state


class AdaptiveOptions(strategy.Options):
    """Options of all adaptive servers."""

    eta: float = Field(
        0.01, gt=0, le=10, description="η: about how far a weight moves in a round, at most"
    )
    tau: float = Field(
        1e-3, gt=0, le=10, description="τ: differences well below it move a weight the less"
    )


class MomentOptions(AdaptiveOptions):
    """Options of those that forget."""

    beta_1: float = Field(0.9, ge=0, lt=1, description="β₁: memory of the mean difference")
    beta_2: float = Field(0.99, ge=0, lt=1, description="β₂: memory of the squared difference")


class Adaptive(Strategy):
    """Base of adaptive servers; η is an option, so the server's learning rate has no place."""

    Options = AdaptiveOptions
    secure_sums = True
    private = True

    @abstractmethod
    def second(self, v: Tensor, squared: Tensor, options: Any) -> Tensor:
        """Return the next v, from Δ²."""

    def first_state(
        self, weights: State, config: RunConfig, sites: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """Return m = 0 and v = τ²."""
        del sites
        first = self.options(config).tau ** 2
        return {
            **{M + name: tensor.new_zeros(tensor.shape) for name, tensor in weights.items()},
            **{V + name: tensor.new_full(tensor.shape, first) for name, tensor in weights.items()},
        }

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
        """Average, and step along m."""
        del participants, rate
        options, mean = self.options(config), mean_of(updates)
        beta = getattr(options, "beta_1", 0.0)
        moved, server = {}, dict(state)
        for name, weight in weights.items():
            delta = mean[name] - weight
            m = server[M + name] = beta * state[M + name] + (1 - beta) * delta
            v = server[V + name] = self.second(state[V + name], delta.square(), options)
            moved[name] = weight + options.eta * m / (v.sqrt() + options.tau)
        return moved, server
