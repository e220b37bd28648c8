"""Figures of generators: distances of every model and repetition, and over the rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from common.metrics_log import WHOLE
from simulations.generation_statistics import NAMES, places
from simulations.report import charts, figures, svg
from simulations.report.charts import Axis, Estimate, Series
from simulations.report.words import is_number, mapping, sentence

MEASURE_NAMES = {
    **NAMES,
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "authenticity": "authenticity",
}
_ENDS = ("low", "high")
RATIO = 4  # of two distances on one axis, beyond which it is logarithmic
SMALLEST = 1e-3  # of a logarithmic axis: a kernel distance is estimated without bias, so around 0


def model_series(model: Mapping[str, Any], *, several: bool) -> Series:
    """Return how a model is drawn; a strategy is named only where there are several."""
    arm, strategy, trained_on = (str(model.get(k, "")) for k in ("arm", "strategy", "trained_on"))
    found = figures.series(arm, strategy)
    if arm == "local":
        return replace(found, note=f"of {trained_on}")
    return found if several else replace(found, note="")


def told(measure: str, value: object) -> str:
    """Return a measure's value with as many digits as it deserves."""
    if not is_number(value):
        return "–"
    return f"{value:.{places(measure, value)}f}".replace("-", "−")


def told_difference(measure: str, value: object) -> str:
    """Return a difference with its sign; none for what rounds to zero."""
    if not is_number(value):
        return "–"
    text = f"{value:+.{places(measure, value)}f}"
    return text[1:] if not float(text) else text.replace("-", "−")


def place_name(place: str) -> str:
    """Return where something was tested."""
    return "all sites together" if place == WHOLE else place


def heading(place: str) -> str:
    """Return the same to stand above a panel; a site's name keeps its spelling."""
    return sentence(place_name(place)) if place == WHOLE else place


def estimates(
    scores: Mapping[str, Any], looks: Mapping[str, Series], place: str, measure: str, axis: Axis
) -> Markup:
    """Draw every model's distance at one place: repetitions, their mean and its interval."""
    rows = []
    for model, look in looks.items():
        found = mapping(mapping(scores.get(model)).get(measure))
        if is_number(found.get("mean")):
            values = [v for v in mapping(found.get("values")).values() if is_number(v)]
            ends = (float(found[k]) if is_number(found.get(k)) else math.nan for k in _ENDS)
            rows.append(Estimate(look, float(found["mean"]), *ends, values))
    return charts.estimates(rows, axis, f"Test {axis.name} at {place_name(place)}")


def estimate_axis(scores: Iterable[Mapping[str, Any]], measure: str) -> Axis:
    """Return an axis that holds every repetition, and of the intervals as much as is sensible.

    It begins at zero, or is logarithmic where one model's distances are many times another's: the
    near ones would overlap else.
    """
    values, ends = [], []
    for place in scores:
        for model in place.values():
            found = mapping(mapping(model).get(measure))
            values += [v for v in mapping(found.get("values")).values() if is_number(v)]
            values += [found["mean"]] if is_number(found.get("mean")) else []
            ends += [found[end] for end in _ENDS if is_number(found.get(end))]
    least, most = min([*values, math.inf]), max([*values, SMALLEST])
    # An interval of two or three repetitions may reach far beyond what any of them gave.
    high = max(most, min(max([*ends, most]), 1.6 * most)) * 1.05
    if least > SMALLEST and most > RATIO * least:
        low = max(min([*(end for end in ends if end > 0), least]), least / 2) / 1.05
        ticks = _sparse(svg.log_ticks((low, high)), most=5)
        name = f"{MEASURE_NAMES[measure]}, logarithmic"
        return Axis(name, (low, high), ticks, _numbers(measure), log=True)
    limits = (min([0.0, *values]), high)
    return Axis(MEASURE_NAMES[measure], limits, svg.even_ticks(limits, 5), _numbers(measure))


def learning_curves(
    results: pd.DataFrame, looks: Mapping[str, Series], models: Mapping[str, Any], place: str,
    measure: str, axis: Axis,
) -> Markup:  # fmt: skip
    """Draw a validation distance over the rounds at one place, a line a model."""
    curves = {
        looks[name]: frame
        for name in looks
        if len(frame := _curve(results, mapping(models.get(name)), place, measure))
    }
    words = f"Validation {axis.name} at {place_name(place)} over {{last}} rounds"
    return charts.lines(curves, axis, words)


def curve_rows(results: pd.DataFrame, place: str, measure: str) -> pd.DataFrame:
    """Return finite validation values at a place of models that were validated there.

    A local model is validated on its own site's slices alone, so it has no value of all sites.
    """
    return results[
        (results["split"] == "val")
        & (results["metric"] == measure)
        & (results["tested_on"] == place)
        & (results["status"] == "done")
        & ((results["arm"] != "local") | (results["trained_on"] == place))
        & np.isfinite(results["value"])
    ]


def curve_axis(values: pd.Series, measure: str) -> Axis:
    """Return a logarithmic axis: distances fall by orders of magnitude."""
    above = [v for v in values if v > SMALLEST]
    low = max(min(above, default=SMALLEST) / 1.1, SMALLEST)
    high = max([*above, low * 2]) * 1.1
    ticks = _sparse(svg.log_ticks((low, high)), most=9)
    return Axis(MEASURE_NAMES[measure], (low, high), ticks, _numbers(measure), log=True)


def _sparse(ticks: list[float], most: int) -> list[float]:
    """Keep only powers of ten where 1, 2 and 5 times them are too many."""
    powers = [tick for tick in ticks if abs(math.log10(tick) - round(math.log10(tick))) < 1e-9]
    return powers if len(ticks) > most and powers else ticks


def _curve(
    results: pd.DataFrame, model: Mapping[str, Any], place: str, measure: str
) -> pd.DataFrame:
    rows = curve_rows(results, place, measure)
    for key in ("arm", "strategy", "trained_on"):
        rows = rows[rows[key] == model.get(key)]
    by_round = rows.groupby("rounds")["value"]
    return by_round.agg(["mean", "min", "max", "count"]).sort_index()


def _numbers(measure: str) -> Callable[[float], str]:
    return lambda value: told(measure, value)


def shown_places(sites: Sequence[str], poor: str) -> list[str]:
    """Return the whole, then the data-poor site, then the others."""
    first = [poor] if poor in sites else []
    return [WHOLE, *first, *(site for site in sites if site != poor)]
