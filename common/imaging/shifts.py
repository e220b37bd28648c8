"""Scanners that see the same anatomy differently: sample a scan's parameters, then a pure apply.

A site's scanner is a :class:`Scanner`: contrast, bias field, noise, slice thickness and orientation
code. :func:`sample_scan` draws what changes from scan to scan and is told nothing of the subject,
so no scanner effect can carry the label; :func:`acquire` is pure. Within a site, sex is thus
independent of the scan. Between sites it is not: sites differ in both scanner and sex mix, as
hospitals do.

Three sites have a documented profile; every other name draws one of its own, the same for all time.

- ``north``, a university hospital: 3 T MPRAGE, 3 mm isotropic, high contrast, little noise, the
  centre of the head brightened by dielectric effects; adults of all ages, as many men as women.
- ``south``, a city clinic: 1.5 T, axial 4 mm slices, flatter contrast, brightness that falls off
  from one side; younger, 40 % men.
- ``island``, a small hospital: 0.5 T, sagittal 5 mm slices, low contrast, much noise, a coil
  that shines from behind; older, 60 % men.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from common.imaging.phantoms import BRAIN_CENTRE, Grid
from common.seeding import derive_seed

IN_PLANE_MM = 3.0
FIELD_OF_VIEW = (180.0, 216.0, 186.0)  # mm, right, front, top: holds a head 3.5 SD above the mean
_HALF_MM = 90.0  # the bias polynomial's unit of length
_ORIENTATIONS = ("RAS", "LAS", "LPS", "LPI", "RSA", "LSP", "ASR", "PIR", "PSL")


@dataclass(frozen=True)
class Scanner:
    """A site's scanner, and whom the site sees.

    Parameters
    ----------
    contrast : tuple of float
        Mean signal of GM, WM and CSF; WM is 1.
    bias : tuple of float
        Mean coefficients of the log bias field, see :func:`bias_field`.
    bias_sd : float
        SD of each coefficient from scan to scan.
    noise : float
        SD of the noise in either receiver channel (Rician), as a fraction of the WM signal.
    slice_mm : float
        Thickness of a slice: the signal is averaged across it.
    orientation : str
        Direction in which each stored axis points; the third is across slices.
    gain : float
        Stored units of the WM signal.
    men : float
        Share of men among the site's subjects.
    ages : tuple of float
        Youngest and oldest, years.
    """

    contrast: tuple[float, float, float]
    bias: tuple[float, ...]
    bias_sd: float
    noise: float
    slice_mm: float
    orientation: str
    gain: float
    men: float
    ages: tuple[float, float]

    @property
    def slice_axis(self) -> int:
        """World axis across slices: 0 sagittal, 1 coronal, 2 axial."""
        return next(i for i, pair in enumerate(("LR", "PA", "IS")) if self.orientation[2] in pair)

    @property
    def subslices(self) -> int:
        """Samples across a slice, at most 3 mm apart."""
        return max(1, math.ceil(self.slice_mm / 3))

    @property
    def grid(self) -> Grid:
        """Where to render the anatomy: the field of view with every slice in its samples."""
        spacing = [IN_PLANE_MM] * 3
        shape = [round(side / IN_PLANE_MM) for side in FIELD_OF_VIEW]
        axis = self.slice_axis
        spacing[axis] = self.slice_mm / self.subslices
        shape[axis] = math.ceil(FIELD_OF_VIEW[axis] / self.slice_mm) * self.subslices
        return Grid(tuple(shape), tuple(spacing))


#                x, y, z,   x², y², z²,   xy, xz, yz
SCANNERS = {
    "north": Scanner(
        contrast=(0.64, 1.0, 0.22),
        bias=(0.0, 0.0, 0.0, -0.22, -0.18, -0.22, 0.0, 0.0, 0.0),
        bias_sd=0.04,
        noise=0.02,
        slice_mm=3.0,
        orientation="RAS",
        gain=900.0,
        men=0.5,
        ages=(20.0, 80.0),
    ),
    "south": Scanner(
        contrast=(0.74, 1.0, 0.36),
        bias=(0.25, 0.05, -0.2, 0.0, 0.0, 0.0, 0.08, 0.0, 0.0),
        bias_sd=0.05,
        noise=0.035,
        slice_mm=4.0,
        orientation="LPS",
        gain=350.0,
        men=0.4,
        ages=(18.0, 60.0),
    ),
    "island": Scanner(
        contrast=(0.80, 1.0, 0.46),
        bias=(0.0, -0.45, 0.12, 0.15, 0.2, 0.1, 0.0, 0.0, 0.1),
        bias_sd=0.07,
        noise=0.05,
        slice_mm=5.0,
        orientation="PIR",
        gain=1800.0,
        men=0.6,
        ages=(50.0, 85.0),
    ),
}


def site_scanner(site: str) -> Scanner:
    """Profile of a site: the documented one, or one drawn from the name alone."""
    if site in SCANNERS:
        return SCANNERS[site]
    rng = np.random.default_rng(derive_seed(0, site=site, purpose="scanner"))
    youngest = rng.uniform(18, 45)
    return Scanner(
        contrast=(rng.uniform(0.62, 0.8), 1.0, rng.uniform(0.2, 0.45)),
        bias=tuple(0.15 * rng.standard_normal(9)),
        bias_sd=rng.uniform(0.03, 0.07),
        noise=rng.uniform(0.015, 0.05),
        slice_mm=float(rng.choice([3.0, 3.5, 4.0, 4.5, 5.0])),
        orientation=str(rng.choice(_ORIENTATIONS)),
        gain=rng.uniform(300, 2000),
        men=rng.uniform(0.4, 0.6),
        ages=(youngest, youngest + rng.uniform(25, 40)),
    )


@dataclass(frozen=True)
class Scan:
    """What one acquisition adds to its scanner's profile."""

    contrast: np.ndarray  # (3,) signal of GM, WM, CSF
    bias: np.ndarray  # (9,) coefficients of the log field
    noise: float  # fraction of the WM signal
    gain: float  # stored units
    noise_seed: int


