"""Means, intervals and paired differences of numbers that are measured once a repetition.

Chance enters by who was tested, by who was trained on, and by the seed of a repetition. How much
each of them matters is a variance; an interval adds them up, each with the square of its own
Student quantile, so that a variance that is known from few values counts for more (a modified large
sample interval; Graybill & Wang 1980, *JASA* 75:869-873):

    half² = t²(N − C) · V_people  +  t²(K − 1) · s² / K

- **New cohorts**: every repetition has its own people and its own seed. The K values are
  independent, s² holds all chance there is, and the interval is Student's t over repetitions.
- **One cohort**: the same people are tested in every repetition, crossed with its seeds. s² holds
  the seeds and what they do with single people, V_people what all repetitions share: the variance
  of the mean of K over bootstrap samples of the persons, less the part that s² has already.
- **One repetition**: V_people alone, which says nothing of another training.

V_people is the bootstrap's (Davison & Hinkley 1997, *Bootstrap Methods and their Application*) with
persons drawn within classes, times N / (N − C) for the C means that are estimated from N persons.
All models are measured on the same draws, so a paired difference keeps what they share out.

A score lies in [0, 1], a difference of two in [−1, 1], and their variance shrinks towards the ends.
So the interval is Wilson's (1927, *JASA* 22:209-212) with the half-width above, as for shares from
complex surveys (Franco, Little, Louis & Slud 2019, *J. Survey Statistics and Methodology*
7:334-364). It stays inside by itself. Where nobody was wrong, or two models agree on everybody, no
variance is seen: it is taken to be at least that of two persons more, shared out among the classes,
of whom one is right (Price & Bonett 2004, *Computational Statistics & Data Analysis* 45:449-456).
Other numbers, as a loss or a distance, have no end above, and their intervals are symmetric.

How often such 95 % intervals cover the truth stands in docs/comparison.md, from a simulation of
which a test repeats a part. Sites are fixed: nothing here speaks of a hospital outside the
comparison. What rests on a class of fewer than ``LEAST_PERSONS`` persons has no interval: so few
show too little of their class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
# n signs, all equal, have the two-sided probability 2 / 2^n: below 0.05 from n = 6 on.
REPETITIONS_FOR_P = 6
ONE = "one repetition: no interval"
LEAST_PERSONS = 5  # of a class
NO_INTERVAL = f"no interval: fewer than {LEAST_PERSONS} test people of "  # begins a note
WITHOUT = "without "  # the same

Strata = tuple[tuple[float, int], ...]  # of each class: its weight in a mean of classes, persons


def interval(
    mean: ArrayLike,
    parts: Iterable[tuple[ArrayLike, float]],
    *,
    bounds: tuple[float, float] | None = None,
    strata: Strata = (),
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the ends of intervals around means, as the module says.

    Parameters
    ----------
    mean : floats
    parts : iterable of (floats, float)
        Variances of the mean, each with its degrees of freedom.
    bounds : (float, float), optional
        Ends of the scale, where it has any.
    strata : tuple of (float, int)
        Weight and persons of each class that the mean rests on, of a bounded one.
    """
    mean = np.asarray(mean, dtype=float)
    square = sum(_quantile(df) ** 2 * np.asarray(v) for v, df in parts)
    if bounds is None:
        return mean - np.sqrt(square), mean + np.sqrt(square)
    low, high = bounds
    width, least, inside = high - low, 0.0, 0.0
    if strata:
        least = 2 / len(strata) * sum((weight / n) ** 2 for weight, n in strata)
        inside = least / sum(weight**2 / n for weight, n in strata) / width**2
        square = np.maximum(square, _quantile(freedom(strata)) ** 2 * least)
    share = (mean - low) / width
    spread = share * (1 - share)
    # t² / n of Wilson's formula, with the n that a share of this variance would have come from.
    z = square / width**2 / np.maximum(spread, max(inside, 1e-12))
    half = np.sqrt(z * spread + z**2 / 4)
    ends = ((share + z / 2 + sign * half) / (1 + z) for sign in (-1, 1))
    first, last = (np.clip(low + width * end, low, high) for end in ends)
    return np.minimum(first, mean), np.maximum(last, mean)  # but for rounding they are


@cache
def _quantile(df: float) -> float:
    """Student's, of both ends."""
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, df))


def freedom(strata: Strata) -> int:
    """Degrees of freedom of a variance over persons: those beyond one a class."""
    return max(1, sum(n for _, n in strata) - len(strata))


