"""Figures of a map: the same points three times, coloured by class, by site and by split."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulations.explore.points import GENERATED, KINDS, PROJECTED, REAL
from simulations.report.charts import RULE, STYLE
from simulations.report.looks import OKABE_ITO

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURINGS = ("class", "site", "split")
# Of more values they come round again.
BROWN = "#7f4f24"  # in the place of yellow, in which points would not show on white
PALETTE = (*(colour for name, colour in OKABE_ITO.items() if name != "yellow"), BROWN)
UNKNOWN = "#b4bcc5"
MARKERS = {REAL: "o", GENERATED: "x", PROJECTED: "s"}
FORMATS = ("png", "svg")
WIDEST_LEGEND = 12  # values; of more, none is told


def draw_map(table: pd.DataFrame, places: NDArray, title: str) -> dict[str, bytes]:
    """Draw points on a map.

    Parameters
    ----------
    table : DataFrame
        One row for each point: ``kind``, ``class``, ``site``, ``split``; "" is unknown.
    places : (N, 2) floats
    title : str

    Returns
    -------
    dict of str to bytes
        A PNG and an SVG, by their endings; the same input gives the same bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13.5, 5.4), layout="constrained")
        figure.suptitle(title)
        for axes, by in zip(figure.subplots(1, len(COLOURINGS)), COLOURINGS, strict=True):
            _panel(axes, table, places, by)
        found = {}
        for kind in FORMATS:
            stream = io.BytesIO()
            told = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(stream, format=kind, dpi=130, metadata=told)
            found[kind] = stream.getvalue()
    return found


def _panel(axes: Axes, table: pd.DataFrame, places: NDArray, by: str) -> None:
    """Draw the points once, in the colours of one column and with a marker for each kind."""
    values = list(dict.fromkeys(sorted(value for value in table[by] if value)))
    colours = {value: PALETTE[k % len(PALETTE)] for k, value in enumerate(values)}
    shade = np.array([colours.get(value, UNKNOWN) for value in table[by]])
    for kind in KINDS:
        mine = (table["kind"] == kind).to_numpy()
        if mine.any():
            hollow = kind == PROJECTED
            axes.scatter(
                *places[mine].T,
                s=20,
                marker=MARKERS[kind],
                **({"facecolors": "none", "edgecolors": shade[mine]} if hollow else {}),
                **({} if hollow else {"c": shade[mine]}),
                linewidths=0 if kind == REAL else 1,
                alpha=0.8,
            )
    axes.set(title=f"by {by}", xticks=[], yticks=[])
    axes.grid(False)
    _legend(axes, colours, list(dict.fromkeys(table["kind"])), (table[by] == "").any())


def _legend(axes: Axes, colours: dict[str, str], kinds: Sequence[str], unknown: bool) -> None:
    from matplotlib.lines import Line2D

    told = colours if len(colours) <= WIDEST_LEGEND else {}
    if unknown:
        told = {**told, "not told": UNKNOWN}
    keys = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=value)
        for value, colour in told.items()
    ]
    keys += [
        Line2D(
            *([], []),
            color="#55626f",
            marker=MARKERS[kind],
            markerfacecolor="none" if kind == PROJECTED else "#55626f",
            linestyle="",
            label=kind,
        )
        for kind in kinds
    ]
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.02)}
    axes.legend(handles=keys, ncols=4, fontsize=9, edgecolor=RULE, **below)
