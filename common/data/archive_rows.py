"""An archive's tables, joined by picture and put in the words of the study ``skin-lesions``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath

from common.data.archive_files import PICTURES, ArchiveFile, ArchiveFiles, refuse
from common.data.archives import Archive, Row, Table
from common.data.groups import connect
from common.data.tables import MOST_YEARS, NOT_TOLD, SiteTable, parse_table
from common.errors import ConfigError, DataContractError
from common.imaging.splits import ACCEPTED_SPLITS, parse_split
from common.site_files import plain
from common.studies.vocabulary import normalise

LISTED_AGAIN = "listed again, with the same cells"
NO_DIAGNOSIS = "no diagnosis"
NOT_ONE = "not exactly one diagnosis is marked"
OTHER_DIAGNOSIS = "no diagnosis of the study"

_MOST_REASONS = 20  # diagnoses that are counted one by one


@dataclass(slots=True)
class ArchiveRow:
    """A picture that the tables list.

    Parameters
    ----------
    name : str
        Of the picture, without its file's ending.
    line : int
        Of the first table.
    diagnosis : str
        Of the study; empty where there is none, for the reason ``reason``.
    patient, lesion, age, sex, body_site : str
        Empty where not known; ``age`` in years.
    centre : str
        Hospital that the tables tell, or the column asked for holds.
    split : str or None
        That is published.
    kept : tuple of str
        Cells of `Archive.keep`.
    group : int
        Equal numbers mean a patient, a lesion or a picture in common.
    same : int
        Equal numbers mean the same picture.
    file : ArchiveFile or None
    """

    name: str
    line: int
    diagnosis: str
    reason: str
    patient: str
    lesion: str
    age: str
    sex: str
    body_site: str
    centre: str
    split: str | None
    kept: tuple[str, ...]
    group: int = -1
    same: int = -1
    file: ArchiveFile | None = None


@dataclass(frozen=True)
class Listing:
    """Rows of an archive.

    Parameters
    ----------
    rows : list of ArchiveRow
    columns : tuple of str
        All that the tables have, normalised.
    listed_again : int
        Rows that repeat another.
    notes : Counter
        What else was noticed, and how often.
    """

    rows: list[ArchiveRow]
    columns: tuple[str, ...]
    listed_again: int
    notes: Counter[str]


def read_rows(archive: Archive, files: ArchiveFiles, by: str = "") -> Listing:
    """Join the tables of an archive, and connect rows that belong together.

    Parameters
    ----------
    archive : Archive
    files : ArchiveFiles
    by : str
        Column whose values are the hospitals, in place of what the tables tell of them.

    Raises
    ------
    ConfigError
        A table is missing, is no table, lacks a column or lists a picture twice with unlike
        cells; or no table has the column ``by``.
    """
    notes: Counter[str] = Counter()
    columns: list[str] = []
    joined: dict[str, dict[str, str]] = {}
    lines: dict[str, int] = {}
    again = 0
    for place, table in enumerate(archive.tables):
        found = _read_table(table, files, archive, by)
        wanted = map(normalise, chain(table.columns, table.optional if table.needed else ()))
        empty = dict.fromkeys(wanted, "")
        for row in joined.values():
            row.update({column: "" for column in empty if column not in row})
        if found is None:
            continue
        name, content = found
        columns += [column for column in content.header if column and column not in columns]
        first_of = lines if place == 0 else {}
        cells, repeated = _by_picture(table, name, content, first_of)
        again += repeated if place == 0 else 0
        if place == 0:
            joined = {picture: {**empty, **row} for picture, row in cells.items()}
            continue
        for picture, row in cells.items():
            mine = joined.get(picture, {})
            mine.update({column: cell for column, cell in row.items() if not mine.get(column)})
        if table.needed and (lacking := sum(picture not in cells for picture in joined)):
            notes[f"pictures without a row in {PurePosixPath(name).name}"] += lacking
    if by and normalise(by) not in columns:
        raise ConfigError(
            f"--by {plain(by)}: no table of the archive has this column. Accepted is one of "
            f"{plain(', '.join(columns), 1000)}"
        )
    reader = _Reader(archive, by, notes)
    rows = [reader.read(picture, lines[picture], cells) for picture, cells in joined.items()]
    _connect(rows, _pairs(archive, files), archive.smaller)
    return Listing(rows, tuple(columns), again, notes)


def _read_table(
    table: Table, files: ArchiveFiles, archive: Archive, by: str = ""
) -> tuple[str, SiteTable] | None:
    found = files.table(table.names)
    if found is None:
        if not table.needed:
            return None
        accepted = " or ".join(table.names)
        raise refuse(
            plain(files.root.name),
            f"the table {table.names[0]} is missing",
            remedy=f"Accepted is {accepted}, in any folder or zip of it; it comes from "
            f"{archive.where}",
        )
    name, text = found
    try:
        optional = (*table.optional, *([by] if by else ()))
        required = (table.image, *table.columns)
        return name, parse_table(text, name, site="", required=required, optional=optional)
    except DataContractError as error:
        raise refuse(error.where, error.problem, error.got, error.remedy) from error


def _by_picture(
    table: Table, name: str, content: SiteTable, lines: dict[str, int]
) -> tuple[dict[str, dict[str, str]], int]:
    """Cells by picture, and how many rows repeat another; notes the line of each in ``lines``."""
    place = content.columns.index(normalise(table.image))
    others = [k for k in range(len(content.columns)) if k != place]
    found: dict[str, dict[str, str]] = {}
    again = 0
    for line, cells in content.rows:
        picture = _picture(cells[place], name, line)
        row = {content.columns[k]: cells[k] for k in others}
        if found.setdefault(picture, row) == row:
            again += picture in lines
            lines.setdefault(picture, line)
            continue
        raise refuse(
            name,
            "a picture is listed twice, with unlike cells",
            f"'{plain(picture)}' in lines {lines[picture]} and {line}",
            "Keep the row that is right",
        )
    return found, again


def _picture(cell: str, table: str, line: int) -> str:
    """Name of a picture without ending; it becomes a file's name, and so must be one."""
    ending = PurePosixPath(cell).suffix
    name = cell.removesuffix(ending) if ending.lower() in PICTURES else cell
    if not name or len(name) > 200 or not name.isprintable() or set(name) & set("/\\"):
        problem, got = f"line {line}: no name of a picture", f"'{plain(cell)}'"
        raise refuse(table, problem, got, "Accepted is a file's name, without a folder")
    if name.startswith("."):
        problem, got = f"line {line}: no name of a picture", f"'{plain(cell)}'"
        raise refuse(table, problem, got, "It must not begin with a dot")
    return name


