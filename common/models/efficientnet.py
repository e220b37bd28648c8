"""EfficientNet of pictures (Tan and Le 2019, ICML), MONAI's, fit for a federation.

*From scratch* every BatchNorm is a GroupNorm, for the reason in :mod:`common.models.classifier`.

*From pretrained weights* the BatchNorms stay, since the weights mean nothing without them, and are
frozen: they normalize by the file's statistics in training as in evaluation, at every site alike,
and only their gains and offsets learn. That the file's images are not a hospital's is left to
these to make up for, unless each site takes its own statistics (`model.adapt`), which it computes
for itself and never sends.

Weights of the three common sources are used as they were trained. Two details of them differ, and
both are part of the state, so that who gets a state needs no file: BatchNorm's ε, which is added to
the stored variances; and what a strided convolution adds to a side of even length, one zero at each
end, or, in TensorFlow and all that comes from it, at the far end only (``same_padding``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.standardize import StandardizeImageNet, StandardizePicture

GROUPS = 8  # divides every number of channels in any EfficientNet
FILE_COUNTS = 16  # images that a file's statistics count like, beside a site's own


class FrozenBatchNorm(nn.Module):
    """Normalize channels by fixed statistics: weight · (x - mean) / √variance + bias.

    At a site that takes its own, mean and variance of n of its images take the place of the file's
    as (n · own + 16 · file's) / (n + 16), since a few images say little, and the deep layers see
    few pixels of each (Schneider et al. 2020, "Improving robustness against common corruptions by
    covariate shift adaptation", NeurIPS, arXiv 2006.16971). They are no part of the state.

    Parameters
    ----------
    channels : int
    """

    normalizes = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.of_site = False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))  # with the file's ε
        self.register_buffer("site_mean", None, persistent=False)
        self.register_buffer("site_variance", None, persistent=False)
        self.seen: list[tuple[int, Tensor, Tensor]] | None = None
        self.trust = 0.0  # in the site's own statistics

    def begin(self, images: int) -> None:
        """Normalize what comes next, of so many images, by itself, and remember by what."""
        self.trust = images / (images + FILE_COUNTS)
        self.seen = []

    def end(self, weights: Tensor, people: int) -> None:
        """Take the statistics of all that was seen."""
        del weights, people
        counts, means, variances = zip(*self.seen or [], strict=True)
        self.seen = None
        share = torch.tensor(counts).to(means[0]) / sum(counts)
        means, variances = torch.stack(means), torch.stack(variances)
        mean = share @ means
        variance = share @ (variances + means.square()) - mean.square()
        self.site_mean, self.site_variance = self._blended(mean, variance)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape.

        Raises
        ------
        RuntimeError
            If it is to take its site's statistics, and there are none yet.
        """
        mean, variance = self.mean, self.variance
        if self.seen is not None:
            variance, mean = torch.var_mean(images, (0, 2, 3), correction=0)
            self.seen.append((len(images), mean, variance))
            mean, variance = self._blended(mean, variance)
        elif self.of_site:
            if self.site_mean is None:
                raise RuntimeError("a classifier that is adapted must first survey its site")
            mean, variance = self.site_mean, self.site_variance
        return F.batch_norm(images, mean, variance, self.weight, self.bias, training=False, eps=0.0)

    def _blended(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return torch.lerp(self.mean, mean, self.trust), torch.lerp(
            self.variance, variance.clamp(min=0), self.trust
        )


class StridedPadding(nn.Module):
    """Zeros about a map before a convolution of stride 2.

    Parameters
    ----------
    same : nn.Module
        TensorFlow's padding, for the side that the network was designed for.
    margin : int
        Of the other padding, at each end.
    """

    def __init__(self, same: nn.Module, margin: int) -> None:
        super().__init__()
        self.tensorflow = False
        self._same, self._even = same, nn.ZeroPad2d(margin)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, C, H, W) with zeros about it."""
        return self._same(maps) if self.tensorflow else self._even(maps)


class PictureEfficientNet(nn.Module):
    """EfficientNet-B0 or -B2 of standardized pictures.

    Parameters
    ----------
    name : {"efficientnet-b0", "efficientnet-b2"}
    channels : int
        1 or 3.
    classes : int
    pretrained : bool
        Build the network that pretrained weights fit: frozen BatchNorms, inputs standardized as
        ImageNet's, and grey pictures shown to it as grey in three channels.
    """

    def __init__(self, name: str, channels: int, classes: int, *, pretrained: bool) -> None:
        from monai.networks.nets import EfficientNetBN

        super().__init__()
        self.standardize = StandardizeImageNet() if pretrained else StandardizePicture()
        self.network = EfficientNetBN(
            name,
            pretrained=False,
            spatial_dims=2,
            in_channels=3 if pretrained else channels,
            num_classes=classes,
            norm="batch" if pretrained else ("group", {"num_groups": GROUPS}),
        )
        self._pad()
        if pretrained:
            _freeze(self.network)
            self.register_buffer("same_padding", torch.zeros(1))
            self.register_load_state_dict_post_hook(_choose_padding)
        else:
            # A black picture's maps would all be zeros without a bias, and its gradient multiplied
            # by 1 / √ε in each of 49 norms.
            stem = self.network._conv_stem
            stem.bias = nn.Parameter(torch.empty(stem.out_channels).uniform_(-0.2, 0.2))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of pictures (B, C, S, S) in [0, 1]."""
        return self.network(self.standardize(images))

    @property
    def head(self) -> nn.Linear:
        """The last linear layer."""
        return self.network._fc

    def blocks(self) -> list[list[nn.Module]]:
        """Blocks by stage."""
        return [list(stage) for stage in self.network._blocks]

    def _pad(self) -> None:
        """Replace MONAI's padding of strided convolutions; at stride 1 there is only one."""
        net = self.network
        net._conv_stem_padding = StridedPadding(net._conv_stem_padding, 1)
        for block in (block for stage in self.blocks() for block in stage):
            if block.stride != 1:
                margin = block._depthwise_conv.kernel_size[0] // 2
                padding = StridedPadding(block._depthwise_conv_padding, margin)
                block._depthwise_conv_padding = padding


def _freeze(module: nn.Module) -> None:
    """Replace all BatchNorms below a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm(child.num_features))
        else:
            _freeze(child)


def _choose_padding(model: nn.Module, _: object) -> None:
    """After loading a state: pad as the weights in it were trained."""
    for module in model.modules():
        if isinstance(module, StridedPadding):
            module.tensorflow = bool(model.same_padding > 0.5)
