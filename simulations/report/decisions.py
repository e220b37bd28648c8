"""Figures of a classifier's decisions and probabilities: confusion matrices and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from common.evaluation.curves import GRID, RECALLS
from simulations.measures import CLASSIFICATION
from simulations.report import charts, figures, tables
from simulations.report.charts import Line
from simulations.report.looks import Series
from simulations.report.words import Nouns, is_number, place

Found = Mapping[str, Mapping[str, Any]]  # model to what common.evaluation.curves says of it
ROC, PRECISION, CALIBRATION = "roc", "pr", "calibration"


def target_of(classes: Sequence[str], positive: str) -> str:
    """Return the class that is to be found; none of more than two, where none is named."""
    return positive or (classes[1] if len(classes) == 2 else "")


def confusion_panel(
    found: Mapping[str, Any], classes: Sequence[str], title: str, words: str
) -> figures.Panel | None:
    """Draw one confusion matrix; None where it is not known."""
    counts = tuple(tuple(map(int, row)) for row in found.get("confusion") or ())
    if len(counts) != len(classes) or not counts:
        return None
    return figures.panel(title, "", charts.confusion(counts, tuple(classes), words))


def confusion_caption(nouns: Nouns, repetitions: int) -> str:
    """Say how a confusion matrix is read."""
    many = " summed over repetitions" if repetitions > 1 else ""
    return (
        f"Rows: true class; columns: decision. Numbers count test {nouns.images}{many}; the shade "
        "is the share of the row."
    )


def curve_figures(
    by_site: Mapping[str, Found],
    looks: Mapping[str, Series],
    target: str,
    nouns: Nouns,
    score: Callable[[str, str, str], object],
) -> Iterator[dict[str, Any]]:
    """Yield ROC, precision-recall and reliability curves, a panel a site.

    Parameters
    ----------
    by_site : mapping of str to Found
        Sites with anything to show.
    looks : mapping of str to Series
        Of every model.
    target : str
        The class that is to be found; of one class against the rest where there is none.
    nouns : Nouns
    score : callable
        Given site, model and measure, the measured value, which says a curve in a number: the
        curves themselves are interpolated.
    """
    for kind, title, names, caption in _kinds(target):
        panels, absent = [], []
        for site, found in by_site.items():
            known = {model: one[kind] for model, one in found.items() if one.get(kind)}
            if not known:
                absent.append(site)
                continue
            measured = _measured(kind, target)
            said = [_words(looks[m], known[m], measured, score(site, m, measured)) for m in known]
            chance = [one.get("chance") for one in found.values() if is_number(one.get("chance"))]
            drawn = charts.unit_square(
                tuple(_line(kind, looks[model], points) for model, points in known.items()),
                names,
                f"{title} at {figures.at(site)}. {'; '.join(said)}.",
                points=kind == CALIBRATION,
                level=chance[0] if chance and kind == PRECISION else None,
            )
            panels.append(figures.panel(place(site), "", drawn))
        if not panels:
            continue
        if absent:
            why = f"test {nouns.images} of one class only"
            why = f"no test {nouns.image} of {target}, or {why}" if target else why
            caption += f" Without {', '.join(absent)}: {why}."
        every = "" if absent else " at every site"
        yield {"title": f"{title}{every}", "caption": caption, "panels": panels}


def _measured(kind: str, target: str) -> str:
    """Return the measure that says a curve in a number, if any does."""
    found = {ROC: "sensitivity_at_90_specificity" if target else "auroc"}
    found[PRECISION] = "auprc" if target else ""
    return found.get(kind, "")


def _kinds(target: str) -> Iterator[tuple[str, str, tuple[str, str], str]]:
    """Yield of each kind of curve its title, the names of its axes and its caption."""
    whose = f"of {target}" if target else "of one class against the rest, mean over classes"
    yield (
        ROC,
        "ROC curves",
        ("false-positive rate", "sensitivity"),
        f"ROC curves {whose}. Dotted line: guessing.",
    )
    yield (
        PRECISION,
        "Precision-recall curves",
        ("recall (sensitivity)", "precision"),
        f"Precision and recall {whose}. Dotted line: guessing, the share of the class among the "
        "test images, which differs from site to site.",
    )
    yield (
        CALIBRATION,
        "Calibration",
        ("predicted probability", "observed share"),
        f"Mean predicted probability {f'of {target}' if target else 'of the decision'} and the "
        "share for which it is true, in ten bins of equal width. On the dotted line, probabilities "
        "are what they claim to be.",
    )


def _line(kind: str, look: Series, points: Sequence[Any]) -> Line:
    if kind == CALIBRATION:
        _, sure, right = zip(*points, strict=True)
        return Line(look, sure, right)
    return Line(look, tuple((GRID if kind == ROC else RECALLS).tolist()), tuple(points))


def _words(look: Series, points: Sequence[Any], measured: str, value: object) -> str:
    """Tell a curve in a number."""
    if measured:
        return f"{look.name} {CLASSIFICATION[measured].words} {tables.told(measured, value)}"
    if not isinstance(points[0], list | tuple):
        return f"{look.name} mean precision {sum(points) / len(points):.2f}"
    n = sum(one[0] for one in points)
    gap = sum(count * abs(sure - right) for count, sure, right in points) / n
    return f"{look.name} is off by {gap:.2f} on average"
