"""Where a classifier looks: Grad-CAM and occlusion maps of one class of each image.

*Grad-CAM* (Selvaraju et al. 2017, ICCV) weights a convolution's maps A_k by the gradient of the
class's logit y, here each place p by its own,

    M(p) = max(0, Σ_k ∂y/∂A_k(p) · A_k(p)),

which is HiResCAM (Draelos & Carin 2020, arXiv:2011.08891). Where the head sees means over space of
these maps, as an EfficientNet's does, the gradient is the same at all places, and this is Grad-CAM
itself. The small classifiers' heads see standard deviations, cells or places: there the mean
gradient of Grad-CAM is not what the logit is made of. MONAI's ``GradCAM`` takes that mean, one
class for a whole batch, and by default the batch's range as the scale; its hooks read a wrong
gradient from a module that a network uses twice, as EfficientNet does its activation. So the maps
are computed here, and a test holds them to MONAI's where both are defined.

The convolution is the last one whose maps tell places apart. Of an EfficientNet it has at least
seven cells a side, as the last one has at 224 pixels. Of the small classifier of pictures it is the
second of four: a cell of the last sees 31 pixels, nearly all of a small picture, and its map missed
a planted shortcut that the second's shows.

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
CELLS = 7  # a side, of an EfficientNet's maps, at least
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
        layer = _layer_of(model, images.shape[-1])
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


def _layer_of(model: nn.Module, size: int) -> _Layer:
    """Return the layer of a classifier whose maps are looked at, for images of a size.

    Raises
    ------
    ConfigError
        It has none over space.
    """
    from common.models.classifier import SmallClassifier, VolumeEfficientNet
    from common.models.efficientnet import PictureEfficientNet, StridedPadding
    from common.models.picture_classifier import SmallPictureClassifier
    from common.models.slice_classifier import SliceClassifier

    if isinstance(model, SmallPictureClassifier):
        return _Layer(model.features[6], 4)
    if isinstance(model, SliceClassifier):
        return _Layer(model.features[2], 2)
    if isinstance(model, SmallClassifier):
        standardize, pad = model.features[0], model.features[1]
        margin, block = -pad.padding[0], standardize.block
        return _Layer(model.features[-3], 4 * block, margin * block + (block - 1) / 2)
    if isinstance(model, PictureEfficientNet):
        of_file = any(m.tensorflow for m in model.modules() if isinstance(m, StridedPadding))
        return _stage_of(model.network, size, far_end=of_file)
    if isinstance(model, VolumeEfficientNet):
        return _stage_of(model[1], size, far_end=True)
    raise ConfigError(
        "Grad-CAM needs a classifier with convolutions over space, and this one's features are "
        "means over cells of single pixels' values: take --method occlusion"
    )


def _stage_of(network: nn.Module, size: int, *, far_end: bool) -> _Layer:
    """Return the last stage of an EfficientNet with enough cells, else the first.

    Padded at the far end only, as by TensorFlow, each stride of 2 begins half of its own step
    later.
    """
    layers, step = [], 2
    for stage in network._blocks:
        step *= stage[0].stride
        layers.append(_Layer(stage, step, (step - 1) * far_end))
    layers.append(_Layer(network._swish, step, (step - 1) * far_end))
    fine = [one for one in layers if size // one.step >= CELLS]
    return fine[-1] if fine else layers[0]


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
