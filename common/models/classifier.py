"""Classifiers of small volumes: a GroupNorm network for two cores, or MONAI's EfficientNet-B2.

GroupNorm, not BatchNorm: a site's batch statistics would describe its scanner, and averaging them
over sites describes no scanner at all (Hsieh et al. 2020, "The Non-IID Data Quagmire of
Decentralized Machine Learning", ICML).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 2


class SmallClassifier(nn.Module):
    """Four strided convolutions, then a linear layer that sees where a feature lies.

    Brains come in one orientation and place, and sex differences are regional: averaging over
    space would throw the region away.

    Parameters
    ----------
    image_size : int
        Voxels a side of the input cube.
    width : int
        Channels of the first layer; doubled twice.
    dropout : float
        Probability of dropping a feature before the linear layer.
    """

    def __init__(self, image_size: int, width: int = 8, dropout: float = 0.5) -> None:
        super().__init__()
        channels = [1, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        side = image_size
        for before, after in zip(channels[:-1], channels[1:], strict=True):
            layers += [
                nn.Conv3d(before, after, kernel_size=3, stride=2, padding=1, bias=False),
                nn.GroupNorm(min(8, after // 2), after),
                nn.ReLU(inplace=True),
            ]
            side = (side + 1) // 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels[-1] * side**3, CLASSES)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 2) of images (B, 1, S, S, S)."""
        return self.head(self.features(images))


def build_classifier(name: str, *, image_size: int, seed: int) -> nn.Module:
    """Build a classifier with initial weights that the seed decides.

    Parameters
    ----------
    name : {"small", "efficientnet-b2"}
    image_size : int
        Voxels a side of the input cube.
    seed : int

    Returns
    -------
    nn.Module
        Maps (B, 1, S, S, S) to logits (B, 2).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "small":
            return SmallClassifier(image_size)
        if name == "efficientnet-b2":
            from monai.networks.nets import EfficientNetBN

            return EfficientNetBN(
                "efficientnet-b2",
                pretrained=False,
                spatial_dims=3,
                in_channels=1,
                num_classes=CLASSES,
                norm=("group", {"num_groups": 8}),
            )
    raise ValueError(f"unknown classifier {name!r}")
