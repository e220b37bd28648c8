"""Generation of slices: one StyleGAN2-ADA that hospitals train without pooling a scan.

What happens to each piece of its state between rounds, and why:

============================  ==================================================================
state                         rule
============================  ==================================================================
parameters of G and D         averaged (FedGAN, arXiv 2006.07228); with ``share = generator``
                              each site keeps its own D (as in MD-GAN, arXiv 1811.03850)
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
labels of fakes               from a site's own slices: another mix would be a clue for D
============================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.config import RunConfig
from common.errors import FedscanError
from common.imaging.slices import load_slices, pool
from common.tasks import Fit, Place, State
from common.tasks.classification import roster, survey
from common.tasks.generation_grids import illustrate
from common.tasks.generation_networks import GENERATOR, architecture, gan_config, load_released
from common.tasks.generation_quality import evaluate, extractor_hash, judge, summary
from common.training import gan
from common.training.gan_checkpoint import save_checkpoint
from common.training.gan_losses import ema_beta
from common.training.gan_state import GanTraining

if TYPE_CHECKING:
    from common.imaging.slices import SliceSet

__all__ = [
    "align",
    "build_model",
    "evaluate",
    "extractor_hash",
    "first_release",
    "fit",
    "ids",
    "illustrate",
    "judge",
    "load_shared",
    "load_split",
    "most_judged",
    "participants",
    "pool",
    "release",
    "roster",
    "save",
    "shared_state",
    "summary",
    "survey",
    "warm_start",
]

STATISTICS = ()  # of features over people, among what sites share
AVERAGES_OVER_TIME = True
DISCRIMINATOR = "discriminator."
W_AVERAGE = "generator.mapping.w_average"
EMBEDDINGS = ("generator.mapping.embed.weight", "discriminator.embed.weight")  # (w_dim, labels)


def build_model(config: RunConfig, place: Place) -> GanTraining:
    """Begin a training with the run's initial weights, the same at every site."""
    networks = architecture(config, place.sites)
    return GanTraining.start(gan_config(config), networks, device=place.device)


def warm_start(model: GanTraining, config: RunConfig) -> None:
    """Begin with the run's own weights."""
    del model, config


def shared_state(model: GanTraining, config: RunConfig) -> dict[str, Tensor]:
    """Return G, its average w and, unless sites keep theirs, D."""
    state = model.export("parameters")
    if config.share == "generator":
        state = {name: tensor for name, tensor in state.items() if name.startswith(GENERATOR)}
    return {**state, W_AVERAGE: model.generator.mapping.w_average.detach().cpu().clone()}


def load_shared(model: GanTraining, state: State) -> None:
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


def align(updates: Mapping[str, dict[str, Tensor]], config: RunConfig) -> None:
    """Take what a site's own label means from that site alone.

    Nobody else has a slice with it: the others send its column of the label embeddings back as it
    was, and averaging would let it learn at 1/K of the speed of all that sites share. Then sites
    fit the shared weights to their scanners instead, and the average is nobody's.
    """
    before = 0
    for kind, values in architecture(config, tuple(updates)).labels:
        if kind == "site":
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


def first_release(model: GanTraining) -> dict[str, Tensor]:
    """Return the initial generator, with which the average over time begins."""
    state = model.export("parameters")
    state = {name: tensor for name, tensor in state.items() if name.startswith(GENERATOR)}
    return {**state, W_AVERAGE: model.generator.mapping.w_average.detach().cpu().clone()}


def release(
    previous: State, shared: State, config: RunConfig, *, round_number: int, participants: int
) -> dict[str, Tensor]:
    """Move the generator's average over time towards the round's G (StyleGAN2's EMA).

    β = 0.5^(images of the round / half-life), images of all participants, so that a pool that
    shows D as many images has the same average.
    """
    gan_settings = gan_config(config)
    images = config.local_steps * config.batch_size * participants
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


def load_split(site: str, data_dir: Path, split: str, config: RunConfig, cache: Path) -> SliceSet:
    """Load one split of one site's slices; no file of another split is opened."""
    resolution = gan_config(config).resolution
    return load_slices(site, data_dir, split, resolution=resolution, cache=cache)


def participants(data: SliceSet) -> int:
    """Return how many participants the slices are of."""
    return len(set(data.ids))


def most_judged(count: int) -> int:
    """Return at most how many slices so many participants have."""
    from common.imaging.slices import LEVELS_MM

    return count * len(LEVELS_MM)


def ids(data: SliceSet) -> list[str]:
    """List the participants that the slices are of, each once."""
    return list(dict.fromkeys(data.ids))


def fit(
    model: GanTraining,
    data: SliceSet,
    config: RunConfig,
    *,
    place: Place,
    round_number: int,
    private: State,
) -> Fit:
    """Train G and D in place for one round; see :func:`common.training.gan.fit`.

    Returns
    -------
    Fit
        Metrics as of ``gan.fit``. Private: Adam's moments, p, the mean path length and, with
        ``share = generator``, the site's discriminator.
    """
    state = dict(private)
    if config.share == "generator" and state:
        parameters = model.export("parameters")
        own = {name: state.pop(name) for name in _discriminator(model) if name in state}
        model.load({**parameters, **own}, "parameters")
    if state:
        model.load(state, "private")
    model.steps = (round_number - 1) * config.local_steps
    model.images_seen = model.steps * config.batch_size
    # One seed for all rounds: the order of slices goes on where the last round stopped.
    seed = place.seed(config.seed, purpose="fit")
    done = gan.fit(model, data, steps=config.local_steps, seed=seed)
    kept = model.export("private")
    if config.share == "generator":
        kept |= _discriminator(model)
    return Fit(done.metrics, kept)


def save(
    folder: Path,
    released: State,
    shared: State,
    config: RunConfig,
    *,
    round_number: int,
    place: Place,
) -> None:
    """Write ``gan.json`` and its tensors: what ``fedscan generate`` and ``project`` read."""
    model = build_model(config, place)
    load_shared(model, shared)
    load_released(model.ema, released)
    model.steps = round_number * config.local_steps
    model.images_seen = model.steps * config.batch_size
    save_checkpoint(folder, model, groups=("parameters", "averages", "constants", "counters"))


def _discriminator(model: GanTraining) -> dict[str, Tensor]:
    state = model.export("parameters")
    return {name: tensor for name, tensor in state.items() if name.startswith(DISCRIMINATOR)}
