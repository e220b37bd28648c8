"""Maps of images in two dimensions, how mixed two kinds of images are, and who lies beside whom.

A map keeps some of what a space of many dimensions has: principal components the directions of
largest variance, t-SNE (van der Maaten & Hinton 2008, *JMLR* 9:2579) and UMAP (McInnes, Healy &
Melville 2018, arXiv 1802.03426) the near neighbours. In the last two neither distances between
groups nor the groups' sizes mean anything. What decides whether two kinds of images differ is
:func:`separability`, which is computed in the full space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError
from common.evaluation.generation import distances_by_block
from common.seeding import derive_seed

METHODS = ("pca", "tsne", "umap")
FEWEST = 5  # points of a map
COMPONENTS = 50  # to which points are reduced before t-SNE and UMAP, as their authors do
PERPLEXITY, NEIGHBOURS = 30, 15  # of t-SNE and UMAP: the usual ones, fewer of few points
PERMUTATIONS = 999
INSTALL = "pip install umap-learn"


def installed_methods() -> tuple[str, ...]:
    """Name the methods whose packages are installed: all, or all but UMAP."""
    from importlib.util import find_spec

    return METHODS if find_spec("umap") else METHODS[:-1]


def require_method(method: str) -> None:
    """Refuse a method that is unknown, or whose package is not installed.

    Raises
    ------
    ConfigError
    """
    if method not in METHODS:
        raise ConfigError(f"map '{method}': accepted are {', '.join(METHODS)}")
    if method not in installed_methods():
        raise ConfigError(f"map '{method}' needs the package umap-learn: `{INSTALL}`")


def map_points(points: ArrayLike, method: str, *, seed: int = 0) -> NDArray[np.float64]:
    """Map points to two dimensions; the same seed gives the same map on one machine.

    Parameters
    ----------
    points : (N, D) floats
        N at least ``FEWEST``.
    method : {"pca", "tsne", "umap"}
    seed : int
        Of t-SNE and UMAP; principal components need none.

    Returns
    -------
    (N, 2) float64

    Raises
    ------
    ConfigError
        Too few points, an unknown method, or one whose package is not installed.
    """
    from sklearn.decomposition import PCA

    require_method(method)
    points = np.asarray(points, np.float64)
    if len(points) < FEWEST:
        raise ConfigError(f"a map of {len(points)} points: accepted are {FEWEST} or more")
    if method == "pca":
        return PCA(2, svd_solver="full").fit_transform(points)
    reduced = PCA(min(COMPONENTS, *points.shape), svd_solver="full").fit_transform(points)
    state = derive_seed(seed, purpose="map", method=method) % 2**32
    if method == "tsne":
        from sklearn.manifold import TSNE

        # Below a third of the points, or every neighbourhood would hold all of them.
        perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
        tsne = TSNE(2, init="pca", perplexity=perplexity, random_state=state)
        return tsne.fit_transform(reduced).astype(np.float64)
    from umap import UMAP

    near = min(NEIGHBOURS, len(points) - 1)
    found = UMAP(n_components=2, n_neighbors=near, random_state=state, n_jobs=1)
    return found.fit_transform(reduced).astype(np.float64)


@dataclass(frozen=True)
class Separability:
    """How well the nearest neighbour tells two kinds of images apart.

    Parameters
    ----------
    accuracy : float
        Leave-one-out accuracy over both kinds: 0.5 where they are mixed, 1 where they are apart.
    of_first, of_second : float
        Accuracy within each kind.
    chance : (float, float)
        The central 95 % of the accuracy if the kinds are assigned at random, to whole persons.
    count : int
        Images of each kind.
    """

    accuracy: float
    of_first: float
    of_second: float
    chance: tuple[float, float]
    count: int


def separability(
    first: ArrayLike,
    second: ArrayLike,
    *,
    persons: tuple[Sequence[object], Sequence[object]] | None = None,
    seed: int = 0,
) -> Separability:
    """Classifier two-sample test with the nearest neighbour, leaving one out.

    Lopez-Paz & Oquab 2017 (arXiv 1610.06545), section 3; of generators Xu et al. 2018 (arXiv
    1806.07755), who found it the best of seven measures. An accuracy below chance means that images
    of one kind lie nearer to the other than to each other, as copies do.

    Parameters
    ----------
    first, second : (N, D) and (M, D) floats
        For example features of real and of generated images. Of the larger set as many are drawn as
        the smaller one has, at least 2.
    persons : pair of sequences, optional
        Whose each image is, of both kinds; by default each is of another person. Images of one
        person are no neighbours of each other, as they would resemble each other more than two of
        one kind do, and are of one kind in every permutation.
    seed : int
        Of the draw and the permutations.

    Raises
    ------
    ConfigError
        Fewer than two images of a kind.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    count = min(len(first), len(second))
    if count < 2:
        raise ConfigError(f"{len(first)} and {len(second)} images: accepted are 2 or more each")
    rng = np.random.default_rng(derive_seed(seed, purpose="separability"))
    kept = np.sort(rng.choice(len(first), count, replace=False))
    drawn = np.sort(rng.choice(len(second), count, replace=False))
    points = np.concatenate([first[kept], second[drawn]])
    kinds = np.repeat([False, True], count)
    owner = np.arange(2 * count)
    if persons is not None:
        mine, others = (np.unique(np.asarray(p, str), return_inverse=True)[1] for p in persons)
        both = np.concatenate([mine[kept], others[drawn] + len(first)])
        owner = np.unique(both, return_inverse=True)[1]
    distances = np.concatenate([part for _, part in distances_by_block(points, points)])
    distances[owner[:, None] == owner] = np.inf
    nearest = distances.argmin(axis=1)
    right = kinds[nearest] == kinds
    shuffled = _permuted(owner, rng)
    by_chance = (shuffled[:, nearest] == shuffled).mean(axis=1)
    low, high = np.quantile(by_chance, [0.025, 0.975])
    return Separability(
        float(right.mean()),
        float(right[:count].mean()),
        float(right[count:].mean()),
        (float(low), float(high)),
        count,
    )


def _permuted(owner: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Assign kinds to persons at random, (PERMUTATIONS, N), about half of the images to each."""
    sizes = np.bincount(owner)
    order = rng.permuted(np.tile(np.arange(len(sizes)), (PERMUTATIONS, 1)), axis=1)
    middle = np.cumsum(sizes[order], axis=1) - sizes[order] / 2
    kinds = np.empty(order.shape, bool)
    np.put_along_axis(kinds, order, middle > len(owner) / 2, axis=1)
    return kinds[:, owner]
