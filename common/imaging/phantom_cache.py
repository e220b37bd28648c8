"""Phantom sites in a user's cache: made once, whole or not there, whoever asks first.

Several processes may want the same site at once, as the clients of a simulation do. The first
makes it under a lock and the others wait; a folder that bears a site's name is always whole, since
it was renamed into its place when it was finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from common.errors import ConfigError
from common.imaging.cohorts import PHANTOM_VERSION, Progress, check_site, write_site


def ensure_site(
    cache: Path,
    site: str,
    *,
    n: int,
    n_test: int,
    seed: int,
    workers: int | None = 1,
    progress: Progress | None = None,
) -> Path:
    """Return a site's folder in a cache, made once however many processes ask for it.

    Its place, ``cache/phantoms/<site>-<key>/<site>``, is keyed by everything that determines its
    bytes. Whoever comes second waits for the first; what a crash left behind is removed.

    Raises
    ------
    ConfigError
        For a name or a number that is not accepted.
    """
    check_site(site, n, n_test)
    home = cache / "phantoms" / f"{site}-{_key(site, n, n_test, seed)}"
    folder = home / site
    if folder.is_dir():  # only ever renamed into place whole
        return folder
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        if not folder.is_dir():
            _remove_leftovers(home)
            write_site(
                home, site, n=n, n_test=n_test, seed=seed, workers=workers, progress=progress
            )
    return folder


def ensure_cohort(
    cache: Path,
    sites: Mapping[str, int],
    *,
    n_test: int,
    seed: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return a folder that holds exactly one folder a site, the files of :func:`ensure_site`.

    The files are hard links, so a cohort takes no further space and no path in it leads out of
    it; where the file system has no hard links they are copies.

    Raises
    ------
    ConfigError
        For a name or a number that is not accepted.
    """
    if not sites:
        raise ConfigError("no site given: accepted is at least one, such as north=200")
    for site, n in sites.items():
        check_site(site, n, n_test)
    folders = [
        ensure_site(cache, site, n=n, n_test=n_test, seed=seed, workers=workers, progress=progress)
        for site, n in sorted(sites.items())
    ]
    key = hashlib.sha256(json.dumps([f.parent.name for f in folders]).encode()).hexdigest()[:16]
    home = cache / "phantoms" / f"cohort-{key}"
    cohort = home / "cohort"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        if not cohort.is_dir():
            _remove_leftovers(home)
            partial = home / f".cohort.{uuid.uuid4().hex}.partial"
            for folder in folders:
                shutil.copytree(folder, partial / folder.name, copy_function=_link_or_copy)
            partial.replace(cohort)
    return cohort


def _remove_leftovers(home: Path) -> None:
    for leftover in home.glob(".*.partial"):
        shutil.rmtree(leftover)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _key(site: str, n: int, n_test: int, seed: int) -> str:
    spec = json.dumps([PHANTOM_VERSION, site, n, n_test, seed])
    return hashlib.sha256(spec.encode()).hexdigest()[:16]
