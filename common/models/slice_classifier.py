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

CELLS = 16  # a side, at most: a discriminator's features are means over cells of 13.5 mm
SD_FLOOR = 0.01  # of a feature's SD, in root mean squares of all of them: in air it is zero
# What decides the weights of a discriminator's blocks; latents and labels have no part in them.
BLOCK_SIZES = ("resolution", "channels", "channel_base", "channel_max")


class StackClassifier(nn.Module):
    """A linear layer on features of a stack of slices, which know their site.

    Features may be centered on their site. A scanner moves the features of all its scans, and a
    common model's threshold then fits no site but the largest. Adaptive batch normalization (Li et
    al. 2016, arXiv 1603.04779) takes a site's own statistics instead of those of the training; here
    the mean alone, since SDs of a dozen scans say little. It is that of the site's training scans,
    weighted so that each sex counts as much: a plain mean leans towards the sex that a site has
    more of, and the threshold leans with it. It is no part of the state: it never leaves the site,
    nobody averages it.

    Features may be in units of their SD over scans. What varies most of a head, its edge and its
    folds, says least of sex, and would be learned from first. The variance is part of the state:
    every site sends that of its own training scans, and all use the sites' average. It is averaged
    and sent as a logarithm, whose roundings are a few percent of any variance, large or small.

    Subclasses have ``represent``, (B, 1, L, R, R) to (B, features).

    Parameters
    ----------
    features : int
        How many there are of a stack.
    centered : bool
    scaled : bool
    frozen : bool
        Whether the linear layer alone learns.
    """

    def __init__(
        self, features: int, *, centered: bool, scaled: bool = False, frozen: bool = False
    ) -> None:
        super().__init__()
        self.centered, self.scaled, self.frozen = centered, scaled, frozen
        self.head = nn.Linear(features, CLASSES)
        self.register_buffer("log_variance", torch.zeros(features) if scaled else None)
        self.register_buffer("center", None, persistent=False)

    @torch.no_grad()
    def features_of(self, stacks: Tensor) -> Tensor:
        """Return features (N, features) of any number of stacks: means over both sides of a head.

        A head and its mirror image show the same person. They are on the classifier's device.
        """
        parts = stacks.to(self.head.weight.device).split(32)
        return torch.cat([(self.represent(x) + self.represent(x.flip(-1))) / 2 for x in parts])

    def survey(self, features: Tensor, scan_weights: Tensor) -> Tensor | None:
        """Take the mean of a site's training scans as the center.

        Parameters
        ----------
        features : (N, features) Tensor
            As `features_of` gives them.
        scan_weights : (N,) Tensor
            What each scan counts.

        Returns
        -------
        (features,) Tensor or None
            Where features are scaled, the logarithm of their variance about it: for `log_variance`
            after the training, so that it is averaged with what was learned. Zeros for one scan,
            which has none.
        """
        share = (scan_weights / scan_weights.sum()).to(features.device)
        self.center = share @ features
        if not self.scaled:
            return None
        variance = share @ (features - self.center).square()
        floor = SD_FLOOR**2 * variance.mean()
        return (variance + floor).log() if floor else torch.zeros_like(variance)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (B, 2) of features (B, features).

        Raises
        ------
        RuntimeError
            If it is centered and has not surveyed its site.
        """
        if self.centered:
            if self.center is None:
                raise RuntimeError("a centered classifier must first survey its site")
            features = features - self.center
        if self.scaled:
            features = features * (-self.log_variance / 2).exp()
        return self.head(features)

    def forward(self, stacks: Tensor) -> Tensor:
        """Return logits (B, 2) of stacks (B, 1, L, R, R) in [0, 1]; see `classify`."""
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
    width : int
        Channels that the convolution makes.
    centered : bool
        See :class:`StackClassifier`.
    """

    def __init__(
        self, levels: int, resolution: int, width: int = 32, *, centered: bool = False
    ) -> None:
        super().__init__(width * ((resolution + 1) // 2) ** 2, centered=centered)
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
    """A linear layer on what a layer of a StyleGAN2 discriminator makes of each slice.

    Its activations are averaged over cells of 13.5 mm (one activation, where those are wider): what
    differs between the sexes is wide, and what an edge a few millimetres off changes is narrow
    (morphometry smooths tissue maps for the same reason). Layer 0 is the convolution of single
    pixels that every StyleGAN2 discriminator begins with, so that its features are averages of
    functions of the intensity. The layers behind the blocks, which compare the pictures of a batch
    and judge whether they fit their labels, are left away: a head's features depend on this head
    alone.

    Frozen weights are numbers of float16. A federation's average of equal weights differs from
    them by its rounding; taken to the nearest float16, whose steps are thousands of times wider, it
    is the same weight again, bit for bit. They travel in float16 unharmed as well.

    Parameters
    ----------
    architecture : Architecture
        Of the discriminator.
    levels : int
        L, slices of a head.
    layer : int
        0 for the convolution of single pixels, n for the nth block, which halves the sides.
    tuned : bool
        Whether the discriminator's layers learn as well, or the linear layer alone.
    centered : bool
        See :class:`StackClassifier`.

    Raises
    ------
    ConfigError
        If the discriminator's pictures are not gray.
    """

    def __init__(
        self,
        architecture: Architecture,
        levels: int,
        *,
        layer: int = 0,
        tuned: bool,
        centered: bool = False,
    ) -> None:
        a = architecture
        if a.channels != 1:
            raise ConfigError(
                f"the discriminator sees pictures of {a.channels} channels, slices have 1: choose "
                "a `gan` of gray pictures, such as tiny-32"
            )
        sides = a.resolutions[::-1]  # of the first convolution and the blocks
        cells = min(sides[layer], CELLS)
        super().__init__(
            levels * a.width(sides[layer]) * cells * cells // 2,
            centered=centered,
            scaled=True,
            frozen=not tuned,
        )
        self.architecture = a
        whole = Discriminator(a)
        self.from_image = whole.from_image
        self.blocks = whole.blocks[:layer]
        self.cell = sides[layer] // cells  # activations a side
        self.from_image.requires_grad_(tuned)
        self.blocks.requires_grad_(tuned)
        self.register_load_state_dict_post_hook(_round_frozen)
        _round_frozen(self)

    def represent(self, stacks: Tensor) -> Tensor:
        """Return features (B, L · C · cells · cells / 2) of stacks (B, 1, L, R, R) in [0, 1].

        Means over a head and its mirror image, so that the cells of one half are all of them. Each
        head's are standardized by their own mean and SD, which takes a scan's gain out.
        """
        pictures = stacks.flatten(0, 2).unsqueeze(1) * 2 - 1
        half = self._half_of_blocks(pictures) if self.blocks else self._half_of_pixels(pictures)
        x = half.reshape(len(stacks), -1)
        return F.layer_norm(x, x.shape[1:])

    def _half_of_blocks(self, pictures: Tensor) -> Tensor:
        """Return the cells (N, C, cells, cells / 2) of one half of pictures (N, 1, R, R)."""
        x = torch.cat([pictures, pictures.flip(-1)])
        x = self.from_image(x.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        straight, mirrored = F.avg_pool2d(x, self.cell).chunk(2)
        return (straight + mirrored)[..., : straight.shape[-1] // 2] / 2

    def _half_of_pixels(self, pictures: Tensor) -> Tensor:
        """Return the same as `_half_of_blocks` for layer 0, many times as fast.

        The first pixels of all cells make a picture, their second ones another, and so on; the mean
        of these pictures' activations is that of the cells. One at a time fits into a processor's
        cache (3 MB for sixteen heads of twelve slices and 32 channels). Slices lie below one
        another: a convolution of single pixels sees no neighbour, so no border matters.
        """
        width = pictures.shape[-1] // 2
        pixels = [
            side[..., row :: self.cell, column :: self.cell]
            for side in (pictures[..., :width], pictures.flip(-1)[..., :width])
            for row in range(self.cell)
            for column in range(self.cell)
        ]
        shape = (len(pictures), *pixels[0].shape[2:])
        activations = (self.from_image(one.reshape(1, 1, -1, shape[-1])) for one in pixels)
        return (sum(activations) / len(pixels)).view(-1, *shape).transpose(0, 1)

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
