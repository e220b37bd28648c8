"""Random batches without end: of images with a label, and beside them of those without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common.training.balanced_batches import BalancedBatches


@dataclass(frozen=True)
class _Batches:
    """Random batches without end: every image once, in a new order, before any a second time."""

    count: int
    size: int
    generator: np.random.Generator

    def __iter__(self) -> Iterator[np.ndarray]:
        pending = np.empty(0, dtype=np.int64)
        while True:
            while len(pending) < self.size:
                pending = np.concatenate([pending, self.generator.permutation(self.count)])
            yield pending[: self.size]
            pending = pending[self.size :]


def batches_of(
    labels: np.ndarray, size: int, seed: int, balance: Literal["none", "weights", "batches"]
) -> Iterator[np.ndarray]:
    """Draw batches of a site's images.

    Images without a label, where there are any, come in a half of their own behind those with one,
    so that these are drawn as if the others were not there: neither does the loss of a class come
    to rest on fewer images, nor does its weight change.

    Parameters
    ----------
    labels : ndarray of int, shape (N,)
        −1 of an image without one.
    size : int
        Images with a label in a batch, and as many without one.
    seed : int
    balance : {"none", "weights", "batches"}
        Whether all classes are equally often in a batch: "batches".

    Yields
    ------
    ndarray of int64
        Indices of images.
    """
    with_label, without = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    halves = []
    if len(with_label):
        rng = np.random.default_rng(seed)
        known = labels[with_label]
        drawn = (
            BalancedBatches(known, size, rng)
            if balance == "batches"
            else _Batches(len(known), size, rng)
        )
        halves.append((with_label, iter(drawn)))
    if len(without):
        rng = np.random.default_rng([seed, 1])
        halves.append((without, iter(_Batches(len(without), size, rng))))
    while True:
        yield np.concatenate([images[next(drawn)] for images, drawn in halves])
