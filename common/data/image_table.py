"""Which images a site has under a study: who is on them, their label, split and file.

Rows that name one person, lesion or other thing of the study's [groups] are of one group, and so
are rows that are joined through others: a group is a connected component. A group never straddles
splits that fedscan makes; a split that the table gives may, and :meth:`ImageTable.leaks` tells. No
image is opened here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.groups import Leaks, connect, find_leaks
from common.data.tables import NOT_TOLD, SiteTable, listed_file, read_site_table
from common.errors import DataContractError
from common.imaging.splits import ACCEPTED_SPLITS, assign_splits, parse_split
from common.site_files import plain, resolve_inside
from common.studies.site_mapping import load_site_mapping
from common.studies.study import Study
from common.studies.vocabulary import normalise

NO_LABEL = "no label"
NO_SPLIT = "no split"
NO_FILE = "no file named"
DUPLICATE = "file listed again"
UNKNOWN = -1  # index of a condition that a row does not tell
NO_CLASS = -1  # label of an image that has none

_SPLIT = "split"  # column in which a site may fix the split
_MANY_PEOPLE = 10
_SHOWN = 5  # of unknown values, in an error that stays at the site


@dataclass(frozen=True, eq=False)
class ImageTable:
    """One site's images under a study, sorted by file. Everything in it stays at the site.

    Parameters
    ----------
    site : str
        Name of the site.
    root : Path
        The site's folder, resolved; no file may lie outside it.
    files : tuple of str
        Paths relative to ``root``, N of them; not opened yet, so one may prove bad.
    persons : tuple of str
        Empty where the table does not tell.
    groups : (N,) int64
        Numbered as they come; equal numbers mean one group.
    labels : (N,) int64
        Indices into the study's classes.
    conditions : (N, C) int64
        Indices into the values of `Study.condition_columns`; :data:`UNKNOWN` where not told.
    splits : (N,) str
        ``train``, ``val`` or ``test``.
    split_given : bool
        Whether the table fixes the split.
    left_out : mapping of str to int
        How many rows are left out for each reason.
    without_person : int
        How many of the N rows name nobody though the study has a column for it.
    keys : tuple of tuple of (str, str)
        For each row, columns of the study's [groups] and what they hold, where that is a name.
        Of one site, equal where they mean one thing.
    skipped : tuple of (str, str)
        Who, which file or which line of the table is left out, and why.
    unlabelled : ImageTable, optional
        Of those left out for want of a label, the images that some strategies train on: their
        labels are :data:`NO_CLASS`, all are of split ``train``, and groups are numbered as here.
    """

    site: str
    root: Path
    files: tuple[str, ...]
    persons: tuple[str, ...]
    groups: NDArray[np.int64]
    labels: NDArray[np.int64]
    conditions: NDArray[np.int64]
    splits: NDArray[np.str_]
    split_given: bool
    left_out: Mapping[str, int] = field(default_factory=dict)
    without_person: int = 0
    keys: tuple[tuple[tuple[str, str], ...], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    unlabelled: ImageTable | None = None

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Indices of a split's images, ascending."""
        return np.flatnonzero(self.splits == split)

    def leaks(self) -> Leaks:
        """Groups that a given split parts."""
        return find_leaks(self.groups, self.splits)


@dataclass(slots=True)
class _Row:
    line: int
    file: str
    keys: list[tuple[str, str]]
    label: int
    conditions: list[int]
    split: str | None
    other: bool = False  # a value that is none of the classes
    person: str = ""
    target: Path | None = None  # the file without links
    fault: str = ""  # why there is none
    group: int = -1


