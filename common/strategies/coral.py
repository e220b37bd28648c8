"""CORAL: sites whose features have the same mean and covariance, also without labels.

Sun & Saenko 2016, "Deep CORAL: Correlation alignment for deep domain adaptation", arXiv 1607.01719,
eq. 1: with C the covariance of d features in a batch and C* that of the other domain, a training's
loss has the term ‖C - C*‖² / (4 d²). Here C* is the covariance of all sites' features in the round
before, and the means are aligned as well::

    λ · ( ‖C - C*‖² / (4 d²) + ‖m - m*‖² / (4 d) )

Each site adds up over a round's batches the number of images n, Σ x and Σ x xᵀ, and sends these
sums; the server adds up the sites', so that m* and C* are those of all images pooled, whatever
their shares. A site whose policy does not let moments of so few people leave sends zeros
(:meth:`common.disclosure.Disclosure.sums`), and aligns to the others' nevertheless. In the first
round, and as long as nobody has sent any, there is no term.

Covariances of d features are over d² numbers, and people who are to be protected must be many more
than features. So x are projections of the features on at most ``moment-features`` random
directions of length 1, which follow from the run's seed; of fewer features x are these themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field

from common.errors import ConfigError
from common.seeding import derive_seed
from common.strategies import strategy
from common.strategies._features import number_of_features, require_features
from common.strategies.fedavg import FedAvg
from common.strategies.strategy import State
from common.training.hooks import Arrays, Batch, Hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from common.config.run_config import RunConfig
    from common.strategies.strategy import SiteUpdate

SUMS = ("moments.count", "moments.sum", "moments.products")


class MomentTerm(Hooks):
    """Adds the distance of a batch's moments from those of all sites, and adds up the site's.

    Parameters
    ----------
    arrays : mapping of str to Tensor
        :data:`SUMS` over all sites.
    weight : float
        λ.
    seed : int
        Of the projection.
    """

    changing = ("sums",)

    def __init__(self, arrays: State, weight: float, seed: int) -> None:
        self.weight, self.seed = weight, seed
        self.told = {name: arrays[name].double() for name in SUMS}
        self.sums = {name: torch.zeros_like(tensor) for name, tensor in self.told.items()}
        self.directions: Tensor | None = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """Return the term; None where no moments are known."""
        del model
        x = self._projected(batch.features)
        seen = x.detach().double().cpu()
        own = (torch.tensor(float(len(seen))), seen.sum(0), seen.T @ seen)
        for name, value in zip(SUMS, own, strict=True):
            self.sums[name] += value
        if self.told["moments.count"] <= 0:
            return None
        mean, covariance = (one.to(x) for one in moments(self.told))
        centered = x - x.mean(0)
        between = centered.T @ centered / len(x) - covariance
        d = len(mean)
        term = between.square().sum() / (4 * d * d) + (x.mean(0) - mean).square().sum() / (4 * d)
        return self.weight * term

    def after_round(self, trained: Mapping[str, Tensor]) -> tuple[Arrays, Arrays]:
        """Send the site's sums."""
        del trained
        return {name: tensor.float() for name, tensor in self.sums.items()}, {}

    def _projected(self, features: Tensor) -> Tensor:
        wanted, given = len(self.told["moments.sum"]), features.shape[1]
        if wanted == given:
            return features
        if self.directions is None:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randn(given, wanted, generator=generator)
            self.directions = (drawn / drawn.norm(dim=0)).to(features)
        return features @ self.directions


def moments(sums: State) -> tuple[Tensor, Tensor]:
    """Return mean (d,) and covariance (d, d) of sums over at least one image."""
    count, total, products = (sums[name] for name in SUMS)
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)


class Coral(FedAvg):
    """Align sites' means and covariances of features, with or without labels."""

    uses_unlabelled = True
    takes_server_rate = False
    secure_sums = False  # sums over features travel beside the weights
    private = False  # it sends moments of features
    sums_over_people = SUMS

    class Options(strategy.Options):
        """Options of CORAL."""

        moment_weight: float = Field(
            1.0, ge=0, le=1e6, description="weight of the distance of moments in the loss"
        )
        moment_features: int = Field(
            64,
            ge=1,
            le=256,
            description="dimensions whose moments are sent, at most; few are needed at a site that "
            "sends moments of enough people alone",
        )

    def added_terms(self, config: RunConfig) -> Mapping[str, float]:
        """Return the weight of the distance of moments."""
        return {"moment-weight": self.options(config).moment_weight}

    def check(self, config: RunConfig) -> None:
        """Refuse features that do not learn, and numbers in which sums do not fit."""
        super().check(config)
        require_features(self.name, config)
        if config.transport != "float32":
            raise ConfigError(
                f"run config: transport = '{config.transport}' is too coarse for the sums of "
                f"strategy '{self.name}': set it 'float32'"
            )

    def first_state(
        self, weights: State, config: RunConfig, sites: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """Return sums over no image."""
        del sites
        d = min(number_of_features(weights), self.options(config).moment_features)
        return dict(zip(SUMS, (torch.zeros(()), torch.zeros(d), torch.zeros(d, d)), strict=True))

    def arrays(self, state: State) -> dict[str, Tensor]:
        """Send the sums over all sites."""
        return dict(state)

    def hooks(self, config: RunConfig, arrays: State, private: State) -> Hooks:
        """Return the term."""
        del private
        seed = derive_seed(config.run.seed, purpose="projection of features")
        return MomentTerm(arrays, self.options(config).moment_weight, seed)

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
        """Average weights, and add up the sites' sums."""
        shared, _ = super().aggregate(
            updates, weights, state, config, participants=participants, rate=rate
        )
        sums = {name: sum(one.arrays[name] for one in updates.values()) for name in SUMS}
        return shared, sums


STRATEGY = Coral()
