"""Generation of images: one StyleGAN2-ADA that hospitals train without pooling a scan.

What happens to each piece of its state between rounds, and why:

============================  ==================================================================
state                         rule
============================  ==================================================================
parameters of G and D         averaged (FedGAN, arXiv 2006.07228); with ``share = generator``
                              the strategy leaves each site its own D (as in MD-GAN, arXiv
                              1811.03850)
columns of a site's label     each site's own, of the embeddings in G and D: see :func:`align`
average of G over time        kept at the server, from the averaged G: it is linear, so the
                              sites' would give the same and cost as many bytes as G
average of w                  averaged with G: linear as well, and needed for truncation
noise constants, FIR filters  never sent: from the run's seed, and code. The average of K
                              independent draws would have the standard deviation 1/√K
Adam's moments and steps      private, kept between rounds: with β₁ = 0 the first step after a
                              reset would be of size λ in every direction
ADA's p and its signs         private, kept: they measure a site's own overfitting, and a reset
                              every round keeps p near 0. p is told as a metric, and used by nobody
mean path length              private, kept: it needs hundreds of iterations to settle
images seen, iterations       follow from the round: they decide the lazy phases and the
                              ramp-up of the average
labels of fakes               from a site's own slices: another mix would be a clue for D; with
                              differential privacy see :mod:`common.training.gan_private`
============================  ==================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.config.run_config import RunConfig
from common.data.dataset import Dataset
from common.data.site_data import open_planes, plane_heights_mm
from common.data.unlabelled import UnlabelledError, nothing_to_judge_by
from common.errors import ConfigError, DataContractError, FedscanError
from common.privacy.guarantee import dp_sgd_of
from common.privacy.statement import told
from common.studies.sections import SITE
from common.tasks import generation_quality
from common.tasks.generation_grids import illustrate
from common.tasks.generation_networks import GENERATOR, architecture, load_released
from common.tasks.task import Fit, SiteContext, State, Task
from common.training import gan
from common.training.gan_checkpoint import save_checkpoint
from common.training.gan_losses import ema_beta
from common.training.gan_presets import stylegan2
from common.training.gan_state import GanTraining
from common.training.hooks import Hooks
from common.training.progress import Progress

DISCRIMINATOR = "discriminator."
W_AVERAGE = "generator.mapping.w_average"
EMBEDDINGS = ("generator.mapping.embed.weight", "discriminator.embed.weight")  # (w_dim, labels)
# Of augmentation: a fixed p, and what lets an adaptive one rise.
LEAST_P, MOST_TARGET, MOST_KIMG, MOST_INTERVAL = 0.1, 0.8, 1000.0, 64


class Generation(Task):
    """One generator for all sites; see the module."""

    averages_over_time = True
    aligns = True
    judged_whole = False  # but for the discriminator
    takes_hooks = False  # two networks and four phases: which loss a term belongs to is not said

    extractor_hash = staticmethod(generation_quality.extractor_hash)
    evaluate = staticmethod(generation_quality.evaluate)
    reports = staticmethod(generation_quality.reports)
    judge = staticmethod(generation_quality.judge)
    summary = staticmethod(generation_quality.summary)
    illustrate = staticmethod(illustrate)

    def check(self, config: RunConfig) -> None:
        """Refuse networks that do not suit the study.

        Raises
        ------
        ConfigError
        """
        settings, study = stylegan2(config), config.read_study()
        if settings.diversity_weight and config.training.batch_size < 2:
            raise ConfigError(
                "diversity-weight compares two pictures: set training.batch-size above 1"
            )
        known_classes = study.label.classes.names
        if unknown := [n for n in config.data.chosen_classes if n not in known_classes]:
            raise ConfigError(
                f"data.classes: '{unknown[0]}' is none of the classes of study '{study.name}': "
                f"{', '.join(known_classes)}"
            )
        known = {*study.generator.conditions}
        if unknown := [kind for kind in settings.label_kinds if kind not in known]:
            raise ConfigError(
                f"label-kinds: '{unknown[0]}' is none of the conditions of study '{study.name}': "
                f"{', '.join(study.generator.conditions) or 'it has none'}"
            )

    def build_model(self, config: RunConfig, place: SiteContext) -> GanTraining:
        """Begin a training with the run's initial weights, the same at every site."""
        networks = architecture(config, place.sites)
        return GanTraining.start(stylegan2(config), networks, device=place.device)

    def parameters(self, model: GanTraining) -> dict[str, Tensor]:
        """Return G, D and G's average w."""
        w_average = model.generator.mapping.w_average.detach().cpu().clone()
        return {**model.export("parameters"), W_AVERAGE: w_average}

    def server_learning_rate(self, participants: int) -> float:
        """Return √K of K sites.

        Adam's steps are as long as the noise of a site's gradients allows, averaging K sites
        divides that noise by √K, and a longer step makes use of it.
        """
        return math.sqrt(participants)

    def load_shared(self, model: GanTraining, state: State) -> None:
        """Take over what the sites share; a discriminator that does not travel stays as it is."""
        given = dict(state)
        try:
            w_average = given.pop(W_AVERAGE)
        except KeyError:
            raise FedscanError(f"shared state: {W_AVERAGE} is missing") from None
        if not any(name.startswith(DISCRIMINATOR) for name in given):
            given |= _discriminator(model)
        model.load(given, "parameters")
        with torch.no_grad():
            model.generator.mapping.w_average.copy_(w_average)

    def align(self, updates: Mapping[str, dict[str, Tensor]], config: RunConfig) -> None:
        """Take what a site's own label means from that site alone.

        Nobody else has an image with it: the others send its column of the label embeddings back
        as it was, and averaging would let it learn at 1/K of the speed of all that sites share.
        Then sites fit the shared weights to their scanners instead, and the average is nobody's.
        """
        before = 0
        for kind, values in architecture(config, tuple(updates)).labels:
            if kind == SITE:
                break
            before += len(values)
        else:
            return
        for name in EMBEDDINGS:
            if all(name in state for state in updates.values()):
                own = [
                    updates[site][name][:, before + column].clone()
                    for column, site in enumerate(values)
                ]
                for state in updates.values():
                    state[name][:, before : before + len(own)] = torch.stack(own, 1)

    def first_release(self, model: GanTraining, config: RunConfig) -> dict[str, Tensor]:
        """Return the initial generator, with which the average over time begins."""
        del config
        return {
            n: tensor for n, tensor in self.parameters(model).items() if n.startswith(GENERATOR)
        }

    def release(
        self,
        previous: State,
        shared: State,
        config: RunConfig,
        *,
        round_number: int,
        participants: int,
    ) -> dict[str, Tensor]:
        """Move the generator's average over time towards the round's G (StyleGAN2's EMA).

        β = 0.5^(images of the round / half-life), images of all participants, so that a pool that
        shows D as many images has the same average.
        """
        gan_settings = stylegan2(config)
        images = config.training.local_steps * config.training.batch_size * participants
        beta = ema_beta(
            images,
            half_life=gan_settings.ema_kimg * 1000,
            rampup=gan_settings.ema_rampup,
            images_seen=(round_number - 1) * images,
        )
        moved = {
            name: tensor.lerp(previous[name], beta)
            for name, tensor in shared.items()
            if name.startswith(GENERATOR)
        }
        return {**moved, W_AVERAGE: shared[W_AVERAGE].clone()}

    def open_split(
        self, site: str, data_dir: Path, split: str, config: RunConfig, cache: Path
    ) -> Dataset:
        """Open one split of one site's pictures or slices; no file of another split is opened."""
        study = config.read_study()
        data = open_planes(
            *(study, site, data_dir, split),
            size=stylegan2(config).resolution,
            cache=cache,
            harmonize=config.data.harmonize,
        )
        if not (wanted := config.data.chosen_classes):
            return data
        numbers = [study.label.classes.names.index(name) for name in wanted]
        data = data.subset(np.isin(data.labels, numbers))
        if not len(data) and split == "train":
            raise DataContractError(
                site,
                "no training image is of data.classes",
                got=f"none of {' or '.join(wanted)}",
                remedy="Name classes that every site has, or leave the site out",
            )
        if not len(data):
            raise UnlabelledError(site, nothing_to_judge_by(split))
        return data

    def images_per_file(self, config: RunConfig) -> int:
        """Return how many slices are made of a volume; of a picture, one."""
        return len(plane_heights_mm(config.read_study())) or 1

    def fit(
        self,
        model: GanTraining,
        data: Dataset,
        config: RunConfig,
        *,
        place: SiteContext,
        round_number: int,
        private: State,
        hooks: Hooks | None = None,
        progress: Progress | None = None,
    ) -> Fit:
        """Train G and D in place for one round; see :func:`common.training.gan.fit`.

        Returns
        -------
        Fit
            Metrics as of ``gan.fit``; with differential privacy those alone that tell nothing of
            real images but by D, with what :func:`common.privacy.statement.told` returns. Private:
            Adam's moments, p and the mean path length.
        """
        del hooks
        if private:
            model.load(dict(private), "private")
        model.steps = (round_number - 1) * config.training.local_steps
        model.images_seen = model.steps * config.training.batch_size
        # One seed for all rounds: the order of slices goes on where the last round stopped.
        seed = place.seed(config.run.seed, purpose="fit")
        steps = config.training.local_steps
        mechanism = None
        if config.privacy.is_on:
            own = place.seed(config.run.seed, round=round_number, purpose="private people")
            mechanism = dp_sgd_of(config, data.people, own)
        done = gan.fit(
            model,
            data,
            steps=steps,
            seed=seed,
            progress=progress,
            mechanism=mechanism,
            site=place.site,
        )
        known = self.reports(config).training
        metrics = {name: value for name, value in done.metrics.items() if name in known}
        metrics |= told(config, data.people, round_number, secret_noise=bool(place.secret))
        return Fit(metrics, model.export("private"))

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
        """Write ``gan.json`` and its tensors: what ``fedscan generate`` and ``project`` read."""
        model = self.build_model(config, place)
        self.load_shared(model, shared)
        load_released(model.ema, released)
        model.steps = round_number * config.training.local_steps
        model.images_seen = model.steps * config.training.batch_size
        save_checkpoint(folder, model, groups=("parameters", "averages", "constants", "counters"))

    def learning_rates(self, config: RunConfig) -> dict[str, float]:
        """Return those of G and D."""
        settings = stylegan2(config)
        return {
            "generator-learning-rate": settings.generator_learning_rate,
            "discriminator-learning-rate": settings.discriminator_learning_rate,
        }

    def without_augmentation(self, config: RunConfig) -> str:
        """Say what keeps p low, or leaves images as they are but for their place."""
        settings = stylegan2(config)
        fixed = settings.augment == "fixed"
        if settings.augment == "off" or (fixed and settings.augment_p < LEAST_P):
            return f"augment = {settings.augment}, augment-p = {settings.augment_p:g}"
        if settings.augment_steps == "b":
            return "augment-steps = b, which moves images and changes nothing in them"
        if settings.augment == "adaptive":
            for key, value, most in (
                ("ada-target", settings.ada_target, MOST_TARGET),
                ("ada-kimg", settings.ada_kimg, MOST_KIMG),
                ("ada-interval", settings.ada_interval, MOST_INTERVAL),
            ):
                if value > most:
                    return f"{key} = {value:g}, accepted is up to {most:g}"
        return ""


def _discriminator(model: GanTraining) -> dict[str, Tensor]:
    state = model.export("parameters")
    return {name: tensor for name, tensor in state.items() if name.startswith(DISCRIMINATOR)}


TASK = Generation()
