"""A downloaded archive becomes one folder a hospital, as the study ``skin-lesions`` reads it.

Layout of a hospital's folder::

    images/ISIC_0000000.jpg    linked to the archive's file where that can be, else copied
    lesions.csv                image, patient_id, lesion_id, diagnosis, age, sex, site (of the
                               body), what the archive has for other studies, split if it is kept
    README

Pictures that share a patient or a lesion stay together: at one hospital, and, as
`common.data.image_table` splits by the same groups, in one split. What is left out is counted.
"""

from __future__ import annotations

import csv
import io
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from common.data.archive_files import (
    LARGEST_PICTURE,
    ArchiveFiles,
    DamagedFileError,
    refuse,
    require_space,
)
from common.data.archive_hospitals import (
    DRAW,
    check_shares,
    draw_hospitals,
    rarest_diagnosis,
    told_hospitals,
)
from common.data.archive_rows import LISTED_AGAIN, ArchiveRow, Listing, read_rows
from common.data.archives import ARCHIVES, Archive
from common.data.groups import find_leaks
from common.errors import ConfigError
from common.files import make_folder, write_atomically
from common.imaging.splits import assign_splits
from common.site_files import plain

COLUMNS = ("image", "patient_id", "lesion_id", "diagnosis", "age", "sex", "site")

NO_PICTURE = "no picture of this name in the archive"
EMPTY, LARGE = "a picture's file is empty", "a picture's file is too large"
DAMAGED = "a picture cannot be read from the archive"
SAME = "the same picture is there under another name"
NO_CENTRE = "nothing tells the hospital"
NO_SPLIT = "no published split"
MOVED = "pictures moved to the hospital that has most of their patient or lesion"
UNLISTED = "pictures that no table lists"

Progress = Callable[[str, int, int], None]  # hospital, pictures done, of so many


@dataclass(frozen=True)
class SortedHospital:
    """What was put into one hospital's folder.

    Parameters
    ----------
    images, groups : int
        Pictures, and sets of them that share patients or lesions.
    linked : int
        Of the pictures; the others are copies.
    diagnoses : mapping of str to int
        Pictures of each; "" where unknown.
    """

    images: int
    groups: int
    linked: int
    diagnoses: Mapping[str, int]


@dataclass(frozen=True)
class Summary:
    """What became of an archive.

    Parameters
    ----------
    archive : str
    hospitals : mapping of str to SortedHospital
    left_out : mapping of str to int
        Rows of the tables, by reason.
    notes : mapping of str to int
        What else should be known, and how often.
    published_leaks : mapping of str to int, optional
        Where the archive has a split: ``groups`` that are in more than one part of it, and
        ``images`` and ``test`` images of such groups, of ``all_test`` test images.
    split_kept : bool
        Whether the published split is in the tables.
    """

    archive: str
    hospitals: Mapping[str, SortedHospital]
    left_out: Mapping[str, int]
    notes: Mapping[str, int]
    published_leaks: Mapping[str, int] | None
    split_kept: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True)
class Sorting:
    """How an archive is sorted.

    Parameters
    ----------
    by : str
        Column whose values are the hospitals.
    shares : mapping of str to float, optional
        Hospitals and their parts of the pictures, drawn at random by groups, each diagnosis
        alike; their sum is the whole. Without this and ``by``, the archive's tables tell.
    seed : int
        Of that draw.
    keep_split : bool
        Keep the published split.
    keep_unlabelled : bool
        Keep pictures without a diagnosis of the study, with an empty cell.
    copy : bool
        Copy pictures even where they could be linked.
    """

    by: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    keep_split: bool = False
    keep_unlabelled: bool = False
    copy: bool = False


