"""Where sex acts on a simulated brain's grey matter, in a prepared volume or its slices.

One mask for everybody: the regions' places in the template, at the mean head's size. A subject's
own pose and deformation move them by a few millimetres, less than a voxel of what classifiers see.
Sex also acts on the size of the whole brain, which shows at its surface and belongs to no region.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.imaging.phantoms import VOLUME_ML, load_template, regional_profile
from common.imaging.prepare import FIELD_OF_VIEW_MM
from common.imaging.slices import axial_slices

REGIONAL = 0.5  # of a region's effect at its centre, from which on a place belongs to it


def regional_mask(size: int, heights_mm: Sequence[float] = ()) -> NDArray[np.bool_]:
    """Return where a region's effect is at least half of that at its centre.

    Parameters
    ----------
    size : int
        S, voxels a side of the prepared cube.
    heights_mm : sequence of float
        Axial slices at these heights above the head's centre of mass; without any, the cube.

    Returns
    -------
    ndarray of bool, shape (S, S, S), or (levels, S, S)
        As `common.imaging.prepare` and `common.imaging.slices` lay them out.
    """
    template = load_template()
    brain = template.maps[:2].sum(axis=0) > 0.5
    index = [
        np.average(np.arange(n), weights=brain.sum(axis=others))
        for n, others in zip(brain.shape, ((1, 2), (0, 2), (0, 1)), strict=True)
    ]
    centre = template.origin + template.spacing * np.array(index)  # of mass, mm
    scale = (VOLUME_ML / template.tissue_ml) ** (1 / 3)  # of the mean head
    spacing = FIELD_OF_VIEW_MM / size
    steps = spacing * (np.arange(size) - (size - 1) / 2) / scale
    cube = regional_profile([steps + middle for middle in centre])
    return (axial_slices(cube, heights_mm) if heights_mm else cube) >= REGIONAL
