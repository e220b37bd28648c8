"""A task is one module: how to build, load, fit and judge, what sites share, and what is released.

Server, clients and the arms of a comparison know a task by :class:`Task` only, so none of them
grows when a task is added. The state of a training is in three parts: what sites
*share* and the server averages; what stays *private* to a site between rounds; and what is
*released*, the network that is judged and given away, made at the server from the averages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.site_data import read_table, reader_of
from common.data.unlabelled import ALL, UseOfLabels
from common.disclosure import EVERYTHING, Disclosure
from common.errors import ConfigError, DataContractError
from common.evaluation.of_site import Evaluation, Reports, ValidationResult
from common.imaging.splits import SPLITS
from common.seeding import derive_seed
from common.strategies.strategy import State, load_strategy, strategy_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from common.config.run_config import RunConfig
    from common.data.dataset import Dataset
    from common.data.image_table import ImageTable
    from common.training.hooks import Hooks
    from common.training.progress import Progress


@dataclass(frozen=True)
class Fit:
    """What one round's training gives: numbers to report, and state that stays at the site."""

    metrics: dict[str, float]
    private: dict[str, Tensor]


@dataclass(frozen=True)
class SiteContext:
    """Where something is computed: which site or pool, among which sites, on what device.

    Parameters
    ----------
    site : str
        The site's name, or a pool's; part of every seed.
    sites : tuple of str
        All sites of the run, sorted.
    device : torch.device
    disclosure : Disclosure
        What the site tells of its people; by default everything, as where one owner holds all.
    secret : str
        A deployed site's own part of the seeds of training, which the server does not know.
    """

    site: str
    sites: tuple[str, ...]
    device: torch.device
    disclosure: Disclosure = EVERYTHING
    secret: str = ""

    def seed(self, root: int, **axes: str | int) -> int:
        """Derive a seed of training at this site from the run's."""
        secret = {"secret": self.secret} if self.secret else {}
        return derive_seed(root, site=self.site, **axes, **secret)


Load = Callable[[str], "Dataset"]  # given a split, the site's images of it


