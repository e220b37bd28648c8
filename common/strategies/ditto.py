"""Ditto: FedAvg, and beside it each site trains a model of its own that is held near the common.

Li et al. 2021, "Ditto: Fair and robust federated learning through personalization", arXiv
2012.04221 (algorithm 1): with w the round's common weights, which are found as in FedAvg, a site
minimizes F_i(v_i) + μ/2 · ‖v_i - w‖² from the v_i of the round before (μ is the paper's λ)::

    v_i ← v_i - η (∇F_i(v_i) + μ (v_i - w))

The v_i never travel, and a site is judged by its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from common.site_training import SiteTraining, Trained
from common.strategies import strategy
from common.strategies.fedavg import FedAvg
from common.strategies.fedprox import ProximalTerm
from common.strategies.strategy import State
from common.training.hooks import Hooks

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig


class Ditto(FedAvg):
    """Train a model for each site beside the common one, held near it."""

    private = False  # a site trains on its images a second time each round

    class Options(strategy.Options):
        """Options of Ditto."""

        mu: float = Field(
            0.1,
            ge=0,
            le=1e30,
            description="weight of the pull of a site's own model towards the common; 0: none",
        )

    def train(self, site: SiteTraining) -> Trained:
        """Train the common model, then the site's own."""
        common = site.fit(site.weights, Hooks())
        term = ProximalTerm(self.options(site.config).mu, site.weights)
        own = site.fit(site.private or site.weights, term, model="personal")
        return Trained(common, private=own)

    def personal(self, weights: State, private: State, config: RunConfig) -> dict[str, Tensor]:
        """Return v_i; before the site's first round the common weights."""
        del config
        return dict(private or weights)


STRATEGY = Ditto()
