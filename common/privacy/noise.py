"""Gaussian noise for differential privacy, of which every bit of the seed counts.

PyTorch's generator on the CPU takes 32 bits of a seed and drops the others: whoever sees what was
released could try all of them, and subtract the noise. NumPy's takes seeds of any length.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SECRET_BITS = 128  # as many as NumPy's default generator has states for


def noise_like(tensor: Tensor, generator: np.random.Generator) -> Tensor:
    """Return standard normal noise of a tensor's shape, type and device, drawn in float64."""
    drawn = torch.from_numpy(np.asarray(generator.standard_normal(tuple(tensor.shape))))
    return drawn.to(tensor.device, tensor.dtype)
