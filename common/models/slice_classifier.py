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
from common.models.classifier import StandardizeHead
from common.models.discriminator import Discriminator
from common.models.site_statistics import SD_FLOOR

CELLS = 16  # a side, at most: a discriminator's features are means over cells of 13.5 mm
# What decides the weights of a discriminator's blocks; latents and labels have no part in them.
BLOCK_SIZES = ("resolution", "channels", "channel_base", "channel_max")


class StackClassifier(nn.Module):
    """A linear layer on features of a stack of slices.

    Features may be in units of their SD over scans. What varies most of a head, its edge and its
    folds, says least of sex, and would be learned from first. The variance is part of the state:
    every site sends that of its own training scans, and all use the sites' average. It is averaged
    and sent as a logarithm, whose roundings are a few percent of any variance, large or small.

    Subclasses have ``represent``, (B, 1, L, R, R) to (B, features).

    Parameters
    ----------
    features : int
        How many there are of a stack.
    classes : int
    scaled : bool
    frozen : bool
        Whether the linear layer alone learns.
    """

    def __init__(
        self, features: int, classes: int, *, scaled: bool = False, frozen: bool = False
    ) -> None:
        super().__init__()
        self.scaled, self.frozen = scaled, frozen
        self.head = nn.Linear(features, classes)
        self.register_buffer("log_variance", torch.zeros(features) if scaled else None)

    @torch.no_grad()
    def features_of(self, stacks: Tensor) -> Tensor:
        """Return features (N, features) of any number of stacks: means over both sides of a head.

        A head and its mirror image show the same person. They are on the classifier's device.
        """
        parts = stacks.to(self.head.weight.device).split(32)
        return torch.cat([(self.represent(x) + self.represent(x.flip(-1))) / 2 for x in parts])

    @staticmethod
    def log_variance_of(features: Tensor, scan_weights: Tensor) -> Tensor:
        """Return the logarithm of the features' variance over a site's training scans.

        For `log_variance` after the training, so that it is averaged with what was learned.

        Parameters
        ----------
        features : (N, features) Tensor
            As `features_of` gives them.
        scan_weights : (N,) Tensor
            What each scan counts.

        Returns
        -------
        (features,) Tensor
            Zeros for one scan, which has none.
        """
        share = (scan_weights / scan_weights.sum()).to(features.device)
        variance = share @ (features - share @ features).square()
        floor = SD_FLOOR**2 * variance.mean()
        return (variance + floor).log() if floor else torch.zeros_like(variance)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (B, K) of features (B, features)."""
        if self.scaled:
            features = features * (-self.log_variance / 2).exp()
        return self.head(features)

    def forward(self, stacks: Tensor) -> Tensor:
        """Return logits (B, K) of stacks (B, 1, L, R, R) in [0, 1]; see `classify`."""
        return self.classify(self.represent(stacks))


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
    classes : int
    width : int
        Channels that the convolution makes.
    """

    def __init__(
        self,
        levels: int,
        resolution: int,
        classes: int,
        width: int = 32,
    ) -> None:
        super().__init__(width * ((resolution + 1) // 2) ** 2, classes)
        self.standardize = StandardizeHead()
        self.features = nn.Sequential(
            nn.Conv2d(levels, width, kernel_size=5, stride=2, padding=2),
            nn.GroupNorm(1, width),
            nn.ReLU(),
            nn.Flatten(),
        )

    def represent(self, stacks: Tensor) -> Tensor:
        """Return features (B, width · (R / 2)²) of stacks (B, 1, L, R, R) in [0, 1]."""
        return self.features(self.standardize(stacks).squeeze(1))


class DiscriminatorClassifier(StackClassifier):
    """A linear layer on what the first layer of a StyleGAN2 discriminator makes of each picture.

    The layer is the convolution of single pixels that every StyleGAN2 discriminator begins with, so
    that its features are averages of functions of the intensity. Its activations are averaged over
    cells (of 13.5 mm in a head; one activation, where those are wider): what differs between the
    sexes is wide, and what an edge a few millimetres off changes is narrow (morphometry smooths
    tissue maps for the same reason). A picture's features depend on this picture alone.

    The discriminator's weights are frozen, and numbers of float16. A federation's average of equal
    weights differs from them by its rounding; taken to the nearest float16, whose steps are
    thousands of times wider, it is the same weight again, bit for bit. They travel in float16
    unharmed as well.

    Parameters
    ----------
    architecture : Architecture
        Of the discriminator.
    levels : int
        L, slices of a head; 1 for a picture.
    mirrored : bool
        An image and its mirror image show the same, so that features are means over both; not so
        an X-ray, where heart and liver have a side.
    """

    def __init__(
        self,
        architecture: Architecture,
        levels: int,
        classes: int,
        *,
        mirrored: bool = True,
    ) -> None:
        side = architecture.resolution
        cells = min(side, CELLS)
        super().__init__(
            levels * architecture.width(side) * cells * cells // (2 if mirrored else 1),
            classes,
            scaled=True,
            frozen=True,
        )
        self.architecture, self.mirrored = architecture, mirrored
        self.from_image = Discriminator(architecture).from_image
        self.cell = side // cells  # pixels a side
        self.from_image.requires_grad_(False)
        self.register_load_state_dict_post_hook(_round_frozen)
        _round_frozen(self)

    def represent(self, stacks: Tensor) -> Tensor:
        """Return features (B, L · W · cells · cells / 2) of stacks (B, 1, L, R, R) in [0, 1].

        Or of pictures (B, C, R, R). Means over an image and its mirror image, so that the cells of
        one half are all of them; where it is not mirrored, (B, L · W · cells · cells). Each image's
        are standardized by their own mean and SD, which takes a scan's gain out.

        The first pixels of all cells make a picture, their second ones another, and so on; the mean
        of these pictures' activations is that of the cells. One at a time fits into a processor's
        cache (3 MB for sixteen heads of twelve slices and 32 channels). Pictures lie below one
        another: a convolution of single pixels sees no neighbour, so no border matters.
        """
        side = stacks.shape[-1]
        pictures = stacks.reshape(-1, self.architecture.channels, side, side) * 2 - 1
        below = pictures.transpose(0, 1)  # (C, N, R, R)
        half = side // 2
        sides = (below[..., :half], below.flip(-1)[..., :half]) if self.mirrored else (below,)
        pixels = [
            one[..., row :: self.cell, column :: self.cell]
            for one in sides
            for row in range(self.cell)
            for column in range(self.cell)
        ]
        shape = pixels[0].shape  # (C, N, cells, cells or half of them)
        activations = (self.from_image(one.reshape(1, shape[0], -1, shape[-1])) for one in pixels)
        cells = (sum(activations) / len(pixels)).view(-1, *shape[1:]).transpose(0, 1)
        x = cells.reshape(len(stacks), -1)
        return F.layer_norm(x, x.shape[1:])

    @torch.no_grad()
    def features_of(self, stacks: Tensor) -> Tensor:
        """Return features (N, features) of any number of stacks; both sides are in them already."""
        parts = stacks.to(self.head.weight.device).split(32)
        return torch.cat([self.represent(part) for part in parts])

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
                f"the discriminator has other sizes than the run's: {', '.join(differ)}. Set "
                "model.gan and model.gan-changes to those that it was trained with"
            )
        wanted = self.state_dict()
        given = {k: v for k, v in discriminator.state_dict().items() if k in wanted}
        biases = [tensor for name, tensor in given.items() if name.endswith("bias")]
        if not any(bias.any() for bias in biases):  # they begin with zeros
            raise ConfigError(
                "the discriminator was never trained: where strategy.share was 'generator', each "
                "site has kept its own. Take a run with strategy.share = 'both'"
            )
        self.load_state_dict({**wanted, **given}, strict=True)


def _round_frozen(model: DiscriminatorClassifier, _: Any = None) -> None:
    """Take frozen weights to the nearest float16; a hook after weights were loaded."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.copy_(parameter.half())
