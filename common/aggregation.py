"""A round of training, from the orders to the next round's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from common.bounds import bounded_votes, longest_norms, outlying, shortened, update_norms
from common.metrics_log import UPDATE_NORM
from common.strategies.strategy import SiteUpdate, State, join, load_strategy, split
from common.tasks.task import load_task

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig
    from common.incidents import Incidents
    from common.run_state import RunState, Sites


def aggregate_round(
    number: int, state: RunState, config: RunConfig, sites: Sites
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Have sites train, bound what single ones can do, and aggregate.

    Parameters
    ----------
    number : int
        The round, from 1.
    state : RunState
        Its ``fits``, ``incidents`` and what sites note in it are modified.
    config : RunConfig
    sites : Sites

    Returns
    -------
    shared, strategy : dict of str to Tensor
        Weights and the strategy's state for the next round.
    """
    task, strategy = load_task(config.task), load_strategy(config.strategy.name)
    own = strategy.arrays(state.strategy)
    updates = sites.train(number, join(state.shared, own), state)
    learning = [name for name in sites.names if strategy.trains_at(name, config)]
    # What a site that may not learn has sent is no update.
    updates = {name: update for name, update in updates.items() if name in learning}
    state.fits = {name: update.metrics for name, update in updates.items()}
    weights, arrays = {}, {}
    for name, update in updates.items():
        weights[name], arrays[name] = split(update.state)
    for name, score in outlying(update_norms(weights, state.shared)).items():
        why = f"its update is far longer than the others' (robust z-score {score:.1f})"
        sites.refuse(number, name, why, state)
        del updates[name], weights[name], arrays[name], state.fits[name]

    norms = _shorten(number, weights, state.shared, config, state.incidents)
    _shorten(number, arrays, own, config, state.incidents)
    sites.record(
        number,
        "train",
        {n: (u.count, {**u.metrics, UPDATE_NORM: norms[n]}) for n, u in updates.items()},
    )

    # What only a site that lost the round can learn stays as the server has it.
    for name in set(sites.names) - weights.keys():
        weights[name] = {key: tensor.clone() for key, tensor in state.shared.items()}
    task.align({name: weights[name] for name in sites.names}, config)

    by_images = config.strategy.weighting == "images"
    votes = {name: float(u.count) if by_images else 1.0 for name, u in updates.items()}
    bounded = bounded_votes(votes, config.strategy.most_share)
    over = [name for name in votes if bounded[name] < votes[name]]
    state.incidents.share(number, over, config.strategy.most_share)

    # No step is taken in statistics over people: they are put together, whatever the strategy.
    statistics = state.shared.keys() & set(task.statistics)
    seen = {
        name: SiteUpdate(
            {key: t for key, t in weights[name].items() if key not in statistics},
            update.count,
            bounded[name],
            arrays[name],
            update.metrics,
            {key: weights[name][key] for key in statistics},
        )
        for name, update in updates.items()
    }
    participants = len(learning)
    found, server = strategy.aggregate(
        seen,
        {key: tensor for key, tensor in state.shared.items() if key not in statistics},
        state.strategy,
        config,
        participants=participants,
        rate=config.strategy.server_learning_rate or task.server_learning_rate(participants),
    )
    found |= strategy.statistics(seen, config)
    if config.model.trains == "head":  # a mean of equal weights is rounded, and would drift
        found |= {
            name: tensor
            for name, tensor in state.shared.items()
            if all(torch.equal(one[name], tensor) for one in weights.values())
        }
    return {key: found[key] for key in state.shared}, server


def _shorten(
    number: int,
    updates: dict[str, dict[str, Tensor]],
    start: State,
    config: RunConfig,
    incidents: Incidents,
) -> dict[str, float]:
    """Bound by the others' how far each site has moved, in place; return how far it had."""
    norms = update_norms(updates, start)
    for name, most in longest_norms(norms, config.strategy.most_norm).items():
        if norms[name] > most:
            incidents.norm(number, name, norms[name], most)
            updates[name] = shortened(updates[name], start, most / norms[name])
    return norms
