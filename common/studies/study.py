"""A study: what is asked of which images, in one TOML file and no code.

It says how images are stored, which column is the label and which classes it has, whose rows
belong together, what a generator is conditioned on, and how pictures become arrays. Every site of
a run reads the same study; what a hospital calls its columns and codes is its own mapping's matter
(`common.studies.site_mapping`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from common.errors import ConfigError
from common.paths import expanded
from common.reading import parse_toml
from common.site_files import plain
from common.studies.sections import (
    HEIGHT,
    SITE,
    Classifier,
    Generator,
    Groups,
    Images,
    Label,
    Section,
)
from common.studies.vocabulary import Vocabulary, normalise

LARGEST_FILE = 2**16  # bytes: a run config holds the whole

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class Study(Section):
    """What is asked of which images. See :func:`load_study`."""

    what: ClassVar[str] = "study"

    name: str = Field(
        json_schema_extra={
            "accepted": "up to 64 small letters, digits and '-', the first no '-'",
        }
    )
    images: Images = Field(json_schema_extra={"accepted": "a section [images]"})
    label: Label = Field(json_schema_extra={"accepted": "a section [label]"})
    groups: Groups = Field(Groups(), json_schema_extra={"accepted": "a section [groups]"})
    classifier: Classifier = Field(
        Classifier(), json_schema_extra={"accepted": "a section [classifier]"}
    )
    generator: Generator = Field(
        Generator(), json_schema_extra={"accepted": "a section [generator]"}
    )

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"'{value[:80]}' cannot name a study")
        return value

    @model_validator(mode="after")
    def _combine(self) -> Self:
        if self.images.storage == "bids" and self.groups.person not in ("", "participant_id"):
            raise ValueError("[groups] person: with storage 'bids' it is 'participant_id'")
        known = {normalise(column) for column, _ in self.generator.values}
        if normalise(self.label.column) in (SITE, HEIGHT):
            raise ValueError(
                f"[label] column: '{self.label.column}' means something else among a generator's "
                "conditions: name it otherwise, and translate the name in site.toml"
            )
        made = {SITE} if self.images.view == "picture" else {SITE, HEIGHT}
        for column in self.generator.conditions:
            if normalise(column) not in {*made, normalise(self.label.column), *known}:
                raise ValueError(
                    f"[generator] conditions: '{column}' is neither '{SITE}' nor the label's "
                    f"column; say under [generator.values] what it may hold"
                )
        if unused := known - set(map(normalise, self.generator.conditions)):
            raise ValueError(
                f"[generator] values: '{min(unused)}' is not among the conditions: leave it out"
            )
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Validate a study as TOML gives it, sections first.

        Raises
        ------
        ConfigError
            One line a fault, with the section, the key, what was got and what is accepted.
        """
        sections = {
            "images": Images,
            "label": Label,
            "groups": Groups,
            "classifier": Classifier,
            "generator": Generator,
        }
        built, faults = dict(values), []
        for key, section in sections.items():
            if isinstance(value := built.get(key), Mapping):
                try:
                    built[key] = section.from_mapping(value)
                except ConfigError as error:
                    faults.append(str(error))
        if faults:
            raise ConfigError("\n".join(faults))
        return super().from_mapping(built)

    @classmethod
    def read(cls, study: str | Path) -> Study:
        """Read a built-in study by its name, or a TOML file: :func:`load_study`."""
        return load_study(study)

    @staticmethod
    def names() -> tuple[str, ...]:
        """Names of the built-in studies, sorted."""
        return built_in_studies()

    @property
    def condition_columns(self) -> tuple[tuple[str, Vocabulary], ...]:
        """Columns that a generator is conditioned on, and what they may hold."""
        known = {normalise(column): values for column, values in self.generator.values}
        known[normalise(self.label.column)] = self.label.classes
        return tuple(
            (column, known[normalise(column)])
            for column in self.generator.conditions
            if normalise(column) in known
        )


@lru_cache(maxsize=16)
def read_study(text: str) -> Study:
    """Read a study as a run config holds it: a built-in name, or the whole text of a study.

    Raises
    ------
    ConfigError
        There is no such study, or its text holds what is not accepted.
    """
    if "\n" not in text:
        if text in built_in_studies():
            return load_study(text)
        raise ConfigError(
            f"study '{plain(text, 80)}': accepted is one of {', '.join(built_in_studies())}, or "
            "the whole text of a study, since sites cannot read your file: `fedscan run --study "
            "FILE.toml` sends it, `fedscan studies text FILE.toml` writes it for `flwr run`"
        )
    try:
        values = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"the study's text is not TOML: {error}") from None
    return Study.from_mapping(values)


def load_study(study: str | Path) -> Study:
    """Read a study that is built in, or a user's own file.

    Parameters
    ----------
    study : str or Path
        A built-in name (:func:`built_in_studies`), or the path of a TOML file. What ends in
        ``.toml`` or holds a separator is a path.

    Raises
    ------
    ConfigError
        There is no such study, or its file cannot be read or holds what is not accepted. The
        public words name the key, never the path.
    """
    text = str(study)
    if isinstance(study, str) and not text.endswith(".toml") and not re.search(r"[/\\]", text):
        if text not in built_in_studies():
            raise ConfigError(
                f"unknown study '{text[:80]}': accepted is one of {', '.join(built_in_studies())}, "
                "or the path of a file that ends in .toml"
            )
        return _read(_FOLDER / f"{text}.toml")
    return _read(expanded(Path(study)))


def built_in_studies() -> tuple[str, ...]:
    """Names of the studies that come with fedscan, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


_FOLDER = Path(__file__).parent


def _read(path: Path) -> Study:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
        if len(raw) > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE} bytes")
        values = parse_toml(raw.decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        problem = "the study's file cannot be read"
        raise ConfigError(f"{problem}: {path}: {error}", public=problem) from error
    try:
        return Study.from_mapping(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", public=str(error)) from None
