"""From a lesion to linear light: chromophores in the skin, and what they leave of white light."""

from __future__ import annotations

import math

import numpy as np

from common.data.phantoms.lesion_canvas import Canvas
from common.data.phantoms.lesion_scene import Scene
from common.data.phantoms.lesion_structures import STRUCTURES
from common.data.phantoms.lesions import Lesion, View

# Optical density of one unit of a chromophore in linear red, green and blue, and colours of what
# covers it: read off sRGB colours of textbook pictures (dark brown 110, 70, 50; blue-grey 90, 95,
# 115; angioma 170, 40, 45). Melanin of the dermis looks blue as red light reaches it and is
# absorbed there, while short waves are scattered back above it.
MELANIN = (0.47, 0.78, 1.06)
DEEP_MELANIN = (1.00, 0.74, 0.45)
BLOOD = (0.20, 1.00, 0.88)
SKIN = (0.90, 0.80, 0.74)  # without blood or pigment
VEIL = (0.42, 0.47, 0.60)
KERATIN = (0.84, 0.70, 0.43)
SCAR = (0.86, 0.74, 0.70)
MOST_OPAQUE = 0.9

CANVAS_PIXELS = 128  # a side at least; smaller pictures average a finer canvas


def render(
    lesion: Lesion, size: int, view: View | None = None, *, canvas_pixels: int = CANVAS_PIXELS
) -> np.ndarray:
    """Light that a lesion on its patient's skin reflects, before any instrument.

    A function of the latents, the patient's skin, the lesion's seed and the view alone: neither
    the diagnosis nor age, sex or body site is read. Light follows Beer and Lambert,
    skin · exp(-Σ density · amount), and what lies on the surface covers it in turn.

    Parameters
    ----------
    lesion : Lesion
    size : int
        Pixels a side, 8 or more. The lesion is the same at any size, but for sampling.
    view : View, optional
        How the dermatoscope is held; by default upright, centred, at a zoom of 1.
    canvas_pixels : int
        Pixels a side that are drawn at least: fewer are faster, and fine structures rougher.

    Returns
    -------
    ndarray of float32, shape (size, size, 3)
        Linear red, green and blue, in [0, 1].

    Raises
    ------
    ValueError
        For a size below 8.
    """
    if size < 8:
        raise ValueError(f"{size} pixels a side: accepted are 8 or more")
    finer = -(-canvas_pixels // size)
    canvas = Canvas(size * finer, view or View())
    scene = Scene(canvas, lesion)
    for structure in STRUCTURES:
        structure(scene)
    tone, blush = _skin(scene, lesion)
    light = _light(scene, tone, blush)
    parts = [light[row::finer, column::finer] for row in range(finer) for column in range(finer)]
    return sum(parts[1:], start=parts[0]) / np.float32(len(parts))


def _skin(scene: Scene, lesion: Lesion) -> tuple[np.ndarray, np.ndarray]:
    """Melanin and blood of the skin: mottled, with furrows in two directions."""
    rng, canvas = scene.stream("skin"), scene.canvas
    angle = rng.uniform(0, math.pi)
    furrows = np.zeros_like(canvas.x)
    for direction in (angle, angle + 1.2):
        along = (
            np.float32(math.cos(direction)) * canvas.x + np.float32(math.sin(direction)) * canvas.y
        )
        phase = np.float32(math.pi / 0.11) * along + 1.3 * canvas.smooth(0.14, rng)
        furrows += np.exp(-((np.cos(phase) / 0.22) ** 2))
    wide, fine = canvas.smooth(0.3, rng), canvas.smooth(0.035, rng)
    tone = lesion.patient.tone * (1 + 0.10 * wide + 0.07 * fine + 0.10 * furrows)
    blush = lesion.patient.blush * (1 - 0.14 * wide + 0.08 * fine + 0.05 * furrows)
    return tone, blush


def _light(scene: Scene, tone: np.ndarray, blush: np.ndarray) -> np.ndarray:
    """Fields of chromophores (S, S) to linear light (S, S, 3)."""
    melanin, deep = scene.melanin + tone, scene.deep
    blood = np.maximum(scene.blood + blush, 0)
    covers = [
        (np.clip(amount, 0, MOST_OPAQUE), colour)
        for amount, colour in (
            (scene.veil, VEIL),
            (scene.keratin, KERATIN),
            (scene.scar, SCAR),
        )
    ]
    light = np.empty((*melanin.shape, 3), np.float32)
    for k in range(3):
        density = MELANIN[k] * melanin + DEEP_MELANIN[k] * deep + BLOOD[k] * blood
        channel = SKIN[k] * np.exp(-density)
        for opacity, colour in covers:
            channel += opacity * (colour[k] - channel)
        light[..., k] = channel
    return light
