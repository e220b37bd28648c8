"""MOON: FedAvg whose sites keep their features near the common model's, by a contrastive loss.

Li et al. 2021, "Model-contrastive federated learning", arXiv 2103.16257 (eq. 3): with an image's
features z, those of the round's common model z_g and of the site's own model after its last round
z_p, a site minimizes its loss plus μ times the mean over images of::

    -log [ exp(cos(z, z_g)/τ) / (exp(cos(z, z_g)/τ) + exp(cos(z, z_p)/τ)) ]

Features are what the last linear layer sees; the paper puts a small network of its own before them,
which no classifier here has. In a site's first round there is no z_p, and no term.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch.func import functional_call
from torch.nn import functional as F

from common.models.parts import captured_features
from common.strategies import strategy
from common.strategies.fedavg import FedAvg
from common.strategies.strategy import State
from common.training.hooks import Arrays, Batch, Hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from common.config.run_config import RunConfig


class ContrastiveTerm(Hooks):
    """Adds the contrastive loss of features.

    Parameters
    ----------
    mu, temperature : float
    previous : mapping of str to Tensor
        All parameters of the site's own model after its last round; empty at first.
    """

    def __init__(self, mu: float, temperature: float, previous: State) -> None:
        self.mu, self.temperature = mu, temperature
        self.previous = dict(previous)
        self.common: Arrays = {}

    def before_round(self, model: nn.Module) -> None:
        """Keep the common model, and bring the site's own to where the training is."""
        if self.previous:
            state = model.state_dict()
            self.common = {name: tensor.detach().clone() for name, tensor in state.items()}
            self.previous = {n: tensor.to(state[n].device) for n, tensor in self.previous.items()}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """Return the term, a scalar."""
        if not self.previous:
            return None
        closeness = [
            F.cosine_similarity(batch.features, _features(model, state, batch.images), dim=1)
            for state in (self.common, self.previous)
        ]
        logits = torch.stack(closeness, 1) / self.temperature
        return self.mu * F.cross_entropy(logits, torch.zeros_like(batch.targets))

    def after_round(self, trained: State) -> tuple[Arrays, Arrays]:
        """Keep the model that the site has made."""
        return {}, {name: tensor.clone() for name, tensor in trained.items()}


@torch.no_grad()
def _features(model: nn.Module, state: State, images: Tensor) -> Tensor:
    """Return the features (B, F) of the same network with other weights, which stay as they are."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with captured_features(model) as features:
            functional_call(model, dict(state), (images,))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return features[0]


class Moon(FedAvg):
    """Hold each site's features near the common model's by a contrastive loss."""

    private = False  # the term is of images, and no part of anybody's clipped gradient

    class Options(strategy.Options):
        """Options of MOON."""

        mu: float = Field(1.0, gt=0, le=1e30, description="weight of the contrastive loss")
        temperature: float = Field(
            0.5,
            gt=0,
            le=1e6,
            description="of the contrastive loss; a low one tells small angles apart",
        )

    def added_terms(self, config: RunConfig) -> Mapping[str, float]:
        """Return μ."""
        return {"mu": self.options(config).mu}

    def hooks(self, config: RunConfig, arrays: State, private: State) -> Hooks:
        """Return the term."""
        del arrays
        options = self.options(config)
        return ContrastiveTerm(options.mu, options.temperature, private)


STRATEGY = Moon()
