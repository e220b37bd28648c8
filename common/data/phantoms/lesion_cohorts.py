"""Phantom dermatology on disk: a folder of pictures and one table a hospital.

A patient follows from the cohort's seed, the hospital's name and the patient's number alone, a
lesion from its number in addition, and a picture from its own: they can be made in any order, by
any number of processes, and a larger cohort begins with the patients of a smaller one. How often a
patient or a lesion was photographed depends on no diagnosis. Bytes are the same on one machine with
the same versions of NumPy, SciPy and Pillow; others may round a pixel or code a JPEG differently.

Layout of a hospital's folder::

    images/north-00001-1-1.jpg    hospital, patient, lesion, picture
    lesions.csv                   image, patient_id, lesion_id, diagnosis, age, sex, site, split
    README

``image`` is the name of a file in ``images``, ``age`` in steps of five years from 5 to 85 as in
ISIC's tables, ``site`` the body site.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from common.data.phantoms.dermatoscopes import acquire, dermatoscope, encode
from common.data.phantoms.lesion_rendering import render
from common.data.phantoms.lesions import (
    DIAGNOSES,
    EXTRA_LESIONS,
    EXTRA_PICTURES,
    Lesion,
    View,
    diagnosis_odds,
    sample_lesion,
    sample_patient,
    sample_view,
)
from common.errors import ConfigError
from common.files import make_folder, write_atomically
from common.imaging.splits import assign_splits
from common.machine import in_processes
from common.seeding import derive_seed

LESION_PHANTOM_VERSION = 2  # raise it with every change of the bytes written
COLUMNS = ("image", "patient_id", "lesion_id", "diagnosis", "age", "sex", "site", "split")
MOST_LESIONS, MOST_PICTURES = 6, 4  # of a patient, of a lesion
# Of each diagnosis in the test split of a default hospital. The mixes would leave one patient or
# none with a rare diagnosis at a small hospital, of whom no recall could be told with an interval.
LEAST_TESTED = 20
FIRST_ADDED = 100_000  # number of the first patient who may be added to the test split

_LOGGER = logging.getLogger(__name__)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Hospital:
    """Whom a hospital sees; its instrument is ``dermatoscope`` of the same name.

    Parameters
    ----------
    mix : mapping of str to float
        Share of each diagnosis among the lesions.
    patients : int
        Patients of the default cohort: 20 : 10 : 2 for north, south and island.
    """

    mix: Mapping[str, float]
    patients: int


def _mix(*shares: float) -> dict[str, float]:
    return dict(zip(DIAGNOSES, shares, strict=True))


HOSPITALS = {
    #                      MEL   NV    BCC   AK    BKL   DF     VASC   SCC
    "north": Hospital(_mix(0.16, 0.52, 0.12, 0.04, 0.11, 0.010, 0.010, 0.03), 1000),
    "south": Hospital(_mix(0.20, 0.34, 0.21, 0.07, 0.10, 0.015, 0.015, 0.05), 500),
    "island": Hospital(_mix(0.08, 0.60, 0.08, 0.05, 0.15, 0.015, 0.015, 0.01), 100),
}


def hospital_named(name: str) -> Hospital:
    """Return the documented hospital, or one of 20 patients with a mix drawn from the name alone.

    The mixes that are drawn have the three hospitals' mean, and an SD of 0.11 for half of a mix.
    """
    return HOSPITALS.get(name) or _drawn(name)


@lru_cache(maxsize=16)  # asked for every picture
def _drawn(name: str) -> Hospital:
    rng = np.random.default_rng(derive_seed(0, site=name, purpose="diagnoses"))
    mean = np.mean([list(one.mix.values()) for one in HOSPITALS.values()], axis=0)
    return Hospital(_mix(*rng.dirichlet(20 * mean / mean.sum())), 20)


@dataclass(frozen=True)
class Picture:
    """One row of ``lesions.csv`` but for the split, and what it shows.

    Parameters
    ----------
    hospital : str
    patient, lesion, number : int
        Count from 0: the patient in the hospital, the lesion on the patient, the picture of the
        lesion.
    truth : Lesion
    """

    hospital: str
    patient: int
    lesion: int
    number: int
    truth: Lesion

    @property
    def patient_id(self) -> str:
        """Patient, unlike in any two hospitals."""
        return _patient_id(self.hospital, self.patient)

    @property
    def lesion_id(self) -> str:
        """Lesion, unlike in any two patients."""
        return f"{self.patient_id}-{self.lesion + 1}"

    @property
    def file(self) -> str:
        """Name of the picture's file in ``images``."""
        return f"{self.lesion_id}-{self.number + 1}.jpg"


