"""Tables of generators: how good each class is, and how fast they learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simulations.report.looks import Series
from simulations.report.tables import Cell, Head, Table, estimate, grouped, key_of
from simulations.report.words import is_number, mapping, place, sentence, whole

OF_CLASSES = {  # measures of a class that the report shows
    "kernel_distance": "Kernel distance",
    "precision": "Precision",
    "recall": "Recall",
    "coverage": "Coverage",
    "ms_ssim": "MS-SSIM",
    "ms_ssim_real": "MS-SSIM of real",
}


def classes_table(
    scores: Mapping[str, Any],
    looks: Mapping[str, Series],
    places: Iterable[str],
    classes: Sequence[str],
    title: str,
    caption: str,
) -> Table | None:
    """Measures of each class by itself; None where no generator is told the class."""
    groups: dict[str, list[list[Cell]]] = {}
    for where in places:
        for one in classes:
            lines = []
            for model, look in looks.items():
                found = mapping(mapping(scores.get(where)).get(model))
                if any(f"{name}.{one}" in found for name in OF_CLASSES):
                    told = [estimate(name, found.get(f"{name}.{one}")) for name in OF_CLASSES]
                    lines.append([key_of(look), *told])
            if lines:
                groups[f"{one}, {place(where)}"] = lines
    heads = [Head("Class, tested at", n=False), Head("Generator", n=False)]
    heads += map(Head, OF_CLASSES.values())
    return Table(title, caption, heads, grouped(groups)) if groups else None


def speed_table(
    costs: Mapping[str, Any], looks: Mapping[str, Series], reach: float, title: str, caption: str
) -> Table | None:
    """Seconds per 1000 training images, and images until a named distance was reached."""
    rows = []
    for model, look in looks.items():
        found = mapping(costs.get(model))
        seconds = found.get("seconds_per_kimg")
        if "seconds_per_kimg" not in found:
            continue
        row = [key_of(look), Cell(f"{seconds:.1f}" if is_number(seconds) else "–")]
        if reach:
            of = f"{found.get('reached')} of {found.get('repetitions')} repetitions"
            if found.get("reached") is None:
                of = "too few validation images"
            row.append(Cell(whole(found.get("images_to_reach")), of))
        rows.append(row)
    heads = [Head("Generator", n=False), Head("Seconds per 1000 images")]
    heads += [Head(sentence(f"images until a Fréchet distance of {reach:g}"))] * bool(reach)
    return Table(title, caption, heads, [rows]) if rows else None
