"""What `fedscan check` reports: can these data be used, what is wrong where, and what leaks.

The tables are read as a run reads them. Every image is opened once, as a run opens it but smaller,
and described in 1 kB, a volume by its middle axial slice: so much memory is held for each. Files
are hashed only where images are equal, since equal files hold equal images.

Reports name files: they are for the eyes of whoever holds the data, and are returned as values,
neither printed nor logged. Names that look like people's are told by number alone, since a report
is what one shows to others when something does not work.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.data.copies import DESCRIPTION, READ_SIZE, describe, is_empty, sets_of_copies
from common.data.identities import Identities, Tally, conceal, in_path, looks_like, shown
from common.data.image_table import ImageTable
from common.data.leaks import (
    SAME_FILE,
    Leak,
    Rows,
    copies_in_several_places,
    things_in_several_places,
)
from common.data.likely import likely, likely_cohort
from common.data.photographs import picture_settings, require_content
from common.data.site_data import read_table, reader_of
from common.data.tables import NO_TABLE
from common.errors import DataContractError, FedscanError
from common.imaging.bids import is_dataset, list_sites, site_name
from common.imaging.head import oddities
from common.imaging.nifti import scan_header
from common.imaging.participants import NO_PARTICIPANTS
from common.imaging.splits import SPLITS
from common.site_files import ESCAPES, REMEDIES, UNREADABLE, open_inside, plain, relative
from common.studies.study import Study
from common.studies.vocabulary import normalise

MISSING_TABLES = (NO_PARTICIPANTS, NO_TABLE)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SiteReport:
    """One hospital's table and images as they are.

    Parameters
    ----------
    site : str
        Name of the site.
    usable : bool
        Each split holds a usable image, and train holds two classes.
    n : dict
        Usable images by split and class, such as ``n["train"]["MEL"]``.
    persons, groups, without_person : int
        Persons and groups of the usable images, and images of nobody known.
    split_given : bool
        Whether the table fixes the split.
    left_out : dict of str to int
        Rows, participants and folders left out, for each reason.
    incomplete : list of str
        One line each: who of a BIDS data set has no label or no scan.
    problems : list of str
        One line each: unreadable images, and why the site is not usable.
    odd : list of str
        One line each: usable scans of which the head is no adult's whole head, and why. A warning,
        and no problem.
    identities : list of Identities
        What seems to tell who people are, in headers and names. A warning, and no problem.
    voxel_sizes_mm, orientations : dict of str to int
        Usable scans for each voxel size, rounded to 0.01 mm, and each stored orientation.
    """

    site: str
    usable: bool
    n: dict[str, dict[str, int]]
    persons: int = 0
    groups: int = 0
    without_person: int = 0
    split_given: bool = False
    left_out: dict[str, int] = field(default_factory=dict)
    incomplete: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    identities: list[Identities] = field(default_factory=list)
    voxel_sizes_mm: dict[str, int] = field(default_factory=dict)
    orientations: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CohortReport:
    """All hospitals of a cohort.

    Parameters
    ----------
    usable : bool
        There is a site, every one is usable, and no leak is a problem.
    sites : list of SiteReport
        Sorted by name.
    leaks : list of Leak
        What is in more than one split or at more than one hospital.
    copies : dict of str to int
        Images that are copies of another one, in whatever place, by kind.
    problems : list of str
        What is wrong with the cohort as a whole.
    """

    usable: bool
    sites: list[SiteReport] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    copies: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Report as plain dictionaries, lists, strings and numbers."""
        return asdict(self) | {"leaks": [leak.to_dict() for leak in self.leaks]}


class _Look(NamedTuple):
    """One image: its description, a hash of its pixels, of a volume its geometry, and oddities."""

    described: NDArray[np.float32]
    key: bytes
    geometry: Sequence[tuple[str, str]] = ()  # voxel size and stored orientation
    odd: Sequence[str] = ()


@dataclass(frozen=True)
class _Opened:
    """A table's images that could be read: their rows, descriptions and hashes of pixels."""

    table: ImageTable
    rows: NDArray[np.int64]
    described: NDArray[np.float32]
    pixels: list[bytes]


