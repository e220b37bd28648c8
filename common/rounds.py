"""The one loop of rounds: train, aggregate, release, validate when due; then test the best, once.

A federation and every arm of a comparison run it; they differ only in how sites are reached, which
is what :class:`Sites` stands for.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from common.bounds import bounded_votes, longest_norms, shortened, update_norms
from common.config.run_config import RunConfig
from common.errors import ConfigError, DivergedError
from common.evaluation.of_site import Evaluation
from common.incidents import Incidents
from common.local_round import unshared
from common.metrics_log import UPDATE_NORM, WHOLE
from common.selection import Judged, due, is_better
from common.strategies.strategy import SiteUpdate, State, join, load_strategy, split
from common.tasks.task import SiteContext, ValidationResult, load_task

# A child of Flower's logger, so that lines reach its console and `flwr run --stream`.
log = logging.getLogger("flwr.fedscan")

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
        Parameters that stay at the sites, where these begin with given ones: until the first order
        has brought them.
    """

    shared: State
    released: State
    strategy: State
    round: int = 0
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


@dataclass(frozen=True)
class Result:
    """The round whose model is the result, and its test."""

    round: int
    fits: Fits
    test: Judged
    selected_by: str


class Sites(Protocol):
    """The sites of a run, however they are reached."""

    names: tuple[str, ...]  # sorted

    def train(self, number: int, weights: State, state: RunState) -> dict[str, Update]:
        """Have every site train; return the updates that can be used, in order of name.

        Parameters
        ----------
        number : int
            The round, from 1.
        weights : mapping of str to Tensor
            The round's, with the strategy's further arrays.
        state : RunState
            For what must be remembered of the exchange; its ``unshared`` goes with the weights, and
            does not come back.

        Raises
        ------
        Exception
            A site has failed, or there is no usable update.
        """

    def evaluate(self, number: int, released: State, split: str, state: RunState) -> Judged:
        """Have sites judge what is released."""

    def record(self, number: int, split: str, measured: Measured) -> None:
        """Write metrics to the run's log."""


def require_number(config: RunConfig, sites: int) -> None:
    """Refuse fewer sites than the strategy needs, of those that may learn.

    Raises
    ------
    ConfigError
    """
    strategy, hidden = load_strategy(config.strategy.name), config.data.unlabelled_sites
    learning = sites - sum(not strategy.trains_at(site, config) for site in hidden)
    if len(hidden) >= sites:
        raise ConfigError(
            "data.unlabelled leaves no site with labels to train on: take out one of its names"
        )
    if learning < (needed := strategy.sites_needed(config)):
        raise ConfigError(
            f"strategy '{config.strategy.name}' needs {needed} sites and there are {learning}: "
            "choose another (fedscan strategies tells how many each needs), or other options"
        )


def require_sites(config: RunConfig, sites: Collection[str]) -> None:
    """Refuse too few sites, and a run that names one that there is not.

    Raises
    ------
    ConfigError
    """
    if strange := set(config.data.unlabelled_sites) - set(sites):
        raise ConfigError(
            f"data.unlabelled: there is no site '{min(strange)}': accepted are {', '.join(sites)}"
        )
    require_number(config, len(sites))


def begin(config: RunConfig, place: SiteContext) -> RunState:
    """Return the state of a run before its first round.

    Raises
    ------
    ConfigError
        There are too few sites for the strategy, ``data.unlabelled`` names one that there is not,
        or the weights to begin with cannot be read.
    """
    require_sites(config, place.sites)
    task, strategy = load_task(config.task), load_strategy(config.strategy.name)
    model = task.build_model(config, place)
    for note in task.warm_start(model, config):
        log.info("%s", note)
    shared = task.shared_state(model, config)
    if strategy.splits and len(shared) == len(task.parameters(model)):
        raise ConfigError(
            f"strategy '{config.strategy.name}' keeps nothing of this network at the sites: choose "
            "another strategy, or another model.classifier"
        )
    first = strategy.first_state(shared, config, place.sites)
    own = unshared(task, model, config)
    return RunState(shared, task.first_release(model, config), first, unshared=own)


