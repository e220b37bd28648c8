"""What a comparison of arms says, of any task: means, intervals, paired differences, headlines.

Everything is computed from two tables: ``results.csv`` (one row a number) and, where a task leaves
them, each site's ``predictions.csv`` (one row a test image and model). How sure one may be stands
in :mod:`common.evaluation.statistics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.errors import FedscanError
from common.evaluation.curves import describe
from common.evaluation.resampling import resampling_weights, weighted_metrics
from common.evaluation.statistics import LEVEL, Repeated, number
from common.metrics_log import WHOLE
from common.seeding import derive_seed
from simulations.contrasts import CENTRALIZED, LOCAL, OTHER_ARMS, name_of, reference_of
from simulations.contrasts import contrasts as contrasts_of
from simulations.headlines import gain, loss
from simulations.measures import ATTACKED, Judged, judged
from simulations.results import count_cells
from simulations.tested import (
    ONE_CLASS,
    Key,
    Predictions,
    by_seed,
    counts,
    described,
    models_of,
    name_at,
    name_of_model,
    own_name,
    read_cohorts,
    rows_of,
    target_of,
    typed,
)
from simulations.training_speed import training_speed

Measured = dict[tuple[str, str, str], Repeated]  # by place, model and measure


def summarize(
    results: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame] | None = None,
    *,
    new_cohorts: bool = False,
    task: str = "classification",
    poor_site: str = "",
    sites: Sequence[str] = (),
    reference_strategy: str | None = None,
    contrasts: Sequence[Sequence[str]] = (),
    classes: Sequence[str] = (),
    positive: str | None = None,
    plain_bytes: Mapping[tuple[str, int], float] | None = None,
    reach: float = 0.0,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute ``summary.json`` from what a comparison wrote.

    Parameters
    ----------
    results : DataFrame
        ``results.csv``, with its columns as they are.
    predictions : mapping of str to DataFrame, optional
        Site to its ``predictions.csv``. Without them, intervals are over repetitions alone.
    new_cohorts : bool
        Whether every repetition has people of its own: no prediction of one is set beside, or
        resampled with, those of another.
    task : str
    poor_site : str
        The site with few training images.
    sites : sequence of str
        Further sites than those in the tables.
    reference_strategy : str, optional
        The strategy that stands for the federated arm; ``fedavg`` by default, without it the first.
    contrasts : sequence of (str, str), optional
        Names among strategies, ``local`` and ``centralized``; see
        :func:`simulations.contrasts.contrasts`.
    classes : sequence of str
        The study's; predictions name them as well.
    positive : str, optional
        The class that is to be found, where the study names one.
    plain_bytes : mapping of (strategy, seed) to float, optional
        What the messages of a federated repetition would have taken uncompressed.
    reach : float
        A Fréchet distance; see :func:`simulations.training_speed.training_speed`.
    draws : int
        Number of bootstrap samples.
    seed : int
        Of the resampling; the same seed gives the same summary.

    Returns
    -------
    dict
        Ready for JSON (None for what is undefined). A *model* is ``centralized``,
        ``federated/STRATEGY``, ``local``, which at a site is its own, or ``local at SITE``, another
        site's. A *place* is a site, or ``all``: what was measured over all of them, else the mean
        of the sites that have a value, each counting once.

        - ``scores[place][model][measure]``: mean, low, high, repetitions, over, values, note, n;
          note says why a value or an interval is missing
        - ``differences[place][contrast][measure]``: the same of a paired difference, with p
        - ``headline``: ``gain_of_data_poor_site`` and ``loss_against_pooling``, see
          :mod:`simulations.headlines`
        - ``costs[model]``: images_seen, bytes_up, bytes_down, seconds, repetitions: means over
          repetitions; share_of_plain_bytes where it is known; of generators what
          :func:`simulations.training_speed.training_speed` gives for the distance ``reach``
        - ``copies``: a record a generator, seed and site whose training images are copied
        - ``classes``, ``positive``; with predictions ``counts[site]`` (test images of each class,
          persons, classes of few) and ``curves[site][model]``
          (:func:`common.evaluation.curves.describe`)
        - ``models[model]``: arm, strategy, trained_on; ``cells``, ``repetitions``, ``new_cohorts``,
          ``level``, ``draws``, ``measures``, ``leading``, ``poor_site``, ``reference_strategy``,
          ``task``

    Raises
    ------
    FedscanError
        A number or a prediction is there twice, or models were not tested on the same images.

    Notes
    -----
    The p-values are not corrected for the number of measures and sites: the two headline figures
    are the questions of the comparison, the rest describes.
    """
    table = typed(results)
    tests = table[(table["status"] == "done") & (table["split"] == "test")]
    if tests.duplicated(["arm", "strategy", "trained_on", "tested_on", "seed", "metric"]).any():
        raise FedscanError("the results hold a test value twice. Remove the repeated rows")
    predicted = {
        s: read_cohorts(s, f, new_cohorts=new_cohorts)
        for s, f in (predictions or {}).items()
        if f is not None and len(f)
    }
    strategies = sorted({*table.loc[table["arm"] == "federated", "strategy"]})
    reference = reference_of(strategies, reference_strategy)
    pairs = contrasts_of(strategies, reference, contrasts)
    named = {*tests["tested_on"], *tests["trained_on"], *predicted, *sites, poor_site}
    places = sorted(named - {"", WHOLE})
    classes = next((one.classes for one, *_ in predicted.values()), tuple(classes))
    each = any("." in metric for metric in tests["metric"])
    speed = training_speed(table, reach) if task == "generation" else {}
    how = judged(task, classes, positive, each=each, attacked={*ATTACKED} <= {*tests["metric"]})
    keys = models_of(table)

    measured: Measured = {}
    for site in places:
        found = predicted.get(site, [])
        # Values on other people are independent as they are: nothing is left to resample.
        one = found[0] if len(found) == 1 else None
        samples = _resampled(one, site, positive, each, draws, seed) if one else {}
        measured |= _at_site(tests, keys, site, how, samples, found, positive)
    measured |= _over_all(tests, keys, places, how, measured)
    paired = _differences(measured, pairs, [*places, WHOLE], places, how)

    def records(found: Measured, tell: Callable[[Repeated], dict[str, Any]]) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for (place, name, metric), one in found.items():
            told.setdefault(place, {}).setdefault(name, {})[metric] = tell(one)
        return {place: told.get(place, {}) for place in (WHOLE, *places)}

    scores = records(measured, Repeated.record)
    _count(scores, tests, keys)
    differences = records(paired, Repeated.compared)
    against = {arm: name_of((reference, arm), pairs) for arm in OTHER_ARMS}
    return {
        "task": task,
        "level": LEVEL,
        "draws": draws,
        "poor_site": poor_site,
        "reference_strategy": reference or None,
        "repetitions": sorted({int(k) for k in tests["seed"]}),
        "new_cohorts": new_cohorts,
        "measures": list(how.measures),
        "leading": list(how.leading),
        "models": described(keys, places),
        "scores": scores,
        "differences": differences,
        "headline": {
            "gain_of_data_poor_site": gain(
                differences.get(poor_site, {}).get(against[LOCAL], {}), how, poor_site
            ),
            "loss_against_pooling": loss(differences[WHOLE].get(against[CENTRALIZED], {}), how),
        },
        "costs": {
            name: _costs(rows_of(tests, key), key, plain_bytes or {}) | speed.get(name, {})
            for name, key in ((name_of_model(key), key) for key in keys)
        },
        "reach": reach,
        "copies": [
            {"model": name, "seed": int(s), "site": site}
            for (site, name, metric), one in measured.items()
            if how.measures[metric].pool == "any" and site != WHOLE
            for s, value in one.values.items()
            if value > 0
        ],
        "classes": list(classes),
        "positive": positive or "",
        "counts": {site: counts(found) for site, found in predicted.items()},
        "curves": {
            site: {
                name_at(key, site): describe(runs, target_of(classes, positive))
                for key in keys
                if (
                    runs := [
                        (one.labels, p)
                        for one in found
                        for (k, _), p in one.probabilities.items()
                        if k == key
                    ]
                )
            }
            for site, found in predicted.items()
        },
        "cells": count_cells(table),
    }


