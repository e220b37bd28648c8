"""Is one person among those whose moments a site has sent? Measured beside what is allowed.

A site may send the mean m and the covariance S of features over n people. Three tests of a person's
features x, all over people drawn at random:

- **distance**, of whoever knows nothing else: a small (x - m)ᵀ S⁻¹ (x - m).
- **mean**, of whoever knows the population's moments μ and Σ: a large (x - μ)ᵀ Σ⁻¹ (m - μ)
  (Homer et al. 2008, *PLoS Genetics* 4:e1000167).
- **likelihood ratio**, of the same attacker: log N(x; m, S) - log N(x; μ, Σ), the most powerful of
  all tests of normal features (Neyman and Pearson) while m and S are over many people.

As each of k independent numbers over n people gives z² = 1 / n (Sankararaman et al. 2009, *Nature
Genetics* 41:965-967), the last has z = √(D (D + 3) / (2 n)), with D means and D (D + 1) / 2
covariances. The area under the ROC curve is Φ(z / √2). `common.disclosure` bounds the last, and
with it all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.seeding import derive_seed

DISTANCE, MEAN, RATIO = ATTACKS = ("distance", "mean", "likelihood ratio")
_RIDGE = 1e-9  # of the mean variance: what a covariance without full rank leaves out stands out


def predicted(features: int, people: int) -> dict[str, float]:
    """Return the areas under the ROC curve that theory has for normal features.

    Parameters
    ----------
    features, people : int
        D and n.

    Returns
    -------
    dict of str to float
        Of each attack, for n well above D.
    """
    from scipy.stats import norm

    d, n = features, people
    powers = {
        DISTANCE: d**1.5 / (math.sqrt(2) * n),
        MEAN: math.sqrt(d / n),
        RATIO: math.sqrt(d * (d + 3) / (2 * n)),
    }
    return {name: float(norm.cdf(z / math.sqrt(2))) for name, z in powers.items()}


def principal(features: NDArray, count: int) -> NDArray[np.float64]:
    """Return the first principal components (N, count) of features (N, D)."""
    centered = features - features.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    return centered @ axes[:count].T


def measure(features: NDArray, people: int, *, trials: int = 200, seed: int = 0) -> dict[str, Any]:
    """Measure the attacks on moments of people drawn at random.

    In each trial n people are sent moments of, n others are not, and the rest stand for the
    population.

    Parameters
    ----------
    features : (N, D) floats
        One row for each person; N at least 3 n.
    people : int
        n.
    trials : int
        At least 2.
    seed : int

    Returns
    -------
    dict
        ``features`` (D), ``people`` (n), ``auc`` of each attack (``mean``, ``low``, ``high``: 95 %
        over trials, for these people), and ``predicted``.

    Raises
    ------
    ValueError
        Fewer than 3 n people.
    """
    count, dimensions = features.shape
    if people < 2 or count < 3 * people:
        raise ValueError(f"{count} people: n = {people} needs {3 * people}, and n at least 2")
    areas: dict[str, list[float]] = {name: [] for name in ATTACKS}
    for trial in range(trials):
        rng = np.random.default_rng(derive_seed(seed, purpose="moments", trial=trial))
        order = rng.permutation(count)
        members, others = features[order[:people]], features[order[people : 2 * people]]
        sent, known = _moments(members), _moments(features[order[2 * people :]])
        for name, area in areas.items():
            a, b = (_score(name, x, sent, known) for x in (members, others))
            area.append(_auc(a, b))
    return {
        "features": dimensions,
        "people": people,
        "auc": {name: _mean(np.array(area)) for name, area in areas.items()},
        "predicted": predicted(dimensions, people),
    }


def _moments(x: NDArray) -> tuple[NDArray, NDArray]:
    """Mean and covariance, which has an inverse."""
    covariance = np.atleast_2d(np.cov(x.T))
    ridge = _RIDGE * np.trace(covariance) / len(covariance) + np.finfo(float).tiny
    return x.mean(axis=0), covariance + ridge * np.eye(len(covariance))


def _score(
    name: str, x: NDArray, sent: tuple[NDArray, NDArray], known: tuple[NDArray, NDArray]
) -> NDArray:
    if name == MEAN:
        return (x - known[0]) @ np.linalg.solve(known[1], sent[0] - known[0])
    near = -_distance(x, *sent)
    return near if name == DISTANCE else near + _distance(x, *known)


def _distance(x: NDArray, mean: NDArray, covariance: NDArray) -> NDArray:
    """Squared Mahalanobis distance, (N,)."""
    return ((x - mean) * np.linalg.solve(covariance, (x - mean).T).T).sum(axis=1)


def _auc(members: NDArray, others: NDArray) -> float:
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(members, others).statistic / (len(members) * len(others)))


def _mean(values: NDArray) -> dict[str, float]:
    from scipy.stats import t

    error = values.std(ddof=1) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1) * error)
    mean = float(values.mean())
    return {"mean": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}
