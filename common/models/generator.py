"""StyleGAN2's generator: the mapping network from latents to styles, and synthesis from styles.

[SG1] Karras, Laine, Aila: A Style-Based Generator Architecture, arXiv 1812.04948.
[SG2] Karras et al.: Analyzing and Improving the Image Quality of StyleGAN, arXiv 1912.04958.

Shapes: N images, C channels, R the resolution, L label entries, W = ``w_dim``. Activations are kept
channels-last.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from common.models.architecture import Architecture
from common.models.layers import GAIN, Dense, activate, limit, modulated_conv2d, normalize
from common.models.resample import fir_filter, upsample

W_AVERAGE_DECAY = 0.995  # [SG1], section 4.2's tracking of the average w
NOISES = ("constant", "random", "none")
Noise = str | list[Tensor]


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
        return limit(activate(x))


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
        for layer, w, noise in zip(self.convolutions, ws[:-1], noises, strict=True):
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

        Raises
        ------
        ValueError
            For another word, or a list that has not one picture a layer.
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
            if len(noise) != len(constants):
                raise ValueError(
                    f"noise: {len(noise)} pictures, accepted are {len(constants)}: one a layer"
                )
            return noise
        if noise not in NOISES:
            raise ValueError(
                f"noise = {noise!r}: accepted are {', '.join(NOISES)}, or a list of pictures"
            )
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
