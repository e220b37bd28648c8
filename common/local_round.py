"""One site's part in a round: what comes with an order, what goes back, what stays.

The same at a hospital, in a simulation and in a pool, so that no arm of a comparison trains or
judges in another way than the others.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common import trouble
from common.data.unlabelled import UnlabelledError
from common.disclosure import WITHHELD
from common.errors import ConfigError
from common.evaluation.of_site import Evaluation
from common.site_training import COMMON, SiteTraining, SiteTuning
from common.strategies.strategy import State, join, load_strategy, split, with_prefix
from common.tasks.task import SiteContext, load_task

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig
    from common.data.dataset import Dataset
    from common.tasks.task import Load, Task
    from common.training.hooks import Hooks
    from common.training.progress import Progress

# Parts of a site's private state: the task's of each model that it trains, the strategy's,
# parameters that do not travel.
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


def first_weights(task: Task, model: Any, config: RunConfig, sites: tuple[str, ...]) -> State:
    """Return what a run's first order brings, given a model as it is before any training."""
    strategy = load_strategy(config.strategy.name)
    weights = task.shared_state(model, config)
    arrays = strategy.arrays(strategy.first_state(weights, config, sites))
    return join({**unshared(task, model, config), **weights}, arrays)


@lru_cache(maxsize=4)
def shapes_sent(config: RunConfig, sites: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of what comes back of a round, from a model with random weights."""
    task = load_task(config.task)
    model = task.build_model(config, SiteContext("", sites, torch.device("cpu")))
    kept = unshared(task, model, config)
    arrays = first_weights(task, model, config, sites)
    return {name: tuple(array.shape) for name, array in arrays.items() if name not in kept}


def unshared(task: Task, model: Any, config: RunConfig) -> dict[str, Tensor]:
    """Return what a run's first order brings of parameters that stay at the sites from then on.

    Without a warm start nothing: a site makes them from the run's seed.
    """
    if not config.model.warm_start:
        return {}
    shared = task.shared_state(model, config)
    every = task.parameters(model)
    return {name: tensor for name, tensor in every.items() if name not in shared}


class _Training(SiteTraining):
    """A site in one round; see :class:`~common.site_training.SiteTraining`."""

    def __init__(
        self,
        task: Task,
        model: Any,
        data: Dataset,
        config: RunConfig,
        *,
        received: State,
        private: State,
        place: SiteContext,
        round_number: int,
        progress: Progress | None,
    ) -> None:
        weights, self.arrays = split(received)
        self.task, self.model, self.data, self.config = task, model, data, config
        self.place, self.round, self.kept = place, round_number, private
        self.site, self.sites = place.site, place.sites
        self.steps = config.local_steps(len(data))
        self.weights = whole(task, model, weights, private)
        self.private = with_prefix(private, STRATEGY)
        self.parts = task.parts(model)
        self.metrics: dict[str, float] = {}
        self.moments: dict[str, Tensor] = {}
        self.progress, self.trainings = progress, 0

    def fit(self, weights: State, hooks: Hooks, *, model: str = COMMON) -> dict[str, Tensor]:
        """Train; the metrics that are reported are those of the common model."""
        prefix = f"{TASK}{model}/"
        self.trainings += 1
        self.task.load_shared(self.model, weights)
        fit = self.task.fit(
            self.model,
            self.data,
            self.config,
            place=self.place,
            round_number=self.round,
            private=with_prefix(self.kept, prefix),
            hooks=hooks,
            progress=self.progress and self.progress.of(self.trainings),
        )
        self.moments |= {prefix + name: tensor for name, tensor in fit.private.items()}
        if model == COMMON:
            self.metrics = fit.metrics
        return self.task.parameters(self.model)


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
    progress: Progress | None = None,
) -> LocalRound:
    """Do a site's half of a round, with the trouble that a simulation gives it.

    A site that may not use its labels, under a strategy that needs them, sends what it received.

    Parameters
    ----------
    task : Task
    model : object
        As the task builds it; its state is replaced by what was received and kept.
    data : Dataset
        The site's training images.
    config : RunConfig
    received : mapping of str to Tensor
        The server's weights and the strategy's further arrays; with the first order of a run that
        has a warm start also the parameters that stay at the site.
    private : mapping of str to Tensor
        What the last round at this site gave; empty at first.
    place : SiteContext
    round_number : int
        From 1.
    progress : Progress, optional
        Where the same round goes on if it is interrupted.

    Raises
    ------
    AbsentError
        The site is away in this round of a simulation.
    """
    trouble.attend(config, place.site, round_number)
    strategy = load_strategy(config.strategy.name)
    if not strategy.trains_at(place.site, config):
        weights, arrays = split(received)
        parts = task.parts(model)
        shared = {n: t for n, t in weights.items() if strategy.shares(n, parts[n], config)}
        own = {OWN + n: t for n, t in weights.items() if n not in shared}
        return LocalRound({}, join(shared, arrays), {**private, **own})
    if not strategy.uses_unlabelled:
        data = data.labelled()  # in a pool there may be others
    if not len(data):
        raise ConfigError(
            "data.unlabelled leaves no image to train on: take out one of its names, or choose a "
            "strategy that learns from images without labels"
        )
    data = trouble.as_trained_on(data, config, place.site, round_number)
    site = _Training(
        task,
        model,
        data,
        config,
        received=received,
        private=private,
        place=place,
        round_number=round_number,
        progress=progress,
    )
    done = strategy.train(site)
    shared = {
        name: tensor
        for name, tensor in done.parameters.items()
        if strategy.shares(name, site.parts[name], config)
    }
    sent = trouble.as_sent(shared, split(received)[0], config, place.site, round_number)
    statistics = {name: done.arrays[name] for name in strategy.sums_over_people}
    told = place.disclosure.sums(statistics, _effective_people(data)) if statistics else {}
    own = {name: tensor for name, tensor in done.parameters.items() if name not in shared}
    parts = {"": site.moments, STRATEGY: done.private, OWN: own}
    return LocalRound(
        site.metrics,
        join(sent, {**done.arrays, **told}),
        {prefix + name: part[name] for prefix, part in parts.items() for name in part},
    )


def _effective_people(data: Dataset) -> int:
    """Return over how many people a sum over batches counts, in which all classes may be alike.

    Images without a label are a class here. The people of the rarest count most, each as much as if
    there were as many of every class.
    """
    kinds, persons = np.unique(data.labels), np.array(data.persons)
    fewest = min(len(np.unique(persons[data.labels == kind])) for kind in kinds)
    return min(data.people, len(kinds) * fewest)


class _Tuning(SiteTuning):
    """A site before its test; see :class:`~common.site_training.SiteTuning`."""

    def __init__(
        self, task: Task, model: Any, load: Load, config: RunConfig, place: SiteContext
    ) -> None:
        self.task, self.model, self.load = task, model, load
        self.config, self.place, self.parts = config, place, task.parts(model)

    def fit(self, weights: State, steps: int, hooks: Hooks) -> dict[str, Tensor]:
        """Train as in a run of one round."""
        values = {"run.rounds": 1, "training.local-steps": steps, "training.local-epochs": 0}
        data = self.load("train").labelled()
        if not len(data):
            return dict(weights)
        self.task.load_shared(self.model, weights)
        self.task.fit(
            self.model,
            data,
            self.config.replace(values),
            place=self.place,
            round_number=1,
            private={},
            hooks=hooks,
        )
        return self.task.parameters(self.model)

    def loss(self, weights: State) -> float:
        """Judge on validation images."""
        found = self.task.evaluate(weights, self.load, "val", self.config, place=self.place)
        return found.metrics["loss"]


def judge_at_site(
    task: Task,
    released: State,
    load: Load,
    split_name: str,
    config: RunConfig,
    *,
    private: State,
    place: SiteContext,
    round_number: int,
    records: Path | None = None,
) -> Evaluation:
    """Judge what is released on one split of a site, as the strategy adapts it to the site.

    Parameters
    ----------
    task : Task
    released : mapping of str to Tensor
    load : callable
    split_name : {"val", "test"}
    config : RunConfig
    private : mapping of str to Tensor
        What the site has kept of the round whose model that is.
    place : SiteContext
    round_number : int
        That round.
    records : Path, optional
        For what stays at the site: predictions, and the model where it is the site's own.
    """
    strategy = load_strategy(config.strategy.name)
    weights = released
    if task.judged_whole:
        model = task.build_model(config, place)
        kept = with_prefix(private, STRATEGY)
        weights = strategy.personal(whole(task, model, released, private), kept, config)
        with suppress(UnlabelledError):  # nothing to tune by
            if split_name == "test":
                weights = strategy.tune(_Tuning(task, model, load, config, place), weights)
        if records is not None and strategy.is_personal:
            task.save(records, weights, weights, config, round_number=round_number, place=place)
    try:
        return task.evaluate(weights, load, split_name, config, place=place, records=records)
    except UnlabelledError as error:
        return Evaluation(0, {}, words={WITHHELD: error.problem})


def whole(task: Task, model: Any, weights: State, private: State) -> dict[str, Tensor]:
    """Complete shared weights by the site's own; before its first round they are the initial."""
    return {**task.parameters(model), **with_prefix(private, OWN), **weights}
