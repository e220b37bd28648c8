"""Phantom sites in a user's cache: made once, whole or not there, whoever asks first.

Several processes may want the same site at once, as the clients of a simulation do. The first
makes it under a lock and the others wait; a folder that bears a site's name is always whole, since
it was renamed into its place when it was finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from filelock import FileLock

from common.files import PRIVATE_FILE, make_folder
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
    make_folder(home)
    with FileLock(home / ".lock", mode=PRIVATE_FILE):
        if not folder.is_dir():
            for leftover in home.glob(".*.partial"):
                shutil.rmtree(leftover)
            write_site(
                home, site, n=n, n_test=n_test, seed=seed, workers=workers, progress=progress
            )
    return folder


def _key(site: str, n: int, n_test: int, seed: int) -> str:
    spec = json.dumps([PHANTOM_VERSION, site, n, n_test, seed])
    return hashlib.sha256(spec.encode()).hexdigest()[:16]
