"""Nearest cases by what a classifier's head sees, and how often they have the same label.

Features are in units of their SD over the reference images, and the distance of two images is the
root mean square of their differences,

    d(x, y) = √( mean over k of ((f_k(x) − f_k(y)) / s_k)² ).

Standardized, since the means and standard deviations of channels that a head sees differ in scale,
and a few wide ones would decide. Euclidean and not cosine, since the features are mostly positive,
so that all angles are small, and since their size tells how much of a structure there is. The
distance of an image to itself is 0, that of two images drawn at random about √2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.evaluation.generation import nearest_points
from common.explanation.saliency import BATCH
from common.models.parts import captured_features

Views = Callable[[Tensor], list[Tensor]]


@torch.no_grad()
def features_of(model: nn.Module, images: Tensor, views: Views) -> NDArray[np.float64]:
    """Return what the head sees of images (N, C, …), means over views of each, (N, F)."""
    device = next(model.parameters()).device
    found = []
    for part in images.split(BATCH):
        with captured_features(model) as seen:
            for view in views(part.to(device)):
                model(view)
        found.append(torch.stack(seen).double().mean(0).cpu())
    return torch.cat(found).numpy()


@dataclass(frozen=True)
class Reference:
    """Cases to compare with.

    Parameters
    ----------
    features : (N, F) floats
    labels : (N,) integers
    """

    features: NDArray[np.floating]
    labels: NDArray[np.integer]

    def nearest(
        self, queries: NDArray[np.floating], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """Return index and distance of each query's nearest cases, (Q, count) each, in order."""
        return nearest_points(self._scaled(queries), self._scaled(self.features), count)

    def _scaled(self, features: NDArray[np.floating]) -> NDArray[np.floating]:
        """Scale features so that d is Euclidean; one that never varies is left out."""
        sd = self.features.std(axis=0)
        varies = sd > 1e-9 * max(1.0, float(np.abs(self.features).max(initial=0)))
        return features[:, varies] / (sd[varies] * np.sqrt(varies.sum()))


def precision_at(
    reference: Reference, features: NDArray[np.floating], labels: NDArray[np.integer], count: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Measure how often the nearest cases of images have the image's label.

    Returns
    -------
    precision : (N,) floats
        Share of the ``count`` nearest cases with the label, of each image.
    chance : (N,) floats
        Share of all cases with it: what cases drawn at random would give.
    """
    order, _ = reference.nearest(features, count)
    precision = (reference.labels[order] == labels[:, None]).mean(axis=1)
    return precision, (reference.labels == labels[:, None]).mean(axis=1)
