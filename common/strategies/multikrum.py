"""Multi-Krum: the mean of the sites that are nearest to their neighbours.

Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent",
arXiv 1703.02757: with n sites of which f may send anything::

    s_i = Σ ‖w_i - w_j‖²  over the n - f - 2 sites j nearest to i
    w ← the mean of w_i over the m lowest s_i

n is at least 2 f + 3. With m = 1 it is Krum, with m = n the mean of all. All sites count alike,
also in the mean (Flower's weights it by the counts that sites tell).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from common.strategies._robust import OfMalicious, Selecting, by_score, distances
from common.strategies.strategy import SiteUpdate

if TYPE_CHECKING:
    from common.config.run_config import RunConfig


class MultiKrum(Selecting):
    """Take the mean of the sites that are nearest to the others."""

    class Options(OfMalicious):
        """Options of Multi-Krum."""

        select: int = Field(
            0, ge=0, le=1000, description="m: sites in the mean; 0: all but as many as malicious"
        )

    def sites_needed(self, config: RunConfig) -> int:
        """Return 2 f + 3, or m if that is more."""
        return max(super().sites_needed(config), self.options(config).select)

    def chosen(self, updates: Mapping[str, SiteUpdate], config: RunConfig) -> list[SiteUpdate]:
        """Return the m, in their order."""
        sites, options = list(updates.values()), self.options(config)
        most = options.select or len(sites) - options.malicious
        best = by_score(distances(sites), range(len(sites)), options.malicious)[:most]
        return [sites[i] for i in sorted(best)]


STRATEGY = MultiKrum()