def sort_archive(
    name: str,
    source: Path,
    out: Path,
    how: Sorting | None = None,
    *,
    progress: Progress | None = None,
) -> Summary:
    """Sort an archive into one folder a hospital, whole or not at all.

    Parameters
    ----------
    name : str
        A key of ``ARCHIVES``.
    source : Path
        The unpacked folder, one with the zips and tables as downloaded, or a zip.
    out : Path
        Folder to make; one that exists must be empty.
    how : Sorting, optional
    progress : callable, optional

    Raises
    ------
    ConfigError
        The archive cannot be understood, says nothing of hospitals though nothing else was asked
        for, ``out`` is not empty, or the disk is full.
    """
    how = how or Sorting()
    archive = ARCHIVES[name]
    _check(archive, how)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"'{out}' exists and is not empty: name another folder, or remove it first"
        )
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex}.partial"
    tables = [one for table in (*archive.tables, archive.same) if table for one in table.names]
    try:
        with ArchiveFiles(source, tables, partial / ".zips") as files:
            listing = read_rows(archive, files, how.by)
            notes = files.notes + listing.notes
            left_out = Counter({LISTED_AGAIN: listing.listed_again})
            listed = {row.name for row in listing.rows}
            notes[UNLISTED] += sum(len(v) for k, v in files.pictures.items() if k not in listed)
            rows = _choose(listing, files, archive, how, left_out)
            if how.shares:
                hospitals = draw_hospitals(rows, how.shares, how.seed)
            else:
                hospitals, homeless, moved = told_hospitals(rows, archive.title, how.by)
                left_out[NO_CENTRE] += homeless
                notes[MOVED] += moved
            leaks = _published_leaks(hospitals) if archive.split else None
            _require_space(hospitals, partial, how)
            written = {}
            for site, mine in hospitals.items():
                done = _write(partial / site, site, mine, name, how, left_out, progress)
                if done is not None:
                    written[site] = done
        if not written:
            raise refuse(
                plain(source.name), "none of the pictures can be read", str(dict(left_out))
            )
        partial.replace(out)
    except OSError as error:
        raise ConfigError(f"'{out}' cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing, once it is in place
    return Summary(
        archive=name,
        hospitals=written,
        left_out=dict(sorted((+left_out).items())),
        notes=dict(sorted((+notes).items())),
        published_leaks=leaks,
        split_kept=how.keep_split,
    )


def _check(archive: Archive, how: Sorting) -> None:
    if how.by and how.shares:
        raise ConfigError("--by and --sites exclude each other: hospitals are told or drawn")
    if how.keep_split and not archive.split:
        having = ", ".join(name for name, one in ARCHIVES.items() if one.split)
        raise ConfigError(f"--keep-split: {archive.title} has no published split; {having} has")
    if not (how.by or how.shares or archive.centre):
        raise ConfigError(f"the tables of {archive.title} do not tell hospitals: {DRAW}")
    check_shares(how.shares)


def _choose(
    listing: Listing,
    files: ArchiveFiles,
    archive: Archive,
    how: Sorting,
    left_out: Counter[str],
) -> list[ArchiveRow]:
    """Rows that can be used, sorted by name; each picture once."""
    chosen: list[ArchiveRow] = []
    for row in sorted(listing.rows, key=lambda row: row.name):
        row.file = files.picture(row.name, archive.folders)
        if row.file is None:
            reason = NO_PICTURE
        elif not row.file.size:
            reason = EMPTY
        elif row.file.size > LARGEST_PICTURE:
            reason = LARGE
        elif not row.diagnosis and not how.keep_unlabelled:
            reason = row.reason
        elif how.keep_split and row.split is None:
            reason = NO_SPLIT
        else:
            chosen.append(row)
            continue
        left_out[reason] += 1
    if not chosen:
        reasons = ", ".join(f"{why}: {n}" for why, n in (+left_out).items()) or "empty tables"
        raise refuse(
            plain(files.root.name),
            "no picture that the tables list can be used",
            f"{sum(map(len, files.pictures.values()))} pictures; {reasons}",
            "The folder or zip must hold the archive's pictures under the names in its tables",
        )
    shrunk = archive.smaller or "\0"
    chosen.sort(key=lambda row: (row.name.endswith(shrunk), row.name))  # the larger copy first
    first: dict[int, ArchiveRow] = {}
    for row in chosen:
        first.setdefault(row.same, row)
    left_out[SAME] += len(chosen) - len(first)
    return sorted(first.values(), key=lambda row: row.name)


def _published_leaks(hospitals: Mapping[str, Iterable[ArchiveRow]]) -> dict[str, int]:
    rows = [row for mine in hospitals.values() for row in mine if row.split]
    splits = np.array([row.split for row in rows], dtype=str)
    leaks = find_leaks(np.array([row.group for row in rows], dtype=np.int64), splits)
    return {
        "groups": len(leaks.groups),
        "images": sum(leaks.images.values()),
        "test": leaks.images["test"],
        "all_test": int((splits == "test").sum()),
    }


def _with_validation(rows: Sequence[ArchiveRow]) -> list[str]:
    """Published split of each row; without a part to validate, a fifth of the training groups."""
    splits = [row.split or "" for row in rows]
    if "val" in splits:
        return splits
    groups: dict[int, list[ArchiveRow]] = {}
    for row, split in zip(rows, splits, strict=True):
        if split == "train":
            groups.setdefault(row.group, []).append(row)
    strata = rarest_diagnosis(groups)
    order = {name: k for k, name in enumerate(sorted(set(strata.values())))}
    drawn = assign_splits({mine[0].name: order[strata[g]] for g, mine in groups.items()})
    validating = {g for g, mine in groups.items() if drawn[mine[0].name] == "val"}
    return [
        "val" if split == "train" and row.group in validating else split
        for row, split in zip(rows, splits, strict=True)
    ]


def _require_space(
    hospitals: Mapping[str, Iterable[ArchiveRow]], partial: Path, how: Sorting
) -> None:
    make_folder(partial)
    disk = partial.stat().st_dev
    size = 0
    for row in (row for mine in hospitals.values() for row in mine):
        linked = row.file.path and not how.copy and row.file.path.stat().st_dev == disk
        size += 0 if linked else row.file.size
    require_space(partial, size)


def _write(
    folder: Path,
    site: str,
    rows: list[ArchiveRow],
    name: str,
    how: Sorting,
    left_out: Counter[str],
    progress: Progress | None,
) -> SortedHospital | None:
    """Write one hospital; None if none of its pictures can be read."""
    images = make_folder(make_folder(folder) / "images")
    kept: list[tuple[ArchiveRow, str]] = []
    linked = 0
    for done, row in enumerate(rows, start=1):
        file = row.name + PurePosixPath(row.file.name).suffix.lower()
        try:
            linked += row.file.put(images / file, copy=how.copy)
            kept.append((row, file))
        except DamagedFileError:
            left_out[DAMAGED] += 1
        if progress is not None:
            progress(site, done, len(rows))
    if not kept:
        shutil.rmtree(folder)
        return None
    archive = ARCHIVES[name]
    columns = [*COLUMNS, *archive.keep]
    splits: Sequence[str] = ()
    if how.keep_split:
        columns.append("split")
        splits = _with_validation([row for row, _ in kept])
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for k, (row, file) in enumerate(kept):
        cells = (file, row.patient, row.lesion, row.diagnosis, row.age, row.sex, row.body_site)
        writer.writerow([*cells, *row.kept, *splits[k : k + 1]])
    write_atomically(folder / "lesions.csv", text.getvalue().encode())
    readme = (
        f"Pictures and rows of {archive.title}, sorted into hospitals by fedscan.\n"
        "The archive's licence and terms of use hold for them.\n"
    )
    write_atomically(folder / "README", readme.encode())
    return SortedHospital(
        images=len(kept),
        groups=len({row.group for row, _ in kept}),
        linked=linked,
        diagnoses=dict(sorted(Counter(row.diagnosis for row, _ in kept).items())),
    )
