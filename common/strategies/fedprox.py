"""FedProx: FedAvg whose sites are held near the weights with which the round began.

Li et al. 2020, "Federated optimization in heterogeneous networks", arXiv 1812.06127: a site
minimizes its loss plus μ/2 · ‖w - w₀‖² (eq. 2), with w₀ the round's global weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from common.strategies import strategy
from common.strategies.fedavg import FedAvg
from common.strategies.strategy import State
from common.training.hooks import Batch, Hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from common.config.run_config import RunConfig


class ProximalTerm(Hooks):
    """Adds μ/2 · ‖w - w₀‖² to the loss.

    Parameters
    ----------
    mu : float
        Above 0.
    start : mapping of str to Tensor, optional
        w₀, by parameter; by default the weights with which the training begins. Parameters that
        it lacks are free.
    """

    def __init__(self, mu: float, start: State | None = None) -> None:
        self.mu, self.start = mu, start
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def before_round(self, model: nn.Module) -> None:
        """Keep w₀."""
        start = dict(model.named_parameters()) if self.start is None else self.start
        self.pairs = [
            (p, start[name].detach().clone().to(p.device))
            for name, p in model.named_parameters()
            if name in start
        ]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the term, a scalar."""
        del model, batch
        return self.mu / 2 * sum((p - p0).square().sum() for p, p0 in self.pairs)


class FedProx(FedAvg):
    """Hold the sites near the common weights by a proximal term; else as fedavg."""

    takes_server_rate = False
    private = True  # the term is of weights alone

    class Options(strategy.Options):
        """Options of FedProx."""

        mu: float = Field(
            0.01, gt=0, le=1e30, description="weight of the pull towards the common weights"
        )

    def added_terms(self, config: RunConfig) -> Mapping[str, float]:
        """Return μ."""
        return {"mu": self.options(config).mu}

    def hooks(self, config: RunConfig, arrays: State, private: State) -> Hooks:
        """Return the term."""
        del arrays, private
        return ProximalTerm(self.options(config).mu)


STRATEGY = FedProx()
