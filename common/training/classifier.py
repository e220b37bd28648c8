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
from common.models.slice_classifier import StackClassifier
from common.seeding import derive_seed
from common.training.balanced_batches import BalancedBatches
from common.training.hooks import Hooks
from common.training.variation import variation_of

if TYPE_CHECKING:
    from common.config.run_config import RunConfig
    from common.data.dataset import Dataset
    from common.studies.study import Study

PART = 32  # images at once, where no gradient is needed
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


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
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
    data: Dataset,
    config: RunConfig,
    *,
    device: torch.device,
    seed: int,
    first_step: int,
    moments: Mapping[str, Tensor],
    hooks: Hooks | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """Train a classifier in place: ``local_steps`` optimizer steps.

    AdamW on the cross-entropy, each class weighted (:func:`class_weights`) or equally often in
    batches, so that a hospital's mix of classes does not become a prior; the learning rate follows
    one cosine over the whole run. The moments are the caller's to keep: a site's own, never
    averaged, since starting them anew every round makes its first steps as large as the learning
    rate in every direction.

    A classifier of slices is centered on what its features are of these images on entry, and they
    are in the units that it came with; in the run's first step nobody has any, and a site takes its
    own. Where neither features nor images change, they are computed once.

    Parameters
    ----------
    model : nn.Module
        Maps a batch of images to logits (B, K). Trained in place, left on the CPU. What needs no
        gradient is left alone.
    data : Dataset
    config : RunConfig
        Batch size, learning rate, weight decay, label smoothing and augmentation.
    device : torch.device
    seed : int
        Of batches, augmentation and what the model drops.
    first_step : int
        Steps of the run that were made before.
    moments : mapping of str to Tensor
        What the last call gave back; empty at first.
    hooks : Hooks, optional
        What a strategy does beside: terms of the loss, changes of the gradient.

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
    steps, study = config.training.local_steps, config.read_study()
    labels, augment = torch.from_numpy(data.labels), variation_of(study).augment
    classes = len(study.label.classes.names)
    per_class = torch.from_numpy(class_weights(data.labels, classes)).to(device)
    rng, size = np.random.default_rng(seed), config.training.batch_size
    if config.training.balance == "weights":
        batches, in_loss = iter(_Batches(len(labels), size, rng)), per_class
    else:
        batches, in_loss = iter(BalancedBatches(data.labels, size, rng)), torch.ones_like(per_class)

    model.to(device).train()
    hooks = hooks or Hooks()
    hooks.before_round(model)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.training.learning_rate,
        weight_decay=config.training.weight_decay,
        fused=device.type == "cpu",  # a GPU's would want the count of steps there as well
    )
    _restore_moments(optimizer, model, moments)
    log_variance = constant = None
    if isinstance(model, StackClassifier) and (model.centered or model.scaled):
        features = features_of(model, data)
        log_variance = model.survey(features, per_class[labels.to(device)])
        if log_variance is not None and not first_step:
            model.log_variance.copy_(log_variance)
        if model.frozen and config.training.augment == "none":
            constant = features
    augmentation = torch.Generator().manual_seed(derive_seed(seed, purpose="augmentation"))
    losses = []
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(derive_seed(seed, purpose="dropout"))  # EfficientNet drops paths
        for step in range(first_step, first_step + steps):
            for group in optimizer.param_groups:
                group["lr"] = config.training.learning_rate * cosine(step, config.total_steps)
            index = next(batches)
            targets = labels[index].to(device)
            if constant is not None:
                logits = model.classify(constant[torch.from_numpy(index)])
            else:
                images = torch.from_numpy(data.take(index))
                if config.training.augment == "all":
                    images = augment(images, augmentation)
                logits = model(images.to(device))
            # Divided by the batch, not by its own weights as "mean" would: a batch without the
            # rarer class would else pull towards the other at full strength.
            each = F.cross_entropy(
                logits, targets, label_smoothing=config.training.label_smoothing, reduction="none"
            )
            loss = in_loss[targets] @ each / len(targets)
            if (term := hooks.loss(model)) is not None:
                loss = loss + term
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            hooks.gradient(model)
            optimizer.step()
            losses.append(loss.detach())
    mean_loss = float(torch.stack(losses).mean())
    if log_variance is not None:
        model.log_variance.copy_(log_variance)
    model.cpu()
    if not math.isfinite(mean_loss):
        raise DivergedError(
            f"the training loss is {mean_loss} after step {first_step + steps}: the run has "
            "diverged. Try a lower training.learning-rate"
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


def survey_features(model: StackClassifier, data: Dataset) -> None:
    """Let a classifier of slices know its site's features, where it is centered on them."""
    weights = torch.from_numpy(class_weights(data.labels, model.head.out_features)[data.labels])
    model.survey(features_of(model, data), weights)


@torch.no_grad()
def features_of(model: StackClassifier, data: Dataset) -> Tensor:
    """Return the features (N, features) of all images, on the model's device."""
    return torch.cat(
        [model.features_of(torch.from_numpy(data.take(part))) for part in _parts(data)]
    )


@torch.no_grad()
def predict(model: nn.Module, data: Dataset, study: Study, device: torch.device) -> np.ndarray:
    """Return probabilities (N, K) float64, or of two classes (N,) of class 1, as in the data.

    The mean over views that show the same, such as an image and its mirror image.

    Raises
    ------
    DivergedError
        If a probability is not finite.
    """
    model.to(device).eval()
    views = variation_of(study).views
    found = []
    for part in _parts(data):
        images = torch.from_numpy(data.take(part)).to(device)
        seen = [model(view).double().softmax(1) for view in views(images)]
        found.append(torch.stack(seen).mean(0).cpu())
    model.cpu()
    probabilities = torch.cat(found)
    if not probabilities.isfinite().all():
        raise DivergedError(
            "the model predicts NaN: the run has diverged. Lower training.learning-rate"
        )
    return (probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities).numpy()


def _parts(data: Dataset) -> list[np.ndarray]:
    """Indices of all images, a few at a time."""
    return np.split(np.arange(len(data)), range(PART, len(data), PART))