def check_cohort(folder: Path, study: Study, *, progress: Progress | None = None) -> CohortReport:
    """Check the tables and images of one hospital, or of a folder that holds one for each.

    Parameters
    ----------
    folder : Path
        A hospital's folder, which holds the study's table or is a BIDS data set, or a folder of
        them.
    study : Study
    progress : callable, optional
        Told after each image: site, images done, images of that site.
    """
    folder, table = Path(folder), study.images.table
    if (folder / table).exists() if table else is_dataset(folder):
        sites = {site_name(folder): folder}
    else:
        try:
            sites = list_sites(folder)
        except FedscanError as error:
            guess = likely(folder) if folder.is_dir() else ""
            return CohortReport(usable=False, problems=[str(error), *filter(None, [guess])])
    reports, opened = [], []
    for site, path in sites.items():
        report, images = _check_site(path, site, study, progress)
        reports.append(report)
        opened += [images] if images is not None else []
    leaks, copies, problems = _find_leaks(opened)
    if not opened and (guess := likely_cohort(folder)):
        problems.append(guess)
    return CohortReport(
        usable=all(report.usable for report in reports)
        and not any(leak.is_problem for leak in leaks),
        sites=reports,
        leaks=leaks,
        copies=copies,
        problems=problems,
    )


def _check_site(
    folder: Path, site: str, study: Study, progress: Progress | None
) -> tuple[SiteReport, _Opened | None]:
    """Read a site's table, open every image, and name each bad one."""
    classes = study.label.classes.names
    n = {split: dict.fromkeys(classes, 0) for split in SPLITS}
    identities = Tally()
    for where, kinds in reader_of(study).table_identities(folder.resolve(), site, study):
        identities.add(kinds, where)
    try:
        table = read_table(study, site, folder)
    except DataContractError as error:
        told = [conceal(str(error), error.where, error.got)]
        if error.problem in MISSING_TABLES and (guess := likely(folder)):
            told.append(f"site '{site}': {guess}")
        found = identities.result()
        return SiteReport(site, usable=False, n=n, problems=told, identities=found), None
    _find_identities(table, study, identities)
    # Who has no label or scan is named but no problem; what was refused is one.
    lines = [
        (f"site '{site}': {shown(who, k, 'left out:')}: {why}", why)
        for k, (who, why) in enumerate(table.skipped, 1)
    ]
    problems = [line for line, why in lines if why in (ESCAPES, UNREADABLE)]
    look = _look_at_picture if study.images.view == "picture" else _look_at_volume
    described = np.empty((len(table), *DESCRIPTION), np.float32)
    rows: list[int] = []
    pixels: list[bytes] = []
    left_out = Counter(table.left_out)
    geometries: list[tuple[str, str]] = []
    odd: list[str] = []
    for row, file in enumerate(table.files):
        try:
            found = look(table.root / file, table, study)
        except DataContractError as error:
            told = str(error).replace(plain(file), shown(file, row + 1))
            if error.problem not in REMEDIES:  # of which one line tells, below
                problems.append(conceal(told, error.got))
            left_out[error.problem] += 1
        else:
            described[len(rows)] = found.described
            pixels.append(found.key)
            rows.append(row)
            geometries += found.geometry
            if found.odd:
                odd.append(f"site '{site}': {shown(file, row + 1)}: {'; '.join(found.odd)}")
            n[table.splits[row]][classes[table.labels[row]]] += 1
        if progress is not None:
            progress(site, row + 1, len(table))
    problems += [
        f"site '{site}': {n} × a file {why}. {REMEDIES[why]}"
        for why, n in left_out.items()
        if why in REMEDIES
    ]
    persons = [table.persons[row] for row in rows]
    reasons = _unusable(site, n, "picture" if study.images.view == "picture" else "scan")
    report = SiteReport(
        site=site,
        usable=not reasons,
        n=n,
        persons=len(set(persons) - {""}),
        groups=len(set(table.groups[rows].tolist())),
        without_person=persons.count("") if study.groups.person else 0,
        split_given=table.split_given,
        left_out=dict(sorted(left_out.items())),
        incomplete=[line for line, _ in lines if line not in problems],
        problems=problems + reasons,
        odd=odd,
        identities=identities.result(),
        voxel_sizes_mm=dict(sorted(Counter(size for size, _ in geometries).items())),
        orientations=dict(sorted(Counter(axes for _, axes in geometries).items())),
    )
    return report, _Opened(table, np.array(rows, np.int64), described[: len(rows)], pixels)


