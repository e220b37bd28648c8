"""Figures of a comparison: from its summary and results to panels, one a place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from simulations.measures import DISTANCES, measure
from simulations.report import charts
from simulations.report.charts import Axis, Estimate, Line
from simulations.report.looks import Series
from simulations.report.tables import contrast_name, told
from simulations.report.words import is_number, mapping, place, unsure

RATIO = 4  # of two distances on one axis, beyond which it is logarithmic
SMALLEST = 1e-3  # of a logarithmic axis: a kernel distance is estimated without bias, so around 0
LOSS = "loss"

Panel = dict[str, Any]


def panel(where: str, note: str, drawn: str) -> Panel:
    """Return a panel of a figure as the page's template wants it."""
    return {"site": where, "note": note, "svg": drawn}


def comparison(
    scores: Mapping[str, Any], looks: Mapping[str, Series], where: str, name: str, axis: Axis
) -> str:
    """Draw every model's test result at one place: mean, interval and each repetition."""
    rows = [
        Estimate(
            *(one.label, one.note, one.colour, one.marker),
            *(*_numbers(found), _values(found), unsure(found)),
        )
        for model, one in looks.items()
        if is_number((found := mapping(mapping(scores.get(model)).get(name))).get("mean"))
    ]
    return charts.estimates(tuple(rows), axis, f"Test {axis.name} at {at(where)}")


def estimate_axis(scores: Iterable[Mapping[str, Any]], name: str, chance: float) -> Axis:
    """Return an axis that holds every repetition, and of the intervals as much as is sensible.

    Shares end at 1. Distances begin at zero, or are logarithmic where one model's are many times
    another's: the near ones would overlap else.
    """
    found = [mapping(mapping(m).get(name)) for place in scores for m in place.values()]
    values = [v for one in found for v in (*_values(one), one.get("mean")) if is_number(v)]
    ends = [one[end] for one in found for end in ("low", "high") if is_number(one.get(end))]
    number, words = _number(name), measure(name).words
    if name not in DISTANCES:
        lowest = math.floor(min([*values, *ends, 0.4]) * 10 + 1e-9) / 10
        return Axis(words, (max(0.0, lowest), 1.0), number, chance=chance)
    least, most = min([*values, math.inf]), max([*values, SMALLEST])
    # An interval of two or three repetitions may reach far beyond what any of them gave.
    high = max(most, min(max([*ends, most]), 1.6 * most)) * 1.05
    if least > SMALLEST and most > RATIO * least:
        low = max(min([*(end for end in ends if end > 0), least]), least / 2) / 1.05
        return Axis(f"{words}, logarithmic", (low, high), number, log=True)
    return Axis(words, (min([0.0, *values]), high), number)


def differences(
    by_place: Mapping[str, Any], contrast: str, name: str, limits: tuple[float, float]
) -> str:
    """Draw the paired difference between two arms, with one row for each place."""
    rows = [
        Estimate(
            *(place(where), "", charts.INK, "D" if where == "all" else "s"),
            *_numbers(found),
            unsure=unsure(found),
        )
        for where, contrasts in by_place.items()
        if (found := mapping(mapping(mapping(contrasts).get(contrast)).get(name)))
        and is_number(found.get("mean"))
    ]
    axis = Axis(
        f"difference in {measure(name).words}", limits, _number(name, signed=True), False, 0
    )
    return charts.estimates(tuple(rows), axis, f"{contrast_name(contrast)}: {axis.name}")


def difference_limits(by_place: Mapping[str, Any], name: str) -> tuple[float, float]:
    """Choose limits around zero that all contrasts share."""
    found = [
        mapping(mapping(one).get(name)) for c in by_place.values() for one in mapping(c).values()
    ]
    least = 0.1 if name not in DISTANCES else SMALLEST
    means = [one["mean"] for one in found if is_number(one.get("mean"))]
    most = 2 * max([abs(value) for value in means] + [least])
    ends = [one[end] for one in found for end in ("low", "high") if is_number(one.get(end))]
    kept = [min(max(value, -most), most) for value in [*means, *ends]]
    return min([*kept, -least]) * 1.05, max([*kept, least]) * 1.05


