"""The server's part in a secure sum: it passes messages on, adds masked vectors, and unmasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from common.errors import SecureSumError
from common.secure_sums.fixed_point import UNSIGNED
from common.secure_sums.primitives import (
    KEY,
    add_pair_mask,
    expand,
    pair_seed,
    public_of,
    self_seed,
)
from common.secure_sums.protocol import (
    OVER,
    Plan,
    digest,
    named,
    read,
    read_vector,
    shares_of,
    stage,
    unhex,
    write,
)
from common.secure_sums.shamir import SHARE, combine

if TYPE_CHECKING:
    from numpy.typing import NDArray

Read = TypeVar("Read")
KEPT = ("turn", "context", "survivors", "unusable", "_roster", "_sharing")


class Server:
    """The server in one sum.

    Each method takes the sites' answers of a stage, by site, and returns what each site is sent
    next. Who is missing among the answers, or has sent what cannot be used, has dropped out.

    Parameters
    ----------
    plan : Plan

    Attributes
    ----------
    survivors : tuple of str
        The sites over which the sum is.
    unusable : dict of str to str
        Sites that have sent what cannot be used, and why.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.turn, self.context = plan, 0, ""
        self.survivors: tuple[str, ...] = ()
        self.unusable: dict[str, str] = {}
        self._roster: dict[str, list[str]] = {}
        self._sharing: tuple[str, ...] = ()
        self._masked = np.zeros(plan.length, UNSIGNED[plan.bits])

    def take(self, answers: Mapping[str, bytes]) -> Any:
        """Take the answers of the stage whose turn it is; return what its method returns."""
        takes = (self.roster, self.forward, self.add, self.signatures, self.total)
        if self.turn == OVER:
            raise SecureSumError("this sum is over")
        return takes[self.turn](answers)

    def save(self) -> bytes:
        """Return what another process goes on from: masked vectors in sum, or the total."""
        from safetensors.numpy import save

        kept = {name: getattr(self, name) for name in KEPT}
        return save({"masked": self._masked}, {"sum": json.dumps([asdict(self.plan), kept])})

    @classmethod
    def load(cls, saved: bytes) -> Server:
        """Go on from what :meth:`save` returned; a sum that is over is :attr:`sum`."""
        from safetensors.numpy import load

        header = json.loads(saved[8 : 8 + int.from_bytes(saved[:8], "little")])
        plan, kept = json.loads(header["__metadata__"]["sum"])
        server = cls(Plan(**{**plan, "sites": tuple(plan["sites"])}))
        for name, value in kept.items():
            setattr(server, name, tuple(value) if isinstance(value, list) else value)
        server._masked = load(saved)["masked"]
        return server

    @property
    def sum(self) -> NDArray[np.unsignedinteger[Any]]:
        """The sum of the survivors' vectors, once it is unmasked; before, what is masked."""
        return self._masked

    @stage("advertise")
    def roster(self, answers: Mapping[str, bytes]) -> dict[str, bytes]:
        """Take public keys; return the list of all of them, for each of these sites.

        Raises
        ------
        SecureSumError
            Of this and the next methods: fewer sites than the threshold are left.
        """

        def entry(message: bytes) -> list[str]:
            told = read(message, "keys", self.plan.digest)
            if not isinstance(told, list) or len(told) != 3:
                raise SecureSumError("keys of another form")
            return [str(one) for one in told]

        self._roster = dict(self._usable(answers, self.plan.sites, entry))
        self.context = digest([self.plan.digest, self._roster])
        message = write("roster", self.plan.digest, self._require(self._roster))
        return dict.fromkeys(self._roster, message)

    @stage("share")
    def forward(self, answers: Mapping[str, bytes]) -> dict[str, bytes]:
        """Take encrypted shares; return to each site those that are for it."""

        def shares(message: bytes) -> dict[str, str]:
            return named(read(message, "shares", self.context), self._roster, len(self._roster) - 1)

        made = self._require(dict(self._usable(answers, self._roster, shares)))
        self._sharing = tuple(sorted(made))
        return {
            site: write(
                "shares", self.context, {s: one[site] for s, one in made.items() if s != site}
            )
            for site in made
        }

    @stage("mask")
    def add(self, answers: Mapping[str, bytes]) -> dict[str, bytes]:
        """Take masked vectors, one in memory at a time; return the list of whose there are."""
        arrived = []
        vectors = self._usable(
            answers, self._sharing, lambda one: read_vector(one, self.context, self.plan)
        )
        for site, vector in vectors:
            self._masked += vector
            arrived.append(site)
        self.survivors = tuple(sorted(self._require(dict.fromkeys(arrived))))
        message = write("survivors", self.context, self.survivors)
        return dict.fromkeys(self.survivors, message)

    @stage("agree")
    def signatures(self, answers: Mapping[str, bytes]) -> dict[str, bytes]:
        """Take signatures of that list; return all of them, for each of these sites."""

        def signature(message: bytes) -> str:
            return str(read(message, "signature", self.context))

        signed = self._require(dict(self._usable(answers, self.survivors, signature)))
        return dict.fromkeys(signed, write("signatures", self.context, signed))

    @stage("unmask")
    def total(self, answers: Mapping[str, bytes]) -> NDArray[np.unsignedinteger[Any]]:
        """Take shares; return the sum of the survivors' vectors.

        Raises
        ------
        SecureSumError
            Fewer sites than the threshold have told theirs, or these are not of one secret.
        """
        plan, left = self.plan, [s for s in self._sharing if s not in self.survivors]
        expected = {"seeds": self.survivors, "keys": left}

        def shares(message: bytes) -> dict[str, dict[str, bytes]]:
            return shares_of(read(message, "unmasking", self.context), expected, SHARE)

        told = self._require(dict(self._usable(answers, self.survivors, shares)))

        def secret(kind: str, site: str) -> bytes:
            shares = {plan.point(who): one[kind][site] for who, one in told.items()}
            return combine(shares, plan.threshold)

        keys = {site: secret("keys", site) for site in left}
        for site, key in keys.items():
            if public_of(key) != unhex(self._roster[site][0], KEY):
                raise SecureSumError(f"shares that do not tell the key of site '{site}'")
        for site in self.survivors:
            seed = self_seed(secret("seeds", site), self.context, site)
            self._masked -= expand(seed, plan.length, plan.bits)
            public = unhex(self._roster[site][0], KEY)
            for gone, key in keys.items():
                pair = pair_seed(key, public, self.context, site, gone)
                # What the survivor has added is taken away again.
                add_pair_mask(self._masked, expand(pair, plan.length, plan.bits), gone < site)
        return self._masked

    def _usable(
        self, answers: Mapping[str, bytes], sites: Iterable[str], read: Callable[[bytes], Read]
    ) -> Iterable[tuple[str, Read]]:
        """Yield what can be read of answers of sites that are still there, in order of name."""
        for site in sorted(set(sites) & answers.keys()):
            try:
                yield site, read(answers[site])
            except SecureSumError as error:
                self.unusable[site] = error.public

    def _require(self, left: dict[str, Read]) -> dict[str, Read]:
        if len(left) < self.plan.threshold:
            raise SecureSumError(
                f"{len(left)} of {len(self.plan.sites)} sites are left, and a sum takes "
                f"{self.plan.threshold}"
            )
        return left
