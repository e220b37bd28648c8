"""Whether a generator reproduces its training images more closely than unseen ones.

An image is projected into the generator's latent space (`common.training.projector`), and its
distance to what is reached tells how well the generator can make it. Alone that number means
little: it depends on the extractor, on the space and on how long was searched. So it is measured
for three groups with the same search:

- **training** images,
- **held-out** images of other people at the same hospitals, as many of each hospital and class, so
  that no mix of scanners or diagnoses tells the groups apart (:func:`choose_matched`),
- **generated** images, which the generator can make by definition: what is left of their distances
  is what the search cannot close.

A generator that has learnt the distribution makes training and held-out images equally well; one
that memorizes makes its training images better (Webster, Rabin, Simon & Jurie 2019, *Detecting
Overfitting of Deep Generative Networks via Latent Recovery*, CVPR, arXiv 1901.03396). What decides
here is the AUROC,

    A = P(d_training < d_held-out) + ½ P(d_training = d_held-out),

with its 95 % interval over persons: a lower end above 0.5 means that it memorizes. Their criteria
stand beside it: the normalized gap of the medians, (m_held-out - m_training) / m_held-out, and the
Kolmogorov-Smirnov test.

Of several seeds an image's distance is the smallest. It estimates the distance to the nearest
image that the generator can make, a minimum over latents: every search ends at or above it, and
the one that came closest says most. All groups must have the same seeds, as more of them lower the
minimum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.evaluation.resampling import resampling_weights, weighted_metrics
from common.evaluation.statistics import LEAST_PERSONS, Repeated
from common.seeding import derive_seed

TRAINING, HELD_OUT, GENERATED = GROUPS = ("training", "held-out", "generated")
MEMORIZES, NOT_SEPARATED, NOT_JUDGED = "memorizes", "not separated", "not judged"
CHANCE = 0.5  # AUROC of two groups alike
DRAWS = 2000  # bootstrap samples


def choose_matched(
    training: Mapping[str, Sequence[Hashable]],
    held_out: Mapping[str, Sequence[Hashable]],
    count: int,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose equally many training and held-out images of each stratum, in its share of them.

    Parameters
    ----------
    training, held_out : mapping
        ``stratum``: of each image what must be matched, such as hospital and class; ``person``:
        who it is of. Images of persons who have none yet are taken first.
    count : int
        Images a group, at most: of each stratum there are as many as the smaller group has.
    seed : int

    Returns
    -------
    training, held_out : (n,) int64
        Indices; element k of both is of the same stratum.
    """
    rng = np.random.default_rng(derive_seed(seed, purpose="matched"))
    queues = [_by_stratum(group, rng) for group in (training, held_out)]
    # The j-th of m places stands at (j + ½) / m, so that any number of first places is shared out
    # in proportion (Webster & Sainte-Laguë).
    places = []
    for order, stratum in enumerate(queues[0]):
        m = min(len(queue[stratum]) for queue in queues)
        places += [((j + 0.5) / m, order, stratum, j) for j in range(m)]
    chosen = [(stratum, j) for _, _, stratum, j in sorted(places, key=lambda p: p[:2])[:count]]
    first, second = (
        np.array([queue[stratum][j] for stratum, j in chosen], np.int64) for queue in queues
    )
    return first, second


def _by_stratum(
    group: Mapping[str, Sequence[Hashable]], rng: np.random.Generator
) -> defaultdict[Hashable, list[int]]:
    """Indices of each stratum in random order, those of each person's first image in front."""
    seen: defaultdict[Hashable, int] = defaultdict(int)
    ranked: defaultdict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    for index in rng.permutation(len(group["stratum"])).tolist():
        person = group["person"][index]
        ranked[group["stratum"][index]].append((seen[person], index))
        seen[person] += 1
    found: defaultdict[Hashable, list[int]] = defaultdict(list)
    for stratum, pairs in ranked.items():
        found[stratum] = [index for _, index in sorted(pairs, key=lambda pair: pair[0])]
    return found


