"""Tables of generators: measures, paired differences, copying, use of synthetic scans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from common.metrics_log import WHOLE
from simulations.report.charts import Series
from simulations.report.generation_figures import (
    MEASURE_NAMES,
    heading,
    told,
    told_difference,
)
from simulations.report.tables import Cell, Head, Table, contrast_name
from simulations.report.words import is_number, mapping, plural, sentence, whole
from simulations.results import CHOSEN

MEASURES = ("frechet_distance", "kernel_distance", "precision", "recall", "coverage")
METRICS = {
    "balanced_accuracy": "Balanced accuracy",
    "auroc": "AUROC",
    CHOSEN: "Synthetic participants chosen",
}


def measures_table(
    scores: Mapping[str, Any],
    looks: Mapping[str, Series],
    places: Iterable[str],
    title: str,
    caption: str,
) -> Table | None:
    """Every measure of every model, over all sites and at each; None where there is none."""
    known = [
        m for m in MEASURES if any(m in mapping(x) for p in scores.values() for x in p.values())
    ]
    groups = []
    for place in places:
        here = mapping(scores.get(place))
        shown = [model for model in looks if model in here]
        group = []
        for index, model in enumerate(shown):
            name = Cell(heading(place), kind="site", scope="rowgroup", span=len(shown))
            row = [name] if not index else []
            look = looks[model]
            row.append(Cell(look.name, kind="", scope="row", colour=look.colour))
            row += [_estimate(m, mapping(here[model]).get(m)) for m in known]
            group.append(row)
        if group:
            groups.append(group)
    if not groups or not known:
        return None
    heads = [Head("Tested at", n=False), Head("Generator", n=False)]
    return Table(title, caption, heads + [_head(m) for m in known], groups)


def differences_table(
    differences: Mapping[str, Any], places: Sequence[str], title: str, caption: str
) -> Table | None:
    """Paired differences of every contrast; None where there is none."""
    found = {
        contrast: [place for place in places if mapping(mapping(table).get(place))]
        for contrast, table in differences.items()
    }
    known = [
        m
        for m in MEASURES
        if any(m in differences[c][place] for c, here in found.items() for place in here)
    ]
    groups = []
    for contrast, here in found.items():
        group = []
        for index, place in enumerate(here):
            name = contrast_name(contrast)
            row = [Cell(name, kind="site", scope="rowgroup", span=len(here))] if not index else []
            row.append(Cell(heading(place), kind="", scope="row"))
            row += [_estimate(m, differences[contrast][place].get(m), signed=True) for m in known]
            group.append(row)
        if group:
            groups.append(group)
    if not groups:
        return None
    heads = [Head("Difference", n=False), Head("Tested at", n=False)]
    return Table(title, caption, heads + [_head(m) for m in known], groups)


def copying_table(
    scores: Mapping[str, Any],
    looks: Mapping[str, Series],
    sites: Iterable[str],
    title: str,
    caption: str,
) -> Table | None:
    """Whether a generator copies a site's training slices; None where no site tested it."""
    groups = []
    for site in sites:
        here = mapping(scores.get(site))
        shown = [m for m in looks if {"authenticity", "copies_flagged"} & {*mapping(here.get(m))}]
        group = []
        for index, model in enumerate(shown):
            look, found = looks[model], mapping(here[model])
            row = [Cell(site, kind="site", scope="rowgroup", span=len(shown))] if not index else []
            row.append(Cell(look.name, kind="", scope="row", colour=look.colour))
            for measure in ("authenticity", "authenticity_held_out"):
                row.append(_estimate("authenticity", found.get(measure)))
            flags = list(mapping(mapping(found.get("copies_flagged")).get("values")).values())
            up = sum(1 for flag in flags if is_number(flag) and flag > 0)
            row.append(Cell(f"{up} of {len(flags)}" if flags else "not judged"))
            group.append(row)
        if group:
            groups.append(group)
    if not groups:
        return None
    names = ("Authenticity", "Of held-out slices", "Flagged as copying")
    heads = [Head("Training slices of", n=False), Head("Generator", n=False), *map(Head, names)]
    return Table(title, caption, heads, groups)


