"""Whose hospitals a simulation is of: a cohort's, or phantoms that are made for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.data.phantoms.cohorts import PHANTOM_SEED, phantom_cohort
from common.errors import ConfigError
from common.machine import usable_cpus
from common.paths import cache_dir
from simulations import console
from simulations.in_use import cache_in_use


def count_sites(cohort: Path | None, sites: int | None, test_scans: int | None = None) -> int:
    """Return how many SuperNodes to simulate: one a site of the cohort, or as many as asked for.

    Raises
    ------
    ConfigError, DataContractError
        If the cohort holds another number of sites than was asked for, or cannot be read; or if a
        number of test scans was asked for, which a cohort has already.
    """
    if cohort is None:
        return sites or 3
    if test_scans:
        raise ConfigError(
            f"--test-scans {test_scans} is for simulated hospitals: those of {cohort} are tested "
            "on what they have. Leave it out"
        )
    from common.imaging.bids import is_dataset, list_sites

    if cohort.is_dir() and is_dataset(cohort):
        raise ConfigError(
            f"{cohort} is one data set. --cohort takes the folder above it, with one data set a "
            "site"
        )
    found = list_sites(cohort)
    if sites not in (None, len(found)):
        raise ConfigError(
            f"--sites {sites}, but {cohort} holds {len(found)}: {', '.join(found)}. Leave --sites "
            "out to take them all"
        )
    return len(found)


def site_names(cohort: Path | None, study: str, count: int) -> list[str]:
    """Name the sites of a cohort, or so many simulated hospitals of a study."""
    if cohort is None:
        return list(phantom_cohort(study).subjects(count))
    from common.imaging.bids import list_sites

    return sorted(list_sites(cohort))


@cache_in_use()
def prepare_phantoms(
    study: str,
    sites: Sequence[str],
    *,
    seed: int = PHANTOM_SEED,
    test: int | None = None,
    n: Mapping[str, int] | None = None,
    quiet: bool = False,
) -> dict[str, Path]:
    """Make phantom hospitals in the user's cache, where they are not yet there.

    Parameters
    ----------
    study : str
        As a run config has it.
    sites : sequence of str
        Names among those of :func:`common.data.phantoms.cohorts.phantom_cohort`.
    seed : int
        Of the cohort.
    test : int, optional
        Test subjects of each site, other than the default.
    n : mapping of str to int, optional
        Subjects of single sites, other than their own numbers.
    quiet : bool
        Show nothing on the way.

    Returns
    -------
    dict of str to Path
        Each site's folder.
    """
    cohort = phantom_cohort(study)
    # Some of a cohort's hospitals, such as the third alone, are among those of a larger number.
    count, n = len(sites), n or {}
    while not set(sites) <= (every := cohort.subjects(count, test=test, n=n)).keys():
        count += 1
    subjects = {name: every[name] for name in sites}
    folders: dict[str, Path] = {}
    which = f" of cohort {seed}" if seed != PHANTOM_SEED else ""
    with (
        console.steps(f"Making {cohort.what}{which}", sum(subjects.values()), quiet=quiet) as bar,
        cohort.processes(usable_cpus()),
    ):
        for name, number in subjects.items():
            before = bar.done
            folders[name] = cohort.ensure(
                *(name, cache_dir()),
                **{"n": n.get(name), "seed": seed, "test": test, "workers": usable_cpus()},
                progress=lambda k, name=name: bar.advance(k, name),
            )
            if missing := number - (bar.done - before):
                bar.advance(missing, f"{name} (cached)")
    return folders
