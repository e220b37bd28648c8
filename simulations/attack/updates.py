"""A site's updates as the server sees them, made again: local training from the released model.

A run does not keep them. So they are replayed, from the model that was released and with the run's
own recipe, without what a strategy adds.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.attacks import inversion
from common.attacks.membership import loss_scores, probability_of_truth
from common.config.run_config import RunConfig
from common.data.dataset import Dataset
from common.errors import ConfigError
from common.models.parts import layers_of
from common.seeding import derive_seed
from common.tasks.task import SiteContext, load_task
from common.training.classifier import predict
from simulations.attack.people import People
from simulations.console import Steps
from simulations.trained import Trained

ROUNDS = 4  # replayed for membership, at most
OTHERS = 200  # images of the site that reconstructions are compared with, at most
# What the attacker sees: the gradient of plain SGD, or the run's own update after so many steps.
SEEN = {"gradient": 0, "update of 1 step": 1, "update of 2 steps": 2}


def update_scores(trained: Trained, people: People) -> NDArray[np.float64]:
    """Score the chosen images of a site by how much its local rounds lower their loss.

    The mean over :data:`ROUNDS` rounds, each from the released model.
    """
    released, data = trained.classifier(people.site), people.chosen
    training = trained.open(people.site, "train").labelled()
    before = _log_truth(released, data, trained)
    gains = [
        _log_truth(_fit(trained, people.site, released, training, trained.config, k), data, trained)
        - before
        for k in range(1, min(ROUNDS, trained.config.run.rounds) + 1)
    ]
    return np.mean(gains, axis=0)


def _log_truth(model: nn.Module, data: Dataset, trained: Trained) -> NDArray[np.float64]:
    found = predict(model, data, trained.study, trained.device)
    return loss_scores(probability_of_truth(found, data.labels))


def _fit(
    trained: Trained, site: str, model: nn.Module, data: Dataset, config: RunConfig, number: int
) -> nn.Module:
    """Train a copy of a model for one local round."""
    place = SiteContext(site, trained.sites, trained.device)
    model = copy.deepcopy(model)
    load_task(config.task).fit(model, data, config, place=place, round_number=number, private={})
    return model.eval()


@dataclass(frozen=True)
class Inversion:
    """Images of a site sought from single updates.

    Parameters
    ----------
    about : dict
        What is told of it.
    psnr, other_psnr : (B,) floats
        Of each reconstruction, and of the best other image of the site.
    pictures : tuple of ndarray
        The true images, the reconstructions, in [-1, 1], as planes (B, C, H, W).
    """

    about: dict[str, Any]
    psnr: NDArray[np.float64]
    other_psnr: NDArray[np.float64]
    pictures: tuple[NDArray, NDArray]


def require_invertible(trained: Trained) -> None:
    """Refuse what has no gradient with respect to its images.

    Raises
    ------
    ConfigError
    """
    if trained.task_name != "classification":
        raise ConfigError(
            "--kind inversion: it attacks updates of a classifier, and this is a generator. "
            "Accepted here are membership and attributes"
        )
    if trained.config.privacy.is_on:
        raise ConfigError(
            "--kind inversion: with differential privacy the noise is of a whole run over all of a "
            "site's people, and not of the update of one image. Accepted here are membership and "
            "attributes"
        )
    model = trained.config.model
    if model.trains == "head" or model.classifier == "gan-features":
        raise ConfigError(
            "--kind inversion: the run trains the last layer alone, and the network below it is "
            "not differentiated. Accepted here are membership and attributes"
        )


def invert_site(
    trained: Trained, people: People, seen: str, *, count: int, steps: int, seed: int, bar: Steps
) -> Inversion:
    """Reconstruct single training images of a site from the update of each.

    Parameters
    ----------
    trained : Trained
    people : People
    seen : str
        Of :data:`SEEN`.
    count : int
        Images, each of another person where there are enough.
    steps : int
        Of each search.
    seed : int
    bar : Steps
        Counts the searches.
    """
    model = trained.classifier(people.site).to(trained.device)
    rows = _one_a_person(people, count)
    rng = np.random.default_rng(derive_seed(seed, purpose="other images", site=people.site))
    judged, found, right = [], [], []
    for row in rows:
        data = people.data.subset([row])
        gradient = _seen(trained, people.site, model, data, SEEN[seen])
        truth = torch.from_numpy(data.images())
        with torch.no_grad():
            grey = torch.full_like(truth, 0.5).to(trained.device)
            prior = model(grey).softmax(1)[0].cpu()
        labels = inversion.infer_labels(gradient["head.bias"].cpu(), 1, prior)
        right.append(labels.tolist() == data.labels.tolist())
        own = derive_seed(seed, purpose="inversion", row=int(row))
        again = inversion.invert(model, gradient, labels, data.shape, steps=steps, seed=own)
        others = np.flatnonzero([one != data.persons[0] for one in people.data.persons])
        others = np.sort(rng.permutation(others)[:OTHERS])
        pool = torch.from_numpy(people.data.take(others))
        judged.append(inversion.judge(again, truth, pool))
        found.append((truth, again))
        bar.advance(note=f"{people.site}, {seen}")
    numbers = {
        name: np.concatenate([getattr(one, name) for one in judged])
        for name in ("psnr", "ssim", "other_psnr", "other_ssim")
    }
    truth, again = (torch.cat([pair[k] for pair in found]).numpy() * 2 - 1 for k in (0, 1))
    about = {
        "images": len(rows),
        **{name: float(values.mean()) for name, values in numbers.items()},
        "better": _share(numbers["psnr"] > numbers["other_psnr"]),
        "labels_right": float(np.mean(right)),
        "steps": steps,
    }
    return Inversion(
        about, numbers["psnr"], numbers["other_psnr"], (_planes(truth), _planes(again))
    )


def _seen(
    trained: Trained, site: str, model: nn.Module, data: Dataset, steps: int
) -> dict[str, Tensor]:
    """Return the direction of the gradient as an attacker sees it."""
    labels = torch.from_numpy(data.labels).to(trained.device)
    if not steps:
        images = torch.from_numpy(data.images()).to(trained.device)
        return inversion.gradient_of(model, images, labels)
    few = {"training.local-steps": steps, "training.local-epochs": 0, "training.batch-size": 1}
    config = trained.config.replace(few)
    after = _fit(trained, site, model, data, config, 1)
    before = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    rates = _rates(model, config)
    return inversion.gradient_from_update(
        before, after.state_dict(), rates, config.training.weight_decay
    )


def _rates(model: nn.Module, config: RunConfig) -> dict[str, float]:
    """Learning rate of each parameter that is trained."""
    layers, decay = layers_of(model), config.training.layer_decay
    share = {
        id(parameter): decay ** (len(layers) - 1 - number)
        for number, parameters in enumerate(layers)
        for parameter in parameters
    }
    rate = config.training.learning_rate
    return {
        name: rate * share.get(id(one), 1.0)
        for name, one in model.named_parameters()
        if one.requires_grad
    }


def _one_a_person(people: People, count: int) -> list[int]:
    """Training images of the chosen, of as many persons as there are."""
    seen: dict[str, int] = {}
    for row in people.rows:
        if people.inside[row]:
            seen.setdefault(people.data.persons[row], int(row))
    return list(seen.values())[:count]


def _share(better: NDArray[np.bool_]) -> dict[str, float]:
    """Share with Wilson's 95 % interval."""
    from scipy.stats import binomtest

    ends = binomtest(int(better.sum()), len(better)).proportion_ci(method="wilson")
    return {"mean": float(better.mean()), "low": float(ends.low), "high": float(ends.high)}


def _planes(images: NDArray) -> NDArray:
    """Return pictures as they are; of a volume or a stack one slice in the middle."""
    if images.ndim == 4:
        return images
    if images.shape[2] == images.shape[-1]:  # axes right, anterior, superior
        return images[..., images.shape[-1] // 2].swapaxes(-1, -2)[:, :, ::-1]
    return images[:, :, images.shape[2] // 2]
