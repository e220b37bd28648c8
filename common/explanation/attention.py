"""How much of a classifier's attention lies in a mask, as numbers with intervals.

*Attention* a(p) is the positive part of a map, scaled to a sum of 1 over the image. Of a mask m,

- the *share* is Σ a(p) over the mask, the *area* the mask's part of the image;
- the *ratio* is share / area: 1 says that attention has no preference, 3 that a place in the mask
  has three times the attention of an average place of the image;
- *AUROC* is the probability that a place in the mask has a higher value than one outside, ties by
  half. It does not depend on the map's scale, and reads its negative part too.

Of several images the ratio is mean share / mean area, so that a mask of three pixels counts as
little as it is seen. Images without the mask have no part in it. Intervals are the 2.5th and
97.5th percentile of a bootstrap over persons, each drawn with all images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.evaluation.resampling import resampling_weights
from common.evaluation.statistics import LEAST_PERSONS, LEVEL, number

DRAWS = 1000  # bootstrap samples of persons


@dataclass(frozen=True)
class Attention:
    """Attention of N images to one mask each; NaN where it is not defined.

    Parameters
    ----------
    area, share, auroc : (N,) floats
    """

    area: NDArray[np.floating]
    share: NDArray[np.floating]
    auroc: NDArray[np.floating]

    @property
    def ratio(self) -> NDArray[np.floating]:
        """Share over area of each image, (N,)."""
        return self.share / self.area


def attention(
    maps: NDArray[np.floating],
    masks: NDArray[np.bool_],
    within: NDArray[np.bool_] | None = None,
) -> Attention:
    """Measure the attention of maps to masks.

    Parameters
    ----------
    maps : (N, *space) floats
        One without a positive value has no share.
    masks : (N, *space) bool
        Of one that is empty, or all of the image, nothing is defined.
    within : (N, *space) bool, optional
        What counts as the image: of a scan, the head. By default everything.
    """
    found = []
    everywhere = np.broadcast_to(True, maps.shape)
    for one, mask, places in zip(
        maps, masks, everywhere if within is None else within, strict=True
    ):
        values, inside = np.asarray(one[places], float), mask[places]
        if not inside.any() or inside.all():
            found.append((math.nan, math.nan, math.nan))
            continue
        positive = values.clip(min=0)
        total = positive.sum()
        share = positive[inside].sum() / total if total > 0 else math.nan
        found.append((inside.mean(), share, _auroc(values, inside)))
    return Attention(*np.array(found, float).reshape(-1, 3).T)


def _auroc(values: NDArray[np.floating], inside: NDArray[np.bool_]) -> float:
    """Mann and Whitney's U over the number of pairs."""
    from scipy.stats import rankdata

    n = int(inside.sum())
    rank_sum = rankdata(values)[inside].sum()
    return float((rank_sum - n * (n + 1) / 2) / (n * (len(inside) - n)))


def mean_ratio(
    found: Attention, persons: ArrayLike, rng: np.random.Generator
) -> dict[str, float | int | None]:
    """Ratio of several images, mean share over mean area, as :func:`mean_value` gives a mean."""
    return _quotient(found.share, found.area, persons, rng)


def mean_value(
    values: NDArray[np.floating], persons: ArrayLike, rng: np.random.Generator
) -> dict[str, float | int | None]:
    """Mean over the images that have a value, with its interval.

    Parameters
    ----------
    values : (N,) floats
        NaN where an image has none.
    persons : (N,) array
        Who is on each image.
    rng : numpy.random.Generator

    Returns
    -------
    dict
        ``images`` and ``persons`` that it rests on; ``mean``, ``low`` and ``high``. Without a value
        the three are None; of fewer than `LEAST_PERSONS` persons, the ends are.
    """
    return _quotient(values, np.ones(len(values)), persons, rng)


def _quotient(
    above: NDArray[np.floating],
    below: NDArray[np.floating],
    persons: ArrayLike,
    rng: np.random.Generator,
) -> dict[str, float | int | None]:
    """Quotient of two means over the same images."""
    known = np.flatnonzero(np.isfinite(above + below))
    above, below = np.asarray(above)[known], np.asarray(below)[known]
    who = np.asarray(persons).astype(str)[known]
    people = len(np.unique(who))
    found: dict[str, float | int | None] = {"images": len(known), "persons": people}
    found |= {"mean": number(above.sum() / below.sum()) if len(known) else None}
    found |= {"low": None, "high": None}
    if people >= LEAST_PERSONS:
        weights = resampling_weights(np.zeros(len(known), int), DRAWS, rng, who).astype(float)
        ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        low, high = np.quantile((weights @ above) / (weights @ below), ends)
        found |= {"low": number(low), "high": number(high)}
    return found
