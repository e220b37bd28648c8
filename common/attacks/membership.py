"""Was a person among those that a model was trained on? Membership inference, person by person.

Every attack gives each image a score, higher for training images, and a person's score is the mean
over the person's images. Persons in training are compared with persons of the same hospitals and
classes who were not, so that no mix of labels or scanners tells the groups apart.

- **Loss threshold** (Yeom, Giacomelli, Fredrikson & Jha 2018, *Privacy Risk in Machine Learning*,
  CSF, arXiv 1709.01604, section 3): log p of the true class, minus the loss. A model that overfits
  has a lower loss on what it was trained on.
- **LiRA**, offline (Carlini et al. 2022, *Membership Inference Attacks From First Principles*, IEEE
  S&P, arXiv 2112.03570, section V): φ = log(p / (1 - p)) of the true class is compared with what
  shadow models say of the same image that were not trained on it. Some images are easy for every
  model; the loss threshold takes them for members.
- **Update**: how much lower the loss is after a site's training than before it (of the attacks of
  Nasr, Shokri & Houmansadr 2019, IEEE S&P, arXiv 1812.00910, the one that needs no training).
- **Distance** to the nearest generated image, of a generator (GAN-Leaks: Chen, Yu, Zhang & Fritz
  2020, CCS, arXiv 1909.03935, section 4.2, full black-box).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.evaluation.resampling import resampling_weights
from common.evaluation.statistics import LEAST_PERSONS, Repeated
from common.seeding import derive_seed

CHANCE = 0.5  # AUROC of an attack that knows nothing
RATES = (0.01, 0.1)  # of false positives at which the true positives are told
DRAWS, PERMUTATIONS = 2000, 500
# Shadow models without an image from which on its own variance is used: Carlini et al., section
# VI-D, find one variance for all better for fewer.
OWN_VARIANCE = 64
_EPS = float(np.finfo(np.float64).eps)


def probability_of_truth(probabilities: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return what a model gives the true class, (N,), in the open interval (0, 1).

    Parameters
    ----------
    probabilities : (N, K) or (N,) floats
        Of every class; or, of two, of class 1.
    labels : (N,) integers
    """
    p, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim == 1:
        p = np.stack([1 - p, p], axis=1)
    return np.clip(np.take_along_axis(p, labels[:, None], axis=1)[:, 0], _EPS, 1 - _EPS)


def loss_scores(truth: ArrayLike) -> NDArray[np.float64]:
    """Score images by minus their loss, log p (Yeom et al. 2018)."""
    return np.log(np.asarray(truth, np.float64))


def confidence(truth: ArrayLike) -> NDArray[np.float64]:
    """Return φ = log(p / (1 - p)), nearly normal over models (Carlini et al. 2022, eq. 3)."""
    truth = np.asarray(truth, np.float64)
    return np.log(truth) - np.log1p(-truth)


def halves(
    strata: Sequence[Hashable], shadows: int, seed: int, axes: str = "shadows"
) -> NDArray[np.bool_]:
    """Choose whom each shadow model is trained on: a random half, and then the other half.

    So every person is outside exactly half of the models.

    Parameters
    ----------
    strata : sequence of length P
        Of each person what every half has equally much of, such as class.
    shadows : int
        Even.
    seed : int
    axes : str
        A further name in the seed.

    Returns
    -------
    (shadows, P) of bool
    """
    if shadows % 2:
        raise ValueError(f"{shadows} shadow models: accepted are even numbers")
    rng = np.random.default_rng(derive_seed(seed, purpose=axes))
    chosen = np.zeros((shadows, len(strata)), bool)
    known: dict[Hashable, int] = {}
    groups = np.array([known.setdefault(one, len(known)) for one in strata], int)
    for pair in range(0, shadows, 2):
        more = 0  # of odd strata, the larger half goes to either in turn
        for group in range(len(known)):
            people = rng.permutation(np.flatnonzero(groups == group))
            size = (len(people) + more) // 2
            more ^= len(people) % 2
            chosen[pair, people[:size]] = True
        chosen[pair + 1] = ~chosen[pair]
    return chosen


def lira(target: ArrayLike, shadows: ArrayLike, trained: ArrayLike) -> NDArray[np.float64]:
    """Score images by how much surer the model is of them than models that never saw them.

    Parameters
    ----------
    target : (N,) floats
        φ of the attacked model; see :func:`confidence`.
    shadows : (S, N) floats
        φ of the shadow models.
    trained : (S, N) of bool
        Which image each of them was trained on.

    Returns
    -------
    (N,) floats
        (φ - μ_out) / σ_out, which orders as 1 - P(Z > φ), Z ~ N(μ_out, σ²_out), does. σ is one for
        all images where any has fewer than :data:`OWN_VARIANCE` models.

    Raises
    ------
    ValueError
        An image is in the training set of all models.
    """
    shadows, out = np.asarray(shadows, np.float64), ~np.asarray(trained, bool)
    count = out.sum(axis=0)
    if not count.all():
        raise ValueError("every image must be outside the training set of a shadow model")
    mean = np.where(out, shadows, 0).sum(axis=0) / count
    squares = np.where(out, (shadows - mean) ** 2, 0)
    if count.min() >= OWN_VARIANCE:
        variance = squares.sum(axis=0) / (count - 1)
    else:
        variance = np.full(len(mean), squares.sum() / max(1, (count - 1).sum()))
    return (np.asarray(target, np.float64) - mean) / np.sqrt(np.maximum(variance, 1e-12))


