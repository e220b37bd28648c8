"""Pictures along ways through W, and the neighbours of a chosen image, as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.files import numbered_name
from simulations import console
from simulations.explore.points import GENERATED, REAL, Points

if TYPE_CHECKING:
    from common.latent.artefacts import Detector
    from common.latent.directions import Direction
    from simulations.trained import Trained

STARTS = 4  # pictures from which strips and sweeps begin
MEASURED = 16  # pictures of which the mean change along a direction is measured
MIXED = 5  # rows and columns of the grid of mixed styles
BETWEEN = 8  # pictures of an interpolation
NEAREST = 8  # neighbours of a chosen image, of each kind


def write_strips(
    trained: Trained,
    out: Path,
    found: Points,
    steps: Mapping[str, Direction],
    detectors: Mapping[str, Detector],
) -> dict[str, dict[str, list[float]]]:
    """Write a strip along each direction; return the detectors' mean scores along it."""
    from common.imaging.pictures import write_grid
    from common.latent.artefacts import scores
    from common.latent.walks import STEPS, response, synthesize, walk

    generator, starts = trained.generator(), found.of(GENERATED).ws
    captions = [f"{step:+g} SD" if step else "as it is" for step in STEPS]
    responses = {}

    with console.steps("Walking along directions", len(steps)) as bar:
        for number, (name, direction) in enumerate(steps.items()):
            lines = [synthesize(generator, walk(w, direction.step)) for w in starts[:STARTS]]
            file = f"{numbered_name(number, name)}.png"
            write_grid(out / "strips" / file, lines, captions=captions)
            if detectors:
                means = response(
                    lambda ws: synthesize(generator, ws),
                    starts[:MEASURED],
                    direction.step,
                    lambda images: scores(detectors.values(), images),
                )
                responses[name] = dict(zip(detectors, means.T.tolist(), strict=True))
            bar.advance(1, name)
    return responses


def write_ways(trained: Trained, out: Path, found: Points) -> None:
    """Write interpolations, the truncation sweep and the grid of mixed styles."""
    from common.imaging.pictures import write_grid
    from common.latent.walks import PSIS, interpolate, mix_styles, synthesize, truncate

    generator, ws = trained.generator(), found.of(GENERATED).ws
    pairs = list(_pairs(ws))
    lines = [synthesize(generator, interpolate(*pair, BETWEEN)) for pair in pairs]
    if lines:
        write_grid(out / "interpolation.png", lines)
    mean = generator.mapping.w_average.cpu().numpy()
    write_grid(
        out / "truncation.png",
        [synthesize(generator, truncate(w, mean)) for w in ws[:STARTS]],
        captions=[f"psi {psi:g}" for psi in PSIS],
    )
    coarse, fine = ws[:MIXED], ws[MIXED : 2 * MIXED]
    if not len(fine):
        return
    mixed = mix_styles(coarse, fine, generator.architecture.num_ws)
    of_fine = synthesize(generator, fine)
    rows = [np.concatenate([np.ones_like(of_fine[:1]), of_fine])]
    for source, line in zip(synthesize(generator, coarse), mixed, strict=True):
        rows.append(np.concatenate([source[None], synthesize(generator, line)]))
    write_grid(out / "mixing.png", rows)


def _pairs(ws: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Neighbouring latents, two by two."""
    last = min(len(ws) - 1, 2 * STARTS)
    yield from ((ws[k], ws[k + 1]) for k in range(0, last, 2))


def write_neighbours(
    out: Path, query: np.ndarray, of_query: np.ndarray, found: Points, features: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
    """Show the real and the generated images that are nearest to a chosen one."""
    from common.evaluation.generation import nearest_points
    from common.imaging.pictures import write_grid

    lines, names, told = [query[None]], ["chosen"], {}
    for kind in (REAL, GENERATED):
        mine = np.flatnonzero(found.table["kind"] == kind)
        (index,), (distances,) = nearest_points(of_query[None], features[mine], NEAREST)
        near = found.table.iloc[mine[index]]
        lines.append(found.images[mine[index]])
        names.append(kind)
        told[kind] = [
            {**{key: row[key] for key in ("class", "site", "split")}, "distance": float(distance)}
            for (_, row), distance in zip(near.iterrows(), distances, strict=True)
        ]
    write_grid(out / "neighbours.png", lines, names=names)
    return told
