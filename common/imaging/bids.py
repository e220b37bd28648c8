"""One site's BIDS data set: who takes part, under which label and split, and where the scan lies.

What is accepted is a small, strict part of BIDS [1]_: ``participants.tsv`` at the top,
``sub-*/anat/`` or ``sub-*/ses-*/anat/`` below it, and T1-weighted images in them. A participant
without a label or a scan is left out and counted; a value that is not understood refuses the data
set, since whoever holds the data can mend it and nobody else can guess it. The files are not
trusted: tables are bounded in size, and no path is followed out of the site's folder.

References
----------
.. [1] Brain Imaging Data Structure, https://bids-specification.readthedocs.io
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.errors import ConfigError, DataContractError
from common.imaging.bids_ignore import read_ignored
from common.imaging.participants import (
    OTHER,
    PARTICIPANT,
    check_participant,
    label_column,
    read_label,
    read_levels,
    read_split,
    read_table,
    why_none,
)
from common.imaging.splits import assign_splits
from common.site_files import ESCAPES, UNREADABLE, is_no_data, plain, resolve_inside
from common.site_names import ACCEPTED_SITE_NAME, SITE_NAME
from common.studies.site_mapping import load_site_mapping
from common.studies.study import Study, load_study

NO_LABEL = "no label"
NO_SCAN = "no scan"
NO_SPLIT = "no split"
UNLISTED = "folder not in participants.tsv"

_SESSION = re.compile(r"ses-[A-Za-z0-9][A-Za-z0-9._+-]*")
_ENTITIES = re.compile(r"(_[A-Za-z0-9._+-]+)?_(?P<contrast>[A-Za-z0-9]+)\.nii(\.gz)?")


@dataclass(frozen=True)
class Participant:
    """One participant with one scan.

    Parameters
    ----------
    id : str
        ``participant_id`` of participants.tsv, with its ``sub-``.
    label : int
        Index into the study's classes; −1 without one.
    split : str
        ``train``, ``val`` or ``test``.
    scan : Path
        The image, below the site's folder; not opened yet, so it may prove bad.
    cells : mapping of str to str
        The participant's row of the table, by normalised column.
    """

    id: str
    label: int
    split: str
    scan: Path
    cells: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A participant or folder that is left out: ``where`` in the site's folder, and the reason."""

    where: str
    reason: str


@dataclass(frozen=True)
class SiteIndex:
    """What a site holds, before any image is opened.

    Parameters
    ----------
    site : str
        Name of the site.
    root : Path
        The site's folder, resolved; no scan may lie outside it.
    participants : tuple of Participant
        Sorted by id.
    skipped : tuple of Skipped
        Who is left out. The names in it stay at the site.
    unlabelled : tuple of Participant
        Of those left out for want of a label, who has a scan and is of split ``train``, or of
        none where the table has no splits; sorted by id.
    """

    site: str
    root: Path
    participants: tuple[Participant, ...]
    skipped: tuple[Skipped, ...] = ()
    unlabelled: tuple[Participant, ...] = ()

    @property
    def left_out(self) -> dict[str, int]:
        """How many are left out for each reason."""
        return dict(sorted(Counter(one.reason for one in self.skipped).items()))


def read_site(data_dir: Path, site: str, study: Study | None = None) -> SiteIndex:
    """Read a site's participants and find their scans, without opening any image.

    A participant's scan is the first image of the study's contrast, by name, of the first session
    that has one; so of ``run-1`` and ``run-2`` the first is taken, and images are never mixed or
    averaged.

    Parameters
    ----------
    data_dir : Path
        Top folder of the site's BIDS data set.
    site : str
        Name of the site.
    study : Study, optional
        Of storage ``bids``; by default ``brain-sex``.

    Raises
    ------
    DataContractError
        The table is missing or cannot be understood, or nobody has both a label and a scan.
    """
    root = Path(data_dir).resolve()
    if not root.is_dir():
        raise DataContractError(site, "the data folder does not exist", where=plain(str(data_dir)))
    study = study or load_study("brain-sex")
    mapping = load_site_mapping(root, site)
    label = study.label
    used = [label.column, *label.aliases, *study.groups.also]
    used += [column for column, _ in study.condition_columns]
    header, rows = read_table(root, site, mapping, used)
    column = label_column(header, site, label)
    meaning, strange = read_levels(root, site, column, label, mapping)
    ignored = read_ignored(root, site)
    folders = {name for name in _folders(root, site) if not ignored(name)}
    found: dict[str, Participant] = {}
    unlabelled: dict[str, Participant] = {}
    skipped: list[Skipped] = []
    listed: set[str] = set()
    for line, row in rows:
        name = row["participant_id"]
        check_participant(name, listed, line, site)
        listed.add(name)
        value = read_label(row[column], meaning, label, site, f"line {line}, column {column}")
        split = read_split(row["split"], site, line) if "split" in row else None
        scan, reason = None, NO_SCAN
        if name in folders:
            scan, reason = find_scan(root, name, study.images.contrast, ignored)
        if value == OTHER:
            skipped.append(Skipped(name, why_none(row[column], strange, label)))
        elif value is None:
            skipped.append(Skipped(name, NO_LABEL))
            if scan is not None and ("split" not in row or split == "train"):
                unlabelled[name] = Participant(name, -1, "train", scan, row)
        elif "split" in row and split is None:
            skipped.append(Skipped(name, NO_SPLIT))
        elif scan is None:
            skipped.append(Skipped(name, reason))
        else:
            found[name] = Participant(name, value, split or "", scan, row)
    skipped += [Skipped(name, UNLISTED) for name in sorted(folders - listed)]
    others = tuple(unlabelled[name] for name in sorted(unlabelled))
    index = SiteIndex(site, root, _with_splits(found), tuple(skipped), others)
    if not index.participants and not others:
        counts = ", ".join(f"{reason}: {n}" for reason, n in index.left_out.items())
        raise DataContractError(
            site,
            "no participant has a label and a scan",
            where="participants.tsv",
            got=counts or "an empty table",
            remedy="Scans are looked for as sub-*/[ses-*/]anat/"
            f"sub-*_{study.images.contrast}.nii or .nii.gz",
        )
    return index


