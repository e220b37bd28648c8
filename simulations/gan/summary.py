"""What a training came to: its pictures against the test images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import FedscanError
from common.evaluation.generation import MEASURES, require_extractor
from common.files import without_nan
from common.reading import read_json
from common.seeding import derive_seed
from simulations import console

if TYPE_CHECKING:
    from common.data.dataset import Dataset
    from common.evaluation.extractor import Extractor
    from common.models.stylegan2 import Generator
    from common.training.gan_state import GanTraining


# What a reader of a summary may look up; those of older versions lack some of it.
KEYS = frozenset(
    [
        *("sites", "extractor", "generated", "real", "frechet_ratio", "copying", "path_length"),
        *("resolution", "labels", "steps", "images_seen", "seconds", "p"),
    ]
)
COPYING = frozenset(["flagged", "reason", "generated_median", "held_out_median"])
JUDGED = frozenset([*MEASURES, "n_real", "n_generated", "reasons", "statistics"])
STATISTICS = frozenset(["spectrum_distance_db", "sliced_wasserstein", "ms_ssim", "ms_ssim_real"])


def read_current(path: Path, extractor: Extractor, *, steps: int) -> dict[str, Any] | None:
    """Read a summary, if it is one that :func:`summarize` might have given now.

    Returns
    -------
    dict or None
        None where there is none, or one made by another extractor, by an older version or after
        other iterations, or something else altogether.
    """
    try:
        summary = read_json(path)
        judge = require_extractor(summary)
    except (FileNotFoundError, FedscanError):
        return None
    if (judge["name"], judge["hash"]) != (extractor.name, extractor.hash):
        return None
    if not _has(summary, KEYS) or summary["steps"] != steps:
        return None
    if not _has(summary["copying"], COPYING):
        return None
    for judged in (summary["generated"], summary["real"]):
        if not _has(judged, JUDGED) or not _has(judged["statistics"], STATISTICS):
            return None
    return summary


def _has(value: Any, keys: frozenset[str]) -> bool:
    return isinstance(value, dict) and value.keys() >= keys


def summarize(
    training: GanTraining,
    data: Dataset,
    test: Dataset,
    extractor: Extractor,
    *,
    seconds: float,
) -> dict[str, Any]:
    """Judge a training by its average generator's pictures.

    As many pictures are made as there are training images, with their labels, so that the distance
    of real training images to the same test images, by the same extractor and from equal numbers,
    is what a perfect generator would reach; one that trains with mirror images, as those of scans
    do, paints them as well, and on scans that are no mirror images of themselves comes less near.

    Parameters
    ----------
    training : GanTraining
    data, test : Dataset
        The training images, and those of the test split of the same sites.
    extractor : Extractor
    seconds : float
        Spent on training.

    Returns
    -------
    dict
        ``generated`` and ``real``: measures of the generator's pictures and of the training
        slices against the test images (see ``common.evaluation.generation.judge_features`` and,
        under ``statistics``, ``common.evaluation.image_statistics``); ``frechet_ratio``, the
        quotient of their Fréchet distances; ``copying``, see
        ``common.evaluation.memorization.judge_copying``; ``path_length``; ``extractor`` with its
        name and hash; ``steps``, ``images_seen``, ``seconds``, ``p``.
    """
    from common.evaluation.generation import judge_features
    from common.evaluation.image_statistics import image_statistics
    from common.evaluation.memorization import judge_copying
    from common.tasks.generation_quality import features_of
    from common.training.gan_sampling import sample_rows

    kinds = [kind for kind, _ in training.architecture.labels]
    rows = [{kind: row[kind] for kind in kinds} for row in data.conditions]
    seed = derive_seed(training.config.seed, purpose="judged pictures")
    with console.steps("Generating pictures to judge", len(rows)) as bar:
        images = sample_rows(
            training.ema, rows, range(len(rows)), seed=seed, on_picture=bar.advance
        )
    real_images, test_images = data.images() * 2 - 1, test.images() * 2 - 1
    features = {
        "training": features_of(extractor, data),
        "generated": extractor.features(images),
        "test": features_of(extractor, test),
    }
    seen = [features["training"]]
    if training.config.mirror:  # a copy of a mirror image is a copy
        seen.append(features_of(extractor, data, mirrored=True))
    generated = judge_features(features["generated"], features["test"])
    real = judge_features(features["training"], features["test"])
    generated["statistics"] = image_statistics(images, test_images)
    real["statistics"] = image_statistics(real_images, test_images)
    pair = generated["frechet_distance"], real["frechet_distance"]
    return without_nan(
        {
            "extractor": extractor.identity(),
            "generated": generated,
            "real": real,
            "frechet_ratio": pair[0] / pair[1] if all(pair) else None,
            "copying": asdict(
                judge_copying(np.concatenate(seen), features["generated"], features["test"])
            ),
            "path_length": path_length(training.ema, data, extractor, seed),
            "resolution": training.config.resolution,
            "labels": kinds,
            "steps": training.steps,
            "images_seen": training.images_seen,
            "seconds": round(seconds, 1),
            "p": training.p,
        }
    )


def path_length(generator: Generator, data: Dataset, extractor: Extractor, seed: int) -> float:
    """Perceptual path length in W, with labels as often as the training images have them."""
    import torch

    from common.evaluation.generation import perceptual_path_length
    from common.models.architecture import encode_labels

    architecture = generator.architecture
    device = next(generator.parameters()).device
    kinds = [kind for kind, _ in architecture.labels]
    rows = [{kind: row[kind] for kind in kinds} for row in data.conditions]
    labels = encode_labels(architecture, rows)

    def sample_w(count: int, draws: torch.Generator) -> torch.Tensor:
        z = torch.randn(count, architecture.z_dim, generator=draws)
        chosen = labels[torch.randint(len(labels), (count,), generator=draws)]
        return generator.mapping(z.to(device), chosen.to(device))

    return perceptual_path_length(
        generator.synthesis, sample_w, extractor.perceptual_distance, count=256, seed=seed
    )
