"""Projection: the latents whose pictures come closest to given ones, found by optimization.

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958),
section 5 and appendix D. The perceptual distance is the caller's: the paper's LPIPS is one, the
project's own feature extractor another, which needs no download. Symbols are the paper's.

Pictures are projected in batches: the sum of their losses is minimized, and as no term depends on
two pictures and Adam works on each element alone, each picture ends where it would have ended by
itself, up to rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
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
BATCH = 16  # pictures that are projected together


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


def project_many(
    generator: Generator,
    targets: Tensor,
    distance: Distance,
    *,
    space: Space = "w",
    steps: int = 1000,
    seed: int = 0,
    labels: Sequence[Tensor] | Tensor | None = None,
    batch: int = BATCH,
    noise_weight: float = 1e5,
    waypoints: int = WAYPOINTS,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Iterator[Projection]:
    """Find, for each target, the latent and the noise maps whose picture is closest to it.

    Minimizes ``distance(target, synthesis(w, n)) + α Σ L_ij`` with Adam, where L_ij penalizes
    correlation within the noise maps n (:func:`noise_penalty`), so that the picture is told by w
    and not painted into the noise. The learning rate rises linearly from zero, stays, and falls
    along a cosine; in the first three quarters Gaussian noise of standard deviation
    0.05 σ_w t², with t falling from 1 to 0, is added to w, so that the search does not settle in
    the first valley. All targets get the same draws. On the CPU the same targets, seed, batch and
    threads give the same bits.

    Parameters
    ----------
    generator : Generator
        Left as it is.
    targets : Tensor
        (N, C, R, R) in [-1, 1], of the generator's channels and resolution.
    distance : callable
        Differentiable in its second argument.
    space : {"w", "w+"}
        One w for all layers, or one for each: closer, but further from what the mapping can give.
    steps : int
        The paper takes 1000.
    seed : int
        Decides the mean of w, the first noise maps and the noise on w.
    labels : Tensor or sequence of Tensor, optional
        Of each target what is known: its label (label_dim), or (K, label_dim), rows among which
        the draws for the mean of w take turns. By default unconditional, or each value of every
        kind in turn.
    batch : int
        Targets that are worked on, and held in memory, at once.
    noise_weight : float
        α.
    waypoints : int
        Pictures that are kept along the way, 2 or more.
    on_step : callable, optional
        Told, after each step of a batch, its number and the distances (n,) of its n targets at the
        w that were tried.

    Returns
    -------
    iterator of Projection
        In the order of the targets, batch by batch.

    Raises
    ------
    ConfigError
        If the targets do not fit the generator, or an argument is out of range; at once.
    DivergedError
        If a distance is not finite.
    """
    architecture = generator.architecture
    shape = (architecture.channels, architecture.resolution, architecture.resolution)
    if targets.shape[1:] != shape:
        raise ConfigError(f"a target of shape {tuple(targets.shape[1:])}: accepted is {shape}")
    if space not in ("w", "w+") or min(steps, batch) < 1 or waypoints < 2:
        raise ConfigError(
            f"space '{space}', {steps} steps, batches of {batch}, {waypoints} waypoints: accepted "
            "are w and w+, 1 or more, 1 or more, 2 or more"
        )
    if labels is not None and len(labels) != len(targets):
        raise ConfigError(f"labels of {len(labels)} targets: there are {len(targets)}")
    search = _Search(generator, distance, space, steps, seed, noise_weight, waypoints, on_step)
    return (
        done
        for start in range(0, len(targets), batch)
        for done in search.project(
            targets[start : start + batch],
            None if labels is None else labels[start : start + batch],
        )
    )


@dataclass
class _Search:
    """What all batches have in common; see :func:`project_many`."""

    generator: Generator
    distance: Distance
    space: Space
    steps: int
    seed: int
    noise_weight: float
    waypoints: int
    on_step: Callable[[int, Tensor], None] | None

    def __post_init__(self) -> None:
        self.num_ws = self.generator.architecture.num_ws
        self.device = next(self.generator.parameters()).device
        # A copy, so that no gradient of its weights is computed or left behind.
        self.synthesis = copy.deepcopy(self.generator.synthesis).requires_grad_(False).eval()
        self.known: dict[bytes, tuple[Tensor, float]] = {}  # statistics of w by label
        self.draws = torch.Generator()

    def start(self, label: Tensor | None) -> tuple[Tensor, float]:
        """Mean (1, w_dim) and spread of w, computed once for each label that occurs."""
        rows = None if label is None else torch.atleast_2d(label)
        key = b"" if rows is None else rows.cpu().numpy().tobytes()
        if key not in self.known:
            self.draws.manual_seed(derive_seed(self.seed, purpose="projection"))
            self.known[key] = latent_statistics(self.generator, rows, self.draws)
            self.drawn = self.draws.get_state()  # the same whatever the label
        return self.known[key]

    def project(
        self, targets: Tensor, labels: Sequence[Tensor] | Tensor | None
    ) -> list[Projection]:
        """Project one batch of n targets."""
        n = len(targets)
        goal = targets.detach().to(self.device, torch.float32)
        found = [self.start(label) for label in ([None] * n if labels is None else labels)]
        spread = torch.tensor([one for _, one in found], dtype=torch.float64).view(n, 1, 1)
        rows = self.num_ws if self.space == "w+" else 1
        w = torch.stack([mean.repeat(rows, 1) for mean, _ in found])  # (n, rows, w_dim)
        self.draws.set_state(self.drawn)
        maps = [
            torch.randn(one.shape, generator=self.draws)
            .to(self.device)
            .repeat(n, 1, 1)  # (n, r, r)
            for one in self.synthesis.noise_constants()
        ]
        free = [one.requires_grad_(True) for one in (w, *maps)]
        optimizer = torch.optim.Adam(free, lr=0.0)

        def pictures(at: Tensor) -> Tensor:
            ws = at.expand(-1, self.num_ws, -1)
            return self.synthesis(ws, noise=[one[:, None] for one in maps])

        @torch.no_grad()
        def reached(step: int) -> list[Waypoint]:
            images = pictures(w)
            apart = self.distance(goal, images).tolist()
            return [Waypoint(step, *one) for one in zip(images.cpu(), apart, strict=True)]

        path = [reached(0)]
        last = self.waypoints - 1
        stops = {round(self.steps * k / last) for k in range(1, self.waypoints)}
        for step in range(self.steps):
            done = step / self.steps
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(done)
            strength = NOISE_ON_W * spread * max(0.0, 1 - done / NOISE_UNTIL) ** 2  # (n, 1, 1)
            jitter = torch.randn(w.shape[1:], generator=self.draws) * strength.float()
            apart = self.distance(goal, pictures(w + jitter.to(self.device)))
            loss = (apart + self.noise_weight * noise_penalty(maps)).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for one in maps:  # zero mean, unit variance, as the synthesis was trained with
                    one.sub_(one.mean((1, 2), keepdim=True))
                    one.mul_(one.square().mean((1, 2), keepdim=True).add(1e-12).rsqrt())
            apart = apart.detach().cpu()
            if not bool(torch.isfinite(apart).all()):
                raise DivergedError(
                    f"a distance is not finite at step {step + 1} of the projection. The generator "
                    "or the distance gives numbers that are not finite"
                )
            if self.on_step:
                self.on_step(step + 1, apart)
            if step + 1 in stops:
                path.append(reached(step + 1))
        ws = w.detach().expand(-1, self.num_ws, -1).cpu().contiguous()
        ended = zip(ws, *(one.detach().cpu() for one in maps), strict=True)
        return [
            Projection(one.clone(), tuple(m.clone() for m in noise), tuple(points))
            for (one, *noise), points in zip(ended, zip(*path, strict=True), strict=True)
        ]


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
        (..., r, r) each.

    Returns
    -------
    Tensor
        (...), of each picture the sum over its maps.
    """
    batch = maps[0].shape[:-2]
    total = maps[0].new_zeros(batch)
    for one in maps:
        level = one.reshape(-1, 1, *one.shape[-2:])
        while True:
            for axis in (2, 3):
                correlation = (level * level.roll(1, axis)).mean((1, 2, 3))
                total = total + correlation.square().reshape(batch)
            if level.shape[-1] <= SMALLEST_MAP:
                break
            level = F.avg_pool2d(level, 2) * 2
    return total
