"""The network behind the default feature extractors: four convolutions that keep the place.

Averaging over all places would forget where things are, and a brain is told from noise of the same
texture by where things are. So the last map, 8 x 8 places of 48 channels, is kept whole, and its
64 linear combinations of its values, found by principal components, are the features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 64  # pixels a side of the pictures that the network sees
PLACES = 8  # of the last map, a side
WIDTHS = (16, 32, 48)
FEATURES = 64
OF_DISTORTIONS = 24  # of them, in `fedscan-skin`
MARKS = {1: 3, 3: 4}  # by channels; which ones: see `common.evaluation.extractors.training`

_BATCH = 128


class PlaceNetwork(nn.Module):
    """Small convolutional network with two linear heads that only its training needs.

    Both heads read the last map place by place, so whatever they tell is linear in it: `restore`
    gives the undistorted pixels of the place, `marks` which distortion it shows and how strong.

    State beyond the weights: ``mean`` (M,), ``projection`` (M, `FEATURES`) with
    M = 48 · 8 · 8, from the flattened last map to features; set by `set_components`.

    Parameters
    ----------
    channels : int
        C, 1 for grey pictures or 3 for colour.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels
        first, second, third = WIDTHS
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(channels, first, 5, stride=2, padding=2),
                nn.Conv2d(first, second, 3, stride=2, padding=1),
                nn.Conv2d(second, third, 3, stride=2, padding=1),
                nn.Conv2d(third, third, 3, padding=1),
            ]
        )
        self.restore = nn.Conv2d(third, channels * (SIZE // PLACES) ** 2, 1)
        self.marks = nn.Conv2d(third, MARKS[channels], 1)
        length = third * PLACES**2
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("projection", torch.zeros(length, FEATURES))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Map (N, C, 64, 64) in [-1, 1] to (N, width, side, side), sides 32, 16, 8 and 8."""
        found = []
        for convolution in self.convolutions:
            images = F.silu(convolution(images))
            found.append(images)
        return found

    def features(self, images: Tensor) -> Tensor:
        """Map (N, C, 64, 64) in [-1, 1] to float64 (N, `FEATURES`)."""
        flat = self.maps(images)[-1].flatten(1).double()
        return (flat - self.mean.double()) @ self.projection.double()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return restored pictures (N, C, 64, 64) and marks (N, `MARKS`, 8, 8)."""
        last = self.maps(images)[-1]
        return F.pixel_shuffle(self.restore(last), SIZE // PLACES), self.marks(last)

    @torch.no_grad()
    def set_components(self, images: Tensor, distorted: Tensor | None = None) -> None:
        """Let the features be the principal components of these real pictures.

        One factor scales all, so that their mean variance over the pictures is 1: components keep
        their relative sizes, and the kernel distance's kernel meets numbers of the size it is for.

        Parameters
        ----------
        images : Tensor
            (N, C, 64, 64), N above `FEATURES`.
        distorted : Tensor, optional
            The same pictures, distorted. If given, the last `OF_DISTORTIONS` features are the
            principal components of what distortion changes outside of the others, in which real
            pictures may hardly vary; and every feature is divided by the root of its SD over the
            real pictures, lest the colour of skin and light outweigh all shapes.
        """
        flat = self._flat(images)
        mean = flat.mean(dim=0)
        centred = flat - mean
        if distorted is None:
            values, main = _components(centred, FEATURES)
            scale = values.mean().sqrt()
        else:
            _, main = _components(centred, FEATURES - OF_DISTORTIONS)
            change = self._flat(distorted) - flat
            change = change - (change @ main) @ main.T
            _, more = _components(change - change.mean(dim=0), OF_DISTORTIONS)
            main = torch.cat([main, more], dim=1)
            main = main / (centred @ main).std(dim=0).sqrt()
            scale = (centred @ main).var(dim=0).mean().sqrt()
        self.mean.copy_(mean)
        self.projection.copy_(main / scale)

    def _flat(self, images: Tensor) -> Tensor:
        """Last maps (N, M) in float64."""
        parts = [self.maps(part)[-1].flatten(1) for part in images.split(_BATCH)]
        return torch.cat(parts).double()


def _components(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Variances (count,) and directions (M, count) of the main components of rows (N, M)."""
    # There are fewer pictures than map values, and X Xᵀ has all positive eigenvalues of XᵀX.
    values, left = torch.linalg.eigh(centred @ centred.T / (len(centred) - 1))  # ascending
    main = F.normalize(centred.T @ left[:, -count:].flip(1), dim=0)
    largest = main.gather(0, main.abs().argmax(dim=0, keepdim=True))
    return values[-count:], main * largest.sign()  # an eigenvector's sign is arbitrary: fix it
