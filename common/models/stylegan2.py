"""StyleGAN2's generator and discriminator, written from the papers.

[SG1] Karras, Laine, Aila: A Style-Based Generator Architecture, arXiv 1812.04948.
[SG2] Karras et al.: Analyzing and Improving the Image Quality of StyleGAN, arXiv 1912.04958.
[ADA] Karras et al.: Training Generative Adversarial Networks with Limited Data, arXiv 2006.06676.

Every weight is drawn from N(0, 1) and scaled at run time ("equalized learning rate", Karras et al.,
arXiv 1710.10196, section 4.1). Leaky ReLUs have slope 0.2 and gain √2, which keeps the variance of
a signal; since f(g·x) = g·f(x) for g > 0, gains are folded into weights. Activations are kept
channels-last. Shapes: N images, C channels, R the resolution, L label entries, W = ``w_dim``.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.architecture import Architecture
from common.models.resample import depthwise, downsample, fir_filter, upsample

SLOPE = 0.2  # of the leaky ReLU
GAIN = math.sqrt(2)  # restores the second moment that a leaky ReLU takes away
HALF_RESOLUTIONS = 4  # in half precision the largest four compute so ([ADA], appendix C)
CLAMP = 256.0  # of activations in float16 ([ADA], appendix C)
W_AVERAGE_DECAY = 0.995  # [SG1], section 4.2's tracking of the average w
Noise = str | list[Tensor]


def normalize(x: Tensor) -> Tensor:
    """Scale vectors (N, D) to a second moment of 1 over their entries."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU in place; its gain is folded into what x was made of."""
    return F.leaky_relu_(x, SLOPE)


def limit(x: Tensor, gain: float = 1.0) -> Tensor:
    """Clamp activations in float16, which ends at 65504; the others reach as far as float32."""
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
        self._scale, self._rate, self._activation = (
            gain * rate / inputs**0.5,
            gain * rate,
            activation,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs) to (N, outputs)."""
        x = torch.addmm(self.bias * self._rate, x, (self.weight * self._scale).t())
        return activate(x) if self._activation else x


class Mapping(nn.Module):
    """The mapping network f: Z → W ([SG1], section 2), with labels.

    Parameters
    ----------
    architecture : Architecture
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.embed = Dense(a.label_dim, a.w_dim) if a.label_dim else None
        widths = [a.z_dim + (a.w_dim if a.label_dim else 0)] + [a.w_dim] * a.mapping_layers
        self.layers = nn.Sequential(
            *(Dense(i, o, rate=0.01, activation=True) for i, o in pairwise(widths))
        )
        self.register_buffer("w_average", torch.zeros(a.w_dim))

    def forward(
        self,
        z: Tensor,
        labels: Tensor,
        *,
        truncation: float = 1.0,
        cutoff: int | None = None,
        update_average: bool = False,
    ) -> Tensor:
        """Map latents to styles.

        Parameters
        ----------
        z : Tensor
            (N, z_dim), normal.
        labels : Tensor
            (N, L).
        truncation : float
            ψ of w' = w̄ + ψ (w - w̄) ([SG1], appendix B); 1 leaves w alone.
        cutoff : int, optional
            Truncate only the first ``cutoff`` of the ``num_ws`` styles.
        update_average : bool
            Let w̄ follow this batch's mean.

        Returns
        -------
        Tensor
            (N, num_ws, W): the same w for every layer.
        """
        x = normalize(z)
        if self.embed is not None:
            x = torch.cat([x, normalize(self.embed(labels))], 1)
        w = self.layers(x)  # (N, W)
        if update_average:
            with torch.no_grad():
                self.w_average.lerp_(w.detach().mean(0), 1 - W_AVERAGE_DECAY)
        ws = w.unsqueeze(1).expand(-1, self.architecture.num_ws, -1)
        if truncation == 1.0:
            return ws
        if cutoff is None:
            return self.w_average.lerp(ws, truncation)
        return torch.cat([self.w_average.lerp(ws[:, :cutoff], truncation), ws[:, cutoff:]], 1)


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
    if x.dtype == torch.float16 and demodulate:  # keeps products below 65504; the norm undoes it
        weight = weight / weight.abs().amax((1, 2, 3), keepdim=True)
        styles = styles / styles.abs().amax(1, keepdim=True)
    norm = None
    if demodulate:
        energy = styles.square() @ weight.square().sum((2, 3)).t()  # (N, O)
        norm = ((energy + 1e-8).rsqrt() * gain).to(x.dtype)[:, :, None, None]
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


