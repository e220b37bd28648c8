"""SCAFFOLD: FedAvg with control variates, which keep sites from drifting to their own optimum.

Karimireddy et al. 2020, "SCAFFOLD: Stochastic controlled averaging for federated learning", arXiv
1910.06378 (algorithm 1): a site corrects each gradient g by what is known of all sites' gradients,
c, and of its own, c_i::

    y_i ← y_i - η (g - c_i + c)                       K times
    c_i⁺ = c_i - c + (x - y_i) / (K η)                option II
    x ← x + η_g Σ_i p_i (y_i - x)
    c ← c + |S|/N · Σ_i p_i (c_i⁺ - c_i)              over the |S| of N sites that have answered

With plain gradient descent x - y_i = η Σ_k (g_k - c_i + c), so that option II is Σ_k g_k / K, the
mean of the round's uncorrected gradients. It is computed as that: AdamW's steps are not
proportional to gradients, and its rate decays, so that (x - y_i)/(K η) would be no gradient.

The paper has p_i = 1/|S|. Here both sums have the votes of the run: sites rest where c = 0, and
with c = Σ p_i c_i that is where the loss that the run minimizes, Σ p_i F_i, has no slope.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from common.averages import step_towards
from common.strategies.fedavg import FedAvg
from common.strategies.strategy import SiteUpdate, State, mean_of
from common.training.hooks import Arrays, Hooks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from common.config.run_config import RunConfig


class ControlVariates(Hooks):
    """Corrects gradients by c - c_i, and finds the next c_i.

    Parameters
    ----------
    everyones : mapping of str to Tensor
        c, by name of the shared weights.
    own : mapping of str to Tensor
        c_i; empty at first, which means zeros.
    """

    changing = ("steps", "total")

    def __init__(self, everyones: State, own: State) -> None:
        self.everyones = everyones
        self.own = {n: own.get(n, torch.zeros_like(c)) for n, c in everyones.items()}
        self.steps = 0
        self.correction: Arrays = {}
        self.total: Arrays = {}

    def before_round(self, model: nn.Module) -> None:
        """Begin the sum of gradients."""
        for name, parameter in model.named_parameters():
            if name in self.everyones:
                self.correction[name] = (self.everyones[name] - self.own[name]).to(parameter.device)
                self.total[name] = torch.zeros_like(parameter)

    def gradient(self, model: nn.Module) -> None:
        """Add the batch's gradient to the sum, then correct it."""
        self.steps += 1
        for name, parameter in model.named_parameters():
            if name in self.total and parameter.grad is not None:
                self.total[name] += parameter.grad
                parameter.grad += self.correction[name]

    def after_round(self, trained: State) -> tuple[Arrays, Arrays]:
        """Send c + (c_i⁺ - c_i), which is near c once gradients change little; keep c_i⁺."""
        del trained
        own = {n: total.cpu() / max(1, self.steps) for n, total in self.total.items()}
        sent = {
            n: c + (own[n] - self.own[n]) if n in own else c.clone()
            for n, c in self.everyones.items()
        }
        return sent, own


class Scaffold(FedAvg):
    """Correct each site's gradients by what all sites' are; average the weights."""

    secure_sums = False  # c moves by how many sites have answered, and travels beside the weights
    private = True  # control variates are means of gradients that have their noise already

    def hooks(self, config: RunConfig, arrays: State, private: State) -> Hooks:
        """Return the correction."""
        del config
        return ControlVariates(arrays, private)

    def first_state(
        self, weights: State, config: RunConfig, sites: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """Begin with c = 0."""
        del config, sites
        return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}

    def arrays(self, state: State) -> dict[str, Tensor]:
        """Send c."""
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
        """Average weights and control variates."""
        found, _ = super().aggregate(
            updates, weights, {}, config, participants=participants, rate=rate
        )
        return found, step_towards(state, mean_of(updates, "arrays"), len(updates) / participants)


STRATEGY = Scaffold()
