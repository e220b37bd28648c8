"""Whom a model's attacks are measured on: people in training, and others like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.attacks.membership import by_person
from common.data.dataset import Dataset, pool
from common.evaluation.authenticity import choose_matched
from simulations.trained import Trained

POOLED = "centralized"  # how the names of a comparison's cells begin


@dataclass(frozen=True)
class People:
    """People of one site, in training and not, with their images.

    Parameters
    ----------
    site : str
    data : Dataset
        All labelled images of training and test sets, in this order.
    inside : (N,) of bool
        Whether an image is in the training set.
    rows : (M,) int64
        Images of those who are compared: of each class as many people in training as not.
    """

    site: str
    data: Dataset
    inside: NDArray[np.bool_]
    rows: NDArray[np.int64]

    @property
    def chosen(self) -> Dataset:
        """Images of those who are compared."""
        return self.data.subset(self.rows)

    def table(self, scores: NDArray, **about: str) -> pd.DataFrame:
        """Return one row for each person: ``person`` (a number), ``in_training`` and ``score``.

        Parameters
        ----------
        scores : (M,) floats
            Of each chosen image.
        **about : str
            Further columns, in front.
        """
        persons, means = by_person(scores, self.chosen.persons)
        inside = dict(zip(self.data.persons, self.inside, strict=True))
        table = pd.DataFrame(
            {
                "person": range(len(persons)),
                "in_training": [bool(inside[one]) for one in persons],
                "score": means,
            }
        )
        for place, (name, value) in enumerate({**about, "site": self.site}.items()):
            table.insert(place, name, value)
        return table


def choose_people(trained: Trained, site: str, count: int, seed: int) -> People:
    """Choose people in training and as many others of each class, who are in the test set.

    Parameters
    ----------
    trained : Trained
    site : str
    count : int
        People a group, at most.
    seed : int
    """
    sets = [trained.open(site, split).labelled() for split in ("train", "test")]
    known = set(sets[0].persons)  # nobody is in both groups, whatever a table says
    sets[1] = sets[1].subset(np.array([one not in known for one in sets[1].persons], bool))
    data = pool(sets)
    inside = np.repeat([True, False], [len(one) for one in sets])
    classes = classes_of(data)
    groups = []
    for wanted in (True, False):
        people = list(dict.fromkeys(np.array(data.persons, object)[inside == wanted]))
        groups.append({"person": people, "stratum": [classes[one] for one in people]})
    found = choose_matched(*groups, count, seed)
    chosen = {group["person"][k] for group, index in zip(groups, found, strict=True) for k in index}
    rows = np.flatnonzero([one in chosen for one in data.persons])
    return People(site, data, inside, rows)


def classes_of(data: Dataset) -> dict[str, tuple[int, ...]]:
    """Return the classes of each person's images."""
    found: dict[str, set[int]] = {}
    for person, label in zip(data.persons, data.labels.tolist(), strict=True):
        found.setdefault(person, set()).add(label)
    return {person: tuple(sorted(labels)) for person, labels in found.items()}


def participants_of(trained: Trained) -> Mapping[str, Sequence[str]]:
    """Tell whose images each participant of a training had: a comparison also trains on pools."""
    name, cell, sites = trained.folder.name, trained.folder.parent, trained.training_sites
    if cell.parent.name == "cells" and cell.name.startswith(POOLED):
        return {name: list(sites)}
    return {site: [site] for site in sites}
