"""DP-SGD whose unit is the person: the gradient of each is clipped, and the sum gets noise.

After Abadi et al. 2016, "Deep learning with differential privacy", arXiv 1607.00133, algorithm 1,
with people in place of examples. In a step each of N people is drawn with the chance q = B/N. With
L_i the mean loss over the images that person i has in the step, C the largest norm, and

    g_i = ∇L_i · min(1, C / ‖∇L_i‖)          over all weights that are trained

the step's gradient is

    g = (Σ_i g_i + N(0, σ² C² I)) / B

B is the *expected* number of people. The number that was drawn tells who takes part, and a number
that is rounded from the size of the data can be 0, or another with one person more: at small sites
that voids the guarantee (Opacus, issues 571 and 819). So one person more or less changes the sum by
no more than C, and one who is replaced by another by no more than 2 C.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import ConfigError
from common.privacy.noise import noise_like
from common.privacy.sampling import poisson_batches
from common.seeding import derive_seed


@dataclass(frozen=True)
class DPSGD:
    """The draws and gradients of one round at one site.

    Parameters
    ----------
    noise_multiplier : float
        σ.
    max_norm : float
        C.
    people : float
        B, expected in a step.
    rate : float
        q.
    images : int
        Most images of a person in a step.
    seed : int
        Of people and noise. Whoever knows it knows the noise, and there is no guarantee against
        him. The noise of each step has a seed of its own, so that an interrupted round draws it
        again.
    """

    noise_multiplier: float
    max_norm: float
    people: float
    rate: float
    images: int
    seed: int

    def batches(self, persons: Sequence[str]) -> Iterator[list[NDArray]]:
        """Draw the images of people for each step, without end."""
        seed = derive_seed(self.seed, purpose="people")
        return poisson_batches(persons, self.rate, self.images, seed)

    def backward(self, model: nn.Module, losses: Iterable[Tensor], step: int) -> Tensor:
        """Give a model the gradient of a step, in place of ``loss.backward()``.

        Parameters
        ----------
        model : nn.Module
        losses : iterable of Tensor
            L_i of each person who was drawn; perhaps none.
        step : int
            Another number in each step of the round.

        Returns
        -------
        Tensor
            The mean loss, without noise: it must not leave the site. 0 where nobody was drawn.
        """
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        seen: list[Tensor] = []
        total = sum_of_clipped(_kept(losses, seen), weights, self.max_norm)
        generator = np.random.default_rng(derive_seed(self.seed, purpose="noise", step=step))
        for weight, gradient in zip(weights, total, strict=True):
            if self.noise_multiplier:
                gradient += self.noise_multiplier * self.max_norm * noise_like(weight, generator)
            weight.grad = gradient / self.people
        return torch.stack(seen).mean() if seen else torch.zeros((), device=weights[0].device)


def sum_of_clipped(
    losses: Iterable[Tensor], weights: Sequence[Tensor], max_norm: float
) -> list[Tensor]:
    """Return Σ_i ∇L_i · min(1, C / ‖∇L_i‖), of each weight.

    A gradient that is not finite counts as none: it could not be bounded.

    Parameters
    ----------
    losses : iterable of Tensor
        L_i, made one after the other, so that one person's network is in memory at a time.
    weights : sequence of Tensor
    max_norm : float
        C.
    """
    total = [torch.zeros_like(weight) for weight in weights]
    for loss in losses:
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        norms = [gradient.norm() for gradient in found if gradient is not None]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if not norm.isfinite():
            continue
        share = max_norm / norm.clamp(min=max_norm) if max_norm < float("inf") else 1.0
        for gathered, gradient in zip(total, found, strict=True):
            if gradient is not None:
                gathered += gradient * share
    return total


def require_separate(model: nn.Module) -> None:
    """Refuse a network in which one person's image changes what another's becomes.

    Raises
    ------
    ConfigError
    """
    batch = nn.modules.batchnorm._BatchNorm
    if any(isinstance(layer, batch) and layer.training for layer in model.modules()):
        raise ConfigError(
            "privacy.epsilon: a BatchNorm mixes the people of a batch, and no gradient is one "
            "person's alone: choose a network with GroupNorm (model.normalization = 'group'), or "
            "with frozen statistics ('frozen')"
        )


def _kept(losses: Iterable[Tensor], seen: list[Tensor]) -> Iterator[Tensor]:
    """Pass losses on and remember their values."""
    for loss in losses:
        seen.append(loss.detach())
        yield loss
