"""Metrics of a run for TensorBoard or MLflow, from the server's log; nothing leaves the machine."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from common.config.run_config import Value
from common.errors import ConfigError
from common.metrics_log import Row

BACKENDS = ("tensorboard", "mlflow")
ENDS = 500  # characters of a parameter's value, MLflow's limit on some stores


class Sink(Protocol):
    """Where numbers go."""

    def write(self, rows: Iterable[Row]) -> None:
        """Write rows, each under its round."""


Opener = Callable[[Path, str, dict[str, Value]], AbstractContextManager[Sink]]


def open_sink(
    backend: str, folder: Path, run: str, config: dict[str, Value]
) -> AbstractContextManager[Sink]:
    """Open a folder of TensorBoard's or MLflow's for a run.

    Parameters
    ----------
    backend : {"tensorboard", "mlflow"}
    folder : Path
        Made if need be; several runs may share it.
    run : str
        Name of the run.
    config : dict
        Its run config, which is written as parameters.

    Raises
    ------
    ConfigError
        The library is not installed.
    """
    module = importlib.import_module(f"simulations.track_{backend}")
    try:
        opener: Opener = module.opened
        importlib.import_module(module.NEEDS)
    except ImportError:
        raise ConfigError(
            f"--to {backend} needs a library that is not installed: "
            f"pip install 'fedscan[{backend}]'"
        ) from None
    return opener(folder, run, {key: _short(value) for key, value in config.items()})


def name_of(row: Row) -> str:
    """Return the name under which a number is shown: split, metric and site."""
    return f"{row.split or 'run'}/{row.name}/{row.site or 'server'}"


def _short(value: Value) -> Value:
    return value[:ENDS] if isinstance(value, str) else value


@contextlib.contextmanager
def follow(sink: Sink, rows: Callable[[], list[Row]]) -> Iterator[Callable[[], None]]:
    """Give a function that hands new rows on, which is called once more at the end."""

    def step() -> None:
        if new := rows():
            sink.write(new)

    try:
        yield step
    finally:
        step()
