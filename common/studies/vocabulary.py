"""Closed lists of values, and the spellings under which hospitals' tables hold them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

MOST_CATEGORIES = 100
MOST_CHARACTERS = 100  # of a name or spelling
MOST_COLUMNS = 16  # that a study lists

ACCEPTED = (
    f"2 to {MOST_CATEGORIES} names in a list, or a table of names with a list of spellings each, "
    'as in { none = ["0", "keine"], mild = ["1"] }'
)


@dataclass(frozen=True)
class Category:
    """A value that a column may hold.

    Parameters
    ----------
    name : str
    spellings : tuple of str
        What tables write for it besides the name.
    """

    name: str
    spellings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """Values that a column may hold, in order: the first has index 0.

    Parameters
    ----------
    categories : tuple of Category
        No spelling belongs to two of them.
    """

    categories: tuple[Category, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(one.name for one in self.categories)

    def index(self, text: str) -> int | None:
        """Index of what a cell holds, whatever its case and the white space around it.

        A table saved by way of floating point holds 1.0 where the study says 1.

        Returns
        -------
        int or None
            None for an unknown spelling.
        """
        key = normalise(text)
        return self._indices.get(key, self._indices.get(key.removesuffix(".0")))

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {
            normalise(text): index
            for index, one in enumerate(self.categories)
            for text in (one.name, *one.spellings)
        }


def normalise(text: str) -> str:
    """Text without case, outer white space and the two ways to encode an accent."""
    return unicodedata.normalize("NFC", text.strip().casefold())


def read_vocabulary(value: object) -> Vocabulary:
    """Vocabulary from a list of names, or a table of names with their spellings.

    Parameters
    ----------
    value : list of (str or int), or mapping of str to such a list
        As TOML gives it.

    Raises
    ------
    ValueError
        Another type, too few or too many names, or a spelling that means two of them.
    """
    if isinstance(value, Vocabulary):
        return value
    if isinstance(value, Mapping):
        categories = [Category(_text(name), _texts(ways)) for name, ways in value.items()]
    else:
        categories = [Category(name) for name in _texts(value)]
    if not 2 <= len(categories) <= MOST_CATEGORIES:
        raise ValueError(f"{len(categories)} names")
    meaning: dict[str, str] = {}
    for one in categories:
        if meaning.get(normalise(one.name)) is not None:
            raise ValueError(f"'{one.name}' is among the names twice, or a spelling of another")
        for text in (one.name, *one.spellings):
            known = meaning.setdefault(normalise(text), one.name)
            if known != one.name:
                raise ValueError(f"the spelling '{text}' means both '{known}' and '{one.name}'")
    return Vocabulary(tuple(categories))


def read_texts(value: object) -> tuple[str, ...]:
    """Return a list of columns or spellings as stripped texts.

    Raises
    ------
    ValueError
        It is no list of texts, is too long, or holds one twice.
    """
    if not isinstance(value, list | tuple):
        raise ValueError("not a list")
    if not all(isinstance(one, str) and 0 < len(one.strip()) <= MOST_CHARACTERS for one in value):
        raise ValueError(f"not a list of texts of 1 to {MOST_CHARACTERS} characters")
    if len(value) > MOST_COLUMNS:
        raise ValueError(f"more than {MOST_COLUMNS}")
    if len({normalise(one) for one in value}) < len(value):
        raise ValueError("one stands in it twice")
    return tuple(one.strip() for one in value)


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise ValueError("neither a list nor a table")
    return tuple(map(_text, value))


def _text(value: object) -> str:
    """Text, or a whole number as a table shows it."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or len(value) > MOST_CHARACTERS:
        raise ValueError(f"a name or spelling is no text of 1 to {MOST_CHARACTERS} characters")
    if not value.strip().isprintable():  # a metric is named after it
        raise ValueError(
            "a name or spelling holds a tab, a line break or another control character"
        )
    return value.strip()
