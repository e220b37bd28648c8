"""Where a classifier looks: Grad-CAM and occlusion maps of one class of each image.

*Grad-CAM* (Selvaraju et al. 2017, ICCV) weights the last convolution's maps A_k by the gradient of
the class's logit y, here each place p by its own,

    M(p) = max(0, Σ_k ∂y/∂A_k(p) · A_k(p)),

which is HiResCAM (Draelos & Carin 2020, arXiv:2011.08891). Where the head sees means over space,
as an EfficientNet's does, the gradient is the same at all places, and this is Grad-CAM itself. The
small classifiers' heads see standard deviations, cells or places: there the mean gradient of
Grad-CAM is not what the logit is made of. MONAI's ``GradCAM`` takes that mean, one class for a
whole batch, and by default the batch's range as the scale; its hooks read a wrong gradient from a
module that a network uses twice, as EfficientNet does its activation. So the maps are computed
here, and a test holds them to MONAI's where both are defined.

*Occlusion* (Zeiler & Fergus 2014, ECCV): a window is covered by the image's mean colour, and what
the log-odds of the class lose is spread over the window; a place has the mean over the windows that
cover it. It asks any classifier, since it needs no gradient. MONAI's ``OcclusionSensitivity`` takes
one image a call and gives probabilities, which hardly move where a classifier is sure.

Maps are never scaled: an image's map is the same whatever is in its batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import ConfigError

METHODS = ("gradcam", "occlusion")
BATCH = 64  # images of a forward pass
GROUND = 0.1  # what is darker in every channel is a frame, or air: no part of the mean colour
# Windows of an axis: a step is an eighth of a picture's side and a sixth of a volume's, a window
# two steps wide. Slices of a stack are covered one at a time.
STEPS_OF_PICTURES, STEPS_OF_VOLUMES = 8, 6


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return logits (N, K) of images (N, C, …), a batch at a time, without gradients."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([model(part.to(device)).cpu() for part in images.split(BATCH)])


def log_odds(logits: Tensor, classes: Tensor) -> Tensor:
    """Return log(p / (1 − p)) of a class of each image, (N,): of two classes, their difference."""
    own = logits.gather(1, classes[:, None])
    rest = logits.scatter(1, classes[:, None], -math.inf)
    return own[:, 0] - rest.logsumexp(1)


def saliency(method: str, model: nn.Module, images: Tensor, classes: Tensor) -> NDArray[np.float32]:
    """Map where a classifier looks for a class of each image.

    Parameters
    ----------
    method : {"gradcam", "occlusion"}
    model : nn.Module
        One of `common.models`, for use (``eval``); of occlusion, any. Nothing of it is changed.
    images : (N, C, *space) Tensor
        In [0, 1].
    classes : (N,) int64 Tensor
        Of which the map is: as a rule, the one that is predicted.

    Returns
    -------
    (N, *space) float32
        What speaks for the class is positive. Of Grad-CAM in units of the logit, never negative;
        of occlusion, of its log-odds.

    Raises
    ------
    ConfigError
        Grad-CAM of a classifier without a convolution to look at, or an unknown method.
    """
    if method not in METHODS:
        raise ConfigError(f"method '{method[:80]}': accepted is one of {', '.join(METHODS)}")
    if method == "gradcam":
        layer = _layer_of(model)
        of_batch: Callable[..., Tensor] = lambda x, c: _gradcam(model, layer, x, c)  # noqa: E731
    else:
        of_batch = lambda x, c: _occlusion(model, x, c)  # noqa: E731
    parts = zip(images.split(BATCH), classes.split(BATCH), strict=True)
    return np.concatenate([of_batch(*part).numpy() for part in parts]).astype(np.float32)


@dataclass(frozen=True)
class _Layer:
    """A layer's maps (B, K, *cells), and where a cell lies: at ``first + step · k`` pixels."""

    module: nn.Module
    step: float
    first: float = 0.0  # a convolution of stride 2 that is padded alike at both ends keeps pixel 0


