"""Pictures along ways through W: directions, interpolations, truncation, mixed styles.

[SG1] Karras, Laine, Aila: A Style-Based Generator Architecture, arXiv 1812.04948.

Latents here are w, (N, D), one for all layers, or ws, (N, num_ws, D), one for each; pictures are
(N, C, R, R) in about [-1, 1], with the generator's fixed noise, so that only the latents differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from common.models.stylegan2 import Generator

STEPS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # SD of W
PSIS = (0.0, 0.25, 0.5, 0.75, 1.0)
COARSE = 4  # styles of 4 × 4 and 8 × 8 pixels ([SG1], section 3.1)
BATCH = 16  # pictures at a time; always as many, so that a picture's bits do not depend on how many

Synthesize = Callable[[NDArray], NDArray]  # w or ws -> pictures


def latents_of(
    generator: Generator, rows: Sequence[Mapping[str, str]], numbers: Sequence[int], seed: int
) -> NDArray[np.float32]:
    """Return w, (N, D), of the pictures that ``sample_rows`` draws with these numbers and labels.

    Parameters
    ----------
    generator : Generator
    rows : sequence of mapping
        Labels of each picture.
    numbers : sequence of int
        Of the latents z.
    seed : int
    """
    import torch

    from common.models.architecture import encode_labels
    from common.training.gan_sampling import latents

    device = next(generator.parameters()).device
    found = []
    for place in _batches(len(rows)):
        z = latents(generator.architecture, [numbers[k] for k in place], seed).to(device)
        labels = encode_labels(generator.architecture, [rows[k] for k in place]).to(device)
        with torch.no_grad():
            found.append(generator.mapping(z, labels)[:, 0].float().cpu().numpy())
    return np.concatenate(found)[: len(rows)]


def synthesize(
    generator: Generator, ws: ArrayLike, on_picture: Callable[[int], None] | None = None
) -> NDArray[np.float32]:
    """Make the pictures of latents, w (N, D) or ws (N, num_ws, D).

    Parameters
    ----------
    generator : Generator
    ws : floats
    on_picture : callable, optional
        Told how many pictures each batch has added.
    """
    import torch

    ws = np.asarray(ws, np.float32)
    if ws.ndim == 2:
        ws = np.repeat(ws[:, None], generator.architecture.num_ws, axis=1)
    device, found = next(generator.parameters()).device, []
    for start, place in enumerate(_batches(len(ws))):
        with torch.no_grad():
            made = generator.synthesis(torch.from_numpy(ws[place]).to(device))
        found.append(made.float().cpu().numpy())
        if on_picture:
            on_picture(min(BATCH, len(ws) - start * BATCH))
    return np.concatenate(found)[: len(ws)]


def walk(w: ArrayLike, step: ArrayLike, steps: Sequence[float] = STEPS) -> NDArray[np.float64]:
    """Latents (K, D) from one w along a direction, as many steps from it; 0 is w itself."""
    w, step = np.asarray(w, np.float64), np.asarray(step, np.float64)
    return w + np.asarray(steps, np.float64)[:, None] * step


def interpolate(first: ArrayLike, last: ArrayLike, count: int) -> NDArray[np.float64]:
    """Latents (count, D) on the straight line between two of W, both ends included.

    Linear in W and not spherical in Z: W need not follow the density of training images, and is
    less curved ([SG1], section 4.1, whose path length is of the same lines).
    """
    t = np.linspace(0.0, 1.0, count)[:, None]
    return (1 - t) * np.asarray(first, np.float64) + t * np.asarray(last, np.float64)


def truncate(w: ArrayLike, mean: ArrayLike, psis: Sequence[float] = PSIS) -> NDArray[np.float64]:
    """Latents (K, D) from the mean of W, ψ = 0, to w, ψ = 1: w̄ + ψ (w − w̄) ([SG1], appendix B)."""
    w, mean = np.asarray(w, np.float64), np.asarray(mean, np.float64)
    return mean + np.asarray(psis, np.float64)[:, None] * (w - mean)


def mix_styles(
    coarse: ArrayLike, fine: ArrayLike, num_ws: int, cutoff: int = COARSE
) -> NDArray[np.float64]:
    """Latents of a grid: rows with the coarse styles of one w, columns with the fine ones.

    Parameters
    ----------
    coarse, fine : (A, D) and (B, D) floats
        Latents w of the rows and of the columns.
    num_ws : int
        Styles of a picture.
    cutoff : int
        How many of them, from the smallest resolution, are the row's.

    Returns
    -------
    (A, B, num_ws, D) float64
    """
    coarse, fine = np.asarray(coarse, np.float64), np.asarray(fine, np.float64)
    shape = (len(coarse), len(fine), num_ws, coarse.shape[1])
    is_coarse = (np.arange(num_ws) < cutoff)[:, None]
    return np.where(
        is_coarse,
        np.broadcast_to(coarse[:, None, None], shape),
        np.broadcast_to(fine[None, :, None], shape),
    )


def response(
    synthesis: Synthesize,
    ws: ArrayLike,
    step: ArrayLike,
    score: Callable[[NDArray], NDArray],
    steps: Sequence[float] = STEPS,
) -> NDArray[np.float64]:
    """Mean score of pictures along a direction: re-scoring (Shen et al. 2020, section 3.2).

    Parameters
    ----------
    synthesis : callable
        Pictures of latents (N, D).
    ws : (N, D) floats
        Where the walks begin.
    step : (D,) floats
    score : callable
        From pictures (N, C, R, R) to numbers (N,), or (N, S) of several scores.

    Returns
    -------
    (K,) or (K, S) float64
        A mean for each number of steps.
    """
    ways = np.stack([walk(w, step, steps) for w in np.asarray(ws)])  # (N, K, D)
    scores = np.asarray(score(synthesis(ways.reshape(-1, ways.shape[-1]))), np.float64)
    return scores.reshape(len(ways), len(steps), *scores.shape[1:]).mean(axis=0)


def _batches(count: int) -> list[list[int]]:
    """Indices of full batches; the last is filled up: another size may round otherwise."""
    return [
        [min(k, count - 1) for k in range(start, start + BATCH)] for start in range(0, count, BATCH)
    ]
