"""Whether what a scan shows can be a head: its size, its volume, and where it is cut off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import DataContractError
from common.imaging.prepare import HEAD, LEAST_SECTION_MM2, otsu

NO_HEAD = "a scan shows no head"
FACES = ("left", "right", "back", "front", "bottom", "top")
AXES = ("wide", "long", "high")
# Of what lies above Otsu's threshold: a head with or without its skull, its jaw and its neck.
ADULT_MM = ((100.0, 200.0), (120.0, 260.0), (95.0, 280.0))
ADULT_CM3 = (600.0, 6500.0)
LEAST_MM, LEAST_CM3 = 60.0, 300.0  # below these it is nobody's, the youngest included
CUT_OFF = 0.15  # share of a face of the scan, or of the cube, on which the head lies
BRIGHT = 0.2  # the same of noise that is as bright as the head, on ...
MOST_BRIGHT = 3  # ... more faces than a head can touch

_BLOCK_MM = 4.0


@dataclass(frozen=True)
class HeadMeasures:
    """What lies above Otsu's threshold in a scan.

    Parameters
    ----------
    extent_mm : tuple of float
        From left to right, back to front and bottom to top, over the layers in which it is at
        least ``LEAST_SECTION_MM2`` large; 0 where none is.
    volume_cm3 : float
        With holes filled.
    faces : tuple of float
        Share of each of the scan's faces, as in ``FACES``, that is above the threshold.
    """

    extent_mm: tuple[float, float, float]
    volume_cm3: float
    faces: tuple[float, ...]

    @property
    def words(self) -> str:
        """Extent and volume, for a message."""
        return (
            f"{' × '.join(f'{side:.0f}' for side in self.extent_mm)} mm, {self.volume_cm3:.0f} cm³"
        )


def measure_head(volume: NDArray[np.float32], affine: NDArray[np.float64]) -> HeadMeasures:
    """Measure what a scan shows, by blocks of about 4 mm.

    Parameters
    ----------
    volume : (X, Y, Z) float32
        In canonical orientation.
    affine : (4, 4) float64
        Voxel index to position in mm.
    """
    from scipy import ndimage

    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    steps = [max(1, round(_BLOCK_MM / zoom)) for zoom in zooms]
    steps = [min(step, side) for step, side in zip(steps, volume.shape, strict=True)]
    kept = [side // step for step, side in zip(steps, volume.shape, strict=True)]
    whole = volume[tuple(slice(0, n * step) for n, step in zip(kept, steps, strict=True))]
    shape = [part for n, step in zip(kept, steps, strict=True) for part in (n, step)]
    blocks = whole.reshape(shape).mean((1, 3, 5), dtype=np.float32)
    low, high = np.percentile(blocks, (0.1, 99.9))
    threshold = otsu(np.clip(blocks, low, high) if high > low else blocks)[0]
    mask = ndimage.binary_fill_holes(blocks > threshold)
    sides = zooms * steps
    extent = []
    for axis in range(3):
        others = tuple(k for k in range(3) if k != axis)
        sections = mask.sum(others) * np.prod(sides[[*others]])
        layers = np.flatnonzero(sections >= LEAST_SECTION_MM2)
        extent.append(float((layers[-1] - layers[0] + 1) * sides[axis]) if len(layers) else 0.0)
    faces = [np.take(volume, end, axis) for axis in range(3) for end in (0, -1)]
    return HeadMeasures(
        (extent[0], extent[1], extent[2]),
        float(mask.sum() * np.prod(sides) / 1000),
        tuple(float((face > threshold).mean()) for face in faces),
    )


def require_head(found: HeadMeasures, *, site: str, where: str) -> None:
    """Refuse a scan in which there cannot be a head.

    Raises
    ------
    DataContractError
        It is too small or too thin for anybody's, or the air about it is as bright.
    """
    remedy = "Accepted: one scan of a whole head, brighter than the air about it"
    if sum(share > BRIGHT for share in found.faces) > MOST_BRIGHT:
        got = "noise as bright as the head on most faces of the scan"
    elif min(found.extent_mm) < LEAST_MM or found.volume_cm3 < LEAST_CM3:
        got = found.words
    else:
        return
    raise DataContractError(site, NO_HEAD, where=where, got=got, remedy=remedy)


def oddities(found: HeadMeasures, cube: NDArray[np.floating]) -> list[str]:
    """Say what of a head is not as an adult's whole head is; empty where nothing is odd.

    Parameters
    ----------
    found : HeadMeasures
    cube : (S, S, S) floats
        The same scan, prepared.
    """
    told = [
        f"the head is {side:.0f} mm {axis}, an adult's {low:.0f} to {high:.0f} mm"
        for side, axis, (low, high) in zip(found.extent_mm, AXES, ADULT_MM, strict=True)
        if not low <= side <= high
    ]
    low, high = ADULT_CM3
    if not low <= found.volume_cm3 <= high:
        told.append(
            f"the head has {found.volume_cm3:.0f} cm³, an adult's {low:.0f} to {high:.0f} cm³"
        )
    in_cube = [np.take(cube, end, axis) > HEAD for axis in range(3) for end in (0, -1)]
    for place, share, of_cube in zip(FACES, found.faces, in_cube, strict=True):
        if place != "bottom" and share > CUT_OFF:
            told.append(f"the scan ends within the head at the {place}")
        elif place != "bottom" and of_cube.mean() > CUT_OFF:
            told.append(f"the head reaches out of the prepared cube at the {place}")
    return told
