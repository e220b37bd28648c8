"""A model that was trained, with the data that it was trained on: what is looked into afterwards.

A folder of ``fedscan run``, ``federate`` or ``flwr run``, of ``fedscan train-gan``, or of one model
of a comparison (``cells/CELL/all`` and ``cells/CELL/SITE``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from common.checkpoints import MODEL, read_description, read_model
from common.config.run_config import RunConfig
from common.data.site_data import open_planes
from common.errors import ConfigError, FedscanError
from common.evaluation.extractor import DEFAULTS
from common.paths import cache_dir, site_records
from common.reading import LARGEST_WEIGHTS, read_bytes, read_json
from common.run_folder import LAUNCH, MANIFEST, SUMMARY
from common.site_names import SITE_NAME
from common.strategies.strategy import load_strategy
from common.studies.study import Study
from common.tasks.task import SiteContext, load_task, read_run_config
from simulations.gan.generate import open_checkpoint, open_extractor
from simulations.hospitals import prepare_phantoms
from simulations.resume import Launch

if TYPE_CHECKING:
    import torch
    from torch import nn

    from common.data.dataset import Dataset
    from common.evaluation.extractor import Extractor
    from common.models.stylegan2 import Generator

WANTED = "Name the folder of a run, of a training of train-gan, or cells/CELL/all of a comparison"


@dataclass(frozen=True)
class Trained:
    """A trained model and its sites.

    Parameters
    ----------
    folder : Path
        In which it lies.
    config : RunConfig
        Of the run; of a generator that ``train-gan`` has made, its study and task alone.
    folders : mapping of str to Path
        Data of each site, in order of name.
    device : torch.device
    training_sites : tuple of str
        Those on whose images it was trained, sorted.
    extractor_name : str
        Name or file of the network by which generated images were judged.
    of_train_gan : bool
        Whether ``fedscan train-gan`` has made it.
    """

    folder: Path
    config: RunConfig
    folders: Mapping[str, Path]
    device: torch.device
    training_sites: tuple[str, ...]
    extractor_name: str
    of_train_gan: bool

    @cached_property
    def study(self) -> Study:
        """The study of its images."""
        return self.config.read_study()

    @property
    def task_name(self) -> str:
        """``classification`` or ``generation``."""
        return self.config.task

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of its sites, sorted."""
        return tuple(self.folders)

    def open(self, site: str, split: str) -> Dataset:
        """Open one split of a site's images as the model sees them.

        Raises
        ------
        ConfigError, DataContractError
            The run has no such site, or its data cannot be read.
        """
        if site not in self.folders:
            raise ConfigError(f"site '{site}': accepted is one of {', '.join(self.folders)}")
        if self.of_train_gan:  # whose networks no run config describes
            size = self.generator().architecture.resolution
            where = (self.study, site, self.folders[site], split)
            return open_planes(*where, size=size, cache=cache_dir())
        task = load_task(self.task_name)
        return task.open_split(site, self.folders[site], split, self.config, cache_dir())

    def generator(self) -> Generator:
        """Return the generator's moving average, on the device, for use.

        Raises
        ------
        ConfigError
            It is a classifier.
        """
        if self.task_name != "generation":
            raise ConfigError(
                f"{self.folder} holds a classifier, and a generator is needed: one of "
                "fedscan run --set task=generation, or of fedscan train-gan"
            )
        return self._generator

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the model's weights as they are on disk."""
        return weights_hash(self.folder)

    @cached_property
    def _generator(self) -> Generator:
        return open_checkpoint(self.folder, self.device.type)[0]

    def extractor(self, name: str = "auto") -> Extractor:
        """Return a network to judge images by.

        Parameters
        ----------
        name : str
            Of an extractor, or its file; ``auto``: the one by which the run's were judged.

        Raises
        ------
        ConfigError
            That one is a file of somebody's own, which is not opened because a folder names it.
        """
        if name == "auto" and self.extractor_name not in DEFAULTS:
            raise ConfigError(
                "the run's images were judged by a network of its own: --extractor names its file, "
                f"or one of {', '.join(DEFAULTS)}"
            )
        extractor = open_extractor(self.extractor_name if name == "auto" else name)
        extractor.require_features()
        return extractor

    def classifier(self, site: str = "") -> nn.Module:
        """Return the classifier as it is tested at a site, for use.

        It is adapted to the site, as ``model.adapt`` has it; of a personal strategy it is the
        site's own. Without a site it is the one that all share.

        Raises
        ------
        ConfigError
            It is a generator; the site's own model is not on this machine; or no site is named and
            there is no model without one.
        """
        from common.training.classifier import survey_site

        if self.task_name != "classification":
            raise ConfigError(
                f"{self.folder} holds a generator, and a classifier is needed: a run of task "
                "'classification'"
            )
        personal = load_strategy(self.config.strategy.name).is_personal
        if not site and (personal or self.config.model.adapt in ("center", "statistics")):
            why = (
                f"strategy '{self.config.strategy.name}' makes a model for each site"
                if personal
                else f"model.adapt '{self.config.model.adapt}' fits the model to each site"
            )
            raise ConfigError(f"{why}: --site names one of {', '.join(self.sites)}")
        _, weights = read_model(self._own_model(site) if personal else self.folder)
        task = load_task(self.task_name)
        model = task.build_model(self.config, SiteContext(site, self.sites, self.device))
        task.load_shared(model, weights)
        if site and self.config.model.adapt != "none":
            survey_site(model, self.open(site, "train"), self.config, self.device)
        return model.to(self.device).eval()

    def _own_model(self, site: str) -> Path:
        cell, name = self.folder.parent.name, self.folder.name
        above = self.folder.parent.parent.parent
        for found in (site_records(site) / name, above / "sites" / site / cell / name):
            if (found / MODEL).is_file():
                return found
        raise ConfigError(
            f"strategy '{self.config.strategy.name}': site '{site}' keeps a model of its own in "
            "its records, which are not on this machine"
        )

    def rows(self, site: str, split: str) -> pd.DataFrame:
        """Tell what is known of each image of :meth:`open`, in its order.

        Returns
        -------
        DataFrame
            Columns ``label`` (a class of the study), ``person`` (a number, from 0), ``image``
            (Path of the file), and each condition of the study, such as ``sex``; empty where it is
            not told.
        """
        data, classes = self.open(site, split), self.study.label.classes.names
        numbers, _ = pd.factorize(pd.Series(data.persons, dtype=object))
        columns = [column for column, _ in self.study.condition_columns]
        told = {
            name: [one.get(name, "") for one in data.conditions]
            for name in dict.fromkeys([*columns, *(k for one in data.conditions for k in one)])
            if name not in ("label", "person", "image")
        }
        return pd.DataFrame(
            {
                "label": [classes[k] if k >= 0 else "" for k in data.labels],
                "person": numbers,
                "image": [self.folders[site] / name for name in data.names],
                **told,
            }
        )


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 of a model's weights as they are on disk.

    Raises
    ------
    FedscanError, OSError, KeyError
        There are none, or what describes them cannot be read.
    """
    if (folder / MODEL).is_file():
        return hashlib.sha256(read_bytes(folder / MODEL, limit=LARGEST_WEIGHTS)).hexdigest()
    from common.training.gan_checkpoint import NAME

    return str(read_description(folder, NAME)["weights"].get("sha256"))


def read_trained(
    folder: Path, cohort: Path | None = None, device: str = "auto", *, need_data: bool = True
) -> Trained:
    """Read what a folder says of its model.

    Parameters
    ----------
    folder : Path
    cohort : Path, optional
        Where the sites' data are, if they are no longer where they were.
    device : {"auto", "cpu", "cuda"}
    need_data : bool
        Whether the sites' data must be there; else a folder of them may not exist.

    Raises
    ------
    ConfigError
        There is no such model, or the data of its sites are not to be found.
    """
    from common.training.gan_state import resolve_device

    folder = folder.resolve()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder. {WANTED}")
    try:
        manifest = read_json(folder / MANIFEST)
    except FileNotFoundError:
        inside = sorted(found.parent for found in folder.glob(f"*/{MANIFEST}"))
        hint = f"Name a folder inside, such as {inside[-1]}" if inside else WANTED
        raise ConfigError(f"{folder}: no model is here. {hint}") from None
    config, extractor = _config(folder, manifest)
    trains = load_strategy(config.strategy.name).trains_at
    try:
        folders = _folders(folder, manifest, config, cohort)
    except ConfigError:
        if need_data or cohort:
            raise
        folders = {name: folder / "no data" / name for name in _site_names(manifest)}
    if need_data and (lost := [name for name, path in folders.items() if not path.is_dir()]):
        raise ConfigError(
            f"the data of site '{lost[0]}' are no longer where they were: --cohort names the "
            "folder above the sites' data"
        )
    told = manifest.get("trained_on")
    learned = told if isinstance(told, list) else [n for n in folders if trains(n, config)]
    return Trained(
        folder,
        config,
        dict(sorted(folders.items())),
        resolve_device(device),
        tuple(name for name in sorted(folders) if name in learned),
        extractor,
        "preset" in manifest,
    )


def _config(folder: Path, manifest: Mapping[str, Any]) -> tuple[RunConfig, str]:
    """Return a run's config and its extractor."""
    values = manifest.get("config")
    if not isinstance(values, dict):
        raise ConfigError(f"{folder / MANIFEST}: it holds no run config. {WANTED}")
    of_train_gan = "preset" in manifest
    if of_train_gan:  # whose config is of another kind
        values = {"study": str(manifest.get("study")), "task": "generation"}
    try:
        config = read_run_config(values)
        judged = read_json(folder / SUMMARY)["extractor"]["name"] if of_train_gan else None
    except FileNotFoundError:  # a training that goes on has none yet
        judged = None
    except (FedscanError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / MANIFEST}: {error}") from None
    return config, str(judged or config.model.extractor)


