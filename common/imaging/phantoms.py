"""Simulated brain anatomy with a known truth: who the subject is, then how the brain looks.

The anatomy is real: the T1, grey-matter (GM) and white-matter (WM) maps of the MNI152 template
(ICBM 2009a nonlinear symmetric; Fonov et al. 2009, 2011) that ship with nilearn, brain only. A
subject is a draw of a few *latents* (:func:`sample_latents`); :func:`render` is the pure map from
latents to tissue fractions on a grid. What a scanner makes of them is in
:mod:`common.imaging.shifts`, what a data set makes of many in :mod:`common.imaging.cohorts`.

Sex acts in two ways.

*Total brain volume* (GM + WM) is log-normal: geometric mean 1175 ml, within-sex coefficient of
variation 8 %, Cohen's d = 1.3, so men's is 11 % larger (Ritchie et al. 2018, Cereb Cortex 28:2959,
UK Biobank: men 1234 ml, women 1116 ml). Volume alone then gives an accuracy of at most
Φ(1.3 / 2) = 0.742.

*Regional grey matter* relative to volume: 13 regions in either hemisphere, 26 in all, with the
signs of Lotze et al. 2019 (Sci Rep 9:1671): more in women in medial, lateral and orbital
prefrontal cortex, superior temporal sulcus and posterior insula; more in men in amygdala,
hippocampus, temporal pole, fusiform gyrus, primary visual and motor cortex, putamen and anterior
cerebellum. Each varies independently, within-sex SD 15 % of the regional GM, and differs by
d = 0.9. Region centres are rounded MNI coordinates; that all share one d is a simplification.

That d was set by what shows in images, where the literature measures too: pose, deformation, noise
and misregistration attenuate it, and classifiers learn from finite samples. Measured on fresh
subjects of the one scanner ``north`` by ``python -m simulations.phantom_calibration``:

- At equal brain size, sexes differ voxelwise (9 mm) by |d| = 0.05 at the median, 0.35 at the 99th
  percentile and 0.53 at most; voxel-based morphometry finds about 0.2 to 0.4 where they differ.
- Ridge regression on whole images has an accuracy of 0.74, 0.83, 0.89, 0.92 and 0.94 after
  training on 150, 270, 500, 1000 and 1500 scans, ± 0.01 to 0.02. Published are 0.89 for 140 (Wang
  et al. 2012, NeuroImage 61:931) and 0.93 for some 1500 (Chekroud et al. 2016, PNAS 113:E1968;
  Anderson et al. 2019, Hum Brain Mapp 40:1496): the phantom is harder with few scans. Of d = 0.8,
  0.9 and 1.0, which give 0.91, 0.94 and 0.95 with 1500, the one nearest to 0.93 was taken.

The latents are Gaussian with one covariance for both sexes, so the best classifier of them is
linear. Its accuracy at even odds, Φ(d' / 2) = 0.991 with d' = √(1.3² + 26 · 0.9²) = 4.77, bounds
that of any classifier of images.

Age widens the lateral ventricles (1.8-fold from 30 to 80 years) and lowers GM by 2 % a decade after
25, the age of the template (Walhovd et al. 2011, Neurobiol Aging 32:916). Head shape, pose,
local deformation and tissue intensities are nuisance that neither sex nor site changes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

SEXES = ("F", "M")

VOLUME_D = 1.3  # Cohen's d of log total brain volume, men minus women
VOLUME_CV = 0.08  # within-sex SD of log total brain volume
VOLUME_ML = 1175.0  # geometric mean over both sexes, of GM + WM at the template's age
REGION_D = 0.9  # Cohen's d of each regional deviation
REGION_SD = 0.15  # within-sex SD of each regional deviation, as a fraction of the regional GM

TEMPLATE_AGE = 25.0  # years; MNI152 are young adults
GM_LOSS = 0.002  # fraction of GM a year after TEMPLATE_AGE, replaced by CSF
VENTRICLE_GROWTH = 0.0075  # inward pull of template coordinates a year after TEMPLATE_AGE
VENTRICLE_SD = 0.04  # the same, between people of one age
VENTRICLE_SIGMA = 11.0  # mm, reach of the pull around the centreline
# Centreline of the right lateral ventricle, back to front, read off the template: x, y, z in mm.
VENTRICLE_LINE = np.array(
    [
        *[(26, -46, 9), (23, -40, 13), (18, -34, 18), (14, -26, 21), (11, -16, 23), (9, -6, 21)],
        *[(8, 2, 17), (7, 8, 13), (7, 14, 10), (9, 20, 8), (13, 26, 6)],
    ],
    dtype=float,
)

DEFORMATION_MM = 3.0  # SD of the local displacement, each direction
KNOT_MM = 36.0  # distance of its control points
KNOTS = (9, 10, 9)  # control points: they cover 216 x 252 x 216 mm
SHAPE_SD = 0.02  # log scale of each head axis at equal volume
ROTATION_DEG = 3.0
TRANSLATION_MM = 2.5
TISSUE_SD = 0.03  # log intensity of GM, WM and CSF between subjects

BRAIN_CENTRE = np.array([0.0, -15.0, 5.0])  # mm, MNI; about this the head turns and scales
_SPLINE_ENERGY = (151 / 315) ** 1.5  # SD of a cubic B-spline field over that of its coefficients


class Region(NamedTuple):
    """A pair of regions: right-hemisphere centre (mm, MNI), Gaussian width, sex with more GM."""

    name: str
    centre: tuple[float, float, float]
    sigma: float
    more_in: str


REGIONS = (
    Region("medial prefrontal", (10, 52, 14), 9, "F"),
    Region("lateral prefrontal", (44, 30, 24), 9, "F"),
    Region("superior temporal sulcus", (56, -28, 2), 9, "F"),
    Region("posterior insula", (38, -14, 6), 8, "F"),
    Region("orbitofrontal", (26, 34, -14), 9, "F"),
    Region("amygdala", (22, -4, -18), 7, "M"),
    Region("hippocampus", (28, -24, -13), 7, "M"),
    Region("temporal pole", (38, 12, -32), 9, "M"),
    Region("fusiform", (36, -52, -18), 9, "M"),
    Region("primary visual", (12, -86, 4), 9, "M"),
    Region("motor", (38, -12, 56), 9, "M"),
    Region("putamen", (26, 4, 2), 8, "M"),
    Region("anterior cerebellum", (16, -46, -22), 9, "M"),
)
# One row a lateralised region, right then left: centre (26, 3), width and sign (26,).
_CENTRES = np.array([(side * x, y, z) for _, (x, y, z), _, _ in REGIONS for side in (1, -1)], float)
_SIGMAS = np.repeat([region.sigma for region in REGIONS], 2)
_SIGNS = np.repeat([1.0 if region.more_in == "M" else -1.0 for region in REGIONS], 2)


@dataclass(frozen=True)
class Latents:
    """The truth about one subject, from which its anatomy follows.

    Parameters
    ----------
    sex : {"F", "M"}
    age : float
        Years.
    log_volume : float
        Log of GM + WM in ml, had the subject the template's age.
    regions : ndarray, shape (26,)
        Relative deviation of regional GM: each of ``REGIONS``, right then left.
    ventricles : float
        Strength of the radial widening of the lateral ventricles, 0 for the template's.
    tissue : ndarray, shape (3,)
        Log deviation of the intensities of GM, WM and CSF.
    knots : ndarray, shape (3, *KNOTS)
        B-spline coefficients of the local displacement, mm.
    shape : ndarray, shape (3,)
        Log scale of the head's axes, of sum 0.
    rotation, translation : ndarray, shape (3,)
        The head in the scanner: rotation vector in radians, shift in mm.
    """

    sex: str
    age: float
    log_volume: float
    regions: np.ndarray
    ventricles: float
    tissue: np.ndarray
    knots: np.ndarray
    shape: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray

    @property
    def features(self) -> np.ndarray:
        """All that depends on sex: log volume, then the regional deviations, shape (27,)."""
        return np.concatenate([[self.log_volume], self.regions])


def sample_latents(sex: str, ages: tuple[float, float], rng: np.random.Generator) -> Latents:
    """Draw a subject of a given sex, of an age uniform between two limits in years."""
    side = SEXES.index(sex) - 0.5  # women -1/2, men +1/2: groups lie one d apart
    age = round(float(rng.uniform(*ages)), 1)
    volume = side * VOLUME_D + rng.standard_normal()
    regions = side * REGION_D * _SIGNS + rng.standard_normal(len(_SIGNS))
    widening = VENTRICLE_GROWTH * (age - TEMPLATE_AGE) + VENTRICLE_SD * rng.standard_normal()
    shape = SHAPE_SD * rng.standard_normal(3)
    return Latents(
        sex=sex,
        age=age,
        log_volume=math.log(VOLUME_ML) + VOLUME_CV * volume,
        regions=REGION_SD * regions,
        ventricles=float(np.clip(widening, -0.15, 0.6)),  # beyond, the map would fold
        tissue=TISSUE_SD * rng.standard_normal(3),
        knots=DEFORMATION_MM / _SPLINE_ENERGY * rng.standard_normal((3, *KNOTS)),
        shape=shape - shape.mean(),
        rotation=np.deg2rad(ROTATION_DEG) * rng.standard_normal(3),
        translation=TRANSLATION_MM * rng.standard_normal(3),
    )


class Template(NamedTuple):
    """Tissue maps on a 2 mm grid: what every subject is a deformation of."""

    maps: np.ndarray  # (4, X, Y, Z): GM, WM, CSF fractions and T1 texture that they do not explain
    origin: np.ndarray  # (3,) mm, MNI coordinates of voxel 0
    spacing: float  # mm
    tissue_ml: float  # GM + WM


@functools.cache
def load_template() -> Template:
    """MNI152 maps, cut to the brain and averaged to 2 mm; made once a process."""
    from nilearn.datasets import (
        load_mni152_gm_template,
        load_mni152_template,
        load_mni152_wm_template,
    )

    image = load_mni152_template(resolution=1)
    loaders = (load_mni152_gm_template, load_mni152_wm_template)
    t1 = image.get_fdata(dtype=np.float32)
    brain = t1 > 0
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    t1, brain = t1[box], brain[box]
    gm, wm = (load(resolution=1).get_fdata(dtype=np.float32)[box] * brain for load in loaders)
    maps = np.stack([gm, wm, np.clip(brain - gm - wm, 0, 1), t1])
    # Texture: T1 less its least-squares prediction from the tissue fractions, in units of WM.
    inside = maps[:3, brain].astype(np.float64)
    weights = np.linalg.solve(inside @ inside.T, inside @ t1[brain])
    maps[3] = (t1 - np.tensordot(weights, maps[:3], 1)) / weights[1]
    # Zeros around, so that interpolation beyond the edge finds nothing, and an even size.
    maps = np.pad(maps, [(0, 0)] + [(2, 2 + n % 2) for n in maps.shape[1:]])
    x, y, z = (n // 2 for n in maps.shape[1:])
    small = maps.reshape(4, x, 2, y, 2, z, 2).mean(axis=(2, 4, 6))
    origin = image.affine[:3, 3] + [axis.start - 1.5 for axis in box]  # amid the first two voxels
    return Template(small, origin, 2.0, float(small[:2].sum()) * 8 / 1000)


@dataclass(frozen=True)
class Grid:
    """Voxel centres in scanner space, axes to the right, front and top (RAS), in mm."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def axes(self) -> list[np.ndarray]:
        """Coordinates along each axis, centred on the brain."""
        return [
            centre + spacing * (np.arange(n) - (n - 1) / 2)
            for n, spacing, centre in zip(self.shape, self.spacing, BRAIN_CENTRE, strict=True)
        ]

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to mm, shape (4, 4)."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = [axis[0] for axis in self.axes]
        return affine


