"""Storage ``bids``: volumes of a BIDS data set, whole or as stacks of their axial slices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.data.cache import CachedPictures, cached_pictures
from common.data.groups import connect
from common.data.identities import in_table
from common.data.identity_headers import in_dataset
from common.data.identity_headers import in_nifti as header_identities
from common.data.image_table import UNKNOWN, ImageTable
from common.data.tables import NOT_TOLD
from common.errors import DataContractError
from common.imaging.bids import Participant, SiteIndex, read_site
from common.imaging.head import HeadMeasures, measure_head, require_head
from common.imaging.splits import assign_splits
from common.site_files import plain, relative
from common.studies.study import Study
from common.studies.vocabulary import normalise

__all__ = [
    "header_identities",
    "open_images",
    "read_image",
    "read_table",
    "read_volume",
    "table_identities",
]


def table_identities(root: Path, site: str, study: Study) -> Iterable[tuple[str, set[str]]]:
    """Columns of participants.tsv, and keys of the sidecars beside it, that identify people."""
    del study
    yield from in_table(root, "participants.tsv", site=site)
    yield from in_dataset(root, site)


def read_table(folder: Path, site: str, study: Study) -> ImageTable:
    """Read participants.tsv and find the volumes; none is opened.

    Raises
    ------
    DataContractError
        As `common.imaging.bids.read_site`; or a column of the study is missing or holds what is
        not accepted.
    """
    index = read_site(folder, site, study)
    people, others = index.participants, index.unlabelled
    given = "split" in (*people, *others)[0].cells
    keys = [_things(one, study, index) for one in people]
    groups = connect(keys).tolist()
    splits = [one.split for one in people]
    if study.groups.also and not given:
        # What joins people, such as a family, is split as its first one by name is.
        drawn = assign_splits({people[group].id: people[group].label for group in set(groups)})
        splits = [drawn[people[group].id] for group in groups]
    number = np.unique(groups, return_inverse=True)[1]
    whole = _table(people, index, study, keys=keys, groups=number, splits=splits, split_given=given)
    more = [_things(one, study, index) for one in others]
    joined = connect([*keys, *more])
    held_out = {joined[k] for k, split in enumerate(splits) if split != "train"}
    free = [k for k in range(len(others)) if given or joined[len(people) + k] not in held_out]
    unlabelled = None
    if free:
        # Whoever shares a family with somebody labelled is of that person's group.
        known = {joined[k]: int(group) for k, group in enumerate(number)}
        new = {g: len(people) + k for k, g in enumerate(np.unique(joined).tolist())} | known
        unlabelled = _table(
            [others[k] for k in free],
            index,
            study,
            keys=[more[k] for k in free],
            groups=[new[joined[len(people) + k]] for k in free],
            splits=["train"] * len(free),
            split_given=given,
        )
    return replace(
        whole,
        left_out=index.left_out,
        skipped=tuple((plain(one.where), one.reason) for one in index.skipped),
        unlabelled=unlabelled,
    )


def _table(
    people: Sequence[Participant],
    index: SiteIndex,
    study: Study,
    *,
    keys: Sequence[list[tuple[str, str]]],
    groups: ArrayLike,
    splits: Sequence[str],
    split_given: bool,
) -> ImageTable:
    """Tell of some of a data set's people."""
    columns = len(study.condition_columns)
    conditions = [_conditions(one, study, index) for one in people]
    return ImageTable(
        site=index.site,
        root=index.root,
        files=tuple(one.scan.relative_to(index.root).as_posix() for one in people),
        persons=tuple(one.id for one in people),
        groups=np.array(groups, dtype=np.int64),
        labels=np.array([one.label for one in people], dtype=np.int64),
        conditions=np.array(conditions, dtype=np.int64).reshape(len(people), columns),
        splits=np.array(splits, dtype=str),
        split_given=split_given,
        keys=tuple(map(tuple, keys)),
    )


