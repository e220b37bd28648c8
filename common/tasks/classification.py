"""Classification of a scan: here, of sex from a T1-weighted brain MRI.

An image is a head: a cube of voxels, or the stack of a few of its axial slices, as the classifier
takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from common.checkpoints import save_model
from common.config import OF_SLICES, RunConfig
from common.errors import AnswerError, ConfigError, DataContractError
from common.evaluation.classification import classification_metrics
from common.models.classifier import CLASSES, build_classifier
from common.predictions import save_predictions
from common.provenance import source_hash
from common.seeding import derive_seed
from common.tasks import Evaluation, Fit, Load, Place, State, Verdict
from common.tasks.stacks import heights_mm, load_stacks
from common.training.classifier import class_weights, predict, train

if TYPE_CHECKING:
    from common.imaging.prepare import ImageSet


STATISTICS = ("log_variance",)  # of features over people, among what sites share
AVERAGES_OVER_TIME = False


def build_model(config: RunConfig, place: Place | None = None) -> nn.Module:
    """Build the model with the run's initial weights, the same wherever it is built.

    Raises
    ------
    ConfigError
        If the networks of ``gan`` and ``gan-changes`` cannot be, or have no use for slices.
    """
    seed = derive_seed(config.seed, purpose="initial weights")
    if config.classifier not in OF_SLICES:
        return build_classifier(config.classifier, image_size=config.image_size, seed=seed)
    from common.models.slice_classifier import DiscriminatorClassifier, SliceClassifier
    from common.tasks.generation_networks import architecture, gan_config

    levels, centered = len(heights_mm(config)), config.adapt == "center"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.classifier == "slices":
            return SliceClassifier(levels, gan_config(config).resolution, centered=centered)
        networks = architecture(config, place.sites if place else ())
        tuned = config.features == "tuned"
        return DiscriminatorClassifier(
            networks, levels, layer=config.feature_layer, tuned=tuned, centered=centered
        )


def warm_start(model: nn.Module, config: RunConfig) -> None:
    """Take over the discriminator of ``gan-checkpoint``; without one, begin with the run's weights.

    Raises
    ------
    ConfigError
        If the checkpoint's networks are not those of the run, or the classifier has none.
    FedscanError
        If there is no checkpoint, or it cannot be read.
    """
    if not config.gan_checkpoint:
        return
    if config.classifier != "gan-features":
        raise ConfigError(
            f"gan-checkpoint has no effect with classifier '{config.classifier}': set it empty, or "
            "the classifier to 'gan-features'"
        )
    from common.training.gan_checkpoint import load_discriminator

    discriminator, _ = load_discriminator(config.gan_checkpoint)
    try:
        model.take_over(discriminator)
    except ConfigError as error:
        raise ConfigError(f"gan-checkpoint {config.gan_checkpoint}: {error}") from error


def shared_state(model: nn.Module, config: RunConfig | None = None) -> dict[str, Tensor]:
    """Return the part of the model's state that sites share: all of it, in every classifier."""
    del config
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def load_shared(model: nn.Module, state: State) -> None:
    """Take over weights, strictly."""
    model.load_state_dict(dict(state), strict=True)


def align(updates: Mapping[str, dict[str, Tensor]], config: RunConfig) -> None:
    """Leave them: every site learns every weight."""
    del updates, config


def first_release(model: nn.Module) -> dict[str, Tensor]:
    """Return the initial weights."""
    return shared_state(model)


def release(
    previous: State, shared: State, config: RunConfig, *, round_number: int, participants: int
) -> dict[str, Tensor]:
    """Release the average of the round, as it is."""
    del previous, config, round_number, participants
    return dict(shared)


def extractor_hash(config: RunConfig) -> str:
    """Return "": scans are judged by their labels."""
    del config
    return ""


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
            "makes them, from three participants of each label on",
        )
    return {**counts, "left_out": sum(index.left_out.values())}


def roster(site: str, data_dir: Path) -> list[tuple[str, int, str]]:
    """List id, label and split of every participant, without opening a scan.

    Raises
    ------
    DataContractError
        The site's table cannot be understood.
    """
    from common.imaging.bids import read_site

    people = read_site(data_dir, site).participants
    return [(one.id, one.label, one.split) for one in people]


def load_split(site: str, data_dir: Path, split: str, config: RunConfig, cache: Path) -> ImageSet:
    """Load one split of one site's scans; no file of another split is opened."""
    if config.classifier in OF_SLICES:
        return load_stacks(site, data_dir, split, config, cache)
    from common.imaging.bids import read_site
    from common.imaging.prepare import load_images

    return load_images(read_site(data_dir, site), split, image_size=config.image_size, cache=cache)


def participants(data: ImageSet) -> int:
    """Return how many participants are in data: one an image."""
    return len(data.labels)


def most_judged(count: int) -> int:
    """Return at most how many images so many participants have: one each."""
    return count


def ids(data: ImageSet) -> list[str]:
    """List the participants in data: one an image."""
    return list(data.ids)


def pool(sets: Sequence[ImageSet]) -> ImageSet:
    """Put several sites' images into one set, in the order given."""
    from common.imaging.prepare import ImageSet

    return ImageSet(
        np.concatenate([one.images for one in sets]),
        np.concatenate([one.labels for one in sets]),
        tuple(name for one in sets for name in one.ids),
    )


