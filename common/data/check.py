"""What `fedscan check` reports of hospitals whose pictures a table lists: usable or not, and leaks.

Every picture is opened once, as a run opens it but smaller, and described in 1 kB: so much memory
is held for each. Files are hashed only where pictures are equal, since equal files hold equal
pictures.

Reports name files: they are for the eyes of whoever holds the data, and are returned as values,
neither printed nor logged.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.copies import DESCRIPTION, READ_SIZE, describe, sets_of_copies
from common.data.image_table import ImageTable
from common.data.leaks import (
    SAME_FILE,
    Leak,
    Rows,
    copies_in_several_places,
    things_in_several_places,
)
from common.data.photographs import MOST_BYTES
from common.data.site_data import read_table, reader_of
from common.errors import DataContractError, FedscanError
from common.imaging.bids import list_sites, site_name
from common.imaging.splits import SPLITS
from common.site_files import open_inside
from common.studies.study import Study

Progress = Callable[[str, int, int], None]

_CHUNK = 2**20  # bytes of a file that are hashed at once


@dataclass(frozen=True)
class TableReport:
    """One hospital's table and pictures as they are.

    Parameters
    ----------
    site : str
        Name of the site.
    usable : bool
        Each split holds a usable picture, and train holds two classes.
    n : dict
        Usable pictures by split and class, such as ``n["train"]["MEL"]``.
    persons, groups, without_person : int
        Persons and groups of the usable pictures, and pictures of nobody known.
    split_given : bool
        Whether the table fixes the split.
    left_out : dict of str to int
        Rows left out, for each reason.
    problems : list of str
        One line each: unreadable pictures, and why the site is not usable.
    """

    site: str
    usable: bool
    n: dict[str, dict[str, int]]
    persons: int = 0
    groups: int = 0
    without_person: int = 0
    split_given: bool = False
    left_out: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TablesReport:
    """All hospitals of a cohort.

    Parameters
    ----------
    usable : bool
        There is a site, every one is usable, and no leak is a problem.
    sites : list of TableReport
        Sorted by name.
    leaks : list of Leak
        What is in more than one split or at more than one hospital.
    copies : dict of str to int
        Pictures that are copies of another one, in whatever place, by kind.
    problems : list of str
        What is wrong with the cohort as a whole.
    """

    usable: bool
    sites: list[TableReport] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    copies: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Report as plain dictionaries, lists, strings and numbers."""
        return asdict(self) | {"leaks": [leak.to_dict() for leak in self.leaks]}


@dataclass(frozen=True)
class _Opened:
    """A table's pictures that could be read: their rows, descriptions and hashes of pixels."""

    table: ImageTable
    rows: NDArray[np.int64]
    described: NDArray[np.float32]
    pixels: list[bytes]


def check_tables(folder: Path, study: Study, *, progress: Progress | None = None) -> TablesReport:
    """Check the tables and pictures of one hospital, or of a folder that holds one for each.

    Parameters
    ----------
    folder : Path
        A hospital's folder, which holds the study's table, or a folder of them.
    study : Study
        Of storage ``table`` or ``dicom``.
    progress : callable, optional
        Told after each picture: site, pictures done, pictures of that site.
    """
    folder = Path(folder)
    if (folder / study.images.table).exists():
        sites = {site_name(folder): folder}
    else:
        try:
            sites = list_sites(folder)
        except FedscanError as error:
            return TablesReport(usable=False, problems=[str(error)])
    reports, opened = [], []
    for site, path in sites.items():
        report, pictures = _check_site(path, site, study, progress)
        reports.append(report)
        opened += [pictures] if pictures is not None else []
    leaks, copies, problems = _find_leaks(opened)
    return TablesReport(
        usable=all(report.usable for report in reports)
        and not any(leak.is_problem for leak in leaks),
        sites=reports,
        leaks=leaks,
        copies=copies,
        problems=problems,
    )


