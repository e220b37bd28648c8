"""Classification of a scan: here, of sex from a T1-weighted brain MRI.

``fit`` is the one training loop of fedscan's classifiers. Whoever calls it (a site in a federation,
one hospital by itself, all data in one pool) decides only which images it may see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config import RunConfig
from common.errors import DataContractError, DivergedError
from common.evaluation.classification import classification_metrics
from common.models.classifier import CLASSES, build_classifier
from common.seeding import derive_seed

if TYPE_CHECKING:
    from common.imaging.prepare import ImageSet

SHIFT_VOXELS = 1  # augmentation: at most, along each axis
GAMMA_SD = 0.2  # augmentation: SD of log gamma
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what AdamW remembers of each parameter


def build_model(config: RunConfig) -> nn.Module:
    """Build the model with the run's initial weights, the same wherever it is built."""
    return build_classifier(
        config.classifier,
        image_size=config.image_size,
        seed=derive_seed(config.seed, purpose="initial weights"),
    )


def shared_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the part of the model's state that sites share: all of it, in every classifier."""
    return model.state_dict()


def survey(site: str, data_dir: Path) -> dict[str, int]:
    """Count the participants of each split and those left out, without opening a scan.

    Returns
    -------
    dict of str to int
        ``n_train``, ``n_val``, ``n_test`` and ``left_out`` (no label, no scan, …).

    Raises
    ------
    DataContractError
        If a split has nobody: better now than after the training.
    """
    from common.imaging.bids import read_site

    index = read_site(data_dir, site)
    splits = [person.split for person in index.participants]
    counts = {f"n_{split}": splits.count(split) for split in ("train", "val", "test")}
    if empty := [name.removeprefix("n_") for name, count in counts.items() if not count]:
        raise DataContractError(
            site,
            f"no participant with a label and a scan is in split '{empty[0]}'",
            where="participants.tsv",
            remedy="Each of train, val and test needs some; without a column `split` fedscan "
            "makes them, from five participants of each label on",
        )
    return {**counts, "left_out": sum(index.left_out.values())}


def load_split(site: str, data_dir: Path, split: str, config: RunConfig, cache: Path) -> ImageSet:
    """Load one split of one site's scans; no file of another split is opened."""
    from common.imaging.bids import read_site
    from common.imaging.prepare import load_images

    return load_images(read_site(data_dir, site), split, image_size=config.image_size, cache=cache)


@dataclass(frozen=True)
class Fit:
    """What one call of :func:`fit` gives: numbers to report, and state that stays at the site."""

    metrics: dict[str, float]
    private: dict[str, Tensor]


@dataclass(frozen=True)
class _Batches:
    """Random batches without end: every image once, in a new order, before any a second time."""

    count: int
    size: int
    generator: np.random.Generator

    def __iter__(self) -> Iterator[np.ndarray]:
        pending = np.empty(0, dtype=np.int64)
        while True:
            while len(pending) < self.size:
                pending = np.concatenate([pending, self.generator.permutation(self.count)])
            yield pending[: self.size]
            pending = pending[self.size :]


