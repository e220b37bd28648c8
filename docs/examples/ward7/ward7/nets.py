"""A classifier of our own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Two convolutions, with BatchNorm, Dropout and a buffer of whole numbers."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.2),
        )
        self.register_buffer("order", torch.arange(256).flip(0))
        self.head = nn.Linear(256, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, S, S) to logits (B, K)."""
        return self.head(self.body(images)[:, self.order])


def small(channels: int, classes: int, size: int) -> nn.Module:
    """Build it; fedscan calls this with the study's channels, classes and size."""
    del size  # any
    return Small(channels, classes)
