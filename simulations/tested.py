"""Tables of a comparison's tests: typed, checked, and which model a row speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.disclosure import OF_ALL_CLASSES
from common.errors import DataContractError
from common.evaluation.classification import OF_POSITIVE
from common.evaluation.statistics import LEAST_PERSONS, Repeated, Strata
from common.predictions import PROBABILITY
from simulations.contrasts import AT, CENTRALIZED, LOCAL
from simulations.measures import measure
from simulations.results import CHOSEN, NUMBERS, TEXTS

Key = tuple[str, str, str]  # arm, strategy, trained on
ONE_CLASS = "test images of one class only"


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Copy with empty names as "", where a plain reader of CSV files has NaN, and numbers."""
    texts = {c: table[c].astype(object).fillna("").astype(str) for c in TEXTS if c in table}
    numbers = {c: pd.to_numeric(table[c], errors="coerce") for c in NUMBERS if c in table}
    typed = table.assign(**texts, **numbers).reindex(columns=[*table.columns])
    return typed.reindex(columns=[*typed.columns, *(c for c in NUMBERS if c not in typed)])


@dataclass(frozen=True)
class Predictions:
    """A site's test images: labels (N,), persons (N,), and (N, K) of each model and repetition."""

    labels: NDArray
    persons: NDArray
    classes: tuple[str, ...]
    probabilities: dict[tuple[Key, int], NDArray]

    @cached_property
    def members(self) -> dict[str, set[int]]:
        """Persons who have an image of each class."""
        of_class = enumerate(self.classes)
        return {name: set(self.persons[self.labels == k].tolist()) for k, name in of_class}

    def few(self, metric: str, positive: str | None) -> tuple[str, ...]:
        """Return the classes of too few persons that a measure's interval would rest on."""
        kind, _, one = metric.partition(".")
        if kind in OF_ALL_CLASSES:  # means over images, to which a rare class adds little
            return ()
        found = [name for name, who in self.members.items() if 0 < len(who) < LEAST_PERSONS]
        if one := one or (positive or "" if kind in OF_POSITIVE else ""):
            against = kind != "recall" and len(self._rest(one)) < LEAST_PERSONS
            found = [name for name in found if name == one or against]
        return tuple(found)

    def strata(self, metric: str, positive: str | None) -> Strata:
        """Return weight and persons of each class that a measure rests on."""
        kind, _, one = metric.partition(".")
        groups = [who for who in self.members.values() if who]
        if kind in OF_ALL_CLASSES:
            groups = [set().union(*groups)]
        elif one := one or (positive or "" if kind in OF_POSITIVE else ""):
            groups = [self.members[one]] + [self._rest(one)] * (kind != "recall")
        return tuple((1 / len(groups), len(who)) for who in groups if who)

    def _rest(self, one: str) -> set[int]:
        """Persons who have an image of another class."""
        return set().union(*(who for name, who in self.members.items() if name != one))

    def undefined(self, metric: str, positive: str | None) -> str:
        """Say why these images cannot tell a measure; nothing where they can."""
        kind, _, one = metric.partition(".")
        ranks = kind in ("auroc", *OF_POSITIVE)
        if ranks and not one and (len(self.classes) == 2 or kind in OF_POSITIVE):
            one = positive or self.classes[-1]
        if one in self.members and not self.members[one]:
            return f"no test image of {one}"
        single = sum(map(bool, self.members.values())) < 2
        return ONE_CLASS if ranks and single else ""


def counts(cohorts: Sequence[Predictions]) -> dict[str, Any]:
    """Count the images of each class and the persons, of several cohorts the fewest of any.

    ``few`` names classes of few persons.
    """
    classes = cohorts[0].classes
    images = [np.bincount(one.labels, minlength=len(classes)) for one in cohorts]
    few = {name for one in cohorts for name in one.few("balanced_accuracy", None)}
    return {
        "images": dict(zip(classes, np.min(images, axis=0).tolist(), strict=True)),
        "persons": min(len(np.unique(one.persons)) for one in cohorts),
        "few": [name for name in classes if name in few],
    }


def read_cohorts(site: str, frame: pd.DataFrame, *, new_cohorts: bool) -> list[Predictions]:
    """Read a site's predictions: of each repetition apart, where each has people of its own."""
    if not new_cohorts:
        return [read_predicted(site, frame)]
    return [read_predicted(site, one) for _, one in frame.groupby("seed")]


