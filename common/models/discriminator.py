"""StyleGAN2's discriminator: residual blocks, deviation within a minibatch, projected labels.

[SG2] Karras et al.: Analyzing and Improving the Image Quality of StyleGAN, arXiv 1912.04958.

Shapes: N images, C channels, R the resolution, L label entries. Activations are kept channels-last.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from common.models.architecture import Architecture
from common.models.layers import Convolution, Dense, normalize
from common.models.resample import depthwise, downsample, fir_filter


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the sides ([SG2], figure 7 c)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Convolution(inputs, inputs, 3)
        self.second = Convolution(inputs, outputs, 3, gain=math.sqrt(0.5))
        self.skip = Convolution(inputs, outputs, 1, activation=False, gain=math.sqrt(0.5))
        self.register_buffer("fir", fir_filter(), persistent=False)
        self.half: torch.dtype | None = None  # set by `set_precision`

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, R, R) to (N, O, R/2, R/2)."""
        x = x.to(self.half or self.fir.dtype)
        skip = self.skip(downsample(x, self.fir))
        x = depthwise(self.first(x, padding=1), self.fir, padding=2)
        return skip + self.second(x, stride=2)


def minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """Append a channel with the standard deviation within groups (arXiv 1710.10196, section 3).

    Parameters
    ----------
    x : Tensor
        (N, C, H, W); N a multiple of the group, or smaller.
    group : int
        Images a group; image i is in group i mod (N / group).

    Returns
    -------
    Tensor
        (N, C + 1, H, W).
    """
    n, c, h, w = x.shape
    group = min(group, n)
    y = x.reshape(group, n // group, c, h, w)
    y = (y - y.mean(0)).square().mean(0)  # (N / group, C, H, W)
    y = (y + 1e-8).sqrt().mean((1, 2, 3))  # (N / group,)
    return torch.cat([x, y.repeat(group)[:, None, None, None].expand(-1, 1, h, w)], 1)


class Discriminator(nn.Module):
    """Residual discriminator; labels enter by projection (Miyato, Koyama, arXiv 1802.05637).

    Parameters
    ----------
    architecture : Architecture
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        resolutions = a.resolutions[::-1]  # from the picture's down to 4
        self.from_image = Convolution(a.channels, a.width(resolutions[0]), 1)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(a.width(r), a.width(r // 2)) for r in resolutions[:-1]
        )
        width = a.width(4)
        self.last = Convolution(width + 1, width, 3)
        self.dense = Dense(width * 16, width, activation=True)
        self.output = Dense(width, width if a.label_dim else 1)
        self.embed = self.label_layers = None
        if a.label_dim:
            self.embed = Dense(a.label_dim, width)
            self.label_layers = nn.Sequential(
                *(Dense(width, width, rate=0.01, activation=True) for _ in range(a.label_layers))
            )

    def features(self, images: Tensor) -> Tensor:
        """Return the activations (N, width at 4 × 4) that the last layer judges."""
        x = images.to(self.blocks[0].half or images.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.from_image(x)
        for block in self.blocks:
            x = block(x)
        x = x.to(self.dense.weight.dtype)  # what compares images does so in full precision
        x = minibatch_deviation(x, self.architecture.minibatch_group)
        # The dense layer's weights are in the order channel, row, column.
        return self.dense(self.last(x, padding=1).flatten(1))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Judge pictures.

        Parameters
        ----------
        images : Tensor
            (N, C, R, R).
        labels : Tensor
            (N, L).

        Returns
        -------
        Tensor
            Logits (N,), float32: the higher, the more real.
        """
        x = self.output(self.features(images))
        if self.embed is None:
            return x.squeeze(1)
        condition = self.label_layers(normalize(self.embed(labels)))  # (N, width)
        return (x * condition).sum(1) / condition.shape[1] ** 0.5