def share_of_plain(sent: float, plain: float | None) -> float | None:
    """Return the share of plain messages' bytes that were sent; None where those are not known."""
    return float(sent) / plain if plain else None


# Numbers


def _resampled(
    found: Predictions,
    site: str,
    positive: str | None,
    each: bool,
    draws: int,
    seed: int,
) -> dict[tuple[Key, int], dict[str, NDArray]]:
    """Model and seed to every measure on each bootstrap sample of the site's persons."""
    rng = np.random.default_rng(derive_seed(seed, purpose="bootstrap of test scans", site=site))
    weights = resampling_weights(found.labels, draws, rng, found.persons)
    classes = found.classes if each or positive else None
    return {
        key: weighted_metrics(found.labels, probabilities, weights, classes, positive)
        for key, probabilities in found.probabilities.items()
    }


def _at_site(
    tests: pd.DataFrame,
    keys: list[Key],
    site: str,
    how: Judged,
    samples: Mapping[tuple[Key, int], Mapping[str, NDArray]],
    found: Sequence[Predictions],
    positive: str | None,
) -> Measured:
    """What a site's test images say of every model."""
    measured: Measured = {}
    here = tests[tests["tested_on"] == site]
    for key in keys:
        rows, name = rows_of(here, key), name_at(key, site)
        if rows.empty:
            continue
        for metric in how.measures:
            values = by_seed(rows[rows["metric"] == metric])
            resampled = {s: o[metric] for (k, s), o in samples.items() if k == key and metric in o}
            told = metric in set(rows["metric"])
            if not told and (not found or metric in ATTACKED):
                continue
            few = dict.fromkeys(name for one in found for name in one.few(metric, positive))
            why = found[0].undefined(metric, positive) if found else ""
            if not why:
                undefined = ONE_CLASS if metric == "auroc" else "undefined"
                why = undefined if told else f"withheld by {site}"
            measured[site, name, metric] = Repeated(
                values,
                resampled,
                "" if values else why,
                few=tuple(few) if values else (),
                bounds=how.measures[metric].bounds,
                strata=found[0].strata(metric, positive) if found else (),
            )
    return measured


