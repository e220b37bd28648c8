"""Fine-tuning: FedAvg, and before the test each site trains the common model on its own images.

Yu et al. 2020, "Salvaging federated learning by local adaptation", arXiv 2002.04758: from the
common weights w that are chosen in the end, w_i ← w_i - η ∇F_i(w_i). How many steps suit a site,
none included, is chosen by the loss on its validation images, so that one that is served well by
the common model keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from common.errors import DivergedError
from common.site_training import SiteTuning
from common.strategies import strategy
from common.strategies.fedavg import FedAvg
from common.strategies.strategy import State
from common.training.hooks import Held, Hooks

if TYPE_CHECKING:
    from torch import Tensor

PARTS_OF_LARGEST = (8, 4, 2, 1)  # the grid: so many parts of the largest number of steps, and 0


class FineTune(FedAvg):
    """Train the common model further at each site before its test, where it helps."""

    private = False  # a site trains on its images again before its test

    class Options(strategy.Options):
        """Options of fine-tuning."""

        steps: int = Field(
            40,
            ge=1,
            le=1_000_000,
            description="most steps of fine-tuning; also tried: a half, a quarter, an eighth, 0",
        )
        part: Literal["all", "head"] = Field(
            "all", description="what is trained: all of the model, or its last layer"
        )

    def tune(self, site: SiteTuning, weights: State) -> dict[str, Tensor]:
        """Try each number of steps from the same weights; of equally good ones take the fewest."""
        options = self.options(site.config)
        held = {n for n, part in site.parts.items() if options.part == "head" and part != "head"}
        best, least = dict(weights), site.loss(weights)
        for steps in sorted({options.steps // parts for parts in PARTS_OF_LARGEST} - {0}):
            try:
                tuned = site.fit(weights, steps, Held(held) if held else Hooks())
                loss = site.loss(tuned)
            except DivergedError:  # the common model is fine: only the tuning is not
                continue
            if loss < least:
                best, least = tuned, loss
        return best


STRATEGY = FineTune()