def use_table(rows: Sequence[Mapping[str, Any]], title: str, caption: str) -> Table | None:
    """Classifiers by what they were trained on; None where there is none."""
    metrics = [m for m in METRICS if any(row["metric"] == m for row in rows)]
    metrics += sorted({row["metric"] for row in rows} - set(metrics))
    groups = []
    for site in dict.fromkeys(row["site"] for row in rows):
        names = list(dict.fromkeys(row["row"] for row in rows if row["site"] == site))
        group = []
        for index, name in enumerate(names):
            cell = Cell(heading(site), kind="site", scope="rowgroup", span=len(names))
            line = [cell] if not index else []
            line.append(Cell(sentence(name), kind="", scope="row"))
            for metric in metrics:
                key = (site, name, metric)
                found = [r for r in rows if (r["site"], r["row"], r["metric"]) == key]
                line.append(_estimate(metric, found[0] if found else None))
            group.append(line)
        groups.append(group)
    if not groups:
        return None
    heads = [Head("Tested at", n=False), Head("Trained on", n=False)]
    return Table(title, caption, heads + [Head(METRICS.get(m, m)) for m in metrics], groups)


def run_table(summary: Mapping[str, Any], title: str, caption: str) -> Table | None:
    """Measures of one run's generator at each site and over all; None where there is none."""
    groups = []
    for site, about in mapping(summary.get("sites")).items():
        counts, found = mapping(about), mapping(mapping(about).get("generation"))
        groups.append(_run_row(site, found, counts.get("n_train"), counts.get("n_test")))
    if found := mapping(summary.get("generation")):
        counts = [mapping(about) for about in mapping(summary.get("sites")).values()]
        totals = [_total(counts, key) for key in ("n_train", "n_test")]
        groups.append(_run_row(heading(WHOLE), found, *totals))
    heads = [Head("Tested at", n=False), Head("Training"), Head("Test")]
    heads += [_head(m) for m in MEASURES]
    return Table(title, caption, heads, [[row] for row in groups]) if groups else None


def messages_table(metrics: pd.DataFrame, title: str, caption: str) -> Table | None:
    """Bytes of one run by kind of message; None where none is known."""
    from simulations.report.tables import data_size

    sent = metrics[metrics["metric"].str.match(r"bytes-(up|down)-")]
    if sent.empty:
        return None
    kinds = sent["metric"].str.extract(r"bytes-(?P<way>up|down)-(?P<kind>.+)")
    sums = sent.assign(**kinds).groupby(["kind", "way"])["value"].agg(["sum", "count"])
    rows = []
    for kind in sorted(set(kinds["kind"]), reverse=True):
        row = [Cell(sentence(kind), kind="", scope="row")]
        for way in ("up", "down"):
            if (kind, way) not in sums.index:
                row.append(Cell("–"))
                continue
            total, count = sums.loc[(kind, way)]
            row.append(Cell(data_size(total), f"{data_size(total / max(count, 1))} a message"))
        rows.append(row)
    heads = [Head("Message", n=False), Head("Sent by sites"), Head("Sent to sites")]
    return Table(title, caption, heads, [rows])


def _run_row(name: str, found: Mapping[str, Any], n_train: Any, n_test: Any) -> list[Cell]:
    row = [Cell(name, kind="site", scope="row"), Cell(whole(n_train)), Cell(whole(n_test))]
    return row + [Cell(told(m, found.get(m))) for m in MEASURES]


def _total(counts: Sequence[Mapping[str, Any]], key: str) -> int | None:
    values = [one.get(key) for one in counts]
    return sum(values) if values and all(map(is_number, values)) else None


def _head(measure: str) -> Head:
    return Head(sentence(MEASURE_NAMES[measure]))


def _estimate(measure: str, found: object, *, signed: bool = False) -> Cell:
    number = told_difference if signed else told
    values = mapping(found)
    if not is_number(values.get("mean")):
        return Cell("–")
    small = ""
    if is_number(values.get("low")) and is_number(values.get("high")):
        small = f"{number(measure, values['low'])} to {number(measure, values['high'])}"
    elif measure == CHOSEN and len(each := mapping(values.get("values"))) > 1:
        small = ", ".join(number(measure, amount) for amount in each.values())
    return Cell(number(measure, values["mean"]), small)


def flagged_lines(copies: Iterable[Mapping[str, Any]], looks: Mapping[str, Series]) -> list[str]:
    """Say which generators copy training slices of which sites: names of both, nothing else."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for one in copies:
        seeds.setdefault((str(one.get("model")), str(one.get("site"))), []).append(one.get("seed"))
    lines = []
    for (model, site), which in seeds.items():
        name = looks[model].name if model in looks else model
        listed = ", ".join(str(seed) for seed in which)
        lines.append(
            f"{name}: flagged as copying training slices of {site} in "
            f"{plural(len(which), 'repetition')} (seed{'s' * (len(which) > 1)} {listed})."
        )
    return lines
