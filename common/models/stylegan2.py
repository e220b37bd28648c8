"""StyleGAN2's generator and discriminator, written from the papers: both together.

[SG1] Karras, Laine, Aila: A Style-Based Generator Architecture, arXiv 1812.04948.
[SG2] Karras et al.: Analyzing and Improving the Image Quality of StyleGAN, arXiv 1912.04958.
[ADA] Karras et al.: Training Generative Adversarial Networks with Limited Data, arXiv 2006.06676.

Layers are in ``common.models.layers``, the networks in ``generator`` and ``discriminator`` beside
it; here is what treats both alike, and their public names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.models.architecture import Architecture
from common.models.discriminator import Discriminator, minibatch_deviation
from common.models.generator import Generator, StyledConvolution
from common.models.layers import modulated_conv2d

__all__ = [
    "Discriminator",
    "Generator",
    "StyledConvolution",
    "build",
    "minibatch_deviation",
    "modulated_conv2d",
    "set_precision",
    "state_groups",
]

HALF_RESOLUTIONS = 4  # in half precision the largest four compute so ([ADA], appendix C)


def build(architecture: Architecture, seed: int) -> tuple[Generator, Discriminator]:
    """Make both networks on the CPU, their weights decided by the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(architecture), Discriminator(architecture)


def set_precision(
    network: Generator | Discriminator, precision: str, resolutions: int = HALF_RESOLUTIONS
) -> None:
    """Choose the type in which the largest resolutions compute; parameters stay float32.

    Parameters
    ----------
    network : Generator or Discriminator
    precision : {"float32", "bfloat16", "float16"}
        In float16 the result of every convolution is clamped to ±256, that of a discriminator's
        branch to ±256 / √2, so that the sum of two is within ±256 · √2.
    resolutions : int
        How many of the largest resolutions.
    """
    half = None if precision == "float32" else getattr(torch, precision)
    blocks = list(network.synthesis.blocks if isinstance(network, Generator) else network.blocks)
    if isinstance(network, Generator):
        blocks.reverse()
    for number, block in enumerate(blocks):  # the largest resolution first
        block.half = half if number < resolutions else None


def state_groups(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Sort a network's state by what may happen to it in a federation.

    Returns
    -------
    dict
        ``parameters``: what an optimizer changes. ``averages``: statistics that follow it.
        ``constants``: the fixed noise, never averaged (the average of K independent draws has
        standard deviation 1/√K). FIR filters are code: in no state and no group. Names are those
        of ``state_dict``.
    """
    groups: dict[str, dict[str, Tensor]] = {"parameters": {}, "averages": {}, "constants": {}}
    parameters = dict(network.named_parameters())
    for name, tensor in network.state_dict(keep_vars=True).items():
        if name in parameters:
            group = "parameters"
        else:
            group = "averages" if name.endswith("w_average") else "constants"
        groups[group][name] = tensor
    return groups
