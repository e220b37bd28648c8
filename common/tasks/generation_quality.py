"""How good a generator is, judged at the sites and merged at the server, and whether it copies."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.config.run_config import RunConfig
from common.errors import AnswerError
from common.evaluation.extractor import DEFAULTS, MOST_FEATURES
from common.evaluation.extractors.network import FEATURES
from common.evaluation.generation import (
    COUNTS,
    MEASURES,
    Moments,
    frechet_distance,
    judge_features,
    require_one_extractor,
)
from common.evaluation.memorization import judge_copying, strongest, write_look_alikes
from common.evaluation.of_site import Evaluation, Reports, ValidationResult
from common.models.stylegan2 import Generator, build
from common.paths import cache_dir
from common.privacy.statement import TOLD as PROMISED
from common.seeding import derive_seed
from common.studies.vocabulary import normalise
from common.tasks import generation_classes
from common.tasks.generation_networks import architecture, generator_of, pictures
from common.tasks.task import Load, SiteContext, State
from common.training.gan import metric_names
from common.training.gan_presets import stylegan2

if TYPE_CHECKING:
    from common.data.dataset import Dataset
    from common.evaluation.extractor import Extractor

OWN = "a file of the sites' own"  # an extractor's: what a hospital calls it stays there
SAMPLE = ("real", "generated")
PART = 128  # images at once
LOOK_ALIKES = 10  # pairs in a site's figure
LARGEST = np.finfo(np.float32).max  # of a feature, so that no sum of squares overflows
EXTRACTOR, EXTRACTOR_HASH = "extractor", "extractor-hash"  # words of an evaluation
COPYING = (
    "authenticity",
    "authenticity_held_out",
    "nearest_training_median",
    "nearest_training_median_held_out",
    "look_alikes",
    "copies_flagged",
)
TOLD = ("frechet_distance", "kernel_distance", "precision", "recall")


def evaluate(
    released: State,
    load: Load,
    split: str,
    config: RunConfig,
    *,
    place: SiteContext,
    records: Path | None = None,
) -> Evaluation:
    """Judge a generator by pictures with the labels of a site's slices, one a slice.

    Everything is computed at the site. What can be merged exactly, the moments of the features of
    real and generated slices, is in ``statistics``; the other measures are the site's own.

    Parameters
    ----------
    released : mapping of str to Tensor
    load : callable
    split : str
    config : RunConfig
    place : SiteContext
    records : Path, optional
        Folder at the site. Where it is given, single classes and variety are judged as well, and
        it is tested whether the generator copies the site's training slices: the strongest
        look-alikes are kept there as a figure.
    """
    extractor = _extractor(config.model.extractor)
    generator = generator_of(released, config, place)
    data = load(split)
    seed = derive_seed(config.run.seed, site=place.site, split=split, purpose="judged pictures")
    features = {
        "real": features_of(extractor, data),
        "generated": np.concatenate(
            [extractor.features(part) for part in pictures(generator, data, seed)]
        ),
    }
    judged = judge_features(features["generated"], features["real"])
    metrics = {name: float(value) for name, value in judged.items() if _is_number(value)}
    people = data.people
    if records is not None:
        shown = generation_classes.some_of_each(data, seed)
        images = {
            "real": _seen(data, shown, False),
            "generated": np.concatenate(list(pictures(generator, data, seed, shown))),
        }
        metrics |= generation_classes.variety(images["generated"], images["real"], seed)
        if told := classes_of(generator, config):
            least = place.disclosure.min_participants
            metrics |= generation_classes.of_each_class(
                features, images, shown, data, told, least_people=least, seed=seed
            )
        mirrored, training = stylegan2(config).mirror, load("train")
        people = min(people, training.people)  # copies are about those trained on
        copying = _copying(
            generator, training, features["real"], extractor, seed, records, mirrored=mirrored
        )
        if not config.privacy.is_on:  # of those trained on, and without noise
            metrics |= copying
    statistics = {
        f"{kind}.{name}": torch.as_tensor(value, dtype=torch.float64)
        for kind in SAMPLE
        for name, value in vars(Moments.of(features[kind])).items()
    }
    known = config.model.extractor in DEFAULTS
    words = {EXTRACTOR: extractor.name if known else OWN, EXTRACTOR_HASH: extractor.hash}
    persons = np.asarray(data.persons)
    classes = {
        name: len(set(persons[data.labels == number]))
        for number, name in enumerate(config.read_study().label.classes.names)
        if (data.labels == number).any()
    }
    return Evaluation(len(data), metrics, statistics, words, people, people, classes)


def reports(config: RunConfig) -> Reports:
    """Name what a site's training and evaluations can report."""
    known = config.model.extractor in DEFAULTS
    of_classes = generation_classes.names(config.read_study().label.classes.names)
    features = FEATURES if known else MOST_FEATURES
    shapes = {"count": (), "mean": (features,), "covariance": (features, features)}
    private = config.privacy.is_on
    training = metric_names(stylegan2(config), private=private)
    copying = () if private else COPYING
    return Reports(
        training=frozenset([*training, *(PROMISED if private else ())]),
        evaluation=frozenset((*COUNTS, *MEASURES, *copying, *of_classes)),
        statistics={f"{kind}.{name}": shape for kind in SAMPLE for name, shape in shapes.items()},
        words={
            EXTRACTOR: frozenset([config.model.extractor if known else OWN]),
            EXTRACTOR_HASH: frozenset(),
        },
    )