def _find_identities(table: ImageTable, study: Study, found: Tally) -> None:
    """Look at the names in a table, and at the headers of its files."""
    reader = reader_of(study)
    for part, what in ((table, "file"), (table.unlabelled, "file without label")):
        for row, file in enumerate(part.files if part else (), 1):
            where = shown(file, row, what)
            found.add((f"name of a file or folder: {kind}" for kind in in_path(file)), where)
            kinds = reader.header_identities(part.root / file, root=part.root, site=part.site)
            found.add(kinds, where)
    things = {(study.groups.person, person) for person in table.persons}
    things |= {thing for row in table.keys for thing in row}
    in_files = " ".join(table.files)
    for number, (column, thing) in enumerate(sorted(things), 1):
        of_person = column == study.groups.person
        kind = looks_like(thing, of_person=of_person)
        if kind and thing not in in_files:
            place = f"column '{column}'" if column else "name of a person"
            found.add(
                [f"{place}: {kind}"], shown(thing, number, "person" if of_person else "entry")
            )


def _look_at_picture(path: Path, table: ImageTable, study: Study) -> _Look:
    """Description of a picture, and a hash of its pixels."""
    picture = reader_of(study).read_picture(
        path,
        **picture_settings(study, READ_SIZE),  # what it is refused for does not depend on the size
        root=table.root,
        site=table.site,
    )
    require_content(picture, path, root=table.root, site=table.site)
    # Pictures of almost one colour, such as those under a wrong range, are not all one picture.
    key = _hash_file(path, table) if is_empty(picture) else _hash(picture)
    return _Look(describe(picture), key)


def _look_at_volume(path: Path, table: ImageTable, study: Study) -> _Look:
    """Look at a volume, as :class:`_Look` has it."""
    # Whether a head is found hardly depends on the size.
    cube, found = reader_of(study).measured_volume(
        path, size=READ_SIZE, root=table.root, site=table.site
    )
    header = scan_header(path, site=table.site, root=table.root)
    middle = np.rint(255 * cube[:, :, READ_SIZE // 2, None]).astype(np.uint8)
    size = " × ".join(f"{zoom:.2f}" for zoom in header.zooms_mm)
    odd = oddities(found, cube)
    return _Look(describe(middle), _hash(cube), [(size, header.orientation)], odd)


def _hash(pixels: NDArray) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def _unusable(site: str, n: dict[str, dict[str, int]], image: str) -> list[str]:
    """Reasons, one line each, why what is left of a site is not enough."""
    reasons = [
        f"site '{site}': no usable {split} {image}; each split needs at least one"
        for split in SPLITS
        if not any(n[split].values())
    ]
    if sum(map(bool, n["train"].values())) == 1:
        (only,) = (name for name, count in n["train"].items() if count)
        reasons.append(f"site '{site}': all train {image}s are {only}; training needs two classes")
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
            rows.files.append(shown(table.files[row], row + 1))
            rows.keys.append(tuple((column, normalise(told)) for column, told in table.keys[row]))
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
    """Hash the bytes of each file whose image another one equals; for the others, their row."""
    files: list[Hashable] = list(range(len(places)))
    problems = []
    alone = np.bincount(equal, minlength=1)[equal] == 1
    for row in np.flatnonzero(~alone).tolist():
        table, file = places[row]
        try:
            files[row] = _hash_file(table.root / file, table)
        except DataContractError as error:  # gone since it was opened
            told = str(error).replace(plain(file), shown(file, row + 1))
            problems.append(f"'{SAME_FILE}' is not known of a file: {told}")
    return files, problems


def _hash_file(path: Path, table: ImageTable) -> bytes:
    with open_inside(path, root=table.root, site=table.site) as stream:
        try:
            return hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            where = relative(path, table.root)
            raise DataContractError(table.site, UNREADABLE, where=where) from error
