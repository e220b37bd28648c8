"""What a site says of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TOLD = "told"  # key of the metadata beside statistics


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
    classes : dict of str to int
        How many people each class has, where single ones are told of: metrics of a class, as
        ``recall.MEL``, leave only over enough of them.
    """

    count: int
    metrics: dict[str, float]
    statistics: dict[str, Tensor] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    people: int = 0
    fewest: int = 0
    classes: dict[str, int] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Write down what is sent: count, metrics, statistics and words."""
        from safetensors.torch import save

        told = {"count": self.count, "metrics": self.metrics, "words": self.words}
        return save(dict(self.statistics), {TOLD: json.dumps(told)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Evaluation:
        """Read what :meth:`to_bytes` wrote."""
        from safetensors.torch import load

        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        told = json.loads(header["__metadata__"][TOLD])
        return cls(told["count"], told["metrics"], load(data), told["words"])


@dataclass(frozen=True)
class ValidationResult:
    """What all sites' evaluations say together.

    Parameters
    ----------
    loss : float
        The lower, the better: what rounds are selected by.
    whole : dict of str to float
        Metrics of all sites together, where they are more than a mean of the sites'.
    words : str
        One line for people.
    measure : str
        What the loss is: only losses of one measure can be compared.
    """

    loss: float
    whole: dict[str, float]
    words: str
    measure: str = ""


@dataclass(frozen=True)
class Reports:
    """All that a site can say of a run, by name: known before a model is run.

    Parameters
    ----------
    training, evaluation : frozenset of str
        Metrics of a round of training, and of an evaluation.
    statistics : dict of str to tuple of int
        An evaluation's, in float64: the longest that each axis can be.
    words : dict of str to frozenset of str
        An evaluation's: the texts that there are; none stands for a SHA-256.
    """

    training: frozenset[str]
    evaluation: frozenset[str]
    statistics: dict[str, tuple[int, ...]] = field(default_factory=dict)
    words: dict[str, frozenset[str]] = field(default_factory=dict)


def counts_of_use(counts: Mapping[str, int], used: Mapping[str, int]) -> dict[str, int]:
    """Correct a site's counts by what was used of a split once its files had been opened.

    Parameters
    ----------
    counts : mapping of str to int
        ``n_train``, ``n_val``, ``n_test``, perhaps ``left_out`` and others.
    used : mapping of str to int
        Files used, for those of ``n_train``, ``n_val`` and ``n_test`` that are known.

    Returns
    -------
    dict of str to int
        With what could not be used among what is left out.
    """
    lost = sum(counts[key] - number for key, number in used.items())
    return {**counts, **used, "left_out": counts.get("left_out", 0) + lost}
