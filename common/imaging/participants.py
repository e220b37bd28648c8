"""The tables of a BIDS data set: participants.tsv, and participants.json that explains its codes.

A value that is not understood refuses the data set, with its line and column: whoever holds the
data can mend it, and nobody else can guess it. Columns are known by their names in any case.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from common.errors import DataContractError
from common.imaging.splits import ACCEPTED_SPLITS, parse_split
from common.site_files import is_utf8, plain, read_text, require_utf8
from common.studies.sections import Label
from common.studies.site_mapping import SiteMapping
from common.studies.vocabulary import normalise

PARTICIPANT = re.compile(r"sub-[A-Za-z0-9][A-Za-z0-9._+-]*")

PARTICIPANT_ID, SPLIT = "participant_id", "split"  # columns
OTHER, NOT_KNOWN = -2, -1  # in place of a class's index: none of the classes, no label
NO_PARTICIPANTS = "there is no participants.tsv"
MOST_COLUMNS = 1000
LONGEST_LINE = 2**16  # characters

_MAX_TABLE_BYTES = 16 * 2**20
_MAX_SIDECAR_BYTES = 2**20


def read_table(
    root: Path, site: str, mapping: SiteMapping, used: Collection[str]
) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Header of participants.tsv, normalised, and its rows with their line numbers.

    Columns and codes are the study's, as the site's own mapping translates them. Columns that are
    not used are not judged: they may stand twice, have no name, or hold other encodings and quotes.

    Parameters
    ----------
    root : Path
    site : str
    mapping : SiteMapping
    used : collection of str
        The columns that rows hold, where the table has them.

    Raises
    ------
    DataContractError
        The file is missing or is no table with a column ``participant_id``; while the rows are
        taken, that one does not fit.
    """
    path = root / "participants.tsv"
    if not os.path.lexists(path):
        raise DataContractError(
            site, NO_PARTICIPANTS, remedy="It must lie at the top of the data set"
        )
    text = read_text(path, _MAX_TABLE_BYTES, root=root, site=site, strict=False)
    plainly = not has_whole_quotes(text, "\t")
    lines = _lines(text, site, csv.QUOTE_NONE if plainly else csv.QUOTE_MINIMAL)
    header = [mapping.column(name) for name in next(lines, (0, []))[1]]
    if "participant_id" not in header:
        require_utf8(text, path.name, site=site)
        raise DataContractError(
            site,
            "participants.tsv has no column participant_id",
            got=plain(", ".join(header)),
            remedy="Its first line must name the columns, separated by tabs",
        )
    wanted = {normalise(name) for name in (PARTICIPANT_ID, SPLIT, *used)}
    if twice := [name for name, n in Counter(header).items() if n > 1 and name in wanted]:
        raise DataContractError(
            site, "a column stands twice in participants.tsv", got=plain(", ".join(twice))
        )
    kept = {name: place for place, name in enumerate(header) if name in wanted}

    def row(line: int, cells: list[str]) -> dict[str, str]:
        if len(cells) <= max(kept.values()) or any(cells[len(header) :]):
            raise DataContractError(
                site,
                "a row of participants.tsv does not fit the header",
                where=f"participants.tsv, line {line}",
                got=f"{len(cells)} cells where the header has {len(header)}",
                remedy="Cells are separated by tabs, and an unknown one is n/a",
            )
        found = {name: cells[place] for name, place in kept.items()}
        for cell in found.values():
            if not is_utf8(cell):
                require_utf8(text, path.name, site=site)
            if plainly and '"' in cell:
                raise _no_table(site, line, "a quotation mark that is not closed")
        return {name: mapping.value(name, cell) for name, cell in found.items()}

    return header, ((line, row(line, cells)) for line, cells in lines)


def has_whole_quotes(text: str, separator: str) -> bool:
    """Tell whether the quotation marks of a table are those of quoted cells, all of them closed."""
    if '"' not in text or any(len(line) > LONGEST_LINE for line in io.StringIO(text)):
        return True  # a line that is too long is refused before it is parsed
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
            pass
    except csv.Error:
        return False
    return True


def _lines(text: str, site: str, quoting: int) -> Iterator[tuple[int, list[str]]]:
    """Stripped cells of each line that holds any, with its number; one after the other."""

    def bounded(line: str) -> str:
        if len(line) > LONGEST_LINE:  # which could make millions of cells
            raise csv.Error(f"a line of more than {LONGEST_LINE} characters")
        return line

    lines = map(bounded, io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter="\t", strict=True, quoting=quoting)
    try:
        for cells in reader:
            if len(cells) > MOST_COLUMNS:
                raise csv.Error(f"more than {MOST_COLUMNS} columns")
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise _no_table(site, max(1, reader.line_num), str(error)) from error


def _no_table(site: str, line: int, got: str) -> DataContractError:
    where = f"participants.tsv, line {line}"
    return DataContractError(site, "participants.tsv is not a table", where=where, got=plain(got))


def label_column(header: list[str], site: str, label: Label) -> str:
    """Name of the column that holds the label, or else another that it may have.

    Raises
    ------
    DataContractError
        There is no such column.
    """
    names = (label.column, *label.aliases)
    for name in names:
        if normalise(name) in header:
            return normalise(name)
    raise DataContractError(
        site,
        "participants.tsv has no column of labels",
        got=f"columns {plain(', '.join(header))}",
        remedy=f"Accepted is a column {' or '.join(map(repr, names))}",
    )