@functools.lru_cache(maxsize=16)
def _splines(grid: Grid) -> list[np.ndarray]:
    """Cubic B-spline basis along each axis of a grid, (voxels, knots)."""
    bases = []
    for axis, centre, count in zip(grid.axes, BRAIN_CENTRE, KNOTS, strict=True):
        ends = (np.arange(count + 4) - (count + 3) / 2) * KNOT_MM + centre
        bases.append(BSpline(ends, np.eye(count), 3)(axis).astype(np.float32))
    return bases


def render(latents: Latents, grid: Grid) -> np.ndarray:
    """Tissue fractions of a subject on a grid: one interpolation of the deformed template.

    Regional deviations and age change the concentration of GM, as voxel-based morphometry sees
    it: the GM fraction is multiplied, and CSF gives or takes the difference. The mixture stays
    linear where no CSF is left to give (its fraction then turns slightly negative): denser GM is
    brighter there, and no deviation is lost to clipping.

    Parameters
    ----------
    latents : Latents
    grid : Grid

    Returns
    -------
    ndarray of float32, shape (4, *grid.shape)
        Fractions of GM, WM and CSF, and the T1 texture in units of WM intensity; 0 outside.
    """
    template = load_template()
    maps = template.maps.copy()  # (4, X, Y, Z)
    density = 1 + _regional(latents.regions, template)
    density *= 1 - GM_LOSS * max(0.0, latents.age - TEMPLATE_AGE)
    maps[2] += maps[0] * (1 - density)
    maps[0] *= density

    # x = S^-1 R^T (p - centre - shift) + centre + displacement: template coordinates x of the
    # scanner coordinates p, one array a direction, in template voxels.
    size = (math.exp(latents.log_volume) / template.tissue_ml) ** (1 / 3)
    turn = Rotation.from_rotvec(latents.rotation).as_matrix()
    inverse = turn.T / (size * np.exp(latents.shape))[:, None]
    offsets = [
        (axis - centre - shift).astype(np.float32)
        for axis, centre, shift in zip(grid.axes, BRAIN_CENTRE, latents.translation, strict=True)
    ]
    where = _displacement(latents, grid)  # (3, X, Y, Z), mm
    where += _widening(latents.ventricles, inverse, offsets)
    for i in range(3):
        along = [np.float32(inverse[i, j]) * offsets[j] for j in range(3)]
        along[0] += np.float32(BRAIN_CENTRE[i] - template.origin[i])
        where[i] += _outer_sum(*along)
    where /= np.float32(template.spacing)
    near = _near_tissue(where)
    where = where[:, near]
    tissues = np.zeros((len(maps), *grid.shape), np.float32)
    for source, target in zip(maps, tissues, strict=True):
        target[near] = ndimage.map_coordinates(source, where, order=1, prefilter=False)
    return tissues


