"""Charts without knowledge of what they show: rows of estimates, curves over rounds, their axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup

from simulations.report import svg
from simulations.report.svg import WIDTH, Limits

ROW = 42  # height of a row of estimates
LINE = 13  # height of a line of small text
LETTERS = 13  # of a name beside a row


@dataclass(frozen=True)
class Series:
    """One model of a comparison, and how it is drawn."""

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


@dataclass(frozen=True)
class Axis:
    """An axis of values.

    Parameters
    ----------
    name : str
    limits : (low, high)
    ticks : sequence of float
    number : callable
        Turns a value into words.
    log : bool
    chance : float
        Where a dotted line stands; NaN for none.
    """

    name: str
    limits: Limits
    ticks: Sequence[float]
    number: Callable[[float], str]
    log: bool = False
    chance: float = math.nan

    @property
    def shows_chance(self) -> bool:
        """Whether the dotted line is within the limits."""
        return self.limits[0] <= self.chance <= self.limits[1]


@dataclass(frozen=True)
class Estimate:
    """A series' mean, its interval (NaN for none) and the values that it is the mean of."""

    series: Series
    mean: float
    low: float = math.nan
    high: float = math.nan
    values: Sequence[float] = field(default=())


def estimates(rows: Sequence[Estimate], axis: Axis, words: str) -> Markup:
    """Draw estimates, a row each: mean, interval and single values.

    Parameters
    ----------
    rows : sequence of Estimate
    axis : Axis
    words : str
        What is shown, for who cannot see it; the numbers follow it.

    Returns
    -------
    Markup
        An ``<svg>``.
    """
    left, right, top = 90, 274, 4
    bottom = top + ROW * len(rows)
    at = svg.scale(axis.limits, (left, right), log=axis.log)
    parts = value_axis(axis, (left, right), (top, bottom))
    if axis.shows_chance:
        parts.append(svg.line(at(axis.chance), top, at(axis.chance), bottom, class_="chance"))
    told = []
    for index, row in enumerate(rows):
        y, one = top + ROW * (index + 0.5), row.series
        notes = two_lines(one.note)
        first = y + 4 - LINE / 2 * len(notes)  # baselines about the row's middle
        parts.append(svg.text(one.label, 0, first, "label"))
        for line, note in enumerate(notes, start=1):
            parts.append(svg.text(note, 0, first + 2 + LINE * line, "small"))
        for value in row.values if len(row.values) > 1 else []:
            dot = {"cx": at(value), "cy": y + 12, "r": 2.2, "fill": one.colour, "opacity": 0.6}
            parts.append(svg.tag("circle", **dot))
        numbers = (row.mean, row.low, row.high)
        drawn, said = estimate(numbers, (one.marker, one.colour), y, at, axis.number)
        parts += drawn
        told.append(f"{one.name} {said}")
    return svg.panel(bottom + 36, f"{words}. {'; '.join(told) or 'No result'}.", parts)


def estimate(
    numbers: tuple[float, float, float],
    look: tuple[str, str],
    y: float,
    at: Callable[[float], float],
    number: Callable[[float], str],
    *,
    between: str = "–",
) -> tuple[list[Markup], str]:
    """Draw marker (of shape and colour ``look``), whisker and numbers of a row; say it in words."""
    mean, low, high = map(float, numbers)
    if not math.isfinite(mean):
        return [svg.text("no result", WIDTH, y + 4, "small", "end")], "no result"
    parts, told = [], number(mean)
    if math.isfinite(low) and math.isfinite(high):
        span = f"{number(low)}{between}{number(high)}"
        parts.append(svg.whisker(at(low), at(high), y, look[1]))
        parts.append(svg.text(span, WIDTH, y + 12, "small", "end"))
        told += f", interval {number(low)} to {number(high)}"
    parts.append(svg.marker(look[0], at(mean), y, 5.5, look[1]))
    parts.append(svg.text(number(mean), WIDTH, y - 3, "value", "end"))
    return parts, told