def first_order(state: RunState, config: RunConfig) -> dict[str, Tensor]:
    """Return all that a run's first order brings: what a site approves by its fingerprint."""
    arrays = load_strategy(config.strategy.name).arrays(state.strategy)
    return join({**state.unshared, **state.shared}, arrays)


def run_rounds(
    state: RunState, config: RunConfig, sites: Sites, *, place: SiteContext, folder: Path
) -> Result:
    """Do the rounds that are not done yet; keep the best round's model, and test it.

    Parameters
    ----------
    state : RunState
        Of :func:`begin`, or of a run that goes on. Modified in place.
    config : RunConfig
    sites : Sites
    place : SiteContext
        Where weights are put together.
    folder : Path
        For the model and its pictures.

    Raises
    ------
    DivergedError
        If no round had a finite validation loss.
    Exception
        Whatever ended the run early.
    """
    task, rounds = load_task(config.task), config.run.rounds
    for number in range(state.round + 1, rounds + 1):
        state.shared, state.strategy = _train(number, state, config, sites)
        state.released = task.release(
            state.released,
            state.shared,
            config,
            round_number=number,
            participants=len(sites.names),
        )
        if due(number, config.run.evaluate_every, rounds):
            _validate(number, state, config, sites, place=place, folder=folder)
        state.round = number
    best = state.best
    if best is not None:
        test = _evaluate(best.round, best.released, "test", state, sites)
        return Result(best.round, best.fits, test, "validation")
    if state.is_known:
        raise DivergedError("no round had a finite validation loss: the run has diverged")
    log.warning(
        "No site has reported how well any round fared: the result is the last round's model"
    )
    test = _evaluate(rounds, state.released, "test", state, sites)
    return Result(rounds, state.fits, test, "last round")


def _train(
    number: int, state: RunState, config: RunConfig, sites: Sites
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Have sites train, bound what single ones can do, and aggregate."""
    task, strategy = load_task(config.task), load_strategy(config.strategy.name)
    own = strategy.arrays(state.strategy)
    updates = sites.train(number, join(state.shared, own), state)
    state.unshared = {}
    learning = [name for name in sites.names if strategy.trains_at(name, config)]
    # What a site that may not learn has sent is no update.
    updates = {name: update for name, update in updates.items() if name in learning}
    state.fits = {name: update.metrics for name, update in updates.items()}
    weights, arrays = {}, {}
    for name, update in updates.items():
        weights[name], arrays[name] = split(update.state)

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


def _validate(
    number: int,
    state: RunState,
    config: RunConfig,
    sites: Sites,
    *,
    place: SiteContext,
    folder: Path,
) -> None:
    """Have a round's released state judged, and keep it where it is the best so far."""
    task = load_task(config.task)

    def judge(evaluations: Mapping[str, Evaluation]) -> ValidationResult:
        return task.judge(evaluations, config)

    judged = _evaluate(number, state.released, "val", state, sites)
    if judged.is_finite or 2 * len(judged.undefined) > len(sites.names):
        state.is_known = True
    chosen = is_better(judge, judged, state.best.judged if state.best else None)
    if chosen:
        state.best = Best(number, state.released, state.fits, judged, dict(state.private))
    if chosen or not state.is_known:
        # At once: what ends the run early must not take the best generator with it.
        task.save(folder, state.released, state.shared, config, round_number=number, place=place)
    words = judged.merged.words if judged.merged else "no site tells how well it fared"
    log.info("Round %d/%d: %s", number, config.run.rounds, words)
    task.illustrate(folder, state.released, config, round_number=number, place=place)


def _evaluate(
    number: int, released: State, split_name: str, state: RunState, sites: Sites
) -> Judged:
    judged = sites.evaluate(number, released, split_name, state)
    usable = judged.evaluations
    sites.record(number, split_name, {name: (e.count, e.metrics) for name, e in usable.items()})
    if judged.merged:
        count = sum(one.count for one in usable.values())
        sites.record(number, split_name, {WHOLE: (count, judged.merged.whole)})
    return judged