def by_person(
    scores: ArrayLike, persons: Sequence[Hashable]
) -> tuple[list[Hashable], NDArray[np.float64]]:
    """Return each person and the mean score of the person's images, in order of appearance."""
    known: dict[Hashable, int] = {}
    number = np.array([known.setdefault(one, len(known)) for one in persons], int)
    sums = np.bincount(number, np.asarray(scores, np.float64), minlength=len(known))
    return list(known), sums / np.bincount(number, minlength=len(known))


def judge(members: ArrayLike, others: ArrayLike, *, seed: int = 0) -> dict[str, Any]:
    """Measure how well scores tell persons in training from others.

    Parameters
    ----------
    members, others : (N,) floats
        One score a person.
    seed : int
        Of bootstrap and permutations.

    Returns
    -------
    dict
        ``persons`` (``in``, ``out``); ``baseline`` of the AUC; and, None of fewer than 5 a group,
        as it would tell of single ones: ``auc`` (``mean``, ``low``, ``high``: the 95 % interval
        over persons); ``tpr``, by false positive rate, likewise, None where so few others cannot
        show the rate; ``advantage``, the largest TPR - FPR, which is above 0 by chance alone, and
        ``advantage_by_chance``, its mean over permutations of who is in.
    """
    members, others = np.asarray(members, np.float64), np.asarray(others, np.float64)
    counts = (len(members), len(others))
    empty = {"mean": None, "low": None, "high": None}
    found: dict[str, Any] = {
        "persons": dict(zip(("in", "out"), counts, strict=True)),
        "auc": empty,
        "tpr": {f"{rate:g}": None for rate in RATES},
        "advantage": None,
        "advantage_by_chance": None,
        "baseline": CHANCE,
    }
    if min(counts) < LEAST_PERSONS:
        return found
    scores, truth = np.concatenate([members, others]), np.repeat([True, False], counts)
    rng = np.random.default_rng(derive_seed(seed, purpose="membership"))
    once = np.ones((1, len(truth)))
    draws = np.concatenate([once, resampling_weights(truth, DRAWS, rng)])
    tpr, fpr = roc(scores, truth, draws)
    both = tuple((1 / 2, n) for n in counts)
    found["auc"] = _interval(_area(tpr, fpr), both)
    found["tpr"] = {
        f"{rate:g}": _interval(_tpr_at(tpr, fpr, rate), ((1.0, counts[0]),))
        if rate * counts[1] >= 1
        else None
        for rate in RATES
    }
    shuffled = np.stack([rng.permutation(truth) for _ in range(PERMUTATIONS)], axis=1)
    by_chance = roc(scores, shuffled, np.ones((PERMUTATIONS, len(truth))))
    found["advantage"] = float((tpr[:, 0] - fpr[:, 0]).max())
    found["advantage_by_chance"] = float((by_chance[0] - by_chance[1]).max(axis=0).mean())
    return found


def roc(scores: NDArray, truth: NDArray, weights: NDArray) -> tuple[NDArray, NDArray]:
    """Return true and false positive rates (T, D) from the highest threshold down.

    Parameters
    ----------
    scores : (N,) floats
    truth : (N,) or (N, D) of bool
    weights : (D, N) floats
        How often each person counts in each of D samples.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(0, 1 + np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)))
    w, truth = weights.T[order].astype(float), truth.reshape(len(scores), -1)[order]
    hits, alarms = (
        np.concatenate([np.zeros((1, w.shape[1])), np.cumsum(w * one, axis=0)])[ends]
        for one in (truth, ~truth)
    )
    return hits / hits[-1], alarms / alarms[-1]


def _area(tpr: NDArray, fpr: NDArray) -> NDArray:
    return np.trapezoid(tpr, fpr, axis=0)


def _tpr_at(tpr: NDArray, fpr: NDArray, rate: float) -> NDArray:
    return np.where(fpr <= rate + 1e-12, tpr, 0).max(axis=0)


def _interval(draws: NDArray, strata: tuple[tuple[float, int], ...]) -> dict[str, float | None]:
    """Interval over persons, as every other of the project (`common.evaluation.statistics`)."""
    value, rest = float(draws[0]), {0: draws[1:]}
    record = Repeated({0: value}, rest, bounds=(0.0, 1.0), strata=strata).record()
    return {key: record[key] for key in ("mean", "low", "high")}
