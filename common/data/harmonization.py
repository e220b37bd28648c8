"""One monotone map of intensities for all images of a site, learned at the site without labels.

After Nyul and Udupa [1]_ [2]_: landmarks are the deciles of an image's intensities, of a volume
those of its head; a site's landmarks are their means over its training images. The map is
piecewise linear and takes them to a standard scale, a constant of this module. So every site maps
its images alone, to what all others map theirs to, and nothing is sent anywhere.

References
----------
.. [1] Nyul and Udupa, On standardizing the MR image intensity scale, Magn Reson Med 42:1072, 1999.
.. [2] Nyul, Udupa and Zhang, New variants of a method of MRI scale standardization, IEEE TMI
   19:143, 2000.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.data.dataset import Pixel, Pixels, in_unit_range
from common.errors import DataContractError
from common.imaging.prepare import HEAD

DECILES = tuple(range(10, 100, 10))  # what lies beyond is held by the ends of the scale
STEP = 1 / 255  # the resolution of a picture of 8 bits
MOST_IMAGES = 2000  # to learn from: more do not move the mean

# Mean landmarks of three phantom hospitals each (of heads at 48 voxels a side), of a seed that no
# reported figure uses, so that heads and skin nearly keep their look. Grey pictures are of
# anything: theirs are spread evenly.
HEADS = ((0.24, 0.43, 0.52, 0.58, 0.62, 0.67, 0.72, 0.78, 0.86),)
SKIN = (
    (0.63, 0.73, 0.80, 0.83, 0.85, 0.87, 0.88, 0.89, 0.90),
    (0.48, 0.57, 0.64, 0.68, 0.70, 0.72, 0.73, 0.74, 0.75),
    (0.44, 0.54, 0.61, 0.64, 0.66, 0.68, 0.69, 0.70, 0.71),
)
GREY = ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),)

_VALUES = 2**22  # read at once
_MOST_KNOWN = 256
_known: dict[Hashable, IntensityMap] = {}


@dataclass(frozen=True, eq=False)
class IntensityMap:
    """A piecewise linear map of [0, 1] to itself for each channel, increasing, 0 to 0 and 1 to 1.

    Parameters
    ----------
    knots : tuple of (K,) and (K,) float64
        For each channel, where the pieces meet, and what that becomes.
    """

    knots: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]

    def __call__(self, images: NDArray[Pixel]) -> NDArray[np.float32]:
        """Map images (B, C, ...), as they are stored."""
        found = np.empty(images.shape, np.float32)
        for channel, knots in enumerate(self.knots):
            stored = images[:, channel]
            if stored.dtype == np.uint8:
                found[:, channel] = self._bytes[channel][stored]
            elif stored.dtype == np.float16:
                found[:, channel] = self._halves[channel][stored.view(np.uint16)]
            else:
                found[:, channel] = np.interp(stored, *knots)
        return found

    # Several times as quick as to interpolate each pixel.

    @cached_property
    def _bytes(self) -> list[NDArray[np.float32]]:
        return self._tables(np.arange(256) / 255)

    @cached_property
    def _halves(self) -> list[NDArray[np.float32]]:
        with np.errstate(invalid="ignore"):  # some patterns of bits are no number
            return self._tables(np.arange(2**16, dtype=np.uint16).view(np.float16).astype(float))

    def _tables(self, values: NDArray[np.float64]) -> list[NDArray[np.float32]]:
        return [np.interp(values, *knots).astype(np.float32) for knots in self.knots]


@dataclass(frozen=True, eq=False)
class Harmonized:
    """Images of a site through its map, as :class:`common.data.dataset.Pixels`."""

    pixels: Pixels
    intensities: IntensityMap

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.pixels.shape

    def take(self, index: ArrayLike) -> NDArray[np.float32]:
        """Read some images, (B, *shape) in [0, 1]."""
        return self.intensities(self.pixels.take(index))


def learn_map(train: Pixels, *, site: str, volumes: bool) -> IntensityMap:
    """Learn a site's map from its training images, or remember it.

    It is remembered in this process where images have a ``version``, which is another when they
    are others, as :class:`common.data.cache.CachedPictures` has.

    Parameters
    ----------
    train : Pixels
        Volumes or stacks of their slices, or pictures.
    site : str
    volumes : bool
        Only the head counts, and what is not part of it stays as it is.

    Raises
    ------
    DataContractError
        The images are almost without contrast.
    """
    version = getattr(train, "version", None)
    key = (version, volumes)
    if key in _known:
        return _known[key]
    floor = HEAD if volumes else 0.0
    landmarks = _landmarks(train, floor)
    scale = HEADS if volumes else SKIN if len(landmarks) == 3 else GREY
    knots = tuple(_knots(*pair, floor) for pair in zip(landmarks, scale, strict=True))
    if any(len(at) < len(_ends(floor)) + 2 for at, _ in knots):
        raise DataContractError(
            site,
            "the training images are almost without contrast: no map of intensities can be learned",
            remedy="Set data.harmonize to 'none', or give the site images with contrast (of "
            "pictures of more than 8 bits, intensity 'own-range' of the study stretches it)",
        )
    learned = IntensityMap(knots)
    if version is not None:
        if len(_known) >= _MOST_KNOWN:
            _known.pop(next(iter(_known)))
        _known[key] = learned
    return learned


def _landmarks(train: Pixels, floor: float) -> NDArray[np.float64]:
    """Mean deciles of the training images' intensities above a floor, (C, 9)."""
    count = min(len(train), MOST_IMAGES)
    rows = np.linspace(0, len(train) - 1, count).round().astype(np.int64)
    at_once = max(1, _VALUES // int(np.prod(train.shape)))
    sums, images = np.zeros((train.shape[0], len(DECILES))), np.zeros((train.shape[0], 1))
    for part in np.split(rows, range(at_once, count, at_once)):
        for image in in_unit_range(train.take(part)):
            for channel, values in enumerate(image):
                counted = values[values > floor] if floor else values.ravel()
                if len(counted):  # a slice may lie above a head
                    sums[channel] += np.percentile(counted, DECILES)
                    images[channel] += 1
    return sums / np.maximum(images, 1)


def _ends(floor: float) -> tuple[float, ...]:
    return (0.0, floor, 1.0) if floor else (0.0, 1.0)


def _knots(
    landmarks: NDArray[np.float64], scale: ArrayLike, floor: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where a channel's pieces meet, and what that becomes.

    Landmarks that are as good as one, as those of a large area of one colour, count as their mean;
    those that are as good as an end are left to it, so that no noise becomes a contrast.
    """
    starts = np.flatnonzero(np.diff(landmarks, prepend=-np.inf) >= STEP)
    sizes = np.diff(starts, append=len(landmarks))
    at = np.add.reduceat(landmarks, starts) / sizes
    becomes = np.add.reduceat(np.asarray(scale, dtype=float), starts) / sizes
    inner = (at >= floor + STEP) & (at <= 1 - STEP)
    ends = _ends(floor)
    at, becomes = (np.r_[ends[:-1], values[inner], ends[-1]] for values in (at, becomes))
    return at, becomes