def list_sites(cohort_dir: Path) -> dict[str, Path]:
    """Sites of a cohort: one folder each, sorted by name; hidden ones and those of no data ignored.

    Raises
    ------
    ConfigError
        No such folder, no site in it, or a folder whose name cannot name a site.
    DataContractError
        A site's folder lies outside the cohort, by a link.
    """
    root = Path(cohort_dir).resolve()
    if not root.is_dir():
        fault = "is a file, not a folder" if root.exists() else "does not exist"
        raise ConfigError(
            f"{plain(str(cohort_dir))} {fault}. A cohort is a folder with one folder a site",
            public=f"the cohort {fault}",
        )
    sites: dict[str, Path] = {}
    for folder in sorted(root.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir() or is_no_data(folder.name):
            continue
        if not SITE_NAME.fullmatch(folder.name):
            rule = ACCEPTED_SITE_NAME
            raise ConfigError(
                f"the folder '{plain(folder.name)}' cannot name a site: accepted are {rule}",
                public=f"a site's name is {rule}",
            )
        remedy = "Move or mount the site's folder there: a link may lead anywhere"
        sites[folder.name] = resolve_inside(folder, root=root, site=folder.name, remedy=remedy)
    if not sites:
        raise ConfigError(
            f"{plain(str(cohort_dir))} holds neither a data set nor a folder for each site",
            public="the cohort holds no site",
        )
    return sites


def is_dataset(folder: Path) -> bool:
    """Whether a folder is itself one BIDS data set, rather than a folder of them."""
    names = ("participants.tsv", "dataset_description.json")
    return any((folder / name).exists() for name in names) or any(Path(folder).glob("sub-*/"))


def site_name(folder: Path) -> str:
    """Name of the site whose data set a folder is: the folder's own, where it can be one."""
    name = Path(folder).resolve().name
    return name if SITE_NAME.fullmatch(name) else "site"


def _folders(root: Path, site: str) -> set[str]:
    """Names of the participants' folders.

    Raises
    ------
    DataContractError
        The site's folder cannot be listed.
    """
    try:
        with os.scandir(root) as entries:
            found = [entry for entry in entries if PARTICIPANT.fullmatch(entry.name)]
    except OSError as error:
        raise DataContractError(
            site, "the data folder cannot be listed", got=plain(error.strerror or "")
        ) from error
    # Unlike the entries' own is_dir, this is no error for a circle of links.
    return {entry.name for entry in found if os.path.isdir(entry.path)}  # noqa: PTH112


def _names(folder: Path, root: Path) -> list[str]:
    """Names in a folder, in natural order, or none when it is no folder.

    Raises
    ------
    DataContractError
        The folder lies outside the site's.
    """
    if not folder.is_dir():
        return []
    resolve_inside(folder, root=root, site="")
    names = (entry.name for entry in folder.iterdir())
    return sorted(names, key=lambda name: (_natural(name), name))  # run-01 before run-1


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which ses-2 comes before ses-10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def find_scan(
    root: Path,
    name: str,
    contrast: str,
    ignored: Callable[[str], bool] = lambda path: False,
) -> tuple[Path | None, str]:
    """First image of that contrast of a participant, or the reason why there is none."""
    folder = root / name
    try:
        sessions = [ses for ses in _names(folder, root) if _SESSION.fullmatch(ses)]
        for place in (folder / "anat", *(folder / ses / "anat" for ses in sessions)):
            for file in _names(place, root):
                found = _ENTITIES.fullmatch(file[len(name) :]) if file.startswith(name) else None
                if not found or found["contrast"] != contrast:
                    continue
                if not ignored((place / file).relative_to(root).as_posix()):
                    return place / file, ""
    except DataContractError:
        return None, ESCAPES
    except OSError:
        return None, UNREADABLE
    return None, NO_SCAN


def _with_splits(found: dict[str, Participant]) -> tuple[Participant, ...]:
    """Participants with the splits that the table gives, or else with the deterministic ones."""
    drawn = assign_splits({name: one.label for name, one in found.items() if not one.split})
    return tuple(
        one if one.split else replace(one, split=drawn[name]) for name, one in sorted(found.items())
    )