def judge(
    distances: Mapping[str, ArrayLike],
    persons: Mapping[str, Sequence[Hashable]],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge whether training images are reproduced more closely than held-out ones.

    Parameters
    ----------
    distances : mapping of str to (N,) or (N, S) floats
        Of ``training``, ``held-out`` and, if there are any, ``generated`` images, by seed.
    persons : mapping of str to sequence
        Of each image, who it is of; by default each is of another person. No person may be in both
        training and held-out images.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``groups``: of each the number of ``images`` and ``persons``, and the ``median`` (``mean``,
        ``low``, ``high``; None of fewer than 5 persons, of whom it would tell). ``auroc``
        (``mean``, ``low``, ``high``), ``gap``, ``ks`` (``statistic``, ``p``: of each person's
        median distance, as the test takes its values for independent), all None where training or
        held-out images are of fewer than 5 persons; ``verdict`` (``memorizes``, ``not separated``
        or ``not judged``) and ``reason`` in words.
    """
    best = {name: _best(values) for name, values in distances.items()}
    who = {
        name: _numbers(persons[name] if name in persons else range(len(values)))
        for name, values in best.items()
    }
    found: dict[str, Any] = {
        "groups": {
            name: {
                "images": len(values),
                "persons": len(set(who[name])),
                "median": _median(values, who[name], seed),
            }
            for name, values in best.items()
        }
    }
    near, far = best[TRAINING], best[HELD_OUT]
    counts = {name: found["groups"][name]["persons"] for name in (TRAINING, HELD_OUT)}
    few = tuple(name for name, number in counts.items() if number < LEAST_PERSONS)
    found |= {"auroc": None, "gap": None, "ks": None}
    if not few:
        found["auroc"] = _auroc(best, who, counts, seed)
        found["gap"] = float(1 - np.median(near) / np.median(far)) if np.median(far) > 0 else None
        found["ks"] = _kolmogorov_smirnov(best, who)
    return found | _verdict(found["auroc"], few)


def _verdict(auroc: Mapping[str, Any] | None, few: Sequence[str]) -> dict[str, str]:
    if auroc is None or auroc["low"] is None:
        words = f"fewer than {LEAST_PERSONS} persons of {' and '.join(few)} images"
        return {"verdict": NOT_JUDGED, "reason": words}
    told = f"AUROC {auroc['mean']:.2f} (95 % interval {auroc['low']:.2f} to {auroc['high']:.2f})"
    if auroc["low"] > CHANCE:
        words = "training images are reproduced more closely than held-out ones"
        return {"verdict": MEMORIZES, "reason": f"{words}: {told}"}
    words = "no evidence that training images are reproduced more closely than held-out ones"
    return {"verdict": NOT_SEPARATED, "reason": f"{words}: {told}"}


def _best(values: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values, np.float64)
    return values if values.ndim == 1 else values.min(axis=1)


def _numbers(persons: Sequence[Hashable]) -> NDArray[np.int64]:
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(one, len(known)) for one in persons], np.int64)


def _weights(labels: NDArray, persons: NDArray, seed: int) -> NDArray:
    rng = np.random.default_rng(derive_seed(seed, purpose="authenticity"))
    return resampling_weights(labels, DRAWS, rng, persons)


def _interval(
    value: float, draws: NDArray, counts: Sequence[int], **options: Any
) -> dict[str, float | None]:
    """Interval over persons, as every other of the project (`common.evaluation.statistics`)."""
    strata = tuple((1 / len(counts), n) for n in counts)
    record = Repeated({0: value}, {0: draws}, strata=strata, **options).record()
    return {key: record[key] for key in ("mean", "low", "high")}


def _median(values: NDArray, persons: NDArray, seed: int) -> dict[str, float | None]:
    people = len(set(persons))
    if people < LEAST_PERSONS:
        return {"mean": None, "low": None, "high": None}
    draws = weighted_median(values, _weights(np.zeros(len(values), int), persons, seed))
    return _interval(float(np.median(values)), draws, (people,))


def _auroc(
    best: Mapping[str, NDArray],
    who: Mapping[str, NDArray],
    counts: Mapping[str, int],
    seed: int,
) -> dict[str, float | None]:
    from scipy.stats import rankdata

    both = np.concatenate([best[TRAINING], best[HELD_OUT]])
    is_training = np.repeat([1, 0], [len(best[TRAINING]), len(best[HELD_OUT])])
    persons = np.concatenate([who[TRAINING], who[HELD_OUT] + len(both)])  # nobody is in both
    near = 1 - rankdata(both) / (len(both) + 1)  # in (0, 1), as the metrics want probabilities
    once = np.ones((1, len(both)))
    weights = np.concatenate([once, _weights(is_training, persons, seed)])
    value, *draws = weighted_metrics(is_training, near, weights)["auroc"]
    options = {"bounds": (0.0, 1.0)}
    return _interval(float(value), np.array(draws), tuple(counts.values()), **options)


def _kolmogorov_smirnov(
    best: Mapping[str, NDArray], who: Mapping[str, NDArray]
) -> dict[str, float]:
    from scipy.stats import ks_2samp

    samples = (
        [np.median(best[name][who[name] == one]) for one in np.unique(who[name])]
        for name in (TRAINING, HELD_OUT)
    )
    test = ks_2samp(*samples)
    return {"statistic": float(test.statistic), "p": float(test.pvalue)}


def weighted_median(values: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Medians (D,) of values (N,), each repeated as often as a row of weights (D, N) says."""
    order = np.argsort(values, kind="stable")
    until = np.cumsum(weights[:, order], axis=1, dtype=float)  # (D, N)
    half = until[:, -1:] / 2
    lower, upper = (until >= half).argmax(axis=1), (until > half).argmax(axis=1)
    return (values[order][lower] + values[order][upper]) / 2
