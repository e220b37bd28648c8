"""Simulated hospitals of the built-in studies, made once in a user's cache.

Several processes may want the same hospital at once, as the clients of a simulation do. The first
makes it under a lock and the others wait; a folder that bears a hospital's name is always whole,
since it was renamed into its place when it was finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from common.errors import ConfigError
from common.files import PRIVATE_FILE, make_folder

PHANTOM_TEST = 60  # test subjects of every phantom hospital of brains
PHANTOM_SEED = 0  # of the cohort of every run, whatever the run's seed
_RICH = {"north": 200, "south": 120, "east": 160, "west": 80}
_POOR = ("island", 20)

Progress = Callable[[int], None]
Write = Callable[[Path], object]


@dataclass(frozen=True)
class PhantomCohort:
    """Simulated hospitals of one study.

    Parameters
    ----------
    what : str
        What is made, for a progress bar.
    named : int
        Hospitals that have names of their own.
    subjects : callable
        Given a number of hospitals, how many subjects each has, by name; the last is the data-poor
        one. By keyword: ``test``, as of ``ensure``, and ``n``, as of ``ensure`` by name.
    ensure : callable
        Given a hospital's name and a cache, returns the hospital's folder, made if need be. By
        keyword: ``n``, other than its own number of subjects; ``seed`` of the cohort, of whom
        nobody is in another; ``test``, test subjects other than the default; ``workers``,
        processes; ``progress``, who is told of finished subjects.
    processes : callable
        Given a number of processes, a context in which all hospitals are made by the same ones.
    """

    what: str
    named: int
    subjects: Callable[..., dict[str, int]]
    ensure: Callable[..., Path]
    processes: Callable[[int], AbstractContextManager[None]]


def phantom_cohort(study: str) -> PhantomCohort:
    """Return the simulated hospitals of a built-in study.

    Raises
    ------
    ConfigError
        The study has none.
    """
    if study not in _COHORTS:
        name = "your own study" if "\n" in study else f"study '{study}'"
        raise ConfigError(
            f"{name} has no simulated hospitals: name a folder with one of yours each, --cohort "
            "(data.cohort-dir)"
        )
    return _COHORTS[study]


def phantom_sites(count: int) -> dict[str, int]:
    """Name the phantom hospitals of brains: the last is the data-poor one.

    Parameters
    ----------
    count : int
        Number of sites, at least 1.

    Returns
    -------
    dict of str to int
        Training and validation subjects by site; test subjects (:data:`PHANTOM_TEST`) come on top.
    """
    names = list(_RICH)
    rich = {
        (names[i] if i < len(names) else f"site-{i + 1:03d}"): list(_RICH.values())[i % len(names)]
        for i in range(count - 1)
    }
    return {**rich, _POOR[0]: _POOR[1]}


def ensure_brains(
    cache: Path,
    site: str,
    *,
    n: int,
    n_test: int = PHANTOM_TEST,
    seed: int = PHANTOM_SEED,
    workers: int | None = 1,
    progress: Progress | None = None,
) -> Path:
    """Return a phantom hospital of brains in a cache, made once however many processes ask.

    Raises
    ------
    ConfigError
        For a name or a number that is not accepted.
    """
    from common.imaging.cohorts import PHANTOM_VERSION, check_site, write_site

    check_site(site, n, n_test)
    return ensure(
        cache,
        site,
        [PHANTOM_VERSION, site, n, n_test, seed],
        lambda home: write_site(
            home, site, n=n, n_test=n_test, seed=seed, workers=workers, progress=progress
        ),
    )


def ensure_lesions(
    cache: Path,
    site: str,
    *,
    patients: int | None = None,
    test: int | None = None,
    seed: int = PHANTOM_SEED,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Return a phantom hospital of skin lesions in a cache, made once however many processes ask.

    Raises
    ------
    ConfigError
        For a name or a number that is not accepted.
    """
    from common.data.phantoms.lesion_cohorts import LESION_PHANTOM_VERSION, write_hospital

    return ensure(
        cache,
        site,
        ["lesions", LESION_PHANTOM_VERSION, site, patients, seed, *([test] if test else [])],
        lambda home: write_hospital(
            *(home, site),
            **{"seed": seed, "patients": patients, "test": test},
            **{"workers": workers, "progress": progress},
        ),
    )


def ensure(cache: Path, site: str, spec: list[object], write: Write) -> Path:
    """Return a site's folder in a cache, which ``write`` makes in the folder that it is given.

    Its place, ``cache/phantoms/<site>-<key>/<site>``, is keyed by ``spec``, everything that
    determines its bytes. Whoever comes second waits for the first; what a crash left is removed.
    """
    key = hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:16]
    home = cache / "phantoms" / f"{site}-{key}"
    folder = home / site
    if folder.is_dir():  # only ever renamed into place whole
        return folder
    make_folder(home)
    with FileLock(home / ".lock", mode=PRIVATE_FILE):
        if not folder.is_dir():
            for leftover in home.glob(".*.partial"):
                shutil.rmtree(leftover)
            write(home)
    return folder


def _brain_subjects(
    count: int, *, test: int | None = None, n: Mapping[str, int] | None = None
) -> dict[str, int]:
    own = phantom_sites(count)
    return {name: (n or {}).get(name, own[name]) + (test or PHANTOM_TEST) for name in own}


def _ensure_brain(
    site: str, cache: Path, *, n: int | None = None, test: int | None = None, **how: Any
) -> Path:
    # A hospital's size does not depend on how many there are, but for those that share a scanner.
    number = int(site.removeprefix("site-")) if site.startswith("site-") else len(_RICH)
    n = n or phantom_sites(number + 1)[site]
    return ensure_brains(cache, site, n=n, n_test=test or PHANTOM_TEST, **how)


def _lesion_subjects(
    count: int, *, test: int | None = None, n: Mapping[str, int] | None = None
) -> dict[str, int]:
    # The progress of those who are added to the test counts with the others'.
    from common.data.phantoms.lesion_cohorts import HOSPITALS

    names = list(HOSPITALS)
    if not 1 <= count <= len(names):
        raise ConfigError(
            f"--sites {count}: skin-lesions has {len(names)} simulated hospitals, "
            f"{', '.join(names)}"
        )
    own = {name: HOSPITALS[name].patients for name in [*names[: count - 1], names[-1]]}
    return {name: (n or {}).get(name, own[name]) for name in own}


def _ensure_lesion(
    site: str, cache: Path, *, n: int | None = None, test: int | None = None, **how: Any
) -> Path:
    return ensure_lesions(cache, site, patients=n, test=test, **how)


def _brain_processes(workers: int) -> AbstractContextManager[None]:
    from common.imaging.cohorts import processes

    return processes(workers)


_COHORTS = {
    "brain-sex": PhantomCohort(
        "phantom scans", len(_RICH) + 1, _brain_subjects, _ensure_brain, _brain_processes
    ),
    "skin-lesions": PhantomCohort(
        "phantom pictures", 3, _lesion_subjects, _ensure_lesion, lambda _: nullcontext()
    ),
}
