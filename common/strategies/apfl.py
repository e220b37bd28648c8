"""APFL: FedAvg, and each site is judged by a mixture of the common model and one of its own.

Deng et al. 2020, "Adaptive personalized federated learning", arXiv 2003.13461: with common weights
w, found as in FedAvg, and a site's own v_i, the mixture is m_i = α_i v_i + (1 - α_i) w, and::

    v_i ← v_i - η ∇_v F_i(m_i)                       ∇_v F_i(m_i) = α_i ∇F_i(m_i)
    α_i ← α_i - η_α ⟨∇F_i(m_i), v_i - w⟩              eq. 10

w is the one with which the round began, since the mixture that is judged has what the server sends
and not what the site makes of it. α_i moves once a round, by the mean over its steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch.func import functional_call

from common.site_training import SiteTraining, Trained
from common.strategies import strategy
from common.strategies.fedavg import FedAvg
from common.strategies.strategy import State, with_prefix
from common.training.hooks import Batch, Hooks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from common.config.run_config import RunConfig

ALPHA, OWN = "alpha", "own/"  # in a site's private state: α_i, and before the names of v_i


class MixtureLoss(Hooks):
    """Replaces the loss of v_i, the model that is trained, by that of the mixture.

    Parameters
    ----------
    common : mapping of str to Tensor
        w.
    alpha : float
        α_i.
    """

    changing = ("steps", "slope")

    def __init__(self, common: State, alpha: float) -> None:
        self.common, self.alpha = dict(common), torch.tensor(alpha)
        self.steps, self.slope = 0, 0.0

    def before_round(self, model: nn.Module) -> None:
        """Bring w and α_i to where the training is."""
        device = next(model.parameters()).device
        self.common = {name: tensor.to(device) for name, tensor in self.common.items()}
        self.alpha = self.alpha.to(device).requires_grad_()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what the mixture's loss is more than that of v_i."""
        mixture = {
            name: torch.lerp(self.common[name], parameter, self.alpha)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad  # what is frozen is alike in both
        }
        return batch.criterion(functional_call(model, mixture, (batch.images,))) - batch.loss

    def gradient(self, model: nn.Module) -> None:
        """Add up the mixture's slope in α_i."""
        del model
        self.steps += 1
        if self.alpha.grad is not None:
            self.slope += float(self.alpha.grad)
            self.alpha.grad = None

    def next_alpha(self, rate: float) -> float:
        """Return α_i after a step along the mean slope, from 0 to 1."""
        moved = float(self.alpha.detach()) - rate * self.slope / max(1, self.steps)
        return min(1.0, max(0.0, moved))


class APFL(FedAvg):
    """Judge each site by a mixture of the common model and its own."""

    private = False  # a site trains on its images a second time each round

    class Options(strategy.Options):
        """Options of APFL."""

        alpha: float = Field(
            0.5, ge=0, le=1, description="part of the site's own model in the mixture, at first"
        )
        alpha_rate: float = Field(
            0.0,
            ge=0,
            le=1e6,
            description="learning rate of that part, at each site; 0: it stays as it is",
        )

    def train(self, site: SiteTraining) -> Trained:
        """Train the common model, then the site's own within the mixture."""
        options = self.options(site.config)
        common = site.fit(site.weights, Hooks())
        mixture = MixtureLoss(site.weights, float(site.private.get(ALPHA, options.alpha)))
        start = with_prefix(site.private, OWN) or site.weights
        own = site.fit(start, mixture, model="personal")
        alpha = torch.tensor(mixture.next_alpha(options.alpha_rate))
        private = {OWN + name: tensor for name, tensor in own.items()}
        return Trained(common, private={ALPHA: alpha, **private})

    def personal(self, weights: State, private: State, config: RunConfig) -> dict[str, Tensor]:
        """Return the mixture; before the site's first round the common weights."""
        del config
        if not private:
            return dict(weights)
        alpha, own = float(private[ALPHA]), with_prefix(private, OWN)
        return {name: torch.lerp(tensor, own[name], alpha) for name, tensor in weights.items()}


STRATEGY = APFL()