def signed_rank_p(differences: ArrayLike) -> float:
    """Two-sided exact p of Wilcoxon's signed-rank test (1945, *Biometrics Bulletin* 1:80-83).

    p = min(1, 2 · P(W ≤ min(W+, W-))), where W± sums the ranks of |d| over one sign and P takes all
    2^n patterns of signs as equally likely. Ties share their mean rank; differences of zero are
    left out, as Wilcoxon does, and where there is nothing else p is 1.

    Of one cohort the test asks whether chance in training alone explains the differences on these
    test images; it does not speak of other people.
    """
    from scipy.stats import rankdata

    # Metrics move in steps of 1/n: equal steps must tie, however their floats were rounded.
    d = np.round(np.asarray(differences, dtype=float), 12)
    d = d[d != 0]
    # SciPy's wilcoxon is exact with ties by permutation only, a second a test at 13 values. Twice
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
        Repetition to value; one with an undefined value is absent.
    resampled : dict of int to (D,) floats
        Repetition to the value on each bootstrap sample of the persons whom all of them share; may
        lack repetitions. Of several with people of their own there is none.
    missing : str
        Why there is no value, in words; empty where there is one.
    sites : tuple of str
        Whose mean it is, of a mean over sites.
    without : tuple of str
        Sites that are not in that mean, as they have no value.
    few : tuple of str
        Classes of fewer than ``LEAST_PERSONS`` test persons that it rests on: it has no interval.
    bounds : (float, float), optional
        Ends of its scale.
    strata : tuple of (float, int)
        Weight and test persons of each class that it rests on.
    """

    values: Mapping[int, float]
    resampled: Mapping[int, NDArray] = field(default_factory=dict)
    missing: str = ""
    sites: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    few: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    strata: Strata = ()

    @classmethod
    def combine(cls, parts: Iterable[Repeated], factors: Iterable[float]) -> Repeated:
        """Σ_i factor_i · part_i, of the same people, within each repetition that all parts have."""
        parts, factors = list(parts), list(factors)
        if absent := [part.missing for part in parts if not part.values]:
            return cls({}, missing="; ".join(dict.fromkeys(absent)))

        def shared(tables: list[Mapping]) -> dict:
            seeds = sorted(set.intersection(*map(set, tables)))
            return {k: sum(f * t[k] for f, t in zip(factors, tables, strict=True)) for k in seeds}

        values = shared([part.values for part in parts])
        missing = "" if values else "no repetition ended well in all that is compared"
        few = tuple(dict.fromkeys(one for part in parts for one in part.few))
        bounds = None
        if all(part.bounds for part in parts):
            ends = [sorted(f * b for b in p.bounds) for f, p in zip(factors, parts, strict=True)]
            bounds = (sum(low for low, _ in ends), sum(high for _, high in ends))
        resampled = shared([part.resampled for part in parts])
        return cls(values, resampled, missing, few=few, bounds=bounds, strata=parts[0].strata)

    @classmethod
    def over_sites(cls, parts: Mapping[str, Repeated]) -> Repeated:
        """Mean over sites, each counting once: those that have a value, two at least."""
        present = {site: part for site, part in parts.items() if part.values}
        if not present or (len(present) == 1 < len(parts)):
            reasons = "; ".join(dict.fromkeys(p.missing for p in parts.values() if p.missing))
            return cls({}, missing=reasons or "no site has a value")
        count = len(present)
        found = cls.combine(present.values(), [1 / count] * count)
        without = tuple(site for site in parts if site not in present)
        few = tuple(f"{', '.join(part.few)} at {s}" for s, part in present.items() if part.few)
        strata = tuple((w / count, n) for part in present.values() for w, n in part.strata)
        return replace(found, sites=tuple(present), without=without, few=few, strata=strata)

    def record(self) -> dict[str, Any]:
        """Mean over repetitions with its interval, for JSON; None where there is none.

        ``over`` names what the interval was taken over: people, repetitions, or both.
        """
        seeds, k = sorted(self.values), len(self.values)
        values = np.array([self.values[s] for s in seeds])
        people = None
        if k and all(s in self.resampled for s in seeds):
            people = _of_people(np.stack([self.resampled[s] for s in seeds]), self.strata)
        found = {"mean": number(values.mean()) if k else None, "low": None, "high": None}
        found |= {
            "repetitions": k,
            "over": None,
            "values": dict(zip(map(str, seeds), values.tolist(), strict=True)),
        }
        if not self.few and (k > 1 or people is not None):
            parts = [] if people is None else [(people, freedom(self.strata))]
            parts += [(values.var(ddof=1) / k, k - 1)] if k > 1 else []
            # Of new cohorts there are K times as many people.
            times = 1 if people is not None else k
            strata = tuple((weight, n * times) for weight, n in self.strata)
            low, high = interval(found["mean"], parts, bounds=self.bounds, strata=strata)
            over = ["people"] * (people is not None) + ["repetitions"] * (k > 1)
            found |= {"low": number(low), "high": number(high), "over": " and ".join(over)}
        notes = [self.missing]
        if not self.missing:
            notes += [f"{WITHOUT}{', '.join(self.without)}"] * bool(self.without)
            between = " and " if self.sites else ", "  # of each site there are several
            notes += [f"{NO_INTERVAL}{between.join(self.few)}"] * bool(self.few)
        if k == 1 and found["low"] is None and not self.few:
            notes.append(ONE)
        found["note"] = "; ".join(filter(None, notes)) or None
        return found | ({"sites": list(self.sites)} if self.sites else {})

    def compared(self) -> dict[str, Any]:
        """:meth:`record` of a paired difference, with Wilcoxon's p or the reason for its lack."""
        found = self.record() | {"p": None}
        if 0 < (k := len(self.values)) < REPETITIONS_FOR_P:
            why = f"p needs at least {REPETITIONS_FOR_P} repetitions, there are {k}"
            found["note"] = "; ".join(filter(None, [why, found["note"]]))
        elif k:
            found["p"] = number(signed_rank_p(list(self.values.values())))
        return found


def _of_people(draws: NDArray, strata: Strata) -> float:
    """Variance over persons that K repetitions share, from what each gives on the draws (K, D).

    The variance of their mean holds 1/K of what single repetitions do with single people, which the
    variance between repetitions holds as well.
    """
    k, mean = len(draws), draws.mean(axis=0)
    own = np.nanvar(draws - mean, axis=1).sum() / (k - 1) if k > 1 else 0.0
    total = sum(n for _, n in strata)
    return max(0.0, float(np.nanvar(mean) - own / k)) * (total / freedom(strata) if strata else 1.0)


def number(value: float) -> float | None:
    """Return a float for JSON: None where it is not finite."""
    return float(value) if np.isfinite(value) else None
