"""Attacks on a trained model: what they find, written beside what each attacker knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.attacks import attributes
from common.attacks.membership import judge, loss_scores, probability_of_truth
from common.errors import ConfigError
from common.files import csv_of, write_atomically, write_json
from common.seeding import derive_seed
from simulations import console
from simulations.attack.people import People, choose_people
from simulations.gan.generate import new_folder
from simulations.trained import Trained, read_trained
from simulations.trained_sites import chosen_sites, open_if_any

MEMBERSHIP, INVERSION, ATTRIBUTES = KINDS = ("membership", "inversion", "attributes")
LOSS, LIRA, UPDATE, DISTANCE = "loss", "lira", "update", "distance"
TABLE, ABOUT, FIGURE, PICTURES = "attacks.csv", "attacks.json", "attacks.png", "inversions.png"
PATIENTS = (TABLE, FIGURE, PICTURES)  # of single patients, or pictures of them
ALL = "all"  # sites together
PROJECTIONS = Path("authenticity") / "authenticity.csv"  # in the run's folder
DIMENSIONS = (2, 8)  # of the features, principal components, beside all of them
LEAST = 9  # people of a site: 3 whose moments are sent, 3 others, and a population
TRIALS, WIDE = 100, 64  # draws of people; a fifth as many of more features
KNOWS = {
    LOSS: "the released model, and the person's images with their classes",
    LIRA: "the same, and {shadows} shadow models of the run's recipe with other people of the site",
    UPDATE: "the site's updates of single rounds, as the server sees them, replayed from the "
    "released model, and the person's images with their classes",
    DISTANCE: "{pictures} pictures of the released generator, and the person's images",
    "projection": "the released generator's weights, and the person's images",
    "gradient": "the gradient of one image, as plain SGD sends it, and the model before",
    "update of": "the site's update of local steps with one image, and the model before",
    attributes.DISTANCE: "mean and covariance of the features of n people, and the person's",
    attributes.MEAN: "the same, and mean and covariance of the population",
    attributes.RATIO: "the same, and mean and covariance of the population",
}


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    run : Path
        Folder of a run or of a training.
    out : Path
        Folder to make.
    kinds : tuple of str
        Of :data:`KINDS`.
    sites : tuple of str
        Of those trained on; all of them where none is named.
    shadows : int
        Shadow models a site, an even number; 0: none.
    count : int
        People a group and site, at most.
    pictures : int
        Of a generator, that people's images are compared with.
    inversions : int
        Images a site that are sought.
    steps : int
        Of each of these searches.
    cohort : Path, optional
        Where the sites' data are, if they are no longer where they were.
    seed : int
    device : str
    """

    run: Path
    out: Path
    kinds: tuple[str, ...] = (MEMBERSHIP,)
    sites: tuple[str, ...] = ()
    shadows: int = 0
    count: int = 1000
    pictures: int = 1000
    inversions: int = 4
    steps: int = 300
    cohort: Path | None = None
    seed: int = 0
    device: str = "auto"


@dataclass
class _Found:
    """What the attacks give, as they are done."""

    attacks: list[dict[str, Any]] = field(default_factory=list)
    tables: list[pd.DataFrame] = field(default_factory=list)
    pictures: list[tuple[str, NDArray, NDArray]] = field(default_factory=list)


def attack(request: Request) -> dict[str, Any]:
    """Attack a trained model, and write what came of it.

    Returns
    -------
    dict
        What ``attacks.json`` holds.

    Raises
    ------
    ConfigError
        For a run, a site, a kind or a folder that cannot be used, before any work.
    """
    trained = read_trained(request.run, request.cohort, request.device)
    sites = _checked(request, trained)
    people = [
        choose_people(trained, site, request.count, request.seed)
        for site in sites
        if all(open_if_any(trained, site, split) for split in ("train", "test"))
    ]
    if not any(len(one.rows) for one in people):
        raise ConfigError(
            f"sites {', '.join(sites)}: no class has people both in training and in the test set"
        )
    new_folder(request.out)
    found = _Found()
    works: dict[str, Callable[[Request, Trained, list[People], _Found], None]] = {
        MEMBERSHIP: _membership,
        INVERSION: _inversion,
        ATTRIBUTES: _attributes,
    }
    for kind in request.kinds:
        works[kind](request, trained, people, found)
    description = {
        "weights": trained.weights_hash,
        "task": trained.task_name,
        "sites": [one.site for one in people],
        "kinds": list(request.kinds),
        "shadows": request.shadows,
        "seed": request.seed,
        "attacks": found.attacks,
        "stays": [name for name in PATIENTS if name != PICTURES or found.pictures],
    }
    _write(request.out, found, description)
    return description


