"""What synthetic scans are good for: a classifier that learns from them, tested on real scans.

Three questions. *Synthetic only*: what does a classifier know that never saw a real scan? *Real and
synthetic*: does a small hospital's classifier gain by people whom it draws from a generator, beside
its own few? How many it draws is chosen on its validation scans, none being a choice as well.
*Balanced*: does it gain where each rare class is filled up to the commonest by such people?

Every training is the classification task's own, with the same steps and the same seeds, and its
last weights are kept. Test scans are read once, when all trainings are over.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from common.config.run_config import OF_SLICES, RunConfig
from common.data.dataset import Dataset, InMemory, pool
from common.errors import ConfigError
from common.imaging.slices import LEVELS_MM
from common.paths import cache_dir
from common.seeding import derive_seed
from common.studies.sections import HEIGHT, SITE
from common.studies.study import Study
from common.tasks.classification import score
from common.tasks.task import SiteContext, load_task
from common.training.classifier import predict
from common.training.gan_sampling import load_generator, sample_rows
from simulations.results import CHOSEN, USE_COLUMNS

if TYPE_CHECKING:
    from torch import nn

    from common.models.stylegan2 import Generator
    from simulations.work import Work

log = logging.getLogger(__name__)

METRICS = ("balanced_accuracy", "auroc")  # and, of more than two classes, each one's recall
AMOUNTS = (16, 32, 64, 128)  # synthetic participants beside a site's own; none is tried as well
REAL_ONLY = "local real only"
BALANCED = "local real balanced by"


def synthetic_people(
    generator: Generator, study: Study, site: str, numbers: Sequence[int], seed: int
) -> Dataset:
    """Draw people who never lived: each is one latent, a picture or at every height of a stack.

    Parameters
    ----------
    generator : Generator
        Conditioned on the study's label, the site and, of volumes, the height.
    study : Study
    site : str
        Whose instruments and patients they are to resemble.
    numbers : sequence of int
        Which people: n has the class n modulo their number, and is the same whoever else is drawn.
    seed : int

    Returns
    -------
    Dataset
        Pictures (C, R, R), or stacks (1, L, R, R) of L heights.

    Raises
    ------
    ConfigError
        If the generator has no such labels, or does not know the site or a height.
    """
    column, classes = study.label.column, study.label.classes.names
    heights = [] if study.images.view == "picture" else [f"{level:g}" for level in LEVELS_MM]
    wanted = {column: classes, **({HEIGHT: heights} if heights else {}), SITE: [site]}
    _require_labels(generator, wanted)
    labels = np.asarray(numbers, dtype=np.int64) % len(classes)
    each = [{HEIGHT: height} for height in heights] or [{}]
    rows = [{column: classes[label], **at, SITE: site} for label in labels for at in each]
    pictures = np.repeat(np.asarray(numbers), len(each)).tolist()
    drawn = derive_seed(seed, site=site, purpose="synthetic people")
    images = np.clip((sample_rows(generator, rows, pictures, seed=drawn) + 1) / 2, 0, 1)
    if heights:  # (count · L, 1, R, R)
        images = images.reshape(len(labels), 1, len(heights), *images.shape[2:])
    return Dataset(InMemory(images), labels, tuple(map(str, numbers)))


def filling(labels: np.ndarray, classes: int) -> list[int]:
    """Number the synthetic people who make each class as common as the commonest.

    Parameters
    ----------
    labels : (N,) int64
        Of the images that there are.
    classes : int

    Returns
    -------
    list of int
        Numbers of :func:`synthetic_people`, by class.
    """
    there = np.bincount(labels, minlength=classes)
    lacking = there.max() - there
    return [k * classes + label for label, count in enumerate(lacking) for k in range(count)]


def use_of_synthetic(
    folders: Mapping[str, Path],
    generators: Mapping[str, Path],
    poor: str,
    config: RunConfig,
    seed: int,
    *,
    amounts: Sequence[int] = AMOUNTS,
    device: torch.device | None = None,
) -> pd.DataFrame:
    """Train on synthetic people, alone and beside a site's own, and test on real scans.

    Parameters
    ----------
    folders : mapping of str to Path
        Each site's data.
    generators : mapping of str to Path
        Name in words, such as "local GAN", and the folder of its checkpoint.
    poor : str
        The site with few scans of its own.
    config : RunConfig
        Of a classification by slices: budget, batch size, learning rate. Its seed is replaced.
    seed : int
    amounts : sequence of int
        Synthetic participants that are tried beside the poor site's; the largest are all there are
        where they are alone.
    device : torch.device, optional
        Where the classifiers train; by default the CPU.

    Returns
    -------
    DataFrame
        Columns :data:`~simulations.results.USE_COLUMNS`. Rows "local real only" and "local real +
        NAME" at the poor site, of metrics :data:`METRICS` (n: test scans) and, of the latter,
        ``synthetic_participants``, the amount with the lowest validation loss, of equals the
        smallest (n: validation scans). Row "local real balanced by NAME" there, where classes are
        not equally common: as many synthetic people of each as it lacks to be as common as the
        commonest. Rows "NAME only" at every site: trained on synthetic people with that site's
        label, of which a generator that never saw the site can only guess the looks. A generator
        that makes no such people (it has no labels of sex, height and site, or pictures of another
        size) has no row.

    Raises
    ------
    ConfigError
        If the classifier sees no such images as generators make, or a site is unknown.
    """
    study = config.read_study()
    stacked = config.model.classifier in OF_SLICES or study.images.view == "picture"
    if config.task != "classification" or not stacked:
        raise ConfigError(
            f"task '{config.task}' with classifier '{config.model.classifier}' has no use for "
            "synthetic images: accepted are classifiers of pictures and, of volumes, "
            f"{' and '.join(OF_SLICES)}, with task 'classification'"
        )
    if config.model.heights != "generated":
        raise ConfigError(
            f"model.heights = '{config.model.heights}': generators make slices at those of "
            "'generated' alone"
        )
    if config.model.adapt != "none":
        raise ConfigError(
            f"model.adapt = '{config.model.adapt}': synthetic people have no site to be adapted "
            "to. Set it 'none'"
        )
    if poor not in folders or not amounts or min(amounts) < 1:
        raise ConfigError(
            f"site '{poor}' with {list(amounts)} synthetic participants: accepted are a site of "
            f"{', '.join(folders)} and amounts from 1"
        )
    place = SiteContext(poor, tuple(sorted(folders)), device or torch.device("cpu"))
    trainings = _Trainings(config.replace({"run.seed": seed}), place)
    real = trainings.load(folders, poor, "train")
    validation = trainings.load(folders, poor, "val")
    models: list[tuple[str, str, nn.Module]] = []  # row, site, trained
    chosen: dict[str, int] = {}

    local = trainings.train(real)
    models.append((REAL_ONLY, poor, local))
    known = trainings.loss(local, validation)
    used: list[str] = []
    lacking = filling(real.labels, len(study.label.classes.names))
    for name, folder in generators.items():
        try:
            drawn = _Drawn(name, folder, sorted(folders), real, study, seed)
        except ConfigError as error:  # one generator's fault is no reason to lose the others' rows
            log.warning("left out: %s", error)
            continue
        used.append(name)
        losses, tried = {0: known}, {0: local}
        people = drawn(poor, range(max(amounts)))
        for amount in sorted(amounts):
            tried[amount] = trainings.train(pool([real, people.subset(np.arange(amount))]))
            losses[amount] = trainings.loss(tried[amount], validation)
        row = f"local real + {name}"
        chosen[row] = min(losses, key=lambda amount: (losses[amount], amount))
        models.append((row, poor, tried[chosen[row]]))
        if lacking:
            rare = drawn(poor, lacking)
            models.append((f"{BALANCED} {name}", poor, trainings.train(pool([real, rare]))))
        models += [
            (f"{name} only", site, trainings.train(drawn(site, range(max(amounts)))))
            for site in folders
        ]

    rows = [
        (seed, row, poor, CHOSEN, float(amount), len(validation.labels))
        for row, amount in chosen.items()
    ]
    for site in folders:
        test = trainings.load(folders, site, "test")
        for row, at, model in models:
            if at == site:
                found = score(study, test.labels, trainings.predict(model, test))
                told = [*METRICS, *(name for name in found if name.startswith("recall."))]
                rows += [(seed, row, site, name, found[name], len(test.labels)) for name in told]
    balanced = [f"{BALANCED} {name}" for name in used]
    order = [REAL_ONLY, *chosen, *balanced, *(f"{name} only" for name in used)]
    frame = pd.DataFrame(rows, columns=USE_COLUMNS)
    return frame.sort_values(
        "row", key=lambda one: one.map(order.index), kind="stable"
    ).reset_index(drop=True)


def trainings(generators: int, sites: int) -> int:
    """Count the trainings of :func:`use_of_synthetic`, at most, by generators and sites."""
    return 1 + generators * (len(AMOUNTS) + 1 + sites)


class _Trainings:
    """Trainings that differ in their data only.

    Parameters
    ----------
    config : RunConfig
    place : SiteContext
        By whose site's name batches are drawn.
    """

    def __init__(self, config: RunConfig, place: SiteContext) -> None:
        self.config, self.place = config, place
        self.task, self.study = load_task(config.task), config.read_study()

    def load(self, folders: Mapping[str, Path], site: str, split: str) -> Dataset:
        return self.task.open_split(site, Path(folders[site]), split, self.config, cache_dir())

    def train(self, data: Dataset) -> nn.Module:
        model, private = self.task.build_model(self.config, self.place), {}
        self.task.warm_start(model, self.config)
        for number in range(1, self.config.run.rounds + 1):
            private = self.task.fit(
                model, data, self.config, place=self.place, round_number=number, private=private
            ).private
        return model

    def predict(self, model: nn.Module, data: Dataset) -> np.ndarray:
        return predict(model, data, self.study, self.place.device)

    def loss(self, model: nn.Module, data: Dataset) -> float:
        return score(self.study, data.labels, self.predict(model, data))["loss"]


class _Drawn:
    """People by a generator, which is refused if it cannot make what the classifier sees."""

    def __init__(
        self,
        name: str,
        folder: Path,
        sites: Sequence[str],
        real: Dataset,
        study: Study,
        seed: int,
    ) -> None:
        self.generator, _ = load_generator(folder)
        self.study, self.seed = study, seed
        resolution, wanted = self.generator.architecture.resolution, real.shape[-1]
        if resolution != wanted:
            raise ConfigError(
                f"{name}: its images have {resolution} pixels a side, the classifier's {wanted}. "
                "Set model.gan and model.gan-changes to those that it was trained with"
            )
        try:
            for site in sites:
                self(site, [0])
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error

    def __call__(self, site: str, numbers: Sequence[int]) -> Dataset:
        return synthetic_people(self.generator, self.study, site, numbers, self.seed)


def _require_labels(generator: Generator, wanted: Mapping[str, Sequence[str]]) -> None:
    known = dict(generator.architecture.labels)
    if missing := [kind for kind in wanted if kind not in known]:
        raise ConfigError(
            f"the generator has no labels of {' and '.join(missing)}, which a synthetic person "
            f"needs. Train one with label-kinds={','.join(wanted)}"
        )
    for kind, values in wanted.items():
        if strange := [value for value in values if value not in known[kind]]:
            raise ConfigError(
                f"the generator knows no {kind} '{strange[0]}': it was trained with "
                f"{', '.join(known[kind])}"
            )


def use_of_cell(work: Work, federated: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """See what the pictures of a comparison's generators are good for, in one repetition.

    Parameters
    ----------
    work : Work
        Its ``models`` are the generators'.
    federated : sequence of mapping
        Results of a federated classifier of the same recipe, which are told beside.
    """
    from clients.resources import compute_device, granted

    config = work.config
    folders = {site: Path(path) for site, path in work.sites.items()}
    models = {name: Path(path) for name, path in work.models.items()}
    with compute_device(config, granted()) as device:
        table = use_of_synthetic(
            folders, models, work.local[0], config, config.run.seed, device=device
        )
    beside = [
        {
            "seed": config.run.seed,
            "row": "federated classifier",
            "site": row["tested_on"],
            **{key: row[key] for key in ("metric", "value", "n")},
        }
        for row in federated
        if row["split"] == "test" and row["metric"] in set(table["metric"])
    ]
    return pd.concat([table, pd.DataFrame(beside)], ignore_index=True)
