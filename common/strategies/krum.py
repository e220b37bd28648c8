"""Krum: the weights of the one site that is nearest to its neighbours.

Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent",
arXiv 1703.02757: with n sites of which f may send anything::

    s_i = Σ ‖w_i - w_j‖²  over the n - f - 2 sites j nearest to i
    w ← w_i of the lowest s_i

n is at least 2 f + 3. Of equal scores, the site that is first by name: with three sites and f = 0
two are each other's nearest, and it is always that one of these. Nothing is averaged, so there is
no server's learning rate, and all sites count alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.strategies._robust import Selecting, by_score, distances
from common.strategies.strategy import SiteUpdate, State

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig


class Krum(Selecting):
    """Take the weights of the one site that is nearest to the others."""

    takes_server_rate = False

    def chosen(self, updates: Mapping[str, SiteUpdate], config: RunConfig) -> list[SiteUpdate]:
        """Return the one."""
        sites = list(updates.values())
        malicious = self.options(config).malicious
        return [sites[by_score(distances(sites), range(len(sites)), malicious)[0]]]

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
        """Go to the chosen site's weights, whatever rate suits an average."""
        del rate
        return super().aggregate(
            updates, weights, state, config, participants=participants, rate=1.0
        )


STRATEGY = Krum()
