"""Which participants train, validate and test: by participant, never by image.

A site may fix the split itself, in the column ``split`` of participants.tsv. Without it the split
is a function of the participants' ids and labels alone, so that every process, arm and repetition
of an experiment sees the same one and nothing need be stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

SPLITS = ("train", "val", "test")
ACCEPTED_SPLITS = "train, val (or validation), test, and n/a to leave a participant out"
HELD_OUT = 0.2  # share of each label for val, and again for test

_SEED = 0
_SPELLINGS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


def parse_split(text: str) -> str | None:
    """Split that a cell of participants.tsv names, or None where it is empty or ``n/a``.

    Raises
    ------
    ValueError
        The cell names no split.
    """
    key = text.strip().lower()
    if key in ("", "n/a"):
        return None
    try:
        return _SPELLINGS[key]
    except KeyError:
        raise ValueError(f"unknown split; accepted: {ACCEPTED_SPLITS}") from None


def assign_splits(labels: Mapping[str, int]) -> dict[str, str]:
    """Split participants 60/20/20 into train, val and test, stratified by label.

    Within each label, participants are ordered by a hash of their id; the first fifth tests, the
    second validates, the others train. With three or more of a label each split holds at least
    one; of two, one trains and one tests; a single one trains. A participant who joins moves at
    most three others, of the same label; a site that wants no such move writes a column ``split``.

    Parameters
    ----------
    labels : mapping of str to int
        Label of each participant id. The order does not matter.

    Returns
    -------
    dict of str to str
        ``train``, ``val`` or ``test`` for each participant id.
    """
    splits: dict[str, str] = {}
    for label in sorted(set(labels.values())):
        ordered = sorted((name for name in labels if labels[name] == label), key=_rank)
        n_test, n_val = _held_out(len(ordered))
        for place, name in enumerate(ordered):
            is_test, is_val = place < n_test, place < n_test + n_val
            splits[name] = "test" if is_test else "val" if is_val else "train"
    return splits


def _held_out(n: int) -> tuple[int, int]:
    """Number of test and of val participants among ``n`` of one label."""
    if n < 3:
        return (1, 0) if n == 2 else (0, 0)
    share = max(1, int(HELD_OUT * n + 0.5))
    return share, share


def _rank(name: str) -> tuple[str, str]:
    return hashlib.sha256(f"{_SEED}:{name}".encode()).hexdigest(), name
