"""DANN: features from which the site cannot be predicted, also without labels at the target.

Ganin et al. 2016, "Domain-adversarial training of neural networks", arXiv 1505.07818, eq. 9 and 13:
with f the features, D a classifier of domains and R the reversal of gradients, which is the
identity forwards and -λ backwards, every site minimizes ::

    L_class + L_domain(D(R(f))),    λ = λ_most · (2 / (1 + exp(-10 p)) - 1)

so that D learns to tell the domains and the body to deceive it. Here domains are sites, and p is
the share of the run's rounds, this one included. As in federated domain adaptation (Peng et al.
2020, arXiv 1911.02054) no site sees another's features: it shows D its own alone, all with its own
number. So D forgets the others during a round, the more the longer its steps are, and only the
average of the sites' D tells sites apart; the mean is that of the weights. Images without a label
have a part in L_domain alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch.nn import functional as F

from common.seeding import derive_seed
from common.site_training import SiteTraining, Trained
from common.strategies import strategy
from common.strategies._features import number_of_features, require_features
from common.strategies.fedavg import FedAvg
from common.strategies.strategy import State, mean_of
from common.training.hooks import Arrays, Batch, Hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from common.config.run_config import RunConfig
    from common.strategies.strategy import SiteUpdate

STEEPNESS = 10.0  # of the schedule of λ


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is -λ times what comes."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


class DomainTerm(Hooks):
    """Adds the loss of the classifier of sites, which it trains by plain gradient steps.

    Parameters
    ----------
    arrays : mapping of str to Tensor
        The classifier of sites, as the server has sent it.
    site : int or None
        This site's number; None, of a pool, adds nothing.
    weight : float
        λ.
    rate : float
        Length of the classifier's steps.
    """

    changing = ("parameters",)

    def __init__(self, arrays: State, site: int | None, weight: float, rate: float) -> None:
        self.arrays, self.site, self.weight, self.rate = arrays, site, weight, rate
        own = {} if site is None else arrays
        self.parameters = {n: tensor.clone().requires_grad_() for n, tensor in own.items()}

    def before_round(self, model: nn.Module) -> None:
        """Bring the classifier to where the training is."""
        device = next(model.parameters()).device
        self.parameters = {
            name: tensor.detach().to(device).requires_grad_()
            for name, tensor in self.parameters.items()
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """Return the cross-entropy of this site's number, for all images of the batch."""
        del model
        if self.site is None:
            return None
        of = self.parameters
        features = _Reversed.apply(batch.features, self.weight)
        hidden = F.linear(features, of["hidden.weight"], of["hidden.bias"]).relu()
        logits = F.linear(hidden, of["output.weight"], of["output.bias"])
        return F.cross_entropy(logits, torch.full_like(batch.targets, self.site))

    def gradient(self, model: nn.Module) -> None:
        """Make the classifier's step."""
        del model
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter -= self.rate * parameter.grad
                parameter.grad = None

    def after_round(self, trained: Mapping[str, Tensor]) -> tuple[Arrays, Arrays]:
        """Send the classifier."""
        del trained
        told = self.parameters or self.arrays
        return {name: tensor.detach().cpu() for name, tensor in told.items()}, {}


class DANN(FedAvg):
    """Learn features that do not tell sites apart, with or without labels."""

    uses_unlabelled = True
    takes_server_rate = False
    secure_sums = False  # the classifier of sites travels beside the weights
    private = False  # the classifier of sites learns from features without noise

    class Options(strategy.Options):
        """Options of DANN."""

        domain_weight: float = Field(
            0.1, ge=0, le=1e6, description="largest weight of the reversed gradient"
        )
        domain_rate: float = Field(
            0.01, gt=0, le=10, description="learning rate of the classifier of sites"
        )
        domain_hidden: int = Field(
            32, ge=1, le=1024, description="hidden units of the classifier of sites"
        )

    def added_terms(self, config: RunConfig) -> Mapping[str, float]:
        """Return the weight of the reversed gradient."""
        return {"domain-weight": self.options(config).domain_weight}

    def check(self, config: RunConfig) -> None:
        """Refuse a classifier whose features do not learn."""
        super().check(config)
        require_features(self.name, config)

    def sites_needed(self, config: RunConfig) -> int:
        """Return two: a classifier of sites needs two classes."""
        del config
        return 2

    def first_state(
        self, weights: State, config: RunConfig, sites: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """Return a classifier of sites with random weights, as PyTorch's layers begin."""
        features, hidden = number_of_features(weights), self.options(config).domain_hidden
        seed = derive_seed(config.run.seed, purpose="classifier of sites")
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int, inputs: int) -> Tensor:
            return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(inputs)

        return {
            "hidden.weight": drawn(hidden, features, inputs=features),
            "hidden.bias": drawn(hidden, inputs=features),
            "output.weight": drawn(len(sites), hidden, inputs=hidden),
            "output.bias": drawn(len(sites), inputs=hidden),
        }

    def arrays(self, state: State) -> dict[str, Tensor]:
        """Send the classifier of sites."""
        return dict(state)

    def train(self, site: SiteTraining) -> Trained:
        """Train with the term, under this round's λ and this site's number."""
        options = self.options(site.config)
        number = site.sites.index(site.site) if site.site in site.sites else None
        weight = options.domain_weight * ramp(site.round / site.config.run.rounds)
        term = DomainTerm(site.arrays, number, weight, options.domain_rate)
        parameters = site.fit(site.weights, term)
        return Trained(parameters, *term.after_round(parameters))

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
        """Average weights and classifiers of sites."""
        shared, _ = super().aggregate(
            updates, weights, state, config, participants=participants, rate=rate
        )
        return shared, mean_of(updates, "arrays")


def ramp(progress: float) -> float:
    """Return by what share of its weight the reversed gradient counts, 0 to 1."""
    return 2 / (1 + math.exp(-STEEPNESS * progress)) - 1


STRATEGY = DANN()
