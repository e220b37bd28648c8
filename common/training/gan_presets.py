"""Presets of StyleGAN2-ADA by resolution, and the one that a run asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.settings import as_typed, did_you_mean
from common.studies.sections import SITE
from common.training.gan_config import GanConfig
from common.training.gan_private import CHANGES, require_covered

if TYPE_CHECKING:
    from common.config.run_config import RunConfig
    from common.studies.study import Study


def preset(name: str) -> GanConfig:
    """Return a preset.

    Raises
    ------
    ConfigError
        For an unknown name, with the known ones.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset '{name}': accepted is one of {', '.join(PRESETS)}")
    return PRESETS[name]


@lru_cache(maxsize=64)
def stylegan2(config: RunConfig) -> GanConfig:
    """Return a run's StyleGAN2-ADA: the preset, its changes, the study's images, the run's budget.

    Where the preset has labels, they are the conditions of the study.

    Raises
    ------
    ConfigError
        For an unknown preset, or a change that is not accepted; see :func:`for_study`. With
        differential privacy also for what is not accounted for; with secure sums for label site.
    """
    trained = config.task == "generation"
    private, summed = config.privacy.is_on and trained, config.privacy.secure_sums and trained
    # A classifier's batches say nothing of the networks that it takes from a GAN.
    batch_size = config.training.batch_size if trained else 1
    study, usual = config.read_study(), dict(CHANGES if private else {})
    if summed and preset(config.model.gan).label_kinds:
        usual["label-kinds"] = ",".join(k for k in study.generator.conditions if k != SITE)
    found = changed_preset(
        config.model.gan,
        config.model.gan_changes,
        {
            "batch-size": batch_size,
            "seed": config.run.seed,
            "threads": config.run.threads,
            "kimg": config.total_steps * batch_size / 1000,
            "device": config.run.device,
        },
        study=study,
        idle=("log-every", "snapshot-every"),
        usual=usual,
    )
    if summed and SITE in found.label_kinds:
        raise ConfigError(
            "model.gan-changes: label-kinds with 'site' and privacy.secure-sums: one site alone "
            "moves the weights of its label, and their sum would be its own: leave 'site' out"
        )
    if private:
        require_covered(found)
    return found


def changed_preset(
    name: str,
    changes: str,
    decided: Mapping[str, Any],
    *,
    study: Study,
    idle: Collection[str] = (),
    usual: Mapping[str, Any] | None = None,
) -> GanConfig:
    """Return a preset with changes that are told in one line, as a run config has them.

    Parameters
    ----------
    name : str
    changes : str
        ``"KEY=VALUE KEY=VALUE"``.
    decided : mapping of str to value
        Keys that somebody else decides, who may not be contradicted.
    study : Study
        It decides the channels; its conditions are the labels of a preset that has any, unless the
        changes tell others.
    idle : collection of str
        Keys that have no effect there, which are refused so that nobody waits for one.
    usual : mapping of str to value, optional
        Keys of the preset that differ there, unless the changes tell others.

    Raises
    ------
    ConfigError
        For an unknown preset, or a change that is not accepted; see :func:`for_study`.
    """
    base = preset(name)
    decided = {**decided, "channels": study.images.channels}
    known = base.to_mapping()
    found: dict[str, Any] = {}
    if base.label_kinds:
        found["label-kinds"] = ",".join(study.generator.conditions)
    found |= usual or {}
    for word in changes.split():
        key, equals, text = word.partition("=")
        if not equals or key not in known:
            hint = did_you_mean(key, known) if equals else ""
            raise ConfigError(
                f"model.gan-changes: '{word}': accepted is KEY=VALUE, as in 'r1-gamma=0.1'{hint} "
                f"Known keys: {', '.join(sorted(known.keys() - decided.keys() - set(idle)))}"
            )
        if key in decided:
            raise ConfigError(
                f"model.gan-changes: {key} is decided by the run config: leave it out"
            )
        if key in idle:
            raise ConfigError(
                f"model.gan-changes: {key} has no effect in a federation: leave it out"
            )
        found[key] = as_typed(text, known[key])
    return for_study(base, study, {**found, **decided})


