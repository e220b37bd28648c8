"""Figures of the comparison: pure functions from tidy tables to inline SVG.

The same tables give the same bytes. A figure is made of panels, one a site, so that it reads as
well on a phone as on paper. Colours are CSS variables of the page with a fallback (after Okabe and
Ito's palette, told apart by colour-blind eyes); marker and dash tell the arms apart without colour.
Every panel is an image to assistive technology, with its numbers in words.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import ArrayLike

from simulations.report import svg
from simulations.report.svg import WIDTH, Limits

METRIC_NAMES = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    "f1": "F1",
    "calibration_error": "calibration error",
    "loss": "cross-entropy (nats)",
}
CHANCE = {"balanced_accuracy": 0.5, "auroc": 0.5, "loss": math.log(2)}  # two classes, even odds
ROW = 42  # height of a row of estimates


@dataclass(frozen=True)
class Series:
    """One arm with its strategy, and how it is drawn."""

    arm: str
    strategy: str
    label: str
    note: str
    colour: str
    marker: str
    dash: str

    @property
    def name(self) -> str:
        """Label and note in one line."""
        return f"{self.label} ({self.note})" if self.note else self.label


_LOOKS = {
    ("centralized", ""): ("Centralized", "", "var(--centralized, #007a5a)", "square", "2 3"),
    ("local", ""): ("Local only", "", "var(--local, #c05000)", "triangle", "7 3"),
    ("federated", "fedavg"): ("Federated", "FedAvg", "var(--fedavg, #0067a8)", "circle", ""),
    ("federated", "fedprox"): ("Federated", "FedProx", "var(--fedprox, #a3478a)", "diamond", "9 2"),
}


def series(arm: str, strategy: str) -> Series:
    """Return how an arm is drawn; one that is not known here is grey and keeps its own name."""
    plain = (arm.capitalize(), strategy, "var(--other, #6b7480)", "circle", "3 2")
    return Series(arm, strategy, *_LOOKS.get((arm, strategy), plain))


def series_of(table: pd.DataFrame) -> list[Series]:
    """Arms and strategies that occur in a table, in the order in which they are always shown."""
    present = set(zip(table["arm"], table["strategy"], strict=True))
    known = [key for key in _LOOKS if key in present]
    return [series(*key) for key in known + sorted(present - set(_LOOKS))]


def comparison(
    results: pd.DataFrame, scores: pd.DataFrame, site: str, metric: str, limits: Limits
) -> Markup:
    """Draw every arm's test result at one site: mean, interval and each repetition.

    Parameters
    ----------
    results : DataFrame
        Rows of ``results.csv``: each repetition's value.
    scores : DataFrame
        Columns arm, strategy, site, metric, mean, low, high; NaN for what is undefined.
    site : str
        Where the models are tested; of the local models, the site's own is shown.
    metric : str
    limits : (low, high)
        Of the axis, the same for all sites; see :func:`axis_limits`.

    Returns
    -------
    Markup
        An ``<svg>``.
    """
    left, right, top = 90, 274, 4
    shown = scores[(scores["site"] == site) & (scores["metric"] == metric)]
    arms = series_of(shown)
    bottom = top + ROW * len(arms)
    at = svg.scale(limits, (left, right))
    parts = _value_axis(METRIC_NAMES.get(metric, metric), limits, (left, right), (top, bottom))
    if limits[0] <= (chance := CHANCE.get(metric, math.nan)) <= limits[1]:
        parts.append(svg.line(at(chance), top, at(chance), bottom, class_="chance"))
    words = []
    for index, one in enumerate(arms):
        y = top + ROW * (index + 0.5)
        mine = (shown["arm"] == one.arm) & (shown["strategy"] == one.strategy)
        parts.append(svg.text(one.label, 0, y - 2 if one.note else y + 4, "label"))
        parts.append(svg.text(one.note, 0, y + 13, "small"))
        values = final_values(results, one, site, metric)
        for value in values if len(values) > 1 else []:
            dot = {"cx": at(value), "cy": y + 12, "r": 2.2, "fill": one.colour, "opacity": 0.6}
            parts.append(svg.tag("circle", **dot))
        drawn, told = _estimate(shown[mine].iloc[0], (one.marker, one.colour), y, at, signed=False)
        parts += drawn
        words.append(f"{one.name} {told}")
    name = METRIC_NAMES.get(metric, metric)
    return svg.panel(
        bottom + 36, f"Test {name} at site {site}. {'; '.join(words) or 'No result'}.", parts
    )


def differences(table: pd.DataFrame, metric: str, limits: Limits) -> Markup:
    """Draw one paired difference between two arms, a row a site.

    Parameters
    ----------
    table : DataFrame
        Columns site, metric, mean, low, high and over_sites (true of means over sites); of one
        contrast, in the order of the rows.
    metric : str
    limits : (low, high)
        Of the axis, around zero.

    Returns
    -------
    Markup
        An ``<svg>``.
    """
    left, right, top = 96, 256, 4
    shown = table[table["metric"] == metric]
    bottom = top + 34 * len(shown)
    at = svg.scale(limits, (left, right))
    name = f"difference in {METRIC_NAMES.get(metric, metric)}"
    parts = _value_axis(name, limits, (left, right), (top, bottom), most=5)
    parts.append(svg.line(at(0), top, at(0), bottom, class_="zero"))
    words = []
    for index, (_, row) in enumerate(shown.iterrows()):
        y = top + 34 * (index + 0.5)
        parts.append(svg.text(_shortened(row["site"]), 0, y + 4, "label"))
        shape = "diamond" if row["over_sites"] else "square"
        drawn, told = _estimate(row, (shape, "currentColor"), y, at, signed=True)
        parts += drawn
        words.append(f"{row['site']} {told}")
    return svg.panel(bottom + 36, f"{name.capitalize()}. {'; '.join(words) or 'No result'}.", parts)


def learning_curve(results: pd.DataFrame, site: str, metric: str, limits: Limits) -> Markup:
    """Draw a validation metric over the rounds at one site, one line an arm.

    Parameters
    ----------
    results : DataFrame
        Rows of ``results.csv``; the lines are means over repetitions, the bands their range.
    site, metric : str
    limits : (low, high)
        Of the metric's axis. Loss gets a logarithmic axis: a local model that overfits reaches
        values many times those of the rest.

    Returns
    -------
    Markup
        An ``<svg>``.
    """
    left, right, top, bottom = 32, WIDTH - 6, 10, 172
    curves = _curves(results, site, metric)
    last = max((int(frame.index.max()) for frame in curves.values()), default=1)
    at_x = svg.scale((0, last), (left, right))
    at_y = svg.scale(limits, (bottom, top), log=metric == "loss")
    parts = []
    for tick in svg.log_ticks(limits) if metric == "loss" else svg.tenths(limits):
        y = at_y(tick)
        parts.append(svg.line(left, y, right, y, class_="grid"))
        parts.append(svg.text(f"{tick:g}", left - 6, y + 4, "small", "end"))
    for tick in svg.count_ticks(last):
        parts.append(svg.text(f"{tick}", at_x(tick), bottom + 17, "small", "middle"))
    if limits[0] <= (chance := CHANCE.get(metric, math.nan)) <= limits[1]:
        parts.append(svg.line(left, at_y(chance), right, at_y(chance), class_="chance"))
        parts.append(svg.text("chance", right, at_y(chance) - 4, "small", "end"))
    lines, words = [], []
    for one, frame in curves.items():
        places = [at_x(r) for r in frame.index]
        points = list(zip(places, map(at_y, frame["mean"]), strict=True))
        if (frame["count"] > 1).any():
            upper = zip(places, map(at_y, frame["max"]), strict=True)
            lower = zip(places, map(at_y, frame["min"]), strict=True)
            band = svg.path([*upper, *reversed(list(lower))], closed=True)
            parts.append(svg.tag("path", d=band, fill=one.colour, opacity=0.15))
        lines.append(_stroke(svg.path(points), one))
        every = max(1, math.ceil(len(points) / 5))
        lines += [svg.marker(one.marker, *p, 3.6, one.colour) for p in points[every - 1 :: every]]
        words.append(f"{one.name} ends at {frame['mean'].iloc[-1]:.2f}")
    parts += [*lines, svg.text("round", (left + right) / 2, bottom + 33, "small", "middle")]
    name = METRIC_NAMES.get(metric, metric)
    told = "; ".join(words) or "No curve"
    return svg.panel(
        bottom + 38, f"Validation {name} at site {site} over {last} rounds. {told}.", parts
    )


def legend_key(one: Series) -> Markup:
    """Draw the line and marker that stand beside an arm's name in a legend."""
    drawn = [_stroke("M1 7H33", one), svg.marker(one.marker, 17, 7, 4.5, one.colour)]
    size = {"viewBox": "0 0 34 14", "width": 34, "height": 14}
    return svg.tag("svg", *drawn, **size, aria_hidden="true")