def _patient_id(hospital: str, patient: int) -> str:
    return f"{hospital}-{patient + 1:05d}"


def patient_pictures(hospital: str, patient: int, seed: int) -> list[Picture]:
    """Return what a hospital photographed of a patient; the pictures are not drawn here."""
    mix = hospital_named(hospital).mix
    rng = _stream(seed, "patient", site=hospital, patient=patient)
    who = sample_patient(mix, rng)
    lesions = min(1 + int(rng.poisson(EXTRA_LESIONS)), MOST_LESIONS)
    pictures = []
    for lesion in range(lesions):
        rng = _stream(seed, "lesion", site=hospital, patient=patient, lesion=lesion)
        diagnosis = DIAGNOSES[int(rng.choice(len(DIAGNOSES), p=diagnosis_odds(mix, who.age)))]
        truth = sample_lesion(who, diagnosis, rng)
        count = min(1 + int(rng.poisson(EXTRA_PICTURES)), MOST_PICTURES)
        pictures += [Picture(hospital, patient, lesion, k, truth) for k in range(count)]
    return pictures


def take(picture: Picture, seed: int, size: int = 64, **how: int) -> np.ndarray:
    """Draw a picture as the hospital's camera gives it, before JPEG.

    View and acquisition have random streams that know the picture's numbers and nothing of what
    it shows. ``how`` is for :func:`~common.data.phantoms.lesion_rendering.render`.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)
    """
    view, draws = taken_with(picture, seed)
    light = render(picture.truth, size, view, **how)
    return acquire(light, dermatoscope(picture.hospital), draws)


def taken_with(picture: Picture, seed: int) -> tuple[View, np.random.Generator]:
    """Return how the dermatoscope was held, and the random stream of the acquisition."""
    numbers = {"patient": picture.patient, "lesion": picture.lesion, "picture": picture.number}
    zoom = dermatoscope(picture.hospital).zoom
    view = sample_view(zoom, _stream(seed, "view", site=picture.hospital, **numbers))
    return view, _stream(seed, "acquisition", site=picture.hospital, **numbers)


def split_patients(pictures: Sequence[Picture]) -> dict[str, str]:
    """Split patients 60/20/20 into train, val and test, by patient id.

    Stratified by the patient's diagnosis that is rarest at the hospital, so that the rare ones
    reach every part where there are enough of them.
    """
    rarest: dict[str, int] = {}
    for picture in pictures:
        mix = hospital_named(picture.hospital).mix
        order = sorted(DIAGNOSES, key=lambda name: (mix[name], name))
        rank = order.index(picture.truth.diagnosis)
        rarest[picture.patient_id] = min(rank, rarest.get(picture.patient_id, rank))
    return assign_splits(rarest)


def added_patients(
    tested: Sequence[Picture], hospital: str, seed: int, least: int = LEAST_TESTED
) -> list[int]:
    """Number the patients who are added to a test split, so that it shows each diagnosis.

    Patients come as the hospital would see them, and those stay who have a lesion of a diagnosis
    that is still short: given the diagnosis they are like any other.

    Parameters
    ----------
    tested : sequence of Picture
        The test split without them.
    hospital : str
    seed : int
        Of the cohort.
    least : int
        Patients that each diagnosis should have.
    """
    have = Counter(name for _, name in {(one.patient_id, one.truth.diagnosis) for one in tested})
    chosen: list[int] = []
    patient = FIRST_ADDED
    while any(have[name] < least for name in DIAGNOSES):
        shown = {picture.truth.diagnosis for picture in patient_pictures(hospital, patient, seed)}
        if any(have[name] < least for name in shown):
            have.update(shown)
            chosen.append(patient)
        patient += 1
    return chosen


