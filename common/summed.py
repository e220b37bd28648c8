"""What of a run is summed in secret: a round's updates, and evaluations, each as one vector.

Of site i's round the vector holds w_i, and w_i times the change of its weights and its training
loss; w_i is 1 or its number of images, by the run's weighting. The server adds the mean change to
its weights: what a strategy that needs the mean alone would have seen of single updates. Of an
evaluation it holds the number of images, and that many times each metric; what a site does not tell
is left out of the sum and of what it is divided by, without anybody seeing whose it was. Moments of
features are summed as the means of x and of x xᵀ, and are none of all where one site tells none.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.config.privacy import FEWEST_SITES
from common.disclosure import COUNTED
from common.errors import ConfigError
from common.evaluation.extractor import DEFAULTS
from common.evaluation.generation import COUNTS, Moments
from common.evaluation.of_site import Evaluation
from common.local_round import shapes_sent
from common.run_state import Update
from common.secure_sums.fixed_point import Bits, Layout, Sums
from common.secure_sums.protocol import Plan, majority
from common.tasks.task import load_task

if TYPE_CHECKING:
    from common.config.run_config import RunConfig
    from common.strategies.strategy import State

CHANGE, NUMBERS, TOLD = "change/", "numbers", "told"  # names of arrays in a layout
MEAN, SECOND, MOMENTS = "mean/", "second/", "moments"  # of features, and whether they are told
LARGEST_LOSS, LARGEST_METRIC, LARGEST_STATISTIC = 100.0, 1e4, 100.0  # what is larger is not told
LARGEST_RATE = 1e4  # of what OF_RATES begins
OF_RATES = ("gradient-norm-", "images-per-second", "path-", "r1-")
LARGEST_FEATURE = 100.0  # a mean's; fedscan's extractors make up to about 20 of any picture
Vector = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Change:
    """A site's round of training.

    Parameters
    ----------
    images : int
        That it trains on.
    metrics : mapping of str to float
        Those of the training that it tells.
    trained, received : mapping of str to Tensor
        Weights after the training and before.
    """

    images: int
    metrics: Mapping[str, float]
    trained: State
    received: State


def least_sites(asked: int) -> int:
    """Return over how many of the sites that are asked a sum must be."""
    return max(majority(asked), FEWEST_SITES)


def threshold(config: RunConfig, asked: int) -> int:
    """Return over how many of the sites that are asked a run's sums are at least."""
    return max(config.run.min_replies or asked, least_sites(asked))


def require_sums(config: RunConfig, training: int) -> None:
    """Refuse a run in which too few sites train for a secure sum, or too few must answer.

    Parameters
    ----------
    config : RunConfig
    training : int
        Sites that train in a round.

    Raises
    ------
    ConfigError
    """
    least, replies = least_sites(training), config.run.min_replies
    if training < FEWEST_SITES:
        raise ConfigError(
            f"privacy.secure-sums needs {FEWEST_SITES} sites in a round and there are {training}: "
            "of a sum of two, each site knows the other's part. Leave it out, or let more sites "
            "take part"
        )
    if 0 < replies < least:
        raise ConfigError(
            f"run.min-replies = {replies}, and a secure sum over {training} sites takes {least}: "
            "raise it, or set it 0, and every site must answer"
        )


def layout_of(config: RunConfig, split: str, sites: tuple[str, ...], asked: int) -> Layout:
    """Return how what is summed is laid out.

    Parameters
    ----------
    config : RunConfig
    split : {"train", "val", "test"}
        Of an update or an evaluation.
    sites : tuple of str
        All of the run.
    asked : int
        Of them are asked.
    """
    if split == "train":
        return layout_of_update(config, shapes_sent(config, sites), asked)
    return layout_of_evaluation(config, split, asked)


