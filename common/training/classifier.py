"""Training of a classifier, and its predictions.

Whoever calls :func:`train` (a site in a federation, one hospital by itself, all data in one pool)
decides only which images it may see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import DivergedError
from common.models.classifier import CLASSES
from common.models.slice_classifier import StackClassifier
from common.seeding import derive_seed
from common.training.classifier_augment import augment, axes_of

if TYPE_CHECKING:
    from common.config import RunConfig
    from common.imaging.prepare import ImageSet

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what AdamW remembers of each parameter


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


def class_weights(labels: np.ndarray, classes: int = CLASSES) -> np.ndarray:
    """Return n / (K · n_class) of each class: weighted, the K classes present count as much.

    The mean weight of an example is 1 whichever classes a site has, so its steps are as large as
    another's: K counts the classes that are present and not all, else the loss of a site with
    two diagnoses of eight would be a quarter of what it is with all. An absent class has 0: there
    is nothing to weight. The weights do not keep such a site from unlearning the class, as the
    cross-entropy lowers its logits for every example of another.

    Parameters
    ----------
    labels : ndarray of int, shape (N,)
    classes : int
        Of the study.

    Returns
    -------
    ndarray of float32, shape (classes,)
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    weights = len(labels) / (present * counts.clip(min=1)) if present else np.zeros(classes)
    return np.where(counts, weights, 0).astype(np.float32)


def train(
    model: nn.Module,
    data: ImageSet,
    config: RunConfig,
    *,
    device: torch.device,
    seed: int,
    first_step: int,
    moments: Mapping[str, Tensor],
) -> tuple[float, dict[str, Tensor]]:
    """Train a classifier in place: ``local_steps`` optimizer steps.

    AdamW on the cross-entropy, weighted by :func:`class_weights` so that a hospital's mix of
    classes does not become a prior; the learning rate follows one cosine over the whole run. The
    moments are the caller's to keep: a site's own, never averaged, since starting them anew every
    round makes its first steps as large as the learning rate in every direction.

    A classifier of slices is centered on what its features are of these images on entry, and they
    are in the units that it came with; in the run's first step nobody has any, and a site takes its
    own. Where neither features nor images change, they are computed once.

    Parameters
    ----------
    model : nn.Module
        Maps (B, 1, S, S, S) to logits (B, 2), or stacks (B, 1, L, R, R). Trained in place, left on
        the CPU. What needs no gradient is left alone.
    data : ImageSet
        Images (N, S, S, S) or (N, L, R, R) in [0, 1] and labels (N,).
    config : RunConfig
        Batch size, learning rate, weight decay, label smoothing, augmentation and, with
        ``proximal_mu`` > 0, the weight μ of FedProx's term μ/2 · ‖w - w₀‖² (Li et al. 2020, eq. 2),
        with w₀ the weights on entry.
    device : torch.device
    seed : int
        Of batches, augmentation and what the model drops.
    first_step : int
        Steps of the run that were made before.
    moments : mapping of str to Tensor
        What the last call gave back; empty at first.

    Returns
    -------
    float
        The mean training loss.
    dict of str to Tensor
        The optimizer's moments, by parameter and kind.

    Raises
    ------
    DivergedError
        If the loss is not finite: the run has diverged.
    """
    steps = config.local_steps
    images = torch.from_numpy(data.images).unsqueeze(1)
    labels = torch.from_numpy(data.labels)
    per_class = torch.from_numpy(class_weights(data.labels)).to(device)

    model.to(device).train()
    start = [p.detach().clone() for p in model.parameters()] if config.proximal_mu else []
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    _restore_moments(optimizer, model, moments)
    log_variance = constant = None
    if isinstance(model, StackClassifier) and (model.centered or model.scaled):
        features = model.features_of(images)
        log_variance = model.survey(features, per_class[labels])
        if log_variance is not None and not first_step:
            model.log_variance.copy_(log_variance)
        if model.frozen and config.augment == "none":
            constant = features
    batches = iter(_Batches(len(labels), config.batch_size, np.random.default_rng(seed)))
    augmentation = torch.Generator().manual_seed(derive_seed(seed, purpose="augmentation"))
    losses = []
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(derive_seed(seed, purpose="dropout"))  # EfficientNet drops paths
        for step in range(first_step, first_step + steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * cosine(step, config.total_steps)
            index = torch.from_numpy(next(batches))
            targets = labels[index].to(device)
            if constant is not None:
                logits = model.classify(constant[index])
            elif config.augment == "none":
                logits = model(images[index].to(device))
            else:
                logits = model(augment(images[index], augmentation).to(device))
            # Divided by the batch, not by its own weights as "mean" would: a batch without the
            # rarer class would else pull towards the other at full strength.
            each = F.cross_entropy(
                logits, targets, label_smoothing=config.label_smoothing, reduction="none"
            )
            loss = per_class[targets] @ each / len(targets)
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
    if log_variance is not None:
        model.log_variance.copy_(log_variance)
    model.cpu()
    if not math.isfinite(mean_loss):
        raise DivergedError(
            f"the training loss is {mean_loss} after step {first_step + steps}: the run has "
            "diverged. Try a lower learning-rate"
        )
    return mean_loss, _moments(optimizer, model)


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
    images = torch.from_numpy(data.images).unsqueeze(1).to(device)
    right = axes_of(images).right
    probabilities = [
        (model(part).double().softmax(1) + model(part.flip(right)).double().softmax(1))[:, 1]
        for part in images.split(32)
    ]
    model.cpu()
    found = torch.cat(probabilities).cpu() / 2
    if not found.isfinite().all():
        raise DivergedError("the model predicts NaN: the run has diverged. Lower learning-rate")
    return found.numpy()
