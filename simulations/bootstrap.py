"""Resampling of test scans and repetitions, and the metrics and tests that go with it.

A bootstrap sample of scans is a row of whole-number weights, so that every metric of every sample
is one matrix product away. The reasons for the scheme stand in :mod:`simulations.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.evaluation.classification import CALIBRATION_BINS
from common.seeding import derive_seed

LEVEL = 0.95
# n signs, all equal, have the two-sided probability 2 / 2^n: below 0.05 from n = 6 on.
SEEDS_FOR_P = 6
SEEDS_TO_TRUST = 4  # resampling fewer shows less than 3/4 of their variance: (K - 1) / K


def resampling_weights(labels: ArrayLike, draws: int, rng: np.random.Generator) -> NDArray:
    """How often each scan is in each bootstrap sample, resampled within its class.

    Parameters
    ----------
    labels : (N,) integers
    draws : int
        Number of bootstrap samples D.
    rng : numpy.random.Generator

    Returns
    -------
    (D, N) floats
        Whole numbers. In every row the weights of a class sum to that class's number of scans, so
        a class never vanishes and balanced accuracy and AUROC stay defined.
    """
    labels = np.asarray(labels)
    weights = np.zeros((draws, len(labels)))
    for value in np.unique(labels):
        (members,) = np.nonzero(labels == value)
        n = len(members)
        weights[:, members] = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    return weights


def weighted_metrics(
    labels: ArrayLike, probabilities: ArrayLike, weights: NDArray
) -> dict[str, NDArray]:
    """Every metric of :data:`METRICS`, on many weightings of the same scans at once.

    Parameters
    ----------
    labels : (N,) integers 0 or 1
    probabilities : (N,) floats
        Of class 1; the decision threshold is 0.5.
    weights : (D, N) whole numbers
        Row d counts how often each scan is in sample d.

    Returns
    -------
    dict of str to (D,) floats
        Row d is what :func:`common.evaluation.classification.classification_metrics` gives for
        sample d with its scans repeated; NaN where a missing class leaves a metric undefined.

    Notes
    -----
    All but three are sums over scans, hence products with the weights. AUROC (trapezoids), AUPRC
    (Σ_k (R_k - R_{k-1}) P_k) and the sensitivity read the cumulated weights of both classes from
    the highest probability down, taken where a run of equal probabilities ends.
    """
    y = np.asarray(labels) == 1
    p = np.asarray(probabilities, dtype=float)
    w = np.asarray(weights, dtype=float)
    total, positives = w.sum(axis=1), w @ y
    negatives = total - positives
    decided = p >= 0.5
    hits, false_alarms = w @ (y & decided), w @ (~y & decided)

    clipped = np.clip(p, np.finfo(float).eps, 1 - np.finfo(float).eps)
    cross_entropy = -np.where(y, np.log(clipped), np.log1p(-clipped))
    bins = np.minimum((p * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = (bins[:, None] == np.arange(CALIBRATION_BINS)) * (y - p)[:, None]  # (N, bins)

    order = np.argsort(-p, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(p[order]) != 0, True))
    ordered = w[:, order]
    above = np.cumsum(ordered, axis=1)[:, ends]
    tp = np.pad(np.cumsum(ordered * y[order], axis=1)[:, ends], ((0, 0), (1, 0)))
    fp = np.pad(above, ((0, 0), (1, 0))) - tp  # (D, thresholds + 1), like tp

    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = hits / positives, (negatives - false_alarms) / negatives
        # With one class only, balanced accuracy is the recall of that class.
        balanced = np.where(
            positives == 0,
            specificity,
            np.where(negatives == 0, sensitivity, (sensitivity + specificity) / 2),
        )
        one_class = np.where(positives * negatives == 0, math.nan, 0.0)
        area = (np.diff(fp, axis=1) * (tp[:, 1:] + tp[:, :-1]) / 2).sum(axis=1)
        precision = np.nan_to_num(tp[:, 1:] / above)
        recall_steps = np.diff(tp, axis=1) / positives[:, None]
        allowed = fp / negatives[:, None] <= 0.1 + 1e-12
        return {
            "loss": w @ cross_entropy / total,
            "balanced_accuracy": balanced,
            "auroc": area / (positives * negatives) + one_class,
            "auprc": (recall_steps * precision).sum(axis=1) + one_class,
            "sensitivity_at_90_specificity": np.where(allowed, tp, 0).max(axis=1) / positives
            + one_class,
            "f1": np.nan_to_num(2 * hits / (hits + false_alarms + positives)),
            "calibration_error": np.abs(w @ gaps).sum(axis=1) / total,
        }


def signed_rank_p(differences: ArrayLike) -> float:
    """Two-sided exact p of Wilcoxon's signed-rank test (1945, *Biometrics Bulletin* 1:80-83).

    p = min(1, 2 · P(W ≤ min(W+, W-))), where W± sums the ranks of |d| over one sign and P takes all
    2^n patterns of signs as equally likely. Ties share their mean rank; differences of zero are
    left out, as Wilcoxon does, and where there is nothing else p is 1.

    The test asks whether chance in training alone explains the differences on these test scans; it
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
    """A number measured once a repetition, and what it becomes on resampled test scans.

    Parameters
    ----------
    values : dict of int to float
        Seed to value; a seed with an undefined value is absent.
    resampled : dict of int to (D,) floats
        Seed to the value on each bootstrap sample of the test scans; may lack seeds.
    missing : str
        Why there is no value, in words; empty where there is one.
    """

    values: dict[int, float]
    resampled: dict[int, NDArray] = field(default_factory=dict)
    missing: str = ""

    @classmethod
    def combine(cls, parts: Iterable[Repeated], factors: Iterable[float]) -> Repeated:
        """Σ_i factor_i · part_i within each seed that all parts have: what makes it paired."""
        parts, factors = list(parts), list(factors)
        if absent := [part.missing for part in parts if not part.values]:
            return cls({}, missing="; ".join(dict.fromkeys(absent)))

        def shared(tables: list[dict]) -> dict:
            seeds = sorted(set.intersection(*map(set, tables)))
            return {k: sum(f * t[k] for f, t in zip(factors, tables, strict=True)) for k in seeds}

        values = shared([part.values for part in parts])
        missing = "" if values else "no repetition ended well in all that is compared"
        return cls(values, shared([part.resampled for part in parts]), missing)

    def record(self, seed: int) -> dict:
        """Mean over repetitions with its percentile interval; None where there is none.

        The mean is (1/K) Σ_k value_k; draw d of the bootstrap is (1/K) Σ_k c_dk · value_k^(d), with
        c_d the counts of K seeds resampled with replacement, the same counts for all that has K.
        """
        seeds = sorted(self.values)
        found = {
            "mean": number(np.mean([self.values[k] for k in seeds])) if seeds else None,
            "low": None,
            "high": None,
            "seeds": len(seeds),
            "over": None,
        }
        if seeds and all(k in self.resampled for k in seeds):
            scans = np.stack([self.resampled[k] for k in seeds], axis=1)  # (D, K)
            draws, k = scans.shape
            rng = np.random.default_rng(derive_seed(seed, purpose="bootstrap of seeds", seeds=k))
            counts = rng.multinomial(k, np.full(k, 1 / k), size=draws)
            tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
            low, high = np.quantile((counts * scans).sum(axis=1) / k, tails)
            found |= {"low": number(low), "high": number(high)}
            found["over"] = "seeds and test scans" if k > 1 else "test scans"
        return found

    def compared(self, seed: int) -> dict:
        """:meth:`record` of a paired difference, with Wilcoxon's p or the reason for its lack."""
        found = self.record(seed) | {"p": None, "note": self.missing or None}
        if 0 < (k := len(self.values)) < SEEDS_FOR_P:
            found["note"] = f"p needs at least {SEEDS_FOR_P} seeds, there are {k}"
        elif k:
            found["p"] = number(signed_rank_p(list(self.values.values())))
        if k and found["low"] is None:
            reason = "no interval: the predictions of the test scans are missing"
            found["note"] = "; ".join(filter(None, [found["note"], reason]))
        return found


def number(value: float) -> float | None:
    """Return a float for JSON: None where it is not finite."""
    return float(value) if np.isfinite(value) else None
