"""Classifiers of pictures: a small network for two CPU cores, or MONAI's EfficientNet-B0 or -B2.

Why GroupNorm: :mod:`common.models.classifier`. What is done instead where pretrained weights are
given: :mod:`common.models.efficientnet`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.models.standardize import StandardizePicture

PICTURE_CLASSIFIERS = ("small", "efficientnet-b0", "efficientnet-b2")
GROUPS = 8
GAIN = 8.0  # of the numbers that the head sees
LEAST_VARIANCE = 1e-4  # keeps the SD's gradient finite where a feature is constant


class SmallPictureClassifier(nn.Module):
    """Four convolutions of the standardized picture, means and SDs over space, a linear layer.

    A dermatoscope is turned at will and a lesion has no places, so numbers over all of space keep
    what is needed: of each feature the mean, and the SD, without which a few globules or a vessel
    drown in the skin around them. They keep a hospital's pictures from the head as well: a linear
    layer that sees places stores a picture place by place, and gives it away by its gradient
    (Geiping et al. 2020, "Inverting Gradients", NeurIPS). This head's gradient is a product of the
    classes' errors and 8 · width numbers a picture. That is true of this layer alone, see
    :class:`common.models.classifier.SmallClassifier`.

    No weight's size depends on the picture's, so one state serves pictures from 16 pixels a side.
    What a convolution sees is counted in pixels, though: features of 64 pixels are others at 256.

    Parameters
    ----------
    channels : int
        1 or 3.
    classes : int
    width : int
        Channels of the first convolution, a multiple of 8.
    """

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            StandardizePicture(),
            # A bias, or a black picture's maps are all zeros: each norm then multiplies its
            # gradient by 1 / √ε.
            *_convolution(channels, width, stride=2, bias=True),
            *_convolution(width, 2 * width, stride=2),
            *_convolution(2 * width, 4 * width, stride=2),
            *_convolution(4 * width, 4 * width, stride=1),
        )
        self.head = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of pictures (B, C, S, S) in [0, 1]."""
        variance, mean = torch.var_mean(self.features(images), (2, 3), correction=0)
        numbers = torch.cat([mean, (variance + LEAST_VARIANCE).sqrt()], dim=1)  # (B, 8 · width)
        # After a GroupNorm they vary little between pictures: unscaled, the head learns slowly.
        return self.head(GAIN * numbers)


def _convolution(
    inputs: int, outputs: int, *, stride: int, bias: bool = False
) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=bias),
        nn.GroupNorm(GROUPS, outputs),
        nn.ReLU(),
    )


def build_picture_classifier(
    name: str,
    *,
    channels: int,
    classes: int,
    seed: int,
    pretrained: bool = False,
) -> nn.Module:
    """Build a classifier of pictures; the seed decides its initial weights.

    Parameters
    ----------
    name : {"small", "efficientnet-b0", "efficientnet-b2"}
    channels : int
        1 or 3.
    classes : int
        Two or more.
    seed : int
    pretrained : bool
        Build the network that pretrained weights fit, which
        :func:`common.models.pretrained.load_pretrained` takes from a file, or another sends who has
        it.

    Returns
    -------
    nn.Module
        Maps (B, C, S, S) float32 in [0, 1] to logits (B, K), for any S from 16.

    Raises
    ------
    ConfigError
        An unknown name, or pretrained weights of the small network.
    """
    if name not in PICTURE_CLASSIFIERS:
        raise ConfigError(
            f"unknown classifier '{name[:80]}' of pictures: accepted is one of "
            f"{', '.join(PICTURE_CLASSIFIERS)}"
        )
    if pretrained and name == "small":
        raise ConfigError(
            "the classifier 'small' has no pretrained weights: leave them out, or take "
            "efficientnet-b0 or efficientnet-b2"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "small":
            return SmallPictureClassifier(channels, classes)
        # MONAI takes seconds to import, which the small network need not wait for.
        from common.models.efficientnet import PictureEfficientNet

        return PictureEfficientNet(name, channels, classes, pretrained=pretrained)
