"""Averages of the sites' weights, and steps along them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]


def weighted_mean(updates: Mapping[str, State], votes: Mapping[str, float]) -> dict[str, Tensor]:
    """Return Σ v_i T_i / Σ v_i of each tensor, summed in the order of ``updates``.

    Parameters
    ----------
    updates : mapping of str to mapping of str to Tensor
        By site; each with the same names and shapes.
    votes : mapping of str to float
    """
    total = sum(votes[site] for site in updates)
    mean: dict[str, Tensor] = {}
    for site, state in updates.items():
        share = votes[site] / total
        for name, tensor in state.items():
            part = tensor * share
            mean[name] = mean[name] + part if name in mean else part
    return mean


def step_towards(weights: State, goal: State, rate: float) -> dict[str, Tensor]:
    """Return W - η (W - goal): the goal itself for η = 1 (Hsu et al. 2019, arXiv 1909.06335)."""
    if rate == 1:
        return dict(goal)
    return {name: weight - rate * (weight - goal[name]) for name, weight in weights.items()}
