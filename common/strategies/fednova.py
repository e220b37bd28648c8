"""FedNova: FedAvg for sites with different numbers of steps, as by ``training.local-epochs``.

Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated
optimization", arXiv 2007.07481 (eq. 8 to 11, for steps of equal weight): a mean of the sites'
weights counts a site with twice the steps twice. Each update is divided by its τ_i steps::

    x ← x + τ Σ_i p_i (x_i - x) / τ_i,    τ = Σ_i p_i τ_i

With equal steps this is FedAvg, in every bit. What a site says of its steps is bounded: few would
make its own part larger, by ``strategy.most-norm`` times at most; many would make all others'
larger, and the loop of rounds bounds them by the other sites' as it bounds the length of an update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from common.averages import step_towards, weighted_mean
from common.strategies.fedavg import FedAvg
from common.strategies.strategy import SiteUpdate, State, mean_of
from common.training.hooks import Arrays, Hooks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from common.config.run_config import RunConfig

STEPS = "steps"
UNIT = 1024  # of steps as they travel: float16 holds no number above 65504


class Counter(Hooks):
    """Counts a round's steps."""

    changing = ("steps",)

    def __init__(self) -> None:
        self.steps = 0

    def gradient(self, model: nn.Module) -> None:
        """Count one."""
        del model
        self.steps += 1

    def after_round(self, trained: State) -> tuple[Arrays, Arrays]:
        """Send the number."""
        del trained
        return {STEPS: torch.tensor(self.steps / UNIT)}, {}


class FedNova(FedAvg):
    """Average the sites' updates, each divided by its number of steps."""

    secure_sums = False  # each update is divided by what its site says
    private = True  # the number of steps follows from the run config

    def hooks(self, config: RunConfig, arrays: State, private: State) -> Hooks:
        """Return the counter."""
        del config, arrays, private
        return Counter()

    def first_state(
        self, weights: State, config: RunConfig, sites: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """Have a place for the number of steps; the server's stays 0."""
        del weights, config, sites
        return {STEPS: torch.zeros(())}

    def arrays(self, state: State) -> dict[str, Tensor]:
        """Send it."""
        return dict(state)

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
        """Go η of the way to the normalized average."""
        del participants
        steps = {site: _steps(update) for site, update in updates.items()}
        if len(set(steps.values())) == 1:
            return step_towards(weights, mean_of(updates), rate), dict(state)
        votes = {site: update.votes for site, update in updates.items()}
        total = sum(votes.values())
        effective = sum(votes[site] / total * steps[site] for site in steps)
        most = config.strategy.most_norm or math.inf
        moved = {
            site: step_towards(weights, update.weights, min(effective / steps[site], most))
            for site, update in updates.items()
        }
        return step_towards(weights, weighted_mean(moved, votes), rate), dict(state)


def _steps(update: SiteUpdate) -> int:
    """Return the steps that a site says it has made, at least 1; int8 tells them with rounding."""
    return max(1, round(float(update.arrays[STEPS]) * UNIT))


STRATEGY = FedNova()