def read_levels(
    root: Path, site: str, column: str, label: Label, mapping: SiteMapping
) -> tuple[dict[str, int], dict[str, str]]:
    """Codes of the label column that participants.json explains.

    Of a class only the bare word is understood: what a longer description means would be a guess.
    A description without the name of any class is none of them: :data:`OTHER`. Columns and
    codes are the site's own there too, and translated as those of participants.tsv.

    Returns
    -------
    meaning : dict of str to int
        Of each code the index of its class, :data:`OTHER` or :data:`NOT_KNOWN`.
    strange : dict of str to str
        Of the codes of :data:`OTHER`, the words that the study does not know.

    Raises
    ------
    DataContractError
        The file cannot be read, or is not JSON.
    """
    path = root / "participants.json"
    if not os.path.lexists(path):
        return {}, {}
    text = read_text(path, _MAX_SIDECAR_BYTES, root=root, site=site)
    try:
        sidecar: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataContractError(
            site, "participants.json is not JSON", got=plain(str(error))
        ) from error
    columns = sidecar.items() if isinstance(sidecar, dict) else ()
    about = next((entry for name, entry in columns if mapping.column(name) == column), None)
    levels = about.get("Levels") if isinstance(about, dict) else None
    meaning: dict[str, int] = {}
    strange: dict[str, str] = {}
    for code, told in levels.items() if isinstance(levels, dict) else ():
        if isinstance(told, dict):  # BIDS also allows {"Description": ..., "TermURL": ...}
            told = told.get("Description", "")
        index = _explained(told, label) if isinstance(told, str) else None
        if index is not None:
            key = normalise(mapping.value(column, code))
            meaning[key] = index
            if index == OTHER and not label.is_other(_bare(told)):
                strange[key] = _bare(told)
    return meaning, strange


def _bare(told: str) -> str:
    return told.strip().rstrip(".")


def _explained(told: str, label: Label) -> int | None:
    """Index of the class that a description names; None where that would be a guess."""
    words = _bare(told)
    if (index := label.classes.index(words)) is not None or not words:
        return index
    if label.is_missing(words):
        return NOT_KNOWN
    named = any(label.classes.index(word) is not None for word in re.findall(r"\w+", words))
    return None if named else OTHER


def read_label(
    text: str, meaning: dict[str, int], label: Label, site: str, where: str
) -> int | None:
    """Index of the class in a cell, :data:`OTHER` for none of them, None where it is not known.

    Parameters
    ----------
    text : str
        The cell.
    meaning : dict of str to int
        From `read_levels`.
    label : Label
    site, where : str
        For the error.

    Raises
    ------
    DataContractError
        The value is unknown, or participants.json contradicts it.
    """
    told = _of_code(meaning, text)
    try:
        usual = label.read(text)
        if usual is None and label.is_other(text):
            usual = OTHER
        if usual is None and (told is None or told < 0):
            return None
    except ValueError:
        usual = None
    if told is None and usual is None:
        problem = "the label column holds an unknown value"
    elif None not in (told, usual) and told != usual:
        problem = "participants.json contradicts a label"
    else:
        found = usual if told is None else told
        return None if found == NOT_KNOWN else found
    raise DataContractError(
        site,
        problem,
        where=f"participants.tsv, {where}",
        got=f"'{plain(text)}'",
        remedy=f"Accepted: {', '.join(label.classes.names)}, codes that participants.json "
        "explains under Levels or site.toml translates, and n/a for unknown",
    )


def _of_code(told: dict[str, Any], text: str) -> Any:
    """Look up a cell; a table saved by way of floating point holds 1.0 for the sidecar's 1."""
    key = normalise(text)
    return told.get(key, told.get(key.removesuffix(".0")))


def why_none(text: str, strange: dict[str, str], label: Label) -> str:
    """Say why a cell's label is :data:`OTHER`: also what explains it, where that is no known word.

    Parameters
    ----------
    text : str
        The cell.
    strange : dict of str to str
        From `read_levels`.
    label : Label
    """
    word = _of_code(strange, text)
    if word is None:
        return label.none_of_them
    return (
        f"{label.none_of_them}, since participants.json explains '{plain(text, 40)}' as "
        f"'{plain(word, 40)}'. If that is a class, write it as {' or '.join(label.classes.names)}"
    )


def read_split(text: str, site: str, line: int) -> str | None:
    """Split in a cell, None where it is empty or ``n/a``.

    Raises
    ------
    DataContractError
        The cell names no split.
    """
    try:
        return parse_split(text)
    except ValueError as error:
        raise DataContractError(
            site,
            "the column split holds an unknown value",
            where=f"participants.tsv, line {line}, column split",
            got=f"'{plain(text)}'",
            remedy=f"Accepted: {ACCEPTED_SPLITS}",
        ) from error


def check_participant(name: str, listed: set[str], line: int, site: str) -> None:
    """Refuse a participant_id that is malformed, or already among those listed.

    The pattern holds no separator and no leading dot, so that an id cannot lead out of the folder.

    Raises
    ------
    DataContractError
        It names the line.
    """
    if not PARTICIPANT.fullmatch(name):
        problem = "a participant_id is not acceptable"
        remedy = "It is 'sub-' and then letters, digits, '.', '_', '+' or '-'"
    elif name in listed:
        problem, remedy = "a participant is listed twice", "One line for each participant"
    else:
        return
    where = f"participants.tsv, line {line}, column participant_id"
    raise DataContractError(site, problem, where=where, got=f"'{plain(name)}'", remedy=remedy)
