"""The sites that one generator is trained on: a cohort's, or phantom hospitals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.data.phantoms.cohorts import phantom_cohort
from common.errors import ConfigError, DataContractError
from common.paths import cache_dir
from common.studies.study import load_study
from simulations import console
from simulations.federate import prepare_phantoms

if TYPE_CHECKING:
    from common.data.dataset import Dataset

STUDY = "brain-sex"
PART = 256  # images in memory at once
PHANTOMS = 5  # as many as have names of their own
DEFAULT_PHANTOMS = 3  # as in `fedscan run`


def choose_sites(cohort: Path | None, names: Sequence[str]) -> list[str]:
    """Names of the sites to pool, sorted: those asked for, or all.

    Raises
    ------
    ConfigError, DataContractError
        For a cohort that cannot be read, or a site that it does not have.
    """
    if cohort is None:
        subjects = phantom_cohort(STUDY).subjects
        have, default = list(subjects(PHANTOMS)), list(subjects(DEFAULT_PHANTOMS))
        where = "the phantom hospitals are"
    else:
        have = default = list(_cohort(cohort))
        where = f"{cohort} holds"
    if unknown := sorted(set(names) - set(have)):
        raise ConfigError(
            f"--site {unknown[0]}: {where} {', '.join(sorted(have))}",
            public="--site: the cohort does not hold it",
        )
    return sorted(set(names) or default)


def site_folders(cohort: Path | None, names: Sequence[str]) -> dict[str, Path]:
    """Each site's data set; phantoms are made in the user's cache where they are not yet there."""
    if cohort is not None:
        found = _cohort(cohort)
        return {name: found[name] for name in names}
    return prepare_phantoms(STUDY, names)


def load_pool(folders: Mapping[str, Path], split: str, resolution: int) -> Dataset:
    """Slices of one split of all sites together; no file of another split is opened."""
    from common.data.dataset import pool
    from common.data.site_data import open_split
    from common.imaging.slices import LEVELS_MM

    study, sets = load_study(STUDY), []
    with console.steps(f"Reading {split} scans, sites", len(folders)) as bar:
        for name, folder in folders.items():
            stacks = open_split(
                study,
                name,
                folder,
                split,
                size=resolution,
                heights_mm=LEVELS_MM,
                cache=cache_dir(),
            )
            sets.append(stacks.levels(LEVELS_MM))
            bar.advance(1, name)
    return pool(sets)


def require_test_scans(folders: Mapping[str, Path]) -> None:
    """Refuse a site without test scans, which are needed when the training is over.

    Raises
    ------
    DataContractError
    """
    from common.data.site_data import read_table

    for name, folder in folders.items():
        if not len(read_table(load_study(STUDY), name, folder).rows("test")):
            raise DataContractError(
                name,
                "no participant with a label and a scan is in split 'test'",
                where="participants.tsv",
                remedy="The generator is judged by test scans: give the site some, or choose "
                "others with --site",
            )


def digest(data: Dataset) -> str:
    """Hash of images and labels: whether a training goes on with the slices it began with."""
    found = hashlib.sha256()
    for part in np.split(np.arange(len(data)), range(PART, len(data), PART)):
        found.update(np.ascontiguousarray(data.take(part)).reshape(-1).data)
    found.update(repr([sorted(row.items()) for row in data.conditions]).encode())
    return found.hexdigest()


def _cohort(cohort: Path) -> dict[str, Path]:
    from common.imaging.bids import is_dataset, list_sites

    if cohort.is_dir() and is_dataset(cohort):
        raise ConfigError(
            f"{cohort} is one data set. --cohort takes the folder above it, with one data set a "
            f"site; then --site {cohort.name} is this one",
            public="--cohort is one data set: accepted is the folder above it",
        )
    return list_sites(cohort)
