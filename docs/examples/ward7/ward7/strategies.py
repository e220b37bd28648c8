"""A strategy of our own: the mean of the sites' weights, each site's step bounded first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from fedscan import Options, SiteUpdate, Strategy


class ClippedOptions(Options):
    """Options: `strategy.bound`."""

    bound: float = Field(1.0, gt=0, description="Euclidean length of a site's step, at most")


class Clipped(Strategy):
    """Take the mean of the sites' weights, after each site's step was shortened to a bound."""

    Options = ClippedOptions

    def aggregate(
        self,
        updates: Mapping[str, SiteUpdate],
        weights: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        config: Any,
        *,
        participants: int,
        rate: float,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Average bounded steps by the sites' votes."""
        del participants, rate
        bound = self.options(config).bound
        votes = sum(update.votes for update in updates.values())
        found = {name: tensor.clone() for name, tensor in weights.items()}
        for update in updates.values():
            step = {name: update.weights[name] - tensor for name, tensor in weights.items()}
            length = torch.stack([one.norm() for one in step.values()]).norm()
            share = update.votes / votes * min(1.0, bound / max(float(length), 1e-12))
            for name, one in step.items():
                found[name] += share * one
        return found, dict(state)
