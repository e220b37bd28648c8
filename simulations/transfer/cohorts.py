"""The hospitals of a transfer, and how the target's models can be tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.config.run_config import RunConfig
from common.data.image_table import ImageTable
from common.data.phantoms.cohorts import phantom_cohort, phantom_sites
from common.data.site_data import read_table
from common.errors import ConfigError
from common.tasks.task import survey
from simulations.hospitals import prepare_phantoms
from simulations.transfer.plan import Protocol

FEWEST_TESTED = 30  # people; of fewer a test split says too little
FOLDS = 5


def phantoms(study: str, count: int, target: str, scans: int, seed: int) -> dict[str, Path]:
    """Make simulated hospitals in the user's cache, the target with enough training scans.

    Parameters
    ----------
    study : str
    count : int
        How many hospitals.
    target : str
    scans : int
        Training scans that the target needs.
    seed : int
        Of the cohort.
    """
    usual = phantom_cohort(study).subjects(count)
    if target not in usual:
        raise ConfigError(f"--target {target}: accepted is one of {', '.join(usual)}")
    if study == "brain-sex":
        own, needed = phantom_sites(count)[target], brains_for(scans)
    else:  # of two patients about three pictures are to learn from
        own, needed = usual[target], scans
    # As it is, where that is enough: a hospital of lesions then tests people of every diagnosis.
    n = {target: needed} if needed > own else {}
    return prepare_phantoms(study, list(usual), seed=seed, n=n)


def brains_for(scans: int) -> int:
    """Return how many subjects a phantom hospital of brains needs for so many training scans."""
    n = scans + 2
    while n - max(2, round(n / 5)) < scans:  # a fifth of them validates
        n += 1
    return max(4, n)


def poorest(folders: Mapping[str, Path], config: RunConfig) -> str:
    """Name the hospital with the fewest training scans."""
    counts = {name: survey(name, path, config)["n_train"] for name, path in folders.items()}
    return min(counts, key=lambda name: (counts[name], name))


def protocol_of(
    target: str, folders: Sequence[Path], config: RunConfig, sizes: Sequence[int], asked: int | None
) -> Protocol:
    """Decide how the target's models are tested, and with how many scans they can learn.

    Parameters
    ----------
    target : str
    folders : sequence of Path
        Its own in each repetition.
    config : RunConfig
    sizes : sequence of int
    asked : int, optional
        Folds; without it a cross-validation where a test split has fewer than
        :data:`FEWEST_TESTED` people.

    Raises
    ------
    ConfigError
        There are not even as many scans as the smallest size asks for.
    """
    tables = [read_table(config.read_study(), target, path) for path in folders]
    tested = min(len(np.unique(table.groups[table.rows("test")])) for table in tables)
    rarest = min(_people_of_rarest(table) for table in tables)
    count = asked
    if count is None:
        count = min(FOLDS, rarest) if tested < FEWEST_TESTED and rarest > 1 else 0
    if count == 1 or count > rarest:
        raise ConfigError(
            f"site '{target}': no cross-validation of {count} folds can be, since its rarest class "
            f"is of {rarest} people: --folds takes 2 to so many, or 0 for its test split"
        )
    there = min(
        len(table) - -(-len(table) // count) if count else len(table.rows("train"))
        for table in tables
    )
    possible = tuple(n for n in sizes if n <= there)
    if not possible:
        raise ConfigError(
            f"site '{target}' has {there} scans to learn from, and the smallest of --sizes is "
            f"{sizes[0]}: give smaller ones"
        )
    return Protocol(count, possible)


def _people_of_rarest(table: ImageTable) -> int:
    """Count the people, or other groups, of the class of which there are fewest."""
    return min(len(set(table.groups[table.labels == k])) for k in set(table.labels.tolist()))
