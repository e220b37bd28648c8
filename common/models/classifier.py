"""Classifiers of small volumes: a GroupNorm network for two cores, or MONAI's EfficientNet-B2.

GroupNorm, not BatchNorm: a site's batch statistics would describe its scanner, and averaging them
over sites describes no scanner at all (Hsieh et al. 2020, "The Non-IID Data Quagmire of
Decentralized Machine Learning", ICML).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.imaging.prepare import HEAD

CLIP_SD = 3.0
SIDE = 24  # voxels a side, about, that the small classifier looks at
CELLS = 3  # a side, of the grid that the small classifier's linear layer sees
GAIN = 8.0  # of that grid's values


class StandardizeHead(nn.Module):
    """Standardize each image by the mean and SD of its own head; air becomes the head's mean.

    Takes gain and contrast out without anybody's statistics, and with air at the mean the head's
    edge, the strongest edge of all, no longer drowns the weak differences inside.

    Parameters
    ----------
    block : int
        Voxels a side of the blocks that are averaged afterwards.
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 1, S, S, S) in [0, 1] to SDs of the head, clipped at ±3, S // block a side."""
        head = (images > HEAD).to(images.dtype)
        space = (1, 2, 3, 4)
        voxels = head.sum(space, keepdim=True).clamp(min=1)
        mean = (images * head).sum(space, keepdim=True) / voxels
        variance = ((images - mean) * head).square().sum(space, keepdim=True) / voxels
        heads = ((images - mean) / (variance + 1e-6).sqrt()).clamp(-CLIP_SD, CLIP_SD) * head
        return F.avg_pool3d(heads, self.block) if self.block > 1 else heads


class SmallClassifier(nn.Module):
    """Two convolutions of the standardized head, then a linear layer over 27 cells, not places.

    Sex differences are regional, so averaging over all of space would throw the region away; the
    second convolution sees what surrounds a place, and the mean over each cell keeps roughly where.

    A linear layer over every place stores a scan place by place: what it learns of one scan is the
    scan (Geiping et al. 2020, "Inverting Gradients", NeurIPS). Here the layer's gradient, whatever
    the weights are, holds 27 · 2 · width numbers a scan: means over cells some 60 mm wide. That is
    true of this layer alone: weights made for it read single places off the gradient of the second
    convolution. Few images a batch and few steps stay dangerous; a site has to bound them itself.

    Parameters
    ----------
    image_size : int
        Voxels a side of the input cube.
    classes : int
    width : int
        Channels of the first convolution; the second has twice as many.
    """

    def __init__(self, image_size: int, classes: int, width: int = 16) -> None:
        super().__init__()
        # Its kernels are made for voxels of about 9 mm. The outer twelfth on every side, 18 mm,
        # holds air and hardly any brain.
        block = max(1, round(image_size / SIDE))
        margin = round(image_size // block / 12)
        self.features = nn.Sequential(
            StandardizeHead(block),
            nn.ConstantPad3d(-margin, 0.0),
            nn.Conv3d(1, width, kernel_size=3, stride=2, padding=1),
            nn.GroupNorm(1, width),
            nn.ReLU(),
            nn.Conv3d(width, 2 * width, kernel_size=3, stride=2, padding=1),
            nn.GroupNorm(1, 2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(CELLS),
            nn.Flatten(),
        )
        self.head = nn.Linear(2 * width * CELLS**3, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, 1, S, S, S) in [0, 1]."""
        # Means vary little between people: unscaled, the head would learn too slowly.
        return self.head(GAIN * self.features(images))


class VolumeEfficientNet(nn.Sequential):
    """An EfficientNet of standardized heads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(StandardizeHead(), network)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer."""
        return self[1]._fc


def build_classifier(name: str, *, image_size: int, classes: int, seed: int) -> nn.Module:
    """Build a classifier with initial weights that the seed decides.

    Parameters
    ----------
    name : {"small", "efficientnet-b0", "efficientnet-b2"}
    image_size : int
        Voxels a side of the input cube.
    classes : int
    seed : int

    Returns
    -------
    nn.Module
        Maps (B, 1, S, S, S) to logits (B, K).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "small":
            return SmallClassifier(image_size, classes)
        if name in ("efficientnet-b0", "efficientnet-b2"):
            from monai.networks.nets import EfficientNetBN

            network = EfficientNetBN(
                name,
                pretrained=False,
                spatial_dims=3,
                in_channels=1,
                num_classes=classes,
                norm=("group", {"num_groups": 8}),
            )
            return VolumeEfficientNet(network)
    raise ValueError(f"unknown classifier {name!r}")
