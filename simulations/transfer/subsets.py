"""Which of a hospital's images a model learns from, and on which it is tested: by person.

Subsets are nested, so that a larger one differs from a smaller one by what is added and not by
luck; and they show every class as soon as they are large enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import Dataset, pool


def learning_order(
    labels: NDArray[np.integer], persons: Sequence[str], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Order images so that any first n of them are a subset to learn from.

    First one image of each class, in an order drawn; then the other images, person by person. A
    person counts for the rarest class on the person's images, and the people of each class are
    spread evenly, in an order drawn, so that any first n images have about the mix of all.

    Parameters
    ----------
    labels : (N,) integers
    persons : sequence of N str
    rng : Generator

    Returns
    -------
    (N,) int64
        A permutation.
    """
    labels, who = np.asarray(labels), np.asarray(persons)
    classes, counts = np.unique(labels, return_counts=True)
    rarity = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    images = {name: np.flatnonzero(who == name) for name in dict.fromkeys(persons)}
    people: dict[int, list[str]] = {}
    for name, own in images.items():
        people.setdefault(min(labels[own].tolist(), key=lambda k: (rarity[k], k)), []).append(name)
    places: dict[str, float] = {}
    for label in sorted(people):
        drawn = [people[label][k] for k in rng.permutation(len(people[label]))]
        places |= {name: (k + rng.random()) / len(drawn) for k, name in enumerate(drawn)}
    ordered = np.concatenate([images[name] for name in sorted(places, key=places.__getitem__)])
    first = [int(ordered[np.argmax(labels[ordered] == label)]) for label in classes]
    first = [first[k] for k in rng.permutation(len(first))]
    return np.asarray([*first, *(k for k in ordered.tolist() if k not in set(first))], np.int64)


def whole(splits: Sequence[Dataset]) -> Dataset:
    """Put all splits of one hospital together: a person of two of them is one person."""
    together = pool(splits)
    return replace(together, persons=tuple(name for one in splits for name in one.persons))


def folds(data: Dataset, count: int, seed: int) -> Iterator[tuple[Dataset, Dataset]]:
    """Divide a hospital's images by person, ``count`` times: the rest, and a fold to test on.

    Folds have about the mix of classes of all (scikit-learn's ``StratifiedGroupKFold``), and each
    image is tested once.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for rest, tested in splitter.split(data.labels, data.labels, data.persons):
        yield data.subset(rest), data.subset(tested)
