"""How sites learn together: what is shared, what a site does in a round, what the server does.

A strategy is one module of this package with an object ``STRATEGY``, and ``strategy.name`` is the
module's name; nothing else knows it. Whatever the strategy, the loop of rounds bounds how far one
site may pull and how many votes it may have (:mod:`common.bounds`).
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common import strategies
from common.errors import ConfigError
from common.training.hooks import Hooks

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig

State = Mapping[str, "Tensor"]

ARRAYS = "strategy/"  # before the names of a strategy's further arrays, beside those of weights
# Options of every strategy; the others in the group `strategy` belong to those that declare them.
COMMON = ("name", "weighting", "server_learning_rate", "most_share", "most_norm", "share")


@dataclass(frozen=True)
class SiteUpdate:
    """What a strategy's server half sees of a site's round.

    Parameters
    ----------
    weights : mapping of str to Tensor
        All shared weights after the site's training, bounded in how far they have moved.
    arrays : mapping of str to Tensor
        What the site's :meth:`~common.training.hooks.Hooks.after_round` has sent.
    count : int
        Images that the site trains on.
    votes : float
        How much it counts in an average, by the run's weighting, bounded; above 0.
    """

    weights: State
    count: int
    votes: float
    arrays: State = field(default_factory=dict)


class Strategy(ABC):
    """Base of all strategies; its methods are pure and know neither messages nor tasks."""

    # Its own options in the group `strategy`, each with a comparison's value where none is set.
    options: Mapping[str, float] = {}
    # Whether the server half needs no more than Σ votes · update and Σ votes over the sites.
    secure_sums: bool = False

    @property
    def name(self) -> str:
        """The name in the run config: that of the module."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def has_hooks(self) -> bool:
        """Whether it steps into the sites' training."""
        return type(self).hooks is not Strategy.hooks

    def check(self, config: RunConfig) -> None:
        """Refuse options that this strategy does not have.

        Raises
        ------
        ConfigError
        """
        for key, given in type(config.strategy).model_fields.items():
            value = getattr(config.strategy, key)
            if key not in (*COMMON, *self.options) and value != given.default:
                raise ConfigError(
                    f"run config: strategy.{key.replace('_', '-')} has no effect with strategy "
                    f"'{self.name}': set it {given.default!r}"
                )

    def shares(self, name: str, config: RunConfig) -> bool:
        """Tell whether a parameter travels; any other stays at the site, from round to round.

        By default all, or those of the one network that ``strategy.share`` names: its name is the
        first part of theirs.
        """
        share = config.strategy.share
        return share == "both" or name.startswith(f"{share}.")

    # The site half

    def hooks(self, config: RunConfig, arrays: State, private: State) -> Hooks:
        """Return what a site does in one round.

        Parameters
        ----------
        config : RunConfig
        arrays : mapping of str to Tensor
            The further arrays as the server has sent them: :meth:`arrays`.
        private : mapping of str to Tensor
            What the site's last ``after_round`` has kept; empty at first.
        """
        del config, arrays, private
        return Hooks()

    # The server half

    def first_state(self, weights: State, config: RunConfig) -> dict[str, Tensor]:
        """Return the server's state before the first round; the same wherever it is built."""
        del weights, config
        return {}

    def arrays(self, state: State) -> dict[str, Tensor]:
        """Return what of the server's state travels to the sites, beside the weights.

        A site sends arrays of the same names and shapes back.
        """
        del state
        return {}

    @abstractmethod
    def aggregate(
        self,
        updates: Mapping[str, SiteUpdate],
        weights: State,
        state: State,
        *,
        participants: int,
        rate: float,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Make the next round's weights and server state.

        Parameters
        ----------
        updates : mapping of str to SiteUpdate
            By site, in order of name; at least one. A site whose answer was not usable is missing.
        weights : mapping of str to Tensor
            The server's, with which the round began.
        state : mapping of str to Tensor
            The server's, of this strategy.
        participants : int
            Sites of the run.
        rate : float
            The server's learning rate.
        """


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


def join(weights: State, arrays: State) -> dict[str, Tensor]:
    """Put weights and a strategy's further arrays into one mapping, as they travel."""
    return {**weights, **{ARRAYS + name: tensor for name, tensor in arrays.items()}}


def split(joined: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take apart what :func:`join` has put together."""
    arrays = with_prefix(joined, ARRAYS)
    return {n: tensor for n, tensor in joined.items() if not n.startswith(ARRAYS)}, arrays


def with_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)}


def strategy_names() -> list[str]:
    """Name the strategies that there are."""
    modules = {module.name for module in pkgutil.iter_modules(strategies.__path__)}
    return sorted(modules - {"strategy"})


def load_strategy(name: str) -> Strategy:
    """Import a strategy by its name in the run config.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    if name not in strategy_names():
        raise ConfigError(
            f"run config: strategy.name = {name!r}: accepted is one of "
            f"{', '.join(strategy_names())}"
        )
    found: Any = importlib.import_module(f"{strategies.__name__}.{name}")
    return found.STRATEGY