def classes_of(generator: Generator, config: RunConfig) -> tuple[str, ...]:
    """Return the study's classes, where the generator is told which one it is to make."""
    label = config.read_study().label
    wanted = normalise(label.column)
    conditional = any(normalise(kind) == wanted for kind, _ in generator.architecture.labels)
    return label.classes.names if conditional or config.data.classes else ()


def features_of(extractor: Extractor, data: Dataset, *, mirrored: bool = False) -> np.ndarray:
    """Return the features (N, D) of real images or their mirror images, read a few at a time."""
    parts = np.split(np.arange(len(data)), range(PART, len(data), PART))
    return np.concatenate([extractor.features(_seen(data, part, mirrored)) for part in parts])


def _seen(data: Dataset, index: np.ndarray, mirrored: bool) -> np.ndarray:
    """Return real images in [-1, 1], or their mirror images."""
    images = data.take(index) * 2 - 1
    return np.ascontiguousarray(images[..., ::-1]) if mirrored else images


def extractor_hash(config: RunConfig) -> str:
    """Return a hash of the extractor that judges here, and of how pictures are fitted to it."""
    about = _extractor(config.model.extractor).identity()
    del about["name"]  # a copy under another name judges in the same way
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def judge(evaluations: Mapping[str, Evaluation], config: RunConfig) -> ValidationResult:
    """Merge the sites' moments: the Fréchet distance of all, without a feature leaving a site.

    Rounds are selected by it; where images are too few for a covariance, or a site keeps its
    moments to itself, by the sites' mean kernel distance.

    Raises
    ------
    FedscanError
        If sites judged with different extractors: their features mean different things.
    """
    del config
    for site, one in evaluations.items():
        if not {"extractor", "extractor-hash"} <= one.words.keys():
            raise AnswerError(site, "it does not say with which extractor it has judged")
    require_one_extractor({site: one.words["extractor-hash"] for site, one in evaluations.items()})
    # Of a single image no measure can be told.
    able = {site: one for site, one in evaluations.items() if one.count > 1} or evaluations
    whole = {
        f"{name}_mean": float(np.mean([one.metrics[name] for one in able.values()]))
        for name in TOLD
        if all(name in one.metrics for one in able.values())
    }
    kernel = whole.get("kernel_distance_mean", math.nan)
    said = f"kernel distance {kernel:.3f}"
    moments = []
    if all(one.statistics for one in evaluations.values()):
        moments = [merged_moments(evaluations, kind) for kind in SAMPLE]
    if not moments or min(m.count for m in moments) <= len(moments[0].mean):
        for site, one in able.items():
            if one.count < 2:
                raise AnswerError(
                    site,
                    "it has one image to validate by, and a kernel distance needs two: give it "
                    "more, or take another split",
                )
            if not math.isfinite(one.metrics.get("kernel_distance", math.nan)):
                raise AnswerError(site, "it tells no kernel distance, by which rounds are selected")
        why = "too few images" if moments else "moments withheld"
        return ValidationResult(
            kernel, whole, f"{said}; no Fréchet distance of all sites: {why}", "kernel"
        )
    whole["frechet_distance"] = frechet_distance(*moments)
    said = f"Fréchet distance {whole['frechet_distance']:.2f}, {said}"
    return ValidationResult(whole["frechet_distance"], whole, said, "Fréchet")


