"""Classifiers of the axial slices of a head: a small network, or the features of a discriminator.

A head is a stack of a few slices at known heights. Both end in a linear layer over all heights and
places: sex differences are regional, so that an average over either would throw away what is looked
for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConfigError
from common.models.architecture import Architecture
from common.models.classifier import CLASSES, StandardizeHead
from common.models.discriminator import Discriminator

FEATURE_SIDE = 8  # pixels a side of the discriminator's activations that are its features
# What decides the weights of a discriminator's blocks; latents and labels have no part in them.
BLOCK_SIZES = ("resolution", "channels", "channel_base", "channel_max")


class StackClassifier(nn.Module):
    """A linear layer on features of a stack of slices, which may be centered on their site.

    A scanner moves the features of all its scans, and a common model's threshold then fits no site
    but the largest. Adaptive batch normalization (Li et al. 2016, arXiv 1603.04779) takes a site's
    own statistics instead of those of the training; here the mean alone, since SDs of a dozen scans
    say little. While training it is the mean of the batch, afterwards of the site's training scans,
    by :meth:`center_on`. It is no part of the state: it never leaves the site, nobody averages it.

    Other than there, labels weight the mean so that each sex counts as much over a site's training
    scans; a single batch may lean. A plain mean leans towards the sex that a site has more of, and
    the threshold leans with it.

    Subclasses have ``represent``, (B, 1, L, R, R) to (B, features), and ``head``.

    Parameters
    ----------
    centered : bool
    """

    def __init__(self, *, centered: bool) -> None:
        super().__init__()
        self.centered = centered
        self.register_buffer("center", None, persistent=False)

    @torch.no_grad()
    def center_on(self, stacks: Tensor, scan_weights: Tensor) -> None:
        """Take the mean of a site's training scans and of their mirror images.

        Parameters
        ----------
        stacks : (N, 1, L, R, R) Tensor
        scan_weights : (N,) Tensor
            What each scan counts in the mean.
        """
        device = self.head.weight.device
        parts = zip(stacks.to(device).split(32), scan_weights.to(device).split(32), strict=True)
        sums = [
            weight @ (self.represent(part) + self.represent(part.flip(-1))) / 2
            for part, weight in parts
        ]
        self.center = torch.stack(sums).sum(0) / scan_weights.sum()

    def forward(self, stacks: Tensor, scan_weights: Tensor | None = None) -> Tensor:
        """Return logits (B, 2) of stacks.

        Parameters
        ----------
        stacks : (B, 1, L, R, R) Tensor
            In [0, 1].
        scan_weights : (B,) Tensor, optional
            What each counts in the batch's mean, if it is centered and in training.

        Raises
        ------
        RuntimeError
            If it is centered and lacks what it needs: in training weights, else :meth:`center_on`.
        """
        x = self.represent(stacks)
        if self.centered and self.training:
            if scan_weights is None:
                raise RuntimeError("a centered classifier in training needs the scans' weights")
            x = x - scan_weights @ x / scan_weights.sum()
        elif self.centered:
            if self.center is None:
                raise RuntimeError("a centered classifier must be told its site: center_on")
            x = x - self.center
        return self.head(x)


class SliceClassifier(StackClassifier):
    """One convolution of the standardized slices together, then a linear layer over all places.

    The heights are the convolution's channels: what is a cortex at one height is told from what is
    a ventricle at another.

    Parameters
    ----------
    levels : int
        L, slices of a head.
    resolution : int
        R, pixels a side.
    width : int
        Channels that the convolution makes.
    centered : bool
        See :class:`StackClassifier`.
    """

    def __init__(
        self, levels: int, resolution: int, width: int = 32, *, centered: bool = False
    ) -> None:
        super().__init__(centered=centered)
        self.standardize = StandardizeHead()
        self.features = nn.Sequential(
            nn.Conv2d(levels, width, kernel_size=5, stride=2, padding=2),
            nn.GroupNorm(1, width),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(width * ((resolution + 1) // 2) ** 2, CLASSES)

    def represent(self, stacks: Tensor) -> Tensor:
        """Return features (B, width · (R / 2)²) of stacks (B, 1, L, R, R) in [0, 1]."""
        return self.features(self.standardize(stacks).squeeze(1))


class DiscriminatorClassifier(StackClassifier):
    """A linear layer on what the first blocks of a StyleGAN2 discriminator make of each slice.

    The layers behind, which compare the pictures of a batch and judge whether they fit their
    labels, are left away: a head's features depend on this head alone.

    Frozen weights are numbers of float16. A federation's average of equal weights differs from
    them by its rounding; taken to the nearest float16, whose steps are thousands of times wider, it
    is the same weight again, bit for bit. They travel in float16 unharmed as well.

    Parameters
    ----------
    architecture : Architecture
        Of the discriminator.
    levels : int
        L, slices of a head.
    tuned : bool
        Whether the blocks learn as well, or the linear layer alone.
    centered : bool
        See :class:`StackClassifier`.

    Raises
    ------
    ConfigError
        If the discriminator's pictures are not gray.
    """

    def __init__(
        self, architecture: Architecture, levels: int, *, tuned: bool, centered: bool = False
    ) -> None:
        super().__init__(centered=centered)
        a = self.architecture = architecture
        if a.channels != 1:
            raise ConfigError(
                f"the discriminator sees pictures of {a.channels} channels, slices have 1: choose "
                "a `gan` of gray pictures, such as tiny-32"
            )
        whole = Discriminator(a)
        count = a.resolutions[::-1].index(FEATURE_SIDE)
        self.from_image = whole.from_image
        self.blocks = whole.blocks[:count]
        self.head = nn.Linear(levels * a.width(FEATURE_SIDE) * FEATURE_SIDE**2, CLASSES)
        self.tuned = tuned
        self.from_image.requires_grad_(tuned)
        self.blocks.requires_grad_(tuned)
        self.register_load_state_dict_post_hook(_round_frozen)
        _round_frozen(self)

    def represent(self, stacks: Tensor) -> Tensor:
        """Return features (B, L · C · 8 · 8) of stacks (B, 1, L, R, R) in [0, 1].

        Each head's are standardized by their own mean and SD.
        """
        x = stacks.flatten(0, 2).unsqueeze(1) * 2 - 1  # (B · L, 1, R, R), as the GAN had them
        x = self.from_image(x.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        x = x.reshape(len(stacks), -1)
        return F.layer_norm(x, x.shape[1:])

    def take_over(self, discriminator: Discriminator) -> None:
        """Begin with the weights of a trained discriminator.

        Raises
        ------
        ConfigError
            If its sizes are others, or it was never trained.
        """
        ours, theirs = self.architecture, discriminator.architecture
        differ = [
            f"{name.replace('_', '-')} {getattr(theirs, name)} instead of {getattr(ours, name)}"
            for name in BLOCK_SIZES
            if getattr(theirs, name) != getattr(ours, name)
        ]
        if differ:
            raise ConfigError(
                f"the discriminator has other sizes than the run's: {', '.join(differ)}. Set `gan` "
                "and `gan-changes` to those that it was trained with"
            )
        wanted = self.state_dict()
        given = {k: v for k, v in discriminator.state_dict().items() if k in wanted}
        biases = [tensor for name, tensor in given.items() if name.endswith("bias")]
        if not any(bias.any() for bias in biases):  # they begin with zeros
            raise ConfigError(
                "the discriminator was never trained: where `share` was 'generator', each site has "
                "kept its own. Take a run with share = 'both'"
            )
        self.load_state_dict({**wanted, **given}, strict=True)


def _round_frozen(model: DiscriminatorClassifier, _: Any = None) -> None:
    """Take frozen weights to the nearest float16; a hook after weights were loaded."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.copy_(parameter.half())
