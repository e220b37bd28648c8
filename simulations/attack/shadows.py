"""Shadow models: the run once more, with other people of the attacked site in its training set.

The other sites train on their own people as they did. So the attacker is taken to know all that the
run was given but who of the site's people was in it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.attacks.membership import confidence, halves, lira, probability_of_truth
from common.checkpoints import read_model
from common.data.dataset import Dataset
from common.rounds import begin, run_rounds
from common.strategies.strategy import load_strategy
from common.tasks.task import SiteContext, load_task
from common.training.classifier import predict, survey_site
from simulations.arms import SitesInPlace
from simulations.attack.people import People, classes_of, participants_of
from simulations.console import Steps
from simulations.in_use import temporary_folder
from simulations.trained import Trained

NAME = "shadow"


class _Halved(SitesInPlace):
    """Sites of a run, one of which trains on other images."""

    def __init__(self, site: str, half: Dataset, *args: Any, **options: Any) -> None:
        self._attacked, self._half = site, half
        super().__init__(*args, **options)

    def _load(self, site: str, split: str) -> Dataset:
        if site == self._attacked and split == "train":
            return self._half
        return super()._load(site, split)


def lira_scores(
    trained: Trained, people: People, truth: NDArray, shadows: int, seed: int, bar: Steps
) -> NDArray[np.float64]:
    """Score the chosen images of a site by shadow models.

    Parameters
    ----------
    trained : Trained
    people : People
    truth : (M,) floats
        Probability of the true class, by the attacked model.
    shadows : int
        Even.
    seed : int
    bar : Steps
        Counts the models.
    """
    everybody, classes = list(dict.fromkeys(people.data.persons)), classes_of(people.data)
    chosen = halves([classes[one] for one in everybody], shadows, seed, f"shadows of {people.site}")
    number = {person: k for k, person in enumerate(everybody)}
    images = np.array([number[one] for one in people.data.persons])
    found = []
    for k, half in enumerate(chosen):
        of_half = people.data.subset(half[images])
        found.append(confidence(_shadow(trained, people, of_half, k)))
        bar.advance(note=f"{people.site}, model {k + 1} of {shadows}")
    return lira(confidence(truth), found, chosen[:, images[people.rows]])


def _shadow(trained: Trained, people: People, half: Dataset, number: int) -> NDArray[np.float64]:
    """Train one, and return its probability of the true class of each chosen image."""
    config = trained.config.replace({"run.seed": trained.config.run.seed + 1 + number})
    task, site = load_task(config.task), people.site
    place = SiteContext(NAME, trained.sites, trained.device)
    with temporary_folder() as folder, _quiet():
        sites = _Halved(
            *(site, half, participants_of(trained), trained.folders, config),
            place=place,
            log=folder / "metrics.csv",
            records=(folder / "sites", Path(NAME)),
        )
        run_rounds(begin(config, place), config, sites, place=place, folder=folder)
        personal = load_strategy(config.strategy.name).is_personal
        _, weights = read_model(folder / "sites" / site / NAME if personal else folder)
    model = task.build_model(config, SiteContext(site, trained.sites, trained.device))
    task.load_shared(model, weights)
    if config.model.adapt != "none":
        survey_site(model, half, config, trained.device)
    data = people.chosen
    return probability_of_truth(predict(model, data, trained.study, trained.device), data.labels)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the rounds of single shadow models from the console."""
    logger = logging.getLogger("flwr.fedscan")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
