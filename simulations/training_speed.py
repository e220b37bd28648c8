"""How fast models learn: seconds per thousand images, and images until a named distance."""

from __future__ import annotations

from typing import Any

import pandas as pd

from common.evaluation.statistics import number
from common.metrics_log import WHOLE
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
        images, validations and tests included. With a distance, also ``reached``, in how many of
        ``repetitions`` a validated round was as near as that, and ``images_to_reach``, the mean
        over these of the images seen by the first such round. A model that a site trained alone is
        judged by its own validation images, all others by those of all sites.
    """
    done = table[table["status"] == "done"]
    tests, checks = done[done["split"] == "test"], done[done["split"] == "val"]
    found = {}
    for key in models_of(table):
        each = rows_of(tests, key).groupby("seed")[["seconds", "images_seen"]].max()
        seconds = each["seconds"] / each["images_seen"] * 1000
        one: dict[str, Any] = {"seconds_per_kimg": number(seconds.mean())}
        if reach:
            own = rows_of(checks, key)
            places = own["tested_on"] == (WHOLE if (own["tested_on"] == WHOLE).any() else key[2])
            near = own[places & (own["metric"] == DISTANCE) & (own["value"] <= reach)]
            first = near.groupby("seed")["images_seen"].min()
            one |= {
                "reached": len(first),
                "repetitions": len(each),
                "images_to_reach": number(first.mean()) if len(first) else None,
            }
        found[name_of_model(key)] = one
    return found