def plan_of(
    run: str, number: int, split: str, asked: tuple[str, ...], least: int, layout: Layout
) -> Plan:
    """Return the plan of a sum: the same at the server and at all sites.

    Its name, by which a site unmasks it once, is of nothing but run, round and split: a server that
    could name the same vectors in two ways could learn the difference of two sums.

    Parameters
    ----------
    run : str
    number : int
        The round.
    split : str
    asked : tuple of str
        Sites, sorted.
    least : int
        Over so many of them it is.
    layout : Layout
    """
    return Plan(run, number, split, asked, layout.length, least, bits=layout.bits)


def numbers_of(config: RunConfig, split: str) -> list[str]:
    """Name the numbers that are summed beside weights, or of an evaluation."""
    reports = load_task(config.task).reports(config)
    if split == "train":
        return sorted(reports.training - set(COUNTED))
    return sorted(reports.evaluation - set(COUNTS))


def layout_of_update(
    config: RunConfig, shapes: Mapping[str, tuple[int, ...]], sites: int
) -> Layout:
    """Return how a round's update is laid out.

    Parameters
    ----------
    config : RunConfig
    shapes : mapping of str to tuple of int
        Of the weights that sites share.
    sites : int
        That are asked.
    """
    statistics = load_task(config.task).statistics_of(config)
    bounds = {
        CHANGE + name: LARGEST_STATISTIC if name in statistics else config.privacy.max_change
        for name in sorted(shapes)
    }
    most = config.privacy.max_images if config.strategy.weighting == "images" else 1
    own = {CHANGE + name: tuple(shapes[name]) for name in sorted(shapes)}
    return _layout(own, bounds, numbers_of(config, "train"), sites, most, 32)


def layout_of_evaluation(config: RunConfig, split: str, sites: int) -> Layout:
    """Return how an evaluation is laid out: few numbers, so that 64 bits of each cost nothing."""
    most = config.privacy.max_images * load_task(config.task).images_per_file(config)
    shapes: dict[str, tuple[int, ...]] = {}
    bounds: dict[str, float] = {}
    for kind, features in _moments_of(config).items():
        shapes |= {MEAN + kind: (features,), SECOND + kind: (features, features)}
        bounds |= {MEAN + kind: LARGEST_FEATURE, SECOND + kind: LARGEST_FEATURE**2}
    if shapes:
        shapes[MOMENTS], bounds[MOMENTS] = (), 1.0
    return _layout(shapes, bounds, numbers_of(config, split), sites, most, 64)


def _moments_of(config: RunConfig) -> dict[str, int]:
    """Return of which images moments are summed, and of how many features.

    None by an extractor of the sites' own: how many features it makes, only they know.
    """
    if config.model.extractor not in DEFAULTS:
        return {}
    shapes = load_task(config.task).reports(config).statistics
    return {n.removesuffix(".mean"): shape[0] for n, shape in shapes.items() if n.endswith(".mean")}


def _layout(
    shapes: Mapping[str, tuple[int, ...]],
    bounds: Mapping[str, float],
    names: Collection[str],
    sites: int,
    most: int,
    bits: Bits,
) -> Layout:
    of_numbers = (len(names),)
    return Layout(
        {**shapes, NUMBERS: of_numbers, TOLD: of_numbers},
        {**bounds, NUMBERS: 1.0, TOLD: 1.0},
        sites,
        most,
        bits,
    )


def vector_of(layout: Layout, config: RunConfig, split: str, told: Change | Evaluation) -> Vector:
    """Return a site's vector; of an evaluation that it withholds nothing but zeros.

    Raises
    ------
    SecureSumError
        A weight has changed by more than ``privacy.max-change``, or there are more images than
        ``privacy.max-images``.
    """
    names = numbers_of(config, split)
    if isinstance(told, Evaluation):
        moments = _moments(layout, told.statistics, config)
        return layout.encode({**moments, **_numbers(told.metrics, names, split)}, told.count)
    change = {
        CHANGE + name: (tensor.double() - told.received[name].double()).numpy()
        for name, tensor in told.trained.items()
    }
    numbers = _numbers(told.metrics, names, split)
    weight = told.images if config.strategy.weighting == "images" else 1
    return layout.encode({**change, **numbers}, weight)


