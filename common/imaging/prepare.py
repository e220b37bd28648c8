"""From a scan as the scanner left it to the small volume that a network sees.

Every site prepares its own scans with its own numbers: nothing here depends on another scan, let
alone on another site. Lengths are kept in millimetres, since the size of a head is signal.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DataContractError
from common.imaging.bids import SiteIndex
from common.imaging.nifti import decode_scan, read_scan
from common.imaging.prepared_cache import PreparedCache
from common.imaging.site_files import relative, resolve_inside

FIELD_OF_VIEW_MM = 216.0  # an adult head, neck apart, with room to spare
PREPARE_VERSION = 1  # raise it with any change that alters a prepared volume
SMALLEST_IMAGE = 4

_BINS = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSet:
    """Prepared images of one split of one site.

    Parameters
    ----------
    images : np.ndarray
        float32 in [0, 1], shape (N, S, S, S), axes as in `prepare_volume`.
    labels : np.ndarray
        int64, shape (N,).
    ids : tuple of str
        Participants; they stay at the site.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]


def prepare_volume(volume: np.ndarray, affine: np.ndarray, *, image_size: int) -> np.ndarray:
    """Resample a head to a standard cube and scale its intensities.

    The cube has sides of ``FIELD_OF_VIEW_MM``, parallel to the RAS axes, and its centre is the
    head's centre of mass. Voxels beyond the 0.1st and 99.9th percentile are clipped to these, so
    that no spike spreads. Before linear interpolation, each axis that loses resolution is smoothed
    so that its point spread function matches the new spacing [1]_. The head is what lies above
    Otsu's threshold [2]_, with its holes filled. Intensities are scaled so that the background is
    0 and the head's 99th percentile 1, and clipped to [0, 1]; beyond one voxel from the head they
    are set to 0.

    Parameters
    ----------
    volume : np.ndarray
        Intensities, shape (X, Y, Z), finite. Not modified.
    affine : np.ndarray
        Voxel index to RAS position in mm, shape (4, 4).
    image_size : int
        S, the voxels along a side of the cube; the spacing is ``FIELD_OF_VIEW_MM / S``.

    Returns
    -------
    np.ndarray
        float32 in [0, 1], shape (S, S, S): x from left to right, y from back to front, z from
        bottom to top. All zero when no head can be told from the background.

    References
    ----------
    .. [1] Cardoso et al., Scale factor point spread function matching, MICCAI 2015.
    .. [2] Otsu, A threshold selection method from gray-level histograms, IEEE SMC 1979.
    """
    from scipy import ndimage

    if image_size < SMALLEST_IMAGE:
        raise ValueError(f"image_size is {image_size}; at least {SMALLEST_IMAGE}")
    volume, affine = _in_memory_order(np.asarray(volume, dtype=np.float32), affine)
    spacing = FIELD_OF_VIEW_MM / image_size  # mm
    smooth = _antialias(_without_spikes(volume), np.linalg.norm(affine[:3, :3], axis=0), spacing)
    threshold, background = otsu(smooth)
    centre = affine[:3, :3] @ _centre_of_mass(smooth > threshold) + affine[:3, 3]  # mm
    # Output index i lies at centre + spacing (i − (S − 1)/2); pulled back into the volume.
    inverse = np.linalg.inv(affine[:3, :3])
    corner = centre - spacing * (image_size - 1) / 2 - affine[:3, 3]
    cube = ndimage.affine_transform(
        smooth,
        inverse * spacing,
        offset=inverse @ corner,
        output_shape=(image_size,) * 3,
        order=1,
        mode="constant",
        cval=background,
    )
    head = ndimage.binary_fill_holes(cube > threshold)
    if not head.any():
        return np.zeros_like(cube)
    bright = max(float(np.percentile(cube[head], 99)), threshold)
    scaled = np.clip((cube - background) / (bright - background), 0, 1)
    scaled[~ndimage.binary_dilation(head)] = 0
    return scaled.astype(np.float32)


