"""SVG by hand: escaped elements, axes, markers. Small enough to need no plotting library.

Nothing here knows what is drawn. Texts take the page's font and ``currentColor``, lines its CSS
classes (``grid``, ``chance``, ``small``, ``value``), so a figure follows the page into dark mode
and onto paper. Coordinates are rounded: the same input gives the same bytes on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

WIDTH = 360  # user units of every panel, about a phone's width in CSS pixels

Limits = tuple[float, float]
Points = Sequence[tuple[float, float]]


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """Return an element.

    Parameters
    ----------
    name : str
        Of the element; trusted.
    *children : str
        Escaped unless they are Markup.
    **attributes
        ``_`` in a key becomes ``-``, a trailing one is dropped (``class_``). Floats get two
        decimals; everything is escaped.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{v:.2f}" if isinstance(v, float) else v
        )
        for key, v in attributes.items()
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inner)


def panel(height: float, words: str, parts: Sequence[Markup]) -> Markup:
    """Return parts as one image, :data:`WIDTH` units wide, told in words to who cannot see it."""
    box = f"0 0 {WIDTH} {height:.0f}"
    return tag("svg", *parts, class_="figure", viewBox=box, role="img", aria_label=words)


def text(words: str, x: float, y: float, kind: str, anchor: str = "start") -> Markup:
    """Place words with their baseline at y; nothing for no words."""
    if not words:
        return Markup("")
    return tag("text", words, x=float(x), y=float(y), class_=kind, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> Markup:
    """Return a straight line."""
    place = {"x1": float(x1), "y1": float(y1), "x2": float(x2), "y2": float(y2)}
    return tag("line", **place, **attributes)


def path(points: Points, *, closed: bool = False) -> str:
    """Return the ``d`` of a path through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if closed else "")


def marker(shape: str, x: float, y: float, size: float, colour: str) -> Markup:
    """Draw a circle, square, triangle or diamond of about one area, centred at x, y."""
    if shape == "circle":
        return tag("circle", cx=float(x), cy=float(y), r=float(size), fill=colour, class_="marker")
    s, t, d = 0.9 * size, 1.15 * size, 1.3 * size
    corners = {
        "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "triangle": [(0, -t), (t, 0.8 * t), (-t, 0.8 * t)],
        "diamond": [(0, -d), (d, 0), (0, d), (-d, 0)],
    }[shape]
    outline = path([(x + dx, y + dy) for dx, dy in corners], closed=True)
    return tag("path", d=outline, fill=colour, class_="marker")


def whisker(low: float, high: float, y: float, colour: str) -> Markup:
    """Draw a horizontal interval with its ends."""
    look = {"stroke": colour, "stroke_width": 2}
    ends = [line(x, y - 5, x, y + 5, **look) for x in (low, high)]
    return Markup("").join([line(low, y, high, y, **look), *ends])


def scale(limits: Limits, span: Limits, *, log: bool = False) -> Callable[[float], float]:
    """Return the map from values to user units; values beyond the limits stop at the edge."""
    to = math.log if log else float
    low, high = to(limits[0]), to(limits[1])

    def at(value: float) -> float:
        share = (to(min(max(value, limits[0]), limits[1])) - low) / (high - low)
        return span[0] + share * (span[1] - span[0])

    return at


def tenths(limits: Limits, most: int = 7) -> list[float]:
    """Ticks at tenths; at every second or fifth where they would be more than ``most``."""
    low, high = round(limits[0] * 10), round(limits[1] * 10)
    step = next((step for step in (1, 2) if (high - low) // step < most), 5)
    return [tenth / 10 for tenth in range(low, high + 1) if tenth % step == 0]


def log_ticks(limits: Limits) -> list[float]:
    """Ticks at 1, 2 and 5 times powers of ten within the limits."""
    powers = range(math.floor(math.log10(limits[0])), math.ceil(math.log10(limits[1])) + 1)
    ladder = [round(factor * 10.0**power, 12) for power in powers for factor in (1, 2, 5)]
    return [tick for tick in ladder if limits[0] <= tick <= limits[1]]


def count_ticks(last: int) -> list[int]:
    """At most six whole numbers from 0, in steps of 1, 2 or 5 times a power of ten."""
    raw = max(last / 5, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw))
    return list(range(0, last + 1, step))


def even_ticks(limits: Limits, most: int = 6) -> list[float]:
    """At most about ``most`` ticks in steps of 1, 2 or 5 times a power of ten."""
    raw = (limits[1] - limits[0]) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(limits[0] / step - 1e-9), math.floor(limits[1] / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]
