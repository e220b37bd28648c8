"""Which orders a site follows: each round once, from weights that the run itself explains.

A server that means ill chooses weights so that one update, or one metric, gives away an image. So
the first weights of a run must be those that its seed gives, or have the site's approval; later
ones, also of a model that is validated, may have moved no farther than updates as large as the
site's own explain; a model is tested that was validated before; and no round can be tried again
with other weights. A round of training moves weights by about their own initial size. So these
bounds delay a server that leads weights astray by a few rounds, and do not stop it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch

from common.errors import ConfigError, FedscanError
from common.fingerprint import digest, fingerprint
from common.strategies.strategy import ARRAYS

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig

# Rounding of a broadcast in float16, and of the same network built on another processor.
RELATIVE, ABSOLUTE = 2.0**-10, 1e-6


def require_round(config: RunConfig, number: int) -> None:
    """Refuse a round that the run does not have.

    Raises
    ------
    ConfigError
    """
    if not 1 <= number <= config.run.rounds:
        raise ConfigError(f"round {number} of a run of {config.run.rounds} rounds is refused")


def require_first_weights(
    site: str,
    received: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    approved: Collection[str],
) -> None:
    """Refuse first weights that are neither the run's own nor approved.

    Parameters
    ----------
    site : str
    received : mapping of str to Tensor
    expected : mapping of str to Tensor
        What the site has built from the run's seed.
    approved : collection of str
        Fingerprints.

    Raises
    ------
    FedscanError
        With the fingerprint, which says nothing of the site.
    """
    same = received.keys() == expected.keys() and all(
        received[name].shape == tensor.shape
        and torch.allclose(received[name], tensor.float(), rtol=RELATIVE, atol=ABSOLUTE)
        for name, tensor in expected.items()
    )
    if not same and (found := fingerprint(received)) not in approved:
        raise FedscanError(
            f"site '{site}': the first weights are not those of the run's seed, and their "
            f"fingerprint {found} is not among the site's approved-weights. Ask the site to add "
            "it to its policy"
        )


def require_explained(
    site: str,
    received: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    largest: Mapping[str, Tensor],
    factor: float,
    *,
    exempt: Collection[str] = (),
    without_labels: bool = False,
) -> None:
    """Refuse weights that have moved farther since a round's than updates explain.

    A tensor of n entries may move by ``factor`` · max(u, r √n), where u is the norm of the site's
    own largest update of it, and r the root mean square of the largest updates of all entries: a
    small tensor that the site itself hardly trains may be trained by others. A strategy's further
    arrays have an r of their own, as they are in other units. A tensor that the site does not train
    at all (u = 0) may not move, but for the rounding of an average. A site without labels never
    trains a classifier's head and perhaps nothing in the first rounds, while others do: there r is
    at least the root mean square of the weights, and every tensor may move.

    Parameters
    ----------
    site : str
    received, before : mapping of str to Tensor
        These weights, and those that the site had before. ``received`` may have fewer names.
    largest : mapping of str to Tensor
        Of :func:`largest_updates`.
    factor : float
        0 accepts everything.
    exempt : collection of str
        Names that may have any values: statistics, which are no weights.
    without_labels : bool
        Whether the site has no label to train on.

    Raises
    ------
    FedscanError
        Naming the tensor that has moved farthest beyond it.
    """
    if not factor:
        return
    usual = {}
    for further in (False, True):
        names = [n for n in largest if n.startswith(ARRAYS) == further and n not in exempt]
        numbers = max(1, sum(before[name].numel() for name in names))
        usual[further] = math.sqrt(sum(float(largest[name]) ** 2 for name in names) / numbers)
        if without_labels:
            squares = sum(float(before[name].square().sum()) for name in names)
            usual[further] = max(usual[further], math.sqrt(squares / numbers))
    excess = {}
    for name in received.keys() - set(exempt):
        tensor, own = received[name], float(largest[name])
        most = factor * max(own, usual[name.startswith(ARRAYS)] * math.sqrt(tensor.numel()))
        if not own and not without_labels:
            most = 0.0
        rounding = RELATIVE * float(before[name].norm()) + ABSOLUTE
        excess[name] = float((tensor - before[name]).norm()) / (most + rounding)
    worst = max(excess, key=excess.__getitem__)
    if not excess[worst] <= 1:  # NaN is refused as well
        raise FedscanError(
            f"site '{site}': {worst} has moved {excess[worst]:.3g} times as "
            f"far as the site accepts, {factor:g} times its own largest update (max-movement). "
            "Lower the server's learning rate or momentum, or ask the site to change its policy"
        )


def largest_updates(
    trained: Mapping[str, Tensor], received: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the Euclidean norm of each tensor's largest update so far, scalars.

    Parameters
    ----------
    trained, received : mapping of str to Tensor
        The weights after this round's training, and those with which it began.
    before : mapping of str to Tensor
        What this function gave after the round before; empty at first.
    """
    return {
        name: torch.maximum((tensor - received[name]).norm(), before.get(name, torch.zeros(())))
        for name, tensor in trained.items()
    }


def digest_of_order(weights: Mapping[str, Tensor], sites: Collection[str]) -> str:
    """Hash all of an order that decides its answer, but for the run's configuration."""
    return hashlib.sha256(json.dumps([digest(weights), *sites]).encode()).hexdigest()
