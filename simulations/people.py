"""Who is in the images of a site's splits: people, images of each class, age and sex."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from common.data.image_table import ImageTable
from common.data.site_data import read_table
from common.data.tables import MOST_YEARS, listed_file, read_site_table
from common.errors import DataContractError
from common.imaging import participants
from common.imaging.splits import SPLITS
from common.studies.site_mapping import load_site_mapping
from common.studies.study import Study, load_study
from common.studies.vocabulary import normalise

AGE, SEX = "age", "sex"
ALIASES = {"age_years": AGE, "age_approx": AGE, "gender": SEX}  # what tables call them besides
SEXES = ("female", "male")
Cells = Mapping[str, str]  # a row's age and sex, as they stand, where the table has them


def people_of(study: Study, site: str, folder: Path, least: int = 1) -> dict[str, dict[str, Any]]:
    """Describe each split of a site, as its table lists it; no image is opened.

    Parameters
    ----------
    study : Study
    site : str
    folder : Path
        The site's.
    least : int
        People that a number must be over; others are None, as a site would withhold them. Of
        nobody, 0 is told.

    Returns
    -------
    dict
        Split to ``images``; ``people``, where the study names persons; ``classes``, images of each;
        ``sex``, people of each and of ``unknown``; ``age`` in years, with ``mean``, ``sd`` and of
        how many ``people``. What the table does not tell is left out.

    Raises
    ------
    ConfigError, DataContractError
        The site's table cannot be understood.
    """
    table = read_table(study, site, folder)
    told: dict[str, Cells] = {}
    with contextlib.suppress(DataContractError):  # of columns that no training needs
        told = dict(_cells(study, site, table))
    named = study.images.storage == "bids" or bool(study.groups.person)
    return {split: _split(study, table, split, told, named, least) for split in SPLITS}


def _split(
    study: Study,
    table: ImageTable,
    split: str,
    told: Mapping[str, Cells],
    named: bool,
    least: int,
) -> dict[str, Any]:
    rows = table.rows(split).tolist()
    whose = [table.persons[row] or f"#{table.groups[row]}" for row in rows]
    people: dict[str, Cells] = {}
    for row, person in zip(rows, whose, strict=True):
        people.setdefault(person, told.get(table.files[row], {}))

    def count(n: int, over: int) -> int | None:
        return n if not over or over >= least else None

    members = [
        {person for row, person in zip(rows, whose, strict=True) if table.labels[row] == k}
        for k, _ in enumerate(study.label.classes.names)
    ]
    images = Counter(table.labels[rows].tolist())
    found: dict[str, Any] = {
        "images": count(len(rows), len(people)),
        "classes": {
            name: count(images[k], len(members[k]))
            for k, name in enumerate(study.label.classes.names)
        },
    }
    if named:
        found["people"] = count(len(people), len(people))
    if any(SEX in cells for cells in people.values()):
        each = Counter(_sex(cells.get(SEX, "")) for cells in people.values())
        found[SEX] = {one: count(each[one], each[one]) for one in (*SEXES, "unknown")}
    ages = [age for cells in people.values() if (age := _age(cells.get(AGE, ""))) is not None]
    if ages and len(ages) >= least:
        spread = stdev(ages) if len(ages) > 1 else None
        found[AGE] = {"mean": fmean(ages), "sd": spread, "people": len(ages)}
    return found


def _cells(study: Study, site: str, table: ImageTable) -> Iterator[tuple[str, Cells]]:
    """Yield each listed file with its row's age and sex."""
    root, mapping = table.root, load_site_mapping(table.root, site)
    if study.images.storage == "bids":
        files = dict(zip(table.persons, table.files, strict=True))
        used = (AGE, SEX, *ALIASES)
        for _, row in participants.read_table(root, site, mapping, used)[1]:
            cells = {ALIASES.get(column, column): cell for column, cell in row.items()}
            if file := files.get(row[participants.PARTICIPANT_ID]):
                yield file, {key: cells[key] for key in (AGE, SEX) if key in cells}
    elif study.images.storage == "table":
        file = normalise(study.images.file)
        found = read_site_table(
            *(root, study.images.table),
            site=site,
            required=[study.images.file],
            optional=[AGE, SEX],
            aliases=ALIASES,
            mapping=mapping,
        )
        for _, row in found.rows:
            cells = dict(zip(found.columns, row, strict=True))
            if cells[file]:
                yield (
                    listed_file(cells[file], study),
                    {k: cells[k] for k in (AGE, SEX) if k in cells},
                )


def _sex(cell: str) -> str:
    label = load_study("brain-sex").label
    with contextlib.suppress(ValueError):
        if (index := label.read(cell)) is not None:
            return label.classes.names[index]
    return "unknown"


def _age(cell: str) -> float | None:
    with contextlib.suppress(ValueError):
        age = float(cell)
        return age if math.isfinite(age) and 0 <= age <= MOST_YEARS else None
    return None