def lines(
    curves: Mapping[Series, pd.DataFrame], axis: Axis, words: str, *, ends: str = "No curve"
) -> Markup:
    """Draw one line a series over the rounds.

    Parameters
    ----------
    curves : mapping of Series to DataFrame
        Columns mean, min, max and count (over repetitions) by round; the band is their range.
    axis : Axis
    words : str
        What is shown, for who cannot see it; ``{last}`` becomes the last round.
    ends : str
        What is said where there is no curve.

    Returns
    -------
    Markup
        An ``<svg>``.
    """
    left, right, top, bottom = 32, WIDTH - 6, 10, 172
    last = max((int(frame.index.max()) for frame in curves.values()), default=1)
    at_x = svg.scale((0, last), (left, right))
    at_y = svg.scale(axis.limits, (bottom, top), log=axis.log)
    parts = []
    for tick in axis.ticks:
        y = at_y(tick)
        parts.append(svg.line(left, y, right, y, class_="grid"))
        parts.append(svg.text(f"{tick:g}", left - 6, y + 4, "small", "end"))
    for tick in svg.count_ticks(last):
        parts.append(svg.text(f"{tick}", at_x(tick), bottom + 17, "small", "middle"))
    if axis.shows_chance:
        chance = at_y(axis.chance)
        parts.append(svg.line(left, chance, right, chance, class_="chance"))
        parts.append(svg.text("chance", right, chance - 4, "small", "end"))
    drawn, told = [], []
    for one, frame in curves.items():
        across = [at_x(r) for r in frame.index]
        points = list(zip(across, map(at_y, frame["mean"]), strict=True))
        if (frame["count"] > 1).any():
            upper = zip(across, map(at_y, frame["max"]), strict=True)
            lower = zip(across, map(at_y, frame["min"]), strict=True)
            band = svg.path([*upper, *reversed(list(lower))], closed=True)
            parts.append(svg.tag("path", d=band, fill=one.colour, opacity=0.15))
        drawn.append(stroke(svg.path(points), one))
        every = max(1, math.ceil(len(points) / 5))
        drawn += [svg.marker(one.marker, *p, 3.6, one.colour) for p in points[every - 1 :: every]]
        told.append(f"{one.name} ends at {axis.number(frame['mean'].iloc[-1])}")
    parts += [*drawn, svg.text("round", (left + right) / 2, bottom + 33, "small", "middle")]
    said = f"{words.replace('{last}', str(last))}. {'; '.join(told) or ends}."
    return svg.panel(bottom + 38, said, parts)


def value_axis(axis: Axis, across: Limits, down: Limits) -> list[Markup]:
    """Return vertical grid lines with their numbers, and the axis' name."""
    at = svg.scale(axis.limits, across, log=axis.log)
    parts = [svg.text(axis.name, sum(across) / 2, down[1] + 32, "small", "middle")]
    for tick in axis.ticks:
        parts.append(svg.line(at(tick), down[0], at(tick), down[1], class_="grid"))
        label = f"{tick + 0.0:.1f}" if max(map(abs, axis.limits)) <= 1 else f"{tick + 0.0:g}"
        label = label.replace("-", "−")
        parts.append(svg.text(label, at(tick), down[1] + 16, "small", "middle"))
    return parts


def legend_key(one: Series) -> Markup:
    """Draw the line and marker that stand beside a model's name in a legend."""
    drawn = [stroke("M1 7H33", one), svg.marker(one.marker, 17, 7, 4.5, one.colour)]
    size = {"viewBox": "0 0 34 14", "width": 34, "height": 14}
    return svg.tag("svg", *drawn, **size, aria_hidden="true")


def stroke(d: str, one: Series) -> Markup:
    """Draw a path as the series' line."""
    look = {"fill": "none", "stroke": one.colour, "stroke_width": 2, "stroke_linejoin": "round"}
    return svg.tag("path", d=d, **look, stroke_dasharray=one.dash or "none")


def two_lines(name: str) -> list[str]:
    """Break a name at a blank or a hyphen, so that it fits beside a row."""
    first, *rest = textwrap.wrap(name, LETTERS, break_long_words=False) or [""]
    return [shortened(line) for line in (first, " ".join(rest)) if line]


def shortened(name: str) -> str:
    """Return a name that fits beside a row."""
    return name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
