"""Training of a classifier, and its predictions.

Whoever calls :func:`train` (a site in a federation, one hospital by itself, all data in one pool)
decides only which images it may see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import DivergedError
from common.models.parts import captured_features, layers_of
from common.models.site_statistics import layers_of_site
from common.models.slice_classifier import StackClassifier
from common.privacy.dp_sgd import require_separate
from common.privacy.guarantee import dp_sgd_of
from common.seeding import derive_seed
from common.training.batches import batches_of
from common.training.classifier_state import ClassifierTraining
from common.training.hooks import Batch, Hooks
from common.training.losses import Loss, loss_of, weighted_mean
from common.training.site_survey import parts, survey
from common.training.variation import variation_of

if TYPE_CHECKING:
    from common.config.run_config import RunConfig
    from common.data.dataset import Dataset
    from common.studies.study import Study
    from common.training.progress import Progress


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
        −1, of an image without a label, does not count.
    classes : int
        Of the study.

    Returns
    -------
    ndarray of float32, shape (classes,)
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    present = np.count_nonzero(counts)
    weights = counts.sum() / (present * counts.clip(min=1)) if present else np.zeros(classes)
    return np.where(counts, weights, 0).astype(np.float32)


def train(
    model: nn.Module,
    data: Dataset,
    config: RunConfig,
    *,
    device: torch.device,
    seed: int,
    round_number: int,
    moments: Mapping[str, Tensor],
    hooks: Hooks | None = None,
    progress: Progress | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """Train a classifier in place for one round's optimizer steps.

    AdamW on one of :mod:`common.training.losses`, each class weighted (:func:`class_weights`) or
    equally often in batches, so that a hospital's mix of classes does not become a prior; the
    learning rate follows one cosine over the whole run. The moments are the caller's to keep: a
    site's own, never averaged, since starting them anew every round makes its first steps as large
    as the learning rate in every direction.

    Where a classifier takes its site's statistics, they are those of these images on entry.
    Features that are scaled are in the units that they came with; in the run's first step nobody
    has any, and a site takes its own. Where neither features nor images change, they are computed
    once.

    With ``privacy.epsilon`` batches are Poisson samples of people, and each step's gradient is that
    of :mod:`common.privacy.dp_sgd`. The mean loss that is returned then has no noise.

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
    round_number : int
        From 1.
    moments : mapping of str to Tensor
        What the last call gave back; empty at first.
    hooks : Hooks, optional
        What a strategy does beside: terms of the loss, changes of the gradient.
    progress : Progress, optional
        Where an interrupted round goes on.

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
    steps, study = config.local_steps(len(data)), config.read_study()
    first_step, total = (round_number - 1) * steps, config.run.rounds * steps
    labels, augment = torch.from_numpy(data.labels), variation_of(study).augment
    classes, settings = len(study.label.classes.names), config.training
    loss_of_each = loss_of(
        settings.loss,
        data.labels[data.labels >= 0],
        classes,
        gamma=settings.focal_gamma,
        tau=settings.logit_tau,
        smoothing=settings.label_smoothing,
        mask=settings.absent_classes == "mask",
    )
    per_class = torch.from_numpy(class_weights(data.labels, classes)).to(device)
    in_loss = per_class if settings.balance == "weights" else torch.ones_like(per_class)

    of_head = config.model.trains == "head"
    model.to(device).train(not of_head)  # what is frozen computes as it will when it is judged
    private, batches = None, batches_of(data.labels, settings.batch_size, seed, settings.balance)
    if config.privacy.is_on:
        require_separate(model)
        private = dp_sgd_of(config, data.people, seed)
        batches = private.batches(data.persons)
    log_variance = features = constant = None
    if _is_scaled(model):
        features = features_of(model, data)
        weights = torch.from_numpy(_scan_weights(data, classes)).to(device)
        log_variance = model.log_variance_of(features, weights)
        if not first_step and not config.model.warm_start:
            model.log_variance.copy_(log_variance)
    survey_site(model, data, config, device, features=features)
    hooks = hooks or Hooks()  # which may copy the model
    hooks.before_round(model)
    put_back = _absent_rows(model, per_class == 0) if settings.absent_classes == "mask" else None
    optimizer = torch.optim.AdamW(
        _groups(model, settings.layer_decay),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=device.type == "cpu",  # a GPU's would want the count of steps there as well
    )
    augmentation = torch.Generator().manual_seed(derive_seed(seed, purpose="augmentation"))
    training = ClassifierTraining(model, optimizer, hooks, augmentation, device)
    training.load_moments(moments)
    if type(hooks).loss is Hooks.loss and settings.augment == "none":
        if isinstance(model, StackClassifier) and model.frozen:
            constant, classify = features, model.classify
        elif of_head:
            constant = _seen_by_head(model, data, device)
            classify = partial(F.linear, weight=model.head.weight, bias=model.head.bias)

    def loss_on(index: np.ndarray) -> Tensor:
        targets = labels[index].to(device)
        criterion = partial(_mean_loss, loss_of_each, targets, in_loss[targets])
        if constant is not None:
            return criterion(classify(constant[torch.from_numpy(index)]))
        images = torch.from_numpy(data.take(index))
        if settings.augment == "all":
            images = augment(images, augmentation)
        images = images.to(device)
        with captured_features(model) as seen:
            loss = criterion(model(images))
        if private:
            return loss
        batch = Batch(images, targets, seen[-1], loss, criterion)
        term = hooks.loss(model, batch)
        return loss if term is None else loss + term

    done = 0
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(derive_seed(seed, purpose="dropout"))  # EfficientNet drops paths
        if progress and (kept := progress.load()):
            done, parts_kept = kept
            training.load(parts_kept)
            for _ in range(done):  # they are drawn as before, and nothing is read
                next(batches)
        for step in range(first_step + done, first_step + steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * cosine(step, total) * group["share"]
            if private:  # a strategy's term is of weights alone, and needs no noise
                loss = private.backward(model, map(loss_on, next(batches)), step)
                rest = hooks.loss(model, None)
            else:
                loss = rest = loss_on(next(batches))
                optimizer.zero_grad(set_to_none=True)
            if rest is not None and rest.requires_grad:
                rest.backward()
            if private or loss.requires_grad:  # not without any label, where nothing is added yet
                hooks.gradient(model)
                optimizer.step()
            training.losses.append(loss.detach())
            if progress:
                done = step + 1 - first_step
                progress.offer(done, training.export, last=done == steps)
    mean_loss = float(torch.stack(training.losses).mean())
    if log_variance is not None:
        model.log_variance.copy_(log_variance)
    if put_back:
        put_back()
    model.cpu()
    if not math.isfinite(mean_loss):
        raise DivergedError(
            f"the training loss is {mean_loss} after step {first_step + steps}: the run has "
            "diverged. Try a lower training.learning-rate"
        )
    return mean_loss, training.moments()


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Group parameters by layer; ``share`` is what each has of the learning rate.

    The head has all of it, and a layer ``decay`` times as much as the one above (Howard and Ruder
    2018, arXiv 1801.06146; Clark et al. 2020, arXiv 2003.10555).
    """
    if decay == 1:
        return [{"params": list(model.parameters()), "share": 1.0}]
    layers = layers_of(model)
    return [
        {"params": parameters, "share": decay ** (len(layers) - 1 - number)}
        for number, parameters in enumerate(layers)
    ]


def _mean_loss(loss: Loss, targets: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
    """Return a batch's mean loss; images without a label have no part in it.

    Of a batch without any label it is 0, which has no gradient, so that the step leaves alone what
    serves classes only.
    """
    known = targets >= 0
    if not known.all():
        logits, targets, weights = logits[known], targets[known], weights[known]
    if not len(targets):
        return logits.new_zeros(())
    return weighted_mean(loss(logits, targets), weights)


def _absent_rows(model: nn.Module, absent: Tensor) -> Callable[[], None]:
    """Remember a head's rows of some classes; weights decay without any gradient as well."""
    rows = {name: one.detach()[absent] for name, one in model.head.named_parameters()}

    @torch.no_grad()
    def put_back() -> None:
        for name, one in model.head.named_parameters():
            one[absent] = rows[name]

    return put_back


def cosine(step: int, total: int) -> float:
    """Fraction of the peak learning rate at a step: half a cosine from 1 towards 0."""
    return 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def survey_site(
    model: nn.Module,
    data: Dataset,
    config: RunConfig,
    device: torch.device,
    *,
    features: Tensor | None = None,
) -> None:
    """Let a classifier take its site's statistics from training images, where it has any.

    A center is that of all classes alike: a plain mean leans towards the class that a site has
    more of, and the threshold leans with it. See :func:`common.training.site_survey.survey`.
    """
    study, weights = config.read_study(), None
    if config.model.adapt == "center":
        weights = _scan_weights(data, len(study.label.classes.names))
    model.to(device)
    if features is None and layers_of_site(model) and _is_scaled(model):
        features = features_of(model, data)
    survey(model, data, study, device, weights=weights, features=features)


def _is_scaled(model: nn.Module) -> bool:
    return isinstance(model, StackClassifier) and model.scaled


def _scan_weights(data: Dataset, classes: int) -> np.ndarray:
    """Return what each image counts in means over a site, so that each class counts as much."""
    weights = class_weights(data.labels, classes)[data.labels]
    return np.where(data.labels >= 0, weights, np.float32(0))


@torch.no_grad()
def features_of(model: StackClassifier, data: Dataset) -> Tensor:
    """Return the features (N, features) of all images, on the model's device."""
    return torch.cat(
        [model.features_of(torch.from_numpy(data.take(part))) for part in parts(len(data))]
    )


@torch.no_grad()
def _seen_by_head(model: nn.Module, data: Dataset, device: torch.device) -> Tensor:
    """Return what the head sees of all images, (N, F)."""
    with captured_features(model) as seen:
        for part in parts(len(data)):
            model(torch.from_numpy(data.take(part)).to(device))
    return torch.cat(seen)


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
    for part in parts(len(data)):
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
