"""Bulyan: sites chosen by Krum, and of each weight a mean of those near the middle.

El Mhamdi et al. 2018, "The hidden vulnerability of distributed learning in Byzantium",
arXiv 1802.07927: with n sites of which f may send anything, n at least 4 f + 3::

    θ = n - 2 f times: Krum's choice among the sites that are left is taken from them into S
    w ← of each number, the mean of the θ - 2 f values of S that are nearest to their median

Krum alone lets a site pull a single weight far if it agrees in all others; this does not. Scores
are computed anew for each choice, and the median is one of the values, as in the paper (Flower
computes the scores once, and of an even θ takes the mean of both in the middle). Of equal scores
the site that is first by name is chosen, also of two that are each other's one nearest, when few
are left. With f = 0 it is the mean. All sites count alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.strategies._robust import OfMalicious, Robust, by_score, distances
from common.strategies.strategy import SiteUpdate

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig


class Bulyan(Robust):
    """Choose sites by Krum, then average each weight near the median of the chosen."""

    Options = OfMalicious

    def sites_needed(self, config: RunConfig) -> int:
        """Return 4 f + 3."""
        return 4 * self.options(config).malicious + 3

    def chosen(self, updates: Mapping[str, SiteUpdate], config: RunConfig) -> list[SiteUpdate]:
        """Return S."""
        sites, malicious = list(updates.values()), self.options(config).malicious
        squares, left = distances(sites), list(range(len(sites)))
        while len(left) > 2 * malicious:
            left.remove(by_score(squares, left, malicious)[0])
        return [site for i, site in enumerate(sites) if i not in left]

    def center(self, sites: Tensor, config: RunConfig) -> Tensor:
        """Return the mean of the values nearest to the median."""
        near = len(sites) - 2 * self.options(config).malicious
        away = (sites - sites.median(0).values).abs()
        return sites.gather(0, away.argsort(dim=0, stable=True)[:near]).mean(0)


STRATEGY = Bulyan()
