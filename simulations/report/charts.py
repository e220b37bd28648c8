"""Charts as inline SVG, by Matplotlib: pure functions, the same input gives the same bytes.

A figure is made of panels, one a place, so that it reads as well on a phone as on paper. Texts take
the page's font, colours are variables of its style sheet, so a chart follows the page into dark
mode. Every panel is an image to assistive technology, with its numbers in words.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from simulations.report.looks import COLOURS, DASHES, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 360  # points, about a phone's width in CSS pixels
ROW, LETTERS = 42, 13  # height of a row of estimates; letters of a name beside it
INK, SOFT, RULE, PAPER, ACCENT = "#16202a", "#55626f", "#d5dce3", "#fefefe", "#0067a7"
VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", PAPER: "paper", ACCENT: "accent"} | {
    value: name for name, value in COLOURS.items()
}
# In the ink, as thin dots in the colour of words are hardly seen on a dark page.
GUESSING: Any = {"color": INK, "linestyle": (0, (1, 2)), "linewidth": 1.6, "clip_on": False}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedscan",
    "pdf.fonttype": 42,  # which publishers take, and programs can edit
    "font.size": 11.5,
    "text.parse_math": False,  # a class may be called $^$
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "patch.linewidth": 0,
}
LARGER = {".": 1.6}  # markers that Matplotlib draws smaller than the others


@dataclass(frozen=True)
class Axis:
    """An axis of values: its name, limits, scale, how a value is told, where chance lies."""

    name: str
    limits: tuple[float, float]
    number: Callable[[float], str] = "{:.2f}".format
    log: bool = False
    chance: float = math.nan


@dataclass(frozen=True)
class Estimate:
    """A row: a label, a mean, its interval and the values that it is the mean of.

    Without an interval, or with one that tells nothing, ``unsure`` says so in a word.
    """

    label: str
    note: str
    colour: str
    marker: str
    mean: float
    low: float = math.nan
    high: float = math.nan
    values: tuple[float, ...] = ()
    unsure: str = ""

    @property
    def name(self) -> str:
        """Label and note in one line."""
        return f"{self.label} ({self.note})" if self.note else self.label


@dataclass(frozen=True)
class Line:
    """A curve; ``low`` and ``high`` bound its band, and may be empty."""

    series: Series
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


class Canvas:
    """Where a chart is drawn: a figure of its own, or a place on a sheet of several.

    Parameters
    ----------
    sheet : Figure, optional
    left, top : float
        Of the place on it, in points from its upper left corner.
    """

    def __init__(self, sheet: Figure | None = None, left: float = 0, top: float = 0) -> None:
        self.figure, self.left, self.top, self.height = sheet, left, top, 0.0

    def panel(
        self, height: float, across: tuple[float, float], down: tuple[float, float]
    ) -> tuple[Axes, Axes]:
        """Return axes of data at a place in points, and axes in points for words beside."""
        from matplotlib.figure import Figure

        if self.figure is None:
            self.figure = Figure(figsize=(WIDTH / 72, height / 72))
        self.height = height
        wide, high = (72 * inches for inches in self.figure.get_size_inches())

        def axes(left: float, top: float, right: float, bottom: float, **options: Any) -> Axes:
            box = (self.left + left, high - self.top - bottom, right - left, bottom - top)
            shares = (box[0] / wide, box[1] / high, box[2] / wide, box[3] / high)
            return self.figure.add_axes(shares, **options)

        page = axes(0, 0, WIDTH, height, xlim=(0, WIDTH), ylim=(height, 0))
        page.set_axis_off()
        return axes(across[0], down[0], across[1], down[1]), page


class Chart(Markup):
    """An inline ``<svg>`` that can be drawn again on a sheet: :meth:`draw` takes a canvas."""

    height: float
    draw: Callable[[Canvas], str]


def _chart(draw: Callable[..., str]) -> Callable[..., Chart]:
    """Turn what draws on a canvas and returns it in words into one that returns a chart."""

    @functools.lru_cache(maxsize=512)
    @functools.wraps(draw)
    def drawn(*args: Any, **options: Any) -> Chart:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            words = draw(canvas := Canvas(), *args, **options)
            stream = io.StringIO()
            canvas.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        chart = Chart(_inline(stream.getvalue(), words))
        chart.height = canvas.height
        chart.draw = lambda canvas: draw(canvas, *args, **options)
        return chart

    return drawn


@_chart
def estimates(canvas: Canvas, rows: tuple[Estimate, ...], axis: Axis, words: str) -> str:
    """Draw estimates, a row each: mean, interval and single values."""
    height = 4 + ROW * max(1, len(rows))
    ax, page = canvas.panel(height + 38, (90, 274), (4, height))
    _value_axis(ax, "x", axis)
    ax.set_ylim(len(rows) or 1, 0)
    ax.set_yticks([])
    ax.set_xlabel(axis.name)
    if axis.limits[0] <= axis.chance <= axis.limits[1]:
        ax.axvline(axis.chance, **GUESSING)
    told = []
    for index, row in enumerate(rows):
        y, colour = index + 0.5, COLOURS.get(row.colour, row.colour)
        middle = 4 + ROW * y
        notes = two_lines(row.note)
        for line, text in enumerate([shortened(row.label), *notes]):
            at = middle + 4 - 6.5 * len(notes) + 14 * line
            page.text(0, at, text, fontsize=11 if line else 13, color=SOFT if line else INK)
        if len(row.values) > 1:
            ax.scatter(_inside(row.values, axis), [y + 0.28] * len(row.values), s=14, c=colour,
                       alpha=0.6, linewidths=0, clip_on=False)  # fmt: skip
        if not math.isfinite(row.mean):
            page.text(WIDTH, middle + 4, "no result", ha="right", color=SOFT)
            told.append(f"{row.name} no result")
            continue
        number, said = axis.number, f"{row.name} {axis.number(row.mean)}"
        if row.unsure:
            page.text(WIDTH, middle + 13, row.unsure, ha="right", color=SOFT, fontsize=11)
            said += f", {row.unsure}"
        else:
            ends = _inside((row.low, row.high), axis)
            ax.plot(ends, [y, y], color=colour, linewidth=2, marker="|", markersize=9,
                    markeredgewidth=2, clip_on=False)  # fmt: skip
            span = f"{number(row.low)} to {number(row.high)}"
            page.text(WIDTH, middle + 13, span, ha="right", color=SOFT, fontsize=11)
            said += f", interval {span}"
        hollow = {"markerfacecolor": PAPER, "markeredgewidth": 2} if row.unsure else {}
        ax.plot(_inside((row.mean,), axis), [y], color=colour, marker=row.marker,
                markersize=10 * LARGER.get(row.marker, 1),
                **{"markeredgecolor": colour if hollow else PAPER} | hollow,
                clip_on=False)  # fmt: skip
        page.text(WIDTH, middle - 3, number(row.mean), ha="right", fontsize=14, weight="bold")
        told.append(said)
    return f"{words}. {'; '.join(told) or 'No result'}."


@_chart
def lines(canvas: Canvas, curves: tuple[Line, ...], axis: Axis, words: str) -> str:
    """Draw one line a series over the rounds, with its band."""
    ax, _ = canvas.panel(212, (38, WIDTH - 8), (10, 172))
    last = max((max(one.x) for one in curves), default=1)
    ax.set_xlim(0, last)
    ax.xaxis.set_major_locator(_ticks(integer=True))
    ax.set_xlabel("round")
    _value_axis(ax, "y", axis)
    if axis.limits[0] <= axis.chance <= axis.limits[1]:
        ax.axhline(axis.chance, **GUESSING)
    told = []
    for one in curves:
        if one.low:
            bounds = (_inside(one.low, axis), _inside(one.high, axis))
            ax.fill_between(one.x, *bounds, color=COLOURS[one.series.colour], alpha=0.15,
                            clip_on=False)  # fmt: skip
        _stroke(ax, one.series, one.x, _inside(one.y, axis), max(1, math.ceil(len(one.x) / 5)))
        told.append(f"{one.series.name} ends at {axis.number(one.y[-1])}")
    return f"{words.replace('{last}', f'{last:g}')}. {'; '.join(told) or 'No curve'}."


@_chart
def unit_square(
    canvas: Canvas,
    curves: tuple[Line, ...],
    names: tuple[str, str],
    words: str,
    *,
    points: bool = False,
    level: float | None = None,
) -> str:
    """Draw curves within [0, 1]², with the diagonal or a level to compare them with."""
    ax, _ = canvas.panel(304, (44, 304), (8, 264))
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ends = [0, 1] if level is None else [level, level]
    ax.plot([0, 1], ends, **GUESSING)
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    for one in curves:
        _stroke(ax, one.series, one.x, one.y, 1 if points else len(one.x) // 4)
    return words


@_chart
def confusion(
    canvas: Canvas, counts: tuple[tuple[int, ...], ...], classes: tuple[str, ...], words: str
) -> str:
    """Draw a confusion matrix, shaded by the share of each true class, with counts in its cells."""
    k, numbers = len(classes), np.array(counts)
    left, side = 64, min(52, 290 / k)
    ax, _ = canvas.panel(side * k + 78, (left, left + side * k), (4, 4 + side * k))
    share = numbers / np.maximum(numbers.sum(axis=1, keepdims=True), 1)
    ax.grid(False)
    for place in range(k + 1):  # where nothing is counted, a row is followed by its lines
        ax.axhline(place, color=RULE, linewidth=0.8, clip_on=False)
        ax.axvline(place, color=RULE, linewidth=0.8, clip_on=False)
    ax.set_xlim(0, k)
    ax.set_ylim(k, 0)
    for (row, column), value in np.ndenumerate(numbers):
        shade = 0.62 * float(share[row, column])
        ax.add_patch(_rectangle(column, row, shade))
        if value and k <= 12:
            size = 13 if k < 5 else 11 if value < 1000 else 9
            ax.text(column + 0.5, row + 0.5, f"{value}", ha="center", va="center", fontsize=size)
    centers, names = np.arange(k) + 0.5, [shortened(name, 9) for name in classes]
    size = 11 if k <= 12 else max(3.0, 130 / k)
    ax.set_xticks(centers, names, rotation=90 if k > 3 else 0, fontsize=size)
    ax.set_yticks(centers, names, fontsize=size)
    ax.set_xlabel("decided for")
    right = [f"{name} {share[c, c]:.0%}" for c, name in enumerate(classes) if numbers[c].any()]
    return f"{words}. Rightly recognised: {', '.join(right) or 'none'}."


@functools.lru_cache(maxsize=64)
def legend_key(one: Series) -> Markup:
    """Draw the line and marker that stand beside a model's name in a legend."""
    colour = f"var(--{one.colour})"
    shape = {
        "o": '<circle cx="17" cy="7" r="4.5"/>',
        "s": '<path d="M13 3H21V11H13Z"/>',
        "^": '<path d="M17 2L22 11H12Z"/>',
        "D": '<path d="M17 1L23 7L17 13L11 7Z"/>',
        "v": '<path d="M17 12L12 3H22Z"/>',
        "<": '<path d="M12 7L21 2V12Z"/>',
        ">": '<path d="M22 7L13 2V12Z"/>',
        "P": '<path d="M15 2H19V5H22V9H19V12H15V9H12V5H15Z"/>',
        "X": '<path d="M14 1L17 4L20 1L23 4L20 7L23 10L20 13L17 10L14 13L11 10L14 7L11 4Z"/>',
        "*": '<path d="M17 1L18.6 5.3H23L19.5 8.2L20.8 13L17 10L13.2 13L14.5 8.2L11 5.3H15.4Z"/>',
        "p": '<path d="M17 2L22 5.6L20 12H14L12 5.6Z"/>',
        "h": '<path d="M17 2L21.5 4.5V9.5L17 12L12.5 9.5V4.5Z"/>',
        "H": '<path d="M12 7L14.5 2.5H19.5L22 7L19.5 11.5H14.5Z"/>',
        ".": '<circle cx="17" cy="7" r="3.5"/>',
        "8": '<path d="M15 2H19L22 5V9L19 12H15L12 9V5Z"/>',
        "d": '<path d="M17 1L20 7L17 13L14 7Z"/>',
    }[one.marker]
    return Markup(
        '<svg viewBox="0 0 34 14" width="34" height="14" aria-hidden="true"><path d="M1 7H33" '
        'stroke="{c}" stroke-width="2" stroke-dasharray="{d}"/><g fill="{c}">{s}</g></svg>'
    ).format(c=colour, d=one.dash or "none", s=Markup(shape))


