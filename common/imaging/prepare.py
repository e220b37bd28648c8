"""From a scan as the scanner left it to the small volume that a network sees.

Every site prepares its own scans with its own numbers: nothing here depends on another scan, let
alone on another site. Lengths are kept in millimetres, since the size of a head is signal.
"""

from __future__ import annotations

import numpy as np

from common.errors import DataContractError

FIELD_OF_VIEW_MM = 216.0  # an adult head, neck apart, with room to spare
PREPARE_VERSION = 1  # raise it with any change that alters a prepared volume
CENTRE_VERSION = 2  # the same of where the cube lies; the phantoms' heads lie as in version 1
HEAD_VERSION = 1  # the same of what prepare_head alone does
SMALLEST_IMAGE = 4
HEAD = 0.05  # prepared intensity above which a voxel counts as the head's
LEAST_PART = 0.5  # of a voxel, from which on it counts as the head's
CROWN_TO_BASE_MM = 150.0  # of an adult's skull; what lies lower is jaw, neck or shoulders
LEAST_SECTION_MM2 = 1000.0  # of a head, 3 mm below its crown: a smaller patch is noise, or an ear
SECTIONS_OVER_MM = 10.0  # sections are averaged over so much of the height
RISE = 0.1  # of the widest section, by which a lower one is larger than one above it
LARGEST_AVERAGED = 128  # voxels a side; half of 1.7 mm is finer than scans are

_BINS = 256


def prepare_volume(volume: np.ndarray, affine: np.ndarray, *, image_size: int) -> np.ndarray:
    """Resample a head to a standard cube and scale its intensities.

    The cube has sides of ``FIELD_OF_VIEW_MM``, parallel to the RAS axes, and its centre is the
    centre of mass of the head from its crown to ``CROWN_TO_BASE_MM`` below, so that it does not
    depend on how much of the neck was scanned. Voxels beyond the 0.1st and 99.9th percentile are
    clipped to these, so that no spike spreads. Before linear interpolation, each axis that loses
    resolution is smoothed so that its point spread function matches the new spacing [1]_. The head
    is what lies above
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
    above_neck = _above_neck(smooth > threshold, affine)
    centre = affine[:3, :3] @ _centre_of_mass(above_neck) + affine[:3, 3]  # mm
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


def prepare_head(volume: np.ndarray, affine: np.ndarray, *, image_size: int) -> np.ndarray:
    """Prepare a head for a classifier: each voxel is the mean of the head's part in it.

    A cube of :func:`prepare_volume` at twice the resolution, of which blocks of 2 × 2 × 2 voxels
    are averaged, without those that are air. In a plain mean a block on the head's edge, half of it
    air, is darker than anything inside, and there are more of these than of any structure. A block
    that is mostly air is 0. Above 128 voxels a side nothing is averaged.

    Parameters
    ----------
    volume, affine : np.ndarray
        As of :func:`prepare_volume`.
    image_size : int
        S.

    Returns
    -------
    np.ndarray
        float32 in [0, 1], shape (S, S, S).
    """
    if image_size > LARGEST_AVERAGED:
        return prepare_volume(volume, affine, image_size=image_size)
    cube = prepare_volume(volume, affine, image_size=2 * image_size)
    head = cube > HEAD
    shape = (image_size, 2) * 3
    part = head.reshape(shape).mean((1, 3, 5), dtype=np.float32)
    within = (cube * head).reshape(shape).mean((1, 3, 5))
    return np.where(part >= LEAST_PART, within / np.maximum(part, LEAST_PART), 0).astype(np.float32)


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


def _above_neck(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return a mask without what lies below the head.

    That is what lies more than ``CROWN_TO_BASE_MM`` below the crown, or lower than where sections,
    which get smaller below the widest one, get larger again, as where a neck or shoulders begin.
    """
    # Height of each voxel in mm, whatever way the volume lies.
    height = sum(
        step * np.arange(side, dtype=np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
        for axis, (step, side) in enumerate(zip(affine[2, :3], mask.shape, strict=True))
    )
    of_head = height[mask]
    if not of_head.size:
        return mask
    slab = float(np.abs(affine[2, :3]).max())  # mm: one layer of voxels of an upright volume
    low = float(of_head.min())
    layers = np.rint((of_head - low) / slab).astype(np.int64)
    areas = np.bincount(layers) * abs(np.linalg.det(affine[:3, :3])) / slab
    wide = np.flatnonzero(areas >= LEAST_SECTION_MM2)
    if not len(wide):
        return mask
    crown = int(wide[-1])
    base = max(0, crown - round(CROWN_TO_BASE_MM / slab))
    window = max(1, round(SECTIONS_OVER_MM / slab))  # of a tilted volume single ones are uneven
    smooth = np.convolve(areas, np.ones(window) / window, mode="same")[base : crown + 1][::-1]
    below = smooth[(widest := int(smooth.argmax())) :]
    rises = np.flatnonzero(below > np.minimum.accumulate(below) + RISE * below[0])
    if len(rises):
        base = crown - widest - int(below[: rises[0]].argmin())
    return mask if not base else mask & (height >= low + (base - 0.5) * slab)


def _centre_of_mass(mask: np.ndarray) -> np.ndarray:
    """Mean index of a mask's voxels, shape (3,); the middle of the grid when it is empty."""
    plane = mask.sum(axis=2)
    profiles = (plane.sum(axis=1), plane.sum(axis=0), mask.sum(axis=(0, 1)))
    if not profiles[0].any():
        return (np.array(mask.shape) - 1) / 2
    return np.array([profile @ np.arange(len(profile)) / profile.sum() for profile in profiles])