class StyledConvolution(nn.Module):
    """Modulated convolution, noise, bias and activation: one gray box of [SG2], figure 2 (d)."""

    def __init__(
        self, inputs: int, outputs: int, w_dim: int, resolution: int, noise: Tensor, *, up: int
    ) -> None:
        super().__init__()
        self.resolution, self._up = resolution, up
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", noise)  # (R, R)
        self.register_buffer("fir", fir_filter(), persistent=False)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """Map (N, I, H, H) and w (N, W) to (N, O, R, R); noise is (N or 1, 1, R, R)."""
        bias = (self.bias * GAIN)[:, None, None]
        x = modulated_conv2d(
            x,
            self.weight,
            self.affine(w),
            fir=self.fir,
            up=self._up,
            gain=GAIN,
            offset=bias if noise is None else noise * (self.noise_strength * GAIN),
        )
        if noise is not None:
            x = x.add_(bias.to(x.dtype))
        return limit(activate(x), GAIN)


class ToImage(nn.Module):
    """From activations to picture channels: a modulated 1 × 1 convolution without demodulation."""

    def __init__(self, inputs: int, channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("fir", fir_filter(), persistent=False)
        self._scale = inputs**-0.5

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map (N, I, R, R) and w (N, W) to (N, channels, R, R) in the parameters' precision."""
        x = modulated_conv2d(
            x, self.weight, self.affine(w) * self._scale, fir=self.fir, demodulate=False
        )
        x = limit(x + self.bias.to(x.dtype)[:, None, None])
        return x.to(self.weight.dtype)


class SynthesisBlock(nn.Module):
    """One resolution of the synthesis network, with its skip to the picture ([SG2], figure 7 b)."""

    def __init__(self, architecture: Architecture, resolution: int) -> None:
        super().__init__()
        a, width = architecture, architecture.width(resolution)
        noise = a.noise(resolution)
        if resolution == 4:
            self.constant = nn.Parameter(torch.randn(width, 4, 4))
        else:
            self.constant = None
            self.up = StyledConvolution(
                a.width(resolution // 2), width, a.w_dim, resolution, noise[0], up=2
            )
        self.convolution = StyledConvolution(width, width, a.w_dim, resolution, noise[-1], up=1)
        self.to_image = ToImage(width, a.channels, a.w_dim)
        self.register_buffer("fir", fir_filter(), persistent=False)
        self.half: torch.dtype | None = None  # set by `set_precision`

    @property
    def convolutions(self) -> list[StyledConvolution]:
        """The block's styled convolutions, in order: one at 4 × 4, two above."""
        return [self.convolution] if self.constant is not None else [self.up, self.convolution]

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: list[Tensor], noises: list[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Map activations and picture of half the resolution to this resolution's."""
        if self.constant is not None:
            x = self.constant.expand(len(ws[0]), -1, -1, -1)
            x = x.contiguous(memory_format=torch.channels_last)
        x = x.to(self.half or self.fir.dtype)
        for layer, w, noise in zip(self.convolutions, ws, noises, strict=False):
            x = layer(x, w, noise)
        detail = self.to_image(x, ws[-1])
        return x, detail if image is None else upsample(image, self.fir) + detail


class Synthesis(nn.Module):
    """The synthesis network g: W → pictures.

    Parameters
    ----------
    architecture : Architecture
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.blocks = nn.ModuleList(
            SynthesisBlock(architecture, r) for r in architecture.resolutions
        )

    def noise_constants(self) -> list[Tensor]:
        """Return the fixed noise pictures, (R, R) each, in order of the layers."""
        return [layer.noise for block in self.blocks for layer in block.convolutions]

    def forward(
        self, ws: Tensor, *, noise: Noise = "constant", generator: torch.Generator | None = None
    ) -> Tensor:
        """Make pictures.

        Parameters
        ----------
        ws : Tensor
            (N, num_ws, W).
        noise : {"constant", "random", "none"} or list of Tensor
            The fixed noise pictures; new ones for each image; none; or these, one a layer, each
            broadcast to (N, 1, R, R).
        generator : torch.Generator, optional
            Where random noise comes from.

        Returns
        -------
        Tensor
            (N, C, R, R), float32, about [-1, 1].
        """
        pictures = self._noises(len(ws), noise, generator)
        styles = list(ws.unbind(1))
        x = image = None
        for block in self.blocks:
            count = len(block.convolutions)
            # The picture's style is also the next block's first one.
            x, image = block(x, image, styles[: count + 1], pictures[:count])
            styles, pictures = styles[count:], pictures[count:]
        return image

    def _noises(
        self, count: int, noise: Noise, generator: torch.Generator | None
    ) -> list[Tensor | None]:
        constants = self.noise_constants()
        if isinstance(noise, list):
            return noise
        if noise == "none":
            return [None] * len(constants)
        if noise == "constant":
            return [picture[None, None] for picture in constants]
        device = constants[0].device if generator is None else generator.device
        return [
            torch.randn(count, 1, *picture.shape, generator=generator, device=device).to(
                picture.device
            )
            for picture in constants
        ]


class Generator(nn.Module):
    """Mapping and synthesis.

    Parameters
    ----------
    architecture : Architecture
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.mapping = Mapping(architecture)
        self.synthesis = Synthesis(architecture)

    def forward(
        self,
        z: Tensor,
        labels: Tensor,
        *,
        truncation: float = 1.0,
        cutoff: int | None = None,
        noise: Noise = "constant",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Make pictures (N, C, R, R) from latents (N, z_dim) and labels (N, L)."""
        ws = self.mapping(z, labels, truncation=truncation, cutoff=cutoff)
        return self.synthesis(ws, noise=noise, generator=generator)


class Convolution(nn.Module):
    """Convolution with bias and activation, or neither; its gains are folded into its weights."""

    def __init__(
        self, inputs: int, outputs: int, side: int, *, activation: bool = True, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activation else None
        self._gain = gain * (GAIN if activation else 1.0)
        self._scale, self._limit = self._gain / (inputs * side**2) ** 0.5, gain * GAIN

    def forward(self, x: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H', W')."""
        weight = (self.weight * self._scale).to(x.dtype)
        if self.bias is None:
            return F.conv2d(x, weight, None, stride, padding)
        bias = (self.bias * self._gain).to(x.dtype)
        return limit(activate(F.conv2d(x, weight, bias, stride, padding)), self._limit)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the sides ([SG2], figure 7 c)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Convolution(inputs, inputs, 3)
        self.second = Convolution(inputs, outputs, 3, gain=math.sqrt(0.5))
        self.skip = Convolution(inputs, outputs, 1, activation=False, gain=math.sqrt(0.5))
        self.register_buffer("fir", fir_filter(), persistent=False)
        self.half: torch.dtype | None = None  # set by `set_precision`

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, R, R) to (N, O, R/2, R/2)."""
        x = x.to(self.half or self.fir.dtype)
        skip = self.skip(downsample(x, self.fir))
        x = depthwise(self.first(x, padding=1), self.fir, padding=2)
        return skip + self.second(x, stride=2)


def minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """Append a channel with the standard deviation within groups (arXiv 1710.10196, section 3).

    Parameters
    ----------
    x : Tensor
        (N, C, H, W); N a multiple of the group, or smaller.
    group : int
        Images a group; image i is in group i mod (N / group).

    Returns
    -------
    Tensor
        (N, C + 1, H, W).
    """
    n, c, h, w = x.shape
    group = min(group, n)
    y = x.reshape(group, n // group, c, h, w)
    y = (y - y.mean(0)).square().mean(0)  # (N / group, C, H, W)
    y = (y + 1e-8).sqrt().mean((1, 2, 3))  # (N / group,)
    return torch.cat([x, y.repeat(group)[:, None, None, None].expand(-1, 1, h, w)], 1)


class Discriminator(nn.Module):
    """Residual discriminator; labels enter by projection (Miyato, Koyama, arXiv 1802.05637).

    Parameters
    ----------
    architecture : Architecture
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        resolutions = a.resolutions[::-1]  # from the picture's down to 4
        self.from_image = Convolution(a.channels, a.width(resolutions[0]), 1)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(a.width(r), a.width(r // 2)) for r in resolutions[:-1]
        )
        width = a.width(4)
        self.last = Convolution(width + 1, width, 3)
        self.dense = Dense(width * 16, width, activation=True)
        self.output = Dense(width, width if a.label_dim else 1)
        self.embed = self.label_layers = None
        if a.label_dim:
            self.embed = Dense(a.label_dim, width)
            self.label_layers = nn.Sequential(
                *(Dense(width, width, rate=0.01, activation=True) for _ in range(a.label_layers))
            )

    def features(self, images: Tensor) -> Tensor:
        """Return the activations (N, width at 4 × 4) that the last layer judges."""
        x = images.to(self.blocks[0].half or images.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.from_image(x)
        for block in self.blocks:
            x = block(x)
        x = x.to(self.dense.weight.dtype)  # what compares images does so in full precision
        x = minibatch_deviation(x, self.architecture.minibatch_group)
        # The dense layer's weights are in the order channel, row, column.
        return self.dense(self.last(x, padding=1).flatten(1))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Judge pictures.

        Parameters
        ----------
        images : Tensor
            (N, C, R, R).
        labels : Tensor
            (N, L).

        Returns
        -------
        Tensor
            Logits (N,), float32: the higher, the more real.
        """
        x = self.output(self.features(images))
        if self.embed is None:
            return x.squeeze(1)
        condition = self.label_layers(normalize(self.embed(labels)))  # (N, width)
        return (x * condition).sum(1) / condition.shape[1] ** 0.5


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
        In float16 activations are clamped to ±256.
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
        standard deviation 1/√K). FIR filters are code, in no group. Names as in ``state_dict``.
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
