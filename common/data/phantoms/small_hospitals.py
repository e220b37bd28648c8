"""Many small hospitals with a few dermatoscopic pictures each, made in seconds.

``site-001``, ``site-002``, … differ in their instrument and in whom they see, as drawn from their
names. A patient is photographed once, small and without a finer canvas, which is what takes the
time elsewhere. The first hospitals of a cohort are those of a smaller one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.data.phantoms.dermatoscopes import dermatoscope, encode
from common.data.phantoms.lesion_cohorts import (
    patient_pictures,
    split_patients,
    take,
    whole_folder,
    write_texts,
)
from common.errors import ConfigError
from common.files import PRIVATE_FILE
from common.machine import in_processes
from common.site_names import MOST_SITES

SIZE = 32  # pixels a side
FEWEST_PICTURES = 17  # of 8 diagnoses one then has 3 patients: none of the splits is empty

Work = tuple[Path, str, int, int]  # cohort, hospital, pictures, seed


def small_sites(count: int) -> list[str]:
    """Name so many small hospitals."""
    return [f"site-{number:03d}" for number in range(1, count + 1)]


def write_small_hospitals(
    folder: Path,
    count: int,
    *,
    pictures: int = 20,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write small hospitals, each whole or not at all.

    Parameters
    ----------
    folder : Path
        Folder of the cohort; made if need be.
    count : int
        Hospitals.
    pictures : int
        Of each, one a patient; split 60/20/20.
    seed : int
        Seed of the cohort.
    workers : int
        Processes; 1 works in the caller's.
    progress : callable, optional
        Called here with the number of hospitals newly finished.

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    ConfigError
        For a number that is not accepted, or a hospital's folder that is there.
    """
    if not 1 <= count <= MOST_SITES:
        raise ConfigError(f"{count} sites: accepted are 1 to {MOST_SITES}")
    if pictures < FEWEST_PICTURES:
        raise ConfigError(
            f"{pictures} pictures a site: accepted are {FEWEST_PICTURES} or more, so that no split "
            "is empty"
        )
    names = small_sites(count)
    if there := [name for name in names if (folder / name).exists()]:
        raise ConfigError(f"'{folder / there[0]}' exists: name another folder, or remove it first")
    work = [(folder, name, pictures, seed) for name in names]
    for _ in in_processes(_write, work, workers, 4):
        progress(1)
    return folder


def _write(work: Work) -> None:
    folder, name, count, seed = work
    instrument = dermatoscope(name)
    pictures = [patient_pictures(name, patient, seed)[0] for patient in range(count)]
    with whole_folder(folder, name) as partial:
        for one in pictures:
            taken = take(one, seed, SIZE, canvas_pixels=SIZE)
            file = partial / "images" / one.file
            file.touch(mode=PRIVATE_FILE)  # not atomically: the folder is, and 10,000 wait long
            file.write_bytes(encode(taken, instrument))
        write_texts(partial, name, seed, pictures, split_patients(pictures))
