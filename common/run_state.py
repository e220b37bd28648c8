"""What a run goes on from between two rounds, and the sites as the loop of rounds sees them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from common.early_stopping import EarlyStopping
from common.incidents import Incidents
from common.participation import Standing
from common.selection import Judged
from common.strategies.strategy import State

if TYPE_CHECKING:
    from torch import Tensor

Fits = dict[str, dict[str, float]]  # what a round's training reported, by site
Measured = Mapping[str, tuple[int, Mapping[str, float]]]  # by site: count of images, metrics


@dataclass(frozen=True)
class Update:
    """A site's training: images trained on, metrics, and its whole weights.

    ``state`` is what came, trained: weights and the strategy's further arrays.
    """

    count: int
    metrics: dict[str, float]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Best:
    """The best round so far.

    Parameters
    ----------
    round : int
    released : mapping of str to Tensor
    fits : dict
        What its training reported.
    judged : Judged
    private : dict of str to mapping
        Private states of sites in this process, as they were.
    """

    round: int
    released: State
    fits: Fits
    judged: Judged
    private: dict[str, dict[str, Tensor]] = field(default_factory=dict)


@dataclass
class RunState:
    """All that a run goes on from between two rounds: tensors and plain values.

    Parameters
    ----------
    shared : mapping of str to Tensor
        The weights that the next round begins with.
    released : mapping of str to Tensor
        What is judged and given away.
    strategy : mapping of str to Tensor
        The strategy's server state.
    round : int
        Rounds that are done.
    trained : int
        Rounds whose training is done; the last of them may still have to be validated.
    fits : dict
        What the last round's training reported.
    best : Best, optional
    is_known : bool
        Whether it is known of any round how it fared.
    incidents : Incidents
    reference : mapping of str to Tensor
        What every remote site holds of the last order to train: :func:`common.transport.to_keep`.
    judged_on : dict
        Images that each site judges on, by split.
    bytes_up, bytes_down : int
        Sent so far.
    private : dict of str to mapping
        Private states of sites in this process; remote ones keep their own.
    unshared : mapping of str to Tensor
        Parameters that stay at the sites, where these begin with given ones: a site's first order
        brings them.
    standing : Standing
    stopping : EarlyStopping
    secret_noise : bool
        Whether the server's noise follows from nothing that anybody knows, and is another each
        time; in a simulation it follows from the run's seed.
    """

    shared: State
    released: State
    strategy: State
    round: int = 0
    trained: int = 0
    fits: Fits = field(default_factory=dict)
    best: Best | None = None
    is_known: bool = False
    incidents: Incidents = field(default_factory=Incidents)
    reference: State = field(default_factory=dict)
    judged_on: dict[str, dict[str, int]] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    private: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unshared: State = field(default_factory=dict)
    standing: Standing = field(default_factory=Standing)
    stopping: EarlyStopping = field(default_factory=EarlyStopping)
    secret_noise: bool = True


class Sites(Protocol):
    """The sites of a run, however they are reached."""

    names: tuple[str, ...]  # sorted

    def train(self, number: int, weights: State, state: RunState) -> dict[str, Update]:
        """Have a round's sites train; return the updates that can be used, in order of name.

        Parameters
        ----------
        number : int
            The round, from 1.
        weights : mapping of str to Tensor
            The round's, with the strategy's further arrays.
        state : RunState
            For what must be remembered of the exchange; its ``unshared`` goes with a site's first
            weights, and does not come back.

        Raises
        ------
        Exception
            A site has failed, or there is no usable update.
        """

    def evaluate(self, number: int, released: State, split: str, state: RunState) -> Judged:
        """Have sites judge what is released."""

    def settle(
        self, number: int, used: Collection[str], refused: Mapping[str, str], state: RunState
    ) -> None:
        """Note whose updates, of those that :meth:`train` has returned, are used, and why not."""

    def record(self, number: int, split: str, measured: Measured) -> None:
        """Write metrics to the run's log."""

    def keep(self, state: RunState) -> None:
        """Keep what the run goes on from, after a round and before its validation."""
