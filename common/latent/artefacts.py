"""Hair, rulers and frames on pictures of skin: simple measures, and detectors learnt on phantoms.

Measures are classical morphology. Dark thin structures are what a closing of the luminance fills
(black top-hat), as in DullRazor (Lee et al. 1997, *Computers in Biology and Medicine* 27:533).
Those that go on in one direction are hairs; where they are periodic along one side, it is a ruler.
A frame is dark beyond a circle.

A detector is a logistic regression of the measures. It is trained on phantoms whose artefacts are
known, because the same lesions are taken by dermatoscopes with and without each. It is for phantoms
and for generators of phantoms: on patients' pictures it has never been tested, and there labels of
people are to be used instead.

Balanced accuracy on other lesions, by :func:`train_detectors` with seed 0:

======  ====  ====  ====
pixels    32    64   128
======  ====  ====  ====
hair    0.61  0.76  0.83
ruler   0.65  0.92  0.96
frame   1.00  1.00  1.00
======  ====  ====  ====

A hair is about half a pixel wide at 64 pixels a side, and often as light as the lesion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from common.seeding import derive_seed

ARTEFACTS = ("hair", "ruler", "frame")
LESIONS, TAKES = 40, 12  # of the training: lesions, and pictures of each
HAIRS = 10.0  # mean number in a picture with hair
FOLDS = 5
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_ANGLES = 8
_RULER = (0.6, 1.03)  # where it lies, in half-widths from the middle
_PERIODS = (0.078, 0.145)  # of its ticks, in half-widths
_FLOOR = 1e-3  # of measures, of which the logarithm is taken


def measure(images: NDArray) -> NDArray[np.float64]:
    """Measure dark lines, periodic ticks and dark corners.

    Parameters
    ----------
    images : (N, 3, R, R) floats in [-1, 1]

    Returns
    -------
    (N, M) float64
        The first is the amount of hair: the mean of long dark lines. All are logarithms.
    """
    from scipy import ndimage

    light = np.einsum("nchw,c->nhw", (np.clip(images, -1, 1) + 1) / 2, _LUMA)
    size = light.shape[-1]
    width = max(3, 2 * round(0.015 * size) + 1)  # a hair's, and a little more
    dark = ndimage.grey_closing(light, size=(1, width, width)) - light
    along = [
        ndimage.correlate(dark, _line(2 * round(0.11 * size) + 1, turn)[None])
        for turn in np.arange(_ANGLES) * np.pi / _ANGLES
    ]
    lines = np.max(along, axis=0) - np.mean(along, axis=0)  # dark in one direction alone
    place = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = np.meshgrid(place, place)
    away, inner = np.hypot(x, y), np.maximum(abs(x), abs(y)) < 0.62
    found = [
        lines.mean(axis=(1, 2)),
        lines[:, inner].mean(axis=1),
        np.quantile(lines[:, inner], 0.98, axis=1),
        dark.mean(axis=(1, 2)),
        light[:, away > 1.2].mean(axis=1),
        np.quantile(light[:, away > 1.2], 0.25, axis=1),
        (light[:, away > 1.1] < 0.12).mean(axis=1),
        *_ticks(dark, place),
    ]
    return np.log(np.stack(found, axis=1) + _FLOOR)


def _line(length: int, angle: float) -> NDArray[np.float32]:
    """Line through the middle of a square of pixels (length, length), of sum 1."""
    half, drawn = (length - 1) / 2, np.zeros((length, length), np.float32)
    along = np.linspace(-half, half, 4 * length)
    down, right = half + along * np.sin(angle), half + along * np.cos(angle)
    drawn[np.rint(down).astype(int), np.rint(right).astype(int)] = 1
    return drawn / drawn.sum()


def _ticks(dark: NDArray, place: NDArray) -> list[NDArray]:
    """Periodicity of the four sides: the strongest's share of power, amplitude and excess."""
    size = len(place)
    band = (place > _RULER[0]) & (place < _RULER[1])
    cycles = np.arange(size // 2 + 1)  # of the whole picture, two half-widths
    # A tick's period may be too short for the pixels: then the finest that they show is left.
    wanted = (cycles >= min(2 / _PERIODS[1], size / 2) - 0.5) & (cycles <= 2 / _PERIODS[0] + 0.5)
    shares, amplitudes = [], []
    for side in range(4):
        profile = np.rot90(dark, side, axes=(1, 2))[:, band].mean(axis=1)  # (N, R)
        profile = (profile - profile.mean(axis=1, keepdims=True)) * np.hanning(size)
        power = np.abs(np.fft.rfft(profile, axis=1)) ** 2
        peak = power[:, wanted].max(axis=1)
        shares.append(peak / (power[:, 1:].sum(axis=1) + 1e-12))
        amplitudes.append(np.sqrt(peak))
    amplitude = np.max(amplitudes, axis=0)
    excess = amplitude / (np.mean(amplitudes, axis=0) + 1e-12)
    return [np.max(shares, axis=0), amplitude, excess]


@dataclass(frozen=True)
class Detector:
    """A detector of one artefact.

    Parameters
    ----------
    name : str
    weights : (M,) float64
        Of the measures.
    bias : float
    accuracy : float
        Balanced accuracy on phantoms of lesions that it was not trained on.
    """

    name: str
    weights: NDArray[np.float64]
    bias: float
    accuracy: float


def scores(detectors: Iterable[Detector], images: NDArray) -> NDArray[np.float64]:
    """Log-odds (N, K) that pictures (N, 3, R, R) in [-1, 1] show each of K artefacts."""
    measured = measure(images)
    return np.stack([measured @ one.weights + one.bias for one in detectors], axis=1)


def train_detectors(size: int, *, seed: int = 0) -> dict[str, Detector]:
    """Train a detector of each artefact on phantoms, in about 20 seconds of a core.

    Parameters
    ----------
    size : int
        Pixels a side of the pictures that it will see.
    seed : int
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images, truth, lesions = phantoms_with_artefacts(size, seed=seed)
    measured = measure(images)
    found = {}
    for name, present in truth.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        folds = GroupKFold(FOLDS)
        said = cross_val_predict(model, measured, present, groups=lesions, cv=folds)
        scaler, fitted = (step for _, step in model.fit(measured, present).steps)
        weights = fitted.coef_[0] / scaler.scale_
        bias = float(fitted.intercept_[0] - weights @ scaler.mean_)
        accuracy = float(balanced_accuracy_score(present, said))
        found[name] = Detector(name, weights, bias, accuracy)
    return found


def phantoms_with_artefacts(
    size: int, *, seed: int = 0, lesions: int = LESIONS, takes: int = TAKES
) -> tuple[NDArray[np.float32], Mapping[str, NDArray[np.bool_]], NDArray[np.int64]]:
    """Take phantom lesions with and without each artefact, at random and independently.

    Each picture is of one of the three hospitals' dermatoscopes, changed in its artefacts alone.

    Returns
    -------
    images : (N, 3, size, size) float32 in [-1, 1]
    truth : mapping of str to (N,) bool
    lesions : (N,) int64
        Which lesion a picture is of.
    """
    from common.data.phantoms.dermatoscopes import DERMATOSCOPES, acquire
    from common.data.phantoms.lesion_cohorts import patient_pictures
    from common.data.phantoms.lesion_rendering import render
    from common.data.phantoms.lesions import View

    hospitals = list(DERMATOSCOPES)
    rng = np.random.default_rng(derive_seed(seed, purpose="phantoms with artefacts"))
    cohort = derive_seed(seed, purpose="lesions with artefacts")
    images, shown, owner = [], [], []
    for lesion in range(lesions):
        hospital = hospitals[lesion % len(hospitals)]
        picture = patient_pictures(hospital, lesion, cohort)[0]
        light = render(picture.truth, size, View())
        for take in range(takes):
            scope = DERMATOSCOPES[hospitals[take % len(hospitals)]]
            hair, ruler, frame = rng.random(3) < 0.5
            scope = replace(scope, hair=HAIRS * hair, ruler=float(ruler), frame=float(frame))
            turned = np.rot90(light, int(rng.integers(4)))
            images.append(acquire(turned, scope, rng))
            shown.append((hair, ruler, frame))
            owner.append(lesion)
    stack = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    truth = dict(zip(ARTEFACTS, np.array(shown, bool).T, strict=True))
    return stack, truth, np.array(owner)
