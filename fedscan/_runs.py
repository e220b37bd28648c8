"""Runs: what they are asked for, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.errors import ConfigError
from common.metrics_log import WHOLE, read_rows
from common.run_folder import METRICS, SUMMARY
from fedscan._settings import absolute, overrides, read_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from common.strategies.strategy import Strategy
    from simulations.trained import Trained

Images: TypeAlias = str | Path | Sequence[str | Path] | NDArray[Any] | Sequence[NDArray[Any]]


def run(
    *,
    study: str | Path | None = None,
    cohort: str | Path | None = None,
    strategy: str | type[Strategy] | None = None,
    config: str | Path | None = None,
    out: str | Path | None = None,
    sites: int | None = None,
    test_scans: int | None = None,
    cpus: int | None = None,
    gpus_per_site: float = 0.0,
    quiet: bool = False,
    **settings: bool | int | float | str,
) -> Run:
    """Run a federation of simulated hospitals, as ``fedscan run`` does.

    Parameters
    ----------
    study : str or Path, optional
        One of ``Study.names``, or a TOML file.
    cohort : str or Path, optional
        Folder with one folder a hospital; without it, simulated hospitals.
    strategy : str or subclass of Strategy, optional
        A name as ``fedscan strategies`` lists them, ``package.module:Class``, or the class.
    config : str or Path, optional
        File of ``fedscan run --config``; other arguments win over it.
    out : str or Path, optional
        Folder in which the run's own is made; ``runs`` by default.
    sites : int, optional
        Simulated hospitals.
    test_scans : int, optional
        Of each simulated hospital.
    cpus : int, optional
        To use in all; every one by default.
    gpus_per_site : float
        Share of a GPU for each site.
    quiet : bool
        Show no progress; else it goes to standard error, in plain lines where that is no terminal.
    **settings
        Keys of the run config by their last part, as ``rounds=20``, ``local_steps=40``; options of
        the strategy, as ``mu=0.1``.

    Returns
    -------
    Run

    Raises
    ------
    ConfigError, DataContractError
        Before anything is started.
    FedscanError
        The run failed.
    """
    from simulations.config_file import asked_run
    from simulations.federate import federate
    from simulations.launch import Resources
    from simulations.run_commands import write_run_report

    asked, number = asked_run(
        absolute(config),
        overrides(study, strategy, settings),
        cohort=absolute(cohort),
        sites=sites,
        out=absolute(out),
        test_scans=test_scans,
    )
    resources = Resources(number, asked.run.threads, gpus_per_site, cpus)
    made, _ = federate(asked, resources, test_scans=test_scans, quiet=quiet)
    write_run_report(made, files=asked.task == "generation")
    return load_run(made)


def load_run(path: str | Path, *, cohort: str | Path | None = None, device: str = "auto") -> Run:
    """Read a run, or another folder of one trained model, such as ``cells/CELL/all``.

    Parameters
    ----------
    path : str or Path
    cohort : str or Path, optional
        Where the sites' data are, if they are no longer where they were. They are needed only where
        the model is fitted to each site.
    device : {"auto", "cpu", "cuda"}

    Raises
    ------
    ConfigError
        No model is there, or it needs an extension that is not allowed:
        ``fedscan.allow_extensions``.
    """
    from simulations.trained import read_trained

    where = absolute(path)
    assert where is not None
    return Run(read_trained(where, absolute(cohort), device, need_data=False))


class Run:
    """A run and its model; ``fedscan.run`` and ``fedscan.load_run`` return one.

    Attributes
    ----------
    path : Path
        Its folder.
    sites : tuple of str
        Names of its sites, sorted.
    """

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self.path: Path = trained.folder
        self.sites: tuple[str, ...] = trained.sites

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds.

        Raises
        ------
        ConfigError
            There is none, since the run has not ended.
        """
        return read_folder(self.path / SUMMARY)

    @property
    def report(self) -> Path:
        """The report, an HTML file; `fedscan report` draws it again."""
        return self.path / "report.html"

    @property
    def config(self) -> dict[str, bool | int | float | str]:
        """The run's configuration, by key."""
        return self._trained.config.to_flower()

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """All numbers of the run, a row for each round, site and split.

        Returns
        -------
        DataFrame
            ``round`` (from 1), ``site`` (``all``: all sites together), ``split`` (``train``,
            ``val`` or ``test``), ``n`` (images behind the numbers), and a column a metric, NaN
            where it was not measured or not told.

        Raises
        ------
        ConfigError
            There is no log of metrics.
        """
        try:
            rows = pd.DataFrame(map(vars, read_rows(self.path / METRICS)))
        except FileNotFoundError:
            raise ConfigError(f"{self.path}: there is no {METRICS} in it") from None
        keys = ["round", "site", "split"]
        if rows.empty:
            return pd.DataFrame(columns=[*keys, "n"])
        table = rows.pivot_table("value", keys, "name", aggfunc="last", sort=False, dropna=False)
        table = table.dropna(how="all")  # ``dropna`` makes every combination of keys
        table.insert(0, "n", rows.groupby(keys)["n"].max())
        return table.reset_index().rename_axis(columns=None)

    @cached_property
    def model(self) -> nn.Module:
        """The released model with its weights, in evaluation mode; of generators the generator.

        Raises
        ------
        ConfigError
            The run has a model for each site: ``model_of``.
        """
        if self._trained.task_name == "generation":
            return self._trained.generator()
        return self._trained.classifier()

    def model_of(self, site: str) -> nn.Module:
        """Return the classifier as it was tested at a site, in evaluation mode.

        Raises
        ------
        ConfigError
            There is no such site, or its model or data are not on this machine.
        """
        return self._trained.classifier(site)

    def predict(self, images: Images, *, site: str = "") -> pd.DataFrame:
        """Let the classifier tell the class of images, each read as in training.

        Parameters
        ----------
        images : path, paths, array or arrays
            Files; folders of files; a site's folder as in a cohort; or, of pictures, arrays (H, W)
            or (H, W, 3) of uint8 or uint16.
        site : str
            Of the run: by its own model, or its own adaptation.

        Returns
        -------
        DataFrame
            One row for each image: ``image`` (of an array its number), ``predicted``,
            ``probability.CLASS`` of each class, ``problem``, why one could not be
            used, and others: ``fedscan predict``.

        Raises
        ------
        ConfigError, DataContractError
            There is no such image or site; the model is a generator.
        """
        from simulations.in_use import temporary_folder
        from simulations.predict import predict

        arrays, paths = _parted(images)
        if not arrays:
            return predict(self._trained, paths, site=site)
        with temporary_folder() as folder:
            files = self._written(arrays, folder)
            table = predict(self._trained, files, site=site)
        return table.assign(image=range(len(files)))

    def _written(self, arrays: Sequence[NDArray[Any]], folder: Path) -> list[Path]:
        """Write arrays as picture files, so that there is one way of reading pictures."""
        from PIL import Image

        if self._trained.study.images.storage != "table":
            raise ConfigError(
                f"study '{self._trained.study.name}' is of files in storage "
                f"'{self._trained.study.images.storage}', which tell more than an array: give paths"
            )
        paths = [folder / f"{number:06d}.png" for number in range(len(arrays))]
        for array, path in zip(arrays, paths, strict=True):
            colour = array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
            grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
            if not (colour or grey):
                raise ConfigError(
                    f"an array of shape {array.shape} and type {array.dtype}: accepted is (H, W) "
                    "of uint8 or uint16, or (H, W, 3) of uint8"
                )
            Image.fromarray(array).save(path)
        return paths

    def plot(self, metric: str = "", *, split: str = "val") -> Figure:
        """Draw a metric over the rounds, a line a site.

        Parameters
        ----------
        metric : str
            A column of :attr:``metrics``; by default the task's first, as ``balanced_accuracy``.
        split : {"val", "train"}

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ConfigError
            The run has no such metric.
        """
        from fedscan._plot import over_rounds
        from simulations.measures import judged, measure

        table = self.metrics[self.metrics["split"] == split].drop(columns=["split", "n"])
        known = table.drop(columns=["round", "site"]).dropna(axis=1, how="all").columns
        name = metric or next(
            (m for m in judged(self._trained.task_name).leading if m in known), ""
        )
        if name not in known:
            told = ", ".join(known) or "none"
            raise ConfigError(f"metric '{name}' of split '{split}': there is {told}")
        values = table.pivot_table(name, "round", "site", sort=False)
        return over_rounds(
            values[sorted(values, key=lambda s: (s == WHOLE, s))], measure(name).words
        )


def _parted(images: Images) -> tuple[list[NDArray[Any]], str | Path | list[str | Path]]:
    """Part arrays from paths: one of both is given."""
    if isinstance(images, np.ndarray):
        one = images.ndim == 2 or (images.ndim == 3 and images.shape[2] == 3)
        return [images] if one else list(images), []
    if isinstance(images, str | Path):
        return [], images
    arrays = [one for one in images if isinstance(one, np.ndarray)]
    paths = [one for one in images if not isinstance(one, np.ndarray)]
    if arrays and paths:
        raise ConfigError("images: paths or arrays are accepted, not both together")
    return arrays, paths
