"""A site's part in a secure sum: five answers, each given once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.exceptions import InvalidSignature

from common.errors import SecureSumError
from common.secure_sums.fixed_point import UNSIGNED
from common.secure_sums.primitives import (
    KEY,
    NONCE,
    add_pair_mask,
    agree,
    derive,
    expand,
    pair_seed,
    public_of,
    seal,
    self_seed,
    unseal,
)
from common.secure_sums.protocol import (
    Plan,
    digest,
    named,
    read,
    stage,
    statement,
    unhex,
    write,
    write_vector,
)
from common.secure_sums.shamir import SHARE, share

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from numpy.typing import NDArray

SIGNATURE = 64  # bytes
SEALED = NONCE + 2 * SHARE + 16  # bytes: of two shares, with AES-GCM's tag
FEWEST = 3  # sites in a sum: of two, each knows the other's part when it sees the sum
SECRETS = ("masks", "shares", "seed")
KEPT = ("turn", "roster", "context", "held", "survivors")


class Site:
    """One site in one sum.

    Parameters
    ----------
    name : str
    plan : Plan
        As the server tells it.
    key : Ed25519PrivateKey
        The site's own, for long.
    known : mapping of str to Ed25519PublicKey
        Of each site the public key, as this site was given it by its owner, never by the server.
    spent : set of str
        Names of the sums that this site has helped to unmask; one is added before the shares leave.
        Whoever keeps a site across processes writes it, and :meth:`save`, before an answer leaves.
    fewest : int
        The site takes part in sums over so many sites or more.
    random : callable
        Returns so many random bytes.

    Raises
    ------
    SecureSumError
        The site does not take part in such a sum, or has done so before.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        key: Ed25519PrivateKey,
        known: Mapping[str, Ed25519PublicKey],
        spent: set[str],
        *,
        fewest: int = FEWEST,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if name not in plan.sites:
            raise SecureSumError("the sum is not over this site")
        if unknown := [site for site in plan.sites if site not in known]:
            raise SecureSumError(
                f"no key is known of {', '.join(unknown)}: their owners' keys come from the owners"
            )
        if known[name] != key.public_key():
            raise SecureSumError("this site's own key is another one in its list of keys")
        if plan.threshold < fewest:
            raise SecureSumError(
                f"the sum may be over {plan.threshold} sites; this site takes part in sums over "
                f"{fewest} or more"
            )
        if plan.name in spent:
            raise SecureSumError("this sum was unmasked before: two would tell a difference")
        self.name, self.plan, self.spent = name, plan, spent
        self._key, self._known, self._random = key, known, random
        self.turn, self.context = 0, ""
        self.masks, self.shares, self.seed = random(KEY), random(KEY), random(KEY)
        self.roster: dict[str, list[str]] = {}  # of each site its two public keys and signature
        self.held: dict[str, list[str]] = {}  # of each site the shares of its seed and of its key
        self.survivors: list[str] = []

    def save(self) -> bytes:
        """Return what another process goes on from; it holds secrets."""
        own = {name: getattr(self, name) for name in KEPT}
        own |= {name: getattr(self, name).hex() for name in SECRETS}
        return json.dumps({"plan": self.plan.digest, "own": own}).encode()

    def load(self, saved: bytes) -> Site:
        """Go on from what :meth:`save` returned.

        Raises
        ------
        SecureSumError
            It was in a sum by another plan, such as one of a lower threshold.
        """
        kept = json.loads(saved)
        if kept["plan"] != self.plan.digest:
            raise SecureSumError("the plan of the sum has changed since it began")
        for name, value in kept["own"].items():
            setattr(self, name, bytes.fromhex(value) if name in SECRETS else value)
        return self

    @stage("advertise")
    def advertise(self) -> bytes:
        """Return two public keys, signed."""
        keys = [public_of(self.masks).hex(), public_of(self.shares).hex()]
        signed = self._key.sign(statement("keys", self.plan.digest, [self.name, *keys]))
        self.roster = {self.name: [*keys, signed.hex()]}
        return write("keys", self.plan.digest, self.roster[self.name])

    @stage("share")
    def share(self, message: bytes) -> bytes:
        """Check the others' keys; return encrypted shares for each of them.

        Raises
        ------
        SecureSumError
            Of fewer sites than the threshold, a key that its site has not signed for this sum, one
            that is there twice, or another one of this site.
        """
        told = named(read(message, "roster", self.plan.digest), self.plan.sites, self._least)
        if told.get(self.name) != self.roster[self.name]:
            raise SecureSumError("the list of keys holds another key of this site, or none")
        seen = set()
        for site, entry in told.items():
            if not isinstance(entry, list) or len(entry) != 3:
                raise SecureSumError("a list of keys of another form")
            keys, signed = entry[:2], entry[2]
            self._verify(site, signed, statement("keys", self.plan.digest, [site, *keys]))
            seen |= {unhex(key, KEY) for key in keys}
        if len(seen) != 2 * len(told):
            raise SecureSumError("a key that is there twice")
        self.roster, self.context = told, digest([self.plan.digest, told])
        points = {site: self.plan.point(site) for site in told}
        split = [
            share(secret, self.plan.threshold, points.values(), self._random)
            for secret in (self.seed, self.masks)
        ]
        of = {site: [one[points[site]] for one in split] for site in told}
        self.held = {self.name: [one.hex() for one in of.pop(self.name)]}
        sealed = {
            site: seal(self._channel(site, self.name, site), b"".join(two), self._random(NONCE))
            for site, two in of.items()
        }
        return write("shares", self.context, {site: one.hex() for site, one in sealed.items()})

    @stage("mask")
    def mask(self, message: bytes, values: NDArray[np.unsignedinteger[Any]]) -> bytes:
        """Return the site's vector, masked.

        Parameters
        ----------
        message : bytes
            The shares that the others have made for this site.
        values : (length,) ndarray of unsigned integers

        Raises
        ------
        SecureSumError
            The shares are of fewer sites than the threshold, or cannot be decrypted; or the vector
            is not of the plan's form.
        """
        if values.shape != (self.plan.length,) or values.dtype != UNSIGNED[self.plan.bits]:
            raise SecureSumError("a vector of another length or type than is summed")
        others = self.roster.keys() - {self.name}
        told = named(read(message, "shares", self.context), others, self._least - 1)
        for site, sealed in told.items():
            two = unseal(self._channel(site, site, self.name), unhex(sealed, SEALED))
            self.held[site] = [two[:SHARE].hex(), two[SHARE:].hex()]
        masked = values + expand(self_seed(self.seed, self.context, self.name), *self._form)
        for site in told:
            public = unhex(self.roster[site][0], KEY)
            seed = pair_seed(self.masks, public, self.context, self.name, site)
            add_pair_mask(masked, expand(seed, *self._form), self.name < site)
        self.masks = self.seed = b""  # from here on only shares of them are needed
        return write_vector(self.context, masked)

    @stage("agree")
    def agree(self, message: bytes) -> bytes:
        """Sign the list of those whose vectors are to be summed.

        Raises
        ------
        SecureSumError
            It is shorter than the threshold, leaves this site out, or names one of which this site
            holds no shares.
        """
        told = read(message, "survivors", self.context)
        if not isinstance(told, list) or not all(isinstance(site, str) for site in told):
            raise SecureSumError("a list of survivors of another form")
        if told != sorted(set(told)) or self.name not in told:
            raise SecureSumError("a list of survivors without this site, or not sorted")
        named(dict.fromkeys(told), self.held, self._least)
        self.survivors = told
        signed = self._key.sign(statement("survivors", self.context, told))
        return write("signature", self.context, signed.hex())

    @stage("unmask")
    def unmask(self, message: bytes) -> bytes:
        """Tell shares: of survivors those of their own mask, of others those of their key.

        Raises
        ------
        SecureSumError
            Fewer sites than the threshold have signed the list that this site has signed, or the
            sum was unmasked before.
        """
        told = named(read(message, "signatures", self.context), self.survivors, self._least)
        for site, signed in told.items():
            self._verify(site, signed, statement("survivors", self.context, self.survivors))
        if self.plan.name in self.spent:
            raise SecureSumError("this sum was unmasked before: two would tell a difference")
        self.spent.add(self.plan.name)
        seeds = {site: self.held[site][0] for site in self.survivors}
        keys = {site: two[1] for site, two in self.held.items() if site not in seeds}
        self.held, self.shares = {}, b""
        return write("unmasking", self.context, {"seeds": seeds, "keys": keys})

    @property
    def _least(self) -> int:
        return self.plan.threshold

    @property
    def _form(self) -> tuple[int, Any]:
        return self.plan.length, self.plan.bits

    def _channel(self, other: str, sender: str, receiver: str) -> bytes:
        """Return the key by which one site's shares are encrypted for another."""
        shared = agree(self.shares, unhex(self.roster[other][1], KEY))
        return derive(shared, "shares", self.context, sender, receiver)

    def _verify(self, site: str, signed: object, text: bytes) -> None:
        try:
            self._known[site].verify(unhex(signed, SIGNATURE), text)
        except InvalidSignature as error:
            raise SecureSumError(
                f"what site '{site}' is said to have sent is not signed by it"
            ) from error
