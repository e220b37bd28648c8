"""How fast models learn: seconds per thousand images, and images until a named distance."""

from __future__ import annotations

from typing import Any

import pandas as pd

from common.evaluation.statistics import number
from common.metrics_log import WHOLE
from simulations.contrasts import LOCAL
from simulations.tested import models_of, name_of_model, rows_of

DISTANCE = "frechet_distance"


def training_speed(table: pd.DataFrame, reach: float) -> dict[str, dict[str, Any]]:
    """Measure how fast each model of a comparison was trained.

    Parameters
    ----------
    table : DataFrame
        Typed results of a comparison of generators.
    reach : float
        A Fréchet distance to validation images; 0: none is named.

    Returns
    -------
    dict of str to dict
        By model: ``seconds_per_kimg``, mean over repetitions of a training's seconds per 1000
        images, validations and tests included; None of models that one cell has trained
        several of. With a distance, also ``reached``, in how many of ``repetitions`` a validated
        round was as near as that, and ``images_to_reach``, the mean over these of the images seen
        by the first such round; None where validation images are too few for a Fréchet distance. A
        model that a site trained alone is judged by its own validation images, all others by those
        of all sites.
    """
    done = table[table["status"] == "done"]
    tests, checks = done[done["split"] == "test"], done[done["split"] == "val"]
    found, keys = {}, models_of(table)
    for key in keys:
        alone = sum(key[:2] == other[:2] for other in keys) == 1
        each = rows_of(tests, key).groupby("seed")[["seconds", "images_seen"]].max()
        seconds = each["seconds"] / each["images_seen"] * 1000
        one: dict[str, Any] = {"seconds_per_kimg": number(seconds.mean()) if alone else None}
        if reach:
            own = rows_of(checks, key)
            own = own[(own["metric"] == DISTANCE) & own["value"].notna()]
            own = own[own["tested_on"] == (key[2] if key[0] == LOCAL else WHOLE)]
            first = own[own["value"] <= reach].groupby("seed")["images_seen"].min()
            one |= {
                "reached": len(first) if len(own) else None,
                "repetitions": len(each),
                "images_to_reach": number(first.mean()) if len(first) else None,
            }
        found[name_of_model(key)] = one
    return found