def merged_moments(evaluations: Mapping[str, Evaluation], kind: str) -> Moments:
    """Moments of all sites' real or generated features, from those that the sites told.

    Raises
    ------
    AnswerError
        If a site's are missing, broken or of another size: told by its name.
    """
    means = [one.statistics.get(f"{kind}.mean") for one in evaluations.values()]
    lengths = Counter(len(mean) for mean in means if mean is not None and mean.ndim)
    usual = lengths.most_common(1)[0][0] if lengths else 0  # as most sites have it
    parts = []
    for site, one in evaluations.items():
        try:
            count, mean, covariance = (
                one.statistics[f"{kind}.{name}"].numpy() for name in ("count", "mean", "covariance")
            )
        except KeyError as error:
            raise AnswerError(site, f"moments of features: {error} is missing") from None
        sizes = {usual, *mean.shape, *covariance.shape}
        # Generated features are compared with real ones: all are of one size.
        sizes.update(*(t.shape for name, t in one.statistics.items() if name.endswith(".mean")))
        whole = (count.ndim, mean.ndim, covariance.ndim, len(sizes)) == (0, 1, 2, 1)
        numbers = np.concatenate([part.ravel() for part in (count, mean, covariance)])
        doubles = {part.dtype for part in (count, mean, covariance)} == {np.dtype(np.float64)}
        sound = doubles and (np.abs(numbers) <= LARGEST).all()
        if not (whole and 0 not in sizes and sound and count == one.count):
            raise AnswerError(site, f"moments of {kind} features are not usable")
        parts.append(Moments(int(count), mean, covariance))
    return Moments.merged(parts)


def summary(
    evaluations: Mapping[str, Evaluation],
    merged: ValidationResult,
    fits: Mapping[str, Mapping[str, float]],
    config: RunConfig,
    *,
    round_number: int,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the block ``generation`` of the whole, and under each site.

    The whole's Fréchet distance is that of all images together, from merged moments; its kernel
    distance, precision and recall are means over sites, since they cannot be merged.
    """
    words = next(iter(evaluations.values())).words
    extractor = {"name": words["extractor"], "hash": words["extractor-hash"]}
    seen = round_number * config.training.local_steps * config.training.batch_size
    sites = {
        site: {
            "generation": {
                **dict.fromkeys(TOLD),  # too few images for a measure: null
                **one.metrics,
                "extractor": extractor,
                "images_seen": seen,
                "p_ada": fits.get(site, {}).get("p"),
            }
        }
        for site, one in evaluations.items()
    }
    ps = [values["p"] for values in fits.values() if "p" in values]
    whole = {
        "extractor": extractor,
        "frechet_distance": merged.whole.get("frechet_distance"),
        **{name: merged.whole.get(f"{name}_mean") for name in TOLD[1:]},
        "frechet_distance_mean_over_sites": merged.whole.get("frechet_distance_mean"),
        "images_seen": seen * max(1, len(fits)),
        "p_ada": float(np.mean(ps)) if ps else None,
    }
    found: dict[str, Any] = {"generation": whole}
    if len(fits) > 1:
        found["bytes_plain"] = plain_bytes(config, tuple(evaluations)) * len(fits)
    return found, sites


def plain_bytes(config: RunConfig, sites: Sequence[str]) -> int:
    """Bytes that a site would exchange if G, D and G's average went both ways in float32."""
    generator, discriminator = build(architecture(config, sites), 0)
    networks = (generator, discriminator, generator)
    weights = sum(p.numel() for network in networks for p in network.parameters())
    return 2 * 4 * weights * config.run.rounds


def _copying(
    generator: Generator,
    training: Dataset,
    held_out: np.ndarray,
    extractor: Extractor,
    seed: int,
    records: Path,
    *,
    mirrored: bool,
) -> dict[str, float]:
    """Test for copies of training slices; keep the look-alikes, scans and pictures, at the site."""
    seed = derive_seed(seed, purpose="copies")
    made = pictures(generator, training, seed)
    ours = np.concatenate([extractor.features(part) for part in made])
    theirs = features_of(extractor, training)
    if mirrored:  # a copy of a mirror image is a copy
        theirs = np.concatenate([theirs, features_of(extractor, training, mirrored=True)])
    found = judge_copying(theirs, ours, held_out)
    values = (
        found.authenticity,
        found.authenticity_held_out,
        found.generated_median,
        found.held_out_median,
        found.look_alikes,
        found.flagged,
    )
    measured = dict(zip(COPYING, values, strict=True))
    which, near, distances = strongest(theirs, ours, LOOK_ALIKES, held_out=held_out)
    images = np.concatenate(list(pictures(generator, training, seed, which)))
    scans = np.concatenate(
        [_seen(training, np.array([k % len(training)]), k >= len(training)) for k in near]
    )
    order = range(len(which))
    write_look_alikes(records / "look-alikes.png", images, scans, order, order, distances)
    return {name: float(value) for name, value in measured.items() if value is not None}


@lru_cache(maxsize=1)
def _extractor(name: str) -> Extractor:
    from common.evaluation.extractor import load_extractor

    extractor = load_extractor(name, cache_dir())
    extractor.require_features()
    return extractor


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