def read_image_table(folder: Path, site: str, study: Study) -> ImageTable:
    """Read the table that a study names, under the site's own mapping.

    A row without label, file or given split is left out and counted, and so is one whose file is
    not there or lies outside the folder by a link. A value that is not understood refuses the
    table, since whoever holds the data can mend it and nobody else can guess it.

    Without a column ``split``, groups are split 60/20/20 by the hash of a name, as participants of
    a BIDS data set are, stratified by each group's rarest label.

    Parameters
    ----------
    folder : Path
        The site's folder.
    site : str
        Name of the site.
    study : Study
        Of storage ``table`` or ``dicom``.

    Raises
    ------
    DataContractError
        The table or ``site.toml`` cannot be understood, a file is listed under two labels or
        splits, most people are of one group, or no row can be used. The public words hold no
        value, file or person.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise DataContractError(site, "the data folder does not exist", where=plain(str(folder)))
    images, groups = study.images, study.groups
    table = read_site_table(
        root,
        images.table,
        site=site,
        required=[images.file, study.label.column, *filter(None, [groups.person]), *groups.also]
        + [column for column, _ in study.condition_columns],
        optional=[_SPLIT],
        aliases=dict.fromkeys(study.label.aliases, study.label.column),
        mapping=load_site_mapping(root, site),
    )
    rows = _understand(table, study, site)
    _resolve(rows, root, site)
    _connect(rows)  # before any is left out: a row without label joins a person and a lesion too
    kept, skipped = _choose(rows, site, study, split_given=_SPLIT in table.columns)
    left_out = dict(sorted(Counter(why for _, why in skipped).items()))
    given = _SPLIT in table.columns
    if not given and kept:
        _check_groups(kept, study, site)
    splits = [row.split for row in kept] if given else _split_groups(kept)
    others = _without_label(rows, kept, splits, given)
    if not kept and not others:
        raise DataContractError(
            site,
            "no row of the table can be used",
            where=plain(images.table),
            got=", ".join(f"{why}: {n}" for why, n in left_out.items()) or "an empty table",
            remedy="A row needs a label and a file that lies in the site's folder",
        )
    numbers = {g: k for k, g in enumerate(dict.fromkeys(row.group for row in kept + others))}
    width = len(study.condition_columns)

    def made(of: list[_Row], splits: list[str], **more: Any) -> ImageTable:
        return ImageTable(
            site=site,
            root=root,
            files=tuple(row.file for row in of),
            persons=tuple(row.person for row in of),
            groups=_frozen([numbers[row.group] for row in of]),
            labels=_frozen([row.label for row in of]),
            conditions=_frozen([row.conditions for row in of]).reshape(len(of), width),
            splits=_frozen(splits, dtype=str),
            split_given=given,
            without_person=sum(not row.person for row in of) if groups.person else 0,
            keys=tuple(tuple(row.keys) for row in of),
            **more,
        )

    unlabelled = made(others, ["train"] * len(others)) if others else None
    return made(kept, splits, left_out=left_out, skipped=tuple(skipped), unlabelled=unlabelled)


def _understand(table: SiteTable, study: Study, site: str) -> list[_Row]:
    """Read every cell; the label of a row that has none is −1.

    Raises
    ------
    DataContractError
        For each kind of fault once, with the number of rows.
    """
    place = {column: k for k, column in enumerate(table.columns)}
    at = {name: place[normalise(name)] for name in (study.images.file, study.label.column)}
    joined = [c for c in (study.groups.person, *study.groups.also) if c]
    conditions = [(c, place[normalise(c)], values) for c, values in study.condition_columns]
    unknown: dict[str, list[tuple[int, str]]] = {}
    rows = []

    def note(column: str, line: int, text: str) -> None:
        unknown.setdefault(column, []).append((line, text))

    for line, cells in table.rows:
        label, split, text = None, None, cells[at[study.label.column]]
        try:
            label = study.label.read(text)
        except ValueError:
            note(study.label.column, line, text)
        told = []
        for column, k, values in conditions:
            found = values.index(cells[k])
            is_label = normalise(column) == normalise(study.label.column)
            if found is None and not is_label and normalise(cells[k]) not in NOT_TOLD:
                note(column, line, cells[k])
            told.append(UNKNOWN if found is None else found)
        if _SPLIT in place:
            try:
                split = parse_split(cells[place[_SPLIT]])
            except ValueError:
                note(_SPLIT, line, cells[place[_SPLIT]])
        ids = [(c, cells[place[normalise(c)]]) for c in joined]
        keys = [(c, value) for c, value in ids if normalise(value) not in NOT_TOLD]
        file = _file(cells[at[study.images.file]], study, site, line)
        row = _Row(line, file, keys, -1 if label is None else label, told, split)
        row.other = label is None and study.label.is_other(text)
        rows.append(row)
    for column, found in unknown.items():
        _refuse_values(column, found, study, site)
    _spell_alike(rows, study.groups.person)
    return rows


def _spell_alike(rows: list[_Row], person: str) -> None:
    """Give each person or thing one spelling, as cells with other values have one meaning."""
    spelling: dict[tuple[str, str], str] = {}
    for row in rows:
        for column, value in row.keys:
            key = column, normalise(value)
            spelling[key] = min(value, spelling.get(key, value))
    for row in rows:
        row.keys = [(column, spelling[column, normalise(value)]) for column, value in row.keys]
        row.person = next((value for column, value in row.keys if column == person), "")


def _refuse_values(column: str, found: list[tuple[int, str]], study: Study, site: str) -> None:
    """Refuse unknown values of a column: how many to everyone, which to the site alone."""
    if column == _SPLIT:
        accepted = ACCEPTED_SPLITS
    else:
        values = dict([*study.condition_columns, (study.label.column, study.label.classes)])
        accepted = ", ".join(values[column].names)
    texts = list(dict.fromkeys(text for _, text in found))
    shown = ", ".join(f"'{plain(text, 40)}'" for text in texts[:_SHOWN])
    if len(texts) > _SHOWN:
        shown += f" and {len(texts) - _SHOWN} more"
    raise DataContractError(
        site,
        f"the column of the study '{column}' holds unknown values",
        where=f"{plain(study.images.table)}, {len(found)} rows, the first in line {found[0][0]}",
        got=shown,
        remedy=f"Accepted: {accepted}. Add spellings to the study, or codes to site.toml",
    )


def _file(cell: str, study: Study, site: str, line: int) -> str:
    """Path that a cell names, relative to the site's folder; empty where it names none."""
    if not cell:
        return ""
    try:
        return listed_file(cell, study)
    except ValueError as error:
        raise DataContractError(
            site,
            "the table names a file outside the site's folder",
            where=f"{plain(study.images.table)}, line {line}",
            got=f"'{plain(cell)}'",
            remedy="Accepted are paths relative to it, without '..'",
        ) from error


