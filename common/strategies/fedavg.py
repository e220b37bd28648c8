"""FedAvg: sites train by themselves, and the server takes their mean.

McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data",
arXiv 1602.05629.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.strategies.strategy import SiteUpdate, State, Strategy, step_towards, weighted_mean

if TYPE_CHECKING:
    from torch import Tensor


class FedAvg(Strategy):
    """The mean of the sites' weights, weighted by their votes.

    With a server learning rate η other than 1 the mean is a direction and not the place to go
    (:func:`~common.strategies.strategy.step_towards`). The step is taken in all that is shared,
    also in what one site alone has learned.
    """

    secure_sums = True

    def aggregate(
        self,
        updates: Mapping[str, SiteUpdate],
        weights: State,
        state: State,
        *,
        participants: int,
        rate: float,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Average, and go η of the way to the average."""
        del participants
        votes = {site: update.votes for site, update in updates.items()}
        mean = weighted_mean({site: update.weights for site, update in updates.items()}, votes)
        return step_towards(weights, mean, rate), dict(state)


STRATEGY = FedAvg()
