"""What a comparison of generators says: means over repetitions, paired differences, intervals.

Everything is computed from ``results.csv``. A distance between two clouds of features is one number
a repetition and no mean over scans, so no scan can be resampled; what is left to chance here is the
seed. Intervals are Student's t over the K repetitions, mean ± t(K − 1) · s / √K, and differences
are taken within a repetition: a seed means the same initial weights in every arm, and the same
order of slices where a site trains alone and in the federation. They say how another repetition on
*these* people may turn out, and nothing of other people or sites; with two or three repetitions
they are wide, as they should be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from common.errors import FedscanError
from common.metrics_log import WHOLE
from simulations.bootstrap import LEVEL, number
from simulations.contrasts import CENTRALIZED, LOCAL, OTHER_ARMS, contrasts, name_of, reference_of
from simulations.results import CHOSEN, NUMBERS, TEXTS, count_cells

MEASURES = (
    "frechet_distance",
    "kernel_distance",
    "precision",
    "recall",
    "coverage",
    "authenticity",
    "authenticity_held_out",
    "copies_flagged",
)
NO_DIFFERENCE = "no significant difference"
DISTANCES = ("frechet_distance", "kernel_distance")  # the first that is there leads
NAMES = {"frechet_distance": "Fréchet distance", "kernel_distance": "kernel distance"}
ONE = "one repetition: no interval"

Model = tuple[str, str, str]  # arm, strategy, trained on


def summarize_generation(
    results: pd.DataFrame,
    manifest: Mapping[str, Any],
    *,
    plain_bytes: Mapping[tuple[str, int], float] | None = None,
) -> dict[str, Any]:
    """Compute ``summary.json`` of a comparison of generators.

    Parameters
    ----------
    results : DataFrame
        ``results.csv``, with its columns as they are.
    manifest : mapping
        ``manifest.json``: ``poor_site``, ``sites`` and, where they are given, ``reference`` (the
        strategy that stands for the federated arm) and ``contrasts`` (pairs of names).
    plain_bytes : mapping of (strategy, seed) to float, optional
        What the messages of a federated repetition would have taken as float32 numbers of G, D and
        G's average, both ways, every round.

    Returns
    -------
    dict
        Ready for JSON (None for what is undefined). A *model* is ``centralized``, ``federated``
        (``federated/STRATEGY`` where there are several) or ``local at SITE``.

        - ``models[model]``: arm, strategy, trained_on
        - ``scores[tested_on][model][measure]``: mean, low, high, sd, seeds, values (by seed), note;
          tested_on is ``all`` or a site. At ``all``, the Fréchet distance is that of all slices
          together, the flag is up where it is at any site, the rest are means over sites
        - ``differences[contrast][tested_on][measure]``: the same of ``federated - local``, at every
          site that trained alone, and of ``federated - centralized`` and further pairs of
          strategies (:func:`simulations.contrasts.contrasts`), at ``all`` and every site
        - ``costs[model]``: images_seen, bytes_up, bytes_down, seconds, repetitions: means over
          repetitions; seconds are those of a cell, in which local models are trained one after
          another; share_of_plain_bytes where it is known
        - ``copies``: a record a model, seed and site whose training slices are copied
        - ``headline``: ``gain_of_data_poor_site`` (federated − local at the poor site) and
          ``loss_against_pooling`` (federated − centralized at ``all``): metric, value, low, high,
          seeds, verdict (better, no significant difference, worse or None) and sentence
        - ``cells``: counts by model and status, and a note on what is left out

    Raises
    ------
    FedscanError
        A number is there twice.
    """
    table = _typed(results)
    tests = table[(table["status"] == "done") & (table["split"] == "test")]
    if tests.duplicated(["arm", "strategy", "trained_on", "tested_on", "seed", "metric"]).any():
        raise FedscanError("the results hold a test value twice. Remove the repeated rows")
    poor = str(manifest.get("poor_site") or "")
    sites = sorted({*tests["tested_on"], *dict(manifest.get("sites") or {})} - {"", WHOLE})
    strategies = sorted(set(table.loc[table["arm"] == "federated", "strategy"]))
    reference = reference_of(strategies, manifest.get("reference"))
    models = {_name(key, strategies): key for key in _models(tests)}
    values = {
        (place, name): _measured(_of(tests, key), place, sites)
        for place in (WHOLE, *sites)
        for name, key in models.items()
    }
    scores = {
        place: {
            name: {m: interval(found) for m, found in values[place, name].items()}
            for name in models
            if values[place, name]
        }
        for place in (WHOLE, *sites)
    }
    pairs = contrasts(strategies, reference, manifest.get("contrasts") or [])
    differences = {
        contrast: {
            place: {
                m: _paired(values[place, one][m], values[place, other][m])
                for m in MEASURES
                if m in values[place, one] and m in values[place, other]
            }
            for place in (WHOLE, *sites)
            for one, other in [[_at(name, place, strategies) for name in pair]]
            if one in models and other in models
        }
        for contrast, pair in pairs.items()
    }
    against = {arm: differences[name_of((reference, arm), pairs)] for arm in OTHER_ARMS}
    seeds = sorted({int(seed) for seed in tests["seed"]})
    return {
        "task": "generation",
        "level": LEVEL,
        "poor_site": poor,
        "reference_strategy": reference or None,
        "seeds": seeds,
        "models": {
            name: dict(zip(("arm", "strategy", "trained_on"), key, strict=True))
            for name, key in models.items()
        },
        "scores": scores,
        "differences": differences,
        "costs": {
            name: _costs(_of(tests, key), key, plain_bytes or {}) for name, key in models.items()
        },
        "copies": [
            {"model": name, "seed": int(row["seed"]), "site": row["tested_on"]}
            for name, key in models.items()
            for _, row in _of(tests, key).sort_values(["seed", "tested_on"]).iterrows()
            if row["metric"] == "copies_flagged" and row["value"] > 0 and row["tested_on"] in sites
        ],
        "headline": {
            "gain_of_data_poor_site": _headline(
                against[LOCAL].get(poor, {}),
                where=f"At {poor}" if poor else "At the data-poor site",
                other=f"the generator that {poor or 'it'} trained alone",
                unknown=f"What {poor or 'a data-poor site'} gains by joining cannot be told",
            ),
            "loss_against_pooling": _headline(
                against[CENTRALIZED].get(WHOLE, {}),
                where="Over all sites",
                other="the generator trained on all scans in one place",
                unknown="What federation loses against pooling cannot be told",
            ),
        },
        "cells": count_cells(table),
    }


def summarize_use(use: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean and interval of every row of ``use.csv``: what synthetic scans are good for.

    Parameters
    ----------
    use : DataFrame
        Columns seed, row, site, metric, value, n.

    Returns
    -------
    list of dict
        row, site, metric, n and what :func:`interval` gives, for a chosen amount without ends; in
        the file's order of rows.
    """
    found = []
    for (row, site, metric), group in use.groupby(["row", "site", "metric"], sort=False):
        values = {
            int(seed): float(value)
            for seed, value in zip(group["seed"], group["value"], strict=True)
            if math.isfinite(value)
        }
        n = group["n"].max()
        about = {"row": str(row), "site": str(site), "metric": str(metric)}
        told = interval(values)
        if metric == CHOSEN:  # picked from a grid: no number that strays around a mean
            told |= {"low": None, "high": None}
        found.append({**about, "n": int(n) if math.isfinite(n) else None, **told})
    return found


