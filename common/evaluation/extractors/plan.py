"""What the validation of an extractor is made of: pictures, and steps that spoil them.

A *series* is a list of steps in an order of severity that nobody disputes, from unspoilt pictures
on. Series of `QUALITY` spoil each picture; those of `DIVERSITY` show fewer kinds of pictures, each
of which is real, or smoother than real; those `SHOWN` are measured but not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

QUALITY, DIVERSITY, SHOWN = "quality", "diversity", "shown"
DRAWS = 5  # whom one draw keeps moves a distance as much as how many: so each is drawn again


@dataclass(frozen=True)
class Pictures:
    """Real pictures to validate an extractor on.

    Parameters
    ----------
    images : np.ndarray
        float32 in [-1, 1], shape (N, C, R, R).
    people : np.ndarray
        Of each picture, whom it shows, (N,): unlike for any two people of all sites.
    labels : mapping of str to np.ndarray
        Of each picture, by kind of label, (N,) each.
    """

    images: np.ndarray
    people: np.ndarray
    labels: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.images)

    def by_person(self) -> list[np.ndarray]:
        """Indices of each person's pictures."""
        return [np.flatnonzero(self.people == name) for name in np.unique(self.people)]


@dataclass(frozen=True)
class Step:
    """How much of what, and the pictures: one set, or several where chance decides who is kept."""

    series: str
    kind: str
    level: str
    draws: tuple[np.ndarray, ...]


def spoilt(
    series: str, images: np.ndarray, pairs: Iterable[tuple[str, np.ndarray]]
) -> Iterator[Step]:
    """A series of `QUALITY`, of (level, pictures) after the unspoilt ``images``."""
    for level, pictures in [("none", images), *pairs]:
        yield Step(series, QUALITY, level, (pictures,))


def groups_kept(
    series: str,
    kind: str,
    real: Pictures,
    label: str,
    units: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> Iterator[Step]:
    """Pictures of all values of a label, then of its most frequent value alone.

    Both sets have as many units, so that none is nearer for being larger.

    Parameters
    ----------
    units : sequence of np.ndarray
        Indices of pictures that are drawn together and share the label, such as a person's.
    """
    values = [real.labels[label][unit[0]] for unit in units]
    largest = max(sorted(set(values)), key=values.count)
    only = np.flatnonzero(np.array(values) == largest)
    yield from _kept(series, kind, real, units, {"all": np.arange(len(units)), "one": only}, rng)


def group_missing(
    series: str,
    kind: str,
    real: Pictures,
    label: str,
    values: Sequence[str],
    rng: np.random.Generator,
) -> Iterator[Step]:
    """All pictures, then all but those of one value of a label, of each value in turn."""
    own = real.labels[label]
    units = list(np.arange(len(real))[:, None])
    groups = {"none": np.arange(len(real)), **{v: np.flatnonzero(own != v) for v in values}}
    yield from _kept(series, kind, real, units, groups, rng)


def _kept(
    series: str,
    kind: str,
    real: Pictures,
    units: Sequence[np.ndarray],
    groups: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> Iterator[Step]:
    """Equally many units of each group; of the smallest, too, who is kept differs between draws."""
    size = min(map(len, groups.values())) * 4 // 5
    for level, group in groups.items():
        rows = [_some(units, group, size, rng) for _ in range(DRAWS)]
        yield Step(series, kind, level, tuple(real.images[one] for one in rows))


def few_people(series: str, real: Pictures, rng: np.random.Generator) -> Iterator[Step]:
    """All, a quarter and a sixteenth of the people, repeated to the full number of pictures."""
    own = real.by_person()
    everyone = np.arange(len(own))
    for kept in (1, 4, 16):
        rows = [
            np.resize(_some(own, everyone, max(1, len(own) // kept), rng), len(real))
            for _ in range(DRAWS)
        ]
        yield Step(series, DIVERSITY, f"1/{kept}", tuple(real.images[one] for one in rows))


def few_pictures(series: str, real: Pictures, rng: np.random.Generator) -> Iterator[Step]:
    """All, a quarter and a sixteenth of the pictures, repeated to the full number."""
    for kept in (1, 4, 16):
        rows = [
            np.resize(rng.choice(len(real), max(1, len(real) // kept), replace=False), len(real))
            for _ in range(DRAWS)
        ]
        yield Step(series, DIVERSITY, f"1/{kept}", tuple(real.images[one] for one in rows))


def _some(
    units: Sequence[np.ndarray], group: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Indices of the pictures of some units of a group."""
    return np.concatenate([units[one] for one in rng.choice(group, count, replace=False)])
