"""Files below a folder as their DICOM headers tell: whose they are, what may become of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.dicom_files import (
    MOST_BYTES,
    TOO_LONG,
    UnusableError,
    frame_count,
    integer,
    read_header,
    text,
)
from common.data.dicom_series import why_no_t1w
from common.data.dicom_terms import MODALITIES, columns_of
from common.data.pseudonyms import Pseudonyms
from common.errors import ConfigError, DataContractError
from common.site_files import open_inside, plain

BURNED_IN = "text is burned into the pixels (BurnedInAnnotation is YES)"
UNDECLARED = (
    "text may be burned into the pixels: a secondary capture or ultrasound whose "
    "BurnedInAnnotation is not NO"
)
NOT_ASKED_PICTURES, NOT_ASKED_VOLUMES = "a picture, not asked for", "MR: not asked for"
OTHER_MODALITY = "neither a picture nor MR"
LINKS = "a link, not followed"
UNREADABLE = "a file that cannot be opened"
NOBODY = "no patient's number in the file: each study counts as a person of its own"
RECOGNISABLE = "the file says that the person can be recognised in the image"

PICTURES = frozenset(
    "CR DMS DX EPS ES GM IO IVUS LEN MG OP OPT OT PX RF RG SC TG US XA XC".split()  # noqa: SIM905
)
STACKS = frozenset({"CT", "MR", "NM", "PT"})  # of slices

_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture Image Storage, and its successors
_OFTEN_WITH_TEXT = frozenset({"US", "IVUS", "SC", "OT"})
_NO_NUMBER = frozenset({"", "0", "anon", "anonymous", "anonymized", "none", "n/a", "na", "unknown"})


@dataclass(frozen=True)
class Choice:
    """What is wanted of a folder of DICOM files.

    Parameters
    ----------
    only : str
        ``pictures`` or ``volumes``; empty for both.
    slices : bool
        Make a picture of each slice of CT, MR, PET and the like; there are no volumes then.
    keep_burned_in : bool
        Keep pictures whose files say that text is burned in.
    keep_undeclared : bool
        Keep secondary captures and ultrasound whose files do not say that none is.
    """

    only: str = ""
    slices: bool = False
    keep_burned_in: bool = False
    keep_undeclared: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """An image that can be used. The output gets ``person`` and ``columns`` of it, and pixels.

    Parameters
    ----------
    path : Path
    person, study, series, instance : str
        Pseudonyms; ``instance`` is empty where the file has no number.
    is_known : bool
        Whether the file tells a patient.
    is_volume : bool
        A slice, or all, of a T1-weighted MR volume; else a picture.
    order : tuple
        Sorts a person's images: by date, series and number.
    columns : mapping of str to str
        Of `common.data.dicom_terms.COLUMNS`.
    frames : int
    has_contrast : bool
        Whether a contrast agent was given.
    is_recognisable : bool
        Whether the file says so of the person.
    source : tuple of str
        Patient's number, accession number, date of the study and number of the instance: for the
        site's own link table.
    """

    path: Path
    person: str
    study: str
    series: str
    instance: str
    is_known: bool
    is_volume: bool
    order: tuple[str, int, int, str]
    columns: Mapping[str, str]
    frames: int
    has_contrast: bool
    is_recognisable: bool
    source: tuple[str, str, str, str]


def find_files(root: Path) -> tuple[list[Path], int]:
    """Regular files below a folder, sorted, and the number of links, which are not followed.

    Raises
    ------
    ConfigError
        The folder is not there, or one below it cannot be read.
    """
    if not root.is_dir():
        raise ConfigError(f"'{plain(str(root))}': there is no such folder")

    def unreadable(error: OSError) -> None:
        raise ConfigError(f"'{plain(str(error.filename))}': the folder cannot be read") from error

    found, links = [], 0
    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders.sort()
        here = Path(folder)
        links += sum((here / name).is_symlink() for name in folders)
        for name in sorted(names):
            mode = (here / name).lstat().st_mode
            links += stat.S_ISLNK(mode)
            if stat.S_ISREG(mode):
                found.append(here / name)
    return found, links


def list_image(path: Path, root: Path, choice: Choice, pseudonyms: Pseudonyms) -> Listed:
    """Read a file's header and decide what may become of it.

    Parameters
    ----------
    path : Path
    root : Path
        The folder that the file must not leave.
    choice : Choice
    pseudonyms : Pseudonyms

    Raises
    ------
    UnusableError
        The file is left out, with the reason.
    """
    try:
        with open_inside(path, root=root, site="") as stream:
            if os.fstat(stream.fileno()).st_size > MOST_BYTES:
                raise UnusableError(TOO_LONG)
            dataset = read_header(stream)
    except (DataContractError, OSError) as error:
        raise UnusableError(UNREADABLE) from error
    modality = text(dataset, "Modality").upper()
    is_volume = _decide(dataset, modality, choice)
    person, is_known = _person(dataset)
    study, series = text(dataset, "StudyInstanceUID"), text(dataset, "SeriesInstanceUID")
    instance = text(dataset, "SOPInstanceUID")
    return Listed(
        path=path,
        person=pseudonyms.of(*person),
        study=pseudonyms.of("study", study),
        series=pseudonyms.of("series", study, series),
        instance=pseudonyms.of("instance", instance) if instance else "",
        is_known=is_known,
        is_volume=is_volume,
        order=(
            text(dataset, "StudyDate"),
            integer(dataset, "SeriesNumber"),
            integer(dataset, "InstanceNumber"),
            str(path),
        ),
        columns=columns_of(dataset),
        frames=frame_count(dataset),
        has_contrast=bool(text(dataset, "ContrastBolusAgent")),
        is_recognisable=text(dataset, "RecognizableVisualFeatures").upper() == "YES",
        source=(
            text(dataset, "PatientID"),
            text(dataset, "AccessionNumber"),
            text(dataset, "StudyDate"),
            instance,
        ),
    )


def _decide(dataset: Any, modality: str, choice: Choice) -> bool:
    """Whether an image is of a volume; else, it is a picture.

    Raises
    ------
    UnusableError
        It is left out.
    """
    if modality == "MR" and not choice.slices:
        if choice.only == "pictures":
            raise UnusableError(NOT_ASKED_VOLUMES)
        if reason := why_no_t1w(dataset):
            raise UnusableError(reason)
    elif modality in STACKS and not choice.slices:
        raise UnusableError(f"a slice of {modality}: --slices makes a picture of each")
    elif modality not in PICTURES | STACKS:
        known = f": {modality}" if modality in MODALITIES else ""
        raise UnusableError(OTHER_MODALITY + known)
    elif choice.only == "volumes":
        raise UnusableError(NOT_ASKED_PICTURES)
    is_volume = modality == "MR" and not choice.slices
    burned_in = text(dataset, "BurnedInAnnotation").upper()
    if burned_in == "YES" and not choice.keep_burned_in:
        raise UnusableError(BURNED_IN)
    is_capture = text(dataset, "SOPClassUID").startswith(_CAPTURE)
    if (
        (is_capture or modality in _OFTEN_WITH_TEXT)
        and burned_in not in ("YES", "NO")
        and not choice.keep_undeclared
    ):
        raise UnusableError(UNDECLARED)
    return is_volume


def _person(dataset: Any) -> tuple[tuple[str, ...], bool]:
    """What tells a person from others, and whether that is more than a study."""
    number, issuer = text(dataset, "PatientID"), text(dataset, "IssuerOfPatientID")
    if number.lower() not in _NO_NUMBER:
        return ("person", issuer, number), True
    name, born = text(dataset, "PatientName"), text(dataset, "PatientBirthDate")
    if name.lower() not in _NO_NUMBER and born:
        return ("name", name, born), True
    return ("study of nobody", text(dataset, "StudyInstanceUID")), False
