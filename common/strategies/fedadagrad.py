"""FedAdagrad: FedAvg's mean as a direction, in which the server steps as Adagrad does.

Reddi et al. 2021, "Adaptive federated optimization", arXiv 2003.00295, algorithm 2: with
Δ = Σ_i p_i w_i - w, p_i site i's share of the votes, v = τ² at first::

    v ← v + Δ²
    w ← w + η Δ / (√v + τ)

v only grows, so steps become shorter over the run. There is no β₁: m = Δ, as in the paper's
experiments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.strategies._adaptive import Adaptive, AdaptiveOptions

if TYPE_CHECKING:
    from torch import Tensor


class FedAdagrad(Adaptive):
    """Average, and let the server step as Adagrad does."""

    Options = AdaptiveOptions

    def second(self, v: Tensor, squared: Tensor, options: AdaptiveOptions) -> Tensor:
        """Return the next v."""
        del options
        return v + squared


STRATEGY = FedAdagrad()
