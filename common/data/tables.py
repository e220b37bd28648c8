"""A hospital's table as it lies there: comma, semicolon or tab, with or without a byte order mark.

Only the columns that are asked for are kept, and judged: others may stand twice, or hold other
encodings and quotes. The file is not trusted: bytes, lines, columns and
rows are bounded.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataContractError
from common.imaging.participants import has_whole_quotes
from common.site_files import is_utf8, plain, read_text, require_utf8
from common.studies.sections import check_relative
from common.studies.site_mapping import SiteMapping
from common.studies.study import Study
from common.studies.vocabulary import normalise

MOST_BYTES = 256 * 2**20
MOST_ROWS = 1_000_000
MOST_COLUMNS = 1000
LONGEST_LINE = 2**16  # characters
MOST_YEARS = 130  # of a person's age
# Normalised cells that name no person and no value: rows that hold one do not belong together.
NOT_TOLD = frozenset({"", "n/a", "na", "nan", "none", "null", "unk", "unknown"})

NO_TABLE = "the study's table is missing"
NO_ROWS = "the table cannot be read as rows of cells"

_SEPARATORS = ",;\t"


@dataclass(frozen=True)
class SiteTable:
    """Some columns of a table.

    Parameters
    ----------
    columns : tuple of str
        The study's names of those that the table has, normalised.
    rows : tuple of (int, tuple of str)
        Line number, and the stripped cells of ``columns`` with the site's codes translated. Lines
        without any cell are left out.
    header : tuple of str
        All columns, normalised.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    header: tuple[str, ...] = ()


def read_site_table(
    root: Path,
    name: str,
    *,
    site: str,
    required: Collection[str],
    optional: Collection[str] = (),
    aliases: Mapping[str, str] | None = None,
    mapping: SiteMapping | None = None,
) -> SiteTable:
    """Read the columns of a study from a site's table.

    The separator is the one under which the first line holds most of the columns asked for.

    Parameters
    ----------
    root : Path
        The site's folder.
    name : str
        The table's path in it.
    site : str
        Name of the site.
    required, optional : collection of str
        The study's columns; known in any case.
    aliases : mapping of str to str, optional
        Other names of some, each with the column that it stands for where that is missing.
    mapping : SiteMapping, optional
        What the site calls them.

    Raises
    ------
    DataContractError
        The table is missing, leaves the folder, is too large or no table, lacks a required column,
        or has one twice.
    """
    path = root / name
    if not os.path.lexists(path):
        raise DataContractError(
            site,
            NO_TABLE,
            where=plain(name),
            remedy="It must lie in the site's folder, under the name in the study's [images] table",
        )
    text = read_text(path, MOST_BYTES, root=root, site=site, strict=False)
    mapping = mapping or SiteMapping()
    return parse_table(
        text,
        plain(name),
        site=site,
        required=required,
        optional=optional,
        aliases=aliases,
        mapping=mapping,
    )


