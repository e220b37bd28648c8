"""Attacks on a trained model: what they find, written beside what each attacker knows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.attacks import attributes
from common.errors import ConfigError, FedscanError
from common.files import csv_of, write_atomically, write_json
from simulations import console
from simulations.attack.members import membership
from simulations.attack.people import People, choose_people
from simulations.attack.request import ATTRIBUTES, INVERSION, KINDS, MEMBERSHIP, Request
from simulations.gan.generate import new_folder
from simulations.in_use import cache_in_use
from simulations.ledger import keep
from simulations.trained import Trained, read_trained
from simulations.trained_sites import chosen_sites, open_if_any

TABLE, ABOUT, FIGURE, PICTURES = "attacks.csv", "attacks.json", "attacks.png", "inversions.png"
PATIENTS = (TABLE, FIGURE, PICTURES)  # of single patients, or pictures of them
DIMENSIONS = (2, 8)  # of the features, principal components, beside all of them
LEAST = 9  # people of a site: 3 whose moments are sent, 3 others, and a population
TRIALS, WIDE = 100, 64  # draws of people; a fifth as many of more features
KNOWS = {
    "gradient": "the gradient of one image, as plain SGD sends it, and the model before",
    "update of": "the site's update of local steps with one image, and the model before",
    attributes.DISTANCE: "mean and covariance of the features of n people, and the person's",
    attributes.MEAN: "the same, and mean and covariance of the population",
    attributes.RATIO: "the same, and mean and covariance of the population",
}


@dataclass
class _Found:
    """What the attacks give, as they are done."""

    attacks: list[dict[str, Any]] = field(default_factory=list)
    tables: list[pd.DataFrame] = field(default_factory=list)
    pictures: list[tuple[str, NDArray, NDArray]] = field(default_factory=list)


@cache_in_use()
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
    try:
        found = _worked(request, trained, people)
    except BaseException:
        with contextlib.suppress(OSError):  # nothing was written into it
            request.out.rmdir()
        raise
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
    _keep(trained.folder, found.attacks)
    return description


def _worked(request: Request, trained: Trained, people: list[People]) -> _Found:
    found = _Found()
    works: dict[str, Callable[[Request, Trained, list[People], _Found], None]] = {
        MEMBERSHIP: _membership,
        INVERSION: _inversion,
        ATTRIBUTES: _attributes,
    }
    for kind in request.kinds:
        works[kind](request, trained, people, found)
    return found


def _keep(folder: Path, attacks: list[dict[str, Any]]) -> None:
    """Add results to the summary of the attacked model, and to its report if it has one."""
    from simulations.report.document import REPORT, write_report

    try:
        if keep(folder, attacks) and (folder / REPORT).is_file():
            write_report(folder, files=(folder / "figures").is_dir())
    except (OSError, FedscanError) as error:  # of somebody else's: the results are in --out
        console.err.print(f"Not added to {folder}: {error}", markup=False, soft_wrap=True)


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
    attacks, table = membership(request, trained, people)
    found.attacks += attacks
    found.tables.append(table)


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
    each = []
    with console.steps("Features", len(people)) as bar:
        for one in people:
            each.append(features := _features(trained, one))
            bar.advance(note=one.site)
            if len(features) < LEAST:
                bar.tell(f"{one.site}: moments are not attacked, fewer than {LEAST} people")
    widths = [[*(d for d in DIMENSIONS if d < len(own.T)), len(own.T)] for own in each]
    total = sum(len(_numbers(len(own))) * len(w) for own, w in zip(each, widths, strict=True))
    with console.steps("Moments", total) as bar:
        for one, features, some_widths in zip(people, each, widths, strict=True):
            for number in _numbers(len(features)):
                for width in some_widths:
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
                    bar.advance(note=f"{one.site}, {number} people")


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
