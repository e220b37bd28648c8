"""A site as a strategy's half there sees it, in a round and before its test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from common.averages import State
from common.training.hooks import Hooks

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig

COMMON = "common"  # the name of the model that sites train together


@dataclass(frozen=True)
class Trained:
    """What a site's half of a round gives.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        All of the model's; those that are shared are sent, the others are kept.
    arrays : mapping of str to Tensor
        Sent beside: a value for each array that came with the order.
    private : mapping of str to Tensor
        Kept at the site for the next round's half, and for evaluation.
    """

    parameters: State
    arrays: State = field(default_factory=dict)
    private: State = field(default_factory=dict)


class SiteTraining(Protocol):
    """A site in one round, as a strategy sees it.

    Attributes
    ----------
    config : RunConfig
    site : str
        The site's name, or a pool's.
    sites : tuple of str
        All sites of the run, sorted.
    round : int
        From 1.
    steps : int
        Optimizer steps in a round.
    weights : mapping of str to Tensor
        All of the model's parameters at the round's beginning: those that the server has sent, and
        the site's own of those that are not shared.
    arrays : mapping of str to Tensor
        The strategy's further arrays, as the server has sent them.
    private : mapping of str to Tensor
        What the last round's half has kept; empty at first.
    parts : mapping of str to str
        Of each parameter: "head", the last linear layer; "norm", a normalization; "body".
    """

    config: RunConfig
    site: str
    sites: tuple[str, ...]
    round: int
    steps: int
    weights: State
    arrays: State
    private: State
    parts: Mapping[str, str]

    def fit(self, weights: State, hooks: Hooks, *, model: str = COMMON) -> dict[str, Tensor]:
        """Train for a round's steps from some weights; return all parameters.

        Each model that a site trains by a name of its own has its own optimizer's moments.
        """


class SiteTuning(Protocol):
    """A site that is about to be tested, as a strategy sees it; see :class:`SiteTraining`."""

    config: RunConfig
    parts: Mapping[str, str]

    def fit(self, weights: State, steps: int, hooks: Hooks) -> dict[str, Tensor]:
        """Train for some steps from some weights; return all parameters."""

    def loss(self, weights: State) -> float:
        """Return the loss on the site's validation images."""
