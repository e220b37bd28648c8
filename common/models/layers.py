"""Layers that StyleGAN2's two networks are made of.

[SG1] Karras, Laine, Aila: A Style-Based Generator Architecture, arXiv 1812.04948.
[SG2] Karras et al.: Analyzing and Improving the Image Quality of StyleGAN, arXiv 1912.04958.
[ADA] Karras et al.: Training Generative Adversarial Networks with Limited Data, arXiv 2006.06676.

Every weight is drawn from N(0, 1) and scaled at run time ("equalized learning rate", Karras et al.,
arXiv 1710.10196, section 4.1). Leaky ReLUs have slope 0.2 and gain √2, which keeps the variance of
a signal; since f(g·x) = g·f(x) for g > 0, gains are folded into weights. Shapes: N images,
I channels in, O out, D entries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.resample import depthwise

SLOPE = 0.2  # of the leaky ReLU
GAIN = math.sqrt(2)  # restores the second moment that a leaky ReLU takes away
CLAMP = 256.0  # of a convolution's result in float16 ([ADA], appendix C)


def normalize(x: Tensor) -> Tensor:
    """Scale vectors (N, D) to a second moment of 1 over their entries."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU in place; its gain is folded into what x was made of."""
    return F.leaky_relu_(x, SLOPE)


def limit(x: Tensor, gain: float = 1.0) -> Tensor:
    """Clamp activations to ±256 · gain in float16, which ends at 65504; others are left alone."""
    return x.clamp(-CLAMP * gain, CLAMP * gain) if x.dtype == torch.float16 else x


class Dense(nn.Module):
    """Fully connected layer.

    Parameters
    ----------
    inputs, outputs : int
    rate : float
        Learning rate of this layer relative to the others', by scaling its weights at run time.
    bias : float
        Initial bias.
    activation : bool
        Whether a leaky ReLU with gain follows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rate: float = 1.0,
        bias: float = 0.0,
        activation: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        gain = GAIN if activation else 1.0
        self._scale, self._bias_scale = gain * rate / inputs**0.5, gain * rate
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs) to (N, outputs)."""
        x = torch.addmm(self.bias * self._bias_scale, x, (self.weight * self._scale).t())
        return activate(x) if self._activation else x


class Convolution(nn.Module):
    """Convolution with bias and activation, or neither; its gains are folded into its weights.

    Parameters
    ----------
    inputs, outputs, side : int
        Channels, and sides of the kernel.
    activation : bool
        Whether a bias and a leaky ReLU with gain √2 follow.
    gain : float
        Factor on the result, and on the ±256 to which it is clamped in float16.
    """

    def __init__(
        self, inputs: int, outputs: int, side: int, *, activation: bool = True, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activation else None
        self._gain = gain * (GAIN if activation else 1.0)
        self._scale, self._limit = self._gain / (inputs * side**2) ** 0.5, gain

    def forward(self, x: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H', W')."""
        weight = (self.weight * self._scale).to(x.dtype)
        if self.bias is None:
            return limit(F.conv2d(x, weight, None, stride, padding), self._limit)
        bias = (self.bias * self._gain).to(x.dtype)
        return limit(activate(F.conv2d(x, weight, bias, stride, padding)), self._limit)


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    fir: Tensor,
    up: int = 1,
    demodulate: bool = True,
    gain: float = 1.0,
    offset: Tensor | None = None,
) -> Tensor:
    """Convolution whose weights each image scales by its own style ([SG2], equations 1 to 3).

    w'_ijk = s_i · w_ijk, and with demodulation w''_ijk = w'_ijk / √(Σ_ik w'_ijk² + ε). Since s_i
    scales an input channel and the norm an output channel, they are applied to the activations:
    the norm is √(Σ_i s_i² Σ_k w_ijk² + ε), and no image has a weight tensor of its own.

    In float16, weights and styles are first made so small that no sum of I·k² products passes
    65504 where activations are within ±256 · √2 and I is at most 1024: see :func:`_prescaled`.

    Parameters
    ----------
    x : Tensor
        (N, I, H, W).
    weight : Tensor
        (O, I, k, k).
    styles : Tensor
        (N, I), float32.
    fir : Tensor
        Low-pass filter that follows upsampling.
    up : int
        1, or 2 to double the sides by a transposed convolution.
    demodulate : bool
    gain : float
        Factor on the convolution's result.
    offset : Tensor, optional
        Added to the result; broadcast to (N, O, H·up, W·up).

    Returns
    -------
    Tensor
        (N, O, H·up, W·up).
    """
    norm = None
    if demodulate:
        energy = styles.square() @ weight.square().sum((2, 3)).t()  # (N, O)
        norm = (energy + 1e-8).rsqrt() * gain
        if x.dtype == torch.float16:
            weight, styles, undo = _prescaled(weight, styles)
            norm = norm * undo
        norm = norm.to(x.dtype)[:, :, None, None]
    elif gain != 1.0:
        weight = weight * gain
    x = x * styles.to(x.dtype)[:, :, None, None]
    weight = weight.to(x.dtype)
    if up == 2:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # (N, O, 2H + 1, 2W + 1)
        x = depthwise(x, fir * 4, padding=1)
    else:
        x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
    if norm is None:
        return x if offset is None else x + offset.to(x.dtype)
    return x * norm if offset is None else torch.addcmul(offset.to(x.dtype), x, norm)


def _prescaled(weight: Tensor, styles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale weights to at most 1/√(I·k²) and styles to at most 1 ([ADA], appendix C's float16).

    Then |Σ x·s·w| ≤ max|x| · √(I·k²): 34752 for 1024 channels, 3 × 3 and |x| ≤ 256 · √2. A norm
    that is computed from the weights and styles as they were, ε included, is to be multiplied by
    ``undo``; the result is that without scaling, whence no gradient passes through the scales.

    Returns
    -------
    weight : Tensor
        (O, I, k, k).
    styles : Tensor
        (N, I).
    undo : Tensor
        (N, O), what the scales have divided by.
    """
    largest = weight.detach().abs().amax((1, 2, 3)).clamp(min=1e-20)  # (O,); zeros stay zeros
    divisor = largest * weight[0].numel() ** 0.5
    strongest = styles.detach().abs().amax(1, keepdim=True).clamp(min=1e-20)  # (N, 1)
    return weight / divisor[:, None, None, None], styles / strongest, strongest * divisor