def _checked(request: Request, trained: Trained) -> tuple[str, ...]:
    """Return the sites that are attacked, or refuse what cannot be."""
    if not request.kinds or (unknown := set(request.kinds) - set(KINDS)):
        wrong = sorted(unknown)[0] if request.kinds else ""
        raise ConfigError(f"--kind {wrong}: accepted are {', '.join(KINDS)}, separated by commas")
    generator = trained.task_name == "generation"
    if request.shadows % 2 or request.shadows < 0:
        raise ConfigError(
            f"--shadows {request.shadows}: accepted are even numbers, as each half of the people "
            "has a model and the other half another"
        )
    if request.shadows and generator:
        raise ConfigError(
            "--shadows: shadow models are of classifiers, and this is a generator. Leave it out"
        )
    if INVERSION in request.kinds:
        from simulations.attack.updates import require_invertible

        require_invertible(trained)
    sites = chosen_sites(request.sites, trained.training_sites, ", on which it was trained")
    if generator:
        trained.generator()
    return sites


def _membership(request: Request, trained: Trained, people: list[People], found: _Found) -> None:
    generator = trained.task_name == "generation"
    scores = _of_generator if generator else _of_classifier
    tables = list(scores(request, trained, [one for one in people if len(one.rows)]))
    if generator and (projected := trained.folder / PROJECTIONS).is_file():
        tables += _projections(pd.read_csv(projected), [one.site for one in people])
    table = pd.concat(tables, ignore_index=True)
    found.tables.append(table)
    for method, rows in table.groupby("method", sort=False):
        knows = KNOWS[method.partition(",")[0]]
        about = {
            "kind": MEMBERSHIP,
            "method": method,
            "knows": knows.format(shadows=request.shadows, pictures=request.pictures),
        }
        parts = {ALL: rows} | dict(list(rows.groupby("site"))) if len(people) > 1 else {}
        for site, own in (parts or {people[0].site: rows}).items():
            groups = (own["score"][own["in_training"] == one].to_numpy() for one in (True, False))
            found.attacks.append({**about, "site": site, **judge(*groups, seed=request.seed)})


def _of_classifier(
    request: Request, trained: Trained, people: list[People]
) -> Iterator[pd.DataFrame]:
    """Yield tables of persons' scores by loss, by updates and by shadow models."""
    from common.training.classifier import predict
    from simulations.attack.shadows import lira_scores
    from simulations.attack.updates import update_scores

    with console.steps("Attacking", len(people) * (2 + request.shadows)) as bar:
        for one in people:
            data, model = one.chosen, trained.classifier(one.site)
            predictions = predict(model, data, trained.study, trained.device)
            truth = probability_of_truth(predictions, data.labels)
            bar.advance(note=one.site)
            yield one.table(loss_scores(truth), kind=MEMBERSHIP, method=LOSS)
            yield one.table(update_scores(trained, one), kind=MEMBERSHIP, method=UPDATE)
            bar.advance(note=f"{one.site}, updates")
            if request.shadows:
                scores = lira_scores(trained, one, truth, request.shadows, request.seed, bar)
                yield one.table(scores, kind=MEMBERSHIP, method=LIRA)


def _of_generator(
    request: Request, trained: Trained, people: list[People]
) -> Iterator[pd.DataFrame]:
    """Yield tables of persons' scores by the distance to the nearest generated image."""
    from common.evaluation.generation import nearest_neighbours
    from common.training.gan_sampling import sample_batches

    generator, extractor = trained.generator(), trained.extractor()
    kinds = generator.architecture.labels
    told = [row for one in people for row in (one.data.conditions or [{}])]
    told = [{k: row[k] for k, values in kinds if row.get(k) in values} for row in told]
    told = [row for row in told if len(row) == len(kinds)] or [{}]
    rng = np.random.default_rng(derive_seed(request.seed, purpose="labels"))
    labels = [told[k] for k in rng.integers(len(told), size=request.pictures)]
    made = []
    with console.steps("Generating", request.pictures) as bar:
        for images in sample_batches(generator, labels, range(request.pictures), seed=request.seed):
            made.append(extractor.features(images))
            bar.advance(len(images))
    for one in people:
        own = extractor.features(one.chosen.images() * 2 - 1)
        apart, _ = nearest_neighbours(np.concatenate(made), own)
        yield one.table(-apart, kind=MEMBERSHIP, method=DISTANCE)


