"""Grids of images beside where a classifier looks, and averages by class and hospital."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.imaging.pictures import write_grid
from simulations.report.looks import OKABE_ITO

COLUMNS = 8  # images of a site in a class's grid, at most
OPACITY = 0.6  # of the map's brightest place
MAP = "inferno"
COLOURS = {
    "lesion": OKABE_ITO["green"],
    "regions": OKABE_ITO["green"],
    "hair": OKABE_ITO["orange"],
    "ruler": OKABE_ITO["sky blue"],
    "frame": OKABE_ITO["purple"],
    "corners": OKABE_ITO["vermilion"],
    "bubbles": OKABE_ITO["yellow"],
    "ink": OKABE_ITO["blue"],
}

Pixels = NDArray[np.floating]


def flattened(
    image: Pixels, heat: Pixels, masks: Mapping[str, NDArray[np.bool_]]
) -> tuple[Pixels, Pixels, dict[str, NDArray[np.bool_]]]:
    """Return what is shown of an image: a picture whole, a volume or stack in one axial plane.

    The plane is that of most attention.

    Parameters
    ----------
    image : (C, *space)
        In [0, 1].
    heat : (*space)
    masks : dict of str to bool, (*space)

    Returns
    -------
    picture : (S, S, 3)
    heat : (S, S)
    masks : dict of str to bool, (S, S)
    """
    if heat.ndim == 2:
        shape = (*heat.shape, 3)
        return np.broadcast_to(image.transpose(1, 2, 0), shape), heat, dict(masks)
    stack = heat.shape[0] < heat.shape[1]
    at = int(heat.clip(min=0).sum(axis=(1, 2) if stack else (0, 1)).argmax())

    def cut(space: NDArray) -> NDArray:
        # Of a volume (x, y, z): rows from the front, columns from the left.
        return space[at] if stack else space[:, :, at].T[::-1]

    picture = np.repeat(cut(image[0])[..., None], 3, axis=2)
    return picture, cut(heat), {name: cut(mask) for name, mask in masks.items()}


def overlaid(picture: Pixels, heat: Pixels, most: float) -> Pixels:
    """Lay a map (S, S) over a picture (S, S, 3); what is ``most`` has the map's last colour."""
    import matplotlib

    strength = np.clip(heat / most, 0, 1) if most > 0 else np.zeros_like(heat)
    colour = matplotlib.colormaps[MAP](strength)[..., :3]
    opacity = OPACITY * np.sqrt(strength)[..., None]
    return (1 - opacity) * picture + opacity * colour


def outlined(picture: Pixels, masks: Mapping[str, NDArray[np.bool_]]) -> Pixels:
    """Draw the inner edge of each mask (S, S) into a picture (S, S, 3), but at its border."""
    from matplotlib.colors import to_rgb
    from scipy.ndimage import binary_erosion

    drawn = picture.copy()
    for name, mask in masks.items():
        drawn[mask & ~binary_erosion(mask, border_value=1)] = to_rgb(COLOURS.get(name, "#ffffff"))
    return drawn


def write_class_grid(path: Path, sites: Mapping[str, Sequence[tuple[Pixels, ...]]]) -> None:
    """Write a class's images of each site: the image, the map over it, the masks' outlines.

    Parameters
    ----------
    path : Path
    sites : mapping of str to sequence of tuples of (S, S, 3)
        For each image, the pictures that stand below one another.
    """
    rows, names = [], []
    for site, columns in sites.items():
        shown = columns[:COLUMNS]
        rows += [_as_images(row) for row in zip(*shown, strict=True)]
        names += [site, "attention", "masks"][: len(shown[0])]
    write_grid(path, rows, names=names)


def write_averages(
    path: Path,
    cells: Mapping[tuple[str, str], Pixels],
    sites: Sequence[str],
    classes: Sequence[str],
) -> None:
    """Write averages as rows of sites and columns of classes, in their order.

    A pair without images is white; a class without any has no column.
    """
    classes = [name for name in classes if any(name == of for _, of in cells)]
    blank = np.ones_like(next(iter(cells.values())))
    rows = [_as_images([cells.get((site, name), blank) for name in classes]) for site in sites]
    write_grid(path, rows, names=sites, captions=list(classes))


def _as_images(pictures: Sequence[Pixels]) -> Pixels:
    return np.stack(pictures).transpose(0, 3, 1, 2) * 2 - 1
