"""What `fedscan check` reports: can this data be used, and if not, what is wrong where.

Reports name files and participants: they are for the eyes of whoever holds the data, and are
returned as values, neither printed nor logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import DataContractError, FedscanError
from common.imaging.bids import SiteIndex, is_dataset, list_sites, read_site, site_name
from common.imaging.nifti import load_scan, scan_header
from common.imaging.prepare import check_head, prepare_volume
from common.imaging.splits import SPLITS
from common.site_files import ESCAPES, UNREADABLE, plain, relative
from common.studies.study import Study

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SiteReport:
    """One site's data as they are.

    Parameters
    ----------
    site : str
        Name of the site.
    usable : bool
        Each split holds a usable scan, and train holds both labels.
    n : dict
        Usable scans by split and label, such as ``n["train"]["female"]``.
    left_out : dict of str to int
        Participants, folders and scans left out, for each reason.
    incomplete : list of str
        One line each: who has no label or no scan.
    problems : list of str
        One line each: bad scans, and why the site is not usable.
    voxel_sizes_mm, orientations : dict of str to int
        Usable scans for each voxel size, rounded to 0.01 mm, and each stored orientation.
    """

    site: str
    usable: bool
    n: dict[str, dict[str, int]]
    left_out: dict[str, int] = field(default_factory=dict)
    incomplete: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    voxel_sizes_mm: dict[str, int] = field(default_factory=dict)
    orientations: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Report as plain dictionaries, lists, strings and numbers."""
        return asdict(self)


@dataclass(frozen=True)
class CohortReport:
    """All sites of a cohort.

    Parameters
    ----------
    usable : bool
        There is a site, and every one is usable.
    sites : list of SiteReport
        Sorted by name.
    problems : list of str
        What is wrong with the cohort as a whole.
    """

    usable: bool
    sites: list[SiteReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Report as plain dictionaries, lists, strings and numbers."""
        return asdict(self)


def check_cohort(folder: Path, study: Study, *, progress: Progress | None = None) -> CohortReport:
    """Check one BIDS data set, or a folder that holds one for each site.

    Parameters
    ----------
    folder : Path
        A data set, or a folder of them.
    study : Study
        Of storage ``bids``.
    progress : callable, optional
        Told after each scan: site, scans done, scans of that site.
    """
    folder = Path(folder)
    if folder.is_dir() and is_dataset(folder):
        sites = {site_name(folder): folder}
    else:
        try:
            sites = list_sites(folder)
        except FedscanError as error:
            return CohortReport(usable=False, problems=[str(error)])
    reports = [check_site(path, site, study, progress=progress) for site, path in sites.items()]
    return CohortReport(usable=all(report.usable for report in reports), sites=reports)


def check_site(
    data_dir: Path, site: str, study: Study, *, progress: Progress | None = None
) -> SiteReport:
    """Open and prepare every scan of a site, as a run would, and name each bad one.

    Parameters
    ----------
    data_dir, site, study
        As for `common.imaging.bids.read_site`.
    progress : callable, optional
        As for `check_cohort`.
    """
    classes = study.label.classes.names
    n = {split: dict.fromkeys(classes, 0) for split in SPLITS}
    try:
        index = read_site(data_dir, site, study)
    except DataContractError as error:
        return SiteReport(site, usable=False, n=n, problems=[str(error)])
    # Who has no label or scan is named but no problem; what was refused is one.
    lines = [(one, f"site '{site}': {plain(one.where)}: {one.reason}") for one in index.skipped]
    problems = [line for one, line in lines if one.reason in (ESCAPES, UNREADABLE)]
    left_out = Counter(index.left_out)
    sizes: Counter[str] = Counter()
    orientations: Counter[str] = Counter()
    for done, one in enumerate(index.participants, start=1):
        try:
            size, orientation = _open(one.scan, index)
        except DataContractError as error:
            problems.append(str(error))
            left_out[error.problem] += 1
        else:
            n[one.split][classes[one.label]] += 1
            sizes[size] += 1
            orientations[orientation] += 1
        if progress is not None:
            progress(site, done, len(index.participants))
    reasons = _unusable(site, n)
    return SiteReport(
        site=site,
        usable=not reasons,
        n=n,
        left_out=dict(sorted(left_out.items())),
        incomplete=[line for _, line in lines if line not in problems],
        problems=problems + reasons,
        voxel_sizes_mm=dict(sorted(sizes.items())),
        orientations=dict(sorted(orientations.items())),
    )


def _open(scan: Path, index: SiteIndex) -> tuple[str, str]:
    """Voxel size and stored orientation of a scan that loads and can be prepared."""
    volume, affine = load_scan(scan, site=index.site, root=index.root)
    # Whether a head is found hardly depends on the size; a small one is quick.
    image = prepare_volume(volume, affine, image_size=32)
    check_head(image, site=index.site, where=relative(scan, index.root))
    header = scan_header(scan, site=index.site, root=index.root)
    return " × ".join(f"{zoom:.2f}" for zoom in header.zooms_mm), header.orientation


def _unusable(site: str, n: dict[str, dict[str, int]]) -> list[str]:
    """Reasons, one line each, why what is left of a site is not enough."""
    reasons = [
        f"site '{site}': no usable {split} scan; each split needs at least one"
        for split in SPLITS
        if not sum(n[split].values())
    ]
    if sum(n["train"].values()):
        reasons += [
            f"site '{site}': no usable {label} train scan; training needs all classes"
            for label, count in n["train"].items()
            if not count
        ]
    return reasons
