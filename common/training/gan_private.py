"""What a generator's training sees of the data under differential privacy: one person at a time.

D is the only one who sees images, and each of its steps is one of DP-SGD
(:mod:`common.privacy.dp_sgd`). What person i adds to it is the clipped gradient of

    L_i = E[softplus(-D(x, c))] + E[softplus(D(G(z, c), c))]

over some of the person's images x with their labels c, and as many generated ones of the same
labels, so that the mix of labels is no clue. What is drawn for a person follows from the seed, the
iteration and who it is: also for those who know the seed, one person more or less changes the sum
by one clipped gradient and nothing else. G learns from D alone, with labels that follow from the
study; it and all averages of it are made of what has its noise already (Xie et al. 2018,
"Differentially private generative adversarial network", arXiv 1802.06739).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.errors import ConfigError
from common.models.architecture import Architecture, encode_labels
from common.privacy.dp_sgd import DPSGD
from common.studies.sections import SITE
from common.training.gan_config import GanConfig
from common.training.gan_sampling import combinations
from common.training.gan_slices import RealSlices

if TYPE_CHECKING:
    from common.data.dataset import Dataset

# Of any preset: without what is made of the images of many people. A hospital accepts a fixed p
# from 0.1 on.
CHANGES = {
    "r1-gamma": 0.0,
    "diversity-weight": 0.0,
    "minibatch-group": 1,
    "augment": "fixed",
    "augment-p": 0.1,
}


def require_covered(config: GanConfig) -> None:
    """Refuse a training that uses real images in another way than by DP-SGD.

    Raises
    ------
    ConfigError
    """
    for is_so, key, value, why, accepted in (
        (config.r1_gamma > 0, "r1-gamma", config.r1_gamma, "R1's gradients are not clipped", "0"),
        (
            config.diversity_weight > 0,
            "diversity-weight",
            config.diversity_weight,
            "it compares with the variance of all of a site's images",
            "0",
        ),
        (
            config.minibatch_group > 1,
            "minibatch-group",
            config.minibatch_group,
            "a deviation within a batch mixes people",
            "1",
        ),
        (
            config.augment == "adaptive",
            "augment",
            config.augment,
            "p would follow D's judgement of all real images",
            "fixed or off",
        ),
    ):
        if is_so:
            raise ConfigError(
                f"{key} = {value} with differential privacy, privacy.epsilon above 0: {why}, which "
                f"is not accounted for. Leave it out, or set {accepted}"
            )


class PrivateSlices(RealSlices):
    """People whom a Poisson sample draws, and labels that do not follow from anybody.

    Parameters
    ----------
    data : Dataset
    architecture : Architecture
    config : GanConfig
    device : torch.device
    mechanism : DPSGD
    site : str
        Whose images these are; of a pool, labels of all sites are drawn.

    Raises
    ------
    ConfigError
        See :func:`require_covered` and :class:`RealSlices`.
    """

    def __init__(
        self,
        data: Dataset,
        architecture: Architecture,
        config: GanConfig,
        device: torch.device,
        *,
        mechanism: DPSGD,
        site: str,
    ) -> None:
        require_covered(config)
        super().__init__(data, architecture, config, device)
        self.mechanism = mechanism
        self._drawn = mechanism.batches(data.persons)
        own = {SITE: site} if site in dict(architecture.labels).get(SITE, ()) else {}
        self._known_labels = encode_labels(architecture, combinations(architecture, own)).to(device)

    @property
    def spread(self) -> float:
        """Not known: it is a statistic over people."""
        return 0.0

    def draw_labels(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw labels for fakes, all that a site can have alike: (count, label_dim)."""
        known = self._known_labels
        return known[torch.randint(len(known), (count,), generator=generator, device=known.device)]

    def skip(self, steps: int) -> None:
        """Draw the people of steps that are done."""
        for _ in range(steps):
            next(self._drawn)

    def people(
        self, mirroring: Callable[[str], torch.Generator]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield name, images (n, C, R, R) and labels (n, label_dim) of each person of a step.

        Each image is its mirror image with the chance 1/2, where the training mirrors.

        Parameters
        ----------
        mirroring : callable
            Given a person, returns a generator of the CPU.
        """
        for index in next(self._drawn):
            person = self.data.persons[index[0]]
            images = torch.from_numpy(self.data.take(index) * 2 - 1)
            if self.mirror:
                mirrored = torch.rand(len(images), generator=mirroring(person)) < 0.5
                images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
            labels = self.labels[torch.from_numpy(index).to(self.device)]
            yield person, images.to(self.device), labels