def _resolve(rows: list[_Row], root: Path, site: str) -> None:
    """Follow the links of each row's file."""
    for row in rows:
        if row.file:
            try:
                row.target = resolve_inside(root / row.file, root=root, site=site)
            except DataContractError as error:
                row.fault = error.problem


def _connect(rows: list[_Row]) -> None:
    # The file is a key too: listed twice, it makes one group of the persons whom it shows.
    named = [[*row.keys, *([row.target or row.file] if row.file else [])] for row in rows]
    for row, group in zip(rows, connect(named).tolist(), strict=True):
        row.group = group


def _choose(
    rows: list[_Row], site: str, study: Study, *, split_given: bool
) -> tuple[list[_Row], list[tuple[str, str]]]:
    """Rows that can be used, sorted by file, and which others there are and why not."""
    skipped: list[tuple[str, str]] = []
    chosen: dict[Path, _Row] = {}
    for row in sorted(rows, key=lambda row: (row.file, row.line)):
        if row.label < 0 or not row.file or (split_given and row.split is None):
            reason = NO_LABEL if row.label < 0 else NO_FILE if not row.file else NO_SPLIT
            reason = study.label.none_of_them if row.other else reason
            skipped.append((f"line {row.line}", reason))
            continue
        if row.target is None:
            skipped.append((plain(row.file), row.fault))
            continue
        first = chosen.setdefault(row.target, row)
        if first is row:
            continue
        if (first.label, first.split) != (row.label, row.split):
            raise DataContractError(
                site,
                "the table lists a file twice, under two labels or splits",
                where=f"{plain(study.images.table)}, lines {first.line} and {row.line}",
            )
        skipped.append((f"line {row.line}", DUPLICATE))
    return list(chosen.values()), skipped


def _without_label(rows: list[_Row], kept: list[_Row], splits: list, given: bool) -> list[_Row]:
    """Rows that lack nothing but a label, sorted by file, and that would train."""
    drawn = {row.group: split for row, split in zip(kept, splits, strict=True)}
    found = {row.target: None for row in kept}
    for row in sorted(rows, key=lambda row: (row.file, row.line)):
        split = row.split if given else drawn.get(row.group, "train")
        if row.label < 0 and not row.other and row.target is not None and split == "train":
            found.setdefault(row.target, row)
    return [row for row in found.values() if row is not None]


def _check_groups(rows: list[_Row], study: Study, site: str) -> None:
    """Refuse groups that join most of the people, of whom all would train.

    Raises
    ------
    DataContractError
        As where lesions are numbered anew for each person.
    """
    group, n = Counter(row.group for row in rows).most_common(1)[0]
    people = len({row.person for row in rows if row.group == group and row.person})
    if 2 * n > len(rows) and people >= _MANY_PEOPLE:
        raise DataContractError(
            site,
            "most rows belong to one group, so they cannot be split",
            where=plain(study.images.table),
            got=f"{n} of {len(rows)} rows, of {people} persons",
            remedy="A column under [groups] also must not hold one value for different people's "
            "things, such as a lesion's number that starts anew for each person",
        )


def _split_groups(rows: list[_Row]) -> list[str]:
    """Split of each row, the same for all of a group.

    A group is known to the hash by its first person, or else lesion, or else file, so that the
    split does not depend on the order of rows.
    """
    counts = Counter(row.label for row in rows)
    names: dict[int, tuple[int, str]] = {}
    strata: dict[int, tuple[int, int]] = {}
    for row in rows:
        own = (0, row.person) if row.person else (2, row.file)
        if not row.person and row.keys:
            own = (1, "=".join(row.keys[0]))
        names[row.group] = min(names.get(row.group, own), own)
        rarity = (counts[row.label], row.label)
        strata[row.group] = min(strata.get(row.group, rarity), rarity)
    # Participants keep their bare id, under which a BIDS data set splits them.
    known = {group: f"{kind or ''}{name}" for group, (kind, name) in names.items()}
    splits = assign_splits({known[group]: label for group, (_, label) in strata.items()})
    return [splits[known[row.group]] for row in rows]


def _frozen(values: object, dtype: type = np.int64) -> NDArray:
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array
