"""Two-dimensional axial slices of prepared volumes, for networks that see pictures.

A slice inherits everything from the prepared cube (`common.imaging.prepare`): its place and size in
millimetres, and intensities that are a scan's own. So the slices of all sites lie on one grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.errors import ConfigError
from common.imaging.prepare import FIELD_OF_VIEW_MM

# Above the head's centre of mass, from the basal ganglia over the ventricles to the white matter
# above them. 20 mm lower lie temporal poles and cerebellum; 40 mm up, brains narrow.
LEVELS_MM = (-9.0, 0.0, 9.0, 18.0, 27.0)
# From the temporal lobes to the crown, those above among them: what tells more of a whole head.
WHOLE_HEAD_MM = tuple(float(level) for level in range(-36, 64, 9))
RESOLUTIONS = (16, 32, 64, 128, 256)


def axial_slices(cube: np.ndarray, levels_mm: Sequence[float]) -> np.ndarray:
    """Cut slices out of a prepared cube.

    Parameters
    ----------
    cube : np.ndarray
        As `common.imaging.prepare.prepare_volume` gives it: in [0, 1], shape (R, R, R).
    levels_mm : sequence of float
        Heights above the cube's centre. Between two planes of the cube, a slice is their linear
        interpolation, so the heights are the same at every resolution.

    Returns
    -------
    np.ndarray
        float32 in [0, 1], shape (levels, R, R). Rows run from front to back, so the nose is up;
        columns from the participant's left to right, so left is left (the neurological, not the
        radiological convention). A pixel is ``FIELD_OF_VIEW_MM / R`` wide.
    """
    size = cube.shape[2]
    height = (size - 1) / 2 + np.asarray(levels_mm) * size / FIELD_OF_VIEW_MM  # in planes
    below = np.clip(np.floor(height).astype(int), 0, size - 2)
    share = np.float32(height - below)[:, None, None]
    planes = np.moveaxis(cube, 2, 0)  # (z, x, y)
    cut = planes[below] * (1 - share) + planes[below + 1] * share
    pictures = cut.transpose(0, 2, 1)[:, ::-1]  # rows: y downwards from the front; columns: x
    return np.ascontiguousarray(pictures, dtype=np.float32)


def check_levels(resolution: int, levels_mm: Sequence[float]) -> tuple[float, ...]:
    """Return levels in order, where the resolution and all of them are accepted.

    Raises
    ------
    ConfigError
    """
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
