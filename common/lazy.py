"""A mapping whose values are made when they are asked for, and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

Key, Value = TypeVar("Key"), TypeVar("Value")


class Lazy(Mapping[Key, Value], Generic[Key, Value]):
    """Values of some keys, each anew whenever it is asked for.

    So what is gone through once, such as the updates of hundreds of sites, is never in memory
    together.

    Parameters
    ----------
    keys : mapping
        Its keys, as they are at the time.
    make : callable
        Given a key, returns the value.
    """

    def __init__(self, keys: Mapping[Key, object], make: Callable[[Key], Value]) -> None:
        self._keys, self._make = keys, make

    def __getitem__(self, key: Key) -> Value:
        if key not in self._keys:
            raise KeyError(key)
        return self._make(key)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
