"""Tables of a comparison, from its summary and results, ready for the page's macro."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from common.evaluation.statistics import NO_INTERVAL, ONE, WITHOUT
from common.metrics_log import WHOLE
from simulations.contrasts import CENTRALIZED, LOCAL, at_home, is_elsewhere, is_home
from simulations.measures import measure
from simulations.report import words
from simulations.report.looks import Series, series, series_of
from simulations.report.words import is_number, mapping, place, sentence, whole
from simulations.results import CHOSEN

ASIDE = {"pretraining": "Pretraining", "use": "Use of synthetic images"}
ARMS = (CENTRALIZED, LOCAL, "federated")
MOST_FAILURES = 12  # lines in the notice; the table of costs counts them all


@dataclass(frozen=True)
class Cell:
    """A table cell: a header when it has a scope."""

    text: str
    small: str = ""
    kind: str = "n"
    scope: str = ""
    span: int = 0
    colour: str = ""
    shade: str | None = None


@dataclass(frozen=True)
class Head:
    """A column's header; ``n`` for numbers, which stand to the right."""

    text: str
    n: bool = True


@dataclass(frozen=True)
class Table:
    """What the page's table macro needs."""

    title: str
    caption: str
    heads: Sequence[Head]
    groups: Sequence[Sequence[Sequence[Cell]]]
    kind: str = ""


def told(name: str, value: object, *, signed: bool = False) -> str:
    """Return a measure's value with as many digits as it deserves; of a difference with a sign."""
    if not is_number(value):
        return "–"
    digits = measure(name).places(value)
    if signed and not float(f"{value:.{digits}f}"):  # no sign for what rounds to zero
        return f"{0:.{digits}f}"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def estimate(name: str, found: object, *, signed: bool = False) -> Cell:
    """Return a record's mean with its interval; of what lacks, the reason beside it."""
    record = mapping(found)
    if not is_number(record.get("mean")):
        return Cell("–", str(record.get("note") or ""))
    small, unsure = [], words.unsure(record)
    if not unsure:
        ends = [told(name, record[end], signed=signed) for end in ("low", "high")]
        small.append(" to ".join(ends))
    elif name == CHOSEN and len(each := mapping(record.get("values"))) > 1:
        small.append(", ".join(told(name, amount) for amount in each.values()))
    elif unsure == words.NO_WIDTH or any(
        one.startswith((NO_INTERVAL, ONE)) for one in notes_of(record)
    ):  # of whom there are too few stands in the caption, once
        small.append(unsure)
    small += without([record])
    return Cell(told(name, record["mean"], signed=signed), "; ".join(small))


def notes_of(record: Mapping[str, Any]) -> list[str]:
    """Return a record's notes, one by one."""
    return [one for one in str(record.get("note") or "").split("; ") if one]