def otsu(volume: np.ndarray) -> tuple[float, float]:
    """Otsu's threshold, and the mean of what lies below it.

    The threshold maximises the variance between the two classes; where a range of values does so
    alike, as between two classes that lie well apart, it is the middle of them.

    Parameters
    ----------
    volume : np.ndarray
        Intensities, any shape.
    """
    low, high = float(volume.min()), float(volume.max())
    if not high > low:
        return high, low
    width = (high - low) / _BINS
    bins = np.minimum((volume - np.float32(low)) * np.float32(1 / width), _BINS - 1)
    weights = np.bincount(bins.astype(np.uint8).ravel(order="K"), minlength=_BINS).astype(float)
    centres = low + width * (np.arange(_BINS) + 0.5)
    below = np.cumsum(weights)[:-1]
    above = weights.sum() - below
    sums = np.cumsum(weights * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_below = sums[:-1] / below
        mean_above = (sums[-1] - sums[:-1]) / above
        between = below * above * (mean_above - mean_below) ** 2
    best = np.flatnonzero(between >= np.nanmax(between) * (1 - 1e-9))
    return low + width * (float(best.mean()) + 1), float(mean_below[best[0]])


def load_images(index: SiteIndex, split: str, *, image_size: int, cache: Path) -> ImageSet:
    """Prepared images of one split; only that split's files are opened.

    A bad scan is left out, counted and logged without naming it: a log may be read by others.
    ``fedscan check`` names it to whoever holds the data.

    Parameters
    ----------
    index : SiteIndex
        From `common.imaging.bids.read_site`.
    split : str
        ``train``, ``val`` or ``test``.
    image_size : int
        Voxels along a side.
    cache : Path
        Folder on the site's own disk; what is prepared once is found there by later processes.

    Raises
    ------
    DataContractError
        No scan of the split can be used.
    """
    chosen = [one for one in index.participants if one.split == split]
    store = PreparedCache(cache, index.root)
    images = np.empty((len(chosen), *(image_size,) * 3), dtype=np.float32)
    kept = []
    left_out: Counter[str] = Counter()
    first: DataContractError | None = None
    for one in chosen:
        try:
            images[len(kept)] = _prepared(one.scan, index, image_size, store)
            kept.append(one)
        except DataContractError as error:
            left_out[error.problem] += 1
            first = first or error
    store.save()
    for problem, n in sorted(left_out.items()):
        _log.warning(
            "site '%s': %d of %d %s scans left out: %s; run `fedscan check` to see which",
            *(index.site, n, len(chosen), split, problem),
        )
    if not kept:
        raise DataContractError(
            index.site,
            f"no {split} scan can be used",
            got=f"0 of {len(chosen)}; the first: {first}" if first else "",
            remedy="Run `fedscan check`",
        )
    labels = np.array([one.label for one in kept], dtype=np.int64)
    ids = tuple(one.id for one in kept)
    return ImageSet(images[: len(kept)], labels, ids)


def check_head(image: np.ndarray, *, site: str, where: str) -> np.ndarray:
    """Return a prepared volume, and refuse one in which no head was found.

    Raises
    ------
    DataContractError
        The volume is all zero.
    """
    if not image.any():
        raise DataContractError(
            site, "a scan shows no head that can be told from the background", where=where
        )
    return image


def _prepared(scan: Path, index: SiteIndex, image_size: int, store: PreparedCache) -> np.ndarray:
    """One prepared volume, from the cache or made and put there."""
    settings = f"v{PREPARE_VERSION} fov={FIELD_OF_VIEW_MM} size={image_size}"
    shape = (image_size,) * 3
    target = resolve_inside(scan, root=index.root, site=index.site)
    content = None
    digest = store.known_digest(target)
    if digest is None:
        content = read_scan(scan, site=index.site, root=index.root)
        digest = store.learn_digest(target, content)
    image = store.get(digest, settings, shape)
    if image is None:
        where = relative(scan, index.root)
        content = content or read_scan(scan, site=index.site, root=index.root)
        volume, affine = decode_scan(content.raw, site=index.site, where=where)
        image = prepare_volume(volume, affine, image_size=image_size)
        check_head(image, site=index.site, where=where)
        store.put(store.learn_digest(target, content), settings, image)
    return image


def _in_memory_order(volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """View of the volume whose axes run as they lie in memory, and its affine.

    NIfTI stores the first axis fastest, numpy the last; filters are several times faster on an
    array in numpy's order, and where a voxel lies in the world does not change.
    """
    flip = np.array([stride < 0 for stride in volume.strides])
    turn = np.eye(4)
    turn[:3, :3] = np.diag(np.where(flip, -1.0, 1.0))
    turn[:3, 3] = np.where(flip, np.array(volume.shape) - 1.0, 0.0)
    volume = volume[tuple(slice(None, None, -1 if f else 1) for f in flip)]
    order = sorted(range(3), key=lambda axis: -volume.strides[axis])
    return volume.transpose(order), (np.asarray(affine, dtype=float) @ turn)[:, [*order, 3]]


def _without_spikes(volume: np.ndarray) -> np.ndarray:
    """Volume clipped to its 0.1st and 99.9th percentile, unless nothing lies between them."""
    low, high = np.percentile(volume, (0.1, 99.9)).astype(np.float32)
    return np.clip(volume, low, high) if high > low else volume


def _antialias(volume: np.ndarray, zooms: np.ndarray, spacing: float) -> np.ndarray:
    """Smooth each axis that is to lose resolution, as Cardoso et al. (2015), eq. 2.

    A voxel's point spread is taken as a Gaussian with the spacing as its full width at half
    maximum, so the kernel that leads from the old to the new has the difference of variances.
    """
    from scipy import ndimage

    for axis, zoom in enumerate(zooms):
        if spacing > zoom:
            sigma = np.sqrt(spacing**2 - zoom**2) / (2 * np.sqrt(2 * np.log(2))) / zoom  # voxels
            volume = ndimage.gaussian_filter1d(
                volume, sigma, axis=axis, mode="nearest", truncate=3.0
            )
    return volume


def _centre_of_mass(mask: np.ndarray) -> np.ndarray:
    """Mean index of a mask's voxels, shape (3,); the middle of the grid when it is empty."""
    plane = mask.sum(axis=2)
    profiles = (plane.sum(axis=1), plane.sum(axis=0), mask.sum(axis=(0, 1)))
    if not profiles[0].any():
        return (np.array(mask.shape) - 1) / 2
    return np.array([profile @ np.arange(len(profile)) / profile.sum() for profile in profiles])
