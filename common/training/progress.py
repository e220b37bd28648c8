"""Steps of a training that are kept on disk, so that another process can go on within a round.

Between rounds a site keeps its whole state, and a round that was interrupted can begin anew. One
that takes hours should not: its training offers what it goes on from after every step, and once a
minute that is written. On a CPU the result is the same in every bit, as if there had been no
interruption.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.checkpoints import read_snapshot, save_snapshot
from common.errors import FedscanError

if TYPE_CHECKING:
    from torch import Tensor

Parts = dict[str, dict[str, "Tensor"]]  # tensors by part and name

# A child of Flower's logger, so that lines reach its console.
log = logging.getLogger("flwr.fedscan")

SECONDS = 60.0  # from one writing to the next; a shorter round writes nothing


@dataclass
class Progress:
    """How far one training of a round has come.

    Parameters
    ----------
    folder : Path
        Of one round at one site.
    about : mapping of str to str or int
        What decides the round: of any other nothing is taken over.
    number : int
        Which of the round's trainings it is, from 1.
    began : float
        When the round began, by the monotonic clock.
    """

    folder: Path
    about: Mapping[str, str | int]
    number: int = 1
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._written = self.began

    def of(self, number: int) -> Progress:
        """Return the same of another of the round's trainings."""
        return replace(self, number=number)

    def load(self) -> tuple[int, Parts] | None:
        """Return how many steps are done, and what :meth:`offer` was given then.

        None where nothing is kept; nor is anything taken over that is damaged or another round's.
        """
        if not (self.folder / f"{self._name}.json").exists():
            return None
        try:
            about, tensors = read_snapshot(self.folder, self._name)
        except (FedscanError, OSError):
            about, tensors = {}, {}
        steps = about.get("steps")
        if not isinstance(steps, int) or {**about, **self.about} != about:
            log.warning("What is kept within a round is damaged or another's: it begins anew")
            return None
        log.info("The round goes on after step %d", steps)
        parts: Parts = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            # A tensor that was just read is a window on the file, which is soon removed.
            parts.setdefault(part, {})[rest] = tensor.clone()
        return steps, parts

    def offer(
        self,
        steps: int,
        collect: Callable[[], Mapping[str, Mapping[str, Tensor]]],
        *,
        last: bool,
    ) -> None:
        """Write what the training goes on from, if it was long ago that something was written.

        Parameters
        ----------
        steps : int
            That are done.
        collect : callable
            Gives the tensors by part and name; a part's name has no ``/``.
        last : bool
            Whether no step is left. That is written too, if the round takes long, so that this
            training is not done again while the round's next one is interrupted.
        """
        if time.monotonic() - (self.began if last else self._written) < SECONDS:
            return
        tensors = {
            f"{part}/{name}": tensor.detach().to("cpu", copy=True).contiguous()
            for part, found in collect().items()
            for name, tensor in found.items()
        }
        try:
            save_snapshot(self.folder, self._name, tensors, {**self.about, "steps": steps})
        except OSError as error:  # no reason to fail a round: the next may succeed
            log.warning("Step %d of the round could not be kept (%s)", steps, type(error).__name__)
        self._written = time.monotonic()

    @property
    def _name(self) -> str:
        return f"training-{self.number}"