def _over_all(
    tests: pd.DataFrame, keys: list[Key], places: list[str], how: Judged, measured: Measured
) -> Measured:
    """What all sites together say: measured over all of them, else their mean.

    A Fréchet distance of single sites does not add up to the whole's, so there is none without it.
    A generator is flagged where any site that has judged it says so.
    """
    found: Measured = {}
    whole = tests[tests["tested_on"] == WHOLE]
    for key in keys:
        rows = rows_of(whole, key)
        for metric, measure in how.measures.items():
            parts = {site: measured.get((site, name_at(key, site), metric)) for site in places}
            parts = {site: part or Repeated({}) for site, part in parts.items()}
            told = {m: by_seed(rows[rows["metric"] == m]) for m in (metric, f"{metric}_mean")}
            if measure.pool == "any":
                judging = {s for part in parts.values() for s in part.values}
                one = Repeated(
                    {s: max(p.values.get(s, 0.0) for p in parts.values()) for s in sorted(judging)},
                    bounds=measure.bounds,
                )
            elif told[metric] or measure.pool == "whole":
                one = Repeated(told[metric], bounds=measure.bounds)
            elif told[f"{metric}_mean"]:
                one = Repeated(told[f"{metric}_mean"], bounds=measure.bounds)
            else:
                one = Repeated.over_sites(parts)
            if one.values:
                found[WHOLE, name_of_model(key), metric] = one
    own = Counter(own_name(key) for key in keys if key[0] == LOCAL and key[2] in places)
    several = [n for n in own if own[n] > 1]
    for name in several if how.measures[how.leading[0]].pool == "mean" else ():
        for metric in how.measures:
            parts = {s: measured.get((s, name, metric)) or Repeated({}) for s in places}
            if (one := Repeated.over_sites(parts)).values:
                found[WHOLE, name, metric] = one
    return found


def _differences(
    measured: Measured,
    pairs: Mapping[str, tuple[str, str]],
    every: list[str],
    places: list[str],
    how: Judged,
) -> Measured:
    """Paired differences at every site; over all of what was measured there, else their mean."""
    tested = {(place, name) for place, name, _ in measured}

    def model(name: str) -> str:
        if name.partition("/")[0] in OTHER_ARMS:
            return name
        return f"federated/{name}" if name else "federated"

    found: Measured = {}
    for contrast, pair in pairs.items():
        names = [model(one) for one in pair]
        for place in every:
            for metric, measure in how.measures.items():
                parts = [
                    measured.get(
                        (place, name, metric),
                        Repeated(
                            {},
                            missing=f"{name} has no {measure.words} at {place}"
                            if (place, name) in tested
                            else f"{name} has no test result at {place}",
                        ),
                    )
                    for name in names
                ]
                one = Repeated.combine(parts, [1.0, -1.0])
                direct = all((part.values and not part.sites) for part in parts)
                if place == WHOLE and not direct:
                    if measure.pool != "mean":
                        continue
                    one = Repeated.over_sites({s: found[s, contrast, metric] for s in places})
                found[place, contrast, metric] = one
    return found


def _count(scores: dict[str, Any], tests: pd.DataFrame, keys: list[Key]) -> None:
    """Add to every score how many images it is over."""
    n = {
        (place, name_at(key, place)): rows["n"].max()
        for key in keys
        for place, rows in rows_of(tests, key).groupby("tested_on")
    }
    for place, models in scores.items():
        for name, found in models.items():
            count = n.get((place, name), np.nan)
            for record in found.values():
                record["n"] = int(count) if np.isfinite(count) else None


def _costs(
    rows: pd.DataFrame, key: Key, plain_bytes: Mapping[tuple[str, int], float]
) -> dict[str, Any]:
    columns = ["images_seen", "bytes_up", "bytes_down", "seconds"]
    each = rows.groupby("seed")[columns].max()
    found: dict[str, Any] = {name: number(each[name].mean()) for name in columns}
    found["repetitions"] = len(each)
    if key[0] == "federated":
        sent = (each["bytes_up"] + each["bytes_down"]).items()
        shares = [share_of_plain(n, plain_bytes.get((key[1], int(seed)))) for seed, n in sent]
        known = [share for share in shares if share is not None]
        found["share_of_plain_bytes"] = float(np.mean(known)) if known else None
    return found