def _layer_of(model: nn.Module) -> _Layer:
    """Return the last layer of a classifier that has maps over space.

    Raises
    ------
    ConfigError
        It has none.
    """
    from common.models.classifier import SmallClassifier, VolumeEfficientNet
    from common.models.efficientnet import PictureEfficientNet, StridedPadding
    from common.models.picture_classifier import SmallPictureClassifier
    from common.models.slice_classifier import SliceClassifier

    if isinstance(model, SmallPictureClassifier):
        return _Layer(model.features, 8)
    if isinstance(model, SliceClassifier):
        return _Layer(model.features[2], 2)
    if isinstance(model, SmallClassifier):
        standardize, pad = model.features[0], model.features[1]
        margin, block = -pad.padding[0], standardize.block
        return _Layer(model.features[-3], 4 * block, margin * block + (block - 1) / 2)
    # TensorFlow pads at the far end, so that each stride of 2 begins half a pixel of its own later.
    if isinstance(model, PictureEfficientNet):
        of_file = any(m.tensorflow for m in model.modules() if isinstance(m, StridedPadding))
        return _Layer(model.network._swish, 32, 31 if of_file else 0)
    if isinstance(model, VolumeEfficientNet):
        return _Layer(model[1]._swish, 32, 31)
    raise ConfigError(
        "Grad-CAM needs a classifier with convolutions over space, and this one's features are "
        "means over cells of single pixels' values: take --method occlusion"
    )


def _gradcam(model: nn.Module, layer: _Layer, images: Tensor, classes: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda _, __, maps: seen.append(maps))
    device = next(model.parameters()).device
    try:
        with torch.enable_grad():  # of the images, since a frozen network's maps have none
            logits = model(images.to(device, copy=True).requires_grad_())
    finally:
        handle.remove()
    maps = seen[-1]  # EfficientNet's activation is one module, used in many places
    score = logits.gather(1, classes.to(device)[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, maps)
    found = (gradient * maps.detach()).sum(1).clamp(min=0).cpu()  # (B, *cells)
    shape = images.shape[2:]
    for axis in range(-(found.ndim - 1), 0):  # of a stack, whose slices share one map, the last two
        weights = _interpolation(shape[axis], found.shape[axis], layer)
        found = (found.transpose(axis, -1) @ weights).transpose(axis, -1)
    if found.ndim == len(shape):
        found = found[:, None].expand(-1, *shape)
    return found


def _interpolation(pixels: int, cells: int, layer: _Layer) -> Tensor:
    """Weights (cells, pixels) of a linear interpolation; beyond the outermost cells it is flat."""
    place = ((torch.arange(pixels) - layer.first) / layer.step).clamp(0, cells - 1)
    return (1 - (place - torch.arange(cells)[:, None]).abs()).clamp(min=0)


def _occlusion(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    space = images.shape[2:]
    windows = list(itertools.product(*(_windows(space, axis) for axis in range(len(space)))))
    colour = mean_colour(images)
    whole = log_odds(logits_of(model, images), classes)
    total, covered = torch.zeros(len(images), *space), torch.zeros(space)
    for window in windows:
        hidden = images.clone()
        hidden[(..., *window)] = colour
        lost = whole - log_odds(logits_of(model, hidden), classes)
        total[(slice(None), *window)] += lost.view(-1, *[1] * len(space))
        covered[window] += 1
    return total / covered


def _windows(space: tuple[int, ...], axis: int) -> list[slice]:
    """Windows of an axis, which together cover it."""
    side = space[axis]
    if len(space) == 3 and axis == 0 and space[0] < space[1]:  # a stack's slices
        return [slice(k, k + 1) for k in range(side)]
    step = max(1, side // (STEPS_OF_PICTURES if len(space) == 2 else STEPS_OF_VOLUMES))
    return [slice(k, k + 2 * step) for k in range(0, max(1, side - step), step)]


def mean_colour(images: Tensor) -> Tensor:
    """Mean (N, C, 1, …) of each image over what is no frame and no air."""
    space = tuple(range(2, images.ndim))
    seen = (images.amax(1, keepdim=True) > GROUND).to(images.dtype)
    return (images * seen).sum(space, keepdim=True) / seen.sum(space, keepdim=True).clamp(min=1)
