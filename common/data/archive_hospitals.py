"""Which hospital each picture of an archive goes to, so that no group is at two."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from common.data.archive_rows import ArchiveRow
from common.errors import ConfigError
from common.seeding import derive_seed
from common.site_files import plain
from common.site_names import SITE_NAME
from common.studies.vocabulary import normalise

MOST_HOSPITALS = 100

DRAW = "draw them with --sites north=0.5,south=0.3,island=0.2, or name a column with --by"


def check_shares(shares: Mapping[str, float]) -> None:
    """Refuse hospitals that cannot be drawn.

    Raises
    ------
    ConfigError
        For a name or a part that is not accepted, or too many of them.
    """
    for site, share in shares.items():
        if not SITE_NAME.fullmatch(site):
            raise ConfigError(
                f"hospital '{plain(site)}': accepted are letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit, up to 64; not 'all'"
            )
        if not 0 < share < math.inf:
            raise ConfigError(f"hospital '{site}': its part {share} is no positive number")
    if len(shares) > MOST_HOSPITALS:
        raise ConfigError(f"{len(shares)} hospitals: accepted are up to {MOST_HOSPITALS}")


def told_hospitals(
    rows: Sequence[ArchiveRow], title: str, by: str
) -> tuple[dict[str, list[ArchiveRow]], int, int]:
    """Hospitals that the rows tell; a group is at the one that has most of its pictures.

    Parameters
    ----------
    rows : sequence of ArchiveRow
    title : str
        Of the archive, for errors.
    by : str
        The column that tells, where it was asked for; for errors.

    Returns
    -------
    dict of str to list of ArchiveRow
        Rows by hospital, both in order.
    int
        Rows left out, because nothing tells where their group was.
    int
        Rows that were told at another hospital than their group is at.

    Raises
    ------
    ConfigError
        No row tells, a value cannot name a folder, or there are too many.
    """
    names = _names(rows, by)
    told: dict[int, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.centre:
            told[row.group][names[row.centre]] += 1
    if not told:
        raise ConfigError(f"nothing in the tables of this copy of {title} tells hospitals: {DRAW}")
    home = {group: min(found, key=lambda s: (-found[s], s)) for group, found in told.items()}
    sites: dict[str, list[ArchiveRow]] = {site: [] for site in sorted(set(home.values()))}
    for row in rows:
        if row.group in home:
            sites[home[row.group]].append(row)
    homeless = len(rows) - sum(map(len, sites.values()))
    moved = sum(bool(row.centre) and names[row.centre] != home[row.group] for row in rows)
    return sites, homeless, moved


def draw_hospitals(
    rows: Sequence[ArchiveRow], shares: Mapping[str, float], seed: int
) -> dict[str, list[ArchiveRow]]:
    """Draw the hospital of each group, so that each diagnosis is shared out as asked.

    Groups come in a random order, which the seed and the names of their first pictures fix; each
    goes to the hospital that lacks most of its share of the group's rarest diagnosis.

    Parameters
    ----------
    rows : sequence of ArchiveRow
        Sorted by name.
    shares : mapping of str to float
        Parts of the whole, in any unit.
    seed : int

    Raises
    ------
    ConfigError
        A hospital would be empty.
    """
    groups: dict[int, list[ArchiveRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    whole = sum(shares.values())
    rng = np.random.default_rng(derive_seed(seed, purpose="hospitals of an archive"))
    ordered = sorted(groups, key=lambda group: groups[group][0].name)
    strata = rarest_diagnosis(groups)
    given: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(shares, 0))
    home = {}
    for k in rng.permutation(len(ordered)):
        group = ordered[k]
        counts, size = given[strata[group]], len(groups[group])
        total = sum(counts.values()) + size
        lacking = {site: total * shares[site] / whole - counts[site] for site in shares}
        home[group] = max(lacking, key=lacking.__getitem__)
        counts[home[group]] += size
    sites: dict[str, list[ArchiveRow]] = {site: [] for site in shares}
    for row in rows:
        sites[home[row.group]].append(row)
    if empty := [site for site, mine in sites.items() if not mine]:
        raise ConfigError(
            f"hospital '{empty[0]}' would be empty: {len(groups)} groups of pictures for "
            f"{len(sites)} hospitals. Name fewer hospitals, or give it a larger part"
        )
    return sites


def rarest_diagnosis(groups: Mapping[int, Sequence[ArchiveRow]]) -> dict[int, str]:
    """Return for each group that of its diagnoses which is rarest in all groups together."""
    n = Counter(row.diagnosis for rows in groups.values() for row in rows)
    return {
        group: min((row.diagnosis for row in rows), key=lambda name: (n[name], name))
        for group, rows in groups.items()
    }


def _names(rows: list[ArchiveRow], by: str) -> dict[str, str]:
    """Name of a hospital for each value that tells one."""
    names: dict[str, str] = {}
    meaning: dict[str, str] = {}
    for value in dict.fromkeys(row.centre for row in rows if row.centre):
        site = re.sub(r"[^a-z0-9._-]+", "-", normalise(value)).strip("-._")
        if not SITE_NAME.fullmatch(site):
            raise ConfigError(
                f"'{plain(value)}' is to be a hospital and cannot name a folder: accepted are "
                "Latin letters and digits, up to 64, and not 'all'"
            )
        if meaning.setdefault(site, normalise(value)) != normalise(value):
            raise ConfigError(
                f"'{plain(value)}' and '{plain(meaning[site])}' would be one hospital"
            )
        names[value] = site
    if len(meaning) > MOST_HOSPITALS:
        raise ConfigError(
            f"--by {plain(by)} gives {len(meaning)} hospitals: accepted are up to {MOST_HOSPITALS}"
        )
    return names
