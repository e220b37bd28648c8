"""Secret sharing: any t of n shares tell a secret, and t - 1 tell nothing of it.

The secret is the constant term of a random polynomial of degree t - 1 over the integers modulo a
prime, and a share is its value at a point (Shamir 1979, "How to share a secret", *Commun. ACM*
22:612-613). With t - 1 shares every secret is as likely as before, whatever the computing power.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache

from common.errors import SecureSumError

PRIME = 2**256 + 297  # the least that is above every secret of 32 bytes
SECRET, SHARE = 32, 33  # bytes

Random = Callable[[int], bytes]


def share(
    secret: bytes, threshold: int, points: Collection[int], random: Random
) -> dict[int, bytes]:
    """Split a secret.

    Parameters
    ----------
    secret : bytes
        32 of them.
    threshold : int
        How many shares tell the secret.
    points : collection of int
        Where the polynomial is evaluated, from 1, without repetition.
    random : callable
        Returns so many random bytes: ``os.urandom``.

    Returns
    -------
    dict of int to bytes
        By point, of 33 bytes.

    Raises
    ------
    ValueError
    """
    if len(secret) != SECRET or not 1 <= threshold <= len(points) or min(points) < 1:
        raise ValueError("a secret of 32 bytes, a threshold of at most all points, and points > 0")
    # 64 bytes modulo a number of 33: uniform but for 2^-255.
    higher = [int.from_bytes(random(64), "big") % PRIME for _ in range(threshold - 1)]
    coefficients = [*higher, int.from_bytes(secret, "big")]
    found = {}
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value * point + coefficient) % PRIME
        found[point] = value.to_bytes(SHARE, "big")
    return found


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Put a secret together.

    Parameters
    ----------
    shares : mapping of int to bytes
        By point. Those beyond the threshold must agree with the others.
    threshold : int

    Raises
    ------
    SecureSumError
        Fewer shares than the threshold, or shares of no one secret.
    """
    if len(shares) < threshold:
        raise SecureSumError(f"{len(shares)} shares of a secret that takes {threshold}")
    values = {point: int.from_bytes(one, "big") for point, one in sorted(shares.items())}
    base = tuple(values)[:threshold]

    def at(point: int) -> int:
        return sum(w * values[x] for w, x in zip(_weights(base, point), base, strict=True)) % PRIME

    secret = at(0)
    if secret >= 2 ** (8 * SECRET) or any(at(x) != values[x] for x in tuple(values)[threshold:]):
        raise SecureSumError("shares that do not belong to one secret")
    return secret.to_bytes(SECRET, "big")


@lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Return Lagrange's weights: the same for all secrets that the same sites share."""
    weights = []
    for x in points:
        above = below = 1
        for other in points:
            if other != x:
                above, below = above * (at - other) % PRIME, below * (x - other) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
