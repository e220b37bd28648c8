"""Attacks on membership: the tables of persons' scores, and what they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.attacks.membership import judge, loss_scores, probability_of_truth
from common.seeding import derive_seed
from simulations import console
from simulations.attack.people import People, choose_people
from simulations.attack.request import MEMBERSHIP, MOST, Request
from simulations.trained_sites import open_if_any

if TYPE_CHECKING:
    from simulations.trained import Trained

LOSS, LIRA, UPDATE, DISTANCE = "loss", "lira", "update", "distance"
ALL = "all"  # sites together
PROJECTIONS = Path("authenticity") / "authenticity.csv"  # in the run's folder
KNOWS = {
    LOSS: "the released model, and the person's images with their classes",
    LIRA: "the same, and {shadows} shadow models of the run's recipe with other people of the site",
    UPDATE: "the site's updates of single rounds, as the server sees them, replayed from the "
    "released model, and the person's images with their classes",
    DISTANCE: "{pictures} pictures of the released generator, and the person's images",
    "projection": "the released generator's weights, and the person's images",
}


def membership(
    request: Request, trained: Trained, people: list[People]
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Attack by every method that suits the model; return what is told, and persons' scores."""
    generator = trained.task_name == "generation"
    scores = _of_generator if generator else _of_classifier
    tables = list(scores(request, trained, [one for one in people if len(one.rows)]))
    if generator and (projected := trained.folder / PROJECTIONS).is_file():
        tables += _projections(pd.read_csv(projected), [one.site for one in people])
    table = pd.concat(tables, ignore_index=True)
    numbers = {"shadows": request.shadows, "pictures": request.pictures}
    return _judged(table, len(people), request.seed, **numbers), table


def released(trained: Trained, sites: Sequence[str], *, seed: int) -> list[dict[str, Any]]:
    """Attack a released classifier by the loss alone, and write nothing.

    Parameters
    ----------
    trained : Trained
    sites : sequence of str
    seed : int

    Returns
    -------
    list of dict
        As ``attacks`` of :func:`simulations.attack.run.attack`.
    """
    people = [
        choose_people(trained, site, MOST, seed)
        for site in sites
        if all(open_if_any(trained, site, split) for split in ("train", "test"))
    ]
    tables = [_by_loss(trained, one)[0] for one in people if len(one.rows)]
    return _judged(pd.concat(tables, ignore_index=True), len(sites), seed) if tables else []


def _judged(table: pd.DataFrame, sites: int, seed: int, **numbers: int) -> list[dict[str, Any]]:
    """Say of each method, over all sites and at each, how well it tells members from others."""
    found = []
    for method, rows in table.groupby("method", sort=False):
        knows = KNOWS[method.partition(",")[0]].format(**numbers)
        about = {"kind": MEMBERSHIP, "method": method, "knows": knows}
        parts = ({ALL: rows} if sites > 1 else {}) | dict(list(rows.groupby("site")))
        for site, own in parts.items():
            groups = (own["score"][own["in_training"] == one].to_numpy() for one in (True, False))
            found.append({**about, "site": site, **judge(*groups, seed=seed)})
    return found


def _by_loss(trained: Trained, people: People) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Return persons' scores by the loss, and the probability of each image's true class."""
    from common.training.classifier import predict

    data, model = people.chosen, trained.classifier(people.site)
    predictions = predict(model, data, trained.study, trained.device)
    truth = probability_of_truth(predictions, data.labels)
    return people.table(loss_scores(truth), kind=MEMBERSHIP, method=LOSS), truth


def _of_classifier(
    request: Request, trained: Trained, people: list[People]
) -> Iterator[pd.DataFrame]:
    """Yield tables of persons' scores by loss, by updates and by shadow models."""
    from simulations.attack.shadows import lira_scores
    from simulations.attack.updates import update_scores

    with console.steps("Attacking", len(people) * (2 + request.shadows)) as bar:
        for one in people:
            by_loss, truth = _by_loss(trained, one)
            bar.advance(note=one.site)
            yield by_loss
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