def sample_scan(scanner: Scanner, rng: np.random.Generator) -> Scan:
    """Draw one acquisition: contrast ±2 %, noise ±10 %, gain ±10 %, and a bias field (all SD)."""
    return Scan(
        contrast=np.array(scanner.contrast) * np.exp(0.02 * rng.standard_normal(3)),
        bias=np.array(scanner.bias) + scanner.bias_sd * rng.standard_normal(9),
        noise=scanner.noise * math.exp(0.1 * rng.standard_normal()),
        gain=scanner.gain * math.exp(0.1 * rng.standard_normal()),
        noise_seed=int(rng.integers(2**63)),
    )


def bias_field(coefficients: np.ndarray, axes: list[np.ndarray]) -> np.ndarray:
    """Smooth multiplicative field: exp of a polynomial of order 2 (Van Leemput et al. 1999).

    Parameters
    ----------
    coefficients : ndarray, shape (9,)
        Of x, y, z, x², y², z², xy, xz, yz, in units of 90 mm from the middle of the brain.
    axes : list of ndarray
        Coordinates along each axis, mm.
    """
    x, y, z = (
        ((axis - centre) / _HALF_MM).astype(np.float32)
        for axis, centre in zip(axes, BRAIN_CENTRE, strict=True)
    )
    c = np.asarray(coefficients, np.float32)
    plane = (c[0] * x + c[3] * x**2)[:, None] + (c[1] * y + c[4] * y**2) + c[6] * x[:, None] * y
    slope = (c[7] * x)[:, None] + c[8] * y + c[2]
    return np.exp(plane[:, :, None] + slope[:, :, None] * z + c[5] * z**2)


def acquire(
    tissues: np.ndarray, tissue: np.ndarray, scanner: Scanner, scan: Scan
) -> tuple[np.ndarray, np.ndarray]:
    """Scan an anatomy: contrast, slice profile, bias field, Rician noise, stored axes.

    Parameters
    ----------
    tissues : ndarray, shape (4, *scanner.grid.shape)
        Fractions of GM, WM and CSF, and texture, as :func:`common.imaging.phantoms.render` gives.
    tissue : ndarray, shape (3,)
        The subject's own log deviations of signal.
    scanner : Scanner
    scan : Scan

    Returns
    -------
    volume : ndarray of float32
        Signal in stored units, axes in the scanner's orientation.
    affine : ndarray, shape (4, 4)
        Stored voxel indices to mm (RAS+).
    """
    grid, axis, k = scanner.grid, scanner.slice_axis, scanner.subslices
    weights = np.append(scan.contrast * np.exp(tissue), 1.0).astype(np.float32)
    signal = np.tensordot(weights, tissues, 1)
    if k > 1:
        shape = list(signal.shape)
        shape[axis : axis + 1] = [shape[axis] // k, k]
        signal = signal.reshape(shape).mean(axis=axis + 1)
    spacing = list(grid.spacing)
    spacing[axis] = scanner.slice_mm
    stored = Grid(signal.shape, tuple(spacing))
    signal *= bias_field(scan.bias, stored.axes)
    rng = np.random.default_rng(scan.noise_seed)
    noise = np.float32(scan.noise) * rng.standard_normal((2, *signal.shape), np.float32)
    signal = np.float32(scan.gain) * np.hypot(signal + noise[0], noise[1])

    codes = nib.orientations.axcodes2ornt(tuple(scanner.orientation))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), codes)
    affine = stored.affine @ nib.orientations.inv_ornt_aff(turn, signal.shape)
    return nib.orientations.apply_orientation(signal, turn), affine
