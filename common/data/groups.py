"""Rows that belong together because they share a person, a lesion or a file; where they leak."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.imaging.splits import SPLITS


@dataclass(frozen=True, eq=False)
class Leaks:
    """Groups whose images are in more than one split.

    Parameters
    ----------
    groups : (G,) int64
        Their numbers. They stay at the site.
    images : dict of str to int
        How many images of each split belong to such a group.
    """

    groups: NDArray[np.int64]
    images: dict[str, int]

    def __bool__(self) -> bool:
        return len(self.groups) > 0


def find_leaks(groups: NDArray[np.integer], splits: NDArray[np.str_]) -> Leaks:
    """Find the groups that are in more than one split.

    Parameters
    ----------
    groups : (N,) integers
    splits : (N,) str
    """
    homes: dict[int, set[str]] = {}
    for group, split in zip(groups.tolist(), splits.tolist(), strict=True):
        homes.setdefault(group, set()).add(split)
    leaking = np.array(sorted(g for g, found in homes.items() if len(found) > 1), dtype=np.int64)
    affected = splits[np.isin(groups, leaking)]
    return Leaks(leaking, {split: int((affected == split).sum()) for split in SPLITS})


def connect(keys: Sequence[Iterable[object]]) -> NDArray[np.int64]:
    """Number the connected components of rows that share keys, by union-find.

    Parameters
    ----------
    keys : sequence of N iterables of hashable
        What each row names; rows with a key in common are joined.

    Returns
    -------
    (N,) int64
        For each row, the index of the first row of its component.
    """
    parent = list(range(len(keys)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]  # halves the path
            row = parent[row]
        return row

    first: dict[object, int] = {}
    for row, own in enumerate(keys):
        for key in own:
            one, other = root(row), root(first.setdefault(key, row))
            parent[max(one, other)] = min(one, other)
    return np.array([root(row) for row in range(len(keys))], dtype=np.int64)