def scan_strip(slices: ArrayLike) -> tuple[str, int, int]:
    """Put a site's sample slices side by side as one grey picture.

    Parameters
    ----------
    slices : (K, S, S) floats in [0, 1]
        Axis 0 points to the right, axis 1 to the front.

    Returns
    -------
    str, int, int
        A data URI (PNG), width and height in pixels. Front is up, right is right; three a row,
        each voxel 4 × 4 pixels, as smoothing would hide differences in resolution.
    """
    from PIL import Image

    stack = np.nan_to_num(np.asarray(slices, dtype=float)).clip(0, 1)
    upright = stack.transpose(0, 2, 1)[:, ::-1]
    columns = min(3, len(upright))
    empty = -len(upright) % columns
    padded = np.pad(upright, [(0, empty), (0, 0), (0, 0)])
    _, height, width = padded.shape
    sheet = padded.reshape(-1, columns, height, width).transpose(0, 2, 1, 3)
    sheet = sheet.reshape(-1, columns * width).repeat(4, axis=0).repeat(4, axis=1)
    stream = io.BytesIO()
    Image.fromarray((255 * sheet).round().astype(np.uint8)).save(stream, "PNG", optimize=True)
    encoded = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/png;base64,{encoded}", sheet.shape[1], sheet.shape[0]


