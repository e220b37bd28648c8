"""Drawing on a picture in the lesion's own coordinates: random fields, dots, lines, honeycombs.

The lesion's centre is the origin and the half-width of a picture at a zoom of 1 is the unit. All
that is drawn is a function of these coordinates and of a random stream, never of the pixel grid:
the same lesion is the same at any size and from any view.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from common.data.phantoms.lesions import View

_WAVES = 40  # plane waves of a random field


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic function, safe for any argument; float32 stays so."""
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


class Canvas:
    """A square pixel grid seen from a view.

    Parameters
    ----------
    size : int
        Pixels a side.
    view : View

    Attributes
    ----------
    x, y : ndarray of float32, shape (size, size)
        Coordinates of the pixel centres, to the lesion's right and bottom.
    pixel : float
        Width of a pixel in lesion units.
    """

    def __init__(self, size: int, view: View) -> None:
        self.size, self.view = size, view
        self.pixel = 2.0 / (size * view.zoom)
        c, s = math.cos(view.rotation), math.sin(view.rotation)
        self._turn = np.array([[c, s], [-s, c]]) / view.zoom  # lesion = turn @ (picture - shift)
        axis = (np.arange(size) + 0.5) * (2.0 / size) - 1
        right, down = self._axes = [(axis - shift).astype(np.float32) for shift in view.shift]
        turn = self._turn.astype(np.float32)
        self.x = turn[0, 0] * right + turn[0, 1] * down[:, None]
        self.y = turn[1, 0] * right + turn[1, 1] * down[:, None]

    def _to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Pixel coordinates (N, 2), column then row, of lesion coordinates (N, 2)."""
        picture = points @ np.linalg.inv(self._turn).T + self.view.shift
        return (picture + 1) * (self.size / 2) - 0.5

    def _waves(self, frequencies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sum of plane waves of random phase, of mean 0 and SD 1.

        cos(a + b) = cos a cos b - sin a sin b, where a depends on the column and b on the row:
        one matrix product instead of a cosine for each wave and pixel.
        """
        phases = rng.uniform(0, 2 * math.pi, len(frequencies))
        seen = (frequencies @ self._turn).astype(np.float32)  # radians a half-width of the picture
        a = self._axes[0][:, None] * seen[:, 0]  # (columns, waves)
        b = self._axes[1][:, None] * seen[:, 1] + phases.astype(np.float32)  # (rows, waves)
        rows = np.concatenate([np.cos(b), -np.sin(b)], axis=1)
        columns = np.concatenate([np.cos(a), np.sin(a)], axis=1)
        return np.float32(math.sqrt(2 / len(frequencies))) * (rows @ columns.T)

    def smooth(self, scale: float, rng: np.random.Generator) -> np.ndarray:
        """Near-Gaussian random field of a correlation exp(-distance² / (4 scale²))."""
        return self._waves(rng.standard_normal((_WAVES, 2)) / (math.sqrt(2) * scale), rng)

    def folds(self, period: float, rng: np.random.Generator) -> np.ndarray:
        """Random field of one period in all directions: winding ridges of equal width."""
        angles = rng.uniform(0, 2 * math.pi, _WAVES)
        lengths = 2 * math.pi / period * rng.uniform(0.8, 1.2, _WAVES)
        frequencies = lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return self._waves(frequencies, rng)

    def honeycomb(self, spacing: float, warp: float, rng: np.random.Generator) -> np.ndarray:
        """Warped hexagonal mesh: 0 on its lines, 1 in its holes; ``warp`` in units of spacing."""
        angle = rng.uniform(0, math.pi)
        x = self.x + np.float32(warp * spacing) * self.smooth(0.2, rng)
        y = self.y + np.float32(warp * spacing) * self.smooth(0.2, rng)
        k = 4 * math.pi / (math.sqrt(3) * spacing)
        total = np.zeros_like(x)
        for turn in range(3):
            direction = angle + 2 * turn * math.pi / 3
            total += np.cos(
                np.float32(k * math.cos(direction)) * x + np.float32(k * math.sin(direction)) * y
            )
        return np.clip((total + 1.5) / 3, 0, 1)

    def dots(
        self,
        points: np.ndarray,
        radii: np.ndarray,
        *,
        heights: np.ndarray | float = 1.0,
        softness: float = 0.35,
        ratios: np.ndarray | float = 1.0,
        angles: np.ndarray | float = 0.0,
    ) -> np.ndarray:
        """Soft ellipses; where they overlap the higher one shows.

        Parameters
        ----------
        points : ndarray, shape (N, 2)
            Centres.
        radii : ndarray, shape (N,)
        heights : ndarray, shape (N,), or float
            Value within.
        softness : float
            Width of the edge as a fraction of the radius.
        ratios, angles : ndarray, shape (N,), or float
            Long axis over the radius, and its direction in radians.
        """
        out = np.zeros(self.size * self.size, np.float32)
        count = len(points)
        if not count:
            return out.reshape(self.size, self.size)
        radii, heights, ratios, angles = (
            np.broadcast_to(np.asarray(value, np.float32), count)[:, None]
            for value in (radii, heights, ratios, angles)
        )
        reach = float((radii * ratios).max()) * (1 + 4 * softness) / self.pixel
        side = np.arange(-math.ceil(reach) - 1, math.ceil(reach) + 2)
        centres = self._to_pixels(points)
        nearest = np.rint(centres).astype(int)
        columns = (nearest[:, :1] + np.tile(side, len(side))).astype(int)  # (N, window)
        rows = (nearest[:, 1:] + np.repeat(side, len(side))).astype(int)
        dx = ((columns - centres[:, :1]) * self.pixel).astype(np.float32)
        dy = ((rows - centres[:, 1:]) * self.pixel).astype(np.float32)
        c, s = np.cos(angles + self.view.rotation), np.sin(angles + self.view.rotation)
        along, across = (c * dx + s * dy) / ratios, c * dy - s * dx
        away = (np.hypot(along, across) - radii) / (np.float32(softness) * radii)
        values = heights * sigmoid(-away)
        inside = (columns >= 0) & (columns < self.size) & (rows >= 0) & (rows < self.size)
        np.maximum.at(out, (rows * self.size + columns)[inside], values[inside])
        return out.reshape(self.size, self.size)

    def lines(
        self, curves: list[np.ndarray], width: float, weights: list[float] | None = None
    ) -> np.ndarray:
        """Curves of a Gaussian profile; one thinner than a pixel fades instead.

        Parameters
        ----------
        curves : list of ndarray, shape (points, 2)
            Densely sampled.
        width : float
            Full width at half of the maximum.
        weights : list of float, optional
            Height of each curve, 1 by default.
        """
        n = self.size
        if not curves:
            return np.zeros((n, n), np.float32)
        pieces, amounts = [], []
        for curve, weight in zip(curves, weights or [1.0] * len(curves), strict=True):
            pieces.append((curve[1:] + curve[:-1]) / 2)
            amounts.append(weight * np.hypot(*np.diff(curve, axis=0).T) / self.pixel)
        where, amount = self._to_pixels(np.concatenate(pieces)), np.concatenate(amounts)
        corner = np.floor(where).astype(int)
        rest = where - corner
        out = np.zeros(n * n)
        for right in (0, 1):
            for down in (0, 1):
                column, row = corner[:, 0] + right, corner[:, 1] + down
                share = np.abs(1 - right - rest[:, 0]) * np.abs(1 - down - rest[:, 1])
                inside = (column >= 0) & (column < n) & (row >= 0) & (row < n)
                index = (row * n + column)[inside]
                out += np.bincount(index, (amount * share)[inside], minlength=n * n)
        wanted = width / 2.355 / self.pixel
        sigma = max(wanted, 0.45)
        image = ndimage.gaussian_filter(out.reshape(n, n), sigma, truncate=3)
        return (image * (math.sqrt(2 * math.pi) * min(wanted, sigma))).astype(np.float32)


def wander(
    start: np.ndarray,
    heading: float,
    length: float,
    bend: float,
    rng: np.random.Generator,
    step: float = 0.012,
) -> np.ndarray:
    """Curve (points, 2) from a point, its heading a random walk of SD ``bend`` a unit of length."""
    count = max(int(length / step), 3)
    angle = heading + np.cumsum(rng.normal(0, bend * math.sqrt(step), count))
    return start + np.cumsum(step * np.stack([np.cos(angle), np.sin(angle)], axis=1), axis=0)
