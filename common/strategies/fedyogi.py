"""FedYogi: FedAvg's mean as a direction, in which the server steps as Yogi does.

Reddi et al. 2021, "Adaptive federated optimization", arXiv 2003.00295, algorithm 2: with
Δ = Σ_i p_i w_i - w, p_i site i's share of the votes, m = 0 and v = τ² at first::

    m ← β₁ m + (1 - β₁) Δ
    v ← v - (1 - β₂) Δ² sign(v - Δ²)
    w ← w + η m / (√v + τ)

A v that is too large comes down by (1 - β₂) Δ² at most, where Adam's would fall by a factor: after
a round of large differences steps stay careful for longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.strategies._adaptive import Adaptive, MomentOptions

if TYPE_CHECKING:
    from torch import Tensor


class FedYogi(Adaptive):
    """Average, and let the server step as Yogi does."""

    Options = MomentOptions

    def second(self, v: Tensor, squared: Tensor, options: MomentOptions) -> Tensor:
        """Return the next v."""
        return v - (1 - options.beta_2) * squared * (v - squared).sign()


STRATEGY = FedYogi()
