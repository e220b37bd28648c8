"""One round of training at one site: what comes with the order, what goes back, what stays.

The same at a hospital, in a simulation and in a pool, so that no arm of a comparison trains in
another way than the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.strategies.strategy import State, join, load_strategy, split, with_prefix

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig
    from common.data.dataset import Dataset
    from common.tasks.task import SiteContext, Task

# Parts of a site's private state: the task's, the strategy's, parameters that do not travel.
TASK, STRATEGY, OWN = "task/", "strategy/", "own/"


@dataclass(frozen=True)
class LocalRound:
    """What a round at a site gives.

    Parameters
    ----------
    metrics : dict of str to float
        To be reported.
    sent : dict of str to Tensor
        Trained weights and the strategy's further arrays, with the names that came.
    private : dict of str to Tensor
        What the next round at this site needs, and nobody else gets.
    """

    metrics: dict[str, float]
    sent: dict[str, Tensor]
    private: dict[str, Tensor]


def first_weights(task: Task, model: Any, config: RunConfig) -> dict[str, Tensor]:
    """Return what a run's first order brings, given a model as it is before any training."""
    strategy = load_strategy(config.strategy.name)
    weights = task.shared_state(model, config)
    return join(weights, strategy.arrays(strategy.first_state(weights, config)))


def train_one_round(
    task: Task,
    model: Any,
    data: Dataset,
    config: RunConfig,
    *,
    received: State,
    private: State,
    place: SiteContext,
    round_number: int,
) -> LocalRound:
    """Train a site's model for one round.

    Parameters
    ----------
    task : Task
    model : object
        As the task builds it; its state is replaced by what was received and kept.
    data : Dataset
        The site's training images.
    config : RunConfig
    received : mapping of str to Tensor
        The server's weights and the strategy's further arrays.
    private : mapping of str to Tensor
        What the last round at this site gave; empty at first.
    place : SiteContext
    round_number : int
        From 1.
    """
    strategy = load_strategy(config.strategy.name)
    weights, arrays = split(received)
    task.load_shared(model, {**with_prefix(private, OWN), **weights})
    hooks = strategy.hooks(config, arrays, with_prefix(private, STRATEGY))
    fit = task.fit(
        model,
        data,
        config,
        place=place,
        round_number=round_number,
        private=with_prefix(private, TASK),
        **({"hooks": hooks} if task.takes_hooks else {}),
    )
    trained = task.parameters(model)
    shared = {name: tensor for name, tensor in trained.items() if strategy.shares(name, config)}
    sent, kept = hooks.after_round(shared)
    own = {name: tensor for name, tensor in trained.items() if name not in shared}
    parts = {TASK: fit.private, STRATEGY: kept, OWN: own}
    return LocalRound(
        fit.metrics,
        join(shared, sent),
        {prefix + name: part[name] for prefix, part in parts.items() for name in part},
    )
