"""What training varies of an image, and which views of it show the same, by its modality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.studies.study import Study
from common.training import picture_augment


@dataclass(frozen=True)
class Variation:
    """Variation of a study's images.

    Parameters
    ----------
    augment : callable
        Given a batch in [0, 1] and a generator of every draw, a new batch that shows the same.
    views : callable
        Given a batch, views of it whose predictions are averaged.
    """

    augment: Callable[[Tensor, torch.Generator], Tensor]
    views: Callable[[Tensor], list[Tensor]]


def is_mirrored(study: Study) -> bool:
    """Say whether an image of a study and its left-to-right mirror image show the same."""
    if study.images.view != "picture":
        return True  # a head, whose sides differ less than people do
    return -1 in picture_augment.modality_of(study.images.channels).mirrored


def variation_of(study: Study) -> Variation:
    """Return what varies a study's images: heads by side, place and contrast, pictures by kind."""
    if study.images.view == "picture":
        modality = picture_augment.modality_of(study.images.channels)
        return Variation(
            lambda images, draws: picture_augment.augment(images, draws, modality),
            lambda images: picture_augment.views(images, modality),
        )
    from common.training.classifier_augment import augment, axes_of

    # An image and its mirror image show the same person.
    return Variation(augment, lambda images: [images, images.flip(axes_of(images).right)])
