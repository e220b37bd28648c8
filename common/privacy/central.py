"""Differential privacy whose unit is the site: a clipped sum of updates, and the server's noise.

After McMahan et al. 2018, "Learning differentially private recurrent language models", arXiv
1710.06963, with sites in place of users. With Δ_i = w_i - w the update of one of the n sites that
are asked in a round, S the largest norm, and R the sites whose answers are there,

    w̄ = w + (Σ_{i ∈ R} Δ_i · min(1, S / ‖Δ_i‖) + N(0, σ² S² I)) / n

n follows from the run's configuration and its list of sites, never from who has answered, so that a
site which is silent, or whose data are empty, changes the sum by no more than S and nothing else.
Nothing that a server does with w̄ tells more. In a fixed-size sample every site counts as if it were
in each round: the draw follows from the run's seed, which all know, and amplifies nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.privacy.noise import noise_like

if TYPE_CHECKING:
    from torch import Tensor

    from common.averages import State


# What no training moves: a BatchNorm's statistics, and how a pretrained network pads. Noise would
# make a variance negative.
FIXED = ("running_mean", "running_var", "num_batches_tracked", "mean", "variance", "same_padding")
HEADS = ("head.", "network._fc.")  # begin the names of classifiers' last linear layers


def moving(
    names: Iterable[str], *, head_alone: bool = False, weights_alone: bool = False
) -> list[str]:
    """Return the weights that sites may move: all, or those of the last layer.

    Parameters
    ----------
    names : iterable of str
    head_alone : bool
    weights_alone : bool
        Whether there is nothing but weights, as in an extension's network (``check_network``):
        there a weight may have the name of one of fedscan's own buffers.
    """
    if weights_alone:
        return list(names)
    free = [name for name in names if name.rpartition(".")[2] not in FIXED]
    return [name for name in free if name.startswith(HEADS)] if head_alone else free


def clipped_sum(
    updates: Mapping[str, State], weights: State, norm: float, names: Collection[str]
) -> dict[str, Tensor]:
    """Return Σ_i Δ_i · min(1, S / ‖Δ_i‖) in float64, the norm over all named weights together.

    An update that is not finite counts as none: it could not be bounded.

    Parameters
    ----------
    updates : mapping of str to mapping of str to Tensor
        Whole weights w_i by site; each is read once.
    weights : mapping of str to Tensor
        w.
    norm : float
        S.
    names : collection of str
        Of the weights that sites may move.
    """
    total = {name: torch.zeros_like(weights[name], dtype=torch.float64) for name in names}
    for site in updates:
        trained = updates[site]
        moved = {name: trained[name].double() - weights[name].double() for name in names}
        length = torch.stack([tensor.norm() for tensor in moved.values()]).norm()
        if not length.isfinite():
            continue
        share = norm / length.clamp(min=norm)
        for name, tensor in moved.items():
            total[name] += share * tensor
    return total


def noisy_mean(
    updates: Mapping[str, State],
    weights: State,
    *,
    norm: float,
    noise_multiplier: float,
    sites: int,
    seed: int,
    names: Collection[str],
) -> dict[str, Tensor]:
    """Return w̄, the mean of clipped updates with noise; weights that are not named stay.

    Parameters
    ----------
    updates, weights, norm, names
        As in :func:`clipped_sum`.
    noise_multiplier : float
        σ.
    sites : int
        n.
    seed : int
        Whoever knows it knows the noise.
    """
    total = clipped_sum(updates, weights, norm, names)
    generator = np.random.default_rng(seed)
    mean = dict(weights)
    for name, tensor in total.items():
        moved = (tensor + noise_multiplier * norm * noise_like(tensor, generator)) / sites
        mean[name] = (weights[name].double() + moved).to(weights[name].dtype)
    return mean