def curve_rows(results: pd.DataFrame, where: str, name: str) -> pd.DataFrame:
    """Return finite validation values at a place of models that were validated there.

    A local model is validated on its own site's images alone, so it has no value of all sites.
    """
    return results[
        (results["split"] == "val")
        & (results["metric"] == name)
        & (results["tested_on"] == where)
        & (results["status"] == "done")
        & ((results["arm"] != "local") | (results["trained_on"] == where))
        & np.isfinite(results["value"])
    ]


def curve_axis(values: pd.Series, name: str, chance: float) -> Axis:
    """Return a curve's axis; logarithmic for losses and distances, which fall by magnitudes."""
    words, number = measure(name).words, _number(name)
    if name == LOSS:
        low, high = min([0.2, *values.clip(lower=0.01)]) * 0.95, max([1.0, *values]) * 1.05
        return Axis(words, (low, high), number, True, chance)
    if name in DISTANCES:
        above = [v for v in values if v > SMALLEST]
        low = max(min(above, default=SMALLEST) / 1.1, SMALLEST)
        return Axis(words, (low, max([*above, low * 2]) * 1.1), number, log=True)
    lowest = math.floor(min([*values, 0.4]) * 10 + 1e-9) / 10
    return Axis(words, (max(0.0, lowest), 1.0), number, chance=chance)


def learning_curve(
    rows: pd.DataFrame,
    looks: Mapping[str, Series],
    models: Mapping[str, Any],
    where: str,
    axis: Axis,
) -> str:
    """Draw a validation measure over the rounds at a place: means over repetitions, their range."""
    curves = []
    for model, look in looks.items():
        about = mapping(models.get(model))
        mine = rows[(rows["arm"] == about.get("arm")) & (rows["strategy"] == about.get("strategy"))]
        if about.get("arm") == "local" and about.get("trained_on") not in ("", where):
            continue
        by_round = mine.groupby("rounds")["value"].agg(["mean", "min", "max", "count"])
        by_round = by_round.sort_index()
        if len(by_round) and not any(line.series == look for line in curves):
            several = (by_round["count"] > 1).any()
            band = [tuple(by_round[k]) if several else () for k in ("min", "max")]
            curves.append(Line(look, tuple(by_round.index), tuple(by_round["mean"]), *band))
    words = f"Validation {axis.name} at {at(where)} over {{last}} rounds"
    return charts.lines(tuple(curves), axis, words)


def curve_figures(
    results: pd.DataFrame,
    looks: Callable[[str], Mapping[str, Series]],
    models: Mapping[str, Any],
    places: Sequence[str],
    names: Mapping[str, float],
    caption: str,
    image: str,
) -> Iterable[dict[str, Any]]:
    """Yield a figure a measure (by name with its chance level), a panel a place."""
    for name, chance in names.items():
        rows = {where: curve_rows(results, where, name) for where in places}
        known = [where for where in places if len(rows[where])]
        if not known:
            continue
        axis = curve_axis(pd.concat([rows[where]["value"] for where in known]), name, chance)
        panels = []
        for where in known:
            drawn = learning_curve(rows[where], looks(where), models, where, axis)
            n = rows[where]["n"].max()
            note = f"{int(n)} validation {image}s" if np.isfinite(n) else ""
            panels.append(panel(place(where), note, drawn))
        without = [place(where) for where in places if where not in known and where != "all"]
        absent = f" Too few validation {image}s for it at {', '.join(without)}." if without else ""
        log = " Logarithmic axis." if axis.log else ""
        yield {
            "title": f"Validation {measure(name).words} over the rounds",
            "caption": f"{caption}{log}{absent}",
            "panels": panels,
        }


def _numbers(found: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(
        float(found[key]) if is_number(found.get(key)) else math.nan
        for key in ("mean", "low", "high")
    )


def _values(found: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(float(v) for v in mapping(found.get("values")).values() if is_number(v))


_NUMBERS: dict[tuple[str, bool], Callable[[float], str]] = {}


def _number(name: str, *, signed: bool = False) -> Callable[[float], str]:
    """Return how a measure's values are told; the same function for the same measure."""
    return _NUMBERS.setdefault((name, signed), lambda value: told(name, value, signed=signed))


def at(where: str) -> str:
    """Return where something was measured, for a sentence."""
    return "all sites" if where == "all" else f"site {where}"
