"""Which pictures are copies of one another: re-encoded, resized, made brighter, turned, mirrored.

A picture of at least :data:`READ_SIZE` pixels is described by the lowest 16 × 16 frequencies of its
luminance, a DCT-II. Two pictures are copies where both hold:

1. Their 64-bit hashes differ in at most :data:`MOST_BITS` bits. A hash holds the signs of the
   lowest 8 × 8 frequencies without the mean: neither brightness nor contrast changes it. It is
   compared under the eight symmetries of the square, since a program that drops the EXIF
   orientation turns a picture and a training set may hold mirrored ones. On the coefficients a
   symmetry is a change of signs and a transposition, so nothing is read or transformed again.
2. After the best gain, offset and symmetry, what is left of their difference is at most
   :data:`MOST_RESIDUAL` grey levels (root mean square), their correlation at least
   :data:`LEAST_CORRELATION`, and the gain at most :data:`MOST_GAIN`. Hashes do not suffice: near
   ones have 0.8 % of the pairs of lesions, and a quarter of those of slices of aligned heads.

A picture that spans fewer than :data:`LEAST_SPAN` grey levels is first stretched to so many: where
all pictures are dark, as of 12 bits in files of 16, any two differ little. What is left of the
difference of aligned phantom heads is a twenty-fourth of what they span, or more (120 of them).

Measured on 25,131 phantom lesions of 64 pixels: of 3.2·10⁸ pairs of different lesions none are
copies by this rule (the nearest leave 2.7 grey levels), and of the pairs of views of one lesion
one; so before pale ones were stretched, and since then none of 2,501, of which 9 % are. On 502
others all copies at JPEG quality 50, at half the size and quality 75, turned by 90°, and 5 %
brighter were found, on 86 also since then.

Copies of a few dozen pixels at low quality are often missed; so are some that are 20 % brighter,
where highlights are cut off, half of those cropped by 3 %, and nearly all that were cropped more,
turned by other angles, blurred or painted over.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

READ_SIZE = 32  # pixels along each side at which pictures are compared
MOST_BITS = 10
MOST_RESIDUAL = 2.0  # grey levels of 255
MOST_GAIN = 1.5  # between the contrasts; a pale lesion looks like a faded picture of a dark one
LEAST_CORRELATION = 0.95
LEAST_SPAN = 64  # grey levels; JPEG leaves too much of what is paler to stretch more
LEAST_CONTRAST = 1.0  # SD in grey levels; an emptier picture looks like any other empty one
DESCRIPTION = (16, 16)

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601
_HASHED = 8
_ROWS, _COLUMNS = 64, 4096  # of hashes compared at once: 2 MB, which a cache holds
_PAIRS = 4096  # whose descriptions are compared at once
_SYMMETRIES = [(turn, rows, columns) for turn in (0, 1) for rows in (0, 1) for columns in (0, 1)]


def describe(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Lowest frequencies of a picture's luminance, without the mean.

    Parameters
    ----------
    picture : (S, S, C) uint8
        S at least 16.

    Returns
    -------
    (16, 16) float32
        Coefficients of the orthonormal DCT-II divided by S, the first one 0: the root of the sum
        of their squares is the standard deviation in grey levels of the picture without its finer
        detail, stretched where it spans few. All 0 of one without contrast.
    """
    size, _, channels = picture.shape
    grey = picture @ _LUMA if channels == 3 else picture[..., 0].astype(np.float32)
    low = dctn(grey, norm="ortho")[: DESCRIPTION[0], : DESCRIPTION[1]] / size
    low[0, 0] = 0
    if np.linalg.norm(low) < LEAST_CONTRAST:
        return np.zeros(DESCRIPTION, np.float32)
    return (low * max(1, LEAST_SPAN / np.ptp(grey))).astype(np.float32)


def is_empty(picture: NDArray[np.uint8]) -> bool:
    """Whether a picture (S, S, C) has so little contrast that its pixels may be any other's."""
    return bool(picture.std(axis=(0, 1)).max() < LEAST_CONTRAST)