def two_lines(name: str) -> list[str]:
    """Break a name at a blank or a hyphen, so that it fits beside a row."""
    first, *rest = textwrap.wrap(name, LETTERS, break_long_words=False) or [""]
    return [shortened(line) for line in (first, " ".join(rest)) if line]


def shortened(name: str, most: int = LETTERS) -> str:
    """Return a name that fits beside a row."""
    return name if len(name) <= most else name[: most - 1] + "…"


def _value_axis(ax: Axes, which: str, axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set(**{f"{which}lim": axis.limits})
    one = ax.xaxis if which == "x" else ax.yaxis
    if axis.log:
        ax.set(**{f"{which}scale": "log"})
        wide = axis.limits[1] / axis.limits[0] > 100
        one.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        one.set_minor_locator(NullLocator())
    else:
        one.set_major_locator(_ticks())
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value + 0.0:g}".replace("-", "−")))


def _ticks(**options: Any) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, steps=[1, 2, 5, 10], **options)


def _stroke(ax: Axes, one: Series, x: Sequence[float], y: Sequence[float], every: int) -> None:
    line = (0, DASHES[one.dash]) if DASHES[one.dash] else "-"
    ax.plot(x, y, color=COLOURS[one.colour], linestyle=line, linewidth=2, marker=one.marker,
            markersize=7 * LARGER.get(one.marker, 1), markeredgecolor=PAPER, clip_on=False,
            markevery=(min(every - 1, len(x) - 1) if every else 0, max(every, 1)))  # fmt: skip


