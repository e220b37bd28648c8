"""Frozen settings read from a flat mapping of kebab-case keys; every refusal is in words."""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import ConfigError
from common.site_files import plain

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]

_SHOWN = 1000  # characters of a refused value
_LONGEST = 4 * _SHOWN  # of a line of a refusal
MOST_FAULTS = 20  # that a refusal tells
MOST_LISTED, NEAREST = 12, 5  # keys that a refusal names
_COMPARED = 100  # characters of a word that are compared, as the time grows by their square


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Ask whether the known word that is most alike was meant; empty where none is."""
    near = difflib.get_close_matches(word[:_COMPARED], list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{near[0]}'?" if near else ""


def few_known(words: Iterable[str], known: Iterable[str]) -> str:
    """Name known words: all of a few, of many the :data:`NEAREST` most like those asked for."""
    every, asked = sorted(known), list(itertools.islice(words, MOST_FAULTS))
    if len(every) <= MOST_LISTED:
        return f"known keys: {', '.join(every)}"
    near = heapq.nlargest(NEAREST, every, key=lambda one: max(likeness(w, one) for w in asked))
    return f"nearest of {len(every)} known keys: {', '.join(near)}"


def likeness(key: str, known: str) -> float:
    """Say how alike two keys are, 0 to 1, with or without their groups."""
    key = key[:_COMPARED]
    pairs = [(key, known), (key.rpartition(".")[2], known.rpartition(".")[2])]
    return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)


def _to_key(field_name: str) -> str:
    return field_name.replace("_", "-")


def as_typed(text: str, like: Any) -> Any:
    """Read a word as the type of the value that it replaces; validation follows."""
    if isinstance(like, bool):
        return {"true": True, "false": False}.get(text, text)
    try:
        return type(like)(text)
    except ValueError:
        return text


def as_words(values: Mapping[str, bool | int | float | str]) -> str:
    """Tell values in one line, ``"KEY=VALUE KEY=VALUE"``, by key."""
    return " ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in sorted(values.items())
    )


class Settings(BaseModel):
    """Base of a configuration: its fields are the keys, each with a description.

    A field whose accepted values do not follow from its type and bounds says them in
    ``json_schema_extra={"accepted": …}``.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,  # NaN passes every bound, since each comparison with it is false
        alias_generator=_to_key,
        populate_by_name=True,
    )

    what: ClassVar[str] = "settings"  # begins every line of a refusal
    prefix: ClassVar[str] = ""  # of keys in a refusal, where the settings are a group of others

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Validate a flat mapping.

        Parameters
        ----------
        values : mapping of str to bool, int, float or str
            Kebab-case keys. Missing keys take the default.

        Raises
        ------
        ConfigError
            For an unknown key, a wrong type or a value out of range: one line a fault, with what
            was got, what is accepted and, for an unknown key, the nearest known one; and a line of
            the known ones.
        """
        try:
            return cls.model_validate(values, by_alias=True, by_name=False)
        except ValidationError as error:
            raise ConfigError(cls._refusal(error)) from None

    @classmethod
    def from_words(cls, text: str) -> Self:
        """Validate settings that are told in one line, ``"KEY=VALUE KEY=VALUE"``.

        Raises
        ------
        ConfigError
            As :meth:`from_mapping`; and for a word that is no pair.
        """
        defaults = {key: field.default for key, field in cls._keys().items()}
        found = {}
        for word in text.split():
            key, equals, value = word.partition("=")
            if not equals:
                raise ConfigError(f"{cls.what}: {cls.prefix}options: '{word}' is no KEY=VALUE")
            found[key] = as_typed(value, defaults.get(key, value))
        return cls.from_mapping(found)

    def to_words(self) -> str:
        """Return what :meth:`from_words` reads: all values that are not the default's, sorted."""
        defaults = {key: field.default for key, field in self._keys().items()}
        return as_words({k: v for k, v in self.to_mapping().items() if v != defaults[k]})

    def to_mapping(self) -> dict[str, bool | int | float | str]:
        """Return the flat, kebab-case mapping that :meth:`from_mapping` reads."""
        return self.model_dump(by_alias=True)

    @classmethod
    def accepted_values(cls, key: str) -> str:
        """Say in words which values a key takes."""
        schema = cls.model_json_schema()["properties"][key]
        if options := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
            return "one of " + ", ".join(map(repr, options))
        if "accepted" in schema:
            return schema["accepted"]
        words = {
            "integer": "a whole number",
            "number": "a number",
            "string": "a text",
            "boolean": "true or false",
        }[schema["type"]]
        bounds = [
            f"{phrase} {schema[name]}"
            for name, phrase in (
                ("minimum", "from"),
                ("exclusiveMinimum", "above"),
                ("maximum", "up to"),
                ("exclusiveMaximum", "below"),
            )
            if name in schema
        ]
        return f"{words} {' '.join(bounds)}".strip() + f" ({cls._keys()[key].description})"

    @classmethod
    def _keys(cls) -> dict[str, Any]:
        return {_to_key(name): field for name, field in cls.model_fields.items()}

    @classmethod
    def _refusal(cls, error: ValidationError) -> str:
        """Say each fault in a line, and after unknown keys, once, which are known."""
        faults = error.errors()
        lines = [cls._explain(fault) for fault in faults[:MOST_FAULTS]]
        if len(faults) > MOST_FAULTS:
            lines.append(f"and {len(faults) - MOST_FAULTS} more faults")
        unknown = [str(f["loc"][0]) for f in faults if f["type"] == "extra_forbidden"]
        if unknown:
            lines.append(few_known(unknown[:MOST_FAULTS], cls._keys()))
        return "\n".join(plain(f"{cls.what}: {line}", _LONGEST) for line in lines)

    @classmethod
    def _explain(cls, fault: Mapping[str, Any]) -> str:
        """Say one pydantic fault as: key, what was got, what is accepted."""
        if not fault["loc"]:
            return fault["msg"].removeprefix("Value error, ")
        key = str(fault["loc"][0])
        if fault["type"] == "extra_forbidden":
            hint = did_you_mean(key, cls._keys()).replace("'", f"'{cls.prefix}", 1)
            return f"unknown key '{cls.prefix}{key}'{hint}"
        accepted = cls.accepted_values(key)
        got = repr(fault["input"])
        shown = f"{got[:_SHOWN]}…" if len(got) > _SHOWN else got
        return f"{cls.prefix}{key} = {shown}: accepted is {accepted}"
