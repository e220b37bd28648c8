"""The picture of a transfer: a learning curve of each method, with intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from simulations.transfer.curve import LEADING, MEASURES
from simulations.transfer.plan import AS_IT_IS


def draw(summary: Mapping[str, Any]) -> bytes:
    """Draw the leading measure against the number of scans; a PNG.

    Parameters
    ----------
    summary : mapping
        As in ``summary.json``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    sizes, scores = summary["sizes"], summary["scores"][LEADING]
    for k, method in enumerate(summary["methods"]):
        records = {n: scores[method][str(n)] for n in sizes}
        known = [n for n in sizes if records[n]["mean"] is not None]
        if not known:
            continue
        means = [records[n]["mean"] for n in known]
        places = [n * 1.02 ** (k - 1) for n in known]  # beside one another
        (line,) = axes.plot(places, means, marker="o", markersize=4, label=method)
        for place, n in zip(places, known, strict=True):
            if records[n]["low"] is not None:
                ends = [records[n]["low"], records[n]["high"]]
                axes.plot([place] * 2, ends, color=line.get_color(), linewidth=1, alpha=0.6)
    if (mean := scores[AS_IT_IS]["0"]["mean"]) is not None:
        axes.axhline(mean, color="0.4", linestyle="--", linewidth=1, label="source as it is")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set_xlabel(f"training scans at {summary['target']}")
    axes.set_ylabel(MEASURES[LEADING])
    if axes.lines:
        axes.legend(frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()