def parse_table(
    text: str,
    name: str,
    *,
    site: str,
    required: Collection[str],
    optional: Collection[str] = (),
    aliases: Mapping[str, str] | None = None,
    mapping: SiteMapping | None = None,
) -> SiteTable:
    """Read a table's text; parameters and errors as of :func:`read_site_table`.

    Parameters
    ----------
    name : str
        What errors call the table.
    mapping : SiteMapping, optional
        Left out: the table is no site's, and errors speak of no study.
    """
    column = "column" if mapping is None else "column of the study"
    may_map = "" if mapping is None else "; site.toml may translate their names"
    mapping = mapping or SiteMapping()
    stands_for = {normalise(name): normalise(to) for name, to in (aliases or {}).items()}
    wanted = {normalise(column) for column in (*required, *optional)}
    separator = _separator(text[:LONGEST_LINE], wanted | stands_for.keys(), mapping)
    plainly = not has_whole_quotes(text, separator)
    lines = _parse(text, separator, site, name, csv.QUOTE_NONE if plainly else csv.QUOTE_MINIMAL)
    _, first = next(lines, (0, []))
    header = [mapping.column(cell) for cell in first]
    header = [to if (to := stands_for.get(name, name)) not in header else name for name in header]
    missing = sorted({normalise(column) for column in required} - set(header))
    if missing:
        require_utf8(text, name, site=site)
        raise DataContractError(
            site,
            f"the table lacks a {column}: {', '.join(missing)}",
            where=name,
            got=plain(f"columns {', '.join(first)}"),
            remedy=f"Its first line must name the columns{may_map}",
        )
    if twice := sorted(one for one, n in Counter(header).items() if n > 1 and one in wanted):
        raise DataContractError(
            site,
            f"the table has a {column} twice: {', '.join(twice)}",
            where=name,
            remedy="Rename one of them" + (may_map and ", or mend [columns] of site.toml"),
        )
    kept = [place for place, column in enumerate(header) if column in wanted]
    columns = tuple(header[place] for place in kept)
    rows: list[tuple[int, tuple[str, ...]]] = []
    for line, cells in lines:
        misfit = any(place >= len(cells) for place in kept) or any(cells[len(header) :])
        judged = cells if misfit else [cells[place] for place in kept]
        if plainly and any('"' in cell for cell in judged):
            where = f"{name}, line {line}"
            raise DataContractError(site, NO_ROWS, where=where, got="an open quotation mark")
        if misfit:
            raise DataContractError(
                site,
                "a row of the table does not fit its header",
                where=f"{name}, line {line}",
                got=f"{len(cells)} cells where the header has {len(header)}",
                remedy="A cell that holds the separator must be quoted",
            )
        if len(rows) == MOST_ROWS:
            problem = f"the table has more than {MOST_ROWS} rows"
            raise DataContractError(site, problem, where=name)
        for place in kept:
            if not is_utf8(cells[place]):
                require_utf8(text, name, site=site)
        chosen = (mapping.value(one, cells[at]) for one, at in zip(columns, kept, strict=True))
        rows.append((line, tuple(chosen)))
    return SiteTable(columns, tuple(rows), tuple(header))


def _separator(text: str, wanted: Collection[str], mapping: SiteMapping) -> str:
    """Separator under which the first line holds most of the wanted columns, else most cells."""

    def score(separator: str) -> tuple[int, int]:
        try:
            first = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
        except csv.Error:
            return 0, 0
        return sum(mapping.column(cell) in wanted for cell in first), len(first)

    return max(_SEPARATORS, key=score)


def _parse(
    text: str, separator: str, site: str, name: str, quoting: int
) -> Iterator[tuple[int, list[str]]]:
    """Stripped cells of each line that holds any, with its number."""

    def refuse(problem: str, got: str = "") -> DataContractError:
        where = f"{name}, line {max(1, reader.line_num)}"
        return DataContractError(site, problem, where=where, got=got)

    def bounded() -> Iterator[str]:
        # By lines that the parser has not seen yet, so that none makes millions of cells.
        for line in io.StringIO(text, newline=""):
            if len(line) > LONGEST_LINE:
                raise refuse(f"a line of the table has more than {LONGEST_LINE} characters")
            yield line

    reader = csv.reader(bounded(), delimiter=separator, strict=True, quoting=quoting)
    try:
        for cells in reader:
            if len(cells) > MOST_COLUMNS:
                raise refuse(f"the table has more than {MOST_COLUMNS} columns")
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise refuse(NO_ROWS, plain(str(error))) from error


def listed_file(cell: str, study: Study) -> str:
    """Path of the file that a cell of the table names, as in :attr:`ImageTable.files`.

    Raises
    ------
    ValueError
        It leads out of the site's folder.
    """
    return (Path(study.images.folder) / check_relative(cell + study.images.suffix)).as_posix()
