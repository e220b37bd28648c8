"""``fedscan similar``: training cases of a site that a classifier sees as it sees an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, DataContractError
from common.files import write_json
from simulations.explain.images import known_images
from simulations.gan.generate import new_folder

if TYPE_CHECKING:
    from common.data.dataset import Dataset
    from common.explanation.neighbours import Reference
    from simulations.trained import Trained

STRIP, SUMMARY = "similar.png", "similar.json"
AT = 5  # nearest cases of the precision


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    run : Path
        Folder of a classifier.
    image : Path
        File in the storage of the run's study.
    out : Path
        Folder to make.
    cohort : Path, optional
        Where the sites' data are now.
    site : str, optional
        Whose cases; needed where the run has several sites.
    count : int
    device : {"auto", "cpu", "cuda"}
    """

    run: Path
    image: Path
    out: Path
    cohort: Path | None = None
    site: str | None = None
    count: int = 5
    device: str = "auto"


def similar(request: Request) -> dict[str, Any]:
    """Find an image's nearest cases among one site's training images, and no other's.

    Returns
    -------
    dict
        What ``similar.json`` holds.

    Raises
    ------
    ConfigError, DataContractError
        The run, the site or the image cannot be used; before anything is written.
    """
    import torch

    from common.explanation.neighbours import Reference, features_of
    from common.training.variation import variation_of
    from simulations.trained import read_trained

    trained = read_trained(request.run, request.cohort, request.device)
    site = request.site or _only(trained)
    train = known_images(trained, site, "train")
    if train is None:
        raise ConfigError(
            f"site '{site}' has no training image with a label, so that no case can be similar: "
            "accepted is a site that has"
        )
    query = read_query(trained, site, request.image)
    test = known_images(trained, site, "test")
    new_folder(request.out)
    model, views = trained.classifier(site), variation_of(trained.study).views
    classes = trained.study.label.classes.names

    def seen(images: NDArray[np.floating]) -> NDArray[np.floating]:
        return features_of(model, torch.from_numpy(images), views)

    reference = Reference(np.concatenate([seen(x) for x in _batches(train)]), train.labels)
    order, distance = (found[0] for found in reference.nearest(seen(query), request.count))
    told = trained.rows(site, "train")
    persons, files = told["person"].to_numpy(), told["image"].tolist()
    rows = np.flatnonzero(trained.open(site, "train").labels >= 0)[order]
    with torch.no_grad():
        own = torch.stack([model(v) for v in views(torch.from_numpy(query).to(trained.device))])
    probabilities = own.double().softmax(-1).mean(0)[0].cpu().numpy()
    summary = {
        "run": request.run.name,
        "site": site,
        "predicted": classes[int(probabilities.argmax())],
        "probability": float(probabilities.max()),
        "neighbours": [
            {
                "scan": int(row),
                "file": str(files[row]),
                "person": int(persons[row]),
                "label": classes[train.labels[k]],
                "distance": float(far),
            }
            for row, k, far in zip(rows, order, distance, strict=True)
        ],
        "precision": None
        if test is None
        else _precision(
            reference, np.concatenate([seen(x) for x in _batches(test)]), test.labels, classes
        ),
    }
    _write_strip(request.out / STRIP, query[0], train.take(order), summary["neighbours"])
    write_json(request.out / SUMMARY, summary)
    return summary


def _only(trained: Trained) -> str:
    if len(trained.sites) > 1:
        raise ConfigError(
            f"the run is of several sites: name yours with --site, one of "
            f"{', '.join(trained.sites)}"
        )
    return trained.sites[0]


def _batches(data: Dataset) -> list[NDArray[np.floating]]:
    """Read a split in parts, which fit into memory."""
    parts = np.array_split(np.arange(len(data)), -(-len(data) // 256))
    return [data.take(part) for part in parts]


def read_query(trained: Trained, site: str, path: Path) -> NDArray[np.float32]:
    """Read an image as the site's own are read, (1, C, *space) in [0, 1].

    Raises
    ------
    ConfigError
        There is no such file, or it cannot be used.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path}: there is no such file", public="the image: there is no such file"
        )
    from common.data.dataset import in_unit_range
    from simulations.predict import ImageReader

    target, reader = path.resolve(), ImageReader(trained, site)  # a link means what it leads to
    try:
        stored = reader.read(target, target.parent)[None]
    except DataContractError as error:
        raise ConfigError(
            f"{path}: {error.problem}. {error.remedy}".strip(" ."), public=error.public
        ) from None
    return in_unit_range(reader.pixels(stored).take([0]))


def _precision(
    reference: Reference,
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Label agreement of the test images with their nearest training images."""
    from common.explanation.neighbours import precision_at

    count = min(AT, len(reference.labels))
    precision, chance = precision_at(reference, features, labels, count)
    by_class = {
        name: float(precision[labels == k].mean())
        for k, name in enumerate(classes)
        if (labels == k).any()
    }
    return {
        "at": count,
        "images": len(labels),
        "mean": float(precision.mean()),
        "chance": float(chance.mean()),
        "mean_of_classes": float(np.mean(list(by_class.values()))),
        "by_class": by_class,
    }


def _write_strip(
    path: Path,
    query: NDArray[np.floating],
    found: NDArray[np.floating],
    neighbours: list[dict[str, Any]],
) -> None:
    from common.imaging.pictures import write_grid

    captions = ["query\n"] + [f"{one['label']}\n{one['distance']:.2f}" for one in neighbours]
    pictures = np.stack([_middle(one) for one in (query, *found)])
    write_grid(path, [pictures * 2 - 1], captions=captions)


def _middle(image: NDArray[np.floating]) -> NDArray[np.floating]:
    """A picture (C, S, S) as it is; of a volume or stack the middle axial plane, (1, S, S)."""
    if image.ndim == 3:
        return image
    space = image[0]
    if space.shape[0] < space.shape[1]:
        return space[len(space) // 2][None]
    return space[:, :, space.shape[2] // 2].T[::-1][None]
