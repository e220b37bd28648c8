"""Phantom cohorts on disk: one BIDS data set a hospital, the same bytes for the same seed.

A subject follows from the cohort's seed, the site's name and the subject's number alone, so sites
and subjects can be made in any order, by any number of processes. Sex is fixed by quota in either
split, and participant numbers are shuffled: they tell neither sex nor split.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import multiprocessing
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import ConfigError
from common.files import make_folder, write_atomically
from common.imaging import phantoms, shifts
from common.machine import one_thread, usable_cpus
from common.seeding import derive_seed

PHANTOM_VERSION = 3  # raise it with every change of the bytes written: caches are keyed by it
MADE_BY = "fedscan prepare phantom"  # in dataset_description.json of every site
PHANTOM_SITE_NAME = re.compile(r"(?!all$)[a-z0-9][a-z0-9-]*")

_LOGGER = logging.getLogger(__name__)
_SLOPE_LEVELS = 4095  # stored values fill 12 bits, as scanners' do

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Subject:
    """One row of ``participants.tsv`` before its anatomy is drawn."""

    number: int  # from 0; with seed and site it determines all else
    participant_id: str
    sex: str
    split: str


def plan_site(site: str, *, n: int, n_test: int, seed: int) -> list[Subject]:
    """Assign sex and split to a site's subjects.

    A fifth of the ``n`` (at least 2) validates, the rest trains. In either split the number of
    men is the site's share, rounded, and neither sex is missing where there are 2 or more.

    Raises
    ------
    ConfigError
        For a name or a number that is not accepted.
    """
    check_site(site, n, n_test)
    validation = max(2, round(n / 5))
    share = shifts.site_scanner(site).men
    entries = []
    for split, size in (("train", n - validation), ("val", validation), ("test", n_test)):
        men = round(share * size)
        if size >= 2:
            men = min(max(men, 1), size - 1)
        entries += [("M", split)] * men + [("F", split)] * (size - men)
    rng = np.random.default_rng(derive_seed(seed, site=site, purpose="participants"))
    width = max(3, len(str(len(entries))))
    return [
        Subject(number, f"sub-{number + 1:0{width}d}", *entries[entry])
        for number, entry in enumerate(rng.permutation(len(entries)))
    ]


def subject_latents(site: str, subject: Subject, seed: int) -> phantoms.Latents:
    """Return the truth about a subject, which no file of the data set holds."""
    rng = np.random.default_rng(
        derive_seed(seed, site=site, subject=subject.number, purpose="latents")
    )
    return phantoms.sample_latents(subject.sex, shifts.site_scanner(site).ages, rng)


def subject_scan(site: str, subject: Subject, seed: int) -> shifts.Scan:
    """Return the parameters of a subject's scan; of the subject they know only the number."""
    rng = np.random.default_rng(
        derive_seed(seed, site=site, subject=subject.number, purpose="scan")
    )
    return shifts.sample_scan(shifts.site_scanner(site), rng)


def subject_volume(site: str, subject: Subject, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scan a subject at its site; volume and affine as :func:`common.imaging.shifts.acquire`."""
    scanner = shifts.site_scanner(site)
    latents = subject_latents(site, subject, seed)
    tissues = phantoms.render(latents, scanner.grid)
    return shifts.acquire(tissues, latents.tissue, scanner, subject_scan(site, subject, seed))


def write_site(
    out: Path,
    site: str,
    *,
    n: int,
    n_test: int,
    seed: int,
    workers: int | None = 1,
    progress: Progress | None = None,
) -> Path:
    """Write one site as a BIDS data set, whole or not at all.

    Parameters
    ----------
    out : Path
        Folder of the cohort; made if need be.
    site : str
        Name of the site and of its folder in ``out``; selects the scanner.
    n : int
        Training and validation subjects, at least 4.
    n_test : int
        Test subjects on top of them.
    seed : int
        Seed of the cohort.
    workers : int, optional
        Processes; 1 works in the caller's, None is as for :func:`write_cohort`.
    progress : callable, optional
        Called here with the number of subjects newly finished.

    Returns
    -------
    Path
        ``out/site``.

    Raises
    ------
    ConfigError
        For a name or number that is not accepted, or if ``out/site`` exists and is not empty.
    """
    write_cohort(out, {site: n}, n_test=n_test, seed=seed, workers=workers, progress=progress)
    return out / site


def write_cohort(
    out: Path,
    sites: Mapping[str, int],
    *,
    n_test: int,
    seed: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write several sites, each as :func:`write_site` does; nothing if one of them cannot be.

    Parameters
    ----------
    sites : mapping of str to int
        Training and validation subjects of each site.
    workers : int, optional
        Processes; by default one for each core that this process may use, fewer for a cohort
        too small to gain from them.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    ConfigError
        As :func:`write_site`, for any of the sites.
    """
    if not sites:
        raise ConfigError("no site given: accepted is at least one, such as north=200")
    plans = {site: plan_site(site, n=n, n_test=n_test, seed=seed) for site, n in sites.items()}
    for site in sites:
        folder = out / site
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"'{folder}' exists and is not empty: name another folder, or remove it first"
            )
    if workers is None:  # a further process takes some two seconds to start, or forty subjects
        workers = min(usable_cpus(), 1 + sum(map(len, plans.values())) // 80)
    with _pool(workers) as run:
        for site, plan in plans.items():
            _LOGGER.info("phantom site %s: writing %d subjects", site, len(plan))
            _write_planned(out, site, plan, seed, run, progress or (lambda _: None))
    return out


def check_site(site: str, n: int, n_test: int) -> None:
    """Refuse a name or numbers of subjects that no phantom site can have.

    Raises
    ------
    ConfigError
        Says what was got and what is accepted.
    """
    if not PHANTOM_SITE_NAME.fullmatch(site):
        raise ConfigError(
            f"site name {site!r}: accepted are lower-case letters, digits and '-', beginning "
            "with a letter or digit; not 'all'"
        )
    for name, value, least in (("training and validation", n, 4), ("test", n_test, 0)):
        if not isinstance(value, int) or value < least:
            raise ConfigError(
                f"site '{site}': {value!r} {name} subjects: accepted is a whole number of "
                f"{least} or more"
            )


Work = tuple[str, str, Subject, int]  # folder, site, subject, seed
Run = Callable[[Iterable[Work]], Iterator[str]]
_KEPT: ContextVar[Run | None] = ContextVar("kept", default=None)


@contextmanager
def processes(workers: int) -> Iterator[None]:
    """Write all sites of the block with the same processes; they start with the first subject.

    A process takes seconds until it has the template, as long as it then takes for dozens of
    subjects.
    """
    with _pool(workers) as run:
        kept = _KEPT.set(run)
        try:
            yield
        finally:
            _KEPT.reset(kept)


@contextmanager
def _pool(workers: int) -> Iterator[Run]:
    """Yield a function that maps :func:`_write_subject` in order, on one process or several.

    One thread a process: there is nothing to gain inside a subject, and threaded BLAS may sum in
    another order, which could change bytes.
    """
    from threadpoolctl import threadpool_limits

    if kept := _KEPT.get():
        yield kept
        return
    if workers <= 1:
        with threadpool_limits(1):
            yield lambda work: map(_write_subject, work)
        return
    executor = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # safe whatever threads the caller has
        initializer=one_thread,
    )
    with executor:
        yield lambda work: executor.map(_write_subject, work, chunksize=4)