def _projections(table: pd.DataFrame, sites: list[str]) -> Iterator[pd.DataFrame]:
    """Yield persons' scores by the distances of ``fedscan authenticity``, in each space."""
    real = table[table["group"].isin(["training", "held-out"]) & table["site"].isin(sites)]
    best = real.groupby(["space", "site", "group", "person", "row"])["distance"].min()
    means = best.groupby(level=[0, 1, 2, 3]).mean().reset_index()
    for space, rows in means.groupby("space"):
        yield pd.DataFrame(
            {
                "kind": MEMBERSHIP,
                "method": f"projection, {space}",
                "site": rows["site"],
                "person": rows["person"],
                "in_training": rows["group"] == "training",
                "score": -rows["distance"],
            }
        )


def _inversion(request: Request, trained: Trained, people: list[People], found: _Found) -> None:
    from simulations.attack.updates import SEEN, invert_site

    people = [one for one in people if len(one.rows)]
    total = len(people) * len(SEEN) * request.inversions
    with console.steps("Inverting", total) as bar:
        for one in people:
            for seen in SEEN:
                made = invert_site(
                    *(trained, one, seen),
                    count=request.inversions,
                    steps=request.steps,
                    seed=request.seed,
                    bar=bar,
                )
                knows = KNOWS[seen] if seen in KNOWS else KNOWS["update of"]
                about = {"kind": INVERSION, "method": seen, "site": one.site, "knows": knows}
                found.attacks.append({**about, **made.about})
                truth, again = made.pictures
                if seen == "gradient":
                    found.pictures.append((f"{one.site}, true", truth, made.psnr))
                found.pictures.append((f"{one.site}, {seen}", again, made.psnr))
                found.tables.append(
                    pd.DataFrame(
                        {
                            **{key: about[key] for key in ("kind", "method", "site")},
                            "person": range(len(made.psnr)),
                            "in_training": True,
                            "score": made.psnr,
                            "baseline": made.other_psnr,
                        }
                    )
                )


def _attributes(request: Request, trained: Trained, people: list[People], found: _Found) -> None:
    with console.steps("Moments", len(people)) as bar:
        for one in people:
            features = _features(trained, one)
            if len(features) < LEAST:
                bar.tell(f"{one.site}: moments are not attacked, fewer than {LEAST} people")
            widths = [d for d in DIMENSIONS if d < features.shape[1]]
            for number in _numbers(len(features)):
                for width in [*widths, features.shape[1]]:
                    some = features
                    if width < features.shape[1]:
                        some = attributes.principal(features, min(width, len(features)))
                    trials = TRIALS if width <= WIDE else TRIALS // 5
                    made = attributes.measure(some, number, trials=trials, seed=request.seed)
                    for method in attributes.ATTACKS:
                        found.attacks.append(
                            {
                                "kind": ATTRIBUTES,
                                "method": method,
                                "site": one.site,
                                "knows": KNOWS[method],
                                "features": made["features"],
                                "people": number,
                                "auc": made["auc"][method],
                                "predicted": made["predicted"][method],
                                "baseline": 0.5,
                            }
                        )
            bar.advance(note=one.site)


def _features(trained: Trained, people: People) -> NDArray[np.float64]:
    """Features of every person of a site, (P, D): the mean over the person's images.

    What the head of a classifier sees, and what pictures of a generator are judged by.
    """
    data = people.data
    if trained.task_name == "generation":
        found = trained.extractor().features(data.images() * 2 - 1)
    else:
        import torch

        from common.models.parts import captured_features
        from common.training.site_survey import parts

        model = trained.classifier(people.site).to(trained.device)
        with torch.no_grad(), captured_features(model) as seen:
            for part in parts(len(data)):
                model(torch.from_numpy(data.take(part)).to(trained.device))
        found = torch.cat(seen).double().cpu().numpy()
    table = pd.DataFrame(found).groupby(pd.Series(data.persons), sort=False).mean()
    return table.to_numpy()


def _numbers(people: int) -> list[int]:
    """Numbers of people whose moments are sent: from 3 by doubling, and a third of them."""
    most = people // 3
    found = [3 * 2**k for k in range(20) if 3 * 2**k <= most]
    return found if most < 3 or found[-1] * 1.25 > most else [*found, most]


def _write(out: Path, found: _Found, description: dict[str, Any]) -> None:
    """Write everything; nobody but the owner reads it."""
    from simulations.attack.figures import draw

    if found.tables:
        table = pd.concat(found.tables, ignore_index=True)
        write_atomically(out / TABLE, csv_of(table))
    else:
        table = pd.DataFrame()
    write_atomically(out / FIGURE, draw(table, description["attacks"]))
    if found.pictures:
        from common.imaging.pictures import write_grid

        names = [name for name, _, _ in found.pictures]
        write_grid(out / PICTURES, [one for _, one, _ in found.pictures], names=names)
    write_json(out / ABOUT, description)
