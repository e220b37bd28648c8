"""How much one site can do to the average: its share of the votes, and how far it may pull.

Both bounds compare a site with the others of the same round, so neither can be set by the site
itself, and both leave the numbers of a round in which they do not bind as they are, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from torch import Tensor

from common.strategies.strategy import State

FARTHEST = 8.0  # robust z-score of a norm's logarithm
LEAST_DEVIATION = 0.5  # of logarithms
MOST_TIMES = 100  # a site with so many times the others' median of scans is told of


def bounded_votes(votes: Mapping[str, float], most_share: float) -> dict[str, float]:
    """Scale votes so that no site has more than a share s of them.

    With votes v₁ ≥ v₂ ≥ … ≥ v_K, the m largest are set to one vote c, for the smallest m that makes
    the bound hold; the others keep theirs, of sum R::

        c / (m c + R) = s,    so    c = s R / (1 - m s)

    Sites that tie are bounded alike. Where s ≤ 1/K no votes could keep to it, and all sites have
    one vote each. One site alone has the whole average, whatever s is.

    Parameters
    ----------
    votes : mapping of str to float
        By site, each above 0.
    most_share : float
        s, above 0 and up to 1, which bounds nothing.

    Returns
    -------
    dict of str to float
        By site, in the order of ``votes``. Votes that keep to the bound are returned as they are.
    """
    found, total = dict(votes), sum(votes.values())
    if len(votes) < 2 or all(vote <= most_share * total for vote in votes.values()):
        return found
    if most_share * len(votes) <= 1:
        return dict.fromkeys(votes, 1.0)
    ordered = sorted(votes, key=lambda name: -votes[name])
    for m in range(1, len(votes)):
        rest = sum(votes[name] for name in ordered[m:])
        if m * most_share < 1:
            most = most_share * rest / (1 - m * most_share)
            if votes[ordered[m]] <= most:
                found.update(dict.fromkeys(ordered[:m], most))
                return found
    return dict.fromkeys(votes, 1.0)


def update_norms(updates: Mapping[str, State], weights: State) -> dict[str, float]:
    """Return how far each site has moved from the server's weights: ‖T − W‖₂ over all tensors.

    Parameters
    ----------
    updates : mapping of str to mapping of str to Tensor
        Each site's whole weights T.
    weights : mapping of str to Tensor
        W.
    """
    return {
        site: math.sqrt(sum(float(_moved(t, weights[n]).square().sum()) for n, t in update.items()))
        for site, update in updates.items()
    }


def longest_norms(norms: Mapping[str, float], most_norm: float) -> dict[str, float]:
    """Return how far each site may move: a multiple of the median of the *others'* norms.

    ``most_i = most_norm · median {‖Δ_j‖ : j ≠ i}``, so that no site has a part in its own bound.

    It holds off a site that shouts while most do not. It does not hold off many that agree: with
    half of the others or more, they set the median. Of two sites each is bounded by the other, so
    that one that hardly moves holds the other back too. Where the others have not moved at all
    there is nothing to compare with, and the site is not bounded. Direction is not looked at.

    Parameters
    ----------
    norms : mapping of str to float
        By site: :func:`update_norms`.
    most_norm : float
        0: unbounded.
    """
    if not most_norm or len(norms) < 2:
        return dict.fromkeys(norms, math.inf)
    most = {}
    for site in norms:
        usual = median(norm for other, norm in norms.items() if other != site)
        most[site] = most_norm * usual if usual else math.inf
    return most


def outlying(norms: Mapping[str, float]) -> dict[str, float]:
    """Return the sites whose update is far longer than the others', with their robust z-score.

    Of the logarithms x of the norms, against the others' median m and median absolute deviation::

        z_i = (x_i - m) / max(1.4826 · median |x_j - m|, 0.5),    j ≠ i

    The least deviation is for sites that move nearly alike. A site is outlying with z above
    `FARTHEST`, and three others at least; of fewer the median tells little.

    Parameters
    ----------
    norms : mapping of str to float
        By site: :func:`update_norms`.
    """
    logs = {site: math.log(norm) for site, norm in norms.items() if norm > 0}
    found = {}
    for site, own in logs.items():
        others = [log for other, log in logs.items() if other != site]
        if len(others) < 3:
            return {}
        usual = median(others)
        deviation = 1.4826 * median(abs(log - usual) for log in others)
        if (score := (own - usual) / max(deviation, LEAST_DEVIATION)) > FARTHEST:
            found[site] = score
    return found


def shortened(update: State, weights: State, factor: float) -> dict[str, Tensor]:
    """Return weights that have moved by only a factor of what they have: W + factor · (T − W)."""
    return {
        name: (weights[name].double() + factor * _moved(t, weights[name])).to(t.dtype)
        for name, t in update.items()
    }


def _moved(trained: Tensor, weight: Tensor) -> Tensor:
    return trained.double() - weight.double()


def outsized(counts: Mapping[str, int]) -> dict[str, float]:
    """Return sites with more than `MOST_TIMES` the others' median of scans, with that median."""
    if len(counts) < 2:
        return {}
    usual = {
        site: median(count for other, count in counts.items() if other != site) for site in counts
    }
    return {site: usual[site] for site, n in counts.items() if n > MOST_TIMES * usual[site]}
