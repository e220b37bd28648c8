"""Where a site keeps what is its own: one folder a user, never inside a data set."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for phantoms and prepared images, made on demand by whoever writes there.

    ``FEDSCAN_CACHE`` names it; without that it is the platform's cache folder for ``fedscan``.
    """
    if named := os.environ.get("FEDSCAN_CACHE"):
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("fedscan")


def site_records(site: str) -> Path:
    """Folder for what a site keeps to itself about its scans, such as predictions.

    ``FEDSCAN_RECORDS`` names the folder above it; without that it is in the user's data folder.
    """
    if named := os.environ.get("FEDSCAN_RECORDS"):
        return Path(named).expanduser().absolute() / site
    from platformdirs import user_data_path

    return user_data_path("fedscan") / "sites" / site
