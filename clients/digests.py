"""Digests that a site keeps of what a run began with and asked for, and errors about them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from common.errors import DataContractError, FedscanError

ROSTER = "roster"  # who takes part, with which label, in which split
CONFIG = "config"  # the run's configuration
EXTRACTOR = "extractor"  # what judges pictures
WAY_OUT = "Restore the site's folder of states, or start the run anew"


def read_digests(path: Path, site: str, about: str) -> dict[str, str]:
    """Read a record of digests; empty where nothing is kept."""
    with public_errors(site, f"{about} cannot be read"):
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return {}
    try:
        return {str(key): str(digest) for key, digest in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError) as error:  # no JSON, or no object
        message = f"site '{site}': {about} is damaged"
        raise FedscanError(
            f"{message} ({path}). {WAY_OUT}", public=f"{message}. {WAY_OUT}"
        ) from error


def changed(site: str, name: str) -> DataContractError:
    """Return the error of data, or a configuration, that are not those of the run's beginning."""
    way_out = "put them back as they were, or end the run and begin another"
    if name == CONFIG:
        return DataContractError(
            site,
            "the run's configuration has changed since the run began",
            remedy="Start another run",
        )
    if name == ROSTER:
        return DataContractError(
            site,
            "participants, labels or splits have changed since the run began",
            where="participants.tsv, and folders with a scan",
            remedy=f"Do not change a site's data during a run: {way_out}",
        )
    if name == EXTRACTOR:
        return DataContractError(
            site,
            "the extractor that judges pictures has changed since the run began",
            remedy="Put its file back as it was, or end the run and begin another",
        )
    return DataContractError(
        site,
        f"the {name} scans that can be read have changed since the run began",
        remedy=f"Run `fedscan check` to see which cannot be read: {way_out}",
    )


@contextlib.contextmanager
def public_errors(site: str, problem: str) -> Iterator[None]:
    """Tell an error of the file system so that the server learns the kind, not the place."""
    try:
        yield
    except OSError as error:
        message = f"site '{site}': {problem} in its folder of records"
        advice = "Let the site make room there and allow reading and writing, then try again"
        raise FedscanError(
            f"{message} ({error}). {advice}",
            public=f"{message} ({error.strerror or type(error).__name__}). {advice}",
        ) from error