def _write_planned(
    out: Path, site: str, plan: list[Subject], seed: int, run: Run, progress: Progress
) -> None:
    """Write a site into a temporary sibling and rename it into place."""
    make_folder(out)
    partial = out / f".{site}.{uuid.uuid4().hex}.partial"
    make_folder(partial)
    try:
        rows = []
        for row in run([(str(partial), site, subject, seed) for subject in plan]):
            rows.append(row)
            progress(1)
        _write_description(partial, site, seed)
        header = "participant_id\tsex\tage\tsplit\n"
        write_atomically(partial / "participants.tsv", (header + "".join(rows)).encode())
        partial.replace(out / site)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_subject(work: Work) -> str:
    """Write one scan; returns the subject's row of ``participants.tsv``."""
    folder, site, subject, seed = work
    volume, affine = subject_volume(site, subject, seed)
    name = subject.participant_id
    path = Path(folder, name, "anat", f"{name}_T1w.nii.gz")
    write_atomically(path, _nifti_bytes(volume, affine))
    age = subject_latents(site, subject, seed).age
    return f"{name}\t{subject.sex}\t{age:.1f}\t{subject.split}\n"


def _nifti_bytes(volume: np.ndarray, affine: np.ndarray) -> bytes:
    """Gzipped NIfTI-1 of a non-negative volume: 12-bit integers and a slope, no metadata."""
    import nibabel as nib

    slope = np.float32(volume.max() / _SLOPE_LEVELS)
    image = nib.Nifti1Image(np.rint(volume / slope).astype(np.int16), affine)
    image.header.set_slope_inter(slope, 0)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    buffer = io.BytesIO()
    # No name and no time in the gzip header: the same volume is the same bytes.
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as file:
        file.write(image.to_bytes())
    return buffer.getvalue()


def _write_description(folder: Path, site: str, seed: int) -> None:
    """Write the texts that BIDS asks for; README and column meanings are for human readers."""
    description = {
        "Name": f"fedscan phantom, site {site}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "Authors": ["fedscan"],
        "GeneratedBy": [
            {
                "Name": MADE_BY,
                "Version": str(PHANTOM_VERSION),
                "Description": f"Simulated scans of simulated people, seed {seed}",
            }
        ],
        "ReferencesAndLinks": ["https://doi.org/10.1016/j.neuroimage.2010.07.033"],
    }
    columns = {
        "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
        "age": {"Description": "Age at the scan", "Units": "year"},
        "split": {
            "Description": "Use of the subject in model development",
            "Levels": {"train": "training", "val": "validation", "test": "test"},
        },
    }
    readme = (
        f"Simulated T1-weighted brain MRI, site {site}.\n\n"
        "Nobody was scanned: every subject is a random deformation of the MNI152 template "
        "(ICBM 2009a nonlinear symmetric, Fonov et al. 2011), seen by a simulated scanner.\n"
    )
    for name, value in (("dataset_description.json", description), ("participants.json", columns)):
        write_atomically(folder / name, (json.dumps(value, indent=2) + "\n").encode())
    write_atomically(folder / "README", readme.encode())