@functools.cache
def _tissue() -> np.ndarray:
    """Say of each voxel of the template whether tissue may be next to a place that rounds to it."""
    some = load_template().maps.any(axis=0)
    return ndimage.binary_dilation(some, np.ones((3, 3, 3)))


def _near_tissue(where: np.ndarray) -> np.ndarray:
    """Places (3, X, Y, Z), in template voxels, where interpolation may find anything but zeros.

    Most of a field of view is air, and interpolation takes most of a subject's time.
    """
    tissue = _tissue()
    inside = np.ones(where.shape[1:], bool)
    index = np.empty(where.shape, np.intp)
    for along, found, count in zip(where, index, tissue.shape, strict=True):
        np.rint(along, casting="unsafe", out=found)
        inside &= (found >= 0) & (found < count)
        np.clip(found, 0, count - 1, out=found)
    return inside & tissue[tuple(index)]


def _outer_sum(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return (x[:, None] + y)[:, :, None] + z


def _regional(deviations: np.ndarray, template: Template) -> np.ndarray:
    """Sum of the regions' Gaussian profiles, each times its deviation, on the template's grid."""
    return regional_profile(
        [
            template.origin[i] + template.spacing * np.arange(n)
            for i, n in enumerate(template.maps.shape[1:])
        ],
        deviations,
    )


def regional_profile(axes: list[np.ndarray], deviations: np.ndarray | None = None) -> np.ndarray:
    """Sum of the regions' Gaussian profiles, each times its deviation, 1 by default.

    Parameters
    ----------
    axes : list of ndarray
        MNI coordinates along each axis, mm.
    deviations : ndarray, shape (26,), optional

    Returns
    -------
    ndarray of float32, shape (X, Y, Z)
    """
    profiles = [
        np.exp(-0.5 * ((axis - _CENTRES[:, i, None]) / _SIGMAS[:, None]) ** 2)
        for i, axis in enumerate(axes)
    ]
    x, y, z = (profile.astype(np.float32) for profile in profiles)  # (26, voxels) each
    weights = np.ones(len(_SIGNS)) if deviations is None else deviations
    xy = (weights.astype(np.float32)[:, None] * x)[:, :, None] * y[:, None, :]
    return np.tensordot(xy, z, (0, 0))


def _displacement(latents: Latents, grid: Grid) -> np.ndarray:
    """Random smooth displacement (3, X, Y, Z) in mm, a tensor-product cubic B-spline."""
    x, y, z = _splines(grid)
    field = np.matmul(latents.knots.astype(np.float32), z.T)  # (3, kx, ky, Z)
    field = np.matmul(y, field)  # (3, kx, Y, Z)
    shape = field.shape[2:]
    return np.matmul(x, field.reshape(3, KNOTS[0], -1)).reshape(3, len(x), *shape)


def _widening(strength: float, inverse: np.ndarray, offsets: list[np.ndarray]) -> np.ndarray:
    """Pull template coordinates towards the ventricles' centrelines, which widens what lies there.

    For either ventricle: -strength · (x - c) · exp(-½ |x - c|² / σ²) in each coronal plane, where
    c is the centreline's point in it, fading out beyond the ends of the line. The head's few
    degrees of rotation are neglected inside the Gaussian. Shape (3, X, Y, Z), mm.
    """
    x, y, z = (inverse[i, i] * offsets[i] + BRAIN_CENTRE[i] for i in range(3))
    line_x, line_y, line_z = VENTRICLE_LINE.T
    beyond = y - np.clip(y, line_y[0], line_y[-1])
    fade = np.exp(-0.5 * (beyond / VENTRICLE_SIGMA) ** 2)
    away_z = z - np.interp(y, line_y, line_z)[:, None]  # (Y, Z)
    near_z = np.exp(-0.5 * (away_z / VENTRICLE_SIGMA) ** 2).astype(np.float32)
    pull = np.zeros((3, len(x), len(y), len(z)), np.float32)
    for side in (1, -1):
        away_x = x[:, None] - side * np.interp(y, line_y, line_x)  # (X, Y)
        near_x = -strength * fade * np.exp(-0.5 * (away_x / VENTRICLE_SIGMA) ** 2)
        pull[0] += (away_x * near_x).astype(np.float32)[:, :, None] * near_z
        pull[2] += near_x.astype(np.float32)[:, :, None] * (away_z.astype(np.float32) * near_z)
    return pull
