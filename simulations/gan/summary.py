"""What a training came to: its pictures against the test scans, which are read here, once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import without_nan
from common.seeding import derive_seed
from simulations import console
from simulations.gan.sites import load_pool

if TYPE_CHECKING:
    from common.evaluation.extractor import Extractor
    from common.imaging.slices import SliceSet
    from common.training.gan_state import GanTraining


def summarize(
    training: GanTraining,
    data: SliceSet,
    folders: Mapping[str, Path],
    extractor: Extractor,
    *,
    seconds: float,
) -> dict[str, Any]:
    """Judge a training by its average generator's pictures.

    As many pictures are made as there are training slices, with their labels, so that the distance
    of real training slices to the same test slices, by the same extractor and from equal numbers,
    is what a perfect generator would reach.

    Parameters
    ----------
    training : GanTraining
    data : SliceSet
        The training slices.
    folders : mapping of str to Path
        Each site's data set.
    extractor : Extractor
    seconds : float
        Spent on training.

    Returns
    -------
    dict
        ``generated`` and ``real``: measures of the generator's pictures and of the training
        slices against the test slices (see ``common.evaluation.generation.judge``);
        ``frechet_ratio``, the quotient of their Fréchet distances; ``copying``; ``extractor`` with
        its name and hash; ``steps``, ``images_seen``, ``seconds``, ``p``.
    """
    from common.evaluation.generation import copying, judge
    from common.training.gan_sampling import sample_rows

    test = load_pool(folders, "test", training.config.resolution)
    kinds = [kind for kind, _ in training.architecture.labels]
    rows = [{kind: row[kind] for kind in kinds} for row in data.labels]
    seed = derive_seed(training.config.seed, purpose="judged pictures")
    with console.steps("Generating pictures to judge", len(rows)) as bar:
        images = sample_rows(
            training.ema, rows, range(len(rows)), seed=seed, on_picture=bar.advance
        )
    generated = judge(images, test.images, extractor)
    real = judge(data.images, test.images, extractor)
    features = [extractor.features(one) for one in (data.images, images, test.images)]
    pair = generated["frechet_distance"], real["frechet_distance"]
    return without_nan(
        {
            "sites": sorted(folders),
            "extractor": generated.pop("extractor"),
            "generated": generated,
            "real": {key: value for key, value in real.items() if key != "extractor"},
            "frechet_ratio": pair[0] / pair[1] if all(pair) else None,
            "copying": copying(*features),
            "resolution": training.config.resolution,
            "labels": kinds,
            "steps": training.steps,
            "images_seen": training.images_seen,
            "seconds": round(seconds, 1),
            "p": training.p,
        }
    )
