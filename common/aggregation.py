"""A round of training, from the orders to the next round's weights."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from common.bounds import bounded_votes, longest_norms, outlying, shortened, update_norms
from common.extensions import is_extension
from common.lazy import Lazy
from common.metrics_log import UPDATE_NORM, WHOLE
from common.participation import sites_in_training
from common.privacy.central import moving, noisy_mean
from common.privacy.guarantee import central_guarantee_of
from common.privacy.noise import SECRET_BITS
from common.seeding import derive_seed
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
    # What a site that may not learn has sent is no update. A secure sum has one, of all sites.
    answered = updates
    updates = {name: u for name, u in answered.items() if name in learning or name == WHOLE}
    state.fits = {name: update.metrics for name, update in updates.items()}
    # Of many sites the updates are on the disk: none is held longer than it is needed.
    sent = Lazy(updates, lambda name: split(updates[name].state))
    norms = update_norms(Lazy(updates, lambda name: sent[name][0]), state.shared)
    central = config.privacy.is_central
    # What is done with one site by the others' updates would change with any of them.
    refused = {
        name: f"its update is far longer than the others' (robust z-score {score:.1f})"
        for name, score in ({} if central else outlying(norms)).items()
    }
    for name in refused:
        del updates[name], state.fits[name], norms[name]
    sites.settle(number, list(answered.keys() - refused.keys()), refused, state)
    of_weights = {} if central else _bounded(number, norms, config, state.incidents)
    of_arrays = {}
    if own:
        moved = update_norms(Lazy(updates, lambda name: sent[name][1]), own)
        of_arrays = _bounded(number, moved, config, state.incidents)
    sites.record(
        number,
        "train",
        {n: (u.count, {**u.metrics, UPDATE_NORM: norms[n]}) for n, u in updates.items()},
    )

    def bounded_weights(name: str) -> State:
        weights = sent[name][0]
        factor = of_weights.get(name)
        return shortened(weights, state.shared, factor) if factor else weights

    def bounded_arrays(name: str) -> State:
        arrays = sent[name][1]
        factor = of_arrays.get(name)
        return shortened(arrays, own, factor) if factor else arrays

    weights: Mapping[str, State] = Lazy(updates, bounded_weights)
    # With noise a site's own columns would be in the others' updates too; a sum tells none of them.
    if task.aligns and not central and WHOLE not in updates:
        aligned = {name: dict(bounded_weights(name)) for name in updates}
        # What only a site that lost the round can learn stays as the server has it.
        for name in set(sites.names) - aligned.keys():
            aligned[name] = {key: tensor.clone() for key, tensor in state.shared.items()}
        task.align({name: aligned[name] for name in sites.names}, config)
        weights = {name: aligned[name] for name in updates}

    by_images = config.strategy.weighting == "images"
    votes = {name: float(u.count) if by_images else 1.0 for name, u in updates.items()}
    bounded = bounded_votes(votes, config.strategy.most_share)
    over = [name for name in votes if bounded[name] < votes[name]]
    state.incidents.share(number, over, config.strategy.most_share)

    # No step is taken in statistics over people: they are put together, whatever the strategy.
    statistics = state.shared.keys() & task.statistics_of(config)

    def seen_of(name: str) -> SiteUpdate:
        whole = weights[name]
        return SiteUpdate(
            {key: t for key, t in whole.items() if key not in statistics},
            updates[name].count,
            bounded[name],
            bounded_arrays(name),
            updates[name].metrics,
            {key: whole[key] for key in statistics},
        )

    participants = len(learning)
    seen: Mapping[str, SiteUpdate] = Lazy(updates, seen_of)
    if central:
        of_run = derive_seed(config.run.seed, purpose="noise of the server", round=number)
        mean = noisy_mean(
            weights,
            state.shared,
            norm=config.privacy.central_norm,
            noise_multiplier=central_guarantee_of(config, participants).noise_multiplier,
            sites=sites_in_training(participants, config),
            seed=secrets.randbits(SECRET_BITS) if state.secret_noise else of_run,
            names=moving(
                state.shared,
                head_alone=config.model.trains == "head",
                weights_alone=is_extension(config.model.classifier),
            ),
        )
        seen = {"all": SiteUpdate(mean, count=0, votes=1.0)}
    found, server = strategy.aggregate(
        seen,
        {key: tensor for key, tensor in state.shared.items() if key not in statistics},
        state.strategy,
        config,
        participants=participants,
        rate=config.strategy.server_learning_rate or task.server_learning_rate(participants),
    )
    if statistics:
        found |= strategy.statistics(seen, config)
    # A mean of equal weights is rounded, and would drift.
    if config.model.trains == "head" and not central:
        equal = set(state.shared)
        for one in weights.values():
            equal = {name for name in equal if torch.equal(one[name], state.shared[name])}
        found |= {name: state.shared[name] for name in equal}
    return {key: found[key] for key in state.shared}, server


def _bounded(
    number: int, norms: Mapping[str, float], config: RunConfig, incidents: Incidents
) -> dict[str, float]:
    """Return by what factor the moves of some sites are shortened, by the others' norms."""
    factors = {}
    for name, most in longest_norms(norms, config.strategy.most_norm).items():
        if norms[name] > most:
            incidents.norm(number, name, norms[name], most)
            factors[name] = most / norms[name]
    return factors
