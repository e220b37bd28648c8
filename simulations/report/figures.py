"""Figures of the comparison: pure functions from tidy tables to inline SVG.

The same tables give the same bytes. A figure is made of panels, one a site, so that it reads as
well on a phone as on paper. Colours are CSS variables of the page with a fallback (after Okabe and
Ito's palette, distinct for colour-blind eyes); marker and dash tell the arms apart without colour.
Every panel is an image to assistive technology, with its numbers in words.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import ArrayLike

from simulations.report import charts, svg
from simulations.report.charts import Axis, Estimate, Series
from simulations.report.svg import Limits

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


def _variant(name: str, color: str, marker: str, dash: str) -> tuple[str, str, str, str, str]:
    return ("Federated", name, f"var({color})", marker, dash)


_LOOKS = {
    ("centralized", ""): ("Centralized", "", "var(--centralized, #007a5a)", "square", "2 3"),
    ("local", ""): ("Local only", "", "var(--local, #c05000)", "triangle", "7 3"),
    ("federated", "fedavg"): ("Federated", "FedAvg", "var(--fedavg, #0067a8)", "circle", ""),
    ("federated", "fedprox"): ("Federated", "FedProx", "var(--fedprox, #a3478a)", "diamond", "9 2"),
    # Variants of the preset gan-domain-adaptation.
    ("federated", "gan-tuned"): _variant("GAN, tuned", "--fedavg, #0067a8", "circle", ""),
    ("federated", "gan-frozen"): _variant("GAN, frozen", "--fedavg, #0067a8", "square", "3 2"),
    ("federated", "untrained-tuned"): _variant(
        "untrained, tuned", "--fedprox, #a3478a", "diamond", ""
    ),
    ("federated", "untrained-frozen"): _variant(
        "untrained, frozen", "--fedprox, #a3478a", "triangle", "3 2"
    ),
    ("federated", "scratch"): _variant("from scratch", "--other, #6b7480", "circle", "7 3"),
    # Variants of the preset generation, under their own names.
    **{
        ("federated", name): _variant(name, color, marker, dash)
        for name, color, marker, dash in (
            ("unconditional", "--fedavg, #0067a8", "square", "3 2"),
            ("by-label", "--fedavg, #0067a8", "triangle", "3 2"),
            ("by-site", "--fedavg, #0067a8", "diamond", "3 2"),
            ("private-discriminators", "--fedprox, #a3478a", "circle", "7 3"),
            ("votes-by-images", "--fedprox, #a3478a", "square", "7 3"),
            ("votes-by-distance", "--fedprox, #a3478a", "diamond", "7 3"),
            ("plain-average", "--other, #6b7480", "square", ""),
            ("int8", "--other, #6b7480", "triangle", ""),
            ("float16", "--other, #6b7480", "diamond", ""),
            ("long-rounds", "--other, #6b7480", "circle", "9 2"),
        )
    },
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
    shown = scores[(scores["site"] == site) & (scores["metric"] == metric)]
    rows = []
    for one in series_of(shown):
        mine = shown[(shown["arm"] == one.arm) & (shown["strategy"] == one.strategy)].iloc[0]
        values = final_values(results, one, site, metric)
        rows.append(Estimate(one, *(float(mine[k]) for k in ("mean", "low", "high")), values))
    axis = axis_of(metric, limits)
    return charts.estimates(rows, axis, f"Test {axis.name} at site {site}")


def differences(table: pd.DataFrame, metric: str, limits: Limits) -> Markup:
    """Draw one paired difference between two arms, one row per site.

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
    axis = Axis(name, limits, svg.tenths(limits, 5), signed_number)
    parts = charts.value_axis(axis, (left, right), (top, bottom))
    parts.append(svg.line(at(0), top, at(0), bottom, class_="zero"))
    words = []
    for index, (_, row) in enumerate(shown.iterrows()):
        y = top + 34 * (index + 0.5)
        parts.append(svg.text(charts.shortened(row["site"]), 0, y + 4, "label"))
        look = ("diamond" if row["over_sites"] else "square", "currentColor")
        numbers = (row["mean"], row["low"], row["high"])
        drawn, told = charts.estimate(numbers, look, y, at, signed_number, between=" to ")
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
    axis = axis_of(metric, limits)
    where = f"Validation {axis.name} at site {site} over {{last}} rounds"
    return charts.lines(curves(results, site, metric), axis, where)


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


def axis_of(metric: str, limits: Limits) -> Axis:
    """Return a metric's axis."""
    name, chance = METRIC_NAMES.get(metric, metric), CHANCE.get(metric, math.nan)
    if metric == "loss":
        ticks = svg.log_ticks(limits)
        return Axis(name, limits, ticks, "{:.2f}".format, log=True, chance=chance)
    return Axis(name, limits, svg.tenths(limits), "{:.2f}".format, chance=chance)


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


def curves(results: pd.DataFrame, site: str, metric: str) -> dict[Series, pd.DataFrame]:
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


def signed_number(value: float) -> str:
    """Two decimals with a sign, a true minus; no sign for what rounds to zero."""
    rounded = round(value, 2)
    return "0.00" if rounded == 0 else f"{rounded:+.2f}".replace("-", "−")
