"""The network behind the default feature extractor: four convolutions that keep the place.

Averaging over all places would forget where things are, and a brain is told from noise of the same
texture by where things are. So the last map, 8 x 8 places of 48 channels, is kept whole, and its
64 principal components over real slices are the features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 64  # pixels a side of the pictures that the network sees
PLACES = 8  # of the last map, a side: 27 mm each
WIDTHS = (16, 32, 48)
FEATURES = 64
MARKS = 3  # blur, noise, displaced patches: see `common.evaluation.brain_training`


class BrainNetwork(nn.Module):
    """Small convolutional network with two linear heads that only its training needs.

    Both heads read the last map place by place, so whatever they tell is linear in it: `restore`
    gives the undistorted pixels of the place, `marks` which distortion it shows and how strong.

    State beyond the weights: ``mean`` (M,), ``projection`` (M, `FEATURES`) with
    M = 48 · 8 · 8, from the flattened last map to features; set by `set_components`.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(1, first, 5, stride=2, padding=2),
                nn.Conv2d(first, second, 3, stride=2, padding=1),
                nn.Conv2d(second, third, 3, stride=2, padding=1),
                nn.Conv2d(third, third, 3, padding=1),
            ]
        )
        self.restore = nn.Conv2d(third, (SIZE // PLACES) ** 2, 1)
        self.marks = nn.Conv2d(third, MARKS, 1)
        length = third * PLACES**2
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("projection", torch.zeros(length, FEATURES))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Map (N, 1, 64, 64) in [-1, 1] to (N, C, side, side), sides 32, 16, 8 and 8."""
        found = []
        for convolution in self.convolutions:
            images = F.silu(convolution(images))
            found.append(images)
        return found

    def features(self, images: Tensor) -> Tensor:
        """Map (N, 1, 64, 64) in [-1, 1] to float64 (N, `FEATURES`)."""
        flat = self.maps(images)[-1].flatten(1).double()
        return (flat - self.mean.double()) @ self.projection.double()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return restored pictures (N, 1, 64, 64) and marks (N, `MARKS`, 8, 8)."""
        last = self.maps(images)[-1]
        return F.pixel_shuffle(self.restore(last), SIZE // PLACES), self.marks(last)

    @torch.no_grad()
    def set_components(self, images: Tensor, batch: int = 128) -> None:
        """Let the features be the principal components of these real slices.

        One factor scales all, so that their mean variance over the slices is 1: components keep
        their relative sizes, and the kernel distance's kernel meets numbers of the size it is for.
        """
        parts = [self.maps(part)[-1].flatten(1) for part in images.split(batch)]
        flat = torch.cat(parts).double()  # (N, M)
        mean = flat.mean(dim=0)
        centred = flat - mean
        # There are fewer slices than map values, and X Xᵀ has all of XᵀX's positive eigenvalues.
        values, left = torch.linalg.eigh(centred @ centred.T / (len(flat) - 1))  # ascending
        main = F.normalize(centred.T @ left[:, -FEATURES:].flip(1), dim=0)
        largest = main.gather(0, main.abs().argmax(dim=0, keepdim=True))
        main = main * largest.sign()  # an eigenvector's sign is arbitrary: fix it
        self.mean.copy_(mean)
        self.projection.copy_(main / values[-FEATURES:].mean().sqrt())
