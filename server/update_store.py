"""Updates of a round that has many sites: a few in memory, the others on the disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from common.files import write_atomically
from common.run_state import Update

MOST_IN_MEMORY = 16


@dataclass(frozen=True)
class StoredUpdate:
    """An update whose weights are read from the disk whenever they are asked for.

    Parameters
    ----------
    count, metrics
        As in :class:`common.run_state.Update`.
    path : Path
    names : tuple of str
        Of the tensors, in their order: safetensors sorts them.
    """

    count: int
    metrics: dict[str, float]
    path: Path
    names: tuple[str, ...]

    @property
    def state(self) -> dict[str, Tensor]:
        """What came, trained."""
        from safetensors.torch import load_file

        found = load_file(self.path)
        return {name: found[name] for name in self.names}


class UpdateStore:
    """Where a server keeps a round's updates until all have come.

    Parameters
    ----------
    folder : Path
        Made when it is needed; removed with :meth:`clear`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def clear(self) -> None:
        """Forget the updates of the round before."""
        self._count = 0
        shutil.rmtree(self._folder, ignore_errors=True)

    def keep(self, update: Update) -> Update | StoredUpdate:
        """Keep an update, and return it or what stands for it."""
        from safetensors.torch import save

        self._count += 1
        if self._count <= MOST_IN_MEMORY:
            return update
        path = self._folder / f"{self._count}.safetensors"
        write_atomically(path, save(update.state))
        return StoredUpdate(update.count, update.metrics, path, tuple(update.state))
