"""``fedscan explain``: where a trained classifier looks, as pictures, a table and numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.files import as_text, numbered_name, write_atomically, write_json
from common.seeding import derive_seed
from simulations import console
from simulations.explain import figures
from simulations.explain.images import known_images
from simulations.explain.masks import LESION, SHORTCUTS, Masks, known_masks
from simulations.gan.generate import new_folder

if TYPE_CHECKING:
    from common.explanation.attention import Attention
    from simulations.trained import Trained

TABLE, SUMMARY = "attention.csv", "attention.json"
ALL = "all"  # sites together


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    run : Path
        Folder of a classifier.
    out : Path
        Folder to make.
    cohort : Path, optional
        Where the sites' data are now.
    sites : tuple of str
        All of the run by default.
    split : {"val", "test"}
    count : int
        Images a site, of each class as many as there are of the others, where there are.
    methods : tuple of {"gradcam", "occlusion"}
    masks : Path, optional
        Folder of masks.
    device : {"auto", "cpu", "cuda"}
    """

    run: Path
    out: Path
    cohort: Path | None = None
    sites: tuple[str, ...] = ()
    split: str = "test"
    count: int = 24
    methods: tuple[str, ...] = ("gradcam",)
    masks: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class SiteMaps:
    """Images of a site and where the classifier looks in them.

    Parameters
    ----------
    scans : (N,) integers
        Numbers of the images in their split, as in ``predictions.csv``.
    persons : (N,) integers
        Numbered within the split.
    labels, predicted : (N,) integers
    images : (N, C, *space) floats
    masks : dict of str to bool, (N, *space)
    maps : dict of str to (N, *space) floats
        By method.
    attention : dict of (str, str) to Attention
        By method and mask.
    influence : dict of str to (N,) floats
        By mask of what would be a shortcut.
    """

    scans: NDArray[np.int64]
    persons: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    images: NDArray[np.floating]
    masks: Masks
    maps: Mapping[str, NDArray[np.floating]]
    attention: Mapping[tuple[str, str], Attention]
    influence: Mapping[str, NDArray[np.floating]]


def explain(request: Request) -> dict[str, Any]:
    """Draw and measure where a classifier looks.

    Returns
    -------
    dict
        What ``attention.json`` holds.

    Raises
    ------
    ConfigError
        The run, a site, the method or the masks cannot be used; before anything is written.
    """
    from simulations.trained import read_trained
    from simulations.trained_sites import chosen_sites

    trained = read_trained(request.run, request.cohort, request.device)
    sites = chosen_sites(request.sites, trained.sites)
    usable = [site for site in sites if known_images(trained, site, request.split) is not None]
    if not usable:
        raise ConfigError(
            f"none of {', '.join(sites)} has a labelled image of split '{request.split}': name "
            "another --site or --split"
        )
    new_folder(request.out)
    with console.steps("Explaining", len(usable)) as bar:
        found = {}
        for site in usable:
            found[site] = map_site(trained, site, request)
            bar.advance(1, site)
    classes = trained.study.label.classes.names
    write_atomically(request.out / TABLE, _table(found, classes))
    _draw(request.out, found, classes)
    summary = _summary(found, classes, request, trained.config.run.seed)
    summary["left_out"] = [site for site in sites if site not in found]
    write_json(request.out / SUMMARY, summary)
    return summary


def map_site(trained: Trained, site: str, request: Request) -> SiteMaps:
    """Explain the classifier on some images of a site, as it is tested there."""
    import torch

    from common.explanation.attention import attention
    from common.explanation.saliency import logits_of, saliency
    from common.explanation.shortcuts import influence
    from common.imaging.prepare import HEAD

    model = trained.classifier(site)
    data, rows = trained.open(site, request.split), trained.rows(site, request.split)
    seed = derive_seed(trained.config.run.seed, site=site, purpose="explanation")
    chosen = choose(data.labels, request.count, np.random.default_rng(seed))
    stored = data.take(chosen)
    files = rows["image"].iloc[chosen].tolist()
    masks = known_masks(
        *(trained.study, trained.config, site, trained.folders[site]),
        files,
        data.shape,
        request.masks,
    )
    images = torch.from_numpy(stored)
    predicted = logits_of(model, images).argmax(1)
    maps = {one: saliency(one, model, images, predicted) for one in request.methods}
    everywhere = stored[:, 0] > HEAD if trained.study.images.view != "picture" else None
    # Where a hair crosses the lesion, attention to it may be the lesion's.
    beside = ~masks[LESION] if LESION in masks else None
    return SiteMaps(
        scans=chosen,
        persons=rows["person"].to_numpy()[chosen],
        labels=data.labels[chosen],
        predicted=predicted.numpy(),
        images=stored,
        masks=masks,
        maps=maps,
        attention={
            (method, name): attention(one, mask, beside if name in SHORTCUTS else everywhere)
            for method, one in maps.items()
            for name, mask in masks.items()
        },
        influence={
            name: influence(
                model, images, predicted, masks[name] if beside is None else masks[name] & beside
            )
            for name in SHORTCUTS
            if name in masks
        },
    )