def _check_site(
    folder: Path, site: str, study: Study, progress: Progress | None
) -> tuple[TableReport, _Opened | None]:
    """Read a site's table, open every picture, and name each bad one."""
    n = {split: dict.fromkeys(study.label.classes.names, 0) for split in SPLITS}
    try:
        table = read_table(study, site, folder)
    except DataContractError as error:
        return TableReport(site, usable=False, n=n, problems=[str(error)]), None
    read = reader_of(study).read_picture
    described = np.empty((len(table), *DESCRIPTION), np.float32)
    rows: list[int] = []
    pixels: list[bytes] = []
    problems: list[str] = []
    left_out = Counter(table.left_out)
    for row, file in enumerate(table.files):
        try:
            picture = read(
                table.root / file,
                size=READ_SIZE,  # what a picture is refused for does not depend on the size
                channels=study.images.channels,
                fit=study.images.fit,
                intensity=study.images.intensity,
                intensity_range=study.images.intensity_range,
                root=table.root,
                site=site,
            )
        except DataContractError as error:
            problems.append(str(error))
            left_out[error.problem] += 1
        else:
            described[len(rows)] = describe(picture)
            pixels.append(hashlib.blake2b(picture.tobytes(), digest_size=16).digest())
            rows.append(row)
            n[table.splits[row]][study.label.classes.names[table.labels[row]]] += 1
        if progress is not None:
            progress(site, row + 1, len(table))
    persons = [table.persons[row] for row in rows]
    reasons = _unusable(site, n)
    report = TableReport(
        site=site,
        usable=not reasons,
        n=n,
        persons=len(set(persons) - {""}),
        groups=len(set(table.groups[rows].tolist())),
        without_person=persons.count("") if study.groups.person else 0,
        split_given=table.split_given,
        left_out=dict(sorted(left_out.items())),
        problems=problems + reasons,
    )
    return report, _Opened(table, np.array(rows, np.int64), described[: len(rows)], pixels)


def _unusable(site: str, n: dict[str, dict[str, int]]) -> list[str]:
    """Reasons, one line each, why what is left of a site is not enough."""
    reasons = [
        f"site '{site}': no usable {split} picture; each split needs at least one"
        for split in SPLITS
        if not any(n[split].values())
    ]
    if sum(map(bool, n["train"].values())) == 1:
        (only,) = (name for name, count in n["train"].items() if count)
        reasons.append(f"site '{site}': all train pictures are {only}; training needs two classes")
    return reasons


def _find_leaks(opened: list[_Opened]) -> tuple[list[Leak], dict[str, int], list[str]]:
    """Leaks within and between hospitals, copies by kind, and what could not be compared."""
    if not opened:
        return [], {}, []
    rows = Rows([], [], [], [], [])
    places: list[tuple[ImageTable, str]] = []
    for one in opened:
        table = one.table
        for row in one.rows.tolist():
            rows.sites.append(table.site)
            rows.splits.append(str(table.splits[row]))
            rows.files.append(table.files[row])
            rows.keys.append(table.keys[row])
            rows.groups.append((table.site, int(table.groups[row])))
            places.append((table, table.files[row]))
    pixels = [key for one in opened for key in one.pixels]
    equal, near = sets_of_copies(np.concatenate([one.described for one in opened]), pixels)
    files, problems = _hash_files(places, equal)
    leaks, copies = copies_in_several_places(rows, files, equal, near)
    return things_in_several_places(rows) + leaks, copies, problems


def _hash_files(
    places: Sequence[tuple[ImageTable, str]], equal: NDArray[np.int64]
) -> tuple[list[Hashable], list[str]]:
    """Hash the bytes of each file whose picture another one equals; for the others, their row."""
    files: list[Hashable] = list(range(len(places)))
    problems = []
    alone = np.bincount(equal, minlength=1)[equal] == 1
    for row in np.flatnonzero(~alone).tolist():
        table, file = places[row]
        try:
            files[row] = _hash_file(table.root / file, table)
        except (DataContractError, OSError) as error:  # gone since it was opened
            problems.append(f"'{SAME_FILE}' is not known of a file: {error}")
    return files, problems


def _hash_file(path: Path, table: ImageTable) -> bytes:
    digest = hashlib.sha256()
    with open_inside(path, root=table.root, site=table.site) as stream:
        for _ in range(0, MOST_BYTES, _CHUNK):
            if not (chunk := stream.read(_CHUNK)):
                break
            digest.update(chunk)
    return digest.digest()
