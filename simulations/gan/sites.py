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
from common.studies.study import read_study
from simulations import console
from simulations.hospitals import prepare_phantoms

if TYPE_CHECKING:
    from common.data.dataset import Dataset

PART = 256  # images in memory at once
SITES = 3  # simulated hospitals, as in `fedscan run`


def choose_sites(study: str, cohort: Path | None, names: Sequence[str]) -> list[str]:
    """Names of the sites to pool, sorted: those asked for, or all.

    Parameters
    ----------
    study : str
        As a run config has it.
    cohort : Path or None
        None for the study's simulated hospitals.
    names : sequence of str

    Raises
    ------
    ConfigError, DataContractError
        For a cohort that cannot be read, or a site that it does not have.
    """
    if cohort is None:
        phantoms = phantom_cohort(study)
        have, default = list(phantoms.subjects(phantoms.named)), list(phantoms.subjects(SITES))
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


def site_folders(study: str, cohort: Path | None, names: Sequence[str]) -> dict[str, Path]:
    """Each site's data set; phantoms are made in the user's cache where they are not yet there."""
    if cohort is not None:
        found = _cohort(cohort)
        return {name: found[name] for name in names}
    return prepare_phantoms(study, names)


def open_sites(
    study: str, folders: Mapping[str, Path], split: str, resolution: int
) -> dict[str, Dataset]:
    """Open one split of each site; no file of another split is opened."""
    from common.data.site_data import open_planes

    sets = {}
    with console.steps(f"Reading {split} images, sites", len(folders)) as bar:
        for name, folder in folders.items():
            sets[name] = open_planes(
                read_study(study), name, folder, split, size=resolution, cache=cache_dir()
            )
            bar.advance(1, name)
    return sets


def require_test_images(study: str, folders: Mapping[str, Path]) -> None:
    """Refuse a site without test images, which are needed when the training is over.

    Raises
    ------
    DataContractError
    """
    from common.data.site_data import read_table

    for name, folder in folders.items():
        if not len(read_table(read_study(study), name, folder).rows("test")):
            raise DataContractError(
                name,
                "no image with a label is in split 'test'",
                remedy="The generator is judged by test images: give the site some, or choose "
                "others with --site",
            )


def digest(data: Dataset) -> str:
    """Hash of images and labels: whether a training goes on with the images it began with."""
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
