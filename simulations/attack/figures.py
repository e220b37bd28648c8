"""What attacks find, as one figure."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Attacks = Sequence[Mapping[str, Any]]


def draw(table: pd.DataFrame, attacks: Attacks) -> bytes:
    """Draw ROC curves, reconstructions against other images, and power against n; a PNG.

    Parameters
    ----------
    table : DataFrame
        As ``attacks.csv``.
    attacks : sequence of dict
        As in ``attacks.json``; what kinds are in it has a panel.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from simulations.report.charts import STYLE

    panels = {"membership": _curves, "inversion": _reconstructions, "attributes": _powers}
    kinds = [kind for kind in panels if any(one["kind"] == kind for one in attacks)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.8 * max(1, len(kinds)), 4.2), layout="constrained")
        axes = figure.subplots(1, max(1, len(kinds)), squeeze=False)[0]
        for kind, one in zip(kinds, axes, strict=False):
            rows = table[table["kind"] == kind] if len(table) else table
            panels[kind](one, rows, [found for found in attacks if found["kind"] == kind])
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _looks() -> list[dict[str, str]]:
    from simulations.report.looks import COLOURS

    names = ("fedavg", "local", "fedprox", "centralized")
    return [
        {"color": COLOURS[name], "linestyle": dash}
        for name, dash in zip(names, ("-", "--", "-.", (0, (1, 1))), strict=True)
    ]


def _curves(axes: Axes, table: pd.DataFrame, attacks: Attacks) -> None:
    """ROC curves of all sites' persons together, with the diagonal."""
    from common.attacks.membership import roc

    _diagonal(axes, (0, 1))
    for look, (method, rows) in zip(_looks(), table.groupby("method", sort=False), strict=False):
        truth = rows["in_training"].to_numpy(bool)
        if (auc := next(one["auc"] for one in attacks if one["method"] == method))["mean"] is None:
            continue
        tpr, fpr = roc(rows["score"].to_numpy(), truth, np.ones((1, len(rows))))
        axes.plot(fpr[:, 0], tpr[:, 0], label=f"{method}: {told(auc)}", linewidth=1.6, **look)
    axes.set_title("Membership", fontsize=11)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    if len(axes.lines) > 1:  # beside the diagonal
        axes.legend(frameon=False, fontsize=9, loc="lower right")


def _reconstructions(axes: Axes, table: pd.DataFrame, attacks: Attacks) -> None:
    """PSNR of reconstructions against that of the best other image."""
    del attacks
    both = table[["baseline", "score"]].to_numpy()
    _diagonal(axes, (both.min() - 1, both.max() + 1))
    groups = table.groupby("method", sort=False)
    for look, marker, (method, rows) in zip(_looks(), "o^s", groups, strict=False):
        axes.scatter(
            rows["baseline"], rows["score"], s=18, color=look["color"], marker=marker, label=method
        )
    axes.set_title("Inversion", fontsize=11)
    axes.set_xlabel("PSNR of the site's best other image, dB")
    axes.set_ylabel("PSNR of the reconstruction, dB")
    axes.legend(frameon=False, fontsize=9)


def _powers(axes: Axes, table: pd.DataFrame, attacks: Attacks) -> None:
    """Area under the ROC curve against n, of the fewest features, with the predicted one."""
    del table
    fewest = min(one["features"] for one in attacks)
    methods = dict.fromkeys(one["method"] for one in attacks)
    for look, method in zip(_looks(), methods, strict=False):
        found = [one for one in attacks if one["method"] == method and one["features"] == fewest]
        found.sort(key=lambda one: one["people"])
        n = [one["people"] for one in found]
        axes.plot(n, [one["predicted"] for one in found], linewidth=1.2, **look)
        axes.scatter(
            n, [one["auc"]["mean"] for one in found], s=18, color=look["color"], label=method
        )
    axes.set_xscale("log")
    ticks = sorted({one["people"] for one in attacks})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_title(f"Moments of {fewest} features\npoints measured, lines predicted", fontsize=11)
    axes.set_xlabel("people")
    axes.set_ylabel("AUROC")
    axes.legend(frameon=False, fontsize=9)


def _diagonal(axes: Axes, ends: tuple[float, float]) -> None:
    from simulations.report.charts import SOFT

    axes.plot(ends, ends, color=SOFT, linewidth=1, linestyle=":")


def told(record: Mapping[str, float | None]) -> str:
    """Say a mean with its interval."""
    if record["mean"] is None:
        return "–"
    if record["low"] is None:
        return f"{record['mean']:.2f}"
    return f"{record['mean']:.2f} ({record['low']:.2f} to {record['high']:.2f})"
