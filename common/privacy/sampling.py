"""Poisson samples of people: in each step everyone takes part by a coin of his own.

The size of a batch then varies, and is no information about anybody; batches that are shuffled and
cut have another, weaker guarantee than the one that is accounted for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def poisson_batches(
    persons: Sequence[str], rate: float, most: int, seed: int
) -> Iterator[list[NDArray[np.int64]]]:
    """Draw people for each step, and of each of them some images.

    Parameters
    ----------
    persons : sequence of str
        Who is on each image.
    rate : float
        The chance of each person to be in a step, independently of all others.
    most : int
        Images of one person in a step; of more, so many are drawn anew each time.
    seed : int

    Yields
    ------
    list of ndarray of int64
        The indices of images of each person who is drawn; perhaps of nobody.
    """
    rng = np.random.default_rng(seed)
    _, number = np.unique(np.array(persons), return_inverse=True)
    of_person = [np.flatnonzero(number == k) for k in range(number.max() + 1)]
    while True:
        yield [
            own if len(own := of_person[k]) <= most else rng.choice(own, most, replace=False)
            for k in np.flatnonzero(rng.random(len(of_person)) < rate)
        ]
