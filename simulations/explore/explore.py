"""Exploration of a run's generator: maps, directions, and pictures along ways through W."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from common.errors import ConfigError
from common.files import csv_of, write_atomically, write_json
from common.paths import cache_dir
from simulations import console
from simulations.explore import points as drawn
from simulations.explore.attributes import (
    Labels,
    attribute_labels,
    of_conditions,
    of_detectors,
    require_known,
)
from simulations.explore.figures import draw_map
from simulations.explore.points import ABOUT, GENERATED, PROJECTED, REAL, Points
from simulations.explore.ways import write_neighbours, write_strips, write_ways
from simulations.gan.generate import new_folder
from simulations.trained import Trained, read_trained
from simulations.trained_sites import chosen_sites

if TYPE_CHECKING:
    from common.evaluation.extractor import Extractor
    from common.latent.artefacts import Detector
    from common.latent.directions import Direction

DESCRIPTION, TABLE = "explore.json", "points.csv"
DIRECTIONS, VECTORS = "directions.csv", "directions.safetensors"
NOTICE = (
    "Maps, projections and neighbours of real images are derived from patients. At a deployed site "
    "they stay with the site."
)
PATIENTS = (TABLE, "maps", "neighbours.png")  # of single patients, or pictures of them
OF_TABLES = (DESCRIPTION, DIRECTIONS, VECTORS, "strips")  # as well, with patients' own labels
LATENTS = 500  # latents w behind the directions of labels
NAMES = {"pca": "Principal components", "tsne": "t-SNE", "umap": "UMAP"}


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    run : Path
        Folder of a run or of a training.
    out : Path
        Folder to make.
    count : int
        Real images, and generated ones.
    sites : tuple of str
        All of the run where none is named.
    maps : tuple of str
        Of ``common.latent.maps.METHODS``.
    attributes : tuple of str
        Columns of the sites' tables: labels of projected images, for directions.
    without : tuple of str
        Names of directions that are taken out of all others.
    neighbours_of : Path, optional
        An image whose nearest neighbours are shown.
    projections : Path, optional
        Of ``fedscan authenticity`` or ``fedscan project``, instead of projecting anew.
    project, steps : int
        How many real images to project into W, and the steps of each search.
    artefacts : bool, optional
        Look for hair, rulers and frames with detectors that were trained on phantoms. By default
        where the run's lesions are phantoms.
    extractor : str
        Name or file; ``auto``: the run's.
    cohort : Path, optional
        Where the sites' data are, if they are no longer where they were.
    seed : int
    device : str
    """

    run: Path
    out: Path
    count: int = 200
    sites: tuple[str, ...] = ()
    maps: tuple[str, ...] = ("pca", "tsne")
    attributes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    neighbours_of: Path | None = None
    projections: Path | None = None
    project: int = 40
    steps: int = 200
    artefacts: bool | None = None
    extractor: str = "auto"
    cohort: Path | None = None
    seed: int = 0
    device: str = "auto"


