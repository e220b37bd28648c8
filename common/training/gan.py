"""Training of StyleGAN2-ADA: four phases, each with an optimizer step of its own, and their loop.

An iteration is: G on the logistic loss; every 4th time G on the lengths of paths; D on the logistic
loss; every 16th time D on R1; then the average of G and, every 4th time, p (StyleGAN2,
arXiv 1912.04958, appendix B; ADA, arXiv 2006.06676, section 3).

Every draw comes from a generator of its own, seeded by the seed, the iteration and the purpose. So
a resumed training needs no state of any random generator, and goes on bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.errors import ConfigError, DivergedError
from common.seeding import derive_seed
from common.training.gan_config import GanConfig
from common.training.gan_losses import (
    diversity_shortfall,
    logistic_loss,
    mix_styles,
    mixing_cutoffs,
    path_lengths,
    r1_penalty,
)
from common.training.gan_means import Means
from common.training.gan_private import PrivateSlices
from common.training.gan_slices import RealSlices
from common.training.gan_state import GROUPS, GanTraining

if TYPE_CHECKING:
    from common.data.dataset import Dataset
    from common.privacy.dp_sgd import DPSGD
    from common.training.progress import Parts, Progress

__all__ = [
    "GROUPS",
    "Draws",
    "GanFit",
    "GanTraining",
    "RealSlices",
    "discriminator_step",
    "fit",
    "generator_step",
    "path_length_step",
    "private_discriminator_step",
    "r1_step",
    "train_step",
]

LARGEST_GRADIENT = 1e5  # what an infinite one becomes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draws:
    """Random generators of one iteration, one a purpose."""

    seed: int
    step: int
    device: torch.device

    def __call__(self, purpose: str, device: torch.device | str | None = None) -> torch.Generator:
        """Return the generator of a purpose, always from its beginning."""
        seed = derive_seed(self.seed, step=self.step, purpose=purpose)
        return torch.Generator(device or self.device).manual_seed(seed)


@dataclass(frozen=True)
class GanFit:
    """What one call of :func:`fit` gives: means over its iterations; what each is: :func:`fit`."""

    metrics: dict[str, float]


def generator_step(training: GanTraining, data: RealSlices, draws: Draws) -> dict[str, Tensor]:
    """Train G to be taken for real (Gmain), by pictures that vary as real ones do."""
    config, count = training.config, training.config.batch_size
    # Where no two slices share their labels, nothing tells how much people vary.
    paired = config.diversity_weight > 0 and data.spread > 0
    training.discriminator.requires_grad_(False)
    ws, labels = _latents(training, data, draws, "G", count, average=True, paired=paired)
    images = training.generator.synthesis(ws, noise="random", generator=draws("G noise"))
    logits = training.discriminator(_augmented(training, images, draws, "G"), labels)
    loss = logistic_loss(logits, real=True)
    measured = {"loss-generator": loss.detach()}
    if config.diversity_weight:  # told also by sites without a pair: all tell the same metrics
        shortfall = torch.zeros_like(loss)
        if paired:
            halves = images[: count // 2], images[-(count // 2) :]
            shortfall = diversity_shortfall(*halves, data.spread)
        loss = loss + config.diversity_weight * shortfall
        measured["diversity-shortfall"] = shortfall.detach()
    loss.backward()
    norm = _optimize(training.generator_optimizer)
    training.discriminator.requires_grad_(True)
    return {**measured, **_norms("generator", norm)}


def path_length_step(training: GanTraining, data: RealSlices, draws: Draws) -> dict[str, Tensor]:
    """Train G to change its images evenly with w (path-length regularisation, Gpl)."""
    config = training.config
    count = max(config.batch_size // config.path_batch_shrink, 1)
    ws, _ = _latents(training, data, draws, "path", count)
    images = training.generator.synthesis(ws, noise="random", generator=draws("path noise"))
    y = torch.randn(images.shape, generator=draws("path direction"), device=training.device)
    lengths = path_lengths(images, ws, y)
    mean = lengths.detach().mean()
    training.path_mean.lerp_(mean, config.path_decay)
    penalty = (lengths - training.path_mean).square().mean()
    # Times the interval, since it is done so seldom.
    (penalty * config.path_weight * config.path_interval).backward()
    _optimize(training.generator_optimizer)
    return {"path-length": mean, "path-penalty": penalty.detach()}


def discriminator_step(training: GanTraining, data: RealSlices, draws: Draws) -> dict[str, Tensor]:
    """Train D to tell fakes from reals (Dmain), and count its signs on reals for ADA."""
    with torch.no_grad():
        ws, labels = _latents(training, data, draws, "D", training.config.batch_size)
        fakes = training.generator.synthesis(ws, noise="random", generator=draws("D noise"))
        fakes = _augmented(training, fakes, draws, "D fakes")
        reals, real_labels = data.batch(draws.step, draws.seed)
        reals = _augmented(training, reals, draws, "D reals")
    # One after the other: only one of the two graphs is in memory at a time.
    fake_loss = logistic_loss(training.discriminator(fakes, labels), real=False)
    fake_loss.backward()
    real_logits = training.discriminator(reals, real_labels)
    real_loss = logistic_loss(real_logits, real=True)
    real_loss.backward()
    norm = _optimize(training.discriminator_optimizer)
    signs = real_logits.detach().sign()
    training.sign_sum += signs.sum()
    training.sign_count += len(signs)
    return {
        "loss-discriminator": (fake_loss + real_loss).detach(),
        "sign-real": signs.mean(),
        **_norms("discriminator", norm),
    }


def private_discriminator_step(
    training: GanTraining, data: PrivateSlices, draws: Draws
) -> dict[str, Tensor]:
    """Train D by one step of DP-SGD, and measure nothing of it that has no noise."""

    def losses() -> Iterator[Tensor]:
        # By name: by their number, one person more would change what is drawn for the others.
        for person, reals, labels in data.people(lambda person: draws(f"D mirror {person}", "cpu")):
            phase = f"D person {person}"
            with torch.no_grad():
                ws, _ = _latents(training, data, draws, phase, len(labels), labels=labels)
                noise = draws(f"{phase} noise")
                fakes = training.generator.synthesis(ws, noise="random", generator=noise)
                both = _augmented(training, torch.cat([reals, fakes]), draws, phase)
            real_logits, logits = training.discriminator(both, labels.repeat(2, 1)).chunk(2)
            yield logistic_loss(real_logits, real=True) + logistic_loss(logits, real=False)

    data.mechanism.backward(training.discriminator, losses(), draws.step)
    return _norms("discriminator", _optimize(training.discriminator_optimizer))


def r1_step(training: GanTraining, data: RealSlices, draws: Draws) -> dict[str, Tensor]:
    """Train D to be flat around reals (R1, Dreg)."""
    config = training.config
    reals, labels = data.batch(draws.step, draws.seed)
    reals = reals.requires_grad_(True)
    logits = training.discriminator(_augmented(training, reals, draws, "R1"), labels)
    penalty = r1_penalty(reals, logits).mean()
    # Times the interval, since it is done so seldom.
    (penalty * config.r1_gamma / 2 * config.r1_interval).backward()
    _optimize(training.discriminator_optimizer)
    return {"r1-penalty": penalty.detach()}


def train_step(training: GanTraining, data: RealSlices, seed: int) -> dict[str, Tensor]:
    """Do one iteration: the phases that are due, the average of G, p and the counters."""
    config = training.config
    draws = Draws(seed, training.steps, training.device)
    measured = generator_step(training, data, draws)
    if config.path_weight and training.steps % config.path_interval == 0:
        measured |= path_length_step(training, data, draws)
    if isinstance(data, PrivateSlices):
        measured |= private_discriminator_step(training, data, draws)
    else:
        measured |= discriminator_step(training, data, draws)
    if config.r1_gamma and training.steps % config.r1_interval == 0:
        measured |= r1_step(training, data, draws)
    training.update_average()
    training.steps += 1
    training.images_seen += config.batch_size
    training.update_p()
    return measured


def fit(
    training: GanTraining,
    data: Dataset,
    *,
    steps: int,
    seed: int,
    on_step: Callable[[GanTraining, Mapping[str, float]], None] | None = None,
    progress: Progress | None = None,
    mechanism: DPSGD | None = None,
    drawn: int = 0,
    site: str = "",
) -> GanFit:
    """Train in place for a number of iterations.

    Parameters
    ----------
    training : GanTraining
    data : Dataset
        Images (N, C, R, R) in [-1, 1] and their labels. Labels of fakes are drawn from them, so
        that an unequal mix of labels is no clue for D.
    steps : int
    seed : int
        Decides every draw, together with the iteration: give the same one when a training goes
        on, from a checkpoint or in the next round of a federation. Two sites with one seed draw
        the same latents: a federation gives each ``derive_seed(seed, site=…)``.
    on_step : callable, optional
        Called after each iteration with the training and, every ``log_every`` iterations, the
        metrics since the last time; at other times with an empty mapping.
    progress : Progress, optional
        Where an interrupted call goes on.
    mechanism : DPSGD, optional
        With it the people whose images these are have differential privacy, and losses on real
        images and D's signs are not measured.
    drawn : int
        With a mechanism: iterations that are done of those that it is of.
    site : str
        With a mechanism: whose images these are.

    Returns
    -------
    GanFit
        Metrics, means over the iterations: ``loss-generator``, ``loss-discriminator``,
        ``sign-real`` (ADA's r_t), ``r1-penalty`` (without γ/2), ``path-length``,
        ``path-penalty``, ``diversity-shortfall``, ``gradient-norm-generator``,
        ``gradient-norm-discriminator`` (of the main phases), ``non-finite-gradients-generator`` and
        ``…-discriminator`` (share of main phases with any: they are replaced, as half precision
        overflows now and then), ``images-per-second``; and at the end of the call ``p``,
        ``images-seen``.

    Raises
    ------
    ConfigError
        If the data do not fit the architecture, or a batch has no pair where diversity-weight
        compares pairs.
    DivergedError
        If a loss or a penalty is not finite: seen at the next line of the log, or at the end.
    """
    config = training.config
    if config.diversity_weight and config.batch_size < 2:
        raise ConfigError("diversity-weight compares two pictures: set batch-size to 2 or more")
    given = (data, training.architecture, config, training.device)
    reals = RealSlices(*given)
    if mechanism:
        reals = PrivateSlices(*given, mechanism=mechanism, site=site)
    whole, part, before = Means(), Means(), 0
    if progress and (kept := progress.load()):
        before, parts = kept
        training.load(parts["training"])
        whole.load(parts["whole"], training.device)
        part.load(parts["part"], training.device)
    if isinstance(reals, PrivateSlices):
        reals.skip(drawn + before)
    clock = time.perf_counter() - part.seconds

    def export() -> Parts:
        part.seconds = time.perf_counter() - clock
        return {"training": training.export(), "whole": whole.export(), "part": part.export()}

    for done in range(before + 1, steps + 1):
        part.add(train_step(training, reals, seed))
        found: dict[str, float] = {}
        if training.steps % config.log_every == 0 or done == steps:
            part.collect()
            part.seconds = time.perf_counter() - clock
            _require_finite(part, training)
            whole.merge(part)
            found = part.read(training)
            part = Means()
            log.info(
                "iteration %d: %s",
                training.steps,
                ", ".join(f"{name} {value:.4g}" for name, value in found.items()),
            )
        if on_step:
            on_step(training, found)
        if found:
            clock = time.perf_counter()  # a callback that draws pictures is no training
        if progress:
            progress.offer(done, export, last=done == steps)
    return GanFit(whole.read(training))


def metric_names(config: GanConfig, *, private: bool = False) -> list[str]:
    """Name the metrics that :func:`fit` can report, or those that are no secret of real images."""
    of_both = ("gradient-norm", "non-finite-gradients")
    names = [f"{name}-{one}" for name in of_both for one in ("generator", "discriminator")]
    names += ["loss-generator", "p", "images-seen"]
    # How long a step takes tells how many people were drawn.
    names += [] if private else ["loss-discriminator", "sign-real", "images-per-second"]
    names += ["diversity-shortfall"] if config.diversity_weight else []
    names += ["path-length", "path-penalty"] if config.path_weight else []
    return names + (["r1-penalty"] if config.r1_gamma else [])


def _latents(
    training: GanTraining,
    data: RealSlices,
    draws: Draws,
    phase: str,
    count: int,
    *,
    average: bool = False,
    paired: bool = False,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw latents of fakes, and labels unless they are given.

    Returns ws (count, num_ws, w_dim) and labels (count, label_dim).

    Paired, the last count // 2 have the labels of the first, in that order: half as many labels
    side by side as in the other phases.
    """
    config, mapping = training.config, training.generator.mapping
    if labels is None:
        labels = data.draw_labels(count, draws(f"{phase} labels"))
    if paired:
        labels = torch.cat([labels[: count - count // 2], labels[: count // 2]])
    sources = 2 if config.style_mixing else 1
    z = torch.randn(
        sources * count,
        training.architecture.z_dim,
        generator=draws(f"{phase} latents"),
        device=training.device,
    )
    ws = mapping(z, labels.repeat(sources, 1), update_average=average)
    if config.style_mixing:
        cutoffs = mixing_cutoffs(count, ws.shape[1], config.style_mixing, draws(f"{phase} mixing"))
        ws = mix_styles(ws[:count], ws[count:], cutoffs)
    return ws, labels


def _augmented(training: GanTraining, images: Tensor, draws: Draws, phase: str) -> Tensor:
    if training.augmentation is None:
        return images
    # The pipeline draws on the CPU, where it decides which images change at all.
    return training.augmentation(images, training.p, draws(f"{phase} augmentation", "cpu"))


def _optimize(optimizer: torch.optim.Optimizer) -> Tensor:
    """Make finite what is not, do one step, and return the norm of the gradients as they were.

    The gradients' memory is given back at once: the other network's phase can use it.
    """
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    if norm.is_cuda or not norm.isfinite():  # to ask a GPU would mean to wait for it
        for gradient in gradients:
            torch.nan_to_num_(gradient, nan=0.0, posinf=LARGEST_GRADIENT, neginf=-LARGEST_GRADIENT)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _norms(network: str, norm: Tensor) -> dict[str, Tensor]:
    finite = norm.isfinite()
    return {
        f"gradient-norm-{network}": torch.where(finite, norm, 0.0),
        f"non-finite-gradients-{network}": (~finite).float(),
    }


def _require_finite(means: Means, training: GanTraining) -> None:
    bad = [name for name, value in means.sums.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(
            f"{' and '.join(bad)} not finite between iterations {training.steps - means.steps} "
            f"and {training.steps}: the training has diverged. Try lower learning rates, a larger "
            "r1-gamma or precision = float32"
        )
