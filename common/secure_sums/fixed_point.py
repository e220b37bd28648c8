"""Real numbers as whole ones modulo 2^k, so that sums over sites wrap around and masks cancel.

A number x of at most B in absolute value becomes round(x / s) for a step s. A sum over n sites is
decoded rightly as long as it stays within (-2^(k-1), 2^(k-1)), so s is chosen such that n·B/s does:
no accepted input can overflow. The step is a power of two, so that division by it is exact, and the
total is kept within 2^53, so that float64 holds it: the only error is that of rounding, at most s/2
a site and n·s/2 for the sum.

What exceeds its bound is refused, never clipped: a clipped sum is another one than the plain sum,
and nobody would see it. Whoever wants clipping does it before, where it can be stated
(:mod:`common.clipping`: an update of norm C has no element above C).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from common.errors import ConfigError, SecureSumError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Bits = Literal[32, 64]
UNSIGNED: dict[int, str] = {32: "<u4", 64: "<u8"}  # the same bytes on every machine
SIGNED: dict[int, str] = {32: "<i4", 64: "<i8"}
MOST_EXACT = 2**53  # whole numbers up to here are exact in float64
BOUNDS = (1e-30, 1e30)


def largest_total(bits: Bits) -> int:
    """Return the largest absolute value that a sum may have, in steps."""
    return min(2 ** (bits - 1) - 1, MOST_EXACT)


@dataclass(frozen=True)
class FixedPoint:
    """Real numbers of a public bound as whole multiples of a step, modulo 2^bits.

    Parameters
    ----------
    bound : float
        Largest absolute value of one site's number. Public: it is the same at all sites, and says
        nothing of a site's own numbers.
    sites : int
        At most how many are summed.
    bits : {32, 64}

    Raises
    ------
    ConfigError
        The bound is not usable, or so many sites leave no step.
    """

    bound: float
    sites: int
    bits: Bits = 32

    def __post_init__(self) -> None:
        if self.bits not in UNSIGNED:
            raise ConfigError(f"secure sums: bits = {self.bits}: accepted is 32 or 64")
        if not BOUNDS[0] <= self.bound <= BOUNDS[1]:
            raise ConfigError(
                f"secure sums: a bound of {self.bound:g}: accepted is from {BOUNDS[0]:g} to "
                f"{BOUNDS[1]:g}"
            )
        if not 1 <= self.sites <= 2**16:
            raise ConfigError(f"secure sums: {self.sites} sites: accepted is from 1 to {2**16}")

    @property
    def step(self) -> float:
        """The smallest power of two with which no sum overflows."""
        mantissa, exponent = math.frexp(self.bound / (largest_total(self.bits) // self.sites))
        return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)

    @property
    def error(self) -> float:
        """Largest absolute error of a sum over all sites."""
        return self.sites * self.step / 2

    def require(self, values: NDArray[np.float64]) -> None:
        """Refuse numbers beyond the bound, and what is no number.

        Raises
        ------
        SecureSumError
        """
        if not (np.abs(values) <= self.bound).all():
            raise SecureSumError(
                f"a number that is to be summed is beyond the public bound of {self.bound:g}, or "
                "not finite. Clip what is sent, or agree on another bound"
            )

    def encode(self, values: ArrayLike) -> NDArray[np.unsignedinteger[Any]]:
        """Return numbers as unsigned ones.

        Raises
        ------
        SecureSumError
            One is not finite, or beyond the bound.
        """
        numbers = np.asarray(values, dtype=np.float64)
        self.require(numbers)
        whole = np.rint(numbers / self.step).astype(np.int64)
        return whole.astype(UNSIGNED[self.bits])  # modulo 2^bits

    def decode(self, total: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.float64]:
        """Return a sum as real numbers; exact, as it was encoded."""
        signed = np.ascontiguousarray(total, UNSIGNED[self.bits]).view(SIGNED[self.bits])
        return signed.astype(np.float64) * self.step


@dataclass(frozen=True)
class Sums:
    """Sums over sites.

    Parameters
    ----------
    weight : int
        Σ w_i.
    arrays : dict of str to ndarray of float64
        Σ w_i·x_i, by name.
    """

    weight: int
    arrays: dict[str, NDArray[np.float64]]

    def means(self) -> dict[str, NDArray[np.float64]]:
        """Return Σ w_i·x_i / Σ w_i.

        Raises
        ------
        SecureSumError
            All weights are 0.
        """
        if not self.weight:
            raise SecureSumError("a mean over sites whose weights are all 0")
        return {name: total / self.weight for name, total in self.arrays.items()}


@dataclass(frozen=True)
class Layout:
    """Named arrays and a weight as one vector, in the order in which they are declared.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
    bounds : mapping of str to float
        Of each array, the largest absolute value of its elements, before they are weighted.
    sites : int
        At most how many are summed.
    most_weight : int
        The largest weight, such as a number of images.
    bits : {32, 64}

    Raises
    ------
    ConfigError
    """

    shapes: Mapping[str, tuple[int, ...]]
    bounds: Mapping[str, float]
    sites: int
    most_weight: int = 1
    bits: Bits = 32

    def __post_init__(self) -> None:
        if self.shapes.keys() != self.bounds.keys():
            raise ConfigError("secure sums: each array needs one bound")
        for name in self.bounds:
            self.code(name)
        if not 1 <= self.most_weight <= self.most_weight * self.sites <= largest_total(self.bits):
            raise ConfigError(
                f"secure sums: weights up to {self.most_weight} of {self.sites} sites do not fit "
                f"into {self.bits} bits"
            )

    @property
    def length(self) -> int:
        """How many numbers the vector has: those of all arrays, and the weight."""
        return 1 + sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def digest(self) -> str:
        """SHA-256 of the declaration: two sites with the same one mean the same by a number."""
        told = {**asdict(self), "shapes": list(self.shapes.items())}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def code(self, name: str) -> FixedPoint:
        """Return how an array is encoded, weighted."""
        return FixedPoint(self.bounds[name] * self.most_weight, self.sites, self.bits)

    def encode(
        self, arrays: Mapping[str, ArrayLike], weight: int = 1
    ) -> NDArray[np.unsignedinteger[Any]]:
        """Return the weight, and the arrays times the weight.

        The product is taken in float64: exact for float32 and weights up to 2^29.

        Raises
        ------
        SecureSumError
            An array has another shape than was declared, a number is beyond its bound, or the
            weight is no whole number from 0 to the largest.
        """
        if weight != int(weight) or not 0 <= weight <= self.most_weight:
            raise SecureSumError(
                f"the weight is not a whole number from 0 to {self.most_weight}, the largest that "
                "was agreed"
            )
        if arrays.keys() != self.shapes.keys():
            raise SecureSumError("the arrays are not those that were declared")
        parts = [np.array([weight]).astype(UNSIGNED[self.bits])]
        for name, shape in self.shapes.items():
            values = np.asarray(arrays[name], dtype=np.float64)
            if values.shape != tuple(shape):
                raise SecureSumError(f"array '{name}' has another shape than was declared")
            FixedPoint(self.bounds[name], self.sites, self.bits).require(values)
            parts.append(self.code(name).encode(values * weight).ravel())
        return np.concatenate(parts)

    def decode(self, total: NDArray[np.unsignedinteger[Any]]) -> Sums:
        """Take a sum of vectors apart."""
        weight, arrays, begin = int(total[0]), {}, 1
        for name, shape in self.shapes.items():
            end = begin + math.prod(shape)
            arrays[name] = self.code(name).decode(total[begin:end]).reshape(shape)
            begin = end
        return Sums(weight, arrays)

    def error(self, name: str) -> float:
        """Return the largest absolute error of Σ w_i·x_i; that of the mean is this by Σ w_i."""
        return self.code(name).error
