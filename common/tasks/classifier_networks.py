"""A run's classifier, with its initial weights."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from common.config.run_config import OF_SLICES, RunConfig
from common.errors import ConfigError
from common.extensions import is_extension
from common.imaging.slices import LEVELS_MM, WHOLE_HEAD_MM
from common.models.site_statistics import take_site_statistics
from common.models.warm_start import has_frozen_norms
from common.seeding import derive_seed
from common.training.gan_presets import stylegan2
from common.training.variation import is_mirrored


def build(config: RunConfig, sites: tuple[str, ...]) -> nn.Module:
    """Build a classifier with the run's initial weights.

    Raises
    ------
    ConfigError
        If the networks of ``model.gan`` and ``model.gan-changes`` cannot be, or an extension's.
    """
    study, name = config.read_study(), config.model.classifier
    classes = len(study.label.classes.names)
    seed = derive_seed(config.run.seed, purpose="initial weights")
    model: nn.Module
    if is_extension(name):
        from common.models.outside import build_outside

        channels, size = study.images.channels, config.data.size
        model = build_outside(name, channels=channels, classes=classes, size=size, seed=seed)
    elif name in OF_SLICES:
        model = _of_slices(config, classes, seed, sites)
    elif study.images.view == "picture":
        from common.models.picture_classifier import build_picture_classifier

        channels, pretrained = study.images.channels, has_frozen_norms(config)
        model = build_picture_classifier(
            name, channels=channels, classes=classes, seed=seed, pretrained=pretrained
        )
    else:
        from common.models.classifier import build_classifier

        model = build_classifier(name, image_size=config.data.size, classes=classes, seed=seed)
    take_site_statistics(model, config.model.adapt)
    return model


def _of_slices(config: RunConfig, classes: int, seed: int, sites: tuple[str, ...]) -> nn.Module:
    from common.models.slice_classifier import DiscriminatorClassifier, SliceClassifier
    from common.tasks.generation_networks import architecture

    levels = len(heights_mm(config)) or 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.model.classifier == "slices":
            return SliceClassifier(levels, stylegan2(config).resolution, classes)
        networks, mirrored = architecture(config, sites), is_mirrored(config.read_study())
        return DiscriminatorClassifier(networks, levels, classes, mirrored=mirrored)


def heights_mm(config: RunConfig) -> tuple[float, ...]:
    """Return the heights of a volume's slices, for classifiers of them; else none."""
    volumes = config.read_study().images.view != "picture"
    if not volumes or config.model.classifier not in OF_SLICES:
        return ()
    return {"generated": LEVELS_MM, "whole-head": WHOLE_HEAD_MM}[config.model.heights]


def check_network(config: RunConfig) -> None:
    """Refuse an extension's network that is none of the study's images, or tells more than noise.

    Raises
    ------
    ConfigError
    """
    from common.models.outside import check_outside

    study, name = config.read_study(), config.model.classifier
    classes, dimensions = len(study.label.classes.names), 2 if study.images.view == "picture" else 3
    check_outside(name, study.images.channels, classes, config.data.size, dimensions)
    if not (config.privacy.is_on or config.privacy.is_central):
        return
    key = "privacy.epsilon" if config.privacy.is_on else "privacy.central-epsilon"
    if network_statistics(config):
        raise ConfigError(
            f"model.classifier '{name}' has batch normalization, by which images of a batch change "
            f"one another and whose statistics travel, and {key} covers neither: use GroupNorm"
        )
    model = build(config, ())
    weights = {name for name, _ in model.named_parameters()}
    travelling = [n for n, tensor in model.state_dict().items() if tensor.is_floating_point()]
    if beside := [one for one in travelling if one not in weights]:
        raise ConfigError(
            f"model.classifier '{name}': its buffer '{beside[0]}' would travel beside the weights, "
            f"and {key} covers weights alone: register it with persistent=False"
        )
    if config.privacy.is_central and config.model.trains == "head":
        raise ConfigError(
            "model.trains = 'head' with privacy.central-epsilon: the server does not know which "
            f"weights are the head of '{name}': set 'all', or choose a classifier of fedscan's"
        )


@lru_cache(maxsize=4)
def network_statistics(config: RunConfig) -> frozenset[str]:
    """Name the statistics of images that an extension's network has; none of fedscan's own."""
    if not is_extension(config.model.classifier):
        return frozenset()
    from common.models.outside import running_statistics

    return running_statistics(build(config, ()))
