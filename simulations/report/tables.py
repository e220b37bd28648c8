"""Tables of the report, and the tidy frames behind them; plain values, no markup."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from common.metrics_log import WHOLE
from simulations.report.charts import Series
from simulations.report.figures import (
    METRIC_NAMES,
    final_values,
    series,
    series_of,
    signed_number,
)
from simulations.report.words import mapping, sentence, whole

SCORES = ["site", "arm", "strategy", "metric", "mean", "low", "high", "seeds", "over", "n"]
DIFFERENCES = ["site", "contrast", "metric", "mean", "low", "high", "p", "note", "over_sites"]
MEAN_OVER_SITES = "mean of sites"
ASIDE = {"pretraining": "Pretraining", "use": "Use of synthetic scans"}
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


def scores_frame(summary: Mapping[str, Any], results: pd.DataFrame) -> pd.DataFrame:
    """Return ``summary["scores"]`` as a tidy frame with the columns :data:`SCORES`.

    Of what the summary lacks, the means come from the results, without intervals.
    """
    rows = []
    for site, models in mapping(summary.get("scores")).items():
        for model, metrics in mapping(models).items():
            arm, _, strategy = model.partition("/")
            for metric, found in mapping(metrics).items():
                if mapping(found):
                    keys = {"site": site, "arm": arm, "strategy": strategy, "metric": metric}
                    rows.append({**found, **keys})
    if not rows:
        tests = results[(results["split"] == "test") & (results["status"] == "done")]
        for site in sorted(set(tests["tested_on"])):
            for one in series_of(tests):
                for metric in METRIC_NAMES:
                    values = pd.Series(final_values(tests, one, site, metric), dtype=float)
                    keys = {"site": site, "arm": one.arm, "strategy": one.strategy}
                    counted = {"mean": values.mean(), "seeds": len(values)}
                    rows.append({**keys, "metric": metric, **counted})
    return _frame(rows, SCORES)


def differences_frame(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return the paired differences as a tidy frame with the columns :data:`DIFFERENCES`."""
    rows = []
    by_site = mapping(summary.get("differences"))
    over = {MEAN_OVER_SITES: mapping(summary.get("differences_over_sites"))}
    for over_sites, table in ((False, by_site), (True, over)):
        for site, contrasts in table.items():
            for contrast, metrics in mapping(contrasts).items():
                for metric, found in mapping(metrics).items():
                    keys = {"site": site, "contrast": contrast, "metric": metric}
                    rows.append({**mapping(found), **keys, "over_sites": over_sites})
    frame = _frame(rows, DIFFERENCES)
    return frame.assign(p=pd.to_numeric(frame["p"], errors="coerce").astype(float))


def scores_table(scores: pd.DataFrame, sites: Sequence[str], title: str, caption: str) -> Table:
    """Every metric of every arm at every site, with intervals."""
    metrics = [m for m in METRIC_NAMES if m in set(scores["metric"])]
    groups = []
    for site in sites:
        here = scores[scores["site"] == site]
        arms = series_of(here)
        group = []
        for index, one in enumerate(arms):
            mine = here[(here["arm"] == one.arm) & (here["strategy"] == one.strategy)]
            row = [Cell(site, kind="site", scope="rowgroup", span=len(arms))] if not index else []
            row.append(Cell(one.name, kind="", scope="row", colour=one.colour))
            for metric in metrics:
                found = mine[mine["metric"] == metric]
                row.append(_estimate(found.iloc[0]) if len(found) else Cell("–"))
            group.append(row)
        if group:
            groups.append(group)
    heads = [Head("Tested at", n=False), Head("Model", n=False)]
    heads += [Head(sentence(METRIC_NAMES[metric])) for metric in metrics]
    return Table(title, caption, heads, groups)


def differences_table(differences: pd.DataFrame, title: str, caption: str) -> Table:
    """Paired differences of the two leading metrics, with p where there is one."""
    metrics = [m for m in ("balanced_accuracy", "auroc") if m in set(differences["metric"])]
    with_p = differences["p"].notna().any()
    groups = []
    for contrast, table in differences.groupby("contrast", sort=False):
        if table["mean"].isna().all():  # with an arm that is not compared
            continue
        places = list(dict.fromkeys(table["site"]))
        group = []
        for index, site in enumerate(places):
            name = contrast_name(contrast)
            row = [Cell(name, kind="site", scope="rowgroup", span=len(places))] if not index else []
            row.append(Cell(site, kind="", scope="row"))
            for metric in metrics:
                found = table[(table["site"] == site) & (table["metric"] == metric)]
                row.append(_estimate(found.iloc[0], signed=True) if len(found) else Cell("–"))
                if with_p:
                    p = found["p"].iloc[0] if len(found) else math.nan
                    row.append(Cell(_p_value(p)))
            group.append(row)
        groups.append(group)
    heads = [Head("Difference", n=False), Head("Tested at", n=False)]
    for metric in metrics:
        heads += [Head(sentence(METRIC_NAMES[metric]))] + [Head("p")] * bool(with_p)
    return Table(title, caption, heads, groups)


