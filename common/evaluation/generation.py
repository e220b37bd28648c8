"""Distances between sets of generated and of real images, from an extractor's features.

Which network made the features decides what a distance sees, so a result must name it:
`judge_features` knows features only, its caller adds `Extractor.identity`, and `require_extractor`
refuses a result without. Features are float64, shape (N, D). Numbers depend on N as well: the
Fréchet distance is biased upwards and recall downwards by few images, so compare at equal numbers,
and with the distance between real images and other real ones.

The default extractor is trained on phantoms made by code. For pictures of a real cohort, see what
`common.evaluation.extractor` says of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import FedscanError
from common.seeding import derive_seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SUBSETS = 100  # of the kernel distance
SUBSET_SIZE = 250
NEIGHBOURS = 3  # Kynkäänniemi et al. (2019)
DENSITY_NEIGHBOURS = 5  # Naeem et al. (2020)
PATH_STEP = 1e-4  # epsilon of Karras et al. (2019)

_BLOCK = 512  # rows of a distance matrix at once


@dataclass(frozen=True)
class Moments:
    """Count, mean and covariance of features: all that a Fréchet distance needs of a site.

    Parameters
    ----------
    count : int
    mean : np.ndarray
        float64, shape (D,).
    covariance : np.ndarray
        float64, shape (D, D), with divisor ``count - 1``; zero for a single image.
    """

    count: int
    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Moments of features (N, D), N at least 1."""
        features = np.asarray(features, dtype=np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred / max(1, len(features) - 1))

    def raw(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the means of x, shape (D,), and of x xᵀ, (D, D): sums over images add up."""
        scatter = (self.count - 1) * self.covariance / self.count
        return self.mean, scatter + np.outer(self.mean, self.mean)

    @classmethod
    def of_raw(cls, count: int, mean: np.ndarray, second: np.ndarray) -> Moments:
        """Return the moments of what :meth:`raw` gives, of ``count`` images."""
        scatter = second - np.outer(mean, mean)
        return cls(count, mean, scatter * count / max(1, count - 1))

    @classmethod
    def merged(cls, parts: Sequence[Moments]) -> Moments:
        """Moments of all images together, exactly (Chan, Golub & LeVeque 1979)."""
        count = sum(part.count for part in parts)
        mean = sum(part.count * part.mean for part in parts) / count
        scatter = sum(
            (part.count - 1) * part.covariance
            + part.count * np.outer(part.mean - mean, part.mean - mean)
            for part in parts
        )
        return cls(count, mean, scatter / max(1, count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of the two Gaussians with these moments.

    |μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½), Dowson & Landau (1982); on features of images it is
    what Heusel et al. (2017) call FID. The trace of the root is the sum of the singular values of
    Σa^½ Σb^½, with symmetric roots from eigenvalues: nothing is inverted, so covariances may lack
    rank. torchmetrics' takes eigenvalues of the product Σa Σb, which is not symmetric, and wants
    to run the extractor itself.
    """
    root = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    means = np.square(a.mean - b.mean).sum()
    distance = means + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root
    return float(max(distance, 0.0))  # rounding may take it under zero


def kernel_distance(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    seed: int = 0,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
) -> tuple[float, float]:
    """Kernel distance (KID): the squared maximum mean discrepancy, without bias.

    The kernel is (x·y / D + 1)³, the estimate the mean over random subsets of at most
    ``subset_size`` images of either set (Bińkowski et al. 2018). It may be slightly negative.

    Returns
    -------
    mean, standard_error : float
        The error is over subsets: it tells how well the mean over subsets is known, not how it
        would vary with other images. NaN with one subset, or where each holds all images.
    """
    import torch
    from torchmetrics.image.kid import poly_mmd  # its class draws from the global generator

    size = min(subset_size, len(real), len(generated))
    rng = np.random.default_rng(derive_seed(seed, purpose="kernel distance"))
    values = []
    for _ in range(subsets):
        pick_real = rng.choice(len(real), size, replace=False)
        pick_generated = rng.choice(len(generated), size, replace=False)
        pair = torch.from_numpy(real[pick_real]), torch.from_numpy(generated[pick_generated])
        values.append(float(poly_mmd(*pair)))
    varied = subsets > 1 and size < max(len(real), len(generated))
    error = np.std(values, ddof=1) / np.sqrt(subsets) if varied else np.nan
    return float(np.mean(values)), float(error)


def precision_recall(
    real: np.ndarray, generated: np.ndarray, *, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2).

    A set's manifold is the union of balls about its images, each reaching to its k-th nearest
    neighbour in the set. Precision is the share of generated images in the real manifold, recall
    the share of real images in the generated one. Wild pictures lie far apart, so their balls are
    large and recall is high: read it where precision is not near 0.
    """
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    inside_real, inside_generated = [], np.zeros(len(real), dtype=bool)
    for rows, distances in distances_by_block(generated, real):
        inside_real.append((distances <= real_radii).any(axis=1))
        inside_generated |= (distances <= generated_radii[rows, None]).any(axis=0)
    return float(np.concatenate(inside_real).mean()), float(inside_generated.mean())


def density_coverage(
    real: np.ndarray, generated: np.ndarray, *, k: int = DENSITY_NEIGHBOURS
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, eq. 4 and 5), which outliers sway less.

    Density is the mean number of real balls about a generated image, over k: 1 is expected for
    sets of one distribution, and it may exceed 1. Coverage is the share of real balls that hold
    a generated image.
    """
    radii = _radii(real, k)
    hits, covered = 0, np.zeros(len(real), dtype=bool)
    for _, distances in distances_by_block(generated, real):
        inside = distances <= radii
        hits += int(inside.sum())
        covered |= inside.any(axis=0)
    return hits / (k * len(generated)), float(covered.mean())


def nearest_neighbours(training: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest training image, shape (N,), and which one that is, shape (N,)."""
    nearest = [(d.min(axis=1), d.argmin(axis=1)) for _, d in distances_by_block(images, training)]
    distances, indices = zip(*nearest, strict=True)
    return np.concatenate(distances), np.concatenate(indices)


def nearest_points(
    queries: np.ndarray, points: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the points nearest to each query, by Euclidean distance, the nearest first.

    Parameters
    ----------
    queries : (Q, D) floats
    points : (N, D) floats
    count : int
        K; of fewer points, all are returned.

    Returns
    -------
    indices, distances : (Q, K) int64 and float64
    """
    found = []
    for _, distances in distances_by_block(queries, points):
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        found.append((order, np.take_along_axis(distances, order, 1)))
    indices, distances = zip(*found, strict=True)
    return np.concatenate(indices), np.concatenate(distances)


def perceptual_path_length(
    synthesize: Callable[[Tensor], Tensor],
    sample_w: Callable[[int, torch.Generator], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    count: int = 1000,
    seed: int = 0,
    epsilon: float = PATH_STEP,
    batch: int = 32,
    discard: float = 0.01,
) -> float:
    """Perceptual path length in W (Karras et al. 2019, section 4.1): how evenly images change.

    The mean of d(g(lerp(w1, w2; t)), g(lerp(w1, w2; t + ε))) / ε² with t uniform in [0, 1).

    Parameters
    ----------
    synthesize : callable
        Maps latents, as `sample_w` draws them, to images (N, C, R, R). Its noise must be fixed,
        or noise is all that is measured.
    sample_w : callable
        Given a number and a generator, that many latents w, any shape beyond the first axis.
    distance : callable
        Given two batches of images, their distances (N,): `Extractor.perceptual_distance`.
    discard : float
        Share of the values dropped at either end before the mean, as all published numbers do.

    Notes
    -----
    torchmetrics has this as well, but rounds images through [0, 255], where a step of 1e-4 drowns,
    and draws from the global generator.
    """
    import torch

    generator = torch.Generator().manual_seed(derive_seed(seed, purpose="path length"))
    values = []
    with torch.no_grad():
        for start in range(0, count, batch):
            n = min(batch, count - start)
            w1, w2 = sample_w(n, generator), sample_w(n, generator)
            t = torch.rand(n, generator=generator).to(w1).reshape(n, *[1] * (w1.ndim - 1))
            near = synthesize(torch.lerp(w1, w2, t))
            far = synthesize(torch.lerp(w1, w2, t + epsilon))
            values.append(distance(near, far).double().cpu() / epsilon**2)
    lengths = torch.cat(values).numpy()
    low, high = np.quantile(lengths, [discard, 1 - discard])
    return float(lengths[(lengths >= low) & (lengths <= high)].mean())


def judge_features(generated: np.ndarray, real: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Judge generated images against real ones, by the features of both.

    Parameters
    ----------
    generated, real : np.ndarray
        Features (N, D), of one extractor.
    seed : int
        Decides the subsets of the kernel distance.

    Returns
    -------
    dict
        ``n_real``, ``n_generated``, ``n_features``, ``frechet_distance``, ``kernel_distance``,
        ``kernel_distance_se``, ``precision``, ``recall``, ``density``, ``coverage``. A measure
        that the images are too few for is None, and ``reasons`` says why. The extractor's name is
        missing, so this is not yet a result.
    """
    dimension = real.shape[1]
    fewest = min(len(real), len(generated))
    result: dict[str, Any] = {
        "n_real": len(real),
        "n_generated": len(generated),
        "n_features": dimension,
        **dict.fromkeys(MEASURES),
        "reasons": {},
    }

    def enough(needed: int, *measures: str) -> bool:
        for name in measures if fewest < needed else ():
            result["reasons"][name] = f"needs at least {needed} images of either kind"
        return fewest >= needed

    if enough(dimension + 1, "frechet_distance"):  # else a covariance lacks rank
        distance = frechet_distance(Moments.of(real), Moments.of(generated))
        result["frechet_distance"] = distance
    if enough(2, "kernel_distance", "kernel_distance_se"):
        pair = kernel_distance(real, generated, seed=seed)
        result["kernel_distance"], error = pair
        if np.isnan(error):
            result["reasons"]["kernel_distance_se"] = (
                "a standard error of the kernel distance needs subsets that differ: more than "
                f"{SUBSET_SIZE} images, or more of one kind"
            )
        else:
            result["kernel_distance_se"] = error
    if enough(NEIGHBOURS + 1, "precision", "recall"):
        result["precision"], result["recall"] = precision_recall(real, generated)
    if enough(DENSITY_NEIGHBOURS + 1, "density", "coverage"):
        result["density"], result["coverage"] = density_coverage(real, generated)
    return result


COUNTS = ("n_real", "n_generated", "n_features")
MEASURES = (
    "frechet_distance",
    "kernel_distance",
    "kernel_distance_se",
    "precision",
    "recall",
    "density",
    "coverage",
)


def require_extractor(result: Mapping[str, Any]) -> Mapping[str, str]:
    """Return who made a result's features, and refuse a result that does not say so.

    Raises
    ------
    FedscanError
        The extractor's name or hash is missing: the numbers cannot be compared with any other.
    """
    extractor = result.get("extractor")
    for key in ("name", "hash"):
        if not isinstance(extractor, Mapping) or not isinstance(extractor.get(key), str):
            raise FedscanError(
                f"a result of image generation lacks its extractor's {key}: distances of two "
                "extractors cannot be compared. Judge the images again with this version"
            )
        if not extractor[key]:
            raise FedscanError(f"a result of image generation has an empty extractor's {key}")
    return extractor


def require_one_extractor(hashes: Mapping[str, str]) -> None:
    """Refuse sites that judge pictures with different extractors.

    Parameters
    ----------
    hashes : mapping of str to str
        Of each site's extractor.

    Raises
    ------
    FedscanError
    """
    if len(set(hashes.values())) > 1:
        found = ", ".join(f"{site} {digest[:12]}" for site, digest in hashes.items())
        raise FedscanError(
            f"sites judge pictures with different extractors ({found}), as fedscan's own can be "
            "where it was made on different processors. Copy one extractor's file, with the .json "
            "beside it if there is one, to all sites and name it there: flower-supernode "
            "--node-config 'extractor=\"/path\" …', in a simulation --set model.extractor=/path"
        )


def _root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric root of a positive semidefinite matrix; what rounding made negative is zero."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def distances_by_block(rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances from all rows to all columns, block by block of rows."""
    from scipy.spatial.distance import cdist

    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        yield block, cdist(rows[block], columns)


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Distance of each to its k-th nearest neighbour, itself not counted."""
    # Copied: a view would keep its whole block, and all blocks are the whole matrix.
    return np.concatenate(
        [np.partition(d, k, axis=1)[:, k].copy() for _, d in distances_by_block(features, features)]
    )
