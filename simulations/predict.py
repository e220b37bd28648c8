"""``fedscan predict``: what a trained classifier says of images, each read as in training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.errors import ConfigError, DataContractError
from common.extensions import is_extension
from common.predictions import PROBABILITY

if TYPE_CHECKING:
    from common.data.dataset import Dataset, Pixels
    from common.studies.study import Study
    from simulations.trained import Trained

Paths = str | Path | Sequence[str | Path]

AT_ONCE = 32  # images in memory
OF_VOLUMES = (".nii", ".nii.gz")
PROBLEM = "problem"  # column of why an image has no prediction


@dataclass(frozen=True)
class Image:
    """A file to predict.

    Parameters
    ----------
    name : str
        As the table of predictions has it.
    path : Path
    root : Path
        Folder that the file must not leave by a link.
    problem : str
        Why there is none to read; empty where there is.
    """

    name: str
    path: Path
    root: Path
    problem: str = ""


def predict(
    trained: Trained,
    images: Paths,
    *,
    site: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Let a classifier tell the class of images, as it was tested at a site.

    Every image is read, checked and prepared as a site's own are. With a site, the model is the
    site's where the strategy makes one for each, and ``model.adapt`` fits it by the site's training
    images; without, it is the model that all share.

    Parameters
    ----------
    trained : Trained
        A classifier: :func:`simulations.trained.read_trained`.
    images : path, or sequence of paths
        Files; folders of files; a site's folder as in a cohort, whose table, or whose participants,
        are followed.
    site : str
        One of ``trained.sites``. Without it, that whose folder ``images`` is, if there is one.
    progress : callable, optional
        Told how many images are done, and of how many.

    Returns
    -------
    DataFrame
        One row for each image: ``image``, its path as given or relative to the folder given;
        ``site``; ``predicted``, the most probable class; ``probability.CLASS`` of each class, after
        the site's adaptation; ``threshold``, of two classes the probability of the second from
        which on it is predicted, else NaN; ``problem``, why an image could not be
        used, whose other cells are empty.

    Raises
    ------
    ConfigError
        There is no such model, site or image.
    DataContractError
        The training images of the site, by which the model is adapted, cannot be read.
    """
    found = list_images(trained.study, images)
    site = site or _site_of(trained, images)
    if site and site not in trained.sites:
        raise ConfigError(f"site '{site}': accepted is one of {', '.join(trained.sites)}")
    judge = _Judge(trained, site)
    classes = trained.study.label.classes.names
    rows: list[dict[str, Any]] = []
    for first in range(0, len(found), AT_ONCE):
        part = found[first : first + AT_ONCE]
        read = [judge.read(one) for one in part]
        kept = [one for one in read if not isinstance(one, str)]
        told = iter(judge.probabilities(np.stack(kept)) if kept else ())
        for image, one in zip(part, read, strict=True):
            row: dict[str, Any] = {"image": image.name, "site": site}
            if isinstance(one, str):
                row[PROBLEM] = one
            else:
                values = next(told)
                row["predicted"] = classes[int(values.argmax())]
                row |= {f"{PROBABILITY}{k}": v for k, v in zip(classes, values, strict=True)}
                row["threshold"] = 0.5 if len(classes) == 2 else np.nan
            rows.append(row)
        if progress:
            progress(len(rows), len(found))
    numbers = [*(f"{PROBABILITY}{name}" for name in classes), "threshold"]
    table = pd.DataFrame(rows, columns=["image", "site", "predicted", *numbers, PROBLEM])
    texts = ["predicted", PROBLEM]
    return table.astype(dict.fromkeys(numbers, float)).fillna(dict.fromkeys(texts, ""))


class ImageReader:
    """Reads single images as a run's sites read and prepare their own.

    Parameters
    ----------
    trained : Trained
    site : str
        By whose training images intensities are harmonized, where the run does that; empty for
        none.

    Raises
    ------
    ConfigError
        The run harmonizes, and no site is named.
    """

    def __init__(self, trained: Trained, site: str) -> None:
        from common.config.run_config import OF_SLICES
        from common.data.harmonization import Harmonized
        from common.tasks.classifier_networks import heights_mm
        from common.training.gan_presets import stylegan2

        config = trained.config
        self._study, self._site = trained.study, site or "site"
        of_slices = config.model.classifier in OF_SLICES
        size = stylegan2(config).resolution if of_slices else config.data.size
        self._how: dict[str, Any] = {"size": size, "heights_mm": heights_mm(config)}
        if config.data.harmonize != "none" and not site:
            raise ConfigError(
                "data.harmonize maps the images by each site's own: --site names one of "
                f"{', '.join(trained.sites)}"
            )
        harmonized = trained.open(site, "train").pixels if config.data.harmonize != "none" else None
        self._map = harmonized.intensities if isinstance(harmonized, Harmonized) else None

    def read(self, path: Path, root: Path) -> NDArray[Any]:
        """Read a file as it would be stored, (C, *space).

        Raises
        ------
        DataContractError
            It cannot be used.
        """
        from common.data.site_data import reader_of

        where = {"root": root, "site": self._site}
        return reader_of(self._study).read_image(path, self._study, **self._how, **where)

    def pixels(self, stored: NDArray[Any]) -> Pixels:
        """Return stored images (N, C, *space) as a model sees them."""
        from common.data.dataset import InMemory

        return InMemory(self._map(stored) if self._map else stored)


