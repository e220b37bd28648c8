"""q-FedAvg: sites with a higher loss count more, so that accuracy differs less between sites.

Li et al. 2020, "Fair resource allocation in federated learning", arXiv 1905.10497, algorithm 2: it
minimizes Σ_k p_k/(q+1) · F_k^(q+1), with p_k site k's share of the votes, by::

    Δ_k = L (w - w_k)
    w ← w - Σ_k p_k F_k^q Δ_k / Σ_k p_k (q F_k^(q-1) ‖Δ_k‖² + L F_k^q)

L is 1/learning rate of the sites, here ``training.learning-rate``. With q = 0 it is FedAvg. The
paper draws sites by p_k and has F_k at the round's first weights. Here all sites take part, with
p_k in both sums, and F_k is the mean training loss over the steps of the site's round, as the site
tells it: one that tells a high loss counts more.

The longer the sites' way, the shorter the step beside FedAvg's: 1/(1 + q L ‖w - w_k‖²/F) of it for
sites alike. The paper's sites make steps of length learning rate times gradient; those of AdamW
are longer, so that a larger q makes little headway in a run of few rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from common.errors import AnswerError
from common.strategies import strategy
from common.strategies.strategy import SiteUpdate, State, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig

SMALLEST = 1e-10  # of F, and of its part of the largest: it may be 0 and has a power below 0


class QFedAvg(Strategy):
    """Let sites with a higher loss count more in the average."""

    private = False  # it needs each site's training loss

    class Options(strategy.Options):
        """Options of q-FedAvg."""

        q: float = Field(0.1, ge=0, le=10, description="how much more; 0: not at all, as fedavg")

    @property
    def of_classifiers(self) -> bool:
        """Whether it is for classifiers alone: the losses of two networks say nothing of images."""
        return True

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
        """Make the step.

        Raises
        ------
        AnswerError
            A site does not tell its loss, or one below 0.
        """
        del participants, rate
        q, lipschitz = self.options(config).q, 1 / config.training.learning_rate
        losses = {site: _loss(site, update) for site, update in updates.items()}
        largest = max(SMALLEST, *losses.values())
        total = sum(update.votes for update in updates.values())
        sums, length = {}, 0.0
        for site, update in updates.items():
            # Both sums over F^q of the largest, so that no power overflows.
            part, share = max(losses[site] / largest, SMALLEST), update.votes / total
            way = {n: lipschitz * (weight - update.weights[n]) for n, weight in weights.items()}
            squared = sum(float(tensor.double().square().sum()) for tensor in way.values())
            length += share * (q * part ** (q - 1) * squared / largest + lipschitz * part**q)
            for name, tensor in way.items():
                sums[name] = sums.get(name, 0) + share * part**q * tensor
        return {n: weight - sums[n] / length for n, weight in weights.items()}, dict(state)


def _loss(site: str, update: SiteUpdate) -> float:
    if "loss" not in update.metrics:
        raise AnswerError(
            site,
            "it does not tell the loss of its training, by which strategy 'qfedavg' weighs sites. "
            "Its policy may withhold it (min-participants): choose another strategy, or leave "
            "the site out",
        )
    if not 0 <= (loss := update.metrics["loss"]) < math.inf:
        raise AnswerError(site, f"it tells a training loss of {loss}: accepted is a number from 0")
    return loss


STRATEGY = QFedAvg()
