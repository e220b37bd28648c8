"""What a site says of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """What a site says of a released network on one split.

    Parameters
    ----------
    count : int
        Scans it was judged on.
    metrics : dict of str to float
    statistics : dict of str to Tensor
        What can be merged over sites exactly: moments of features.
    words : dict of str to str
        What must be the same at all sites for their numbers to be comparable.
    people : int
        How many the scans are of; by it a site decides what may leave. It is not sent.
    fewest : int
        How many people the class with the fewest has, of those that are there; all of them where
        there are no classes.
    """

    count: int
    metrics: dict[str, float]
    statistics: dict[str, Tensor] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    people: int = 0
    fewest: int = 0
