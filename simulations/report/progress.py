"""How a generator came about: its distances and its pictures as rounds go by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from simulations.generation_statistics import DISTANCES
from simulations.report import charts, pictures
from simulations.report import generation_figures as drawn
from simulations.report.blocks import Block
from simulations.report.pictures import Trained
from simulations.report.words import plural


def curve_figures(
    results: pd.DataFrame,
    looks: Mapping[str, charts.Series],
    models: Mapping[str, Any],
    places: Sequence[str],
    caption: str,
) -> Iterator[dict[str, Any]]:
    """Yield a figure a distance, with a panel for every place at which it was validated."""
    for measure in DISTANCES:
        rows = {place: drawn.curve_rows(results, place, measure) for place in places}
        known = [place for place in places if len(rows[place])]
        if not known:
            continue
        axis = drawn.curve_axis(pd.concat([rows[place]["value"] for place in known]), measure)
        panels = [
            {
                "site": drawn.heading(place),
                "note": f"{plural(int(rows[place]['n'].max()), 'slice')}"
                if np.isfinite(rows[place]["n"].max())
                else "",
                "svg": drawn.learning_curves(results, looks, models, place, measure, axis),
            }
            for place in known
        ]
        without = [drawn.place_name(place) for place in places if place not in known]
        absent = f" Too few validation slices for it at {', '.join(without)}." if without else ""
        if measure == "kernel_distance":
            absent = " It is measured at each site, and needs fewer slices than Fréchet's."
        yield {
            "title": f"Validation {drawn.MEASURE_NAMES[measure]} over the rounds",
            "caption": caption + absent,
            "panels": panels,
        }


def as_rounds_go_by(model: Trained, who: str) -> Block | None:
    """Return the grids of some rounds, the first and the last among them."""
    shown = []
    for stage in pictures.stages(model):
        grid = pictures.embedded(model.grids[stage], model.root)
        seed = "" if model.seed is None else f"seed {model.seed}"
        released = "the released one" if stage == model.summary.get("best_round") else ""
        note = ", ".join(filter(None, (seed, released)))
        alt = f"Pictures by {who} after round {stage}"
        shown.append({"name": f"Round {stage}", "note": note, "alt": alt, **grid})
    if not shown:
        return None
    return (
        "pictures",
        {
            "kind": "grids",
            "title": f"Pictures of {who} as rounds go by",
            "caption": "The same random numbers in every round, so a place in the grid is the same "
            "imagined person.",
            "pictures": shown,
        },
    )