def interval(values: Mapping[int, float]) -> dict[str, Any]:
    """Return the mean over seeds and Student's t interval, with seeds − 1 degrees of freedom.

    Parameters
    ----------
    values : mapping of int to float
        By seed.
    """
    from scipy.stats import t

    numbers = np.array(list(values.values()), float)
    count = len(numbers)
    mean = float(numbers.mean()) if count else math.nan
    sd = float(numbers.std(ddof=1)) if count > 1 else math.nan
    half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * sd / math.sqrt(count) if count > 1 else sd
    return {
        "mean": number(mean),
        "low": number(mean - half),
        "high": number(mean + half),
        "sd": number(sd),
        "seeds": count,
        "values": {str(seed): value for seed, value in sorted(values.items())},
        "note": "" if count > 1 else ONE if count else "no value",
    }


def _typed(results: pd.DataFrame) -> pd.DataFrame:
    """Copy with empty names as "", where a plain reader has NaN, and numbers as floats."""
    return results.assign(
        **{c: results[c].astype(object).fillna("").astype(str) for c in TEXTS},
        **{c: pd.to_numeric(results[c], errors="coerce").astype(float) for c in NUMBERS},
    )


def _models(tests: pd.DataFrame) -> list[Model]:
    """Every model that was tested: pooled, federated, then each site's own."""
    order = {"centralized": 0, "federated": 1, "local": 2}
    keys = tests[["arm", "strategy", "trained_on"]].drop_duplicates()
    return sorted(
        (tuple(key) for key in keys.itertuples(index=False)),
        key=lambda key: (order.get(key[0], 3), *key),
    )


def _name(key: Model, strategies: list[str]) -> str:
    arm, strategy, trained_on = key
    if arm == "local":
        return f"local at {trained_on}"
    return f"{arm}/{strategy}" if arm == "federated" and len(strategies) > 1 else arm


def _at(name: str, place: str, strategies: list[str]) -> str:
    """Return the model that a contrast names at a place; a local one is the site's own."""
    if name == LOCAL:
        return f"local at {place}"
    return name if name == CENTRALIZED else _name(("federated", name, WHOLE), strategies)


def _of(tests: pd.DataFrame, key: Model) -> pd.DataFrame:
    arm, strategy, trained_on = key
    mine = (tests["arm"] == arm) & (tests["strategy"] == strategy)
    return tests[mine & (tests["trained_on"] == trained_on)]


def _measured(rows: pd.DataFrame, place: str, sites: list[str]) -> dict[str, dict[int, float]]:
    """Measure to value by seed, of one model at one place; only what there is."""
    rows = rows[np.isfinite(rows["value"])]
    found = {}
    for measure in MEASURES:
        if place == WHOLE:
            values = _over_all(rows, measure, sites)
        else:
            values = _by_seed(rows, place, measure)
        if values:
            found[measure] = values
    return found


