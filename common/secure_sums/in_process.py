"""All parties of a secure sum in one process, for tests, simulations and measurements."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.secure_sums.protocol import STAGES, Plan, majority
from common.secure_sums.server import Server
from common.secure_sums.site import Site

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from common.secure_sums.fixed_point import Bits


@dataclass(frozen=True)
class Exchange:
    """What one site was sent in a stage, and what the server got."""

    stage: str
    site: str
    request: bytes
    answer: bytes
    seconds: float  # that the site took


@dataclass
class Transcript:
    """All that the server saw, and how long it took.

    Parameters
    ----------
    exchanges : list of Exchange
    seconds : dict of str to float
        Of the server, by stage.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def seen(self) -> list[tuple[str, str, bytes]]:
        """Every message that the server got: stage, site, bytes."""
        return [(one.stage, one.site, one.answer) for one in self.exchanges]


def secure_sum(
    inputs: Mapping[str, NDArray[np.unsignedinteger[Any]]],
    dropouts: Mapping[str, str] | None = None,
    *,
    threshold: int = 0,
    colluding: int = 0,
    transcript: Transcript | None = None,
    random: Callable[[str], Callable[[int], bytes]] | None = None,
) -> tuple[NDArray[np.unsignedinteger[Any]], tuple[str, ...]]:
    """Sum vectors modulo 2^32 or 2^64, by their type.

    Parameters
    ----------
    inputs : mapping of str to (length,) ndarray of uint32 or uint64
        By site.
    dropouts : mapping of str to str
        Of a site that fails, the first stage in which it does not answer.
    threshold : int
        0: the least that is safe.
    colluding : int
    transcript : Transcript, optional
        Filled, also where the sum is refused.
    random : callable, optional
        Of a site, what returns so many random bytes.

    Returns
    -------
    total : (length,) ndarray
    survivors : tuple of str
        The sites over which it is: those that have sent a masked vector.

    Raises
    ------
    SecureSumError
        Fewer sites than the threshold are left.
    """
    names = tuple(sorted(inputs))
    first, dropouts = inputs[names[0]], dropouts or {}
    bits: Bits = 32 if first.dtype.itemsize == 4 else 64
    threshold = threshold or max(majority(len(names), colluding), 2 + colluding)
    plan = Plan("in process", 1, "vectors", names, len(first), threshold, colluding, bits)
    own = {name: random(name) if random else os.urandom for name in names}
    keys = {name: Ed25519PrivateKey.from_private_bytes(own[name](32)) for name in names}
    known = {name: key.public_key() for name, key in keys.items()}
    sites = {
        name: Site(name, plan, keys[name], known, set(), fewest=threshold, random=own[name])
        for name in names
    }
    server, log = Server(plan), transcript or Transcript()
    take: list[Callable[[Mapping[str, bytes]], Any]] = [
        *(server.roster, server.forward, server.add, server.signatures, server.total)
    ]
    requests: Any = dict.fromkeys(names, b"")
    for turn, stage in enumerate(STAGES):
        answers = {}
        for name, request in requests.items():
            if name in dropouts and STAGES.index(dropouts[name]) <= turn:
                continue
            began = time.perf_counter()
            answers[name] = _answer(sites[name], stage, request, inputs[name])
            seconds = time.perf_counter() - began
            log.exchanges.append(Exchange(stage, name, request, answers[name], seconds))
        began = time.perf_counter()
        requests = take[turn](answers)
        log.seconds[stage] = time.perf_counter() - began
    return requests, server.survivors


def _answer(site: Site, stage: str, request: bytes, values: NDArray[Any]) -> bytes:
    if stage == "advertise":
        return site.advertise()
    if stage == "mask":
        return site.mask(request, values)
    answer: bytes = getattr(site, stage)(request)
    return answer
