"""FIR filtering with a change of resolution: what keeps a generator and its judge free of aliases.

Zhang (arXiv 1904.11486) low-pass filters wherever a network changes resolution, and StyleGAN2 does
so with the binomial filter [1, 3, 3, 1] (arXiv 1912.04958, appendix B).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_filter(taps: tuple[float, ...] = TAPS) -> Tensor:
    """Two-dimensional low-pass filter: the outer product of taps with themselves, with sum 1.

    Returns
    -------
    Tensor
        float32, shape (len(taps), len(taps)).
    """
    one = torch.tensor(taps, dtype=torch.float64)
    two = torch.outer(one, one)
    return (two / two.sum()).float()


def upfirdn2d(
    x: Tensor,
    fir: Tensor,
    *,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    gain: float = 1.0,
    flip_filter: bool = False,
) -> Tensor:
    """Insert zeros, pad or crop, filter, and keep every ``down``-th sample.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W).
    fir : Tensor
        (h, w). Used as it is: not normalised.
    up : int
        Zeros are inserted so that each side grows by this factor (``up - 1`` after each sample).
    down : int
        Every ``down``-th sample of the filtered picture is kept, from the first.
    padding : tuple of int
        Zeros at the left, right, top and bottom of the picture with zeros inserted; negative
        numbers crop.
    gain : float
        Factor on the result. ``up²`` keeps the brightness when zeros are inserted.
    flip_filter : bool
        False: a convolution. True: a correlation.

    Returns
    -------
    Tensor
        (N, C, H', W') with H' = (H·up + top + bottom - h) // down + 1.
    """
    kernel = (fir if flip_filter else fir.flip((0, 1))) * gain
    left, right, top, bottom = padding
    if up > 1:
        n, c, height, width = x.shape
        spread = x.new_zeros(n, c, height, up, width, up)
        spread[:, :, :, 0, :, 0] = x
        x = spread.reshape(n, c, height * up, width * up)
    if left == right == top == bottom >= 0:
        return depthwise(x, kernel, stride=down, padding=left)
    return depthwise(F.pad(x, (left, right, top, bottom)), kernel, stride=down)


def depthwise(x: Tensor, kernel: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """Correlate every channel with one constant kernel.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W), fastest in channels-last memory.
    kernel : Tensor
        (h, w), a constant: no gradient reaches it.
    stride, padding : int
        Along both axes; padding is of zeros.
    """
    return _Depthwise.apply(x, kernel, stride, padding)


def upsample(x: Tensor, fir: Tensor) -> Tensor:
    """Double the sides: zeros between the samples, then the filter with gain 4.

    This is the transpose of filtering and keeping every second sample.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W).
    fir : Tensor
        (h, w) with even sides.
    """
    padding = (fir.shape[0] - 2) // 2
    size = (2 * x.shape[2], 2 * x.shape[3])
    return _Transpose.apply(x, fir * 4, 2, padding, size)


def downsample(x: Tensor, fir: Tensor) -> Tensor:
    """Halve the sides: the filter, then every second sample.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W).
    fir : Tensor
        (h, w) with even sides.
    """
    return depthwise(x, fir.flip((0, 1)), stride=2, padding=(fir.shape[0] - 2) // 2)


class _Depthwise(torch.autograd.Function):
    """A linear map whose derivative is its own transpose, also the second time.

    PyTorch's double backward of a depthwise convolution loops over the groups and computes a
    gradient of the filter, which is a constant here.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.geometry = (stride, padding, x.shape[2:])
        return F.conv2d(x, _per_channel(kernel, x), None, stride, padding, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (kernel,) = ctx.saved_tensors
        return _Transpose.apply(grad, kernel, *ctx.geometry), None, None, None


class _Transpose(torch.autograd.Function):
    """Transpose of :class:`_Depthwise`, giving a picture of a stated size."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, stride: int, padding: int, size: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.geometry = (stride, padding)
        sides = kernel.shape
        # With more padding, outer samples saw zeros alone: the general transpose leaves them out.
        plain = padding < min(sides)
        if plain and stride == 1 and sides[0] == sides[1]:  # correlate with the flipped kernel
            flipped = _per_channel(kernel.flip((0, 1)), x)
            return F.conv2d(x, flipped, None, 1, sides[0] - 1 - padding, 1, x.shape[1])
        if plain and x.dtype == torch.bfloat16 and x.device.type == "cpu":
            # PyTorch's transposed bf16 convolution is ten to fifty times slower than this.
            spread = _spread(x, stride, sides, padding, size)
            flipped = _per_channel(kernel.flip((0, 1)), x)
            return F.conv2d(spread, flipped, groups=x.shape[1])
        # What the strided windows did not reach gets zeros at the end.
        rest = [
            size[i] - ((x.shape[2 + i] - 1) * stride - 2 * padding + sides[i]) for i in range(2)
        ]
        return F.conv_transpose2d(
            x, _per_channel(kernel, x), None, stride, padding, rest, x.shape[1]
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (kernel,) = ctx.saved_tensors
        return _Depthwise.apply(grad, kernel, *ctx.geometry), None, None, None, None


def _spread(
    x: Tensor, stride: int, sides: torch.Size, padding: int, size: tuple[int, int]
) -> Tensor:
    """Samples with zeros between and around, such that a plain correlation gives ``size``."""
    shape = (*x.shape[:2], size[0] + sides[0] - 1, size[1] + sides[1] - 1)
    spread = torch.empty(
        shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    ).zero_()
    top, left = sides[0] - 1 - padding, sides[1] - 1 - padding
    bottom, right = top + stride * x.shape[2], left + stride * x.shape[3]
    spread[:, :, top:bottom:stride, left:right:stride] = x
    return spread


def _per_channel(kernel: Tensor, x: Tensor) -> Tensor:
    """Repeat a kernel for every channel: (h, w) to (C, 1, h, w), in the picture's type."""
    return kernel.to(x.dtype).expand(x.shape[1], 1, *kernel.shape).contiguous()
