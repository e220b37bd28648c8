"""Dermatoscopes that see the same lesion differently: from linear light to the pixels of a file.

A :class:`Dermatoscope` is an instrument and the habits of those who use it. :func:`acquire` is
given light and a random stream but nothing of the patient or the lesion, and what it draws does
not depend on the light: within a hospital the diagnosis is independent of hair, frame, ruler, light
and noise. In ISIC's pictures it is not: frames, for one, go with melanoma (Mikołajczyk et al. 2022,
MICCAI, arXiv:2206.15182); a study of that would have to add it.
Between hospitals both instrument and mix of diagnoses differ, so pooled pictures tell a little of
the diagnosis by the hospital.

Three hospitals have a profile each; every other name draws one between theirs, the same for all
time.

- ``north``, a university hospital: polarized light, neutral white balance, much detail, a ruler
  in some pictures, hair mostly shaved.
- ``south``, a city clinic: immersion contact with bubbles and glare, warm and contrasty, a round
  black frame or dark corners in most pictures, strong compression.
- ``island``, a general practice: pale and bluish, light from one side, few points of detail, noise,
  much hair, often a ruler, nearer to the skin.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from scipy import ndimage

from common.data.phantoms.lesion_canvas import Canvas, sigmoid, wander
from common.data.phantoms.lesions import View
from common.seeding import derive_seed

_TURN = 2 * math.pi
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Dermatoscope:
    """An instrument and the habits of its users. Lengths are in half-widths of the picture.

    Parameters
    ----------
    white : tuple of float
        Gain of red, green and blue.
    saturation, contrast : float
        Of the camera's picture style; 1 leaves them alone.
    falloff : float
        Share of the light lost in the corners.
    tilt : float
        SD of the relative brightness from the middle to one side.
    points : int
        Resolved points across the field of view.
    noise : float
        SD of a point's noise, as a fraction of white after gamma.
    quality : int
        Of the JPEG, as Pillow counts it.
    zoom : float
        Mean magnification.
    hair : float
        Mean number of hairs in a picture.
    frame, corners, ruler, bubbles, ink : float
        Probability of a round black frame, of dark corners, of a ruler, of air bubbles in the
        immersion fluid and of a surgeon's pen.
    glare : float
        Brightness of the reflections that light without polarization leaves.
    """

    white: tuple[float, float, float]
    saturation: float
    contrast: float
    falloff: float
    tilt: float
    points: int
    noise: float
    quality: int
    zoom: float
    hair: float
    frame: float
    corners: float
    ruler: float
    bubbles: float
    ink: float
    glare: float


DERMATOSCOPES = {
    "north": Dermatoscope(
        white=(1.00, 1.00, 1.03),
        saturation=1.0,
        contrast=1.0,
        falloff=0.10,
        tilt=0.04,
        points=220,
        noise=0.010,
        quality=95,
        zoom=1.0,
        hair=1.2,
        frame=0.05,
        corners=0.10,
        ruler=0.12,
        bubbles=0.03,
        ink=0.02,
        glare=0.0,
    ),
    "south": Dermatoscope(
        white=(1.06, 0.99, 0.86),
        saturation=1.12,
        contrast=1.08,
        falloff=0.28,
        tilt=0.04,
        points=110,
        noise=0.018,
        quality=75,
        zoom=0.88,
        hair=2.2,
        frame=0.45,
        corners=0.35,
        ruler=0.05,
        bubbles=0.30,
        ink=0.05,
        glare=0.5,
    ),
    "island": Dermatoscope(
        white=(1.02, 0.94, 1.08),
        saturation=0.82,
        contrast=0.92,
        falloff=0.16,
        tilt=0.15,
        points=84,
        noise=0.022,
        quality=65,
        zoom=1.12,
        hair=4.5,
        frame=0.0,
        corners=0.10,
        ruler=0.25,
        bubbles=0.05,
        ink=0.02,
        glare=0.15,
    ),
}


def dermatoscope(hospital: str) -> Dermatoscope:
    """Profile of a hospital: the documented one, or one drawn from the name alone."""
    return DERMATOSCOPES.get(hospital) or _drawn(hospital)


@lru_cache(maxsize=16)  # asked for every picture
def _drawn(hospital: str) -> Dermatoscope:
    rng = np.random.default_rng(derive_seed(0, site=hospital, purpose="dermatoscope"))
    drawn = {}
    for field in fields(Dermatoscope):
        values = np.array([getattr(one, field.name) for one in DERMATOSCOPES.values()])
        value = rng.uniform(values.min(axis=0), values.max(axis=0))
        whole = np.issubdtype(values.dtype, np.integer)
        drawn[field.name] = tuple(value) if values.ndim > 1 else round(value) if whole else value
    return Dermatoscope(**drawn)


def acquire(image: np.ndarray, dermatoscope: Dermatoscope, rng: np.random.Generator) -> np.ndarray:
    """Take a picture: hair, ink and bubbles on the skin, light, frame, ruler, lens, camera.

    The JPEG is left to :func:`encode`.

    Parameters
    ----------
    image : ndarray, shape (size, size, 3)
        Linear light, as :func:`common.data.phantoms.lesion_rendering.render` gives.
    dermatoscope : Dermatoscope
    rng : numpy.random.Generator
        Of this picture. What is drawn from it does not depend on ``image``.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)
        sRGB.
    """
    canvas = Canvas(len(image), View())
    light = np.array(image, np.float32)
    for step in _STEPS.values():
        step(light, canvas, dermatoscope, rng)
    return _camera(light, dermatoscope, rng)


def artefacts(
    size: int, dermatoscope: Dermatoscope, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw again what :func:`acquire` lays over the light, each artefact by itself.

    Parameters
    ----------
    size : int
        Pixels a side.
    dermatoscope : Dermatoscope
    rng : numpy.random.Generator
        In the state in which :func:`acquire` was given it.

    Returns
    -------
    dict of str to ndarray of float32, shape (size, size)
        For each of :data:`ARTEFACTS` the largest relative change that it makes to white light in
        any channel, before lens and camera; zeros where the picture has none.
    """
    canvas, changes = Canvas(size, View()), {}
    for name, step in _STEPS.items():
        light = np.ones((size, size, 3), np.float32)
        step(light, canvas, dermatoscope, rng)
        changes[name] = np.abs(light - 1).max(axis=2)
    return {name: changes[name] for name in ARTEFACTS}


