"""Classification of an image: which of the study's classes it shows.

An image is a picture, a volume, or the stack of a few of a volume's axial slices, as the classifier
takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from common.checkpoints import save_model
from common.config.run_config import OF_SLICES, RunConfig
from common.data.dataset import Dataset
from common.data.site_data import open_split
from common.errors import AnswerError, ConfigError, DataContractError
from common.evaluation.classification import metric_names
from common.evaluation.of_site import Evaluation, Reports, ValidationResult
from common.extensions import is_extension
from common.models.parts import freeze_body, layers_of, parts_of
from common.models.warm_start import begin_with, check_start, has_frozen_norms
from common.predictions import save_predictions
from common.privacy.statement import TOLD, told
from common.provenance import source_hash
from common.strategies.strategy import load_strategy
from common.tasks.classifier_networks import build, check_network, heights_mm, network_statistics
from common.tasks.classifier_scores import score, told_of
from common.tasks.task import (
    Fit,
    Load,
    SiteContext,
    State,
    Task,
    use_of_labels,
)
from common.training.classifier import predict, survey_site, train
from common.training.gan_presets import stylegan2
from common.training.hooks import Hooks
from common.training.progress import Progress
from common.training.threshold import of_each_class, offsets, shifted


class Classification(Task):
    """A classifier that all sites share in whole."""

    statistics = ("log_variance",)  # of features over people

    def check(self, config: RunConfig) -> None:
        """Refuse a classifier that does not suit the study, or whose networks cannot be.

        Raises
        ------
        ConfigError
        """
        study, name = config.read_study(), config.model.classifier
        pictures = study.images.view == "picture"
        if name == "slices" and pictures:
            raise ConfigError(
                f"model.classifier 'slices' is for volumes; study '{study.name}' has pictures"
            )
        if config.data.classes:
            raise ConfigError("data.classes is for task 'generation': leave it out")
        check_start(config)
        if config.model.adapt == "center" and config.data.unlabelled:
            raise ConfigError(
                "model.adapt 'center' needs labels at every site, and data.unlabelled hides those "
                f"of {config.data.unlabelled}: set model.adapt to none, statistics or threshold"
            )
        if pictures and config.model.heights != "generated":
            raise ConfigError(
                f"model.heights '{config.model.heights}' is of a volume's slices; study "
                f"'{study.name}' has pictures: leave it out"
            )
        if name in OF_SLICES:
            stylegan2(config)
        if is_extension(name):
            check_network(config)

    def statistics_of(self, config: RunConfig) -> frozenset[str]:
        """Name what is shared and is a statistic: variances of features, means of BatchNorms."""
        return super().statistics_of(config) | network_statistics(config)

    def check_labels(self, site: str, labels: Sequence[int], config: RunConfig) -> None:
        """Refuse to center a site that lacks a class.

        Raises
        ------
        DataContractError
        """
        names = config.read_study().label.classes.names
        missing = [names[k] for k in sorted({*range(len(names))} - set(map(int, labels)))]
        if config.model.adapt == "center" and missing:
            raise DataContractError(
                site,
                "the training images are not of all classes",
                got=f"none of {', '.join(missing)}",
                remedy="A site is centered between its classes: add images of all, or set "
                "model.adapt to none",
            )

    def build_model(self, config: RunConfig, place: SiteContext | None = None) -> nn.Module:
        """Build the model with the run's initial weights, the same wherever it is built.

        Raises
        ------
        ConfigError
            If the networks of ``model.gan`` and ``model.gan-changes`` cannot be.
        """
        model = build(config, place.sites if place else ())
        if config.model.trains == "head":
            freeze_body(model)
        return model

    def warm_start(self, model: nn.Module, config: RunConfig) -> list[str]:
        """Take over weights of ``model.warm-start``, or the discriminator of a checkpoint.

        Raises
        ------
        ConfigError
            If the networks are not those of the run, or the classifier has none.
        FedscanError
            If there is no checkpoint, or it cannot be read.
        """
        if config.model.gan_checkpoint:
            from common.training.gan_checkpoint import load_discriminator

            discriminator, _ = load_discriminator(config.model.gan_checkpoint)
            try:
                model.take_over(discriminator)
            except ConfigError as error:
                raise ConfigError(
                    f"model.gan-checkpoint {config.model.gan_checkpoint}: {error}"
                ) from error
        return begin_with(model, config) if config.model.warm_start else []

    def parameters(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the model's state, but for whole numbers and truth values, which are constants."""
        state = model.state_dict()
        return {n: t.detach().clone() for n, t in state.items() if t.is_floating_point()}

    def parts(self, model: nn.Module) -> dict[str, str]:
        """Tell head and normalizations from the body."""
        return parts_of(model)

    def load_shared(self, model: nn.Module, state: State) -> None:
        """Take over weights, strictly."""
        constants = {n: t for n, t in model.state_dict().items() if not t.is_floating_point()}
        model.load_state_dict({**constants, **state}, strict=True)

    def open_split(
        self, site: str, data_dir: Path, split: str, config: RunConfig, cache: Path
    ) -> Dataset:
        """Open one split of one site's images; no file of another split is opened."""
        of_slices = config.model.classifier in OF_SLICES
        return open_split(
            config.read_study(),
            site,
            data_dir,
            split,
            size=stylegan2(config).resolution if of_slices else config.data.size,
            heights_mm=heights_mm(config),
            cache=cache,
            harmonize=config.data.harmonize,
            labels=use_of_labels(site, config),
        )

    def fit(
        self,
        model: nn.Module,
        data: Dataset,
        config: RunConfig,
        *,
        place: SiteContext,
        round_number: int,
        private: State,
        hooks: Hooks | None = None,
        progress: Progress | None = None,
    ) -> Fit:
        """Train a classifier in place for one round; see :func:`common.training.classifier.train`.

        Parameters
        ----------
        model : nn.Module
        data : Dataset
        config : RunConfig
        place : SiteContext
            Its site decides batches and augmentation, together with the run's seed and the round.
        round_number : int
            From 1; the schedule of the learning rate follows it.
        private : mapping of str to Tensor
            What the last call gave back as ``private``; empty at first.
        hooks : Hooks, optional
            The strategy's.
        progress : Progress, optional
            Where an interrupted round goes on.

        Returns
        -------
        Fit
            With metrics ``loss``, the mean training loss, and ``images-seen``, images in all
            batches. With differential privacy what :func:`common.privacy.statement.told` returns in
            place of the loss, and as ``images-seen`` how often a person is drawn, expected.

        Raises
        ------
        DataContractError
            If features are to be centered between the classes and one is missing.
        DivergedError
            If the loss is not finite: the run has diverged.
        """
        self.check_labels(place.site, data.labels, config)
        received = getattr(model, "log_variance", None)
        received = None if received is None else received.clone()
        few = data.people < place.disclosure.min_participants
        statistics = self.statistics_of(config) if few else ()
        sent = {n: t.clone() for n, t in model.state_dict().items() if n in statistics}
        loss, moments = train(
            model,
            data,
            config,
            device=place.device,
            seed=place.seed(config.run.seed, round=round_number, purpose="fit"),
            round_number=round_number,
            moments=private,
            hooks=hooks,
            progress=progress,
        )
        if received is not None:
            model.log_variance.copy_(
                place.disclosure.log_variance(model.log_variance, received, data.people)
            )
        elif sent:  # statistics over so few people do not leave
            model.load_state_dict(sent, strict=False)
        seen = float(config.local_steps(len(data)) * config.training.batch_size)
        if config.privacy.is_on:  # a loss without noise is not accounted for
            promised = told(config, data.people, round_number, secret_noise=bool(place.secret))
            return Fit({**promised, "images-seen": seen}, moments)
        return Fit({"loss": loss, "images-seen": seen}, moments)

    def evaluate(
        self,
        released: State,
        load: Load,
        split: str,
        config: RunConfig,
        *,
        place: SiteContext,
        records: Path | None = None,
    ) -> Evaluation:
        """Judge weights on one split.

        Parameters
        ----------
        released : mapping of str to Tensor
        load : callable
        split : str
        config : RunConfig
        place : SiteContext
        records : Path, optional
            Folder for ``predictions.csv``, one row per image, which stays at the site.
        """
        study = config.read_study()
        model = self.build_model(config, place)
        self.load_shared(model, released)
        known = load("train") if config.model.adapt != "none" else None
        if known is not None:
            survey_site(model, known, config, place.device)
        data = load(split)
        predictions = predict(model, data, study, place.device)
        known = known.labelled() if known is not None else ()
        if len(known) and config.model.adapt == "threshold":
            some = known.subset(of_each_class(known.labels))
            of_known = predict(model, some, study, place.device)
            predictions = shifted(predictions, offsets(of_known, some.labels, some.people))
        classes = study.label.classes.names
        if records is not None:
            path = records / "predictions.csv"
            save_predictions(path, data.labels, predictions, data.persons, classes)
        people = [
            {data.persons[k] for k in np.flatnonzero(data.labels == label)}
            for label in np.unique(data.labels)
        ]
        return Evaluation(
            len(data),
            score(study, data.labels, predictions),
            people=data.people,
            fewest=min(map(len, people)),
        )

    def reports(self, config: RunConfig) -> Reports:
        """Name the metrics, those of single classes included where they are told."""
        names = metric_names(*told_of(config.read_study()))
        own = TOLD if config.privacy.is_on else ("loss",)
        return Reports(frozenset({*own, "images-seen"}), frozenset(names))

    def judge(self, evaluations: Mapping[str, Evaluation], config: RunConfig) -> ValidationResult:
        """Mean loss over all sites' images; on a few dozen accuracy moves in steps of percents.

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
                    "it has judged a model and does not report its loss. All sites must run "
                    "fedscan's own sources: start that SuperNode from them",
                )
            if (loss := one.metrics["loss"]) < 0:  # by which its round would be chosen
                raise AnswerError(
                    site, f"it tells a loss of {loss}, and no cross-entropy is below 0"
                )
        total = sum(one.count for one in evaluations.values())
        loss = sum(one.metrics["loss"] * one.count for one in evaluations.values()) / total
        accuracies = ", ".join(
            f"{site} {one.metrics['balanced_accuracy']:.2f}"
            for site, one in evaluations.items()
            if "balanced_accuracy" in one.metrics  # which a site withholds where a class is small
        )
        said = f", balanced accuracy {accuracies}" if accuracies else ""
        return ValidationResult(loss, {}, f"validation loss {loss:.3f}{said}")

    def save(
        self,
        folder: Path,
        released: State,
        shared: State,
        config: RunConfig,
        *,
        round_number: int,
        place: SiteContext,
    ) -> None:
        """Write ``model.safetensors``, and ``model.json``, also of what only sites have of it."""
        del shared
        study = config.read_study()
        keys = ("gan", "gan_changes", "heights")
        if config.model.classifier in OF_SLICES:
            about = {key: getattr(config.model, key) for key in keys}
        else:  # pretrained weights need other layers than random ones
            about = {"image_size": config.data.size, "pretrained": has_frozen_norms(config)}
        if load_strategy(config.strategy.name).splits:
            whole = self.parameters(self.build_model(config, place))
            if kept := sorted(whole.keys() - released.keys()):
                about["at-sites"] = kept
        save_model(
            folder,
            dict(released),
            {
                "study": config.study,
                "task": config.task,
                "classifier": config.model.classifier,
                **about,
                "adapt": config.model.adapt,
                "channels": study.images.channels,
                "classes": list(study.label.classes.names),
                "round": round_number,
                "source_hash": source_hash(),
            },
        )

    def summary(
        self,
        evaluations: Mapping[str, Evaluation],
        merged: ValidationResult,
        fits: Mapping[str, Mapping[str, float]],
        config: RunConfig,
        *,
        round_number: int,
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Return nothing of the whole, and under each site its metrics."""
        del merged, fits, config, round_number
        return {}, {site: dict(one.metrics) for site, one in evaluations.items()}

    def learning_rates(self, config: RunConfig) -> dict[str, float]:
        """Return the peak of the head's, and of the lowest layer's where it has another."""
        rate, decay = config.training.learning_rate, config.training.layer_decay
        rates = {"training.learning-rate": rate}
        if decay != 1 and config.model.trains == "all":
            below = len(layers_of(build(config, ()))) - 1
            rates["training.layer-decay: learning rate of the lowest layer"] = rate * decay**below
        return rates

    def without_augmentation(self, config: RunConfig) -> str:
        """Say whether augmentation is off."""
        return "training.augment is off" if config.training.augment == "none" else ""


TASK = Classification()
