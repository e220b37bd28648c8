"""FedRep: as FedPer, and a site trains its head first, then the body.

Collins et al. 2021, "Exploiting shared representations for personalized federated learning", arXiv
2102.07078 (algorithm 1): with the body b that came, h_i ← h_i - η ∇_h F_i(b, h_i) for some steps;
then, with that head, b_i ← b_i - η ∇_b F_i(b_i, h_i) for the rest of the round; b ← Σ_i p_i b_i.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from pydantic import Field

from common.errors import ConfigError
from common.site_training import SiteTraining, Trained
from common.strategies import strategy
from common.strategies.fedper import FedPer
from common.training.hooks import Hooks, hold

if TYPE_CHECKING:
    from torch import nn

    from common.config.run_config import RunConfig


class HeadThenBody(Hooks):
    """Moves the head alone in the first steps, and all but the head afterwards.

    Parameters
    ----------
    head, rest : collection of str
        Parameters.
    steps : int
        Of the head.
    """

    changing = ("left",)

    def __init__(self, head: Collection[str], rest: Collection[str], steps: int) -> None:
        self.head, self.rest, self.left = head, rest, steps

    def gradient(self, model: nn.Module) -> None:
        """Hold one of the two."""
        hold(model, self.rest if self.left > 0 else self.head)
        self.left -= 1


class FedRep(FedPer):
    """Keep each site's own last layer; train it first, then the averaged body."""

    private = True  # gradients of both parts get noise, then one of them is left out

    class Options(strategy.Options):
        """Options of FedRep."""

        head_steps: int = Field(
            0,
            ge=0,
            le=1_000_000,
            description="a round's first steps, in which the last layer alone is trained; 0: half "
            "of training.local-steps",
        )

    def check(self, config: RunConfig) -> None:
        """Refuse a round in which the head or the body would never be trained.

        Raises
        ------
        ConfigError
        """
        super().check(config)
        steps, head = config.training.local_steps, self.options(config).head_steps
        if config.training.local_epochs:
            if not head:
                raise ConfigError(
                    "run config: how many steps strategy 'fedrep' trains the last layer is half of "
                    "training.local-steps, and with training.local-epochs there are none: set "
                    "strategy.head-steps"
                )
        elif not 0 < (head or steps // 2) < steps:
            raise ConfigError(
                f"run config: strategy 'fedrep' trains the last layer in {head or steps // 2} of "
                f"the {steps} steps of a round, and would leave it or the rest as it is: accepted "
                "is strategy.head-steps from 1 and below training.local-steps"
            )

    def shared_steps(self, steps: int, config: RunConfig) -> int:
        """Return those of the body, at least one."""
        return steps - min(self.options(config).head_steps or steps // 2, steps - 1)

    def train(self, site: SiteTraining) -> Trained:
        """Make one training of both phases, so that one schedule and one optimizer go through."""
        steps = site.steps - self.shared_steps(site.steps, site.config)
        head = {name for name, part in site.parts.items() if part == "head"}
        return Trained(site.fit(site.weights, HeadThenBody(head, site.parts.keys() - head, steps)))


STRATEGY = FedRep()