def encode(pixels: np.ndarray, dermatoscope: Dermatoscope) -> bytes:
    """JPEG file of a picture (size, size, 3), without metadata."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=dermatoscope.quality)
    return file.getvalue()


def to_srgb(light: np.ndarray) -> np.ndarray:
    """Encode linear light by the transfer function of sRGB (IEC 61966-2-1), both in [0, 1]."""
    steep = 1.055 * np.maximum(light, np.float32(1e-6)) ** np.float32(1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, 12.92 * light, steep)


def _cover(light: np.ndarray, opacity: np.ndarray, colour: np.ndarray | float) -> None:
    light += opacity[..., None] * (np.asarray(colour, np.float32) - light)


def _hair(light: np.ndarray, canvas: Canvas, scope: Dermatoscope, rng: np.random.Generator) -> None:
    """Hairs of one colour, width and main direction, from none to 30; none without a rate."""
    count = min(int(rng.poisson(scope.hair * rng.gamma(1.2, 1 / 1.2))), 30)
    darkness, width, heading = rng.beta(2.5, 1.2), rng.uniform(0.014, 0.026), rng.uniform(0, _TURN)
    if not count:
        return
    curves = [
        wander(
            rng.uniform(-1.1, 1.1, 2),
            heading + rng.normal(0, 0.6),
            rng.uniform(0.5, 1.9),
            0.55,
            rng,
        )
        for _ in range(count)
    ]
    colour = (1 - darkness) * np.array([0.50, 0.34, 0.18]) + darkness * np.array([0.03, 0.02, 0.02])
    _cover(light, 0.88 * np.minimum(canvas.lines(curves, width), 1), colour)


def _ink(light: np.ndarray, canvas: Canvas, scope: Dermatoscope, rng: np.random.Generator) -> None:
    """Violet mark of a surgeon's pen, near the edge of the picture."""
    if rng.random() >= scope.ink:
        return
    start = np.array([rng.uniform(-0.95, 0.95), rng.choice([-1, 1]) * rng.uniform(0.7, 0.95)])
    mark = canvas.lines([wander(start, rng.uniform(0, _TURN), 0.7, 1.5, rng)], 0.07)
    absorbed = np.array([0.56, 0.64, 0.19], np.float32)
    light *= 1 - np.minimum(mark, 1)[..., None] * absorbed


def _bubbles(
    light: np.ndarray, canvas: Canvas, scope: Dermatoscope, rng: np.random.Generator
) -> None:
    """Air in the immersion fluid."""
    if rng.random() >= scope.bubbles:
        return
    count = int(rng.integers(2, 9))
    where, radii = rng.uniform(-0.95, 0.95, (count, 2)), rng.uniform(0.02, 0.07, count)
    ring = canvas.dots(where, radii, softness=0.10)
    ring -= 0.9 * canvas.dots(where, 0.78 * radii, softness=0.12)
    shine = canvas.dots(where - 0.35 * radii[:, None], 0.22 * radii, softness=0.3)
    light *= 1 - 0.30 * np.clip(ring, 0, 1)[..., None]
    light += 0.5 * shine[..., None]