def picture_hashes(described: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Hash of each picture under the eight symmetries of the square, the first of them identity.

    Parameters
    ----------
    described : (N, 16, 16) float32

    Returns
    -------
    (N, 8) uint64
    """
    low = described[:, :_HASHED, :_HASHED]
    hashes = np.empty((len(low), len(_SYMMETRIES)), np.uint64)
    for place in range(len(_SYMMETRIES)):
        signs = (_turn(low, place) > 0).reshape(len(low), _HASHED**2)
        hashes[:, place] = np.packbits(signs, axis=1).view(np.uint64)[:, 0]
    return hashes


def near_hashes(
    hashes: NDArray[np.uint64], most: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
    """Find all pairs of pictures whose hashes differ in at most so many bits.

    All are compared, in blocks of constant size: for 25,000 pictures eight times 3·10⁸ pairs.

    Parameters
    ----------
    hashes : (N, K) uint64
        Of each picture under K symmetries, the first of them identity.
    most : int
        Of 64 bits.

    Yields
    ------
    (P,) int64, (P,) int64, int
        Pictures i < j and a symmetry s for which ``hashes[i, s]`` is near ``hashes[j, 0]``.
    """
    upright = np.ascontiguousarray(hashes[:, 0])
    for top in range(0, len(hashes), _ROWS):
        for left in range(top, len(hashes), _COLUMNS):
            columns = upright[left : left + _COLUMNS]
            for symmetry in range(hashes.shape[1]):
                rows = hashes[top : top + _ROWS, symmetry, None]
                i, j = np.nonzero(np.bitwise_count(rows ^ columns) <= most)
                i, j = i + top, j + left
                if len(i) and (upper := i < j).any():
                    yield i[upper], j[upper], symmetry


def are_copies(
    first: NDArray[np.float32], second: NDArray[np.float32], symmetry: int = 0
) -> NDArray[np.bool_]:
    """Whether pictures are the same but for brightness, contrast and a small difference.

    With standard deviations a and b and correlation r, the best gain and offset leave
    min(a, b) √(1 − r²) of the paler one.

    Parameters
    ----------
    first, second : (P, 16, 16) float32
    symmetry : int
        Under which the first is taken.
    """
    first = _turn(first, symmetry).reshape(len(first), math.prod(DESCRIPTION))
    second = second.reshape(len(second), math.prod(DESCRIPTION))
    a, b = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
    r = np.einsum("pk,pk->p", first, second) / np.maximum(a * b, 1e-12)
    left = np.minimum(a, b) * np.sqrt(np.clip(1 - r**2, 0, None))
    like = np.maximum(a, b) <= MOST_GAIN * np.minimum(a, b)
    return like & (left <= MOST_RESIDUAL) & (r >= LEAST_CORRELATION)


def sets_of_copies(
    described: NDArray[np.float32], pixels: Sequence[Hashable]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the sets of equal pictures, and of pictures that are copies or joined through some.

    Parameters
    ----------
    described : (N, 16, 16) float32
    pixels : sequence of N hashable
        Equal where the pixels are.

    Returns
    -------
    (N,) int64, (N,) int64
        For each picture, the number of its set of equal ones, and of copies.
    """
    numbers: dict[Hashable, int] = {}
    equal = np.array([numbers.setdefault(key, len(numbers)) for key in pixels], dtype=np.int64)
    _, first = np.unique(equal, return_index=True)  # one picture of each set, in its number's place
    distinct = described[first]
    contrast = np.linalg.norm(distinct, axis=(1, 2))
    chosen = np.flatnonzero(contrast >= LEAST_CONTRAST)
    distinct = distinct[chosen]
    labels = np.arange(len(distinct))
    for i, j, symmetry in near_hashes(picture_hashes(distinct), MOST_BITS):
        # Where all are copies of one another, no pair need be looked at twice.
        apart = np.flatnonzero(labels[i] != labels[j])
        for start in range(0, len(apart), _PAIRS):
            some = apart[start : start + _PAIRS]
            one, other = i[some], j[some]
            copies = are_copies(distinct[one], distinct[other], symmetry)
            if copies.any():
                labels = _join(labels, one[copies], other[copies])
    near = np.arange(len(first))
    near[chosen] = chosen[labels] if len(chosen) else chosen
    return equal, near[equal]


def _turn(low: NDArray[np.float32], symmetry: int) -> NDArray[np.float32]:
    """Coefficients (N, F, F) of pictures that are transposed, then mirrored by rows and columns."""
    transposed, rows, columns = _SYMMETRIES[symmetry]
    low = low.transpose(0, 2, 1) if transposed else low
    odd = np.where(np.arange(low.shape[1]) % 2, np.float32(-1), np.float32(1))
    if rows:
        low = low * odd[:, None]
    return low * odd if columns else low


def _join(labels: NDArray[np.int64], i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray:
    """Components after more edges: for each node, the index of the first of its component."""
    n = len(labels)
    one, other = np.concatenate([np.arange(n), i]), np.concatenate([labels, j])
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(n, n))
    _, numbers = connected_components(graph, directed=False)
    _, first = np.unique(numbers, return_index=True)
    return first[numbers]
