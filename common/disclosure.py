"""Statistical disclosure control: what numbers about a site's people may leave it.

A mean over two people, or a loss on one, tells of these people. So a metric leaves a site only if
it is about enough of them. Moments of features need many more. Their attack is the test of
membership: whoever knows the mean and the covariance of n people's features, those of the
population, and the features of one person asks how much likelier that person is under the former.
For normal features the likelihood ratio test, the strongest there is, has k = D (D + 3) / 2 numbers
of D features to go by, and an advantage of

    z = √(k / n) = √(D (D + 3) / (2 n))

standard deviations, so an area under the ROC curve of Φ(z / √2) (Sankararaman et al. 2009, *Nature
Genetics* 41:965-967, for means; ``common.attacks.attributes`` measures it). For fewer people than
dimensions the covariance has no full rank, and a test makes no error at all. One number a feature,
a mean or a variance, gives z = √(D / n) (Homer et al. 2008, *PLoS Genetics* 4:e1000167).

These rules bound what single numbers tell. They are no differential privacy: many numbers over the
same people, as those of many rounds, tell more, and so do the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from common.privacy.statement import TOLD

if TYPE_CHECKING:
    from torch import Tensor

    from common.evaluation.of_site import Evaluation

MIN_PARTICIPANTS = 10  # at a deployed site that does not decide otherwise
MOST_POWER = 0.1  # z, in standard deviations: an area under the ROC curve of 0.53
WITHHELD = "withheld"  # among an evaluation's words: why it holds no numbers
COUNTED = ("images-seen", *TOLD)  # what training reports that is about nobody's images
OF_ONE_BATCH = ("r1-", "path-")  # names of what training measures on a single batch now and then
OF_ALL_CLASSES = ("loss", "calibration_error")  # metrics that are no measure of one class


def people_for_moments(features: int) -> int:
    """Return how many people the mean and covariance of so many features must be over.

    The least n with √(D (D + 3) / (2 n)) at most :data:`MOST_POWER`.
    """
    return math.ceil(features * (features + 3) / 2 / MOST_POWER**2)


def people_for_variances(features: int) -> int:
    """Return how many people the variances of so many features must be over.

    The least n with √(D / n) at most :data:`MOST_POWER`.
    """
    return math.ceil(features / MOST_POWER**2)


def too_few(people: int) -> str:
    """Say that there are too few people, as a site tells it."""
    return f"fewer than {people} participants"


@dataclass(frozen=True)
class Disclosure:
    """What a site tells of its people.

    Parameters
    ----------
    min_participants : int
        Metrics, losses and statistics over fewer people do not leave.
    moments : bool
        Whether moments of features leave whatever :func:`people_for_moments` says, as in a
        simulation, whose sites have one owner.
    """

    min_participants: int = MIN_PARTICIPANTS
    moments: bool = False

    def in_sum(self, sites: int) -> Disclosure:
        """Return what a site tells in a secure sum over so many sites or more.

        Where each of them is about at least m / n people, rounded up, the sum over n is about m.
        """
        return replace(self, min_participants=math.ceil(self.min_participants / sites))

    def evaluation(self, found: Evaluation) -> Evaluation:
        """Return what of an evaluation may leave: all, all but the moments, or nothing."""
        if WITHHELD in found.words:
            return found  # it holds no numbers as it is
        if found.people < self.min_participants:
            why = {WITHHELD: too_few(self.min_participants)}
            return replace(found, count=0, metrics={}, statistics={}, words=why)
        if found.fewest < self.min_participants:
            metrics = {
                name: found.metrics[name] for name in OF_ALL_CLASSES if name in found.metrics
            }
            found = replace(found, metrics=metrics)
        few = {name for name, n in found.classes.items() if n < self.min_participants}
        if dropped := [name for name in found.metrics if name.partition(".")[2] in few]:
            kept = {n: value for n, value in found.metrics.items() if n not in dropped}
            found = replace(found, metrics=kept)
        sizes = [len(mean) for name, mean in found.statistics.items() if name.endswith(".mean")]
        if all(self.tells_moments(size, found.people) for size in sizes):
            return found
        return replace(found, statistics={})

    def tells_moments(self, features: int, people: int) -> bool:
        """Tell whether the mean and covariance of so many features leave, over so many people."""
        if people < self.min_participants:
            return False
        return self.moments or people >= people_for_moments(features)

    def sums(self, own: Mapping[str, Tensor], people: int) -> dict[str, Tensor]:
        """Return sums over people, of features and of their products, as they may leave.

        Parameters
        ----------
        own : mapping of str to Tensor
            A count and sums, the last axis of which is the features.
        people : int

        Returns
        -------
        dict of str to Tensor
            ``own``, or zeros: sums over nobody.
        """
        features = max((len(tensor) for tensor in own.values() if tensor.ndim), default=0)
        if self.tells_moments(features, people):
            return dict(own)
        return {name: tensor.new_zeros(tensor.shape) for name, tensor in own.items()}

    def training(self, metrics: Mapping[str, float], people: int) -> dict[str, float]:
        """Return what of a round's training may be reported.

        Parameters
        ----------
        metrics : mapping of str to float
        people : int
            At least how many the round's images are of.
        """
        if people < self.min_participants:
            return {name: value for name, value in metrics.items() if name in COUNTED}
        if self.moments:
            return dict(metrics)
        return {n: value for n, value in metrics.items() if not n.startswith(OF_ONE_BATCH)}

    def log_variance(self, own: Tensor, received: Tensor, people: int) -> Tensor:
        """Return the logarithms of features' variances as they may leave.

        Parameters
        ----------
        own : (D,) Tensor
            Over the site's people.
        received : (D,) Tensor
            What the server has sent, which it knows.
        people : int

        Returns
        -------
        (D,) Tensor
            ``own`` over enough people. Over fewer, shrunk to one number for all features, the
            logarithm of their mean variance; over less than ``min_participants``, ``received``.
        """
        if people < self.min_participants:
            return received.clone()
        if self.moments or people >= people_for_variances(len(own)):
            return own
        return own.exp().mean().log().expand_as(own).clone()


EVERYTHING = Disclosure(min_participants=1, moments=True)
