"""How often intervals cover the truth: ``python tests/coverage_of_intervals.py``.

Prints the table of docs/comparison.md; a test repeats a part of it.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm

from common.evaluation.statistics import interval

TRIALS = 10_000
ROWS = [  # persons of each class; share of right decisions of two models; SD of repetitions
    ((8, 8), (0.8, 0.8), 0.3),
    ((8, 9, 10, 12), (0.9, 0.9), 0.3),
    ((30, 30), (0.75, 0.85), 0.3),
    ((60, 60), (0.9, 0.9), 0.3),
    ((20,) * 8, (0.6, 0.7), 0.3),
    ((60, 60), (0.95, 0.97), 0.7),
]
COLUMNS = [(1, True), (3, True), (5, True), (3, False), (5, False)]  # repetitions, new cohorts


def drawn(rng, sizes, levels, *, repetitions, new, seeds, trials):
    """Whether each person was decided rightly: of each class (trials, models, persons, K).

    A probit model of persons, of repetitions and of what a repetition does with a person; returns
    with it the share of right decisions of each model, the mean of the classes'.
    """
    persons, single = 1.0, 0.4
    scale = math.sqrt(1 + persons**2 + seeds**2 + single**2)
    of_seed = seeds * rng.standard_normal((trials, len(levels), 1, repetitions))
    where = scale * norm.ppf(levels)[:, None, None]
    right = []
    for n in sizes:
        who = persons * rng.standard_normal((trials, 1, n, repetitions if new else 1))
        rest = math.hypot(1, single) * rng.standard_normal((trials, len(levels), n, repetitions))
        right.append(where + who + of_seed + rest > 0)
    return right


def intervals_of(right, *, new, paired):
    """Intervals as `Repeated` gives them, of many trials at once."""
    each = [r[:, 0] - 1.0 * r[:, 1] if paired else 1.0 * r[:, 0] for r in right]  # (trials, n, K)
    sizes, count = [one.shape[1] for one in each], len(each)
    values = sum(one.mean(axis=1) for one in each) / count
    k, spread = values.shape[1], sum(sizes) / (sum(sizes) - count)
    parts = []
    if k == 1 or not new:
        whole = sum(one.mean(axis=2).var(axis=1) / n for one, n in zip(each, sizes, strict=True))
        if k > 1:
            own = [one - one.mean(axis=2, keepdims=True) for one in each]
            own = sum(one.var(axis=1).sum(axis=1) / n for one, n in zip(own, sizes, strict=True))
            whole = np.maximum(0, whole - own / (k - 1) / k)
        parts.append((spread * whole / count**2, sum(sizes) - count))
    if k > 1:
        parts.append((values.var(axis=1, ddof=1) / k, k - 1))
    strata = tuple((1 / count, n * (k if new else 1)) for n in sizes)
    bounds = (-1.0, 1.0) if paired else (0.0, 1.0)
    return interval(values.mean(axis=1), parts, bounds=bounds, strata=strata)


def covered(
    sizes: tuple[int, ...],
    levels: tuple[float, float],
    *,
    repetitions: int,
    new: bool,
    seeds: float,
    trials: int,
) -> tuple[float, float]:
    """Share of trials in which a mean's interval holds the truth, and a paired difference's.

    One repetition says nothing of others: there, the truth is that of the model at hand.
    """
    rng = np.random.default_rng(8)
    about = {"repetitions": repetitions, "new": new, "trials": trials}
    right = drawn(rng, sizes, np.array(levels), seeds=seeds * (repetitions > 1), **about)
    found = []
    for paired, truth in ((False, levels[0]), (True, levels[0] - levels[1])):
        low, high = intervals_of(right, new=new, paired=paired)
        found.append(float(np.mean((low <= truth) & (truth <= high))))
    return found[0], found[1]


def main() -> None:
    """Print the table."""
    for sizes, levels, seeds in ROWS:
        cells = []
        for repetitions, new in COLUMNS:
            about = {"repetitions": repetitions, "new": new, "seeds": seeds}
            shares = covered(sizes, levels, trials=TRIALS, **about)
            cells.append(" / ".join(f"{share:.3f}" for share in shares))
        people = ", ".join(map(str, sizes)) if len(set(sizes)) > 1 else f"{len(sizes)} × {sizes[0]}"
        named = f"{people} | {levels[0]:g}, {levels[1]:g} | {seeds:g}"
        print(f"| {named} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
