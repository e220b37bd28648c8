"""Learning curves: what a method reaches with so many scans, and where scratch catches up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.evaluation.classification import classification_metrics, decide
from common.evaluation.statistics import Repeated
from common.studies.study import Study
from simulations.transfer.plan import AS_IT_IS, SCRATCH

MEASURES = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "recall": "recall",
    "f1": "F1",
    "auroc": "AUROC",
}
LEADING = "balanced_accuracy"


def measured(study: Study, labels: NDArray, predictions: NDArray) -> dict[str, float]:
    """Return :data:`MEASURES` of predictions.

    Recall and F1 are those of the positive class where there are two, else means over classes.
    """
    names, positive = study.label.classes.names, study.label.positive or None
    found = classification_metrics(labels, predictions, names, positive)
    decided = decide(predictions)
    target = names.index(positive) if positive else 1
    found["accuracy"] = float(np.mean(decided == labels))
    found["recall"] = found["balanced_accuracy"]
    if len(names) == 2:
        of_target = decided[labels == target] == target
        found["recall"] = float(np.mean(of_target)) if len(of_target) else float("nan")
    return {name: found[name] for name in MEASURES if name in found}


def catches_up(
    sizes: Sequence[int], ahead: Sequence[float], scratch: Sequence[float]
) -> float | None:
    """Return from how many scans on scratch is as good as a method that was ahead of it.

    Both curves are lines between the sizes; it is the first place where they meet. The first size
    itself where scratch is as good there; None where it is behind up to the last one.

    Parameters
    ----------
    sizes : sequence of int
        Ascending.
    ahead, scratch : sequence of float
        Means at these sizes.
    """
    lead = np.asarray(ahead, float) - np.asarray(scratch, float)
    for k, gap in enumerate(lead):
        if gap <= 0:
            if k == 0:
                return float(sizes[0])
            share = lead[k - 1] / (lead[k - 1] - gap)
            return float(sizes[k - 1] + share * (sizes[k] - sizes[k - 1]))
    return None


def summarize(
    results: pd.DataFrame, methods: Sequence[str], sizes: Sequence[int]
) -> dict[str, Any]:
    """Return means with intervals over repetitions, gains over scratch, and where it catches up.

    Parameters
    ----------
    results : DataFrame
        With columns seed, method, scans, metric and value.
    methods : sequence of str
    sizes : sequence of int
    """
    table = {
        key: dict(zip(rows["seed"].astype(int), rows["value"].astype(float), strict=True))
        for key, rows in results.dropna(subset="value").groupby(["metric", "method", "scans"])
    }

    def of(metric: str, method: str, scans: int) -> Repeated:
        return Repeated(table.get((metric, method, scans), {}), bounds=(0.0, 1.0))

    scores: dict[str, Any] = {}
    gains: dict[str, Any] = {}
    meets: dict[str, Any] = {}
    for metric in MEASURES:
        scores[metric] = {
            method: {str(n): of(metric, method, n).record() for n in sizes} for method in methods
        }
        scores[metric][AS_IT_IS] = {"0": of(metric, AS_IT_IS, 0).record()}
        for method in (name for name in methods if name != SCRATCH):
            pairs = {n: [of(metric, name, n) for name in (method, SCRATCH)] for n in sizes}
            gains.setdefault(metric, {})[method] = {
                str(n): Repeated.combine(pair, [1.0, -1.0]).record() for n, pair in pairs.items()
            }
            means = [
                [scores[metric][name][str(n)]["mean"] for n in sizes] for name in (method, SCRATCH)
            ]
            known = all(value is not None for one in means for value in one)
            meets.setdefault(metric, {})[method] = {
                "scans": catches_up(sizes, *means) if known else None,
                "known": known,
            }
    return {"scores": scores, "gains": gains, "catches_up": meets}


def meeting(found: Mapping[str, Any], sizes: Sequence[int]) -> str:
    """Say in words where scratch catches up."""
    if not found["known"]:
        return "not known"
    if found["scans"] is None:
        return f"not within {sizes[-1]}"
    if found["scans"] <= sizes[0]:
        return f"{sizes[0]} or fewer"
    return f"{found['scans']:.0f}"


def told(record: Mapping[str, Any]) -> str:
    """Return a mean with its interval, as in a table."""
    if record["mean"] is None:
        return "–"
    words = f"{record['mean']:.3f}"
    if record["low"] is not None:
        words += f" ({record['low']:.2f} to {record['high']:.2f})"
    return words.replace("-", "−")


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the curves as tables in Markdown, a measure each, with where scratch catches up."""
    sizes, methods = summary["sizes"], summary["methods"]
    lines = [
        f"# Transfer to {summary['target']}, {summary['study']}",
        "",
        f"{summary['tested']} Means of {summary['repetitions']} repetitions, 95 % intervals over "
        "them; differences are paired by repetition.",
    ]
    for metric, words in MEASURES.items():
        scores = summary["scores"][metric]
        lines += ["", f"## {words[0].upper()}{words[1:]}", ""]
        lines.append(
            "| method | " + " | ".join(f"{n} scans" for n in sizes) + " | scratch catches up |"
        )
        lines.append("|---" * (len(sizes) + 2) + "|")
        for method in methods:
            row = [told(scores[method][str(n)]) for n in sizes]
            meets = summary["catches_up"][metric].get(method)
            row.append(meeting(meets, sizes) if meets else "")
            lines.append(f"| {method} | " + " | ".join(row) + " |")
        for method, gains in summary["gains"][metric].items():
            row = [told(gains[str(n)]) for n in sizes]
            lines.append(f"| {method} − {SCRATCH} | " + " | ".join(row) + " | |")
        lines.append("")
        lines.append(f"The source's model as it is: {told(scores[AS_IT_IS]['0'])}.")
    return "\n".join(lines) + "\n"
