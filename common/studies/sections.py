"""The sections of a study's file: images, label, who belongs together, classifier, generator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.extensions import ACCEPTED, LONGEST, is_extension
from common.settings import Settings
from common.studies import vocabulary
from common.studies.vocabulary import Vocabulary, normalise, read_texts, read_vocabulary

SITE = "site"  # among a generator's conditions: the hospital, which is no column
HEIGHT = "height"  # and of a volume's axial slices, where each lies

_NOT_KNOWN = ("n/a", "na", "nan")
_COLUMN = "a column's name"

Text = Annotated[str, Field(max_length=200)]


class Section(Settings):
    """Settings whose refusals also tell of missing keys and of why a value does not do."""

    @classmethod
    def _explain(cls, fault: Mapping[str, Any]) -> str:
        if fault["loc"] and fault["type"] in ("missing", "value_error"):
            key = str(fault["loc"][0])
            why = fault["msg"].removeprefix("Value error, ")
            problem = f"{key} is missing" if fault["type"] == "missing" else f"{key}: {why}"
            return f"{problem}; accepted is {cls.accepted_values(key)}"
        return super()._explain(fault)


class Images(Section):
    """How a site's images are stored, and how each becomes an array."""

    what: ClassVar[str] = "[images]"

    storage: str = Field(
        max_length=LONGEST,
        description="bids: a BIDS data set; table: pictures that a table lists; dicom: DICOM files "
        "that a table lists",
        json_schema_extra={"accepted": "bids, table, dicom, or a reader of your own, " + ACCEPTED},
    )
    table: Text = Field(
        "",
        description="the table, in every site's folder",
        json_schema_extra={"accepted": "a file's path, relative to the site's folder"},
    )
    file: Text = Field("", description="the table's column of files")
    folder: Text = Field(
        "",
        description="where the files lie",
        json_schema_extra={"accepted": "a folder's path, relative to the site's folder"},
    )
    suffix: Text = Field("", description="added to each file's name, as '.jpg'")
    contrast: Text = Field(
        "T1w",
        pattern="^[A-Za-z0-9]+$",
        description="bids: which images of anat/, by the end of their names",
    )
    channels: Literal[1, 3] = Field(description="1: grey; 3: red, green and blue")
    view: Literal["", "picture", "volume", "slices"] = Field(
        "",
        description="what is learned from: a file's picture, its volume, or slices of it. Left "
        "out: volume for bids, else picture",
    )
    size: int = Field(64, ge=16, le=512, description="pixels or voxels along each side")
    fit: Literal["crop", "pad"] = Field(
        "crop",
        description="pictures that are not square: the largest square in the middle, or the "
        "whole with black beside it",
    )
    intensity: Literal["", "full-range", "window", "own-range", "fixed-range", "head"] = Field(
        "",
        description="which intensities become black and white: the ends of what the file's "
        "numbers can hold, those of a DICOM file's window, the 0.5th and 99.5th percentile of each "
        "picture, the two of intensity-range, or those of the air and the head. Left out: head for "
        "volumes, else full-range",
    )
    intensity_range: tuple[float, float] | None = Field(
        None,
        description="black and white",
        json_schema_extra={"accepted": "two numbers, the first the smaller, as in [0, 4095]"},
    )

    @field_validator("intensity_range", mode="before")
    @classmethod
    def _two_numbers(cls, value: object) -> object:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError("not two numbers")
        if not all(type(one) in (int, float) and abs(one) < 2**53 for one in value):
            raise ValueError("not two numbers")
        if not value[0] < value[1]:
            raise ValueError("the first is not the smaller")
        return (float(value[0]), float(value[1]))

    @field_validator("storage")
    @classmethod
    def _named(cls, value: str) -> str:
        if not re.fullmatch("[a-z][a-z0-9_]{0,63}", value) and not is_extension(value):
            raise ValueError(f"'{value[:80]}' cannot name a storage")
        return value

    @field_validator("table", "folder")
    @classmethod
    def _inside(cls, value: str) -> str:
        return check_relative(value)

    @model_validator(mode="before")
    @classmethod
    def _by_storage(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        values["view"] = values.get("view") or (
            "volume" if values.get("storage") == "bids" else "picture"
        )
        if not values.get("intensity"):
            fixed = "intensity-range" in values or "intensity_range" in values
            whole = "full-range" if values["view"] == "picture" else "head"
            values["intensity"] = "fixed-range" if fixed else whole
        return values

    @model_validator(mode="after")
    def _combine(self) -> Self:
        if self.storage == "bids":
            for key in ("table", "file", "folder", "suffix"):
                if getattr(self, key):
                    raise ValueError(
                        f"{key} has no effect with storage 'bids', which fixes where images lie: "
                        "leave it out"
                    )
            if self.view == "picture":
                raise ValueError("storage 'bids' holds volumes: set view 'volume' or 'slices'")
        elif self.storage in ("table", "dicom"):
            for key in ("table", "file"):
                if not getattr(self, key).strip():
                    raise ValueError(f"storage '{self.storage}' needs the key {key}")
        own = is_extension(self.storage)
        if self.storage != "bids" and self.view != "picture" and not own:
            way = ", or make volumes by `fedscan prepare dicom`" if self.storage == "dicom" else ""
            raise ValueError(f"storage '{self.storage}' holds pictures: leave view out{way}")
        if self.intensity == "window" and self.storage != "dicom" and not own:
            raise ValueError("intensity 'window' needs storage 'dicom'")
        if self.intensity == "head" and self.view == "picture":
            raise ValueError("intensity 'head' needs view 'volume' or 'slices'")
        if (self.intensity == "fixed-range") != (self.intensity_range is not None):
            raise ValueError("intensity 'fixed-range' and intensity-range need each other")
        if self.view != "picture" and self.channels != 1:
            raise ValueError("volumes have channels 1")
        return self


class Label(Section):
    """What is to be predicted."""

    what: ClassVar[str] = "[label]"

    column: Text = Field(min_length=1, description=_COLUMN)
    aliases: tuple[str, ...] = Field(
        (),
        description="other names that the column may have",
        json_schema_extra={"accepted": "a list of columns' names, as in ['gender']"},
    )
    classes: Vocabulary = Field(json_schema_extra={"accepted": vocabulary.ACCEPTED})
    positive: Text = Field(
        "", description="the class whose sensitivity is reported; of two classes the second"
    )
    missing: tuple[str, ...] = Field(
        _NOT_KNOWN,
        description="what stands in the column, besides nothing, where the label is not known",
        json_schema_extra={"accepted": "a list of texts; such rows are left out and counted"},
    )

    other: tuple[str, ...] = Field(
        (),
        description="what stands in the column for what is none of the classes",
        json_schema_extra={"accepted": "a list of texts; such rows are left out and counted"},
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _read_classes(cls, value: object) -> Vocabulary:
        return read_vocabulary(value)

    @field_validator("missing", "aliases", "other", mode="before")
    @classmethod
    def _read_missing(cls, value: object) -> object:
        return read_texts(value)

    @model_validator(mode="after")
    def _combine(self) -> Self:
        if self.positive and self.positive not in self.classes.names:
            raise ValueError(
                f"positive = '{self.positive}' is none of the classes: "
                f"{', '.join(self.classes.names)}"
            )
        if "missing" in self.model_fields_set:
            for text in self.missing:
                if self.classes.index(text) is not None:
                    raise ValueError(f"'{text}' means a class and, in missing, none")
        for text in self.other:
            if self.classes.index(text) is not None:
                raise ValueError(f"'{text}' means a class and, in other, none of them")
        return self

    @property
    def none_of_them(self) -> str:
        """Why a row is left out that holds a value other than the classes, in words."""
        names = self.classes.names
        return f"neither {names[0]} nor {names[1]}" if len(names) == 2 else "none of the classes"

    def is_other(self, text: str) -> bool:
        """Tell whether a cell holds what is known and is none of the classes."""
        return normalise(text) in map(normalise, self.other)

    def is_missing(self, text: str) -> bool:
        """Tell whether a cell says that the label is not known."""
        return normalise(text) in ("", *map(normalise, self.missing))

    def read(self, text: str) -> int | None:
        """Index of the class in a cell, None where it holds none, see the two methods before.

        Raises
        ------
        ValueError
            The cell holds something else. The message does not.
        """
        found = self.classes.index(text)
        if found is None and not self.is_missing(text) and not self.is_other(text):
            raise ValueError("unknown label")
        return found


class Groups(Section):
    """Whose rows belong together, and so never straddle two splits."""

    what: ClassVar[str] = "[groups]"

    person: Text = Field("", description="column of the person; left out: every row is another's")
    also: tuple[str, ...] = Field(
        (),
        description="columns of what joins rows too, such as a lesion",
        json_schema_extra={"accepted": "a list of columns' names, as in ['lesion_id']"},
    )

    @field_validator("also", mode="before")
    @classmethod
    def _read_also(cls, value: object) -> object:
        return read_texts(value)


class Classifier(Section):
    """How sites learn to tell the classes, where a run's configuration leaves it open."""

    what: ClassVar[str] = "[classifier]"

    strategy: str = Field(
        "fedavg",
        pattern=r"^[a-z][a-z-]{0,63}$",
        description="how sites learn together (strategy.name)",
        json_schema_extra={"accepted": "a strategy's name, as `fedscan strategies` lists them"},
    )
    adapt: Literal["none", "center", "statistics", "threshold"] = Field(
        "none", description="how a site fits the model to its own images (model.adapt)"
    )
    rounds: int = Field(0, ge=0, le=100_000, description="rounds of training (run.rounds); 0: 45")


class Generator(Section):
    """What a generator is told of the image that it is to make."""

    what: ClassVar[str] = "[generator]"

    conditions: tuple[str, ...] = Field(
        (),
        description="columns, 'site' for the hospital, and 'height' of a volume's slices",
        json_schema_extra={
            "accepted": "a list of the label's column, 'site', columns under [generator.values] "
            "and, of volumes, 'height'"
        },
    )
    values: tuple[tuple[str, Vocabulary], ...] = Field(
        (),
        description="what other columns than the label's may hold",
        json_schema_extra={
            "accepted": "a table of columns, each with the form of the label's classes"
        },
    )

    @field_validator("conditions", mode="before")
    @classmethod
    def _read_conditions(cls, value: object) -> object:
        made = (SITE, HEIGHT)  # by fedscan, which knows them under these names
        return tuple(normalise(one) if normalise(one) in made else one for one in read_texts(value))

    @field_validator("values", mode="before")
    @classmethod
    def _read_values(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError("not a table")
        if len(value) > vocabulary.MOST_COLUMNS:
            raise ValueError(f"more than {vocabulary.MOST_COLUMNS} columns")
        if len(set(map(normalise, value))) < len(value):
            raise ValueError("one column stands in it twice, but for case and white space")
        return tuple((column, read_vocabulary(each)) for column, each in value.items())


def check_relative(path: str) -> str:
    """Return a path of a site's file with forward slashes, and refuse one that leads elsewhere.

    Raises
    ------
    ValueError
        It is absolute, has a drive, climbs with ``..``, or holds a zero byte.
    """
    slashed = path.replace("\\", "/")  # of tables and studies written under Windows
    if (
        PurePosixPath(slashed).is_absolute()
        or PureWindowsPath(path).drive
        or ".." in PurePosixPath(slashed).parts
        or "\0" in slashed
    ):
        raise ValueError("not a path relative to the site's folder")
    return slashed
