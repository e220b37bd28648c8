"""A site's data under a study, whatever their storage: its table, and the images of a split.

A storage is one module of `common.data.readers` with the functions of :class:`Reader`, or an object
with them from a package outside (`common.extensions`); nothing else knows it.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.data import readers
from common.data.dataset import Dataset, Pixels
from common.data.harmonization import Harmonized, learn_map
from common.data.image_table import NO_CLASS, UNKNOWN, ImageTable
from common.data.unlabelled import ALL, UnlabelledError, UseOfLabels, nothing_to_judge_by
from common.errors import ConfigError
from common.extensions import is_extension, load_extension
from common.imaging.head import HeadMeasures
from common.imaging.slices import LEVELS_MM
from common.studies.sections import SITE
from common.studies.study import Study
from common.studies.vocabulary import normalise

log = logging.getLogger("flwr.fedscan")
NEEDED = ("read_table", "open_images", "read_image")  # of a reader
FOR_CHECKS = ("header_identities", "table_identities")  # and a method for one image


class FileImages(Pixels, Protocol):
    """Prepared images of the files that could be read."""

    rows: NDArray[np.int64]  # for each image, the index of its file among those asked for


class Reader(Protocol):
    """What a storage's module has; `fedscan check` also needs one image at a time.

    That is :class:`PictureReader`'s function or :class:`VolumeReader`'s, and, to warn of people's
    identities, the last two here. `fedscan predict` tries the files of a folder whose names end in
    one of its ``endings``, a tuple of texts in lower case, or all files where it has none.
    """

    def read_table(self, folder: Path, site: str, study: Study) -> ImageTable:
        """Read which images a site has, without opening one.

        Raises
        ------
        DataContractError
        """

    def open_images(
        self,
        table: ImageTable,
        rows: NDArray[np.int64],
        study: Study,
        *,
        name: str,
        size: int,
        heights_mm: Sequence[float],
        cache: Path,
    ) -> FileImages:
        """Prepare the images of some rows, or find them prepared under ``name``.

        Raises
        ------
        DataContractError
            None of them can be used.
        """

    def read_image(
        self,
        path: Path,
        study: Study,
        *,
        size: int,
        heights_mm: Sequence[float],
        root: Path,
        site: str,
    ) -> NDArray[np.number]:
        """Read one file as `open_images` prepares it, (C, *space); no cache is kept.

        Raises
        ------
        DataContractError
            The file cannot be used.
        """

    def header_identities(self, path: Path, *, root: Path, site: str) -> set[str]:
        """Kinds of identities in a file's header; none, if that cannot be read."""

    def table_identities(
        self, root: Path, site: str, study: Study
    ) -> Iterable[tuple[str, set[str]]]:
        """Where the table, and what explains it, identify people, and the kinds."""


class PictureReader(Reader, Protocol):
    """What the module of a storage of pictures has."""

    def read_picture(
        self,
        path: Path,
        *,
        size: int,
        channels: int,
        fit: str,
        intensity: str,
        intensity_range: tuple[float, float] | None,
        root: Path,
        site: str,
    ) -> NDArray[np.uint8]:
        """Read one file as a square of bytes (S, S, C); see `common.data.photographs`.

        Raises
        ------
        DataContractError
            The file cannot be used.
        """


class VolumeReader(Reader, Protocol):
    """What the module of a storage of volumes has."""

    def measured_volume(
        self, path: Path, *, size: int, root: Path, site: str
    ) -> tuple[NDArray[np.float32], HeadMeasures]:
        """Read one file as a cube (S, S, S) in [0, 1], and measure the head in it.

        Raises
        ------
        DataContractError
            The file cannot be used.
        """


def storages() -> list[str]:
    """Name the kinds of storage that can be read."""
    return sorted(module.name for module in pkgutil.iter_modules(readers.__path__))


def reader_of(study: Study, *, checks: bool = False) -> Reader:
    """Import the reader of a study's storage.

    Parameters
    ----------
    study : Study
    checks : bool
        Whether it must have what `fedscan check` needs, too.

    Raises
    ------
    ConfigError
        There is none.
    """
    if is_extension(storage := study.images.storage):
        found: Reader = load_extension(storage, "[images] storage")
        one = "read_picture" if study.images.view == "picture" else "measured_volume"
        needed = (*NEEDED, *FOR_CHECKS, one) if checks else NEEDED
        if lacking := [name for name in needed if not callable(getattr(found, name, None))]:
            raise ConfigError(f"[images] storage = '{storage}': it has no {', '.join(lacking)}")
        return found
    if storage not in storages():
        raise ConfigError(
            f"[images] storage '{storage}': accepted is one of {', '.join(storages())}"
        )
    return importlib.import_module(f"{readers.__name__}.{storage}")