def explore(request: Request) -> dict[str, Any]:
    """Look into a generator's latent space, and write what was seen.

    Returns
    -------
    dict
        What ``explore.json`` holds.

    Raises
    ------
    ConfigError
        For a run, a site, a map, an image, a column, a direction or a folder that cannot be used,
        before any work; for one that shows only then, before anything is written.
    """
    from common.latent.maps import require_method

    for method in request.maps:
        require_method(method)
    trained = read_trained(request.run, request.cohort, request.device)
    architecture = trained.generator().architecture
    sites = chosen_sites(request.sites, trained.sites)
    query = _query(request.neighbours_of, architecture)
    if request.artefacts and architecture.channels != 3:
        raise ConfigError("--artefacts: hair, rulers and frames are of colour pictures of skin")
    wanted = _detected(trained, request)
    require_known(trained, sites, request.attributes, request.without, wanted)
    given = request.projections and drawn.read_projections(trained, request.projections)
    if request.attributes and not (given or request.project):
        raise ConfigError("--attribute labels projected images: leave --project 0 out")
    extractor = trained.extractor(request.extractor)
    new_folder(request.out)
    found = _gather(trained, request, sites, extractor, given)
    detectors = _detectors(trained, wanted, request.seed)
    rows, steps = _directions(trained, request, found, detectors)
    features = np.concatenate(
        [extractor.features(found.images[k : k + 128]) for k in range(0, len(found.images), 128)]
    )
    description: dict[str, Any] = {
        "notice": NOTICE,
        "stays": _staying(request),
        "extractor": extractor.identity(),
        "seed": request.seed,
        "sites": list(sites),
        "counts": found.table["kind"].value_counts(sort=False).to_dict(),
        "separability": _separabilities(found, features, request.seed),
        "maps": _maps(request, found, features),
        "directions": rows,
        "without": list(request.without),
        "detectors": {name: one.accuracy for name, one in detectors.items()},
        "responses": write_strips(trained, request.out, found, steps, detectors),
    }
    _write_directions(request.out, rows, steps)
    write_ways(trained, request.out, found)
    if query is not None:
        description["neighbours"] = write_neighbours(
            request.out, query, extractor.features(query[None])[0], found, features
        )
    write_json(request.out / DESCRIPTION, description)
    return description


def _staying(request: Request) -> list[str]:
    """Name the files that stay at the site: of patients, or learnt from what is told of them."""
    found = [*PATIENTS, *(OF_TABLES if request.attributes else ())]
    if request.neighbours_of is not None and DESCRIPTION not in found:
        found.append(DESCRIPTION)
    return found


def _query(path: Path | None, architecture: Any) -> np.ndarray | None:
    from simulations.gan.picture_input import read_picture

    if path is None:
        return None
    shape = {"channels": architecture.channels, "resolution": architecture.resolution}
    return read_picture(path, **shape, height_mm=0.0)


def _gather(
    trained: Trained,
    request: Request,
    sites: tuple[str, ...],
    extractor: Extractor,
    given: Points | None,
) -> Points:
    """Draw real images, generate as many with their labels, and project some."""
    real = drawn.real_points(trained, sites, request.count, request.seed)
    parts = [real, drawn.generated_points(trained, real.table, len(real.table), request.seed)]
    if given is not None:
        parts.append(given)
    elif request.project:
        number = min(request.project, len(real.table))
        work = (real, extractor, number, request.steps, request.seed)
        parts.append(drawn.projected_points(trained, *work))
    return Points.joined(parts)


def _separabilities(found: Points, features: np.ndarray, seed: int) -> dict[str, Any]:
    """Judge how mixed kinds are, beside training and test images, which are both real."""
    from common.latent.maps import separability

    kind, split, owner = (found.table[name] for name in ("kind", "split", "person"))
    pairs = {
        "real and generated, by features": (features, kind == REAL, kind == GENERATED),
        "training and test images, by features": (
            *(features, (kind == REAL) & (split == "train")),
            (kind == REAL) & (split == "test"),
        ),
        "projected and generated, in W": (found.ws, kind == PROJECTED, kind == GENERATED),
    }
    return {
        name: asdict(
            separability(
                *(where[first], where[second]),
                persons=(owner[first].tolist(), owner[second].tolist()),
                seed=seed,
            )
        )
        for name, (where, first, second) in pairs.items()
        if min(first.sum(), second.sum()) >= 2
    }


