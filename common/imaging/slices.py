"""Two-dimensional axial slices of a site's prepared scans, for networks that see pictures.

A slice inherits everything from the prepared cube (`common.imaging.prepare`): its place and size in
millimetres, and intensities that are a scan's own. So the slices of all sites lie on one grid.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.errors import ConfigError, DataContractError
from common.imaging.bids import LABELS, SiteIndex, read_site
from common.imaging.prepare import FIELD_OF_VIEW_MM, ImageSet, load_images

# Above the head's centre of mass, from the basal ganglia over the ventricles to the white matter
# above them. 20 mm lower lie temporal poles and cerebellum; 40 mm up, brains narrow.
LEVELS_MM = (-9.0, 0.0, 9.0, 18.0, 27.0)
# From the temporal lobes to the crown, those above among them: what tells more of a whole head.
WHOLE_HEAD_MM = tuple(float(level) for level in range(-36, 64, 9))
RESOLUTIONS = (16, 32, 64, 128, 256)
SEX = {"female": "F", "male": "M"}

_BATCH_BYTES = 128 * 2**20  # of whole cubes in memory at once
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SliceSet:
    """Axial slices, those of one participant side by side, from the lowest to the highest.

    Parameters
    ----------
    images : np.ndarray
        float32 in [-1, 1], shape (N, 1, R, R). Rows run from front to back, so the nose is up;
        columns from the participant's left to right, so left is left (the neurological, not the
        radiological convention). Air is -1. A pixel is ``FIELD_OF_VIEW_MM / R`` wide.
    labels : tuple of dict
        For each slice ``{"sex": "F" or "M", "height": "-9", "site": name}``, the height in mm.
    ids : tuple of str
        The participant of each slice; they stay at the site.
    heights_mm : np.ndarray
        Height of each slice above the head's centre of mass, shape (N,).
    """

    images: np.ndarray
    labels: tuple[dict[str, str], ...]
    ids: tuple[str, ...]
    heights_mm: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> int:
        """Pixels along a side."""
        return self.images.shape[-1]

    def subset(self, chosen: Sequence[int] | np.ndarray) -> SliceSet:
        """Slices of the given indices or of a mask, in that order; of none, where none is given."""
        if not len(chosen):
            chosen = np.zeros(0, dtype=int)  # numpy takes an empty list for numbers, not indices
        index = np.arange(len(self))[np.asarray(chosen)]
        return SliceSet(
            self.images[index],
            tuple(self.labels[i] for i in index),
            tuple(self.ids[i] for i in index),
            self.heights_mm[index],
        )


def load_slices(
    site: str,
    data_dir: Path,
    split: str,
    *,
    resolution: int,
    cache: Path,
    levels_mm: Sequence[float] = LEVELS_MM,
) -> SliceSet:
    """Take the same few slices of every scan of one split of one site.

    Splits are by participant, so no two splits share a head. Scans are prepared as for the
    classifier, and at most 128 MiB of whole cubes (or one cube) are in memory at once.

    Parameters
    ----------
    site : str
    data_dir : Path
        The site's BIDS data set.
    split : {"train", "val", "test"}
    resolution : int
        R, pixels a side, one of `RESOLUTIONS`: the side of the prepared cube.
    cache : Path
        Folder on the site's own disk, for prepared cubes.
    levels_mm : sequence of float
        Heights above the head's centre of mass, in mm. Between two planes of the cube, a slice is
        their linear interpolation, so the heights are the same at every resolution.

    Raises
    ------
    ConfigError
        Resolution or levels are not accepted.
    DataContractError
        The site cannot be read, or no scan of the split can be used.
    """
    levels = _check(resolution, levels_mm)
    index = read_site(data_dir, site)
    images: list[np.ndarray] = []
    labels: list[dict[str, str]] = []
    ids: list[str] = []
    for scans in _batches(index, split, resolution, cache):
        for cube, label, name in zip(scans.images, scans.labels, scans.ids, strict=True):
            images.append(axial_slices(cube, levels))
            labels += [
                {"sex": SEX[LABELS[label]], "height": f"{level:g}", "site": site}
                for level in levels
            ]
            ids += [name] * len(levels)
    heights = np.tile(np.asarray(levels), len(images))
    return SliceSet(np.concatenate(images)[:, None], tuple(labels), tuple(ids), heights)


def axial_slices(cube: np.ndarray, levels_mm: Sequence[float]) -> np.ndarray:
    """Cut slices out of a prepared cube.

    Parameters
    ----------
    cube : np.ndarray
        As `common.imaging.prepare.prepare_volume` gives it: in [0, 1], shape (R, R, R).
    levels_mm : sequence of float
        Heights above the cube's centre.

    Returns
    -------
    np.ndarray
        float32 in [-1, 1], shape (levels, R, R), oriented as in `SliceSet`.
    """
    size = cube.shape[2]
    height = (size - 1) / 2 + np.asarray(levels_mm) * size / FIELD_OF_VIEW_MM  # in planes
    below = np.clip(np.floor(height).astype(int), 0, size - 2)
    share = np.float32(height - below)[:, None, None]
    planes = np.moveaxis(cube, 2, 0)  # (z, x, y)
    cut = planes[below] * (1 - share) + planes[below + 1] * share
    pictures = cut.transpose(0, 2, 1)[:, ::-1]  # rows: y downwards from the front; columns: x
    return np.ascontiguousarray(pictures * np.float32(2) - np.float32(1), dtype=np.float32)


def pool(sets: Sequence[SliceSet]) -> SliceSet:
    """Put the slices of several sites into one set, as the centralized arm does.

    Participants of two sites may bear the same id; their labels tell the sites apart.

    Raises
    ------
    ConfigError
        No set, or sets of different resolutions.
    """
    sizes = sorted({one.resolution for one in sets})
    if len(sizes) != 1:
        raise ConfigError(f"slices to pool have resolutions {sizes}: accepted is one and the same")
    return SliceSet(
        np.concatenate([one.images for one in sets]),
        tuple(label for one in sets for label in one.labels),
        tuple(name for one in sets for name in one.ids),
        np.concatenate([one.heights_mm for one in sets]),
    )


def _check(resolution: int, levels_mm: Sequence[float]) -> tuple[float, ...]:
    """Sorted levels, where the resolution and all of them are accepted."""
    if resolution not in RESOLUTIONS:
        raise ConfigError(
            f"resolution {resolution}: accepted are {', '.join(map(str, RESOLUTIONS))}"
        )
    levels = tuple(sorted({float(level) for level in levels_mm}))
    reach = FIELD_OF_VIEW_MM * (1 - 1 / resolution) / 2  # centre of the outermost plane
    if not levels or not all(-reach <= level <= reach for level in levels):
        raise ConfigError(
            f"levels {list(levels_mm)}: accepted are one or more heights from {-reach:.1f} to "
            f"{reach:.1f} mm"
        )
    return levels


def _batches(index: SiteIndex, split: str, resolution: int, cache: Path) -> Iterator[ImageSet]:
    """Prepared cubes of a split, a bounded number at a time.

    A batch without one usable scan is passed over, unless all are like it.
    """
    chosen = [one for one in index.participants if one.split == split]
    step = max(1, _BATCH_BYTES // (4 * resolution**3))
    failed: DataContractError | None = None
    some = False
    for start in range(0, max(len(chosen), 1), step):
        part = replace(index, participants=tuple(chosen[start : start + step]))
        try:
            yield load_images(part, split, image_size=resolution, cache=cache)
            some = True
        except DataContractError as error:
            failed = failed or error
            _log.warning("site '%s': a batch of %s scans gave no slice", index.site, split)
    if failed is not None and not some:
        raise failed