class _Judge:
    """A classifier at a site."""

    def __init__(self, trained: Trained, site: str) -> None:
        config = trained.config
        fitted = config.model.adapt != "none" or config.data.harmonize != "none"
        if site and fitted and not trained.folders[site].is_dir():
            raise ConfigError(
                f"the model is fitted to site '{site}' by its training images, which are not where "
                "they were: --cohort names the folder above the sites' data"
            )
        self._trained = trained
        self._shift: NDArray[np.float64] | None = None
        self._model, self._reader = trained.classifier(site), ImageReader(trained, site)
        if site and config.model.adapt == "threshold":
            self._shift = self._offsets(trained.open(site, "train").labelled())

    def _offsets(self, known: Dataset) -> NDArray[np.float64] | None:
        """Find the site's shift of each class's logit, as before a test."""
        from common.training.threshold import of_each_class, offsets

        if not len(known):
            return None
        some = known.subset(of_each_class(known.labels))
        return offsets(self._predict(some), some.labels, some.people)

    def _predict(self, data: Dataset) -> NDArray[np.float64]:
        from common.training.classifier import predict as of_classes

        return of_classes(self._model, data, self._trained.study, self._trained.device)

    def read(self, image: Image) -> NDArray[Any] | str:
        """Read an image as it would be stored, (C, *space), or say why it cannot be used."""
        if image.problem:
            return image.problem
        try:
            return self._reader.read(image.path, image.root)
        except DataContractError as error:
            got = f" (got {error.got})" if error.got else ""
            return f"{error.problem}{got}. {error.remedy}".strip(" .")

    def probabilities(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Return probabilities (N, K) of images (N, C, *space)."""
        from common.data.dataset import Dataset
        from common.training.threshold import shifted

        persons = tuple(map(str, range(len(stored))))
        unknown = np.zeros(len(stored), np.int64)
        found = self._predict(Dataset(self._reader.pixels(stored), unknown, persons))
        if self._shift is not None:
            found = shifted(found, self._shift)
        return np.stack([1 - found, found], 1) if found.ndim == 1 else found


def _site_of(trained: Trained, images: Paths) -> str:
    """Return the site whose folder is given; empty where it is none's."""
    if not isinstance(images, str | Path):
        return ""
    here = Path(images).resolve()
    return next((name for name, path in trained.folders.items() if path.resolve() == here), "")


def list_images(study: Study, images: Paths) -> list[Image]:
    """List the images of files and folders, in the order given, those of a folder by name.

    Raises
    ------
    ConfigError
        There is no such file or folder, a folder holds no image, or its table cannot be read.
    """
    found: list[Image] = []
    for given in [images] if isinstance(images, str | Path) else images:
        path = Path(given)
        if path.is_dir():
            inside = _of_folder(study, path.resolve())
            if not inside:
                raise ConfigError(
                    f"{path}: no image is in this folder. Accepted are {_accepted(study)}; a "
                    "site's folder as in a cohort; or single files. The run's study is "
                    f"'{study.name}'"
                )
            found += inside
        elif path.is_file():
            target = path.resolve()  # whoever names a link means what it leads to
            found.append(Image(str(given), target, target.parent))
        else:
            raise ConfigError(f"{path}: there is no such file or folder")
    return found


def _of_folder(study: Study, root: Path) -> list[Image]:
    """List a folder's images: those of a site's table or participants, else all by their ending."""
    from common.imaging.bids_ignore import read_ignored

    try:
        ignored = read_ignored(root, "site")
        listed = _of_site(study, root, ignored)
    except (DataContractError, ValueError) as error:
        raise ConfigError(f"{root / study.images.table}: {error}") from None
    if listed is not None:
        return listed
    found = []
    endings = _endings(study)
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and path.name.lower().endswith(endings) and not path.is_dir():
            found += [] if ignored(name.as_posix()) else [Image(name.as_posix(), path, root)]
    return found


def _of_site(study: Study, root: Path, ignored: Callable[[str], bool]) -> list[Image] | None:
    """List the images of a site's folder, or None where it is none.

    Raises
    ------
    DataContractError, ValueError
        Its table cannot be read, or names a file outside.
    """
    from common.data.site_data import reader_of
    from common.data.tables import listed_file, read_site_table
    from common.imaging.bids import PARTICIPANT, find_scan
    from common.studies.site_mapping import load_site_mapping

    images = study.images
    if images.storage == "bids":
        people = sorted(one.name for one in root.glob("sub-*/") if PARTICIPANT.fullmatch(one.name))
        found = []
        for name in people:
            if not ignored(name):
                scan, problem = find_scan(root, name, images.contrast, ignored)
                path = scan or root / name
                found.append(Image(path.relative_to(root).as_posix(), path, root, problem))
        return found if people else None
    if (root / images.table).is_file():
        table = read_site_table(
            *(root, images.table),
            site="site",
            required=[images.file],
            mapping=load_site_mapping(root, "site"),
        )
        names = [listed_file(cell, study) for _, (cell,) in table.rows if cell]
        return [Image(name, root / name, root) for name in dict.fromkeys(names)]
    if is_extension(images.storage) and not images.table:
        with contextlib.suppress(DataContractError):  # no site's folder, as far as it can tell
            files = reader_of(study).read_table(root, "site", study).files
            return [Image(name, root / name, root) for name in files]
    return None


def _endings(study: Study) -> tuple[str, ...]:
    """Endings of the files that can be images; a reader of one's own may take any."""
    from common.data.archive_files import PICTURES
    from common.data.picture_files import DICOM
    from common.data.site_data import reader_of

    if is_extension(study.images.storage):
        return tuple(getattr(reader_of(study), "endings", ("",)))
    return {"bids": OF_VOLUMES, "dicom": DICOM}.get(study.images.storage, PICTURES)


def _accepted(study: Study) -> str:
    endings = ", ".join(filter(None, _endings(study)))
    return f"files ending in {endings}" if endings else "files of any name"