def without(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return which sites are in no mean over sites, each set of them once."""
    every = [one for record in records for one in notes_of(record)]
    return [one for one in dict.fromkeys(every) if one.startswith(WITHOUT)]


def explained(table: Table) -> Table:
    """Add to a table's caption what is said of an interval without width, where it has any."""
    if any(words.NO_WIDTH in cell.small for rows in table.groups for row in rows for cell in row):
        return replace(table, caption=f"{table.caption} {words.EQUAL}")
    return table


def key_of(look: Series, **more: Any) -> Cell:
    """Return a row's header: the model with its colour."""
    return Cell(look.name, kind="", scope="row", colour=f"var(--{look.colour})", **more)


def grouped(groups: Mapping[str, Sequence[Sequence[Cell]]]) -> list[list[list[Cell]]]:
    """Put each group's name in front of its first row, over all of them."""
    return [
        [
            [Cell(name, kind="site", scope="rowgroup", span=len(rows)), *row] if not k else [*row]
            for k, row in enumerate(rows)
        ]
        for name, rows in groups.items()
        if rows
    ]


def scores_table(
    scores: Mapping[str, Any],
    looks: Mapping[str, Series],
    places: Sequence[str],
    names: Sequence[str],
    title: str,
    caption: str,
) -> Table | None:
    """Measures of every model at every place, with intervals; None where there is none."""
    known = [m for m in names if any(m in x for p in places for x in scores.get(p, {}).values())]
    groups = {
        place(where): [
            [key_of(look), *(estimate(m, scores[where][model].get(m)) for m in known)]
            for model, look in looks.items()
            if set(known) & {*scores.get(where, {}).get(model, {})}
        ]
        for where in places
    }
    heads = [Head("Tested at", n=False), Head("Model", n=False)]
    heads += [Head(sentence(measure(m).words)) for m in known]
    found = grouped(groups)
    return Table(title, caption, heads, found) if known and found else None


def differences_table(
    differences: Mapping[str, Any],
    places: Sequence[str],
    names: Sequence[str],
    title: str,
    caption: str,
) -> Table | None:
    """Paired differences of every contrast, with p where there is one; None where none."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for where in places:
        for contrast, found in mapping(differences.get(where)).items():
            if any(is_number(mapping(one).get("mean")) for one in found.values()):
                rows.setdefault(contrast, {})[where] = found
    order = list(mapping(differences.get(places[-1])))
    rows = {c: rows[c] for c in sorted(rows, key=lambda c: order.index(c) if c in order else 99)}
    every = [found for at in rows.values() for found in at.values()]
    known = [m for m in names if any(m in found for found in every)]
    with_p = any(is_number(mapping(found.get(m)).get("p")) for found in every for m in known)
    groups = {}
    for contrast, at in rows.items():
        groups[contrast_name(contrast)] = group = []
        for where, found in at.items():
            row = [Cell(place(where), kind="", scope="row")]
            for m in known:
                row.append(estimate(m, found.get(m), signed=True))
                row += [Cell(_p_value(mapping(found.get(m)).get("p")))] * with_p
            group.append(row)
    heads = [Head("Difference", n=False), Head("Tested at", n=False)]
    for m in known:
        heads += [Head(sentence(measure(m).words)), *[Head("p")] * with_p]
    return Table(title, caption, heads, grouped(groups)) if groups else None


def notes(differences: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return what is to be said of differences in some measures, each note once.

    What stands in the cells is left out.
    """
    found = {
        note
        for contrasts in differences.values()
        for measures in mapping(contrasts).values()
        for one in map(mapping, map(mapping(measures).get, names))
        if is_number(one.get("mean"))
        for note in notes_of(one)
        if not note.startswith((WITHOUT, NO_INTERVAL, ONE))
    }
    return sorted(found)


def matrix_table(
    scores: Mapping[str, Any],
    models: Mapping[str, Any],
    looks: Mapping[str, Series],
    name: str,
    sites: Sequence[str],
    title: str,
    caption: str,
) -> Table | None:
    """Every model at every site; None when no model was tested.

    The shade runs from the measure's lowest to its highest mean in the table.
    """
    rows = {
        model: [
            mapping(here.get(home if own == site and home in here else model)).get(name)
            for site in sites
            for here, own in [(mapping(scores.get(site)), models[model].get("trained_on"))]
            for home in [at_home(model)]
        ]
        for model in sorted(looks, key=lambda one: not is_elsewhere(one))
        if not is_home(model)
    }
    means = {m: [mapping(one).get("mean") for one in found] for m, found in rows.items()}
    known = [value for found in means.values() for value in found if is_number(value)]
    if not known:
        return None
    low, high = min(known), max(known)
    group = []
    for model, values in means.items():
        row = [key_of(looks[model])]
        for site, value in zip(sites, values, strict=True):
            share = 0.5 if high == low or not is_number(value) else (value - low) / (high - low)
            own = "own" if models[model].get("trained_on") == site else ""
            shade = f"{share:.3f}" if is_number(value) else None
            row.append(Cell(told(name, value), kind=own, shade=shade))
        group.append(row)
    heads = [Head("Model", n=False), *(Head(f"Tested at {site}", n=False) for site in sites)]
    return Table(title, caption, heads, [group], "matrix")


def costs_table(results: pd.DataFrame, sites: int, title: str, caption: str) -> Table:
    """Bytes and time of a repetition of each arm, means over those that ended well."""
    rows = []
    for one in series_of(results):
        cells = _finished(results, one)
        seconds = cells["seconds"].dropna()
        ends = dict.fromkeys((duration(seconds.min()), duration(seconds.max())))
        exchanges = cells["rounds"].max() * sites
        row = [key_of(one), Cell(f"{len(cells)} of {_planned(results, one)}")]
        row.append(Cell(duration(seconds.mean()), " to ".join(ends) if len(ends) > 1 else ""))
        for total in (cells["bytes_up"].mean(), cells["bytes_down"].mean()):
            each = f"{data_size(total / exchanges)} a site and round" if total > 0 else ""
            if one.arm == "federated" and not total:  # trained in one process, without messages
                total, each = math.nan, "not counted"
            row.append(Cell(data_size(total), each))
        rows.append(row)
    names = ("Repetitions ended well", "Time of a repetition", "Sent by sites", "Sent to sites")
    return Table(title, caption, [Head("Model", n=False), *map(Head, names)], [rows])


def budget_table(results: pd.DataFrame, title: str, caption: str) -> Table:
    """Optimizer steps and training images of each arm, as the results count them."""
    rows = []
    for one in series_of(results):
        mine = _done(results, one)
        models = mine.groupby(["seed", "trained_on"])[["steps", "images_seen", "rounds"]].max()
        total = models["images_seen"].groupby("seed").sum()
        each = [models[name] for name in ("rounds", "steps", "images_seen")]
        rows.append([key_of(one), *(Cell(_span(values)) for values in (*each, total))])
    names = ("Rounds", "Optimizer steps", "Images a model", "Images a repetition")
    return Table(title, caption, [Head("Model", n=False), *map(Head, names)], [rows])


def sites_table(sites: Mapping[str, Any], poor: str, title: str) -> Table | None:
    """How many images each site has in each split; None when nothing is known."""
    rows = [
        [
            Cell(site, kind="", scope="row"),
            *(Cell(whole(mapping(n).get(f"n_{split}"))) for split in ("train", "val", "test")),
        ]
        for site, n in sites.items()
    ]
    caption = f"The data-poor site is {poor}." if poor else ""
    heads = [Head("Site", n=False), Head("Training"), Head("Validation"), Head("Test")]
    return Table(title, caption, heads, [rows]) if rows else None


def failed(results: pd.DataFrame, summary: Mapping[str, Any]) -> list[str]:
    """Return the lines of the notice on trainings that did not end well; none, where all did.

    Those that are in no row of the results, as they go before the comparison or after it, are
    ``unfinished`` in the summary.
    """
    lines = []
    lost = results[results["status"] != "done"]
    for (arm, strategy, seed), rows in lost.groupby(["arm", "strategy", "seed"], sort=True):
        status = " and ".join(sorted(set(rows["status"])))
        sites = rows["trained_on"].dropna()
        which = "".join(f", {site}" for site in sites if site not in ("", WHOLE))
        lines.append(f"{series(arm, strategy).name}, seed {whole(seed)}{which}: {status}.")
    for one in map(mapping, summary.get("unfinished") or []):
        name = ASIDE.get(str(one.get("arm")), sentence(str(one.get("arm"))))
        lines.append(f"{name}, seed {whole(one.get('seed'))}: {one.get('status')}.")
    if not lines:
        return []
    more = [f"And {len(lines) - MOST_FAILURES} more."] * (len(lines) > MOST_FAILURES)
    head = "Not every training ended well. What failed is in no mean and in no figure:"
    return [head, *lines[:MOST_FAILURES], *more]


def contrast_name(contrast: str) -> str:
    """Return a contrast with a true minus sign and its arms' and strategies' usual spelling.

    A variant keeps the spelling of its preset; against itself at single sites, it is named once.
    """
    first, *others = contrast.split(" - ")
    if others == [f"{LOCAL}/{first}"]:
        return f"{_strategy_name(first)}: federated −\u00a0local"
    name = " −\u00a0".join(map(_strategy_name, (first, *others)))
    variant = first not in ARMS and _strategy_name(first) == first
    return name if variant else sentence(name)


def _strategy_name(name: str) -> str:
    if name in ARMS:
        return name
    arm, _, variant = name.partition("/")
    return f"{arm} ({variant})" if arm == LOCAL and variant else series("federated", name).note


def data_size(count: float) -> str:
    """Return bytes with an SI unit and three digits."""
    if not math.isfinite(count):
        return "–"
    if count < 999.5:
        return f"{count:.0f} B" if count else "none"
    power = min(4, int((math.log10(count) + 0.0003) // 3))  # 999.5 kB reads 1.00 MB
    return f"{count / 1000**power:#.3g}".rstrip(".") + f" {' kMGT'[power]}B"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _p_value(p: object) -> str:
    if not is_number(p):
        return "–"
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"  # no test gives 0


def _done(results: pd.DataFrame, one: Series) -> pd.DataFrame:
    mine = (results["arm"] == one.arm) & (results["strategy"] == one.strategy)
    return results[mine & (results["status"] == "done")]


def _finished(results: pd.DataFrame, one: Series) -> pd.DataFrame:
    """One row a repetition that ended well: a cell's own counts, which all its rows repeat."""
    columns = ["seconds", "bytes_up", "bytes_down", "rounds"]
    failed = results[(results["arm"] == one.arm) & (results["strategy"] == one.strategy)]
    failed = set(failed.loc[failed["status"] != "done", "seed"])
    done = _done(results, one)
    return done[~done["seed"].isin(failed)].groupby("seed")[columns].max()


def _planned(results: pd.DataFrame, one: Series) -> int:
    mine = (results["arm"] == one.arm) & (results["strategy"] == one.strategy)
    return results.loc[mine, "seed"].nunique()


def _span(values: pd.Series) -> str:
    found = sorted(set(values.dropna()))
    return " to ".join(dict.fromkeys((whole(found[0]), whole(found[-1])))) if found else "–"