def choose(labels: NDArray[np.integer], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose at most ``count`` images, of each class one in turn, at random; in their order."""
    order = rng.permutation(np.flatnonzero(labels >= 0))
    turn = np.zeros(len(order), int)
    for label in np.unique(labels[order]):
        mine = labels[order] == label
        turn[mine] = np.arange(mine.sum())
    return np.sort(order[np.argsort(turn, kind="stable")][:count])


def _table(found: Mapping[str, SiteMaps], classes: Sequence[str]) -> bytes:
    """One row for each image and method."""
    names = list(dict.fromkeys(name for one in found.values() for name in one.masks))
    measures = ("area", "share", "ratio", "auroc")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{measure}.{name}" for name in names for measure in measures]
    columns += [f"influence.{name}" for name in names if name in SHORTCUTS]
    writer.writerow(["site", "scan", "person", "class", "predicted", "method", *columns])
    for site, one in found.items():
        for method in one.maps:
            for k, scan in enumerate(one.scans):
                about = [as_text(site), scan, one.persons[k], as_text(classes[one.labels[k]])]
                about += [as_text(classes[one.predicted[k]]), method]
                numbers = [
                    getattr(one.attention[method, name], measure)[k] if name in one.masks else None
                    for name in names
                    for measure in measures
                ]
                numbers += [
                    one.influence[name][k] if name in one.influence else None
                    for name in names
                    if name in SHORTCUTS
                ]
                writer.writerow(
                    [
                        *about,
                        *(
                            "" if v is None or not np.isfinite(v) else repr(float(v))
                            for v in numbers
                        ),
                    ]
                )
    return text.getvalue().encode()


def _summary(
    found: Mapping[str, SiteMaps], classes: Sequence[str], request: Request, seed: int
) -> dict[str, Any]:
    """Sum up by site, method and mask, and by class; all sites together where there are several.

    Only the images of all sites together are tested for shortcuts: with each site by itself there
    would be as many more tests, and so more flags by chance.
    """
    from common.explanation.attention import Attention
    from common.explanation.shortcuts import judge

    def judged(part: Mapping[str, SiteMaps], method: str, name: str, label: int | None) -> Any:
        of = {site: one for site, one in part.items() if name in one.masks}
        rows = {
            site: slice(None) if label is None else one.labels == label for site, one in of.items()
        }
        numbers = Attention(
            *(
                np.concatenate(
                    [getattr(one.attention[method, name], m)[rows[s]] for s, one in of.items()]
                )
                for m in ("area", "share", "auroc")
            )
        )
        persons = [f"{s}/{who}" for s, one in of.items() for who in one.persons[rows[s]]]
        influences = None
        if name in SHORTCUTS and label is None:
            influences = np.concatenate([one.influence[name] for one in of.values()])
        rng = np.random.default_rng(derive_seed(seed, purpose="bootstrap of attention"))
        result = judge(numbers, influences, persons, rng)
        return result if len(part) == len(found) else result | {"shortcut": None}

    def about(part: Mapping[str, SiteMaps]) -> dict[str, Any]:
        names = list(dict.fromkeys(name for one in part.values() for name in one.masks))
        told: dict[str, Any] = {"images": sum(len(one.scans) for one in part.values())}
        for method in request.methods:
            told[method] = {
                name: judged(part, method, name, None)
                | {
                    "by_class": {
                        title: judged(part, method, name, label)
                        for label, title in enumerate(classes)
                        if any((one.labels == label).any() for one in part.values())
                    }
                }
                for name in names
            }
        return told

    places = {site: about({site: one}) for site, one in found.items()}
    if len(found) > 1:
        places[ALL] = about(found)
    together = places[ALL] if len(found) > 1 else next(iter(places.values()))
    flags = [one["shortcut"] for m in request.methods for one in together[m].values()]
    return {
        "run": request.run.name,
        "split": request.split,
        "classes": list(classes),
        "methods": list(request.methods),
        "tests": sum(flag is not None for flag in flags),
        "sites": places,
    }


def _draw(out: Path, found: Mapping[str, SiteMaps], classes: Sequence[str]) -> None:
    """Write a grid of each class and method, and the averages of each method."""
    for method in next(iter(found.values())).maps:
        cells: dict[tuple[str, str], tuple[NDArray, NDArray]] = {}
        for label, name in enumerate(classes):
            grid = {}
            for site, one in found.items():
                rows = np.flatnonzero(one.labels == label)
                if not len(rows):
                    continue
                grid[site] = [_column(one, method, k) for k in rows[: figures.COLUMNS]]
                positive = one.maps[method][rows].clip(min=0)
                total = (
                    positive.reshape(len(rows), -1).sum(1).reshape(-1, *[1] * (positive.ndim - 1))
                )
                heat = np.divide(positive, total, out=np.zeros_like(positive), where=total > 0)
                picture, flat, _ = figures.flattened(one.images[rows].mean(0), heat.mean(0), {})
                cells[site, name] = picture, flat
            if grid:
                figures.write_class_grid(
                    out / f"class-{numbered_name(label, name)}-{method}.png", grid
                )
        figures.write_averages(
            out / f"averages-{method}.png",
            {
                key: figures.overlaid(picture, heat, float(heat.max()))
                for key, (picture, heat) in cells.items()
            },
            list(found),
            classes,
        )


def _column(one: SiteMaps, method: str, k: int) -> tuple[NDArray, ...]:
    """An image, its map, and its masks where any are known."""
    masks = {name: mask[k] for name, mask in one.masks.items()}
    picture, heat, flat = figures.flattened(one.images[k], one.maps[method][k], masks)
    column = (picture, figures.overlaid(picture, heat, float(heat.max())))
    return (*column, figures.outlined(picture, flat)) if flat else column