def write_hospital(
    folder: Path,
    name: str,
    *,
    seed: int,
    patients: int | None = None,
    test: int | None = None,
    size: int = 64,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Write one hospital's pictures and table, whole or not at all.

    Parameters
    ----------
    folder : Path
        Folder of the cohort; made if need be.
    name : str
        Hospital, a key of ``HOSPITALS``, and name of its folder in ``folder``.
    seed : int
        Seed of the cohort.
    patients : int, optional
        By default the hospital's own number, and so many more in the test split that it has
        `LEAST_TESTED` of each diagnosis; each has some 1.6 lesions and 2.2 pictures.
    test : int, optional
        Test patients, as the hospital would see them, in place of the split's and of those added:
        the same ones whatever the number of the others.
    size : int
        Pixels a side.
    workers : int
        Processes; 1 works in the caller's.
    progress : callable, optional
        Called here with the number of patients newly finished.

    Returns
    -------
    Path
        ``folder/name``.

    Raises
    ------
    ConfigError
        For a name or number that is not accepted, or if ``folder/name`` exists and is not empty.
    """
    if name not in HOSPITALS:
        raise ConfigError(f"hospital {name!r}: accepted are {', '.join(HOSPITALS)}")
    count = HOSPITALS[name].patients if patients is None else patients
    asked = (("patients", count, 1), ("test patients", test or 1, 1), ("pixels a side", size, 8))
    for what, value, least in asked:
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{value!r} {what}: accepted is a whole number of {least} or more")
    _LOGGER.info("phantom hospital %s: photographing %d patients", name, count)
    with whole_folder(folder, name) as partial:
        numbers = list(range(count))
        planned = [picture for k in numbers for picture in patient_pictures(name, k, seed)]
        splits = split_patients(planned)
        if test is not None:
            numbers = [k for k in numbers if splits[_patient_id(name, k)] != "test"]
            numbers += range(FIRST_ADDED, FIRST_ADDED + test)
        elif patients is None:
            tested = [one for one in planned if splits[one.patient_id] == "test"]
            numbers += added_patients(tested, name, seed)
        work = [(partial / "images", name, patient, seed, size) for patient in numbers]
        pictures: list[Picture] = []
        for done, written in enumerate(in_processes(_write_patient, work, workers, 8), start=1):
            pictures += written
            if progress is not None:
                progress(done * count // len(work) - (done - 1) * count // len(work))
        write_texts(partial, name, seed, pictures, splits)
    return folder / name


@contextmanager
def whole_folder(folder: Path, name: str) -> Iterator[Path]:
    """Yield a hospital's folder, with ``images`` in it, that becomes ``folder/name`` at the end.

    Raises
    ------
    ConfigError
        If ``folder/name`` exists and is not empty.
    """
    target = folder / name
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"'{target}' exists and is not empty: name another folder, or remove it first"
        )
    make_folder(folder)
    partial = folder / f".{name}.{uuid.uuid4().hex}.partial"
    make_folder(partial / "images")
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_texts(
    folder: Path, name: str, seed: int, pictures: Sequence[Picture], splits: Mapping[str, str]
) -> None:
    """Write a hospital's table and README."""
    write_atomically(folder / "lesions.csv", _table(pictures, splits))
    write_atomically(folder / "README", _readme(name, seed).encode())


Work = tuple[Path, str, int, int, int]  # folder of pictures, hospital, patient, seed, size


def _write_patient(work: Work) -> list[Picture]:
    """Write all pictures of a patient."""
    folder, hospital, patient, seed, size = work
    pictures = patient_pictures(hospital, patient, seed)
    for picture in pictures:
        data = encode(take(picture, seed, size), dermatoscope(hospital))
        write_atomically(folder / picture.file, data)
    return pictures


def _stream(seed: int, purpose: str, **axes: str | int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, purpose=f"phantom {purpose}", **axes))


def _table(pictures: Sequence[Picture], splits: Mapping[str, str]) -> bytes:
    """Rows of ``lesions.csv`` in the order of the pictures; who has no split was added to test."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for picture in pictures:
        truth = picture.truth
        age = int(np.clip(5 * round(truth.patient.age / 5), 5, 85))
        writer.writerow(
            [
                picture.file,
                picture.patient_id,
                picture.lesion_id,
                truth.diagnosis,
                age,
                truth.patient.sex,
                truth.body_site,
                splits.get(picture.patient_id, "test"),
            ]
        )
    return text.getvalue().encode()


def _readme(name: str, seed: int) -> str:
    return (
        f"Simulated dermatoscopic pictures, hospital {name}.\n\n"
        "Nobody was photographed: every patient, lesion and picture is drawn by fedscan's lesion "
        f"phantom, version {LESION_PHANTOM_VERSION}, seed {seed}.\n"
        "Licence: CC0 1.0. Not for diagnosis.\n"
    )
