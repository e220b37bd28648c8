"""FedAdam: FedAvg's mean as a direction, in which the server steps as Adam does.

Reddi et al. 2021, "Adaptive federated optimization", arXiv 2003.00295, algorithm 2: with
Δ = Σ_i p_i w_i - w, p_i site i's share of the votes, m = 0 and v = τ² at first::

    m ← β₁ m + (1 - β₁) Δ
    v ← β₂ v + (1 - β₂) Δ²
    w ← w + η m / (√v + τ)

Flower's FedAdam begins at v = 0 and corrects η for it, with exponents that are a round late. As in
the paper there is no correction here, since with v = τ² at first none is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.strategies._adaptive import Adaptive, MomentOptions

if TYPE_CHECKING:
    from torch import Tensor


class FedAdam(Adaptive):
    """Average, and let the server step as Adam does."""

    Options = MomentOptions

    def second(self, v: Tensor, squared: Tensor, options: MomentOptions) -> Tensor:
        """Return the next v."""
        return options.beta_2 * v + (1 - options.beta_2) * squared


STRATEGY = FedAdam()
