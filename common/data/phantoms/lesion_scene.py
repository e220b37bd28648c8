"""One lesion on its canvas: the outline, the random streams and the fields of its structures."""

from __future__ import annotations

import math

import numpy as np

from common.data.phantoms.lesion_canvas import Canvas, sigmoid
from common.data.phantoms.lesions import LATENTS, Lesion
from common.seeding import derive_seed

_TURN = 2 * math.pi
_ANGLES = 512  # samples of the outline


def soft(z: float, start: float) -> float:
    """Smooth ramp: near 0 well below ``start``, z - start well above."""
    return float(np.logaddexp(0.0, 2.2 * (z - start)) / 2.2)


class Scene:
    """One lesion on its canvas; structures add to its fields.

    Attributes
    ----------
    z : dict of str to float
        Latents by name.
    melanin, deep, blood : ndarray of float32, shape (size, size)
        Melanin of the epidermis (brown), melanin of the dermis (blue-grey), haemoglobin.
    keratin, scar, veil : ndarray of float32, shape (size, size)
        Opacity of horn (yellow), of fibrous tissue (white) and of thick horn over pigment
        (whitish blue).
    rho, theta : ndarray of float32, shape (size, size)
        Polar coordinates in units of the lesion's own radius, along its long axis.
    mask : ndarray of float32, shape (size, size)
        1 within the outline, 0 outside, between them as abrupt as the latent ``edge`` says.
    radius : float
        Mean radius in half-widths of the picture at a zoom of 1.
    """

    def __init__(self, canvas: Canvas, lesion: Lesion) -> None:
        self.canvas, self._seed = canvas, lesion.seed
        self.z = dict(zip(LATENTS, map(float, lesion.latents), strict=True))
        shape = (canvas.size, canvas.size)
        self.melanin, self.deep, self.blood, self.keratin, self.scar, self.veil = (
            np.zeros(shape, np.float32) for _ in range(6)
        )
        self._draw_outline()

    def stream(self, name: str) -> np.random.Generator:
        """Random stream of one structure."""
        return np.random.default_rng(derive_seed(self._seed, purpose=name))

    def present(self, name: str) -> float:
        """Strength of a structure: 0 up to a latent of 0, 1 at 1.5, at most 1.5."""
        return float(np.clip(self.z[name] / 1.5, 0, 1.5))

    def _draw_outline(self) -> None:
        rng, z, canvas = self.stream("outline"), self.z, self.canvas
        asymmetry, jags = soft(z["asymmetry"], -0.3), soft(z["border"], -0.3)
        self.radius = float(np.clip(0.42 * math.exp(0.24 * z["diameter"]), 0.2, 0.8))
        ratio = math.exp(0.5 * abs(rng.normal(0, 0.16)))  # long axis over mean
        self._axis = rng.uniform(0, math.pi)
        self._scale = self.radius * np.array([ratio, 1 / ratio])
        theta = np.arange(_ANGLES) * (_TURN / _ANGLES)
        outline = np.ones(_ANGLES)
        for k in range(2, 12):  # low harmonics give the coarse shape, high ones notches
            size = (0.02 + 0.055 * asymmetry) / math.sqrt(k - 1) if k < 5 else 0.006 + 0.020 * jags
            outline += size * rng.normal() * np.cos(k * theta + rng.uniform(0, _TURN))
        heavy = np.cos(theta + rng.uniform(0, _TURN)) * np.cos(2 * theta + rng.uniform(0, _TURN))
        outline += 0.055 * asymmetry * heavy
        streaks = 0.10 * min(soft(z["streaks"], 0.9), 2.0)
        if streaks > 0.01:  # fingers in one sector of the rim
            sector = sigmoid(4 * (np.cos(theta - rng.uniform(0, _TURN)) - rng.uniform(-0.5, 0.4)))
            fingers = np.cos(rng.integers(16, 26) * theta + rng.uniform(0, _TURN))
            outline += streaks * sector * np.maximum(fingers, 0) ** 3
        self._outline = np.maximum(outline, 0.5)

        u, v = self._to_own_axes(canvas.x, canvas.y)
        self.rho, self.theta = np.hypot(u, v), np.arctan2(v, u)
        place = self.theta * np.float32(_ANGLES / _TURN)
        before = np.floor(place).astype(int)
        table = self._outline.astype(np.float32)
        low, high = table[before % _ANGLES], table[(before + 1) % _ANGLES]
        inside = low + (high - low) * (place - before) - self.rho
        rough = 0.014 + 0.034 * jags
        fine = canvas.smooth(0.022, rng)
        inside += np.float32(rough) * (canvas.smooth(rng.uniform(0.05, 0.1), rng) + 0.4 * fine)
        inside -= np.float32(0.07 * self.present("ridges")) * np.abs(fine)  # moth-eaten
        edge = float(np.clip(0.12 * math.exp(-0.42 * z["edge"]), 0.035, 0.3))
        # One part of the rim is more abrupt than the rest, more so with a high latent.
        part = sigmoid(3 * np.cos(self.theta - np.float32(rng.uniform(0, _TURN))))
        abrupt = 0.5 / (1 + math.exp(-z["edge"]))
        self.mask = sigmoid(inside / (edge * (1 - np.float32(abrupt) * part)))

    def _to_own_axes(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c, s = (np.float32(f(self._axis)) for f in (math.cos, math.sin))
        long, short = self._scale.astype(np.float32)
        return (c * x + s * y) / long, (c * y - s * x) / short

    def place(self, rho: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Lesion coordinates (N, 2) of polar ones."""
        u, v = self._scale[0] * rho * np.cos(theta), self._scale[1] * rho * np.sin(theta)
        c, s = math.cos(self._axis), math.sin(self._axis)
        return np.stack([c * u - s * v, s * u + c * v], axis=-1)

    def points(
        self, count: int, margin: float, rng: np.random.Generator, spread: float | None = None
    ) -> np.ndarray:
        """Random points (at most count, 2) within the outline, ``margin`` radii from it.

        Even over the area, or with ``spread`` (radii) Gaussian about one of them.
        """
        total = 6 * count + 6
        place = 1.3 * np.sqrt(rng.uniform(0, 1, total)) * np.exp(1j * rng.uniform(0, _TURN, total))
        if spread is not None:
            centre = place[np.argmin(np.abs(np.abs(place) - 0.4))]
            offsets = rng.normal(0, spread, (2, total))
            place = centre + offsets[0] + 1j * offsets[1]
        theta = np.angle(place) % _TURN
        limit = self._outline[(theta * (_ANGLES / _TURN)).astype(int) % _ANGLES]
        kept = np.flatnonzero(np.abs(place) < limit - margin)[:count]
        return self.place(np.abs(place[kept]), theta[kept])