def _glare(
    light: np.ndarray, canvas: Canvas, scope: Dermatoscope, rng: np.random.Generator
) -> None:
    """Specular reflections of the horny layer."""
    strength, threshold = 0.5 * scope.glare * rng.random(), 2.9 - 0.6 * rng.random()
    if strength:
        spots = sigmoid(7 * (canvas.smooth(0.013, rng) - np.float32(threshold)))
        light += np.float32(strength) * spots[..., None]


def _illumination(
    light: np.ndarray, canvas: Canvas, scope: Dermatoscope, rng: np.random.Generator
) -> None:
    """Exposure, white balance, fall-off to the corners, light from one side."""
    tilt, angle = scope.tilt * rng.standard_normal(), rng.uniform(0, _TURN)
    side = np.float32(math.cos(angle)) * canvas.x + np.float32(math.sin(angle)) * canvas.y
    shade = (1 - 0.5 * scope.falloff * (canvas.x**2 + canvas.y**2)) * (1 + tilt * side)
    gains = np.array(scope.white) * np.exp(rng.normal(0, 0.10) + rng.normal(0, 0.025, 3))
    light *= np.clip(shade, 0.2, 1.6)[..., None] * gains.astype(np.float32)


def _corners(
    light: np.ndarray, canvas: Canvas, scope: Dermatoscope, rng: np.random.Generator
) -> None:
    """Dark corners."""
    if rng.random() < scope.corners:
        away = rng.uniform(1.05, 1.3) - np.hypot(canvas.x, canvas.y)
        light *= sigmoid(away / np.float32(0.10))[..., None]


def _frame(
    light: np.ndarray, canvas: Canvas, scope: Dermatoscope, rng: np.random.Generator
) -> None:
    """Round black frame."""
    if rng.random() < scope.frame:
        radius, (right, down) = rng.uniform(0.86, 1.08), rng.normal(0, 0.04, 2).astype(np.float32)
        away = np.float32(radius) - np.hypot(canvas.x - right, canvas.y - down)
        light *= 0.01 + 0.99 * sigmoid(away / np.float32(0.012))[..., None]


def _ruler(
    light: np.ndarray, canvas: Canvas, scope: Dermatoscope, rng: np.random.Generator
) -> None:
    """Ruler along one side."""
    if rng.random() >= scope.ruler:
        return
    at, every = rng.uniform(0.72, 0.95), rng.uniform(0.08, 0.14)
    ticks = []
    for k, x in enumerate(np.arange(-1 + rng.uniform(0, 0.1), 1, every)):
        half = 0.08 if k % 5 == 0 else 0.04
        ticks.append(np.stack([np.full(24, x), at + np.linspace(-half, half, 24)], axis=1))
    marks = np.rot90(np.minimum(canvas.lines(ticks, 0.016), 1), int(rng.integers(4)))
    light *= 1 - 0.8 * marks[..., None]


# In the order of the light's way. Each draws the same numbers whatever the light is.
_STEPS = {
    "hair": _hair,
    "ink": _ink,
    "bubbles": _bubbles,
    "glare": _glare,
    "illumination": _illumination,
    "corners": _corners,
    "frame": _frame,
    "ruler": _ruler,
}
ARTEFACTS = ("hair", "ruler", "frame", "corners", "bubbles", "ink")


def _camera(light: np.ndarray, scope: Dermatoscope, rng: np.random.Generator) -> np.ndarray:
    """Blur of a resolved point, gamma, picture style, noise, 8 bits."""
    point = len(light) / scope.points  # pixels
    for k in range(3):
        ndimage.gaussian_filter(light[..., k], 0.45 * point, output=light[..., k], truncate=3)
    picture = to_srgb(np.clip(light, 0, 1.2))
    grey = (picture @ _LUMA)[..., None]
    picture = grey + scope.saturation * (picture - grey)
    picture = 0.5 + scope.contrast * (picture - 0.5)
    level = scope.noise * math.exp(rng.normal(0, 0.3))
    grain = rng.standard_normal((*light.shape[:2], 4), np.float32)
    grain = 0.8 * grain[..., 3:] + 0.45 * grain[..., :3]  # more of brightness than of colour
    width = 0.40 * point
    if width > 0.45:  # a point spans several pixels: smooth grain of the same SD
        grain = ndimage.gaussian_filter(grain, (width, width, 0), truncate=3)
        grain *= 2 * math.sqrt(math.pi) * width
    else:  # a pixel is the mean of several points
        grain *= min(point, 1.0)
    picture += np.float32(level) * grain
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
