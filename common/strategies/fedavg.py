"""FedAvg: sites train by themselves, and the server takes their mean.

McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data",
arXiv 1602.05629: w ← Σ_i p_i w_i, with p_i site i's share of the votes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.averages import step_towards
from common.strategies.strategy import SiteUpdate, State, Strategy, mean_of

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig


class FedAvg(Strategy):
    """Take the mean of the sites' weights.

    With a server learning rate η other than 1 the mean is a direction and not the place to go
    (:func:`~common.averages.step_towards`). The step is taken in all that is shared,
    also in what one site alone has learned.
    """

    secure_sums = True
    private = True
    takes_server_rate = True

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
        """Average, and go η of the way to the average."""
        del config, participants
        return step_towards(weights, mean_of(updates), rate), dict(state)


STRATEGY = FedAvg()
