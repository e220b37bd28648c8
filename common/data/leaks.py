"""Things that rows in more than one split, or at more than one hospital, show.

A thing is a person, a lesion or whatever else the study's [groups] join, or a picture and its
copies (`common.data.copies`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.imaging.splits import SPLITS

SAME_FILE = "identical file"
SAME_PIXELS = "identical pixels"
NEAR = "near-identical picture"
GROUP = "group"  # rows joined through several columns of [groups]


@dataclass(frozen=True)
class Leak:
    """One thing that rows in more than one split, or at more than one hospital, show.

    Parameters
    ----------
    what : str
        A column of the study's [groups], or :data:`GROUP`, :data:`SAME_FILE`,
        :data:`SAME_PIXELS`, :data:`NEAR`.
    sites : list of str
        Sorted.
    splits : list of str
        In the order train, val, test.
    rows : list of dict
        ``site``, ``split`` and ``file`` of each. For the eyes of whoever holds the data.
    one_group : bool
        Whether the rows are of one group at one hospital, so that a split by groups mends it.
    """

    what: str
    sites: list[str]
    splits: list[str]
    rows: list[dict[str, str]]
    one_group: bool

    @property
    def is_problem(self) -> bool:
        """Whether training sees what is held out.

        A person's name at two hospitals does not say so: each may number its own people.
        """
        named = self.what not in (SAME_FILE, SAME_PIXELS, NEAR)
        return len(self.splits) > 1 and not (named and len(self.sites) > 1)

    def to_dict(self) -> dict[str, Any]:
        """Leak as plain dictionaries, lists and strings."""
        return asdict(self) | {"is_problem": self.is_problem}


@dataclass(frozen=True)
class Rows:
    """Rows of all hospitals, N of them, as far as leaks are concerned.

    Parameters
    ----------
    sites, splits, files : list of str
    keys : list of tuple of (str, str)
        For each row, columns of [groups] and what they hold.
    groups : list of hashable
        Equal for rows of one group of one hospital, and for no others.
    """

    sites: list[str]
    splits: list[str]
    files: list[str]
    keys: list[tuple[tuple[str, str], ...]]
    groups: list[Hashable]

    def leak(self, what: str, rows: Sequence[int]) -> Leak | None:
        """Leak that some rows of one thing make; None where they are in one place."""
        sites = sorted({self.sites[row] for row in rows})
        found = {self.splits[row] for row in rows}
        if len(sites) == len(found) == 1:
            return None
        told = [
            {"site": self.sites[row], "split": self.splits[row], "file": self.files[row]}
            for row in rows
        ]
        one_group = len({self.groups[row] for row in rows}) == 1
        return Leak(what, sites, [s for s in SPLITS if s in found], told, one_group)


def things_in_several_places(rows: Rows) -> list[Leak]:
    """Persons, lesions and groups of more than one split of a hospital, or of several hospitals.

    A group is told only where no value of one column is in two splits of the hospital by itself.
    """
    leaks: list[Leak] = []
    inside: dict[Hashable, list[int]] = {}
    anywhere: dict[tuple[str, str], list[int]] = {}
    groups: dict[Hashable, list[int]] = {}
    for row, keys in enumerate(rows.keys):
        groups.setdefault(rows.groups[row], []).append(row)
        for key in keys:
            inside.setdefault((rows.sites[row], *key), []).append(row)
            anywhere.setdefault(key, []).append(row)
    explained: set[Hashable] = set()
    for (_, column, _), members in inside.items():
        if leak := rows.leak(column, members):
            leaks.append(leak)
            explained.add(rows.groups[members[0]])
    for group, members in groups.items():
        if group not in explained and (leak := rows.leak(GROUP, members)):
            leaks.append(leak)
    for (column, _), members in anywhere.items():
        if (leak := rows.leak(column, members)) and len(leak.sites) > 1:
            leaks.append(leak)
    return leaks


def copies_in_several_places(
    rows: Rows,
    files: Sequence[Hashable],
    equal: NDArray[np.int64],
    near: NDArray[np.int64],
) -> tuple[list[Leak], dict[str, int]]:
    """Find copies in more than one place, each set told by the closest kind that is.

    Parameters
    ----------
    rows : Rows
    files : sequence of N hashable
        Equal where the files are, byte for byte.
    equal, near : (N,) int64
        As of `common.data.copies.sets_of_copies`.

    Returns
    -------
    list of Leak
    dict of str to int
        How many rows show a copy of an earlier row's picture, by the closest kind.
    """
    sets: dict[int, list[int]] = {}
    for row, number in enumerate(near.tolist()):
        sets.setdefault(number, []).append(row)
    leaks: list[Leak] = []
    copies = {SAME_FILE: 0, SAME_PIXELS: 0, NEAR: 0}
    for members in sets.values():
        if len(members) == 1:
            continue
        n_files = len({files[row] for row in members})
        n_equal = len({int(equal[row]) for row in members})
        copies[SAME_FILE] += len(members) - n_files
        copies[SAME_PIXELS] += n_files - n_equal
        copies[NEAR] += n_equal - 1
        whole = rows.leak(NEAR, members)
        if whole is None:
            continue
        kind = NEAR
        for name, key in (
            (SAME_PIXELS, lambda row: int(equal[row])),
            (SAME_FILE, files.__getitem__),
        ):
            parts: dict[Hashable, list[int]] = {}
            for row in members:
                parts.setdefault(key(row), []).append(row)
            found = [leak for part in parts.values() if (leak := rows.leak(name, part))]
            if any(len(leak.splits) > 1 or len(whole.splits) == 1 for leak in found):
                kind = name
        leaks.append(Leak(kind, whole.sites, whole.splits, whole.rows, whole.one_group))
    return leaks, copies
