"""Servers that one site, or a few, cannot pull where they like.

All sites count alike: votes follow from counts that sites tell, and whoever may send false weights
may tell a false count. What one weight of all sites becomes is not a sum, so none of this can be
computed where the server sees sums alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from common.averages import step_towards
from common.errors import FedscanError
from common.strategies import strategy
from common.strategies.strategy import SiteUpdate, State, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig


class OfMalicious(strategy.Options):
    """How many sites may be against the others."""

    malicious: int = Field(
        1, ge=0, le=1000, description="f: sites whose updates may be anything; more need more sites"
    )


class Robust(Strategy):
    """Base: some sites are chosen, and each weight goes to a center of theirs."""

    takes_server_rate = True
    private = True  # what the server makes of noisy updates tells nothing more

    def chosen(self, updates: Mapping[str, SiteUpdate], config: RunConfig) -> list[SiteUpdate]:
        """Return the updates that are used: by default all."""
        del config
        return list(updates.values())

    def center(self, sites: Tensor, config: RunConfig) -> Tensor:
        """Return the center of the sites' tensors, which are stacked: by default their mean."""
        del config
        return sites.mean(0)

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
        """Go η of the way to the center.

        Raises
        ------
        FedscanError
            There are updates of too few sites, with which it would withstand less than it says.
        """
        del participants
        needed = self.sites_needed(config)
        if len(updates) < needed:
            raise FedscanError(
                f"strategy '{self.name}' needs the updates of {needed} sites in every round, and "
                f"only those of {', '.join(updates)} could be used: see what befell the others"
            )
        sites = [update.weights for update in self.chosen(updates, config)]
        goal = {n: self.center(torch.stack([site[n] for site in sites]), config) for n in weights}
        return step_towards(weights, goal, rate), dict(state)

    def statistics(self, updates: Mapping[str, SiteUpdate], config: RunConfig) -> dict[str, Tensor]:
        """Put statistics together as weights."""
        sites = [update.statistics for update in self.chosen(updates, config)]
        return {n: self.center(torch.stack([site[n] for site in sites]), config) for n in sites[0]}


class Selecting(Robust):
    """Base of those that choose sites by the distances of their updates."""

    Options = OfMalicious

    def sites_needed(self, config: RunConfig) -> int:
        """Return 2 f + 3, with which each honest site has honest neighbours in the majority."""
        return 2 * self.options(config).malicious + 3


def distances(updates: Sequence[SiteUpdate]) -> list[list[float]]:
    """Return ‖w_i - w_j‖² of all pairs.

    Weights are subtracted before anything is squared, as double. Flower has
    ‖w_i‖² + ‖w_j‖² - 2 w_i · w_j in float32, of which little is left where updates are small beside
    the weights.
    """
    found = [[0.0] * len(updates) for _ in updates]
    for i, one in enumerate(updates):
        for j, other in enumerate(updates[:i]):
            found[i][j] = found[j][i] = sum(
                float((tensor.double() - other.weights[name].double()).square().sum())
                for name, tensor in one.weights.items()
            )
    return found


def by_score(squares: Sequence[Sequence[float]], among: Sequence[int], malicious: int) -> list[int]:
    """Sort sites by Krum's score, the lowest first; of equal ones by their place.

    The score of one of n sites is Σ ‖w_i - w_j‖² over its n - f - 2 nearest others, but at least
    one.

    Parameters
    ----------
    squares : sequence of sequence of float
        Of :func:`distances`.
    among : sequence of int
        The sites that are compared.
    malicious : int
        f.
    """
    near = max(1, len(among) - malicious - 2)
    scores = {i: sum(sorted(squares[i][j] for j in among if j != i)[:near]) for i in among}
    return sorted(among, key=lambda i: (scores[i], i))
