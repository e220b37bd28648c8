"""A run's numbers as a figure."""

from __future__ import annotations

import io
from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.metrics_log import WHOLE
from simulations.report.looks import OKABE_ITO

_COLOURS = [OKABE_ITO[name] for name in ("blue", "vermilion", "green", "purple", "sky blue")]


class _Figure(Figure):
    """A figure that a notebook shows, whatever its backend."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=100, bbox_inches="tight")
        return stream.getvalue()


def over_rounds(values: pd.DataFrame, words: str) -> Figure:
    """Draw columns over the index, the rounds; the numbers of all sites together are dashed."""
    figure = _Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.subplots()
    for site, colour, marker in zip(values, cycle(_COLOURS), cycle("osD^"), strict=False):
        told = values[site].dropna()
        line = "--" if site == WHOLE else "-"
        ax.plot(told.index, told, line, color=colour, marker=marker, markersize=4, label=str(site))
    ax.set(xlabel="round", ylabel=words)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure
