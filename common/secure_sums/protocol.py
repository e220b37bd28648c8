"""What all parties of a secure sum agree on, and the form of what they send.

The protocol is that of Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving
Machine Learning", CCS, pages 1175-1191, with its protection against a server that deviates from
it. Site u of n adds to its vector x_u a mask of its own and one with each other site::

    y_u = x_u + expand(b_u) + Σ_{v > u} expand(s_uv) - Σ_{v < u} expand(s_uv)      (mod 2^k)

In the sum over all sites the masks of pairs cancel. Since some sites fail on the way, every site
shares b_u, and the private key of which its s_uv follow, so that any t sites can tell them:

===  =========  ==========================================  ====================================
     stage      a site sends                                the server sends
===  =========  ==========================================  ====================================
0    advertise  two public keys, signed                     -
1    share      for each site, encrypted, a share of b_u    all public keys
                and of the private key of its masks
2    mask       y_u                                         to each site its encrypted shares
3    agree      its signature of the list of survivors      who has sent y_u: the survivors
4    unmask     of survivors its shares of b_u, of others   t or more signatures of the one list
                those of the private key
===  =========  ==========================================  ====================================

Of one site either b_u or the private key may become known: with both, y_u could be unmasked. The
signatures make all sites act on one list of survivors: of two lists with t signatures each, one
honest site would have signed both, when 2 t > n + c, with c sites that collude with the server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from common.errors import ConfigError, SecureSumError
from common.secure_sums.fixed_point import UNSIGNED, Bits

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Answer = TypeVar("Answer")
STAGES = ("advertise", "share", "mask", "agree", "unmask")
OVER = len(STAGES)  # the turn of a party that is through, or has refused
MOST_BYTES = 64 * 2**20  # of a message other than a vector


def majority(sites: int, colluding: int = 0) -> int:
    """Return the least threshold of which two lists of survivors cannot both be signed."""
    return (sites + colluding) // 2 + 1


@dataclass(frozen=True)
class Plan:
    """What is summed, by whom.

    Parameters
    ----------
    run : str
        Name of the run.
    round : int
    content : str
        What is summed, as "weights" with :attr:`~common.secure_sums.fixed_point.Layout.digest`; a
        site finds it out by itself. Run, round and content name a sum, which a site helps to unmask
        once: the difference of two sums over other survivors would be a site's vector.
    sites : tuple of str
        All that are asked, sorted.
    length : int
        Numbers in a vector.
    threshold : int
        How many sites must be there to the end, t. The sum is over t of them or more.
    colluding : int
        How many sites may collude with the server, c, without learning of others more than the sum.
    bits : {32, 64}
        Of a number.

    Raises
    ------
    ConfigError
        With these sites and this threshold the server could learn more than the sum.
    """

    run: str
    round: int
    content: str
    sites: tuple[str, ...]
    length: int
    threshold: int
    colluding: int = 0
    bits: Bits = 32

    def __post_init__(self) -> None:
        if self.sites != tuple(sorted(set(self.sites))):
            raise ConfigError("secure sums: the sites are to be sorted, each once")
        n, t, c = len(self.sites), self.threshold, self.colluding
        if c < 0 or self.length < 1 or self.bits not in UNSIGNED:
            raise ConfigError("secure sums: colluding >= 0, length >= 1, bits 32 or 64")
        if not n >= t >= max(majority(n, c), 2 + c):
            raise ConfigError(
                f"secure sums: a threshold of {t} with {n} sites, of which {c} may collude with "
                f"the server: accepted is from {max(majority(n, c), 2 + c)} to {n}, so that no two "
                "lists of survivors can be unmasked, and a sum is over two honest sites or more"
            )

    @property
    def name(self) -> str:
        """Which sum this is."""
        return f"{self.run}, round {self.round}, {self.content}"

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return digest(asdict(self))

    def point(self, site: str) -> int:
        """Return where a site's shares are evaluated."""
        return 1 + self.sites.index(site)


def digest(content: object) -> str:
    """Return the SHA-256 of what JSON can hold, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def statement(kind: str, context: str, content: object) -> bytes:
    """Return what is signed: what it is, in which context, and the digest of its content."""
    return f"fedscan secure sums 1\0{kind}\0{context}\0{digest(content)}".encode()


def write(kind: str, context: str, content: object) -> bytes:
    """Compose a message that holds no vector."""
    return json.dumps({"kind": kind, "context": context, "content": content}).encode()


def read(message: bytes, kind: str, context: str) -> Any:
    """Read what :func:`write` composed.

    Raises
    ------
    SecureSumError
        It cannot be read, is of another kind, or of another run, round or list of keys.
    """
    if len(message) > MOST_BYTES:
        raise SecureSumError(f"a message of {kind} of more than {MOST_BYTES:,} bytes")
    try:
        told = json.loads(message, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise SecureSumError(f"a message of {kind} that cannot be read") from error
    if not isinstance(told, dict) or told.keys() != {"kind", "context", "content"}:
        raise SecureSumError(f"a message of {kind} of another form")
    if told["kind"] != kind or told["context"] != context:
        raise SecureSumError(
            f"a message that is not of this run, round and list of keys, or not of {kind}"
        )
    return told["content"]


def write_vector(context: str, values: NDArray[np.unsignedinteger[Any]]) -> bytes:
    """Compose the message that holds a masked vector."""
    from safetensors.numpy import save

    return save({context: values})


def read_vector(message: bytes, context: str, plan: Plan) -> NDArray[np.unsignedinteger[Any]]:
    """Read what :func:`write_vector` composed.

    Raises
    ------
    SecureSumError
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(message)
    except (SafetensorError, KeyError, ValueError) as error:
        raise SecureSumError("a masked vector that cannot be read") from error
    values = found.get(context)
    form = (plan.length,), np.dtype(UNSIGNED[plan.bits])
    if len(found) != 1 or values is None or (values.shape, values.dtype) != form:
        raise SecureSumError("a masked vector of another run, round, list of keys, or form")
    return values


def named(content: object, allowed: Collection[str], least: int) -> dict[str, Any]:
    """Return a mapping by site, if it is one, and of enough sites.

    Raises
    ------
    SecureSumError
    """
    if not isinstance(content, dict) or not content.keys() <= set(allowed):
        raise SecureSumError("an answer of a site that does not take part, or had left before")
    if len(content) < least:
        raise SecureSumError(f"{len(content)} sites are left, and {least} are needed")
    return content


def unhex(text: object, length: int) -> bytes:
    """Read so many bytes.

    Raises
    ------
    SecureSumError
    """
    try:
        found = bytes.fromhex(str(text))
    except ValueError as error:
        raise SecureSumError("bytes that cannot be read") from error
    if len(found) != length:
        raise SecureSumError("bytes of another length")
    return found


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that is there twice")
    return found


def stage(name: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Make a method one that is called once, in its turn; whoever refuses, refuses for good."""
    turn = STAGES.index(name)

    def decorate(method: Callable[..., Answer]) -> Callable[..., Answer]:
        @wraps(method)
        def once(self: Any, *arguments: Any) -> Answer:
            if self.turn != turn:
                raise SecureSumError(f"'{name}' is asked for a second time, or out of turn")
            self.turn = OVER
            answer = method(self, *arguments)
            self.turn = turn + 1
            return answer

        return once

    return decorate


def shares_of(
    content: object, expected: Mapping[str, Collection[str]], length: int
) -> dict[str, dict[str, bytes]]:
    """Read the shares that a site tells at the end: of exactly the sites of which they are needed.

    Raises
    ------
    SecureSumError
    """
    if not isinstance(content, dict) or content.keys() != expected.keys():
        raise SecureSumError("shares of another form")
    found = {}
    for kind, sites in expected.items():
        told = named(content[kind], sites, len(sites))
        found[kind] = {site: unhex(one, length) for site, one in told.items()}
    return found