def read_predicted(site: str, frame: pd.DataFrame) -> Predictions:
    """Read a site's predictions of the same people, checked to be paired."""
    remedy = "Every model is to be tested once on each of the same images"
    columns = [c for c in frame.columns if c.startswith(PROBABILITY)]
    frame = typed(frame).sort_values("scan", kind="stable")
    by = ["arm", "strategy", "trained_on", "seed"]
    if frame.duplicated([*by, "scan"]).any():
        raise DataContractError(site, "a prediction is there twice", remedy=remedy)
    about = [name for name in ("label", "person") if name in frame]
    if (frame.groupby("scan")[about].nunique(dropna=False) != 1).any(axis=None):
        raise DataContractError(
            site, "the label or the person of a test image changes", remedy=remedy
        )
    first = frame.drop_duplicates("scan")
    found = {}
    for key, mine in frame.groupby(by):
        if len(mine) < len(first):
            raise DataContractError(site, "a model lacks predictions of test images", remedy=remedy)
        found[tuple(key[:3]), int(key[3])] = mine[columns].to_numpy(float)
    persons = first["person" if "person" in first else "scan"].to_numpy()
    names = tuple(name.removeprefix(PROBABILITY) for name in columns)
    return Predictions(first["label"].to_numpy(), persons, names, found)


def target_of(classes: Sequence[str], positive: str | None) -> int | None:
    """Return the index of the class that is to be found; of two classes, the second."""
    if positive:
        return list(classes).index(positive)
    return 1 if len(classes) == 2 else None


def models_of(table: pd.DataFrame) -> list[Key]:
    """Every model that ended well: pooled, federated, then each site's own."""
    tests = table[(table["status"] == "done") & (table["split"] == "test")]
    order = {CENTRALIZED: 0, "federated": 1, LOCAL: 2}
    keys = tests[["arm", "strategy", "trained_on"]].drop_duplicates().itertuples(index=False)
    return sorted((tuple(key) for key in keys), key=lambda key: (order.get(key[0], 3), *key))


def name_of_model(key: Key) -> str:
    """Return a model's name anywhere: ``local at SITE`` of one that a site trained alone."""
    arm, _, trained_on = key
    return f"{own_name(key)}{AT}{trained_on}" if arm == LOCAL else own_name(key)


def own_name(key: Key) -> str:
    """Return a model's arm with its strategy or variant; of a site's own, its name there."""
    arm, strategy, _ = key
    return f"{arm}/{strategy}" if strategy else arm


def name_at(key: Key, place: str) -> str:
    """Return a model's name at a place: ``local`` where it is the site's own."""
    return own_name(key) if key[0] == LOCAL and key[2] == place else name_of_model(key)


def described(keys: list[Key], places: list[str]) -> dict[str, dict[str, str]]:
    """Return arm, strategy and trained_on of every model, by its name."""
    parts = ("arm", "strategy", "trained_on")
    found = {name_of_model(key): dict(zip(parts, key, strict=True)) for key in keys}
    for key in keys:
        if key[0] == LOCAL and key[2] in places:
            found[own_name(key)] = {"arm": LOCAL, "strategy": key[1], "trained_on": ""}
    return found


def rows_of(tests: pd.DataFrame, key: Key) -> pd.DataFrame:
    """Return the rows of a model."""
    arm, strategy, trained_on = key
    mine = (tests["arm"] == arm) & (tests["strategy"] == strategy)
    return tests[mine & (tests["trained_on"] == trained_on)]


def by_seed(rows: pd.DataFrame) -> dict[int, float]:
    """Return finite values by seed."""
    rows = rows[np.isfinite(rows["value"])]
    return {int(s): float(v) for s, v in zip(rows["seed"], rows["value"], strict=True)}


def summarize_use(use: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean and interval of every row of ``use.csv``: what synthetic images are good for.

    Parameters
    ----------
    use : DataFrame
        Columns seed, row, site, metric, value, n.

    Returns
    -------
    list of dict
        row, site, metric, n and what :meth:`Repeated.record` gives, for a chosen amount without
        ends; in the file's order of rows.
    """
    found = []
    for (row, site, metric), group in use.groupby(["row", "site", "metric"], sort=False):
        n = group["n"].max()
        about = {"row": str(row), "site": str(site), "metric": str(metric)}
        told = Repeated(by_seed(group), bounds=measure(str(metric)).bounds).record()
        if metric == CHOSEN:  # picked from a grid: no number that strays around a mean
            told |= {"low": None, "high": None}
        found.append({**about, "n": int(n) if np.isfinite(n) else None, **told})
    return found