class Task(ABC):
    """What a task can do; ``model`` is whatever the task makes of it."""

    statistics: tuple[str, ...] = ()  # names, among the shared state, of statistics over people
    averages_over_time = False  # whether what is released is an average of past rounds' weights
    judged_whole = True  # whether all that sites train is in what is released
    aligns = False  # whether it has an :meth:`align`
    takes_hooks = True  # whether a strategy can step into its training

    def statistics_of(self, config: RunConfig) -> frozenset[str]:
        """Name what a run shares that is no weight, but a statistic over people."""
        del config
        return frozenset(self.statistics)

    def check(self, config: RunConfig) -> None:  # noqa: B027
        """Refuse a run config that the task's networks do not accept.

        Raises
        ------
        ConfigError
        """

    def check_labels(self, site: str, labels: Sequence[int], config: RunConfig) -> None:  # noqa: B027
        """Refuse a site whose labels of training images the run cannot do with.

        Raises
        ------
        DataContractError
        """

    @abstractmethod
    def build_model(self, config: RunConfig, place: SiteContext) -> Any:
        """Build the model with the run's initial weights, the same wherever it is built."""

    def warm_start(self, model: Any, config: RunConfig) -> list[str]:
        """Take over weights of an earlier training, where the run begins with some.

        Returns what is to be told of it, such as what begins anew.

        Whoever holds the first weights of a run calls it: the server, or the pool. A site gets
        them with the first message, and reads no file that a run config names.
        """
        del model, config
        return []

    @abstractmethod
    def parameters(self, model: Any) -> dict[str, Tensor]:
        """Return copies of all of the model's state that sites might share, float32."""

    def parts(self, model: Any) -> dict[str, str]:
        """Return of each of these what it is part of, "body", "norm" or "head"; here the body."""
        return dict.fromkeys(self.parameters(model), "body")

    def shared_state(self, model: Any, config: RunConfig) -> dict[str, Tensor]:
        """Return the part of the model's state that sites share, as the strategy says."""
        shares, parts = load_strategy(config.strategy.name).shares, self.parts(model)
        return {
            name: tensor
            for name, tensor in self.parameters(model).items()
            if shares(name, parts[name], config)
        }

    def server_learning_rate(self, participants: int) -> float:
        """Return the server's learning rate that suits so many sites, where none is set."""
        del participants
        return 1.0

    @abstractmethod
    def load_shared(self, model: Any, state: State) -> None:
        """Take over what :meth:`shared_state` gave elsewhere, strictly."""

    def align(self, updates: Mapping[str, dict[str, Tensor]], config: RunConfig) -> None:  # noqa: B027
        """Give all sites' trained states, by site, what only one of them has learned; in place.

        Called before they are averaged, so that what the others had no occasion to learn does not
        thin it out.
        """

    def first_release(self, model: Any, config: RunConfig) -> dict[str, Tensor]:
        """Return the released state before any round: by default what is shared."""
        return self.shared_state(model, config)

    def release(
        self,
        previous: State,
        shared: State,
        config: RunConfig,
        *,
        round_number: int,
        participants: int,
    ) -> dict[str, Tensor]:
        """Make the released state out of the one before and the average of a round: the latter."""
        del previous, config, round_number, participants
        return dict(shared)

    def extractor_hash(self, config: RunConfig) -> str:
        """Return the hash of the network by which this site judges; "" where there is none.

        Raises
        ------
        ConfigError
            There should be one, and it cannot be loaded.
        """
        del config
        return ""

    @abstractmethod
    def open_split(
        self, site: str, data_dir: Path, split: str, config: RunConfig, cache: Path
    ) -> Dataset:
        """Open one split of one site; no file of another split is opened."""

    def images_per_file(self, config: RunConfig) -> int:
        """Return how many images are made of a file."""
        del config
        return 1

    @abstractmethod
    def fit(
        self,
        model: Any,
        data: Dataset,
        config: RunConfig,
        *,
        place: SiteContext,
        round_number: int,
        private: State,
        hooks: Hooks | None = None,
        progress: Progress | None = None,
    ) -> Fit:
        """Train in place for one round's steps; ``private`` is what the last round gave back.

        ``hooks`` are the strategy's, which a task without :attr:`takes_hooks` is never given.
        With ``progress`` an interrupted round goes on where that was kept.
        """

    @abstractmethod
    def evaluate(
        self,
        released: State,
        load: Load,
        split: str,
        config: RunConfig,
        *,
        place: SiteContext,
        records: Path | None = None,
    ) -> Evaluation:
        """Judge the released state on one split; ``records`` is for what stays at the site."""

    @abstractmethod
    def reports(self, config: RunConfig) -> Reports:
        """Name all that :meth:`fit` and :meth:`evaluate` can report in a run."""

    @abstractmethod
    def judge(self, evaluations: Mapping[str, Evaluation], config: RunConfig) -> ValidationResult:
        """Merge the sites' evaluations."""

    @abstractmethod
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
        """Write what is released, and what is needed to build it again."""

    def illustrate(  # noqa: B027
        self,
        folder: Path,
        released: State,
        config: RunConfig,
        *,
        round_number: int,
        place: SiteContext,
    ) -> None:
        """Leave pictures of a round's released state, where there is something to see."""

    @abstractmethod
    def summary(
        self,
        evaluations: Mapping[str, Evaluation],
        merged: ValidationResult,
        fits: Mapping[str, Mapping[str, float]],
        config: RunConfig,
        *,
        round_number: int,
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Return what a summary says of the whole, and under each site.

        ``fits`` is what training said in the round whose state is released, ``round_number``.
        """

    @abstractmethod
    def learning_rates(self, config: RunConfig) -> dict[str, float]:
        """Return the learning rates of a site's training, by the keys that set them."""

    @abstractmethod
    def without_augmentation(self, config: RunConfig) -> str:
        """Say what keeps training from varying its images at random; "" where nothing does."""


def survey(site: str, data_dir: Path, config: RunConfig) -> dict[str, int]:
    """Read a site's table and count its files: :func:`survey_table`."""
    return survey_table(read_table(config.read_study(), site, data_dir), config)


def use_of_labels(site: str, config: RunConfig) -> UseOfLabels:
    """Say what a run does at a site with images that have no label, and with labels."""
    if config.task != "classification":
        return ALL
    return UseOfLabels(
        keep=load_strategy(config.strategy.name).uses_unlabelled,
        hide=site in config.data.unlabelled_sites,
    )


def survey_table(table: ImageTable, config: RunConfig) -> dict[str, int]:
    """Count the files of each split and those left out, without opening one.

    Returns
    -------
    dict of str to int
        ``n_train``, ``n_val``, ``n_test`` and ``left_out`` (no label, no file, …).

    Raises
    ------
    DataContractError
        If a split has nobody, or the training too few classes: better now than after it.
    """
    labels, unlabelled = use_of_labels(table.site, config), table.unlabelled is not None
    table = labels.of(table)
    counts = {f"n_{split}": len(table.rows(split)) for split in SPLITS}
    needed = SPLITS if labels.judges(table) else ("train",)
    if empty := [split for split in needed if not counts[f"n_{split}"]]:
        remedy = "Each of train, val and test needs some; without a column `split` fedscan makes "
        remedy += "them, from three people of each label on"
        if empty[0] == "train" and unlabelled:
            able = [name for name in strategy_names() if load_strategy(name).uses_unlabelled]
            remedy = f"Images without a label are of use with strategy.name {' or '.join(able)}"
        raise DataContractError(
            table.site, f"no image with a label is in split '{empty[0]}'", remedy=remedy
        )
    load_task(config.task).check_labels(table.site, table.labels[table.rows("train")], config)
    return {**counts, "left_out": sum(table.left_out.values())}


def roster(site: str, data_dir: Path, config: RunConfig) -> list[tuple[str, int, str]]:
    """List file, label and split of every image, without opening one. It stays at the site.

    Raises
    ------
    DataContractError
        The site's table cannot be understood.
    """
    table = use_of_labels(site, config).of(read_table(config.read_study(), site, data_dir))
    return list(zip(table.files, table.labels.tolist(), table.splits.tolist(), strict=True))


def load_task(name: str) -> Task:
    """Import a task by its name in the run config; late, for what it needs is heavy."""
    import importlib

    return importlib.import_module(f"common.tasks.{name}").TASK


def read_run_config(run_config: Mapping[str, Any]) -> RunConfig:
    """Validate Flower's flat run config, also by the rules of its task and its strategy.

    Raises
    ------
    ConfigError
        See :meth:`RunConfig.from_flower`.
    """
    from common.config.run_config import RunConfig

    config = RunConfig.from_flower(run_config)
    reader_of(config.read_study())
    task, strategy = load_task(config.task), load_strategy(config.strategy.name)
    strategy.check(config)
    options = {"options": strategy.options(config).to_words()}  # alike, if they mean the same
    config = config.model_copy(update={"strategy": config.strategy.model_copy(update=options)})
    if not task.takes_hooks and strategy.of_classifiers:
        able = [name for name in strategy_names() if not load_strategy(name).of_classifiers]
        raise ConfigError(
            f"run config: task '{config.task}' has no strategy '{strategy.name}': accepted is one "
            f"of {', '.join(able)}"
        )
    metric, known = config.run.stop_metric, {"loss", *task.reports(config).evaluation}
    if metric not in known:
        raise ConfigError(
            f"run config: run.stop-metric = '{metric}': accepted is one of "
            f"{', '.join(sorted(known))}"
        )
    if config.model.trains == "head" and not strategy.shares("head.weight", "head", config):
        raise ConfigError(
            f"run config: strategy '{strategy.name}' keeps the head at each site, and with "
            "model.trains = 'head' nothing else learns: choose another strategy, or train 'all'"
        )
    task.check(config)
    return config
