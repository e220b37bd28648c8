"""What lies in a hospital's folder: its table, its pictures, and what the columns look like.

All of it is a guess for a person to check, made from names and values; nothing is changed.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from common.data.picture_files import ENDINGS, Place, find_pictures, locate, look_at_some
from common.data.tables import (
    LONGEST_LINE,
    MOST_BYTES,
    SiteTable,
    parse_table,
    read_site_table,
)
from common.errors import ConfigError, DataContractError
from common.site_files import plain, read_text
from common.studies.sections import HEIGHT, SITE
from common.studies.site_mapping import load_site_mapping
from common.studies.vocabulary import MOST_CATEGORIES, MOST_CHARACTERS, normalise

BIDS_TABLE = "participants.tsv"

_TABLES = (".csv", ".tsv", ".txt", ".tab")
_LABELS = ("diagnosis", "diagnostic", "dx", "label", "class", "grade", "target", "finding")
_PEOPLE = ("patient", "patn", "pat_", "participant", "person", "proband", "subject")
_ALSO = re.compile(r"^(lesion|eye)[ _-]*id$")
_NOT_LABELS = re.compile(r"split|fold|age|date|time|year|site|path|file|image|_?id$|^id")
_MISSING = ("n/a", "na", "nan", "null", "unknown", "unk")  # "none" is often a class
_USUAL = 5  # rows of each value of a label, at least
_SAMPLE = 2000  # rows whose files are looked for


@dataclass(frozen=True)
class Survey:
    """What was found in a folder.

    Parameters
    ----------
    folders : tuple of Path
        The hospitals' folders that were looked at; columns are those of the first.
    apart : dict of str to str
        Of hospitals whose table could not be joined to the first's, by name, why.
    table, separator : str
        Name of the table, and what parts its cells: ``comma``, ``semicolon`` or ``tab``.
    columns : tuple of str
        As the table writes them.
    rows : int
        Of all hospitals, as are the classes and what pictures look like.
    storage : str
        ``bids``, ``table`` or ``dicom``, as in a study.
    file, pictures, suffix : str
        Column of the files, folder in which they lie, and ending that the cells lack. Empty for a
        BIDS data set, as is ``channels`` 0.
    label : str
        Column that looks most like the label.
    classes : tuple of str
        Its values.
    missing : tuple of str
        Values of it that mean that nothing is known.
    person : str
        Column of the person, empty where none looks like it.
    also : tuple of str
        Columns of what else joins rows.
    channels : int
        1 if all pictures that were opened are grey, else 3.
    dark : bool
        Whether those use a small part of their numbers' range, as 12 bits in 16 do.
    contrast : str
        Of a BIDS data set: T1w where there are such images, else what most of its images are.
    """

    folders: tuple[Path, ...]
    apart: dict[str, str]
    table: str
    separator: str
    columns: tuple[str, ...]
    rows: int
    storage: str
    file: str
    pictures: str
    suffix: str
    label: str
    classes: tuple[str, ...]
    missing: tuple[str, ...]
    person: str
    also: tuple[str, ...]
    channels: int
    dark: bool
    contrast: str = ""

    @property
    def is_bids(self) -> bool:
        """Whether the folder is a BIDS data set."""
        return self.storage == "bids"


@dataclass(frozen=True)
class _Table:
    name: str
    separator: str
    content: SiteTable
    header: tuple[str, ...]  # as written, in the order of content.columns

    def column(self, place: int) -> list[str]:
        return [cells[place] for _, cells in self.content.rows]


def survey_folder(folder: Path) -> Survey:
    """Look at a hospital's folder, or at all hospitals of a cohort.

    Of several, the first says which table and columns there are; the others' tables are read under
    the same name, as their own ``site.toml`` translates them, and joined to it.

    Raises
    ------
    ConfigError
        There is no table, none names pictures that are there, or no column could be a label.
    """
    if not folder.is_dir():
        raise ConfigError(f"--from {folder}: there is no such folder")
    homes = [folder.resolve()]
    if not _table_files(homes[0]):
        inner = [
            path
            for path in sorted(homes[0].iterdir())
            if path.is_dir() and not path.name.startswith(".") and _table_files(path)
        ]
        if not inner:
            raise ConfigError(
                f"--from {folder}: there is no table in it, nor in the folders in it. Accepted is "
                f"a file that ends in {', '.join(_TABLES)}, with one row a picture"
            )
        homes = [path.resolve() for path in inner]
    first, *others = homes
    if BIDS_TABLE in _table_files(first):
        return _describe(first, _read(first, BIDS_TABLE), -1, None, others)
    pictures = find_pictures(first)
    table, place = _table_of(first, pictures)
    return _describe(first, table, place, pictures, others)


def _table_of(home: Path, pictures: dict[str, list[PurePosixPath]]) -> tuple[_Table, int]:
    """Table that names most pictures of a folder, and the place of the column that does.

    Raises
    ------
    ConfigError
        None names one.
    """
    found = []
    faults = []
    for name in _table_files(home):
        try:
            table = _read(home, name)
        except DataContractError as error:
            faults.append(f"{plain(name)}: {error.problem}")
            continue
        place, hits = _file_column(table, pictures)
        found.append((hits, table, place))
    best = max(found, key=lambda one: one[0], default=(0, None, -1))
    if not best[0]:
        columns = [f"{plain(t.name)}: columns {plain(', '.join(t.header))}" for _, t, _ in found]
        raise ConfigError(
            f"--from {home}: no column of a table names pictures that are there (got "
            f"{sum(map(len, pictures.values()))} pictures; {'; '.join([*columns, *faults])}). "
            f"Accepted are names of files that end in {', '.join(ENDINGS)}, with or without the "
            "ending"
        )
    return best[1], best[2]


def _join(
    table: _Table, others: list[Path]
) -> tuple[_Table, dict[Path, SiteTable], dict[str, str]]:
    """Append other hospitals' rows to a table.

    Returns
    -------
    joined : _Table
        With an empty cell for a column that a hospital lacks.
    tables : dict of Path to SiteTable
        By hospital.
    apart : dict of str to str
        Why a hospital's table cannot be read, by its name.
    """
    rows = list(table.content.rows)
    tables: dict[Path, SiteTable] = {}
    apart: dict[str, str] = {}
    for home in others:
        try:
            one = read_site_table(
                home,
                table.name,
                site=home.name,
                required=(),
                optional=table.header,
                mapping=load_site_mapping(home, home.name),
            )
        except DataContractError as error:
            apart[home.name] = str(error)
            continue
        at = {column: place for place, column in enumerate(one.columns)}
        places = [at.get(column) for column in table.content.columns]
        rows += [
            (line, tuple("" if k is None else cells[k] for k in places)) for line, cells in one.rows
        ]
        tables[home] = one
    joined = SiteTable(table.content.columns, tuple(rows), table.content.header)
    return replace(table, content=joined), tables, apart


def _table_files(folder: Path) -> list[str]:
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in _TABLES and not path.name.startswith(".") and path.is_file()
    )


def _read(folder: Path, name: str) -> _Table:
    text = read_text(folder / name, MOST_BYTES, root=folder, site=folder.name)
    start = text[:LONGEST_LINE]
    lines = {}
    for separator in ",;\t":
        with contextlib.suppress(csv.Error):  # parse_table tells what is wrong
            reader = csv.reader(io.StringIO(start, newline=""), delimiter=separator)
            lines[separator] = next(reader, [])
    separator, first = max(lines.items(), key=lambda one: len(one[1]), default=(",", []))
    n = Counter(map(normalise, first))
    written = {normalise(cell): cell.strip() for cell in first if n[normalise(cell)] == 1}
    written.pop("", None)
    content = parse_table(text, plain(name), site=folder.name, required=(), optional=written)
    words = {",": "comma", ";": "semicolon", "\t": "tab"}
    header = tuple(written[column] for column in content.columns)
    return _Table(name, words[separator], content, header)


def _file_column(table: _Table, pictures: dict[str, list[PurePosixPath]]) -> tuple[int, int]:
    """Column with most names of pictures, and how many of its cells are such."""
    best = (-1, 0)
    for place in range(len(table.header)):
        cells = [cell for cell in table.column(place)[:_SAMPLE] if cell]
        hits = sum(locate(cell, pictures) is not None for cell in cells)
        if hits > best[1]:
            best = (place, hits)
    return best


def _describe(
    first: Path,
    table: _Table,
    place: int,
    pictures: dict[str, list[PurePosixPath]] | None,
    others: list[Path],
) -> Survey:
    people = [c for c in table.header if normalise(c).startswith(_PEOPLE)]
    also = [c for c in table.header if _ALSO.match(normalise(c))]
    file = table.header[place] if place >= 0 else ""
    joined, tables, apart = _join(table, others)
    label, classes, missing = _label(joined, {*people, *also, file})
    needed = {normalise(label), *([normalise(file)] if file else [])}
    for home, one in tables.items():
        if lacking := sorted(needed - set(one.columns)):
            apart[home.name] = (
                f"site '{home.name}': {plain(table.name)} has no column {', '.join(lacking)}. "
                "Translate one of its own in site.toml"
            )
    found, looks = Place("", "", "bids"), []
    if pictures is not None:
        cells = [cell for cell in table.column(place)[:_SAMPLE] if cell]
        located = [one for cell in cells if (one := locate(cell, pictures))]
        found = Counter(located).most_common(1)[0][0]
        named = {first: cells}
        for home, one in tables.items():
            if home.name not in apart:
                at = one.columns.index(normalise(file))
                named[home] = [cells[at] for _, cells in one.rows[:_SAMPLE] if cells[at]]
        looks = [
            look
            for home, files in named.items()
            if (
                look := look_at_some(
                    [found.path(home, file) for file in files], home, found.storage
                )
            )
        ]
    return Survey(
        folders=(first, *(home for home in tables if home.name not in apart)),
        apart=apart,
        table=table.name,
        separator=table.separator,
        columns=table.header,
        rows=len(joined.content.rows),
        file=file,
        storage=found.storage,
        pictures="" if found.folder == "." else found.folder,
        suffix=found.suffix,
        label=label,
        classes=classes,
        missing=missing,
        person=people[0] if people else "",
        also=tuple(also),
        channels=0 if pictures is None else max((channels for channels, _ in looks), default=3),
        dark=bool(looks) and all(dark for _, dark in looks),
        contrast=_contrast(first) if pictures is None else "",
    )


def _contrast(folder: Path) -> str:
    found: Counter[str] = Counter()
    for pattern in ("sub-*/anat/*.nii*", "sub-*/ses-*/anat/*.nii*"):
        for path in itertools.islice(folder.glob(pattern), _SAMPLE):
            if entities := re.search(r"_([A-Za-z0-9]+)\.nii(\.gz)?$", path.name):
                found[entities[1]] += 1
    return "T1w" if not found or "T1w" in found else found.most_common(1)[0][0]


def _label(table: _Table, taken: set[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Column that looks most like a label, its values in order, and those that mean nothing."""
    best: tuple[tuple, str, tuple[str, ...], tuple[str, ...]] | None = None
    for place, column in enumerate(table.header):
        cells = [cell for cell in table.column(place) if cell]
        values = {normalise(cell): cell for cell in reversed(cells)}
        missing = tuple(values.pop(word) for word in _MISSING if word in values)
        fits = 2 <= len(values) <= MOST_CATEGORIES and 2 * len(values) <= max(len(cells), 4)
        name = normalise(column)
        used = column in taken or name in (SITE, HEIGHT)  # the latter by fedscan itself
        if not fits or used or max(map(len, values.values())) > MOST_CHARACTERS:
            continue
        hints = [k for k, word in enumerate(_LABELS) if name.startswith(word)]
        hint = hints[0] if hints else len(_LABELS)
        rare = len(cells) < _USUAL * len(values)  # as identifiers are
        rank = (hint, bool(_NOT_LABELS.search(name)), rare, place)
        if best is None or rank < best[0]:
            best = (rank, column, _in_order(values.values()), missing)
    if best is None:
        raise ConfigError(
            f"{plain(table.name)}: no column could be a label (got columns "
            f"{plain(', '.join(table.header))}). A label has 2 to {MOST_CATEGORIES} values, each "
            "in several rows"
        )
    return best[1], best[2], best[3]


def _in_order(values: Iterable[str]) -> tuple[str, ...]:
    """Numbers by size, else by the alphabet."""
    try:
        return tuple(sorted(values, key=float))
    except ValueError:
        return tuple(sorted(values))
