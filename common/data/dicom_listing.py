"""Files below a folder as their DICOM headers tell: whose they are, what may become of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from common.data.tables import NOT_TOLD
from common.errors import ConfigError, DataContractError
from common.site_files import open_inside, plain
from common.studies.vocabulary import normalise

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
_NO_NUMBER = NOT_TOLD | {"0", "anon", "anonymous", "anonymized"}
_PERSON, _STUDY = "person", "study of nobody"  # kinds of what a pseudonym stands for


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
    person, series, instance : str
        Pseudonyms; ``instance`` is empty where the file has no number.
    issuer : str
        Who gave the patient's number, which ``person`` leaves out; empty where not told.
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
    series: str
    instance: str
    issuer: str
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
    person, issuer = _person(dataset)
    study, series = text(dataset, "StudyInstanceUID"), text(dataset, "SeriesInstanceUID")
    instance = text(dataset, "SOPInstanceUID")
    return Listed(
        path=path,
        person=pseudonyms.of(*person),
        series=pseudonyms.of("series", study, series),
        instance=pseudonyms.of("instance", instance) if instance else "",
        issuer=issuer,
        is_known=person[0] != _STUDY,
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
    kind = text(dataset, "SOPClassUID")
    is_capture = kind == _CAPTURE or kind.startswith(f"{_CAPTURE}.")  # not ….77, visible light
    if (
        (is_capture or modality in _OFTEN_WITH_TEXT)
        and burned_in not in ("YES", "NO")
        and not choice.keep_undeclared
    ):
        raise UnusableError(UNDECLARED)
    return is_volume


def tell_issuers_apart(images: Sequence[Listed], pseudonyms: Pseudonyms) -> list[Listed]:
    """Make people of their own of those whose number two issuers gave.

    Otherwise the issuer says nothing: one that only some files of a person tell must not make two
    people of one.

    Parameters
    ----------
    images : sequence of Listed
        All of an export, as `list_image` returns them.
    pseudonyms : Pseudonyms
    """
    issuers: dict[str, set[str]] = {}
    for one in images:
        if one.issuer:
            issuers.setdefault(one.person, set()).add(one.issuer)
    return [
        replace(one, person=pseudonyms.of(_PERSON, one.issuer, one.source[0]))
        if one.issuer and len(issuers[one.person]) > 1
        else one
        for one in images
    ]


def _person(dataset: Any) -> tuple[tuple[str, ...], str]:
    """What tells a person from others, and who gave the number if it is one."""
    number = text(dataset, "PatientID")
    if normalise(number) not in _NO_NUMBER:
        return (_PERSON, "", number), text(dataset, "IssuerOfPatientID")
    name, born = text(dataset, "PatientName"), text(dataset, "PatientBirthDate")
    if normalise(name) not in _NO_NUMBER and born:
        return ("name", name, born), ""
    return (_STUDY, text(dataset, "StudyInstanceUID")), ""