class _Reader:
    """Puts joined cells into the study's words."""

    def __init__(self, archive: Archive, by: str, notes: Counter[str]) -> None:
        self.archive, self.by, self.notes = archive, normalise(by), notes
        self.classes = {normalise(told): name for told, name in archive.diagnoses.items()}
        self.remarks = {normalise(told): remark for told, remark in archive.remarks.items()}
        self.others: set[str] = set()

    def read(self, picture: str, line: int, cells: Row) -> ArchiveRow:
        archive = self.archive
        diagnosis, reason = self._diagnosis(cells, line)
        parts = [_known(cells.get(normalise(column), "")) for column in archive.lesion]
        if self.by:
            centre = _known(cells.get(self.by, ""))
        else:
            centre = _known(archive.centre(cells)) if archive.centre else ""
        return ArchiveRow(
            name=picture,
            line=line,
            diagnosis=diagnosis,
            reason=reason,
            patient=_known(cells.get(normalise(archive.patient), "")),
            lesion="-".join(parts) if all(parts) else "",
            age=self._age(cells.get(normalise(archive.age), "")),
            sex=_known(cells.get(normalise(archive.sex), "")).casefold(),
            body_site=_known(cells.get(normalise(archive.body_site), "")).casefold(),
            centre=centre,
            split=self._split(cells, line),
            kept=tuple(cells.get(normalise(column), "") for column in archive.keep),
        )

    def _diagnosis(self, cells: Row, line: int) -> tuple[str, str]:
        """Class of the study, or empty and the reason."""
        if self.archive.one_hot:
            marked = [c for c in self.archive.one_hot if self._marked(cells, c, line)]
            if len(marked) != 1:
                return "", NOT_ONE
            told = marked[0]
        else:
            told = cells[normalise(self.archive.diagnosis)]
        key = normalise(told)
        if remark := self.remarks.get(key):
            self.notes[remark] += 1
        if key in self.classes:
            return self.classes[key], ""
        if not key:
            return "", NO_DIAGNOSIS
        if len(self.others) < _MOST_REASONS:
            self.others.add(key)
        return "", f"{OTHER_DIAGNOSIS}: {plain(told, 80) if key in self.others else 'others'}"

    def _marked(self, cells: Row, column: str, line: int) -> bool:
        text = cells[normalise(column)]
        if text in ("1", "1.0"):
            return True
        if text in ("0", "0.0", ""):
            return False
        table = self.archive.tables[0].names[0]
        got = f"'{plain(text)}'"
        raise refuse(table, f"line {line}, column {column}: no mark", got, "Accepted are 0 and 1")

    def _age(self, text: str) -> str:
        if not _known(text):
            return ""
        try:
            years = float(text.removesuffix("+"))  # '85+' of the ISIC archive
        except ValueError:
            years = -1.0
        if not 0 <= years <= MOST_YEARS:
            self.notes["ages that are no number of years, left empty"] += 1
            return ""
        return f"{years:g}"

    def _split(self, cells: Row, line: int) -> str | None:
        if not self.archive.split:
            return None
        text = cells[normalise(self.archive.split)]
        try:
            return parse_split(text)
        except ValueError as error:
            table, got = self.archive.tables[0].names[0], f"'{plain(text)}'"
            problem = f"line {line}, column {self.archive.split}: an unknown split"
            raise refuse(table, problem, got, f"Accepted: {ACCEPTED_SPLITS}") from error


def _known(text: str) -> str:
    return "" if normalise(text) in NOT_TOLD else text


def _pairs(archive: Archive, files: ArchiveFiles) -> list[tuple[str, str]]:
    """Pairs of pictures that the archive's own list tells to be the same."""
    found = archive.same and _read_table(archive.same, files, archive)
    if not found:
        return []
    name, content = found
    at = [content.columns.index(normalise(c)) for c in (archive.same.image, *archive.same.columns)]
    return [
        (_picture(cells[at[0]], name, line), _picture(cells[at[1]], name, line))
        for line, cells in content.rows
    ]


def _connect(rows: list[ArchiveRow], pairs: list[tuple[str, str]], smaller: str) -> None:
    """Number what belongs together, before any row is left out."""
    same: dict[str, list[tuple[str, object]]] = {
        row.name: [("name", row.name.removesuffix(smaller))] for row in rows
    }
    for number, pair in enumerate(pairs):
        for name in pair:
            if name in same:
                same[name].append(("pair", number))
    keys = [same[row.name] for row in rows]
    for row, number in zip(rows, connect(keys).tolist(), strict=True):
        row.same = number
    for own, row in zip(keys, rows, strict=True):
        own += [("patient", row.patient)] if row.patient else []
        own += [("lesion", row.lesion)] if row.lesion else []
    for row, number in zip(rows, connect(keys).tolist(), strict=True):
        row.group = number