def _folders(
    folder: Path, manifest: Mapping[str, Any], config: RunConfig, cohort: Path | None
) -> dict[str, Path]:
    """Find each site's data: where a user says, where they were, or simulated ones in the cache.

    Only who has trained with ``train-gan`` can have meant simulated ones without naming a cohort:
    of a run of unknown hospitals, data are asked for.
    """
    from common.imaging.bids import list_sites

    names = _site_names(manifest)
    if cohort is None and isinstance(told := manifest.get("folders"), dict):
        return {name: Path(str(path)) for name, path in told.items()}
    if cohort is None and (folder / LAUNCH).is_file():
        return dict(Launch.read(folder).folders)
    above = cohort or manifest.get("cohort") or config.data.cohort_dir
    if not above and "preset" in manifest:
        return prepare_phantoms(config.study, names)
    if not above:
        raise ConfigError("where the sites' data are is not told: --cohort names the folder above")
    found = list_sites(Path(above))
    if lost := [name for name in names if name not in found]:
        raise ConfigError(f"--cohort: it does not hold site '{lost[0]}', of which the model is")
    return {name: found[name] for name in names or found}


def _site_names(manifest: Mapping[str, Any]) -> list[str]:
    sites = manifest.get("sites")
    return [name for name in sites if SITE_NAME.fullmatch(name)] if isinstance(sites, dict) else []
