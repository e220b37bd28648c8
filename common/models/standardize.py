"""From pictures in [0, 1] to what a network of pictures takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # red, green, blue
IMAGENET_SD = (0.229, 0.224, 0.225)

BLACK = 0.1  # a pixel with no channel above it is a dermatoscope's frame or the air of an X-ray
SCALE = 0.25  # of relative intensities, about their SD in dermatoscopic pictures
CLIP = 4.0


class StandardizePicture(nn.Module):
    """Divide each channel by its mean over the picture: white balance and exposure are gone.

    Both multiply a channel by a number that is the hospital's and not the patient's (von Kries'
    adaptation, with the mean as the white, as in Buchsbaum 1980, J Franklin Inst 310:1). What
    remains is how much darker and of which other hue each place is than the picture as a whole: the
    red of a vascular lesion beside its skin, the blue of a veil beside brown, the depth of the
    pigment, which dividing by an SD would take out. What is lost with the lamp is a hue that all
    of the picture has: the tone of the skin, and a lesion's colour where nothing else is seen.

    On validation pictures of three simulated hospitals, the small network's macro AUROC was 0.89
    with this and 0.80 with the same two numbers for all pictures.

    Black pixels do not count and become the mean, so that a frame is no strong edge.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, S, S) in [0, 1] to the same shape: (x / mean - 1) / 0.25, at most 4."""
        seen = (images.amax(1, keepdim=True) > BLACK).to(images.dtype)
        pixels = seen.sum((2, 3), keepdim=True).clamp(min=1)
        mean = (images * seen).sum((2, 3), keepdim=True) / pixels
        relative = (images / mean.clamp(min=BLACK / 4) - 1) * seen
        return (relative / SCALE).clamp(max=CLIP)  # never below -4


class StandardizeImageNet(nn.Module):
    """Standardize by ImageNet's means and SDs; grey is shown in three channels.

    By these numbers networks from ImageNet were trained with; no image's own enter.
    """

    def __init__(self) -> None:
        super().__init__()
        # Constants of the code: no part of what sites exchange.
        for name, values in (("mean", IMAGENET_MEAN), ("sd", IMAGENET_SD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 1 or 3, S, S) in [0, 1] to (B, 3, S, S)."""
        return (images - self.mean) / self.sd
