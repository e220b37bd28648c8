"""FedProx: FedAvg whose sites are held near the weights with which the round began.

Li et al. 2020, "Federated optimization in heterogeneous networks", arXiv 1812.06127: a site
minimizes its loss plus μ/2 · ‖w - w₀‖² (eq. 2), with w₀ the round's global weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.strategies.fedavg import FedAvg
from common.strategies.strategy import State
from common.training.hooks import Hooks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from common.config.run_config import RunConfig


class ProximalTerm(Hooks):
    """Adds μ/2 · ‖w - w₀‖² to the loss.

    Parameters
    ----------
    mu : float
        Above 0.
    """

    def __init__(self, mu: float) -> None:
        self.mu = mu
        self.start: list[Tensor] = []

    def before_round(self, model: nn.Module) -> None:
        """Keep w₀."""
        self.start = [p.detach().clone() for p in model.parameters()]

    def loss(self, model: nn.Module) -> Tensor:
        """Return the term, a scalar."""
        pairs = zip(model.parameters(), self.start, strict=True)
        return self.mu / 2 * sum((p - p0).square().sum() for p, p0 in pairs)


class FedProx(FedAvg):
    """FedAvg with a proximal term at the sites; the server's part is the same."""

    options = {"mu": 0.01}  # noqa: RUF012 - of Li et al.'s grid

    def check(self, config: RunConfig) -> None:
        """Refuse a run without the term, or with a server's step beside it.

        Raises
        ------
        ConfigError
        """
        super().check(config)
        if config.strategy.mu == 0:
            raise ConfigError(
                "run config: strategy 'fedprox' needs strategy.mu above 0; with 0 it is 'fedavg'"
            )
        if config.strategy.server_learning_rate:
            raise ConfigError("run config: strategy.server-learning-rate needs strategy 'fedavg'")

    def hooks(self, config: RunConfig, arrays: State, private: State) -> Hooks:
        """Return the term."""
        del arrays, private
        return ProximalTerm(config.strategy.mu)


STRATEGY = FedProx()