def read_table(study: Study, site: str, folder: Path) -> ImageTable:
    """Read which images a site has under a study, without opening one.

    Raises
    ------
    ConfigError, DataContractError
        The study's storage is unknown, or the table cannot be understood.
    """
    return reader_of(study).read_table(Path(folder), site, study)


def parted_groups(table: ImageTable) -> str:
    """Say in numbers how a given split parts persons or other groups; "" where it does not."""
    leaks = table.leaks()
    if not leaks:
        return ""
    images = ", ".join(f"{split} {n}" for split, n in leaks.images.items() if n)
    groups = f"{len(leaks.groups)} group{'s' if len(leaks.groups) > 1 else ''}"
    return (
        f"site '{table.site}': the given split parts {groups} of one person or thing each "
        f"(images: {images}), so a test result is no result of unseen people. `fedscan check` "
        "names them; without the column 'split', fedscan splits by groups"
    )


@lru_cache(maxsize=1000)  # once in a process: each split of a site is opened by itself
def _warn(text: str) -> None:
    log.warning("%s", text)


def open_split(
    study: Study,
    site: str,
    folder: Path,
    split: str,
    *,
    size: int,
    heights_mm: Sequence[float] = (),
    cache: Path,
    harmonize: str = "none",
    labels: UseOfLabels = ALL,
) -> Dataset:
    """Open one split of one site's images; no file of another split is opened.

    With ``harmonize`` those of the training split are, too. Where the split is given and parts a
    group, the log says so, in numbers alone.

    Parameters
    ----------
    study : Study
    site : str
    folder : Path
        The site's.
    split : {"train", "val", "test"}
    size : int
        S, pixels or voxels a side.
    heights_mm : sequence of float
        Of volumes: their axial slices at these heights above the head's centre of mass, in mm, as
        stacks; without any, the whole volumes.
    cache : Path
        Folder on the site's own disk, for prepared images.
    harmonize : {"none", "landmarks"}
        Whether intensities are mapped as `common.data.harmonization` learns it from the site's
        training images.
    labels : UseOfLabels
        What the run does with images that have no label; by default they are left out.

    Raises
    ------
    UnlabelledError
        The site has no images with a label to judge by, and need not have any.
    ConfigError, DataContractError
        The site's data cannot be read, or no image of the split can be used.
    """
    reader = reader_of(study)
    whole = reader.read_table(Path(folder), site, study)
    table = labels.of(whole)
    if parted := parted_groups(table):
        _warn(parted)
    chosen = table.rows(split)
    if not len(chosen) and split != "train" and not labels.judges(table):
        raise UnlabelledError(site, nothing_to_judge_by(split))
    more = labels.keep and whole.unlabelled is not None

    def opened(split: str) -> FileImages:
        return reader.open_images(
            table,
            table.rows(split),
            study,
            name=f"{study.name} {split}" + (more and split == "train") * " with unlabelled",
            size=size,
            heights_mm=heights_mm,
            cache=cache,
        )

    images = opened(split)
    kept = chosen[images.rows]
    pixels: Pixels = images
    if harmonize == "landmarks":
        train = images if split == "train" else opened("train")
        volumes = study.images.view != "picture"
        pixels = Harmonized(images, learn_map(train, site=site, volumes=volumes))
    return Dataset(
        pixels,
        table.labels[kept],
        tuple(table.persons[row] or f"#{table.groups[row]}" for row in kept),
        tuple(_conditions(table, row, study) for row in kept),
        names=tuple(table.files[row] for row in kept),
    )


def plane_heights_mm(study: Study) -> tuple[float, ...]:
    """Heights of the axial slices that a generator learns from, in mm; none of pictures."""
    return () if study.images.view == "picture" else LEVELS_MM


def open_planes(
    study: Study,
    site: str,
    folder: Path,
    split: str,
    *,
    size: int,
    cache: Path,
    harmonize: str = "none",
) -> Dataset:
    """Open one split as a generator takes it: pictures, or the axial slices of volumes.

    Parameters and errors are those of :func:`open_split`.
    """
    heights = plane_heights_mm(study)
    found = open_split(
        *(study, site, folder, split),
        size=size,
        heights_mm=heights,
        cache=cache,
        harmonize=harmonize,
    )
    return found.levels(heights) if heights else found


def _conditions(table: ImageTable, row: int, study: Study) -> dict[str, str]:
    told = {
        column: values.names[index]
        for k, (column, values) in enumerate(study.condition_columns)
        if (index := int(table.conditions[row, k])) != UNKNOWN
        and (table.labels[row] != NO_CLASS or normalise(column) != normalise(study.label.column))
    }
    if SITE in map(normalise, study.generator.conditions):
        told[SITE] = table.site
    return told
