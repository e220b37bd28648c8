"""A study's file for a user to complete: what a folder shows, and every key explained."""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Collection
from pathlib import Path

from common.data.folder_survey import Survey
from common.errors import ConfigError
from common.files import write_atomically
from common.site_files import plain
from common.studies.sections import Classifier, Generator, Groups, Images, Label
from common.studies.study import Study
from common.studies.vocabulary import normalise

_WIDTH = 100


def write_study(file: Path, survey: Survey) -> Study:
    """Write a commented study for what was found in a folder.

    Parameters
    ----------
    file : Path
        Ends in ``.toml``; its name, in small letters, becomes the study's.
    survey : Survey

    Returns
    -------
    Study
        As it was written.

    Raises
    ------
    ConfigError
        The file is there already or is named otherwise.
    """
    name = re.sub(r"[^a-z0-9]+", "-", normalise(file.stem)).strip("-")[:64]
    if file.suffix != ".toml" or not name:
        raise ConfigError(f"'{file}': accepted is a file that ends in .toml, such as chest.toml")
    if file.exists() or file.is_symlink():
        raise ConfigError(f"'{file}' is there already: name another file, or remove it first")
    text = study_text(name, survey)
    study = Study.from_mapping(tomllib.loads(text))
    write_atomically(file, text.encode())
    return study


def study_text(name: str, survey: Survey) -> str:
    """Return the text of a study's file."""
    label = _quoted(survey.label)
    lines = [
        *_comment(
            f"A study, written after a look at {survey.rows} rows of {plain(survey.table)}"
            f"{_of_hospitals(survey)} (separated by {survey.separator}), with the columns "
            f"{plain(', '.join(survey.columns), 2000)}. What was found there is a guess: read it "
            "line by line, and change what is wrong. Lines that begin with # are comments; keys "
            "in them have the value that holds without them."
        ),
        f"name = {_quoted(name)}",
        "",
        "[images]",
        *_images(survey),
        "",
        "[label]",
        *_key(Label, "column", label),
        *(_key(Label, "aliases", '["gender"]', active=False) if survey.is_bids else ()),
        *_comment("The classes, in the order of their indices; or each with its spellings, as in:"),
        '# { none = ["0", "keine"], mild = ["1"] }',
        f"classes = {_list(survey.classes)}",
        *_key(Label, "positive", _quoted(survey.classes[-1]), active=False),
    ]
    default = Label.model_fields["missing"].default
    missing = {normalise(text): text for text in (*survey.missing, *default)}
    lines += _key(Label, "missing", _list(missing.values()), active=len(missing) > len(default))
    lines += _key(Label, "other", '["other"]', active=False)
    lines += ["", "[groups]"]
    if survey.is_bids:
        lines += _comment("Of a BIDS data set, each participant is a person.")
    else:
        person = _quoted(survey.person or "patient_id")
        lines += _key(Groups, "person", person, active=bool(survey.person))
        also = _list(survey.also or ("lesion_id",))
        lines += _key(Groups, "also", also, active=bool(survey.also))
    lines += [
        "",
        "[classifier]",
        *_key(Classifier, "strategy", '"fedavg"', active=False),
        *_key(Classifier, "adapt", '"none"', active=False),
        *_key(Classifier, "rounds", "45", active=False),
        "",
        "[generator]",
        *_key(Generator, "conditions", f'[{label}, "site"]'),
        *_comment("What conditions other than the label's column may hold, as in:"),
        '# values.eye = { left = ["OS"], right = ["OD"] }',
    ]
    return "\n".join(lines) + "\n"


def _of_hospitals(survey: Survey) -> str:
    return f" of {n} hospitals" if (n := len(survey.folders)) > 1 else ""


def _images(survey: Survey) -> list[str]:
    if survey.is_bids:
        return [
            *_key(Images, "storage", '"bids"'),
            *_key(Images, "channels", "1"),
            *_key(Images, "contrast", _quoted(survey.contrast)),
            *_key(Images, "view", '"volume"'),
            *_key(Images, "size", "24"),
        ]
    dark = survey.dark
    return [
        *_key(Images, "storage", _quoted(survey.storage)),
        *_key(Images, "table", _quoted(survey.table)),
        *_key(Images, "file", _quoted(survey.file)),
        *_key(Images, "folder", _quoted(survey.pictures), active=bool(survey.pictures)),
        *_key(Images, "suffix", _quoted(survey.suffix), active=bool(survey.suffix)),
        *_key(Images, "channels", str(survey.channels)),
        *_key(Images, "size", "64"),
        *_key(Images, "fit", '"crop"', active=False),
        *(_comment("The pictures look dark in the full range of their numbers.") if dark else ()),
        *_key(Images, "intensity", '"own-range"' if dark else '"full-range"', active=dark),
        *_key(Images, "intensity_range", "[0, 4095]", active=False, key="intensity-range"),
    ]


def _key(section: type, field: str, value: str, *, active: bool = True, key: str = "") -> list[str]:
    """Comment and line of a key."""
    text = section.model_fields[field].description
    if ":" not in text.split()[0]:  # else it begins with a value
        text = text[0].upper() + text[1:]
    line = f"{key or field} = {value}"
    return [*_comment(f"{text}."), line if active else f"# {line}"]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _list(texts: Collection[str]) -> str:
    return f"[{', '.join(map(_quoted, texts))}]"


def _quoted(text: str) -> str:
    """Text as a string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'
