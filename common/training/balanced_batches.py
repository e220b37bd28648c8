"""Batches in which every class of a site counts as much, however rare it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BalancedBatches:
    """Random batches without end, with all classes that a site has equally often.

    Classes follow one another in rounds, each class once a round in a random order; of a class
    every example is drawn once, in a random order, before any a second time.

    The expected loss is that of all examples under
    :func:`common.training.classifier.class_weights`, so the loss of these batches is not weighted.
    Its gradient varies less: at one rare lesion in a hundred and eight diagnoses, a weight of 12
    makes one picture in six batches of 16 as loud as the rest of its batch. In exchange rare
    examples are seen far more often than others, so that they should be augmented; and examples
    are not drawn independently of their labels, which the accounting of differentially private
    training presumes: weight the loss there.

    Parameters
    ----------
    labels : ndarray of int, shape (N,)
    size : int
        Examples in a batch.
    generator : numpy.random.Generator

    Raises
    ------
    ValueError
        There are no labels.
    """

    labels: np.ndarray
    size: int
    generator: np.random.Generator

    def __post_init__(self) -> None:
        if not len(self.labels):
            raise ValueError("no examples to make batches of")

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield indices of examples, each (size,) int64."""
        members = [np.flatnonzero(self.labels == one) for one in np.unique(self.labels)]
        orders = [self._forever(one) for one in members]
        classes = self._forever(np.arange(len(members)))
        while True:
            drawn = (next(orders[next(classes)]) for _ in range(self.size))
            yield np.fromiter(drawn, dtype=np.int64, count=self.size)

    def _forever(self, values: np.ndarray) -> Iterator[int]:
        while True:
            yield from self.generator.permutation(values)
