"""TensorBoard: one event file a run, below the folder that ``tensorboard --logdir`` shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.config.run_config import Value
from common.files import make_folder
from common.metrics_log import Row
from simulations.track import name_of

NEEDS = "tensorboard"


@contextlib.contextmanager
def opened(folder: Path, run: str, config: dict[str, Value]) -> Iterator[Events]:
    """Open the run's folder for writing."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(make_folder(folder / run))) as writer:
        lines = "\n".join(f"    {key} = {value}" for key, value in config.items())
        writer.add_text("config", lines)
        yield Events(writer)


class Events:
    """A :class:`simulations.track.Sink`."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, rows: Iterable[Row]) -> None:
        """Write each number under its round."""
        for row in rows:
            self._writer.add_scalar(name_of(row), row.value, row.round)
        self._writer.flush()
