"""What a classifier that is adapted to its site looks at there: training images, as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from common.models.site_statistics import layers_of_site
from common.training.variation import variation_of

if TYPE_CHECKING:
    from common.data.dataset import Dataset
    from common.studies.study import Study

MOST = 256  # images: the error of their mean is a sixteenth of an SD
PART = 32  # images at once, where no gradient is needed


def parts(count: int) -> list[np.ndarray]:
    """Indices of all images, a few at a time, in parts of about the same size."""
    return np.array_split(np.arange(count), max(1, -(-count // PART)))


@torch.no_grad()
def survey(
    model: nn.Module,
    data: Dataset,
    study: Study,
    device: torch.device,
    *,
    weights: np.ndarray | None = None,
    features: Tensor | None = None,
) -> None:
    """Let a model take its site's statistics, where it has layers of them.

    Parameters
    ----------
    model : nn.Module
        On the device; left in training mode or not, as it was.
    data : Dataset
        The site's training images.
    study : Study
        It says which views of an image a prediction is averaged over; they are all looked at.
    device : torch.device
    weights : (N,) ndarray, optional
        What each image counts; without, the same, and of many images :data:`MOST` are looked at.
    features : (N, F) Tensor, optional
        What ``model.classify`` makes logits of, where that is known already.
    """
    layers = layers_of_site(model)
    if not layers:
        return
    if weights is None:
        if features is None and len(data) > MOST:
            data = data.subset(np.sort(np.random.default_rng(0).permutation(len(data))[:MOST]))
        weights = np.ones(len(data))
    for layer in layers:
        layer.begin(len(data))
    shown, training = [], model.training
    model.eval()
    if features is not None:
        model.classify(features)
        shown.append(weights)
    else:
        views = variation_of(study).views
        for part in parts(len(data)):
            for view in views(torch.from_numpy(data.take(part)).to(device)):
                model(view)
                shown.append(weights[part])
    model.train(training)
    for layer in layers:
        layer.end(torch.from_numpy(np.concatenate(shown)), data.people)