def fit(
    model: nn.Module,
    data: ImageSet,
    config: RunConfig,
    *,
    place: Place,
    round_number: int,
    private: State,
) -> Fit:
    """Train a classifier in place for one round; see :func:`common.training.classifier.train`.

    Parameters
    ----------
    model : nn.Module
    data : ImageSet
    config : RunConfig
    place : Place
        Its site decides batches and augmentation, together with the run's seed and the round.
    round_number : int
        From 1; the schedule of the learning rate follows it.
    private : mapping of str to Tensor
        What the last call gave back as ``private``; empty at first.

    Returns
    -------
    Fit
        With metrics ``loss``, the mean training loss, and ``images-seen``, images in all batches.

    Raises
    ------
    DataContractError
        If features are to be centered between the sexes and the scans are of one alone.
    DivergedError
        If the loss is not finite: the run has diverged.
    """
    if config.adapt == "center" and len(np.unique(data.labels)) < CLASSES:
        raise DataContractError(
            place.site,
            "all training scans are of one sex",
            where="participants.tsv",
            remedy="A site is centered between its sexes: add scans of both, or set adapt to none",
        )
    received = getattr(model, "log_variance", None)
    received = None if received is None else received.clone()
    loss, moments = train(
        model,
        data,
        config,
        device=place.device,
        seed=place.seed(config.seed, round=round_number, purpose="fit"),
        first_step=(round_number - 1) * config.local_steps,
        moments=private,
    )
    if received is not None:
        model.log_variance.copy_(
            place.disclosure.log_variance(model.log_variance, received, participants(data))
        )
    seen = float(config.local_steps * config.batch_size)
    return Fit({"loss": loss, "images-seen": seen}, moments)


def score(data: ImageSet, predictions: np.ndarray) -> dict[str, float]:
    """Return the metrics of predictions; see ``common.evaluation.classification``."""
    return classification_metrics(data.labels, predictions)


def evaluate(
    released: State,
    load: Load,
    split: str,
    config: RunConfig,
    *,
    place: Place,
    records: Path | None = None,
) -> Evaluation:
    """Judge weights on one split.

    Parameters
    ----------
    released : mapping of str to Tensor
    load : callable
    split : str
    config : RunConfig
    place : Place
    records : Path, optional
        Folder for ``predictions.csv``, one row per scan, which stays at the site.
    """
    model = build_model(config, place)
    load_shared(model, released)
    if config.adapt == "center":
        known = load("train")
        scan_weights = torch.from_numpy(class_weights(known.labels)[known.labels])
        model.to(place.device)
        model.survey(model.features_of(torch.from_numpy(known.images).unsqueeze(1)), scan_weights)
    data = load(split)
    predictions = predict(model, data, place.device)
    if records is not None:
        save_predictions(records / "predictions.csv", data.labels, predictions)
    count, by_class = len(data.labels), np.bincount(data.labels, minlength=CLASSES)
    return Evaluation(count, score(data, predictions), people=count, fewest=int(by_class.min()))


def judge(evaluations: Mapping[str, Evaluation], config: RunConfig) -> Verdict:
    """Mean loss over all sites' scans; on a few dozen of them accuracy moves in steps of percents.

    Accuracies are reported, not chosen by.

    Raises
    ------
    AnswerError
        If a site does not report a loss, or one below 0.
    """
    del config
    for site, one in evaluations.items():
        if "loss" not in one.metrics:
            raise AnswerError(
                site,
                "it has judged a model and does not report its loss. All sites must run fedscan's "
                "own sources: start that SuperNode from them",
            )
        if (loss := one.metrics["loss"]) < 0:  # by which its round would be chosen
            raise AnswerError(site, f"it tells a loss of {loss}, and no cross-entropy is below 0")
    total = sum(one.count for one in evaluations.values())
    loss = sum(one.metrics["loss"] * one.count for one in evaluations.values()) / total
    accuracies = ", ".join(
        f"{site} {one.metrics['balanced_accuracy']:.2f}"
        for site, one in evaluations.items()
        if "balanced_accuracy" in one.metrics  # which a site withholds where a class is small
    )
    said = f", balanced accuracy {accuracies}" if accuracies else ""
    return Verdict(loss, {}, f"validation loss {loss:.3f}{said}")


def save(
    folder: Path,
    released: State,
    shared: State,
    config: RunConfig,
    *,
    round_number: int,
    place: Place,
) -> None:
    """Write ``model.safetensors`` and ``model.json``."""
    del shared, place
    save_model(
        folder,
        dict(released),
        {
            "task": config.task,
            "classifier": config.classifier,
            **_size(config),
            "classes": ["female", "male"],
            "round": round_number,
            "source_hash": source_hash(),
        },
    )


def _size(config: RunConfig) -> dict[str, int | str]:
    if config.classifier not in OF_SLICES:
        return {"image_size": config.image_size}
    keys = ("gan", "gan_changes", "feature_layer", "features", "heights", "adapt")
    return {key: getattr(config, key) for key in keys}


def illustrate(folder: Path, released: State, config: RunConfig, **about: Any) -> None:
    """Leave nothing: weights of a classifier are nothing to look at."""
    del folder, released, config, about


def summary(
    evaluations: Mapping[str, Evaluation],
    verdict: Verdict,
    fits: Mapping[str, Mapping[str, float]],
    config: RunConfig,
    *,
    round_number: int,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return nothing of the whole, and under each site its metrics."""
    del verdict, fits, config, round_number
    return {}, {site: {**one.metrics, "n_test": one.count} for site, one in evaluations.items()}