def matrix_table(
    results: pd.DataFrame, metric: str, sites: Sequence[str], title: str, caption: str
) -> Table | None:
    """Every model at every site, means over repetitions; None when no model was tested.

    The shade runs from the metric's lowest to its highest mean in the table.
    """
    tests = results[
        (results["split"] == "test") & (results["metric"] == metric) & (results["status"] == "done")
    ]
    means = tests.groupby(["arm", "strategy", "trained_on", "tested_on"])["value"].mean().dropna()
    if means.empty:
        return None
    low, high = float(means.min()), float(means.max())
    groups = []
    for one in sorted(series_of(tests), key=lambda one: one.arm != "local"):
        rows = tests[(tests["arm"] == one.arm) & (tests["strategy"] == one.strategy)]
        known = [site for site in sites if site in set(rows["trained_on"])]
        group = []
        for trained_on in known + sorted(set(rows["trained_on"]) - set(known)):
            name = f"{one.name}: {trained_on}" if one.arm == "local" else one.name
            row = [Cell(name, kind="", scope="row", colour=one.colour)]
            for site in sites:
                value = means.get((one.arm, one.strategy, trained_on, site), math.nan)
                own = "own" if one.arm == "local" and trained_on == site else ""
                share = (value - low) / (high - low) if high > low else 0.5
                shade = f"{share:.3f}" if math.isfinite(value) else None
                row.append(Cell(_number(value), kind=own, shade=shade))
            group.append(row)
        groups.append(group)
    heads = [Head("Model, trained on", n=False)] + [
        Head(f"Tested at {site}", n=False) for site in sites
    ]
    return Table(title, caption, heads, groups, "matrix")


def costs_table(results: pd.DataFrame, sites: int, title: str, caption: str) -> Table:
    """Bytes and time of a repetition of each arm, means over those that ended well."""
    rows = []
    for one in series_of(results):
        cells = _finished(results, one)
        up, down = cells["bytes_up"].mean(), cells["bytes_down"].mean()
        seconds = cells["seconds"].dropna()
        ends = dict.fromkeys((duration(seconds.min()), duration(seconds.max())))
        exchanges = cells["rounds"].max() * sites
        row = [Cell(one.name, kind="", scope="row", colour=one.colour)]
        row.append(Cell(f"{len(cells)} of {_planned(results, one)}"))
        row.append(Cell(duration(seconds.mean()), " to ".join(ends) if len(ends) > 1 else ""))
        for total in (up, down):
            each = f"{data_size(total / exchanges)} a site and round" if total > 0 else ""
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
        row = [Cell(one.name, kind="", scope="row", colour=one.colour)]
        total = models["images_seen"].groupby("seed").sum()
        each = [models[name] for name in ("rounds", "steps", "images_seen")]
        row += [Cell(_span(values)) for values in (*each, total)]
        rows.append(row)
    names = ("Rounds", "Optimizer steps", "Images a model", "Images a repetition")
    return Table(title, caption, [Head("Model", n=False), *map(Head, names)], [rows])


def sites_table(sites: Mapping[str, Any], poor: str, title: str) -> Table | None:
    """How many scans each site has in each split; None when nothing is known."""
    rows = []
    for site, counts in sites.items():
        known = mapping(counts)
        row = [Cell(site, kind="", scope="row")]
        row += [Cell(whole(known.get(f"n_{split}"))) for split in ("train", "val", "test")]
        rows.append(row)
    if not rows:
        return None
    caption = f"The data-poor site is {poor}." if poor else ""
    heads = [Head("Site", n=False), Head("Training"), Head("Validation"), Head("Test")]
    return Table(title, caption, heads, [rows])


def failures(results: pd.DataFrame) -> list[str]:
    """Say which trainings did not end well, one line each."""
    failed = results[results["status"] != "done"]
    lines = []
    for (arm, strategy, seed), rows in failed.groupby(["arm", "strategy", "seed"], sort=True):
        status = " and ".join(sorted(set(rows["status"])))
        sites = rows["trained_on"].dropna()
        which = "".join(f", {site}" for site in sites if site not in ("", WHOLE))
        lines.append(f"{series(arm, strategy).name}, seed {whole(seed)}{which}: {status}.")
    return lines


def failed(results: pd.DataFrame, summary: Mapping[str, Any]) -> list[str]:
    """Return the lines of the notice on trainings that did not end well; none, where all did.

    Those that are in no row of the results, as they go before the comparison or after it, are
    ``unfinished`` in the summary.
    """
    lines = failures(results)
    for one in map(mapping, summary.get("unfinished") or []):
        name = ASIDE.get(str(one.get("arm")), sentence(str(one.get("arm"))))
        lines.append(f"{name}, seed {whole(one.get('seed'))}: {one.get('status')}.")
    if not lines:
        return []
    more = [f"And {len(lines) - MOST_FAILURES} more."] * (len(lines) > MOST_FAILURES)
    head = "Not every training ended well. What failed is in no mean and in no figure:"
    return [head, *lines[:MOST_FAILURES], *more]


def contrast_name(contrast: str) -> str:
    """Return a contrast with a true minus sign and its arms' and strategies' usual spelling."""
    return sentence(" −\u00a0".join(map(_strategy_name, contrast.split(" - "))))


def _strategy_name(name: str) -> str:
    return name if name in ("centralized", "local", "federated") else series("federated", name).note


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


def _p_value(p: float) -> str:
    if not math.isfinite(p):
        return "–"
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"  # no test gives 0


def _estimate(row: pd.Series, *, signed: bool = False) -> Cell:
    number = signed_number if signed else _number
    mean, low, high = (float(row[key]) for key in ("mean", "low", "high"))
    if not math.isfinite(mean):
        return Cell("–")
    interval = math.isfinite(low) and math.isfinite(high)
    between = " to " if signed else "–"
    return Cell(number(mean), f"{number(low)}{between}{number(high)}" if interval else "")


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
    if not found:
        return "–"
    ends = dict.fromkeys((whole(found[0]), whole(found[-1])))
    return " to ".join(ends)


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def _frame(rows: Iterable[Mapping[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Tidy rows, with NaN where a number is missing or no number."""
    frame = pd.DataFrame(list(rows)).reindex(columns=columns)
    numbers = {
        name: pd.to_numeric(frame[name], errors="coerce").astype(float)
        for name in ("mean", "low", "high")
    }
    return frame.assign(**numbers)
