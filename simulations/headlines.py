"""The two questions of every comparison, answered in a sentence, whatever the task measures.

What does the site with the fewest images gain by joining, and what does federation lose against
pooling? A headline is a dict: ``metric``, ``value`` (positive: federation is better than training
alone; or worse than pooling), ``low``, ``high``, ``repetitions``, ``excludes_zero``, ``verdict``
(better, worse, :data:`NO_DIFFERENCE`, or None without an interval) and ``sentence``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.evaluation.statistics import LEVEL, NO_INTERVAL
from simulations.measures import Judged

NO_DIFFERENCE = "no significant difference"

Difference = Mapping[str, Mapping[str, Any]]  # of a contrast: measure to record


def gain(difference: Difference, how: Judged, poor: str) -> dict[str, Any]:
    """Return what the site with the fewest images gains, from federated − local there."""
    found, raw, metric = _oriented(difference, how, better_is_positive=True)
    if found["value"] is None:
        site = poor or "a site"
        return found | {"sentence": f"What {site} gains by joining cannot be told: {raw}."}
    measure = how.measures[metric]
    rises = raw["mean"] >= 0
    size, certainty = _in_words(found, raw, measure)
    name = f"the {measure.words}" if measure.less_is_better else measure.words
    if found["excludes_zero"]:
        changed = f"joining {'raised' if rises else 'lowered'} {name} by {size}"
    else:
        changed = f"{name} was {size} {'higher' if rises else 'lower'} after joining than alone"
    sentence = f"At {poor}, {changed} {certainty}"
    return found | {"sentence": sentence + _beside(difference, how)}


def loss(difference: Difference, how: Judged) -> dict[str, Any]:
    """Return what federation loses against pooling, from federated − centralized over all."""
    found, raw, metric = _oriented(difference, how, better_is_positive=False)
    if found["value"] is None:
        return found | {"sentence": f"What federation loses against pooling cannot be told: {raw}."}
    measure = how.measures[metric]
    sites = raw.get("sites") or []
    where = f"On average over {len(sites)} sites" if sites else "Over all sites together"
    relation = "higher" if raw["mean"] > 0 else "lower"
    size, certainty = _in_words(found, raw, measure)
    name = f"the {measure.words}" if measure.less_is_better else measure.words
    sentence = (
        f"{where}, {name} was {size} {relation} with federation than with all data in one place "
        f"{certainty}"
    )
    return found | {"sentence": sentence + _beside(difference, how)}


def _oriented(
    difference: Difference, how: Judged, *, better_is_positive: bool
) -> tuple[dict[str, Any], Any, str]:
    """The leading measure's difference, turned; the record itself, or why there is none."""
    metric = next((m for m in how.leading if difference.get(m, {}).get("repetitions")), None)
    found: dict[str, Any] = dict.fromkeys(("metric", "value", "low", "high"))
    found |= {"repetitions": 0, "excludes_zero": None, "verdict": None}
    if metric is None:
        notes = [one.get("note") for m in how.leading if (one := difference.get(m))]
        why = next(filter(None, notes), "one of the two models, or a measure of both, is missing")
        return found, why, ""
    record = difference[metric]
    sign = 1 if better_is_positive != how.measures[metric].less_is_better else -1
    value, low, high = (record[key] for key in ("mean", "low", "high"))
    if sign < 0:
        value, low, high = (None if v is None else 0.0 - v for v in (value, high, low))
    found |= {"metric": metric, "value": value, "low": low, "high": high}
    found["repetitions"] = record["repetitions"]
    if low is not None:
        clear = bool(low > 0 or high < 0)
        better = (value > 0) == better_is_positive
        verdict = ("better" if better else "worse") if clear else NO_DIFFERENCE
        found |= {"excludes_zero": clear, "verdict": verdict}
    return found, record, metric


def _in_words(found: dict, raw: Mapping[str, Any], measure: Any) -> tuple[str, str]:
    """Size of a difference, without its sign, and the rest of the sentence on how sure it is."""
    value, low, high, k = (raw[key] for key in ("mean", "low", "high", "repetitions"))
    digits = measure.places(value if low is None else max(abs(low), abs(high)))
    size = f"{abs(value):.{digits}f}"
    times = "1 repetition" if k == 1 else f"{k} repetitions"
    less = "; lower is better" if measure.less_is_better else ""
    if low is None:
        few = [one for one in str(raw.get("note")).split("; ") if one.startswith(NO_INTERVAL)]
        why = next(iter(few), f"no interval, as there is {times} and no prediction")
        return size, f"({why}{less})."
    # + 0.0 turns the -0.0 of rounding into 0.0
    span = f"{round(low, digits) + 0.0:.{digits}f} to {round(high, digits) + 0.0:.{digits}f}"
    # Words turn a negative difference round; its interval keeps the sign of tables and figures.
    negative = f"difference -{size}, " if value < 0 else ""
    certainty = f"({negative}{100 * LEVEL:.0f} % CI {span}; {times}{less})"
    warnings = [] if found["excludes_zero"] else [NO_DIFFERENCE]
    if k == 1:
        warnings.append("one repetition cannot show how much chance in training matters")
    return size, f"{certainty}; {', and '.join(warnings)}." if warnings else f"{certainty}."


def _beside(difference: Difference, how: Judged) -> str:
    """Tell what a leading measure can hide, where all of it has an interval."""
    told = []
    for name in how.beside:
        one = difference.get(name, {})
        if one.get("low") is None:
            return ""
        mean, low, high = (round(one[key], 2) + 0.0 for key in ("mean", "low", "high"))
        words = how.measures[name].words
        told.append(f"{words} differs by {mean:+.2f} ({low:.2f} to {high:.2f})")
    return f" {', '.join(told).capitalize()}; above zero is better." if told else ""
