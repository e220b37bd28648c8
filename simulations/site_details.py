"""What a run's report shows beyond the summary, from the simulated sites' own side.

People of each split, and a classifier's decisions and curves, in the run's folder as
``sites.json``, so that the report can be drawn anew wherever the folder is. Of a deployed run there
is no such file: its hospitals keep tables and predictions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import FedscanError
from common.evaluation.curves import describe
from common.files import write_json
from common.paths import site_records
from common.predictions import PROBABILITY
from common.reading import read_json
from common.run_folder import LAUNCH, MANIFEST
from common.studies.study import Study
from simulations.people import people_of
from simulations.results import read_predictions
from simulations.tested import target_of

DETAILS = "sites.json"
PEOPLE, CURVES = "people", "curves"


def keep_details(folder: Path) -> None:
    """Write ``sites.json`` into the folder of a simulated run that has ended.

    Numbers over fewer people than a site's ``min-participants`` are left out; of secure sums, which
    tell nothing of single sites, all are.

    Parameters
    ----------
    folder : Path
        Its name is the run's id.

    Raises
    ------
    FedscanError
        A file of the run cannot be read.
    """
    from simulations.resume import Launch

    if not (folder / LAUNCH).is_file():
        return
    launch, sites = Launch.read(folder), read_json(folder / MANIFEST)["sites"]
    if launch.config.privacy.secure_sums:
        return
    study = launch.config.read_study()
    details: dict[str, dict[str, Any]] = {PEOPLE: {}, CURVES: {}}
    for site, counts in sites.items():
        least = int(counts.get("min_participants", 1))
        if people := known_people(study, site, launch.folders.get(site), least):
            details[PEOPLE][site] = people
        if launch.config.task == "classification":
            path = site_records(site) / folder.name / "predictions.csv"
            if found := curves_of(path, study, least):
                details[CURVES][site] = found
    write_json(folder / DETAILS, details)


def people_at(study: Study, folders: Mapping[str, str | Path]) -> dict[str, dict[str, Any]]:
    """Describe who is at each site of a comparison, whose owner sees all of them."""
    found = {site: known_people(study, site, Path(folder)) for site, folder in folders.items()}
    return {site: people for site, people in found.items() if people}


def known_people(
    study: Study, site: str, folder: Path | None, least: int = 1
) -> dict[str, dict[str, Any]]:
    """Return who is at a site; nothing where its table can no longer be read."""
    with contextlib.suppress(FedscanError, OSError):
        return people_of(study, site, folder, least) if folder else {}
    return {}


def curves_of(path: Path, study: Study, least: int) -> dict[str, Any]:
    """Describe a model by what it said of a site's test images.

    Returns
    -------
    dict
        As :func:`common.evaluation.curves.describe`, with ``people``; empty where there are no
        predictions, or a class has images of fewer people than that.
    """
    try:
        table = read_predictions(path, path.parent)
    except (FileNotFoundError, FedscanError):
        return {}
    if table.empty or table.groupby("label")["person"].nunique().min() < least:
        return {}
    classes = study.label.classes.names
    probabilities = table[[f"{PROBABILITY}{name}" for name in classes]].to_numpy(float)
    found = describe(
        [(table["label"].to_numpy(), probabilities)], target_of(classes, study.label.positive)
    )
    return {**found, "people": int(table["person"].nunique())}
