"""Images of one split of one site: a table in memory, and pixels read a batch at a time."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError

Pixel = np.uint8 | np.float16 | np.float32


class Pixels(Protocol):
    """Images as they are stored, on disk or in memory."""

    shape: tuple[int, ...]  # of one image

    def __len__(self) -> int:
        """Return how many images there are."""

    def take(self, index: ArrayLike) -> NDArray[Pixel]:
        """Copy some images, (B, *shape): uint8 for 0 to 1, or floats in [0, 1]."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Images of an array, (N, *shape), as :class:`Pixels`."""

    array: NDArray[Pixel]

    def __len__(self) -> int:
        return len(self.array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.array.shape[1:]

    def take(self, index: ArrayLike) -> NDArray[Pixel]:
        """Copy some images."""
        return self.array[np.asarray(index, dtype=np.int64)]


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Some images of others, in a given order."""

    pixels: Pixels
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape

    def take(self, index: ArrayLike) -> NDArray[Pixel]:
        return self.pixels.take(self.index[np.asarray(index, dtype=np.int64)])


@dataclass(frozen=True, eq=False)
class _Joined:
    """Several sites' images, one after the other."""

    parts: tuple[Pixels, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    def take(self, index: ArrayLike) -> NDArray[Pixel]:
        index = np.asarray(index, dtype=np.int64)
        ends = np.cumsum([len(part) for part in self.parts])
        home = np.searchsorted(ends, index, side="right")
        if not len(index):
            return self.parts[0].take(index)
        first = ends - [len(part) for part in self.parts]
        read = {k: self.parts[k].take(index[home == k] - first[k]) for k in np.unique(home)}
        kinds = {images.dtype for images in read.values()}
        whole = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
        found = np.empty((len(index), *self.shape), whole)
        for k, images in read.items():
            found[home == k] = images if images.dtype == whole else in_unit_range(images)
        return found


@dataclass(frozen=True, eq=False)
class _Levels:
    """The slices of stacks (1, L, R, R) as images (1, R, R) of their own."""

    stacks: Pixels

    def __len__(self) -> int:
        return len(self.stacks) * self.stacks.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        _, _, height, width = self.stacks.shape
        return (1, height, width)

    def take(self, index: ArrayLike) -> NDArray[Pixel]:
        row, level = np.divmod(np.asarray(index, dtype=np.int64), self.stacks.shape[1])
        first, inverse = np.unique(row, return_inverse=True)
        return self.stacks.take(first)[inverse, :, level]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, and what is known of each. Everything in it stays at the site.

    Parameters
    ----------
    pixels : Pixels
        N images: pictures (C, S, S), rows from the top; volumes (1, S, S, S) with axes right,
        anterior, superior; or stacks (1, L, R, R) of a volume's axial slices.
    labels : (N,) int64
        Indices into the study's classes; −1 of an image whose label is not known or not used, which
        is in training sets alone (:mod:`common.data.unlabelled`).
    persons : tuple of str
        Who is on each image, or another name of what never straddles splits.
    conditions : tuple of dict
        For each image what a generator may be told of it, by name.
    per_file : int
        How many images were made of each file.
    names : tuple of str
        For each image its file, relative to the site's folder; none of images that are in no file.
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    persons: tuple[str, ...]
    conditions: tuple[Mapping[str, str], ...] = field(default=())
    per_file: int = 1
    names: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.pixels.shape

    @property
    def files(self) -> int:
        """How many files the images are of."""
        return len(self) // self.per_file

    @property
    def people(self) -> int:
        """How many persons the images are of."""
        return len(set(self.persons))

    def take(self, index: ArrayLike) -> NDArray[np.float32]:
        """Read some images, (B, *shape) in [0, 1]."""
        return in_unit_range(self.pixels.take(index))

    def images(self) -> NDArray[np.float32]:
        """Read all images, (N, *shape) in [0, 1]: for few of them."""
        return self.take(np.arange(len(self)))

    def labelled(self) -> Dataset:
        """Return the images whose label is known: all of them, as a rule."""
        known = self.labels >= 0
        return self if known.all() else self.subset(known)

    def subset(self, chosen: ArrayLike) -> Dataset:
        """Return the images of the given indices or of a mask, in that order."""
        chosen = np.asarray(chosen)
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        return replace(
            self,
            pixels=_Chosen(self.pixels, index),
            labels=self.labels[index],
            persons=tuple(self.persons[k] for k in index),
            conditions=tuple(self.conditions[k] for k in index) if self.conditions else (),
            names=tuple(self.names[k] for k in index) if self.names else (),
        )

    def levels(self, heights_mm: Sequence[float]) -> Dataset:
        """Return the slices of stacks as images of their own, each told its height."""
        count = len(heights_mm)
        heights = [f"{height:g}" for height in heights_mm]
        return Dataset(
            _Levels(self.pixels),
            np.repeat(self.labels, count),
            tuple(person for person in self.persons for _ in heights),
            tuple({**one, "height": height} for one in self.conditions for height in heights),
            per_file=count,
            names=tuple(name for name in self.names for _ in heights),
        )


def pool(sets: Sequence[Dataset]) -> Dataset:
    """Put several sites' images together, in the order given.

    People of two sites may bear the same name: they are numbered by site.

    Raises
    ------
    ConfigError
        No images, or images of different shapes.
    """
    shapes = sorted({one.shape for one in sets})
    if len(shapes) != 1:
        raise ConfigError(f"images to pool have shapes {shapes}: accepted is one and the same")
    return Dataset(
        _Joined(tuple(one.pixels for one in sets)),
        np.concatenate([one.labels for one in sets]),
        tuple(f"{k}/{name}" for k, one in enumerate(sets) for name in one.persons),
        tuple(row for one in sets for row in one.conditions or ({},) * len(one)),
        per_file=sets[0].per_file,
    )


def in_unit_range(stored: NDArray[Pixel]) -> NDArray[np.float32]:
    """Images as they are stored, a copy of the caller's own, in [0, 1]."""
    # The same numbers as NumPy's, five times as fast; what only reads does not wait for PyTorch.
    if stored.dtype == np.float16 and (torch := sys.modules.get("torch")):
        return torch.from_numpy(stored).float().numpy()
    found = stored.astype(np.float32, copy=False)
    if stored.dtype == np.uint8:
        found /= np.float32(255)
    return found
