"""What sites answer, taken apart: whatever is wrong with it ends the run in that site's name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

from flwr.app import Message, MetricRecord
from torch import Tensor

from common import messages
from common.errors import FedscanError
from common.messages import Failure
from common.tasks import Evaluation, State
from common.transport import decode_update
from server.roll_call import SiteFailure


@dataclass(frozen=True)
class Update:
    """A site's training: scans trained on, numbers, and its whole weights."""

    count: int
    metrics: dict[str, float]
    state: dict[str, Tensor]


def read_update(reply: Message, site: str, phase: str, shared: State, encoding: str) -> Update:
    """Read the answer to a training order.

    Parameters
    ----------
    reply : Message
    site, phase : str
        For the words of a refusal.
    shared : mapping of str to Tensor
        The server's own weights, which the update is added to.
    encoding : str

    Raises
    ------
    SiteFailure
    """
    with _blamed(site, phase):
        metrics = _numbers(reply.content[messages.METRICS])
        count = _count(metrics)
        update = messages.unpack(reply.content[messages.ARRAYS])
        return Update(count, metrics, decode_update(update, shared, encoding))


def read_evaluation(reply: Message, site: str, phase: str) -> Evaluation:
    """Read the answer to an evaluation order.

    Raises
    ------
    SiteFailure
    """
    with _blamed(site, phase):
        metrics = _numbers(reply.content[messages.METRICS])
        _count(metrics)
        return messages.evaluation_in(reply)


@contextlib.contextmanager
def _blamed(site: str, phase: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError, TypeError, RuntimeError, MemoryError, FedscanError) as error:
        why = str(error) if isinstance(error, FedscanError) else f"{type(error).__name__}: {error}"
        raise SiteFailure(Failure(site, phase, f"its answer is not usable: {why}", "")) from error


def _numbers(record: MetricRecord) -> dict[str, float]:
    """Metrics, each a single number; NaN is one, where a measure is not defined."""
    for name, value in record.items():
        if not isinstance(value, int | float):
            raise ValueError(f"metric {name[:40]!r} is not a number")
    return dict(record)


def _count(metrics: dict[str, float]) -> int:
    count = metrics.pop(messages.WEIGHT)
    if not (math.isfinite(count) and count >= 1 and count == int(count)):
        raise ValueError(f"{messages.WEIGHT} = {count}: accepted is a whole number above 0")
    return int(count)
