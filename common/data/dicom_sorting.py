"""A folder of DICOM files becomes a hospital's folder, without anything that names a person.

Layout of that folder, of which each part is there if anything is in it::

    participants.tsv                     participant_id, sex, age, manufacturer
    dataset_description.json
    sub-<pseudonym>/anat/sub-<pseudonym>_T1w.nii.gz
    images.csv                           image, person, series (of the person), and COLUMNS
    images/sub-<pseudonym>_0001.png      8 bits, or 16 for files of more
    README

Pixels, spacing and orientation leave a file, and the columns of `common.data.dicom_terms`: a list
of what is kept, never of what is dropped. What is left out is counted: the files found are those
used and those left out.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.data.dicom_files import UnusableError, silent
from common.data.dicom_listing import (
    LINKS,
    NOBODY,
    RECOGNISABLE,
    UNREADABLE,
    Choice,
    Listed,
    find_files,
    list_image,
    tell_issuers_apart,
)
from common.data.dicom_pixels import read_frames
from common.data.dicom_series import convert_series, require_dicom2nifti
from common.data.dicom_terms import COLUMNS
from common.data.pseudonyms import Pseudonyms
from common.errors import ConfigError, DataContractError
from common.files import PRIVATE_FILE, as_text, make_folder, write_atomically
from common.site_files import open_inside

SAME = "the same image is there in another file"
OTHER_SERIES = "MR: another T1-weighted series of the same person"

PARTICIPANT_COLUMNS = ("participant_id", "sex", "age", "manufacturer")
LINK_COLUMNS = (
    *("output", "person", "file", "patient_id", "accession_number", "study_date"),
    "sop_instance_uid",
)
_DESCRIPTION = b'{"Name": "MR volumes sorted by fedscan", "BIDSVersion": "1.9.0"}\n'
_README = b"""Images of DICOM files, without their headers; sorted by fedscan.
People have pseudonyms, which the site's key alone connects with them. Volumes of the head show the
face, and pictures may show text or features by which a person is known: look before you share.
"""

Progress = Callable[[str, int, int], None]  # part of the work, done, of so many


@dataclass(frozen=True)
class Summary:
    """What became of a folder of DICOM files.

    Parameters
    ----------
    files, used : int
        Files found, and those of which something was made.
    people, pictures, volumes : int
        That the output holds.
    left_out : mapping of str to int
        Files, by reason; with ``used`` they are all.
    notes : mapping of str to int
        What else should be known, and of how many files.
    kept : tuple of str
        Columns of the output besides names; every other element is dropped.
    """

    files: int
    used: int
    people: int
    pictures: int
    volumes: int
    left_out: dict[str, int]
    notes: dict[str, int]
    kept: tuple[str, ...] = COLUMNS

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


@dataclass
class _Output:
    """What was made so far, in a folder that nobody sees before it is whole."""

    folder: Path
    window: bool
    root: Path
    images: list[tuple[str, ...]] = field(default_factory=list)
    participants: list[tuple[str, ...]] = field(default_factory=list)
    links: list[tuple[str, ...]] = field(default_factory=list)
    used: int = 0


def sort_dicom(
    source: Path,
    out: Path,
    choice: Choice | None = None,
    *,
    key: bytes,
    window: bool = True,
    link: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Turn a folder of DICOM files into pictures and volumes, whole or not at all.

    Parameters
    ----------
    source : Path
        Folder with DICOM files at any depth, under any names.
    out : Path
        Folder to make; one that exists must be empty.
    choice : Choice, optional
    key : bytes
        Of the pseudonyms (`common.data.pseudonyms.load_key`).
    window : bool
        Grey pictures through the window that a file has; else, what its bits can hold becomes the
        full range.
    link : Path, optional
        Table to write for the site alone: which file of which patient became what.
    progress : callable, optional

    Raises
    ------
    ConfigError
        There is nothing to make, ``out`` is not empty, ``link`` exists or lies in it, a package is
        missing, or the disk is full.
    """
    choice = choice or Choice()
    _check(source, out, link)
    tell = progress or (lambda part, done, total: None)
    left_out: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    files, notes[LINKS] = find_files(source)
    listed = _list(files, source, choice, Pseudonyms(key), left_out, tell)
    notes[NOBODY] = sum(not one.is_known for one in listed)
    notes[RECOGNISABLE] = sum(one.is_recognisable for one in listed)
    if any(one.is_volume for one in listed):
        require_dicom2nifti()
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex}.partial"
    made = _Output(partial, window, source)
    try:
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, partial, ignore_errors=True)
            make_folder(partial)
            with silent():
                _write_pictures([one for one in listed if not one.is_volume], made, left_out, tell)
                _write_volumes([one for one in listed if one.is_volume], made, left_out, tell)
            if not made.used:
                raise _nothing(source, files, left_out)
            _write_tables(made)
            if link is not None:
                write_atomically(link, _csv(LINK_COLUMNS, made.links))
                undo.callback(link.unlink, missing_ok=True)
            partial.replace(out)
            undo.pop_all()
    except OSError as error:
        raise ConfigError(f"'{out}' cannot be written: {error.strerror}") from error
    return Summary(
        files=len(files),
        used=made.used,
        people=len({row[1] for row in made.images} | {row[0] for row in made.participants}),
        pictures=len(made.images),
        volumes=len(made.participants),
        left_out=dict(sorted((+left_out).items())),
        notes=dict(sorted((+notes).items())),
    )


def _check(source: Path, out: Path, link: Path | None) -> None:
    if out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"'{out}' lies in the folder that is read: name one elsewhere")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"'{out}' exists and is not empty: name another folder, or remove it first"
        )
    if link is None:
        return
    if link.resolve().is_relative_to(out.resolve()):
        raise ConfigError(f"--link {link}: the table identifies people, so not in '{out}'")
    if os.path.lexists(link):
        raise ConfigError(f"--link {link} exists: name another file, or remove it first")