def read_volume(
    path: Path, *, size: int, root: Path, site: str, whole: bool = False
) -> NDArray[np.float32]:
    """Read one scan as a cube (S, S, S) in [0, 1] about its head.

    ``whole`` is a cube that is not sliced: :func:`common.imaging.prepare.prepare_head`.

    Raises
    ------
    DataContractError
        The file cannot be used.
    """
    return measured_volume(path, size=size, root=root, site=site, whole=whole)[0]


def measured_volume(
    path: Path, *, size: int, root: Path, site: str, whole: bool = False
) -> tuple[NDArray[np.float32], HeadMeasures]:
    """Read one scan as :func:`read_volume`, and measure the head that it shows."""
    from common.imaging.nifti import load_scan
    from common.imaging.prepare import check_head, prepare_head, prepare_volume

    volume, affine = load_scan(path, site=site, root=root)
    where = relative(path, root)
    cube = (prepare_head if whole else prepare_volume)(volume, affine, image_size=size)
    check_head(cube, site=site, where=where)
    found = measure_head(volume, affine)
    require_head(found, site=site, where=where)
    return cube, found


def read_image(
    path: Path, study: Study, *, size: int, heights_mm: Sequence[float], root: Path, site: str
) -> NDArray[np.float16]:
    """Read one scan as `open_images` prepares it: float16 (1, S, S, S) or (1, L, S, S)."""
    from common.imaging.slices import axial_slices

    del study
    cube = read_volume(path, size=size, root=root, site=site, whole=not heights_mm)
    return (axial_slices(cube, heights_mm) if heights_mm else cube)[None].astype(np.float16)


def open_images(
    table: ImageTable,
    rows: NDArray[np.int64],
    study: Study,
    *,
    name: str,
    size: int,
    heights_mm: Sequence[float],
    cache: Path,
) -> CachedPictures:
    """Prepare the volumes of some rows of a table, once, as float16 in [0, 1].

    (1, S, S, S), or with heights stacks (1, L, S, S) of axial slices, from the lowest: rows from
    front to back, so the nose is up; columns from the participant's left to right.
    """
    from common.imaging.prepare import (
        CENTRE_VERSION,
        FIELD_OF_VIEW_MM,
        HEAD_VERSION,
        PREPARE_VERSION,
    )
    from common.imaging.slices import check_levels

    levels = check_levels(size, heights_mm) if heights_mm else ()

    here = {"root": table.root, "site": table.site}
    return cached_pictures(
        [table.files[row] for row in rows],
        lambda path: read_image(path, study, size=size, heights_mm=levels, **here),
        root=table.root,
        site=table.site,
        name=name,
        variant=f"{size} {list(levels)}",
        settings=json.dumps(
            [
                PREPARE_VERSION,
                CENTRE_VERSION,
                FIELD_OF_VIEW_MM,
                size,
                list(levels) or HEAD_VERSION,
            ]
        ),
        shape=(1, len(levels), size, size) if levels else (1, size, size, size),
        dtype="float16",
        cache=cache,
    )


def _things(one: Participant, study: Study, index: SiteIndex) -> list[tuple[str, str]]:
    """What joins a participant to others; the id does not, since it stands in one row."""
    cells = [(column, normalise(_cell(one, column, index))) for column in study.groups.also]
    return [(column, cell) for column, cell in cells if cell not in NOT_TOLD]


def _conditions(one: Participant, study: Study, index: SiteIndex) -> list[int]:
    told = []
    for column, values in study.condition_columns:
        if normalise(column) == normalise(study.label.column):
            told.append(one.label)
            continue
        cell = _cell(one, column, index)
        found = values.index(cell)
        if found is None and one.label >= 0 and normalise(cell) not in NOT_TOLD:
            raise DataContractError(
                index.site,
                f"the column of the study '{column}' holds unknown values",
                where="participants.tsv",
                remedy=f"Accepted: {', '.join(values.names)}, and n/a for unknown",
            )
        told.append(UNKNOWN if found is None else found)
    return told


def _cell(one: Participant, column: str, index: SiteIndex) -> str:
    try:
        return one.cells[normalise(column)]
    except KeyError:
        raise DataContractError(
            index.site,
            f"participants.tsv has no column of the study '{column}'",
            remedy="Add it, or translate one of yours in site.toml",
        ) from None