def _maps(request: Request, found: Points, features: np.ndarray) -> dict[str, list[str]]:
    """Draw each map in each space, and write where every point lies on it."""
    from common.latent.maps import FEWEST, map_points

    table, files = found.table[[*ABOUT, *_others(found.table)]].copy(), {}
    where = {"features": (features, np.ones(len(table), bool))}
    inside = np.isfinite(found.ws).all(axis=1)
    if inside.sum() >= FEWEST:
        where["w"] = (found.ws, inside)
    with console.steps("Mapping", len(where) * len(request.maps)) as bar:
        for space, (points, chosen) in where.items():
            for method in request.maps:
                bar.say(f"{space}, {method}")
                places = map_points(points[chosen], method, seed=request.seed)
                for k, axis in enumerate("xy"):
                    column = np.full(len(table), np.nan)
                    column[chosen] = places[:, k]
                    table[f"{space}_{method}_{axis}"] = column
                name = f"{space}-{method}"
                title = f"{NAMES[method]} of {'features' if space == 'features' else 'W'}"
                for ending, raw in draw_map(table[chosen], places, title).items():
                    write_atomically(request.out / "maps" / f"{name}.{ending}", raw)
                    files.setdefault(name, []).append(f"maps/{name}.{ending}")
                bar.advance()
    write_atomically(request.out / TABLE, csv_of(table))
    return files


def _others(table: pd.DataFrame) -> list[str]:
    """Columns of the study's other conditions."""
    return [name for name in table if name not in (*ABOUT, "person", "row")]


def _directions(
    trained: Trained, request: Request, found: Points, detectors: Mapping[str, Detector]
) -> tuple[list[dict[str, Any]], dict[str, Direction]]:
    """Find the direction of each label.

    Returns
    -------
    list of dict
        One for each label.
    dict of str to Direction
        Those that could be found; those that are asked for are taken out of the others.

    Raises
    ------
    ConfigError
        A column cannot part images in two, or there is no direction to take out.
    """
    from common.latent.directions import find_direction, orthogonalized

    labels = [
        *of_conditions(trained, LATENTS, request.seed),
        *of_detectors(trained, detectors, LATENTS, request.seed),
        *attribute_labels(trained, found.of(PROJECTED), request.attributes),
    ]
    known: dict[str, tuple[Labels, Direction]] = {}
    rows = []
    for one in labels:
        row = {"direction": one.name, "labels_of": one.source}
        try:
            direction = find_direction(
                one.name, one.ws, one.positive, groups=one.persons, seed=request.seed
            )
        except ConfigError as error:
            rows.append({**row, "reason": str(error)})
            continue
        known[one.name] = (one, direction)
        told = {k: getattr(direction, k) for k in ("accuracy", "low", "high", "count", "positive")}
        rows.append({**row, **told, "reason": ""})
    if lost := [name for name in request.without if name not in known]:
        raise ConfigError(f"--without {lost[0]}: accepted is one of {', '.join(known)}")
    away = [known[name][1] for name in request.without]
    return rows, {
        name: direction if name in request.without else orthogonalized(direction, away, one.ws)
        for name, (one, direction) in known.items()
    }


def _detected(trained: Trained, request: Request) -> tuple[str, ...]:
    """Name the artefacts to look for, where they are wanted or the lesions are phantoms."""
    from common.latent.artefacts import ARTEFACTS

    phantoms = trained.study.name == "skin-lesions" and all(
        path.is_relative_to(cache_dir()) for path in trained.folders.values()
    )
    wanted = phantoms if request.artefacts is None else request.artefacts
    return ARTEFACTS if wanted and trained.generator().architecture.channels == 3 else ()


def _detectors(trained: Trained, wanted: Sequence[str], seed: int) -> dict[str, Detector]:
    """Train detectors of artefacts."""
    from common.latent.artefacts import train_detectors

    if not wanted:
        return {}
    console.err.print("Training detectors of hair, rulers and frames on phantoms", highlight=False)
    return train_detectors(trained.generator().architecture.resolution, seed=seed)


def _write_directions(
    out: Path, rows: list[dict[str, Any]], steps: Mapping[str, Direction]
) -> None:
    from safetensors.numpy import save

    columns = ["direction", "labels_of", "accuracy", "low", "high", "count", "positive", "reason"]
    table = pd.DataFrame(rows, columns=columns, dtype=object)  # counts stay whole numbers
    write_atomically(out / DIRECTIONS, csv_of(table))
    if steps:
        vectors = {name: one.step.astype(np.float32) for name, one in steps.items()}
        write_atomically(out / VECTORS, save(vectors))
