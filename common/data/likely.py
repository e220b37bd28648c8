"""What a folder without the data that were looked for probably holds, and the command for it.

A look at the first files of it, by name and by their first bytes; a guess for a person to judge.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from common.data.archive_files import PICTURES
from common.errors import DataContractError, FedscanError
from common.imaging.bids import is_dataset, list_sites
from common.site_files import is_no_data, open_inside, plain
from common.studies.study import built_in_studies, load_study

MOST_FILES = 2000  # that are looked at by name
MOST_OPENED = 20  # of files without a telling name

_TABLES = (".csv", ".tsv", ".txt", ".tab")
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
_SCANS = (".nii", ".nii.gz")
_NO_NAME = ("", ".dcm", ".dicom", ".ima", ".img")  # endings under which DICOM files are kept
_DICM = slice(128, 132)  # where each DICOM file says DICM


def likely(folder: Path) -> str:
    """Say what a folder probably holds and what to do with it; "" where nothing is recognised."""
    root = folder.resolve()
    found = list(itertools.islice(_files(root), MOST_FILES))
    kinds: Counter[str] = Counter()
    tables = []
    opened = 0
    for path in found:
        name = path.name.lower()
        if name.endswith(_SCANS):
            kinds["scans"] += 1
        elif name.endswith(_ARCHIVES):
            kinds["archives"] += 1
        elif name.endswith(PICTURES):
            kinds["pictures"] += 1
        elif name.endswith(_TABLES):
            tables.append(path)
        elif opened < MOST_OPENED and _may_be_dicom(path):
            opened += 1
            kinds["dicom"] += name == "dicomdir" or _is_dicom(path, root)
    where = plain(str(folder))
    for name, study in _studies_of_tables().items():
        if (root / study).is_file():
            return f"these are pictures of the study '{name}': --study {name}"
    if kinds["dicom"]:
        return f"these are DICOM files: `fedscan prepare dicom {where} --out hospitals/NAME`"
    if kinds["pictures"] and tables:
        return (
            f"photographs with a table ({plain(tables[0].name)}): write a study file, "
            f"`fedscan studies new study.toml --from {where}`, and name it by --study"
        )
    if kinds["pictures"]:
        return "photographs without a table: add one that names each file and its label"
    if kinds["scans"]:
        return (
            "NIfTI scans that are no BIDS data set: put each at sub-ID/anat/sub-ID_T1w.nii.gz, and "
            "a table participants.tsv beside them"
        )
    if kinds["archives"]:
        return "archives: unpack them first"
    return ""


def _studies_of_tables() -> dict[str, str]:
    """Table of each built-in study that has one."""
    studies = {name: load_study(name) for name in built_in_studies()}
    return {name: study.images.table for name, study in studies.items() if study.images.table}


def likely_cohort(folder: Path) -> str:
    """Say where a cohort, or one hospital's data, lies next to the folder that was named."""
    root = folder.resolve()
    if is_dataset(root):
        return (
            f"this is one hospital's data set: name the folder above it, {plain(str(root.parent))}"
        )
    for inner in sorted(path for path in root.iterdir() if path.is_dir()):
        if inner.name.startswith(".") or is_no_data(inner.name):
            continue
        try:
            if any(map(is_dataset, list_sites(inner).values())):
                return f"the hospitals' data sets lie one folder deeper: name {plain(str(inner))}"
        except (FedscanError, OSError):
            continue
    return likely(root)


def _files(root: Path) -> Iterator[Path]:
    """Files below a folder, in the order of their names, without hidden ones."""
    for here, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not is_no_data(f))
        yield from (Path(here) / name for name in sorted(files) if not name.startswith("."))


def _may_be_dicom(path: Path) -> bool:
    """Tell whether a name is such as DICOM files have: no ending, one of theirs, or a number."""
    return path.suffix.lower() in _NO_NAME or path.suffix[1:].isdigit()


def _is_dicom(path: Path, root: Path) -> bool:
    try:
        with open_inside(path, root=root, site="") as stream:
            return stream.read(132)[_DICM] == b"DICM"
    except (DataContractError, OSError):
        return False