def for_study(base: GanConfig, study: Study, changes: Mapping[str, Any]) -> GanConfig:
    """Return a preset for a study's images, with changes by kebab-case key, which win.

    The channels are the study's, and no image is mirrored that would then show something else.

    Raises
    ------
    ConfigError
        For a change that is not accepted, or pictures of a size that the study's cannot have.
    """
    from common.imaging.slices import RESOLUTIONS
    from common.training.variation import is_mirrored

    usual = {"channels": study.images.channels, "mirror": base.mirror and is_mirrored(study)}
    found = base.with_changes({**usual, **changes})
    if study.images.view != "picture" and found.resolution not in RESOLUTIONS:
        raise ConfigError(
            f"resolution = {found.resolution}: accepted for slices of scans is one of "
            f"{', '.join(map(str, RESOLUTIONS))}"
        )
    return found


# Tried on phantom slices: those of 32 pixels. γ by the authors' rule of thumb for data never tried,
# 0.0002 R² / batch-size, gave one blurred brain, and 1.0 a D that could no longer tell. The other
# brains' γ are by that rule, times what helped at 32 pixels: eight.
PRESETS: dict[str, GanConfig] = {
    # Two CPU cores, a quarter of an hour; so short that p must be able to rise quickly. Without
    # style mixing and path lengths, as ADA's authors do at 32 pixels (CIFAR-10, appendix D).
    "tiny-32": GanConfig(
        label_kinds=("sex", "height"),
        batch_size=8,
        kimg=120.0,
        r1_gamma=0.2,
        path_weight=0.0,
        style_mixing=0.0,
        ema_kimg=2.5,
        ada_kimg=100.0,
        snapshot_every=1000,
    ),
    # For sites that train together in many short rounds: as tiny-32, in a third of the time an
    # iteration. Small latents leave the labels more of w; steps count more than images there.
    # So few of them end in averages of heads unless G is told how far people lie apart.
    "tiny-32-federated": GanConfig(
        label_kinds=("sex", "height", "site"),
        channel_base=1024,
        z_dim=64,
        w_dim=64,
        batch_size=4,
        kimg=20.0,
        generator_learning_rate=0.005,
        discriminator_learning_rate=0.005,
        r1_gamma=0.2,
        path_weight=0.0,
        style_mixing=0.0,
        diversity_weight=0.2,
        ema_kimg=2.5,
        ada_kimg=100.0,
        snapshot_every=1000,
    ),
    "brain-64": GanConfig(
        resolution=64,
        label_kinds=("sex", "height"),
        channel_base=8192,
        channel_max=128,
        kimg=500.0,
        r1_gamma=0.4,
        ada_kimg=100.0,
    ),
    # A GPU.
    "brain-128": GanConfig(
        resolution=128,
        label_kinds=("sex", "height"),
        channel_base=8192,
        channel_max=128,
        batch_size=8,
        kimg=1000.0,
        r1_gamma=3.3,
        ema_kimg=2.5,
        ada_kimg=200.0,
        log_every=100,
        snapshot_every=2000,
    ),
    # ADA, figure 24, "our baseline (256 × 256)", with ADA: the paper's for several GPUs.
    "paper-256": GanConfig(
        resolution=256,
        channels=3,
        label_kinds=(),
        mirror=False,
        channel_base=16384,
        channel_max=512,
        mapping_layers=8,
        minibatch_group=8,
        batch_size=64,
        kimg=25_000.0,
        r1_gamma=1.0,
        ema_kimg=20.0,
        ema_rampup=0.0,
        ada_kimg=500.0,
        log_every=100,
        snapshot_every=5000,
    ),
}
