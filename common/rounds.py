"""The one loop of rounds: train, aggregate, release, validate when due; then test the best, once.

A federation and every arm of a comparison run it; they differ only in how sites are reached, which
is what :class:`Sites` stands for.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from common.aggregation import aggregate_round
from common.config.run_config import RunConfig
from common.errors import ConfigError, DivergedError
from common.evaluation.of_site import Evaluation, ValidationResult
from common.local_round import unshared
from common.metrics_log import WHOLE
from common.participation import learning_sites, sites_in_training
from common.privacy.guarantee import central_guarantee_of
from common.run_state import Best, Fits, RunState, Sites
from common.selection import Judged, due, is_better
from common.strategies.strategy import State, join, load_strategy
from common.summed import require_sums
from common.tasks.task import SiteContext, load_task

# A child of Flower's logger, so that lines reach its console and `flwr run --stream`.
log = logging.getLogger("flwr.fedscan")


@dataclass(frozen=True)
class Result:
    """The round whose model is the result, and its test."""

    round: int
    fits: Fits
    test: Judged
    selected_by: str


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
    if config.run.min_replies > (training := sites_in_training(learning, config)):
        raise ConfigError(
            f"run.min-replies = {config.run.min_replies}, and {training} of {sites} sites train in "
            "a round: lower it, or raise run.fraction"
        )
    if 0 < config.run.min_replies < needed:
        raise ConfigError(
            f"run.min-replies = {config.run.min_replies}, and strategy '{config.strategy.name}' "
            f"needs {needed} sites in each round: raise it"
        )
    if config.privacy.secure_sums:
        require_sums(config, training)


def require_sites(config: RunConfig, sites: Collection[str]) -> None:
    """Refuse too few sites, and a run that names one that there is not.

    Raises
    ------
    ConfigError
    """
    named = {"data.unlabelled": config.data.unlabelled_sites, "trouble": config.trouble.sites}
    for key, names in named.items():
        if strange := set(names) - set(sites):
            raise ConfigError(
                f"{key}: there is no site '{min(strange)}': accepted are {', '.join(sites)}"
            )
    require_number(config, len(sites))


def begin(config: RunConfig, place: SiteContext) -> RunState:
    """Return the state of a run before its first round.

    Raises
    ------
    ConfigError
        There are too few sites for the strategy, ``data.unlabelled`` names one that there is not,
        the weights to begin with cannot be read, or no noise keeps the server's promise.
    """
    require_sites(config, place.sites)
    if config.privacy.is_central:
        promise = central_guarantee_of(config, n := len(learning_sites(place.sites, config)))
        log.info(
            "Noise at the server: each of %d sites has ε = %g, δ = %.3g over %d rounds, by a noise "
            "multiplier of %.3g and updates clipped to %g",
            *(n, promise.epsilon, promise.delta, promise.rounds, promise.noise_multiplier),
            config.privacy.central_norm,
        )
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

    With ``run.patience`` they end where validation gets no better.

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
    if state.best and state.best.round == state.round:  # it may have ended before it was saved
        _save(state, config, place=place, folder=folder)
    while state.round < rounds and not state.stopping.is_over(config):
        number = state.round + 1
        if state.trained < number:
            state.shared, state.strategy = aggregate_round(number, state, config, sites)
            state.released = task.release(
                state.released,
                state.shared,
                config,
                round_number=number,
                participants=len(sites.names),
            )
            state.trained = number
        is_best, is_due = False, due(number, config.run.evaluate_every, rounds)
        if is_due:
            sites.keep(state)  # who has judged these weights judges no others in this round
            is_best = _validate(number, state, config, sites)
        state.round = number
        sites.keep(state)
        if is_best or (is_due and not state.is_known):
            # At once: what ends the run early must not take the best generator with it.
            _save(state, config, place=place, folder=folder)
        if is_due:
            task.illustrate(folder, state.released, config, round_number=number, place=place)
    best = state.best
    if best is not None:
        test = _evaluate(best.round, best.released, "test", state, sites)
        return Result(best.round, best.fits, test, "validation")
    if state.is_known:
        raise DivergedError("no round had a finite validation loss: the run has diverged")
    log.warning(
        "No site has reported how well any round fared: the result is the last round's model"
    )
    test = _evaluate(state.round, state.released, "test", state, sites)
    return Result(state.round, state.fits, test, "last round")


def _validate(number: int, state: RunState, config: RunConfig, sites: Sites) -> bool:
    """Have a round's released state judged, and tell whether it is the best so far."""
    task = load_task(config.task)

    def judge(evaluations: Mapping[str, Evaluation]) -> ValidationResult:
        return task.judge(evaluations, config)

    judged = _evaluate(number, state.released, "val", state, sites)
    if judged.is_finite or 2 * len(judged.undefined) > len(sites.names):
        state.is_known = True
    state.stopping.note(judged, config)
    chosen = is_better(judge, judged, state.best.judged if state.best else None)
    if chosen:
        state.best = Best(number, state.released, state.fits, judged, dict(state.private))
    words = judged.merged.words if judged.merged else "no site tells how well it fared"
    log.info("Round %d/%d: %s", number, config.run.rounds, words)
    return chosen


def _save(state: RunState, config: RunConfig, *, place: SiteContext, folder: Path) -> None:
    """Write the last round's model."""
    number = state.round
    load_task(config.task).save(
        folder, state.released, state.shared, config, round_number=number, place=place
    )


def _evaluate(
    number: int, released: State, split_name: str, state: RunState, sites: Sites
) -> Judged:
    judged = sites.evaluate(number, released, split_name, state)
    measured = {name: (e.count, e.metrics) for name, e in judged.evaluations.items()}
    if judged.merged:
        count = sum(one.count for one in judged.evaluations.values())
        _, own = measured.get(WHOLE, (0, {}))  # of a secure sum
        measured[WHOLE] = count, {**own, **judged.merged.whole}
    sites.record(number, split_name, measured)
    return judged
