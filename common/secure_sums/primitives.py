"""The cryptographic primitives of secure sums, all from ``cryptography``.

X25519 agrees on a secret of two sites, HKDF-SHA256 derives keys from it, AES-256 in counter mode
expands a key to a mask, AES-256-GCM encrypts what one site sends another through the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import SecureSumError
from common.secure_sums.fixed_point import UNSIGNED, Bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEY, NONCE = 32, 12  # bytes
PROTOCOL = "fedscan secure sums 1"


def public_of(secret: bytes) -> bytes:
    """Return the public key of an X25519 private key."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def derive(secret: bytes, purpose: str, context: str, *names: str) -> bytes:
    """Derive a key that is good for one purpose in one context between these sites."""
    info = "\0".join((PROTOCOL, purpose, context, *names)).encode()
    return HKDF(SHA256(), KEY, salt=None, info=info).derive(secret)


def agree(secret: bytes, public: bytes) -> bytes:
    """Return what the holders of two X25519 keys share.

    Raises
    ------
    SecureSumError
        The public key is one with which everybody would know it.
    """
    try:
        other = X25519PublicKey.from_public_bytes(public)
        return X25519PrivateKey.from_private_bytes(secret).exchange(other)
    except ValueError as error:
        raise SecureSumError("a public key that is not usable") from error


def pair_seed(secret: bytes, public: bytes, context: str, one: str, other: str) -> bytes:
    """Return the seed of the mask that two sites share; the same at both."""
    return derive(agree(secret, public), "pair mask", context, *sorted((one, other)))


def self_seed(secret: bytes, context: str, site: str) -> bytes:
    """Return the seed of the mask that a site has for itself."""
    return derive(secret, "self mask", context, site)


def expand(seed: bytes, length: int, bits: Bits) -> NDArray[np.unsignedinteger[Any]]:
    """Expand a seed to a mask, which no one without the seed can tell from uniform numbers."""
    stream = Cipher(AES(seed), CTR(bytes(16))).encryptor()  # a seed makes one stream, once
    return np.frombuffer(stream.update(bytes(length * bits // 8)), UNSIGNED[bits])


def add_pair_mask(
    values: NDArray[np.unsignedinteger[Any]], mask: NDArray[np.unsignedinteger[Any]], up: bool
) -> None:
    """Add the mask of a pair in place at the site whose name comes first, else subtract it."""
    (np.add if up else np.subtract)(values, mask, out=values)


def seal(key: bytes, text: bytes, nonce: bytes) -> bytes:
    """Encrypt for a site; the nonce goes before."""
    return nonce + AESGCM(key).encrypt(nonce, text, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Decrypt what :func:`seal` made.

    Raises
    ------
    SecureSumError
        It was made with another key, for another run, round or list of keys, or was changed.
    """
    try:
        return AESGCM(key).decrypt(sealed[:NONCE], sealed[NONCE:], None)
    except (InvalidTag, ValueError) as error:
        raise SecureSumError("encrypted shares that cannot be decrypted") from error
