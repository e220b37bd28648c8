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
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch

from common import messages
from common.errors import ConfigError, FedscanError
from common.fingerprint import digest, fingerprint
from common.local_round import first_weights
from common.strategies.strategy import ARRAYS, load_strategy, with_prefix
from common.transport import received, to_keep

if TYPE_CHECKING:
    from torch import Tensor

    from clients.policy import SitePolicy
    from clients.state import SiteState
    from common.config.run_config import RunConfig
    from common.tasks.task import Task

# Parts of what is kept between rounds: the weights received, and the norms of the site's own
# largest updates.
REFERENCE, LARGEST = "reference/", "largest-update/"
# Rounding of a broadcast in float16, and of the same network built on another processor.
RELATIVE, ABSOLUTE = 2.0**-10, 1e-6


class Orders:
    """Decides which of a run's orders are followed.

    The app decides at the site, and so does the gate, by what each has kept itself.

    Parameters
    ----------
    site : str
    task : Task
    config : RunConfig
    policy : SitePolicy
    state : SiteState
        Where the round before was kept, with what :meth:`to_keep` gave.
    without_labels : callable
        Tells whether the site has no label to train on.
    """

    def __init__(
        self,
        site: str,
        task: Task,
        config: RunConfig,
        policy: SitePolicy,
        state: SiteState,
        without_labels: Callable[[], bool],
    ) -> None:
        self.site, self.task, self.config, self.policy = site, task, config, policy
        self.state, self._without_labels = state, without_labels
        self._strategy = load_strategy(config.strategy.name)

    def require_training(
        self,
        number: int,
        sent: Mapping[str, Tensor],
        sites: tuple[str, ...],
        last: int,
        before: Mapping[str, Tensor],
        model: Callable[[], Any],
    ) -> dict[str, Tensor]:
        """Return the weights that an order to train brings, or refuse it.

        A site that was away from rounds gets whole weights, not differences.

        Parameters
        ----------
        number : int
            The round.
        sent : mapping of str to Tensor
            What came with the order, encoded.
        sites : tuple of str
        last : int
            The last round that the site has trained in; 0: none yet.
        before : mapping of str to Tensor
            What was kept of it.
        model : callable
            Builds the model with which the run begins.

        Raises
        ------
        FedscanError
        """
        known = with_prefix(before, REFERENCE) if last == number - 1 else {}
        reference = received(sent, to_keep(known, self.config.transport))
        if last:  # what stays here came with the first order, and again if its answer came late
            kept = {n.removeprefix(REFERENCE) for n in before if n.startswith(REFERENCE)}
            reference = {name: tensor for name, tensor in reference.items() if name in kept}
        if number == 1:
            expected = first_weights(self.task, model(), self.config, sites)
            approved = self.policy.approved_weights
            require_first_weights(self.site, reference, expected, approved)
        elif self._trains:
            self._require_explained(reference, self._rounds(number - last), before, sites, model)
        order = f"{messages.TRAIN}, round {number}"
        self.state.require_one_order(order, digest_of_order(sent, sites))
        return reference

    def require_evaluation(
        self,
        number: int,
        split: str,
        sent: Mapping[str, Tensor],
        sites: tuple[str, ...],
        model: Callable[[], Any],
    ) -> dict[str, Tensor]:
        """Return the released weights that an order to judge brings, or refuse it.

        What is tested was validated before, unless the site was away then: it is looked at now.

        Raises
        ------
        FedscanError
        """
        released = received(sent)
        asked = digest_of_order(sent, sites)
        validated = split == "test" and self.state.require_validated(asked, number)
        if self._trains and not validated:
            last = self.state.last(number)
            # An average over time lies between the weights of all rounds so far.
            lag = number if self.task.averages_over_time else self._rounds(number - last + 1)
            self._require_explained(released, lag, self.state.load(last), sites, model)
        # A test is asked for once, whatever round's model that is.
        self.state.require_one_order(
            split if split == "test" else f"{split}, round {number}", asked
        )
        return released

    def to_keep(
        self,
        trained: Mapping[str, Tensor],
        reference: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return what must be kept of a round for the next one's decision.

        Parameters
        ----------
        trained : mapping of str to Tensor
            What is sent back.
        reference : mapping of str to Tensor
            Of :meth:`require_training`, with the same names.
        before : mapping of str to Tensor
            What was kept of the round before.
        """
        largest = largest_updates(trained, reference, with_prefix(before, LARGEST))
        kept = {REFERENCE + name: tensor for name, tensor in reference.items()}
        return kept | {LARGEST + name: norm for name, norm in largest.items()}

    def _rounds(self, since: int) -> int:
        """Bound how many rounds explain a movement: how many there were is the server's word."""
        return min(since, 1 + self.policy.max_absence)

    @property
    def _trains(self) -> bool:
        """Whether the site learns from its images: else no weights can make it tell of them."""
        return self._strategy.trains_at(self.site, self.config)

    def _require_explained(
        self,
        weights: Mapping[str, Tensor],
        rounds: int,
        kept: Mapping[str, Tensor],
        sites: tuple[str, ...],
        model: Callable[[], Any],
    ) -> None:
        """Refuse weights that so many rounds do not explain, by what was kept before them."""
        statistics = (ARRAYS + name for name in self._strategy.sums_over_people)
        reference, largest = with_prefix(kept, REFERENCE), with_prefix(kept, LARGEST)
        untrained = not reference
        if untrained:  # the site was away from the first rounds: it knows how the run began
            first = first_weights(self.task, model(), self.config, sites)
            reference = {name: tensor.float() for name, tensor in first.items()}
            largest = {name: torch.zeros(()) for name in reference}
        require_explained(
            self.site,
            weights,
            reference,
            largest,
            rounds * self.policy.max_movement,
            exempt={*self.task.statistics_of(self.config), *statistics},
            untrained=untrained or self._without_labels(),
        )


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
    untrained: bool = False,
) -> None:
    """Refuse weights that have moved farther since a round's than updates explain.

    A tensor of n entries may move by ``factor`` · max(u, r √n), where u is the norm of the site's
    own largest update of it, and r the root mean square of the largest updates of all entries: a
    small tensor that the site itself hardly trains may be trained by others. A strategy's further
    arrays have an r of their own, as they are in other units. A tensor that the site does not train
    at all (u = 0) may not move, but for the rounding of an average. A site without labels never
    trains a classifier's head and perhaps nothing in the first rounds, while others do, and one
    that was away from the first rounds has no update yet: there r is at least the root mean square
    of the weights, and every tensor may move.

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
    untrained : bool
        Whether the site has no label to train on, or has not trained yet.

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
        if untrained:
            squares = sum(float(before[name].square().sum()) for name in names)
            usual[further] = max(usual[further], math.sqrt(squares / numbers))
            if further:  # a strategy's arrays may begin at zero
                usual[further] = max(usual.values())
    excess = {}
    for name in received.keys() - set(exempt):
        tensor, own = received[name], float(largest[name])
        most = factor * max(own, usual[name.startswith(ARRAYS)] * math.sqrt(tensor.numel()))
        if not own and not untrained:
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
