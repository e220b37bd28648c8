"""What a hospital may be called in a federation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from common.errors import ConfigError

# "all" is what stands in tables for all sites together.
SITE_NAME = re.compile(r"(?!all$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ACCEPTED_SITE_NAME = (
    "up to 64 letters, digits, '.', '_' and '-', the first a letter or digit; not 'all'"
)
MOST_SITES = 10_000  # of a run, as many as `min-sites` accepts


def require_sites(sites: Sequence[str]) -> None:
    """Refuse an order's list of sites that is endless, or does not name each once.

    Raises
    ------
    ConfigError
    """
    usable = len(set(sites)) == len(sites) <= MOST_SITES and all(map(SITE_NAME.fullmatch, sites))
    if not usable:
        raise ConfigError("the order's list of sites is not usable: it names each site once")