def _list(
    files: Sequence[Path],
    root: Path,
    choice: Choice,
    pseudonyms: Pseudonyms,
    left_out: Counter[str],
    tell: Progress,
) -> list[Listed]:
    """Images that can be used, by person and in the order in which they were taken.

    Of two files of one slice of a volume the larger is kept, since the other may be cut off. Of two
    of a picture the first that can be decoded is, which is known when it is written.
    """
    found: list[Listed] = []
    slices: dict[str, tuple[int, int]] = {}  # by instance: bytes, place in `found`
    with silent():
        for done, path in enumerate(files, start=1):
            try:
                one = list_image(path, root, choice, pseudonyms)
            except UnusableError as error:
                left_out[error.reason] += 1
            else:
                size, place = slices.get(one.instance, (-1, len(found)))
                if one.instance and one.is_volume:
                    slices[one.instance] = max((path.stat().st_size, place), (size, place))
                if place == len(found):
                    found.append(one)
                else:
                    left_out[SAME] += 1
                    if slices[one.instance][0] > size:
                        found[place] = one
            tell("headers", done, len(files))
    found = tell_issuers_apart(found, pseudonyms)
    return sorted(found, key=lambda one: (one.person, one.order))


def _write_pictures(
    listed: Sequence[Listed], made: _Output, left_out: Counter[str], tell: Progress
) -> None:
    numbers: Counter[str] = Counter()
    series: dict[str, dict[str, int]] = {}
    written: set[str] = set()  # instances
    for done, one in enumerate(listed, start=1):
        if one.instance in written:
            left_out[SAME] += 1
            continue
        person = f"sub-{one.person}"
        mine = series.setdefault(person, {})
        number = mine.setdefault(one.series, len(mine) + 1)
        names: list[str] = []
        try:
            for data in _frames(one, made):
                names.append(f"{person}_{numbers[person] + len(names) + 1:04d}.png")
                _put(make_folder(made.folder / "images") / names[-1], data)
        except UnusableError as error:
            left_out[error.reason] += 1
            for name in names:
                (made.folder / "images" / name).unlink(missing_ok=True)
        else:
            numbers[person] += len(names)
            cells = [one.columns[column] for column in COLUMNS]
            made.images += [(name, person, str(number), *cells) for name in names]
            made.links += [_link(f"images/{name}", one, made) for name in names]
            made.used += 1
            written |= {one.instance} - {""}
        tell("pictures", done, len(listed))


def _frames(one: Listed, made: _Output) -> Iterable[bytes]:
    """PNG files of an image's frames."""
    from PIL import Image

    try:
        with open_inside(one.path, root=made.root, site="") as stream:
            for frame in read_frames(stream):
                file = io.BytesIO()
                Image.fromarray(frame.to_pixels(window=made.window)).save(
                    file, "PNG", compress_level=3
                )
                yield file.getvalue()
    except DataContractError as error:  # gone since it was listed
        raise UnusableError(UNREADABLE) from error


def _write_volumes(
    listed: Sequence[Listed], made: _Output, left_out: Counter[str], tell: Progress
) -> None:
    """Write one volume of each person: the first of the best series that can be converted."""
    people: dict[str, dict[str, list[Listed]]] = {}
    for one in listed:
        people.setdefault(one.person, {}).setdefault(one.series, []).append(one)
    for done, (person, series) in enumerate(people.items(), start=1):
        is_made = False
        for images in sorted(series.values(), key=_rank):
            if is_made:
                left_out[OTHER_SERIES] += len(images)
                continue
            try:
                data = convert_series([one.path for one in images], made.root)
            except UnusableError as error:
                left_out[error.reason] += len(images)
                continue
            name = f"sub-{person}"
            file = f"{name}/anat/{name}_T1w.nii.gz"
            make_folder((made.folder / file).parent)
            _put(made.folder / file, data)
            first = images[0]
            cells = (first.columns[column] or "n/a" for column in PARTICIPANT_COLUMNS[1:])
            made.participants.append((name, *cells))
            made.links.append(_link(file, first, made))
            made.used += len(images)
            is_made = True
        tell("volumes", done, len(people))


def _rank(images: Sequence[Listed]) -> tuple[bool, int, tuple[str, int, int, str]]:
    """Sort without a contrast agent first, then by more slices, then the earlier."""
    first = images[0]
    return first.has_contrast, -sum(one.frames for one in images), first.order


def _link(output: str, one: Listed, made: _Output) -> tuple[str, ...]:
    file = one.path.relative_to(made.root).as_posix()
    return (output, f"sub-{one.person}", *map(as_text, (file, *one.source)))


def _write_tables(made: _Output) -> None:
    if made.images:
        columns = ("image", "person", "series", *COLUMNS)
        _put(made.folder / "images.csv", _csv(columns, made.images))
    if made.participants:
        table = _csv(PARTICIPANT_COLUMNS, made.participants, delimiter="\t")
        _put(made.folder / "participants.tsv", table)
        _put(made.folder / "dataset_description.json", _DESCRIPTION)
    _put(made.folder / "README", _README)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[str]], *, delimiter: str = ",") -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8", "replace")


def _put(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    path.chmod(PRIVATE_FILE)  # made so, but for what a umask took


def _nothing(source: Path, files: Sequence[Path], left_out: Counter[str]) -> ConfigError:
    reasons = "; ".join(f"{why}: {n}" for why, n in (+left_out).most_common()) or "it is empty"
    return ConfigError(f"'{source}': no image can be made of its {len(files)} files ({reasons})")
