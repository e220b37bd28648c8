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
CELLS = 3  # a side, of the grid that the small classifier's linear layer sees
GAIN = 8.0  # of that grid's values


class StandardizeHead(nn.Module):
    """Standardize each image by the mean and SD of its own head; air becomes the head's mean.

    Takes gain and contrast out without anybody's statistics, and with air at the mean the head's
    edge, the strongest edge of all, no longer drowns the weak differences inside.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 1, S, S, S) in [0, 1] to the same shape, in SDs of the head, clipped at ±3."""
        head = (images > HEAD).to(images.dtype)
        space = (1, 2, 3, 4)
        voxels = head.sum(space, keepdim=True).clamp(min=1)
        mean = (images * head).sum(space, keepdim=True) / voxels
        variance = ((images - mean) * head).square().sum(space, keepdim=True) / voxels
        return ((images - mean) / (variance + 1e-6).sqrt()).clamp(-CLIP_SD, CLIP_SD) * head


class HalvedHead(nn.Module):
    """Standardized heads at half the resolution, in a third of the time of two modules.

    The means over blocks of 2 x 2 x 2 voxels of what :class:`StandardizeHead` gives, except that
    blocks are clipped at ±3 SD and not voxels. To standardize after averaging would be cheaper and
    wrong: a block on the head's edge, half of it air, would be darker than anything inside.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 1, S, S, S) in [0, 1] to (B, 1, S // 2, S // 2, S // 2), in SDs of the head."""
        head = F.threshold(images, HEAD, 0.0)
        inside = (head > 0).to(images.dtype)
        space = (1, 2, 3, 4)
        voxels = inside.sum(space, keepdim=True).clamp(min=1)
        mean = head.sum(space, keepdim=True) / voxels
        squares = torch.linalg.vector_norm(head, dim=space, keepdim=True).square() / voxels
        deviation = (squares - mean.square()).clamp(min=0).add(1e-6).sqrt()
        blocks = _halved(head).sub_(mean * _halved(inside)).div_(deviation)
        return blocks.clamp_(-CLIP_SD, CLIP_SD)


def _halved(images: Tensor) -> Tensor:
    """Means over blocks of 2 x 2 x 2 voxels, as ``F.avg_pool3d``, in a third of its time."""
    x, y, z = (side // 2 * 2 for side in images.shape[2:])  # a last odd plane is left out
    images = images[..., 0:x:2, :, :] + images[..., 1:x:2, :, :]
    images = images[..., 0:y:2, :] + images[..., 1:y:2, :]
    return (images[..., 0:z:2] + images[..., 1:z:2]).div_(8)


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
        # The outer twelfth on every side, 18 mm, holds air and hardly any brain.
        margin = round(image_size // 2 / 12)
        self.features = nn.Sequential(
            HalvedHead(),
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
