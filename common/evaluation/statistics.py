"""Means, intervals and paired differences of numbers that are measured once a repetition.

Two things are left to chance in a comparison: which people were tested, and the seed of a
repetition. Where there are predictions, both are resampled. All models are tested on the same
images, and a seed means the same for every model, so the two are crossed, not nested: one draw of
the bootstrap takes K of the K seeds and, at each site, as many persons as there are, with
replacement, and every model is measured on that same draw. A paired difference therefore keeps what
the models share out of its interval.

The interval is the percentile interval (Efron & Tibshirani 1993, *An Introduction to the
Bootstrap*, ch. 13), its levels resampled as in the hierarchical bootstrap (Saravanan, Berman &
Sober 2020, *Neurons, Behavior, Data Analysis, and Theory* 3(5)); for crossed factors this is the
pigeonhole bootstrap (Owen 2007, *Annals of Applied Statistics* 1:386-411), which errs towards
intervals that are too wide. The other way round, K seeds resampled show only (K-1)/K of their
variance: where seeds matter more than people, two or three repetitions make an interval that is too
narrow. Sites are fixed: nothing here speaks of a hospital outside the comparison.

Persons are drawn within classes (:func:`~common.evaluation.resampling.resampling_weights`), so a
class of one person is in every draw just once, and an interval of its recall has no width at all.
What rests on a class of fewer than ``LEAST_PERSONS`` therefore has no interval. Where no class has
fewer, simulated 95 % intervals of balanced accuracy over persons cover the truth as often as this,
with four classes: 0.94 of times with 8 to 12 persons a class and recalls of 0.7 to 0.9, 0.91 where
all recalls are 0.9 and 0.87 where they are 0.95; 0.92 with 5 persons a class and recalls of 0.8.
The recall of one class of 5 persons is covered less often, 0.67 of times at 0.8, since with
5 right of 5 the interval has no width; of 20 persons, 0.92.

A number that is no mean over images, as a distance between two clouds of features, cannot be
resampled over persons. Its interval is Student's t over the K seeds, mean ± t(K − 1) · s / √K. It
says how another repetition on *these* people may turn out, and nothing of other people.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.seeding import derive_seed

LEVEL = 0.95
# n signs, all equal, have the two-sided probability 2 / 2^n: below 0.05 from n = 6 on.
SEEDS_FOR_P = 6
SEEDS_TO_TRUST = 4  # resampling fewer shows less than 3/4 of their variance: (K - 1) / K
ONE = "one repetition: no interval"
# Of a class. With classes of 7, 31, 1, 3, 8, 2 and 1 persons, 95 % intervals of balanced accuracy
# cover the truth 0.6 of times; with four classes of 3 or 4 persons 0.85 to 0.87, of 5 persons 0.92.
LEAST_PERSONS = 5
NO_INTERVAL = f"no interval: fewer than {LEAST_PERSONS} test people of "  # begins a note
WITHOUT = "without "  # the same


def signed_rank_p(differences: ArrayLike) -> float:
    """Two-sided exact p of Wilcoxon's signed-rank test (1945, *Biometrics Bulletin* 1:80-83).

    p = min(1, 2 · P(W ≤ min(W+, W-))), where W± sums the ranks of |d| over one sign and P takes all
    2^n patterns of signs as equally likely. Ties share their mean rank; differences of zero are
    left out, as Wilcoxon does, and where there is nothing else p is 1.

    The test asks whether chance in training alone explains the differences on these test images; it
    does not speak of other people.
    """
    from scipy.stats import rankdata

    # Metrics move in steps of 1/n: equal steps must tie, however their floats were rounded.
    d = np.round(np.asarray(differences, dtype=float), 12)
    d = d[d != 0]
    # SciPy's wilcoxon is exact with ties by permutation only, a second a test at 13 seeds. Twice
    # a rank is whole, so the patterns with a given sum can be counted rank by rank instead.
    ranks = (2 * rankdata(np.abs(d))).astype(int)
    share = np.ones(1)  # of the patterns, by their doubled sum of ranks
    for rank in ranks:
        share = (np.pad(share, (0, rank)) + np.pad(share, (rank, 0))) / 2
    smaller = min(ranks[d > 0].sum(), ranks[d < 0].sum())
    return float(min(1.0, 2 * share[: smaller + 1].sum()))


@dataclass(frozen=True)
class Repeated:
    """A number measured once a repetition, and what it becomes on resampled persons.

    Parameters
    ----------
    values : dict of int to float
        Seed to value; a seed with an undefined value is absent.
    resampled : dict of int to (D,) floats
        Seed to the value on each bootstrap sample of the persons; may lack seeds.
    missing : str
        Why there is no value, in words; empty where there is one.
    sites : tuple of str
        Whose mean it is, of a mean over sites.
    without : tuple of str
        Sites that are not in that mean, as they have no value.
    few : tuple of str
        Classes of fewer than ``LEAST_PERSONS`` test persons that it rests on: it has no interval.
    """

    values: Mapping[int, float]
    resampled: Mapping[int, NDArray] = field(default_factory=dict)
    missing: str = ""
    sites: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    few: tuple[str, ...] = ()

    @classmethod
    def combine(cls, parts: Iterable[Repeated], factors: Iterable[float]) -> Repeated:
        """Σ_i factor_i · part_i within each seed that all parts have: what makes it paired."""
        parts, factors = list(parts), list(factors)
        if absent := [part.missing for part in parts if not part.values]:
            return cls({}, missing="; ".join(dict.fromkeys(absent)))

        def shared(tables: list[Mapping]) -> dict:
            seeds = sorted(set.intersection(*map(set, tables)))
            return {k: sum(f * t[k] for f, t in zip(factors, tables, strict=True)) for k in seeds}

        values = shared([part.values for part in parts])
        missing = "" if values else "no repetition ended well in all that is compared"
        few = tuple(dict.fromkeys(one for part in parts for one in part.few))
        return cls(values, shared([part.resampled for part in parts]), missing, few=few)

    @classmethod
    def over_sites(cls, parts: Mapping[str, Repeated]) -> Repeated:
        """Mean over sites, each counting once: those that have a value, two at least."""
        present = {site: part for site, part in parts.items() if part.values}
        if not present or (len(present) == 1 < len(parts)):
            reasons = "; ".join(dict.fromkeys(p.missing for p in parts.values() if p.missing))
            return cls({}, missing=reasons or "no site has a value")
        found = cls.combine(present.values(), [1 / len(present)] * len(present))
        without = tuple(site for site in parts if site not in present)
        few = tuple(f"{', '.join(part.few)} at {s}" for s, part in present.items() if part.few)
        return replace(found, sites=tuple(present), without=without, few=few)

    def record(self, seed: int = 0) -> dict[str, Any]:
        """Mean over repetitions with its interval, for JSON; None where there is none.

        The mean is (1/K) Σ_k value_k; draw d of the bootstrap is (1/K) Σ_k c_dk · value_k^(d), with
        c_d the counts of K seeds resampled with replacement, the same counts for all that has K.
        ``over`` names what the interval was taken over; where that is seeds alone, it is Student's.
        """
        seeds = sorted(self.values)
        k = len(seeds)
        low = high = over = None
        if k and not self.few and all(s in self.resampled for s in seeds):
            images = np.stack([self.resampled[s] for s in seeds], axis=1)  # (D, K)
            rng = np.random.default_rng(derive_seed(seed, purpose="bootstrap of seeds", seeds=k))
            counts = rng.multinomial(k, np.full(k, 1 / k), size=len(images))
            tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
            low, high = np.nanquantile((counts * images).sum(axis=1) / k, tails)
            over = "seeds and persons" if k > 1 else "persons"
        elif k > 1 and not self.few:
            low, high = student([self.values[s] for s in seeds])
            over = "seeds"
        notes = [self.missing]
        if not self.missing:
            notes += [f"{WITHOUT}{', '.join(self.without)}"] * bool(self.without)
            between = " and " if self.sites else ", "  # of each site there are several
            notes += [f"{NO_INTERVAL}{between.join(self.few)}"] * bool(self.few)
        if k == 1 and low is None and not self.few:
            notes.append(ONE)
        found = {
            "mean": number(np.mean([self.values[s] for s in seeds])) if seeds else None,
            "low": None if low is None else number(low),
            "high": None if high is None else number(high),
            "seeds": k,
            "over": over,
            "values": {str(s): float(self.values[s]) for s in seeds},
            "note": "; ".join(filter(None, notes)) or None,
        }
        return found | ({"sites": list(self.sites)} if self.sites else {})

    def compared(self, seed: int = 0) -> dict[str, Any]:
        """:meth:`record` of a paired difference, with Wilcoxon's p or the reason for its lack."""
        found = self.record(seed) | {"p": None}
        if 0 < (k := len(self.values)) < SEEDS_FOR_P:
            why = f"p needs at least {SEEDS_FOR_P} seeds, there are {k}"
            found["note"] = "; ".join(filter(None, [why, found["note"]]))
        elif k:
            found["p"] = number(signed_rank_p(list(self.values.values())))
        return found


def student(values: ArrayLike) -> tuple[float, float]:
    """Student's t interval of a mean, with K − 1 degrees of freedom."""
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    k = len(values)
    half = float(t.ppf((1 + LEVEL) / 2, k - 1)) * float(values.std(ddof=1)) / math.sqrt(k)
    return float(values.mean()) - half, float(values.mean()) + half


def number(value: float) -> float | None:
    """Return a float for JSON: None where it is not finite."""
    return float(value) if np.isfinite(value) else None