def _by_seed(rows: pd.DataFrame, place: str, metric: str) -> dict[int, float]:
    mine = rows[(rows["tested_on"] == place) & (rows["metric"] == metric)]
    return {int(s): float(v) for s, v in zip(mine["seed"], mine["value"], strict=True)}


def _over_all(rows: pd.DataFrame, measure: str, sites: list[str]) -> dict[int, float]:
    """Take what was measured over all sites, else the mean of sites where every site has one.

    A Fréchet distance of single sites does not add up to the whole's, so there is none without it.
    A generator is flagged where any site that has judged it says so.
    """
    parts = [_by_seed(rows, site, measure) for site in sites]
    if measure == "copies_flagged":
        judged = sorted(set().union(*parts))
        return {s: max(part[s] for part in parts if s in part) for s in judged}
    whole = _by_seed(rows, WHOLE, measure)
    if measure == "frechet_distance":
        return whole
    if whole := _by_seed(rows, WHOLE, f"{measure}_mean") | whole:
        return whole
    seeds = set.intersection(*map(set, parts)) if parts else set()
    return {seed: float(np.mean([part[seed] for part in parts])) for seed in sorted(seeds)}


def _paired(one: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any]:
    return interval({seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())})


def _costs(
    rows: pd.DataFrame, key: Model, plain_bytes: Mapping[tuple[str, int], float]
) -> dict[str, Any]:
    columns = ["images_seen", "bytes_up", "bytes_down", "seconds"]
    by_seed = rows.groupby("seed")[columns].max()
    found: dict[str, Any] = {name: number(by_seed[name].mean()) for name in columns}
    found["repetitions"] = len(by_seed)
    if key[0] == "federated":
        sent = (by_seed["bytes_up"] + by_seed["bytes_down"]).items()
        shares = [share_of_plain(n, plain_bytes.get((key[1], int(seed)))) for seed, n in sent]
        known = [share for share in shares if share is not None]
        found["share_of_plain_bytes"] = float(np.mean(known)) if known else None
    return found


def share_of_plain(sent: float, plain: float | None) -> float | None:
    """Return the share of plain messages' bytes that were sent; None where those are not known."""
    return float(sent) / plain if plain else None


def _headline(
    difference: Mapping[str, Any], *, where: str, other: str, unknown: str
) -> dict[str, Any]:
    """Say how the federated generator does; better or worse only with zero outside the interval.

    The verdict is the distance's; recall and precision follow, since a distance can hide what a
    generator gains in the one and loses in the other.
    """
    metric = next((m for m in DISTANCES if difference.get(m, {}).get("seeds")), None)
    found = dict.fromkeys(("metric", "value", "low", "high", "verdict"))
    if metric is None:
        reason = "one of the two generators, or a distance that both have, is missing"
        return {**found, "seeds": 0, "sentence": f"{unknown}: {reason}."}
    one = difference[metric]
    value, low, high, seeds = (one[key] for key in ("mean", "low", "high", "seeds"))
    words = f"{abs(value):.{places(metric, value)}f} {'higher' if value > 0 else 'lower'}"
    if low is None:
        verdict = None
        sentence = (
            f"{where}, the federated generator's {NAMES[metric]} was {words} than that of {other} "
            "(lower is better; one repetition has no interval)."
        )
    else:
        verdict = "better" if high < 0 else "worse" if low > 0 else NO_DIFFERENCE
        clear = verdict != NO_DIFFERENCE
        relation = f"was {verdict} than" if clear else "did not differ significantly from"
        digits = places(metric, max(abs(low), abs(high)))
        span = f"{low + 0.0:.{digits}f} to {high + 0.0:.{digits}f}"
        chance = f" A difference of up to {high:.{digits}f} against federation is not ruled out."
        sentence = (
            f"{where}, the federated generator {relation} {other}: its {NAMES[metric]} was {words} "
            f"({100 * LEVEL:.0f} % CI {span}; {seeds} repetitions; lower is better)."
            f"{'' if clear else chance}{_reach(difference)}"
        )
    return {
        **{"metric": metric, "value": value, "low": low, "high": high, "seeds": seeds},
        **{"verdict": verdict, "sentence": sentence},
    }


def _reach(difference: Mapping[str, Any]) -> str:
    """Say how recall and precision differ, whichever way, where both have an interval."""
    told = []
    for measure in ("recall", "precision"):
        one = difference.get(measure, {})
        if one.get("low") is None:
            return ""
        mean, low, high = (round(one[key], 2) + 0.0 for key in ("mean", "low", "high"))
        told.append(f"{mean:+.2f} ({low:.2f} to {high:.2f})")
    return (
        f" The federated generator's recall differs by {told[0]}, its precision by {told[1]}; "
        "above zero is better."
    )


def places(measure: str, value: float) -> int:
    """Decimals with which a measure of this size is told."""
    if measure == CHOSEN:
        return 0
    if measure == "kernel_distance":
        return 3 if abs(value) < 10 else 1
    return 2 if abs(value) < 10 or measure not in DISTANCES else 1 if abs(value) < 100 else 0
