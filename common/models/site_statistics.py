"""A site's own statistics of features, taken from its training images without their labels.

A scanner or lens shifts and scales the features of all of a hospital's images. Adaptive batch
normalization (AdaBN, Li et al. 2016, arXiv 1603.04779) keeps the weights and normalizes by the
statistics of the place where the network is used. A network with running statistics has them in
all of its layers (:class:`common.models.efficientnet.FrozenBatchNorm`); one without, whose
GroupNorms see one image at a time, is given one such layer in front of its head.

These statistics are buffers that are no part of a model's state: they never leave the site, nobody
averages them, and no file has them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

SD_FLOOR = 0.01  # of a feature's SD, in root mean squares of all of them: in air it is zero


class SiteLayer(Protocol):
    """A layer with statistics of its site, where its ``of_site`` is true."""

    of_site: bool

    def begin(self, images: int) -> None:
        """Watch what comes next, of so many images."""

    def end(self, weights: Tensor, people: int) -> None:
        """Make statistics of what was seen: what each image counts, and how many people it is."""


class HeadStatistics(nn.Module):
    """Standardize what a head sees by the mean and, ``scaled``, the SDs of its site's images.

    Parameters
    ----------
    scaled : bool
    """

    of_site = True

    def __init__(self, *, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled
        self.seen: list[Tensor] | None = None
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("sd", None, persistent=False)

    def begin(self, images: int) -> None:
        """Watch what comes next."""
        del images
        self.seen = []

    def end(self, weights: Tensor, people: int) -> None:
        """Take mean and SDs of what was seen, in its order."""
        seen, self.seen = torch.cat(self.seen or []), None
        share = (weights / weights.sum()).to(seen)
        self.mean = share @ seen
        self.sd = None
        if self.scaled:
            self.sd = moderated(share @ (seen - self.mean).square(), people).sqrt()

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, F) to the same shape.

        Raises
        ------
        RuntimeError
            If it has not surveyed its site.
        """
        if self.seen is not None:
            self.seen.append(features)
            return features
        if self.mean is None:
            raise RuntimeError("a classifier that is adapted must first survey its site")
        features = features - self.mean
        return features if self.sd is None else features / self.sd


def moderated(variance: Tensor, people: int) -> Tensor:
    """Shrink variances of features over few people towards one another.

    The logarithm of a variance over n people has a sampling variance of ψ'((n - 1) / 2): of a
    dozen people, an SD is off by a fifth. As in empirical Bayes (Smyth 2004, *Stat Appl Genet Mol
    Biol* 3:3), the features' logarithms keep that part of their distance from their mean which
    this error does not explain; of many people all of it. A feature that hardly varies has the
    floor :data:`SD_FLOOR`. Ones for a single person, who has no variance.

    Parameters
    ----------
    variance : (F,) Tensor
    people : int
    """
    floor = SD_FLOOR**2 * variance.mean()
    if people < 2 or not floor:
        return torch.ones_like(variance)
    logs = (variance + floor).log()
    noise = torch.polygamma(1, torch.tensor((people - 1) / 2))
    spread = (logs.var(correction=0) - noise).clamp(min=0)
    return (logs.mean() + spread / (spread + noise) * (logs - logs.mean())).exp()


def take_site_statistics(model: nn.Module, adapt: str) -> None:
    """Let a classifier take its site's statistics: after each survey, and in training as well.

    Parameters
    ----------
    model : nn.Module
        With a linear layer ``head``, its last.
    adapt : {"none", "center", "statistics", "threshold"}
        "center": the mean of what the head sees. "statistics": all of a network with running
        statistics; of others mean and SDs of what the head sees. Else nothing.
    """
    if adapt not in ("center", "statistics"):
        return
    running = [one for one in model.modules() if hasattr(one, "of_site")]
    if adapt == "statistics" and running:
        for layer in running:
            layer.of_site = True
        return
    model.head.at_site = HeadStatistics(scaled=adapt == "statistics")
    model.head.register_forward_pre_hook(lambda head, given: (head.at_site(given[0]),))


def layers_of_site(model: nn.Module) -> list[SiteLayer]:
    """Return the layers of a model that take their site's statistics."""
    return [one for one in model.modules() if getattr(one, "of_site", False)]
