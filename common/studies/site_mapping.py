"""A hospital's own names: how its columns and codes translate into those of a study.

The file ``site.toml`` beside the data is read at the site only, and nothing of it leaves::

    [columns]            # theirs = "the study's"
    Befund = "grade"

    [codes.grade]        # by the study's column: theirs = "the study's"
    "0" = "none"
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import DataContractError
from common.reading import parse_toml
from common.site_files import plain, read_text
from common.studies.vocabulary import normalise

FILE = "site.toml"

_LARGEST_FILE = 2**18  # bytes
_REMEDY = (
    "Accepted are [columns] with lines of theirs = 'ours', and [codes.COLUMN], of a column of the "
    "study, with lines of theirs = 'ours'"
)


@dataclass(frozen=True)
class SiteMapping:
    """Translation of a site's table.

    Parameters
    ----------
    columns : mapping of str to str
        The study's column for each of the site's; normalised, as are all keys here.
    codes : mapping of str to mapping of str to str
        By the study's column, the study's spelling for each of the site's.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    codes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def column(self, theirs: str) -> str:
        """Normalised name that the study has for a column of the site."""
        key = normalise(theirs)
        return self.columns.get(key, key)

    def value(self, column: str, text: str) -> str:
        """What the study writes for a cell of one of its columns."""
        codes = self.codes.get(normalise(column))
        return codes.get(normalise(text), text) if codes else text


def load_site_mapping(folder: Path, site: str) -> SiteMapping:
    """Read ``site.toml`` of a site's folder; an empty mapping where there is none.

    Raises
    ------
    DataContractError
        The file cannot be read, leaves the folder by a link, or holds what is not accepted. Its
        public words hold none of the site's columns and codes.
    """
    path = Path(folder) / FILE
    if not os.path.lexists(path):
        return SiteMapping()
    text = read_text(path, _LARGEST_FILE, root=Path(folder), site=site)
    try:
        values = parse_toml(text)
    except ValueError as error:
        raise DataContractError(
            site, f"{FILE} is not TOML", where=FILE, got=plain(str(error)), remedy=_REMEDY
        ) from error

    def refuse(where: str, got: str) -> DataContractError:
        problem = f"{FILE} holds what is not accepted"
        return DataContractError(
            site, problem, where=plain(f"{FILE}, {where}"), got=plain(got), remedy=_REMEDY
        )

    def translations(where: str, table: object) -> dict[str, str]:
        if not isinstance(table, dict):
            raise refuse(where, "not a table")
        found: dict[str, str] = {}
        for theirs, ours in table.items():
            if not isinstance(ours, str) or not ours.strip():
                raise refuse(f"{where}, {theirs}", repr(ours))
            if normalise(theirs) in found:
                raise refuse(f"{where}, {theirs}", "twice, but for case and white space")
            found[normalise(theirs)] = ours.strip()
        return found

    for key in values.keys() - {"columns", "codes"}:
        raise refuse(key, "an unknown key")
    columns = {
        theirs: normalise(ours)
        for theirs, ours in translations("[columns]", values.get("columns", {})).items()
    }
    if len(set(columns.values())) < len(columns):
        raise refuse("[columns]", "two columns become one")
    codes = values.get("codes", {})
    if not isinstance(codes, dict):
        raise refuse("[codes]", "not a table")
    by_column: dict[str, dict[str, str]] = {}
    for column, table in codes.items():
        if normalise(column) in by_column:
            raise refuse(f"[codes.{column}]", "twice, but for case and white space")
        by_column[normalise(column)] = translations(f"[codes.{column}]", table)
    return SiteMapping(columns, by_column)
