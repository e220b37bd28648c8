"""Where a site keeps what is its own: one folder a user, never inside a data set."""

from __future__ import annotations

import os
from pathlib import Path

from common.errors import ConfigError


def cache_dir() -> Path:
    """Folder for phantoms and prepared images, made on demand by whoever writes there.

    ``FEDSCAN_CACHE`` names it; without that it is the platform's cache folder for ``fedscan``.

    Raises
    ------
    ConfigError
        If ``FEDSCAN_CACHE`` is a relative path, or is not set and the user has no home.
    """
    if named := _named_by("FEDSCAN_CACHE"):
        return named
    from platformdirs import user_cache_path

    return _of_user(user_cache_path("fedscan"), "FEDSCAN_CACHE")


def site_records(site: str) -> Path:
    """Folder for what a site keeps to itself about its scans, such as predictions.

    ``FEDSCAN_RECORDS`` names the folder above it; without that it is in the user's data folder.

    Raises
    ------
    ConfigError
        If ``FEDSCAN_RECORDS`` is a relative path, or is not set and the user has no home.
    """
    if named := _named_by("FEDSCAN_RECORDS"):
        return named / site
    from platformdirs import user_data_path

    return _of_user(user_data_path("fedscan"), "FEDSCAN_RECORDS") / "sites" / site


def expanded(path: Path) -> Path:
    """Replace a leading ``~``, or ``~NAME`` of a user.

    Raises
    ------
    ConfigError
        The user has no home, or there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        rule = "~ stands for no folder: this user has no home, or there is no such user. Set HOME"
        raise ConfigError(f"{path}: {rule}, or give the whole path", public=rule) from None


def _of_user(folder: Path, variable: str) -> Path:
    """Return the platform's folder of a user, who may have no home, as in some containers.

    Raises
    ------
    ConfigError
    """
    if not folder.is_absolute():
        rule = f"this user has no home: set HOME, or name a folder by {variable}"
        raise ConfigError(f"{folder}: {rule}", public=rule)
    return folder


def _named_by(variable: str) -> Path | None:
    """Return the folder that an environment variable names; None where it names none."""
    value = os.environ.get(variable)
    if not value:
        return None
    try:
        folder = expanded(Path(value))
    except ConfigError as error:
        raise ConfigError(f"{variable}={error}", public=f"{variable}: {error.public}") from None
    if not folder.is_absolute():
        rule = "accepted is an absolute path, since fedscan's processes run in different folders"
        raise ConfigError(f"{variable}={value}: {rule}", public=f"{variable}: {rule}")
    return folder