def update_of(total: Vector, layout: Layout, config: RunConfig, weights: State) -> Update:
    """Return what all sites' updates are together, as one: their mean, and all their images.

    Parameters
    ----------
    total : (length,) ndarray
    layout : Layout
    config : RunConfig
    weights : mapping of str to Tensor
        The server's own, which the mean change is added to.

    Raises
    ------
    SecureSumError
        All weights are 0.
    """
    sums = layout.decode(total)
    means = sums.means()
    state = {
        name: (tensor.double() + torch.as_tensor(means[CHANGE + name])).to(tensor.dtype)
        for name, tensor in weights.items()
    }
    return Update(sums.weight, _means(sums, config, "train"), state)


def evaluation_of(total: Vector, layout: Layout, config: RunConfig, split: str) -> Evaluation:
    """Return what all sites' evaluations say together, each weighted by its images.

    A loss that one of them cannot tell is none of all: over other images it would not compare.
    """
    sums = layout.decode(total)
    metrics = _means(sums, config, split)
    if "loss" in metrics and round(_told(sums, numbers_of(config, split))["loss"]) < sums.weight:
        metrics["loss"] = math.nan
    if not sums.weight or round(float(sums.arrays.get(MOMENTS, 0.0))) < sums.weight:
        return Evaluation(sums.weight, metrics)
    means, statistics = sums.means(), {}
    for kind in _moments_of(config):
        moments = Moments.of_raw(sums.weight, means[MEAN + kind], means[SECOND + kind])
        statistics |= {
            f"{kind}.{name}": torch.as_tensor(value, dtype=torch.float64)
            for name, value in vars(moments).items()
        }
    return Evaluation(sums.weight, metrics, statistics)


def _moments(
    layout: Layout, statistics: Mapping[str, torch.Tensor], config: RunConfig
) -> dict[str, NDArray[np.float64]]:
    """Return raw moments and 1; zeros where they are not told, or one is beyond its bound."""
    names = [name for name in layout.shapes if name.startswith((MEAN, SECOND))]
    told: dict[str, NDArray[np.float64]] = {}
    for kind in _moments_of(config) if statistics else ():
        parts = (statistics[f"{kind}.{name}"].numpy() for name in ("count", "mean", "covariance"))
        told[MEAN + kind], told[SECOND + kind] = Moments(*parts).raw()
    usable = all(n in told and (np.abs(told[n]) <= layout.bounds[n]).all() for n in names)
    if not usable:
        told = {name: np.zeros(layout.shapes[name]) for name in names}
    return {**told, MOMENTS: np.array(float(usable))} if names else {}


def _largest(names: Collection[str], split: str) -> NDArray[np.float64]:
    """Return the largest absolute value of each number: what is larger is not told."""
    if split != "train":
        return np.full(len(names), LARGEST_METRIC)
    return np.array([LARGEST_RATE if n.startswith(OF_RATES) else LARGEST_LOSS for n in names])


def _numbers(
    metrics: Mapping[str, float], names: Collection[str], split: str
) -> dict[str, NDArray[np.float64]]:
    """Return shares of the largest, 0 where one is not told or not usable, and which are told."""
    values = np.array([metrics.get(name, math.nan) for name in names], dtype=np.float64)
    values /= _largest(names, split)
    usable = np.abs(values) <= 1  # NaN is not
    return {NUMBERS: np.where(usable, values, 0.0), TOLD: usable.astype(np.float64)}


def _told(sums: Sums, names: Collection[str]) -> dict[str, float]:
    """Return by how many images each number is told."""
    return dict(zip(names, sums.arrays[TOLD].tolist(), strict=True))


def _means(sums: Sums, config: RunConfig, split: str) -> dict[str, float]:
    """Return the mean of each number over those that tell it; of none, no number."""
    told = _told(sums, names := numbers_of(config, split))
    whole = sums.arrays[NUMBERS] * _largest(names, split)
    values = dict(zip(names, whole.tolist(), strict=True))
    return {name: values[name] / told[name] for name in names if round(told[name]) > 0}