def axis_limits(values: Iterable[float], metric: str) -> Limits:
    """Choose limits that all panels of a metric share, from the values that they show."""
    finite = [float(v) for v in values if math.isfinite(v)]
    if metric == "loss":
        return min([0.2, *(max(v, 0.01) for v in finite)]) * 0.95, max([1.0, *finite]) * 1.05
    lowest = math.floor(min([*finite, 0.4]) * 10 + 1e-9) / 10
    return max(0.0, lowest), 1.0


def difference_limits(values: Iterable[float]) -> Limits:
    """Choose limits around zero, in tenths."""
    finite = [float(v) for v in values if math.isfinite(v)]
    low = math.floor(min([*finite, -0.1]) * 10 + 1e-9) / 10
    return low, math.ceil(max([*finite, 0.1]) * 10 - 1e-9) / 10


def final_values(results: pd.DataFrame, one: Series, site: str, metric: str) -> list[float]:
    """Test values of an arm's finished repetitions at a site, by repetition."""
    rows = results[
        (results["arm"] == one.arm)
        & (results["strategy"] == one.strategy)
        & (results["tested_on"] == site)
        & (results["split"] == "test")
        & (results["metric"] == metric)
        & (results["status"] == "done")
    ]
    if one.arm == "local":
        rows = rows[rows["trained_on"] == site]
    return [float(v) for v in rows.sort_values("seed")["value"].dropna()]


def _curves(results: pd.DataFrame, site: str, metric: str) -> dict[Series, pd.DataFrame]:
    """Return mean, min, max and count over repetitions by round, for every arm that has any."""
    rows = results[
        (results["split"] == "val")
        & (results["metric"] == metric)
        & (results["tested_on"] == site)
        & (results["status"] == "done")
        & ((results["arm"] != "local") | (results["trained_on"] == site))
        & np.isfinite(results["value"])
    ]
    found = {}
    for one in series_of(rows):
        mine = rows[(rows["arm"] == one.arm) & (rows["strategy"] == one.strategy)]
        by_round = mine.groupby("rounds")["value"]
        found[one] = by_round.agg(["mean", "min", "max", "count"]).sort_index()
    return found


def _value_axis(
    name: str, limits: Limits, across: Limits, down: Limits, most: int = 7
) -> list[Markup]:
    """Return vertical grid lines with their numbers, and the axis' name."""
    at = svg.scale(limits, across)
    parts = [svg.text(name, sum(across) / 2, down[1] + 32, "small", "middle")]
    for tick in svg.tenths(limits, most):
        parts.append(svg.line(at(tick), down[0], at(tick), down[1], class_="grid"))
        label = f"{tick + 0.0:.1f}".replace("-", "−")
        parts.append(svg.text(label, at(tick), down[1] + 16, "small", "middle"))
    return parts


def _estimate(
    row: pd.Series,
    look: tuple[str, str],
    y: float,
    at: Callable[[float], float],
    *,
    signed: bool,
) -> tuple[list[Markup], str]:
    """Draw marker (of shape and colour ``look``), whisker and numbers of a row; say it in words."""
    mean, low, high = (float(row[key]) for key in ("mean", "low", "high"))
    if not math.isfinite(mean):
        return [svg.text("no result", WIDTH, y + 4, "small", "end")], "no result"
    number = signed_number if signed else "{:.2f}".format
    parts, told = [], number(mean)
    if math.isfinite(low) and math.isfinite(high):
        span = f"{number(low)} to {number(high)}" if signed else f"{low:.2f}–{high:.2f}"
        parts.append(svg.whisker(at(low), at(high), y, look[1]))
        parts.append(svg.text(span, WIDTH, y + 12, "small", "end"))
        told += f", interval {number(low)} to {number(high)}"
    parts.append(svg.marker(look[0], at(mean), y, 5.5, look[1]))
    parts.append(svg.text(number(mean), WIDTH, y - 3, "value", "end"))
    return parts, told


def signed_number(value: float) -> str:
    """Two decimals with a sign, a true minus; no sign for what rounds to zero."""
    rounded = round(value, 2)
    return "0.00" if rounded == 0 else f"{rounded:+.2f}".replace("-", "−")


def _stroke(d: str, one: Series) -> Markup:
    look = {"fill": "none", "stroke": one.colour, "stroke_width": 2, "stroke_linejoin": "round"}
    return svg.tag("path", d=d, **look, stroke_dasharray=one.dash or "none")


def _shortened(name: str) -> str:
    return name if len(name) <= 13 else name[:12] + "…"