def fit(
    model: nn.Module,
    data: ImageSet,
    config: RunConfig,
    *,
    first_step: int,
    steps: int,
    seed: int,
    device: torch.device,
    private: Mapping[str, Tensor],
) -> Fit:
    """Train a classifier in place for a number of optimizer steps.

    AdamW on the cross-entropy, each class weighted by n / (2 · n_class) so that a hospital's mix
    of sexes does not become a prior; the learning rate follows one cosine over the whole run. The
    moments are the caller's to keep: a site's own, never averaged, since starting them anew every
    round makes its first steps as large as the learning rate in every direction.

    Parameters
    ----------
    model : nn.Module
        Maps (B, 1, S, S, S) to logits (B, 2). Trained in place, left on the CPU.
    data : ImageSet
        Images (N, S, S, S) in [0, 1] and labels (N,).
    config : RunConfig
        Batch size, learning rate, weight decay and, with ``proximal_mu`` > 0, the weight μ of
        FedProx's term μ/2 · ‖w - w₀‖² (Li et al. 2020, eq. 2), with w₀ the weights on entry.
    first_step : int
        Steps of the run that came before this call, for the schedule.
    steps : int
    seed : int
        Decides batches and augmentation.
    device : torch.device
    private : mapping of str to Tensor
        What the last call gave back as ``private``; empty at first.

    Returns
    -------
    Fit
        With metrics ``loss``, the mean training loss, and ``images-seen``, images in all batches.

    Raises
    ------
    DivergedError
        If the loss is not finite: the run has diverged.
    """
    images = torch.from_numpy(data.images).unsqueeze(1)
    labels = torch.from_numpy(data.labels)
    present = torch.bincount(labels, minlength=CLASSES).clamp(min=1)
    class_weights = (len(labels) / (CLASSES * present)).to(device)

    model.to(device).train()
    start = [p.detach().clone() for p in model.parameters()] if config.proximal_mu else []
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    _restore_moments(optimizer, model, private)
    batches = iter(_Batches(len(labels), config.batch_size, np.random.default_rng(seed)))
    augmentation = torch.Generator().manual_seed(derive_seed(seed, purpose="augmentation"))
    losses = []
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(derive_seed(seed, purpose="dropout"))  # EfficientNet drops paths
        for step in range(first_step, first_step + steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * cosine(step, config.total_steps)
            index = torch.from_numpy(next(batches))
            logits = model(augment(images[index], augmentation).to(device))
            # Divided by the batch, not by its own weights as "mean" would: a batch without the
            # rarer class would else pull towards the other at full strength.
            targets = labels[index].to(device)
            loss = F.cross_entropy(logits, targets, weight=class_weights, reduction="sum")
            loss = loss / len(targets)
            if start:
                drift = sum(
                    (p - p0).square().sum() for p, p0 in zip(model.parameters(), start, strict=True)
                )
                loss = loss + config.proximal_mu / 2 * drift
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    mean_loss = float(torch.stack(losses).mean())
    model.cpu()
    if not math.isfinite(mean_loss):
        raise DivergedError(
            f"the training loss is {mean_loss} after step {first_step + steps}: the run has "
            "diverged. Try a lower learning-rate"
        )
    metrics = {"loss": mean_loss, "images-seen": float(steps * config.batch_size)}
    return Fit(metrics, _moments(optimizer, model))


def _moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}/{moment}": optimizer.state[parameter][moment].detach().cpu()
        for name, parameter in model.named_parameters()
        for moment in MOMENTS
        if parameter in optimizer.state
    }


def _restore_moments(
    optimizer: torch.optim.Optimizer, model: nn.Module, private: Mapping[str, Tensor]
) -> None:
    for name, parameter in model.named_parameters():
        if f"{name}/step" in private:
            optimizer.state[parameter] = {
                # The count of steps stays on the CPU, where AdamW keeps it.
                moment: private[f"{name}/{moment}"].clone()
                if moment == "step"
                else private[f"{name}/{moment}"].to(parameter.device, copy=True)
                for moment in MOMENTS
            }


def cosine(step: int, total: int) -> float:
    """Fraction of the peak learning rate at a step: half a cosine from 1 towards 0."""
    return 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Vary what does not carry the label: side, place and contrast.

    Parameters
    ----------
    images : Tensor
        (B, 1, S, S, S) in [0, 1], axes right, anterior, superior.
    generator : torch.Generator
        Every draw comes from it.

    Returns
    -------
    Tensor
        A new tensor of the same shape. Sizes are left alone: they carry sex.
    """
    count = len(images)
    shifts = torch.randint(-SHIFT_VOXELS, SHIFT_VOXELS + 1, (count, 3), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    gamma = torch.exp(GAMMA_SD * torch.randn(count, 1, 1, 1, 1, generator=generator))
    out = torch.stack(
        [
            # The border of a prepared cube is empty, so rolling is shifting.
            torch.roll(image.flip(1) if mirror else image, tuple(shift.tolist()), (1, 2, 3))
            for image, mirror, shift in zip(images, mirrored, shifts, strict=True)
        ]
    )
    return out.pow_(gamma)


@torch.no_grad()
def predict(model: nn.Module, data: ImageSet, device: torch.device) -> np.ndarray:
    """Return probabilities of class 1 (male), (N,) float64, in the order of the data.

    The mean over an image and its mirror image, which show the same person.

    Raises
    ------
    DivergedError
        If a probability is not finite.
    """
    model.to(device).eval()
    probabilities = [
        (model(part).double().softmax(1) + model(part.flip(2)).double().softmax(1))[:, 1].cpu() / 2
        for part in torch.from_numpy(data.images).unsqueeze(1).to(device).split(32)
    ]
    model.cpu()
    found = torch.cat(probabilities)
    if not found.isfinite().all():
        raise DivergedError("the model predicts NaN: the run has diverged. Lower learning-rate")
    return found.numpy()


def score(data: ImageSet, predictions: np.ndarray) -> dict[str, float]:
    """Return the metrics of predictions; see ``common.evaluation.classification``."""
    return classification_metrics(data.labels, predictions)
