"""Projection: the latent whose picture comes closest to a given one, found by optimization.

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958),
section 5 and appendix D. The perceptual distance is the caller's: the paper's LPIPS is one, the
project's own feature extractor another, which needs no download. Symbols are the paper's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import ConfigError, DivergedError
from common.seeding import derive_seed

if TYPE_CHECKING:
    from common.models.stylegan2 import Generator

Distance = Callable[[Tensor, Tensor], Tensor]  # (N, C, R, R), (N, C, R, R) -> (N,), 0 for equals
Space = Literal["w", "w+"]

LATENTS = 10_000  # draws of z behind the mean and spread of w
LEARNING_RATE = 0.1  # λ_max
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of all steps; the paper's 50 and 250 of 1000
NOISE_ON_W = 0.05  # of σ_w, at the start
NOISE_UNTIL = 0.75  # share of all steps
SMALLEST_MAP = 8  # pixels a side to which the noise maps' pyramids go down
WAYPOINTS = 8  # pictures kept along the way


@dataclass(frozen=True)
class Waypoint:
    """What was reached after a number of steps.

    Parameters
    ----------
    step : int
        0 is the start, the mean of w.
    image : Tensor
        (C, R, R), without the noise that the optimization adds to w.
    distance : float
        Perceptual distance between the image and the target.
    """

    step: int
    image: Tensor
    distance: float


@dataclass(frozen=True)
class Projection:
    """Where a projection ended, and how it got there.

    Parameters
    ----------
    ws : Tensor
        (num_ws, w_dim), on the CPU. In W all its rows are the same.
    noise : tuple of Tensor
        The noise maps of every layer, (r, r), in the order of ``synthesis.noise_constants()``.
    path : tuple of Waypoint
        From the start to the end.
    """

    ws: Tensor
    noise: tuple[Tensor, ...]
    path: tuple[Waypoint, ...]

    @property
    def reconstruction(self) -> Tensor:
        """The picture (C, R, R) of ``ws`` and ``noise``."""
        return self.path[-1].image

    @property
    def distance(self) -> float:
        """Perceptual distance of the reconstruction to the target."""
        return self.path[-1].distance


def project(
    generator: Generator,
    target: Tensor,
    distance: Distance,
    *,
    space: Space = "w",
    steps: int = 1000,
    seed: int = 0,
    labels: Tensor | None = None,
    noise_weight: float = 1e5,
    on_step: Callable[[int, float], None] | None = None,
) -> Projection:
    """Find the latent and the noise maps whose picture is closest to the target.

    Minimizes ``distance(target, synthesis(w, n)) + α Σ L_ij`` with Adam, where L_ij penalizes
    correlation within the noise maps n (:func:`noise_penalty`), so that the picture is told by w
    and not painted into the noise. The learning rate rises linearly from zero, stays, and falls
    along a cosine; in the first three quarters Gaussian noise of standard deviation
    0.05 σ_w t², with t falling from 1 to 0, is added to w, so that the search does not settle in
    the first valley. On the CPU the same seed and threads give the same bits.

    Parameters
    ----------
    generator : Generator
        Left as it is.
    target : Tensor
        (C, R, R) in [-1, 1], of the generator's channels and resolution.
    distance : callable
        Differentiable in its second argument.
    space : {"w", "w+"}
        One w for all layers, or one for each: closer, but further from what the mapping can give.
    steps : int
        The paper takes 1000.
    seed : int
        Decides the mean of w, the first noise maps and the noise on w.
    labels : Tensor, optional
        (K, label_dim), rows among which the draws for the mean of w take turns; by default
        unconditional, or each value of every kind in turn.
    noise_weight : float
        α.
    on_step : callable, optional
        Told, after each step, its number and the distance at the w that was tried.

    Returns
    -------
    Projection

    Raises
    ------
    ConfigError
        If the target does not fit the generator, or an argument is out of range.
    DivergedError
        If the distance is not finite.
    """
    architecture = generator.architecture
    shape = (architecture.channels, architecture.resolution, architecture.resolution)
    if tuple(target.shape) != shape:
        raise ConfigError(f"a target of shape {tuple(target.shape)}: accepted is {shape}")
    if space not in ("w", "w+") or steps < 1:
        raise ConfigError(f"space '{space}', {steps} steps: accepted are w and w+, and 1 or more")
    device = next(generator.parameters()).device
    # A copy, so that no gradient of its weights is computed or left behind.
    synthesis = copy.deepcopy(generator.synthesis).requires_grad_(False).eval()
    draws = torch.Generator().manual_seed(derive_seed(seed, purpose="projection"))
    mean, spread = latent_statistics(generator, labels, draws)
    maps = [
        torch.randn(one.shape, generator=draws).to(device).requires_grad_(True)  # (r, r)
        for one in synthesis.noise_constants()
    ]
    rows = architecture.num_ws if space == "w+" else 1
    w = mean.repeat(rows, 1).requires_grad_(True)  # (1 or num_ws, w_dim)
    optimizer = torch.optim.Adam([w, *maps], lr=0.0)
    goal = target.detach().to(device, torch.float32)[None]

    def picture(at: Tensor) -> Tensor:
        ws = at.expand(architecture.num_ws, -1)[None]  # (1, num_ws, w_dim)
        return synthesis(ws, noise=[one[None, None] for one in maps])

    @torch.no_grad()
    def waypoint(step: int) -> Waypoint:
        image = picture(w)
        apart = float(distance(goal, image)[0])
        return Waypoint(step, image[0].cpu(), apart)

    path = [waypoint(0)]
    stops = {round(steps * k / (WAYPOINTS - 1)) for k in range(1, WAYPOINTS)}
    for step in range(steps):
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done)
        strength = NOISE_ON_W * spread * max(0.0, 1 - done / NOISE_UNTIL) ** 2
        jitter = torch.randn(w.shape, generator=draws).to(device) * strength
        apart = distance(goal, picture(w + jitter))[0]
        loss = apart + noise_weight * noise_penalty(maps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for one in maps:  # zero mean, unit variance, as the synthesis was trained with
                one.sub_(one.mean()).mul_(one.square().mean().add(1e-12).rsqrt())
        found = float(apart.detach())
        if not math.isfinite(found):
            raise DivergedError(
                f"the distance is {found} at step {step + 1} of the projection. The generator or "
                "the distance gives numbers that are not finite"
            )
        if on_step:
            on_step(step + 1, found)
        if step + 1 in stops:
            path.append(waypoint(step + 1))
    ws = w.detach().expand(architecture.num_ws, -1).cpu().contiguous()
    return Projection(ws, tuple(one.detach().cpu().clone() for one in maps), tuple(path))


@torch.no_grad()
def latent_statistics(
    generator: Generator, labels: Tensor | None, draws: torch.Generator
) -> tuple[Tensor, float]:
    """Mean μ_w = E f(z), (1, w_dim), and spread σ_w = sqrt(E ‖f(z) - μ_w‖²) of the mapping.

    Of 10 000 draws of z; with labels, draw k takes their row k modulo their number.
    """
    architecture = generator.architecture
    device = next(generator.parameters()).device
    if labels is None:
        labels = _every_label(generator)
    found = []
    for start in range(0, LATENTS, 1000):
        z = torch.randn(1000, architecture.z_dim, generator=draws)
        rows = torch.arange(start, start + 1000) % len(labels)
        ws = generator.mapping(z.to(device), labels[rows].to(device))
        found.append(ws[:, 0].float())
    w = torch.cat(found)  # (LATENTS, w_dim)
    mean = w.mean(0, keepdim=True)
    return mean, float((w - mean).square().sum(1).mean().sqrt())


def _every_label(generator: Generator) -> Tensor:
    """Every combination of values of all kinds, (K, label_dim); (1, 0) without kinds."""
    from common.models.architecture import encode_labels
    from common.training.gan_sampling import combinations

    return encode_labels(generator.architecture, combinations(generator.architecture))


def learning_rate(done: float) -> float:
    """λ at a share of the steps: up linearly, flat, down along half a cosine."""
    up = min(1.0, done / RAMP_UP)
    down = min(1.0, (1.0 - done) / RAMP_DOWN)
    return LEARNING_RATE * up * (0.5 - 0.5 * math.cos(math.pi * down))


def noise_penalty(maps: list[Tensor]) -> Tensor:
    """Σ_ij L_ij: squared correlations of neighbours in each noise map and in its coarser copies.

    L_ij = (1/r² Σ n(x, y) n(x-1, y))² + (1/r² Σ n(x, y) n(x, y-1))², the map taken as a torus. A
    copy has half the side: the mean of four pixels, times two to keep unit variance.

    Parameters
    ----------
    maps : list of Tensor
        (r, r) each.
    """
    total = maps[0].new_zeros(())
    for one in maps:
        level = one[None, None]
        while True:
            for axis in (2, 3):
                total = total + (level * level.roll(1, axis)).mean().square()
            if level.shape[-1] <= SMALLEST_MAP:
                break
            level = F.avg_pool2d(level, 2) * 2
    return total