def _rectangle(x: float, y: float, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, facecolor=ACCENT, alpha=round(alpha, 3), clip_on=False)


def _inside(values: Sequence[float], axis: Axis) -> list[float]:
    """Values beyond the limits stop at the edge."""
    return [min(max(value, axis.limits[0]), axis.limits[1]) for value in values]


def _inline(svg: str, words: str) -> Markup:
    """Make a part of a page of Matplotlib's file: its font and colours, ids that occur once."""
    box = re.search(r'viewBox="([^"]+)"', svg)
    inner = svg[svg.index("</metadata>") + len("</metadata>") : svg.rindex("</svg>")]
    used = hashlib.sha256((words + svg).encode()).hexdigest()[:10]
    linked = set(re.findall(r'href="#([^"]+)"', inner))
    inner = re.sub(
        r' id="([^"]+)"',
        lambda found: f' id="{used}{found[1]}"' if found[1] in linked else "",
        inner,
    )
    inner = inner.replace('xlink:href="#', f'href="#{used}')
    inner = re.sub(r' clip-path="[^"]*"|<style.*?</style>|<!--.*?-->', "", inner, flags=re.S)
    inner = re.sub(r"<clipPath.*?</clipPath>|<defs>\s*</defs>", "", inner, flags=re.S)
    inner = re.sub(r" font-family: [^;\"]+;| transform=\"rotate\(-0 [^\"]*\"", "", inner)
    for colour, name in VARIABLES.items():
        inner = inner.replace(colour, f"var(--{name})")
    inner = re.sub(r"\s*\n\s*", " ", inner)
    return Markup('<svg class="figure" viewBox="{}" role="img" aria-label="{}">{}</svg>').format(
        box[1], escape(words), Markup(inner)
    )
