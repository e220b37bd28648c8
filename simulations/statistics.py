"""What the comparison of the arms says: means, paired differences, and how sure one may be.

Everything is computed from two tables: ``results.csv`` (one row a number; the means come from it)
and each site's ``predictions.csv`` (one row a test scan and model; the intervals come from it).

Two things are left to chance in a benchmark: which people were tested, and the seed of a
repetition. Both are resampled. All arms and repetitions are tested on the same scans, and a seed
means the same in every arm, so the two are crossed, not nested: one draw of the bootstrap takes K
of the K seeds and, at each site and within each class, n of the n test scans, with replacement,
and every arm is measured on that same draw. A paired difference therefore keeps what the arms
share out of its interval.

The interval is the percentile interval (Efron & Tibshirani 1993, *An Introduction to the
Bootstrap*, ch. 13), its levels resampled as in the hierarchical bootstrap (Saravanan, Berman &
Sober 2020, *Neurons, Behavior, Data Analysis, and Theory* 3(5)); for crossed factors this is the
pigeonhole bootstrap (Owen 2007, *Annals of Applied Statistics* 1:386-411), which errs towards
intervals that are too wide, as it counts what is particular to one scan in one repetition up to
three times. The other way round, K seeds resampled show only (K-1)/K of their variance: where
seeds matter more than people, two or three repetitions make an interval that is too narrow.
Sites are fixed: nothing here speaks of a hospital outside the benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.errors import DataContractError, FedscanError
from common.evaluation.classification import METRICS
from common.seeding import derive_seed
from simulations.bootstrap import (
    LEVEL,
    SEEDS_TO_TRUST,
    Repeated,
    number,
    resampling_weights,
    weighted_metrics,
)
from simulations.contrasts import CENTRALIZED, LOCAL, OTHER_ARMS, name_of, reference_of
from simulations.contrasts import contrasts as contrasts_of
from simulations.results import TEXTS, count_cells, model_names

MATRIX_METRICS = ("balanced_accuracy", "auroc")


def summarize(
    results: pd.DataFrame,
    predictions: Mapping[str, pd.DataFrame],
    *,
    poor_site: str,
    reference_strategy: str | None = None,
    contrasts: Sequence[Sequence[str]] = (),
    draws: int = 2000,
    seed: int = 0,
) -> dict:
    """Compute ``summary.json`` from what a benchmark wrote.

    Parameters
    ----------
    results : DataFrame
        ``results.csv``, with its columns as they are.
    predictions : mapping of str to DataFrame
        Site to its ``predictions.csv``. A site without one has means but no intervals.
    poor_site : str
        The site with few training scans.
    reference_strategy : str, optional
        The strategy that stands for the federated arm; ``fedavg`` by default, without it the first.
    contrasts : sequence of (str, str), optional
        Names among strategies, ``local`` and ``centralized``: the pairs that are told beside the
        reference's with the other arms. Without any, every further strategy − the reference.
    draws : int
        Number of bootstrap samples.
    seed : int
        Of the resampling; the same seed gives the same summary.

    Returns
    -------
    dict
        Ready for JSON (None for what is undefined). A *model* is ``local`` (the site's own),
        ``centralized`` or ``federated/STRATEGY``; a *contrast* is ``federated - local``,
        ``federated - centralized`` or ``FIRST - SECOND`` of further pairs, see
        :func:`simulations.contrasts.contrasts`.

        - ``scores[site][model][metric]``: mean, low, high, seeds, over, n
        - ``differences[site][contrast][metric]``: mean, low, high, seeds, over, p, note
        - ``differences_over_sites[contrast][metric]``: the same for the mean over sites, each
          site counting once, with ``sites``, the names that are in it
        - ``headline``: ``gain_of_data_poor_site`` (balanced accuracy, federated - local, at
          ``poor_site``) and ``loss_against_pooling`` (centralized - federated over the sites;
          positive: federation loses): value, low, high, seeds, excludes_zero, sentence
        - ``cross_site``: a record a model and tested site, means over seeds
        - ``cells``: ``by_model[model][status]``, ``left_out`` and a ``note``

    Raises
    ------
    FedscanError
        A number or a prediction is there twice, or models were not tested on the same scans.

    Notes
    -----
    The p-values are not corrected for the number of metrics and sites: the two headline figures
    are the questions of the benchmark, the rest describes. A resample repeats scans, which raises
    the binned calibration error; its interval may therefore lie above its mean.
    """
    table = _named(results)
    table[["value", "n"]] = table[["value", "n"]].apply(pd.to_numeric)
    table["model"] = model_names(table)
    done = table[table["status"] == "done"]
    tests = done[done["split"] == "test"].astype({"seed": int})
    if tests.duplicated(["model", "trained_on", "tested_on", "seed", "metric"]).any():
        raise FedscanError("the results hold a test value twice. Remove the repeated rows")
    strategies = sorted(set(table.loc[table["arm"] == "federated", "strategy"]))
    reference_strategy = reference_of(strategies, reference_strategy)
    pairs = contrasts_of(strategies, reference_strategy, contrasts)
    against = {arm: name_of((reference_strategy, arm), pairs) for arm in OTHER_ARMS}
    named_sites = {*done["tested_on"], *done["trained_on"], *predictions, poor_site}
    sites = sorted(named_sites - {"", "all"})
    models = sorted(set(table["model"]))

    measured, scores, differences = {}, {}, {}
    for site in sites:
        own = tests[
            (tests["tested_on"] == site)
            & ((tests["arm"] != "local") | (tests["trained_on"] == site))
        ]
        measured[site] = _measured(site, own, predictions.get(site), draws, seed)
        n = int(own["n"].max()) if own["n"].notna().any() else 0
        scores[site] = {
            model: {m: _of(measured, site, model, m).record(seed) | {"n": n} for m in METRICS}
            for model in models
        }
    paired = {
        (site, name, m): Repeated.combine(
            [_of(measured, site, _model(one), m) for one in pair], [1.0, -1.0]
        )
        for site in sites
        for name, pair in pairs.items()
        for m in METRICS
    }
    for site in sites:
        differences[site] = {
            name: {m: paired[site, name, m].compared(seed) for m in METRICS} for name in pairs
        }
    over_sites = {
        name: {m: _over_sites({s: paired[s, name, m] for s in sites}, seed) for m in METRICS}
        for name in pairs
    }
    return {
        "level": LEVEL,
        "draws": draws,
        "poor_site": poor_site,
        "reference_strategy": reference_strategy or None,
        "seeds": sorted({int(k) for k in tests["seed"]}),
        "scores": scores,
        "differences": differences,
        "differences_over_sites": over_sites,
        "headline": {
            "gain_of_data_poor_site": _gain(
                differences[poor_site][against[LOCAL]]["balanced_accuracy"], poor_site
            ),
            "loss_against_pooling": _loss(over_sites[against[CENTRALIZED]]["balanced_accuracy"]),
        },
        "cross_site": _cross_site(tests),
        "cells": count_cells(table),
    }


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Copy with empty names as "", where a plain reader of CSV files has NaN."""
    columns = [c for c in table.columns if c in TEXTS]
    return table.assign(**{c: table[c].astype(object).fillna("").astype(str) for c in columns})


def _model(name: str) -> str:
    """Return the model that a contrast names."""
    return name if name in OTHER_ARMS else f"federated/{name}" if name else "federated"


def _measured(
    site: str, own: pd.DataFrame, predicted: pd.DataFrame | None, draws: int, seed: int
) -> dict[tuple[str, str], Repeated]:
    """Model and metric to what the site's test scans say of it."""
    resampled: dict[tuple[str, int], dict[str, NDArray]] = {}
    if predicted is not None and len(predicted) and len(own):
        frame = _named(predicted).astype({"seed": int})
        frame["model"] = model_names(frame)
        frame = frame[(frame["arm"] != "local") | (frame["trained_on"] == site)]
        wanted = pd.MultiIndex.from_frame(own[["model", "seed"]].drop_duplicates())
        frame = frame[pd.MultiIndex.from_frame(frame[["model", "seed"]]).isin(wanted)]
        if len(frame):
            labels, probabilities = _aligned(site, frame)
            rng = np.random.default_rng(
                derive_seed(seed, purpose="bootstrap of test scans", site=site)
            )
            weights = resampling_weights(labels, draws, rng)
            resampled = {
                key: weighted_metrics(labels, column.to_numpy(), weights)
                for key, column in probabilities.items()
            }
    return {
        (model, metric): Repeated(
            values={
                int(k): float(v)
                for k, v in zip(rows["seed"], rows["value"], strict=True)
                if np.isfinite(v)
            },
            resampled={k: found[metric] for (m, k), found in resampled.items() if m == model},
            missing=f"{model} has no defined {metric} at {site}",
        )
        for (model, metric), rows in own.groupby(["model", "metric"])
        if metric in METRICS
    }


def _aligned(site: str, frame: pd.DataFrame) -> tuple[NDArray, pd.DataFrame]:
    """Labels (N,) and probabilities (N scans, a column a model and seed), checked to be paired."""
    remedy = "Every model is to be tested once on each of the same scans"
    if frame.duplicated(["model", "seed", "scan"]).any():
        raise DataContractError(site, "a prediction is there twice", remedy=remedy)
    if (frame.groupby("scan")["label"].nunique(dropna=False) != 1).any():
        raise DataContractError(site, "the label of a test scan changes", remedy=remedy)
    # Both by scan in ascending order, as pivot and groupby sort.
    wide = frame.pivot(index="scan", columns=["model", "seed"], values="probability")
    if wide.isna().any(axis=None):
        raise DataContractError(site, "a model lacks predictions of test scans", remedy=remedy)
    return frame.groupby("scan")["label"].first().to_numpy(), wide


def _of(measured: dict, site: str, model: str, metric: str) -> Repeated:
    nothing = Repeated({}, missing=f"{model} has no test result at {site}")
    return measured[site].get((model, metric), nothing)


def _over_sites(parts: dict[str, Repeated], seed: int) -> dict:
    """Mean over the sites that have a value, in the repetitions that all of them have."""
    present = {site: part for site, part in parts.items() if part.values}
    if not present:
        reasons = "; ".join(dict.fromkeys(part.missing for part in parts.values()))
        return Repeated({}, missing=reasons).compared(seed) | {"sites": []}
    share = [1 / len(present)] * len(present)
    found = Repeated.combine(present.values(), share).compared(seed)
    if without := [site for site in parts if site not in present]:
        found["note"] = "; ".join(filter(None, [found["note"], f"without {', '.join(without)}"]))
    return found | {"sites": list(present)}


def _gain(difference: dict, site: str) -> dict:
    found = _headline(difference, sign=1)
    if (value := found["value"]) is None:
        sentence = f"What {site} gains by joining cannot be told: {difference['note']}."
    else:
        changed = "raised" if value >= 0 else "lowered"
        size, certainty = _in_words(found)
        sentence = f"At {site}, joining {changed} balanced accuracy by {size} {certainty}"
    return found | {"sentence": sentence}


def _loss(difference: dict) -> dict:
    found = _headline(difference, sign=-1)
    if (value := found["value"]) is None:
        sentence = f"What federation loses against pooling cannot be told: {difference['note']}."
    else:
        sites = difference["sites"]
        where = f"On average over {len(sites)} sites" if len(sites) > 1 else f"At {sites[0]}"
        relation = "lower" if value >= 0 else "higher"
        size, certainty = _in_words(found)
        sentence = (
            f"{where}, balanced accuracy was {size} {relation} with federation than with all "
            f"scans in one place {certainty}"
        )
    return found | {"sentence": sentence}


def _headline(difference: dict, sign: int) -> dict:
    value, low, high = (difference[key] for key in ("mean", "low", "high"))
    if sign < 0:
        value, low, high = (None if v is None else 0.0 - v for v in (value, high, low))
    clear = None if low is None else bool(low > 0 or high < 0)
    return {
        "value": value,
        "low": low,
        "high": high,
        "seeds": difference["seeds"],
        "excludes_zero": clear,
    }


def _in_words(found: dict) -> tuple[str, str]:
    """Size of a difference, without its sign, and the rest of the sentence on how sure it is."""
    value, low, high, k = (found[key] for key in ("value", "low", "high", "seeds"))
    size = f"{abs(value):.2f}"
    times = "1 repetition" if k == 1 else f"{k} repetitions"
    if low is None:
        return size, f"(no interval, as predictions are missing; {times})."
    if value < 0:  # "lowered by 0.03" reads with the interval of the lowering
        low, high = -high, -low
    # + 0.0 turns the -0.0 of rounding into 0.0
    span = f"{round(low, 2) + 0.0:.2f} to {round(high, 2) + 0.0:.2f}"
    certainty = f"({100 * LEVEL:.0f} % CI {span}; {times})"
    warnings = [] if found["excludes_zero"] else ["no significant difference"]
    if k == 1:
        warnings.append("one repetition cannot show how much chance in training matters")
    elif k < SEEDS_TO_TRUST:
        warnings.append("so few repetitions make the interval too narrow")
    return size, f"{certainty}; {', and '.join(warnings)}." if warnings else f"{certainty}."


def _cross_site(tests: pd.DataFrame) -> list[dict]:
    """Every model on every site: balanced accuracy and AUROC, means over seeds."""
    rows = []
    axes = ["arm", "strategy", "trained_on", "tested_on"]
    for key, group in tests.groupby(axes):
        means = group.groupby("metric")["value"].mean()
        found = {m: number(means.get(m, math.nan)) for m in MATRIX_METRICS}
        rows.append(
            dict(zip(axes, key, strict=True)) | found | {"seeds": int(group["seed"].nunique())}
        )
    return rows
