"""A classifier from a package outside fedscan: any network that maps images to logits."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.extensions import load_extension
from common.models.parts import captured_features

KEY = "run config: model.classifier"


class Outside(nn.Module):
    """A network of which only its inputs and outputs are known.

    Its head is the last linear layer, or without any the last layer with parameters.

    Parameters
    ----------
    network : nn.Module
        Maps images (B, C, S, S), or volumes (B, 1, S, S, S), to logits (B, K).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def head(self) -> nn.Module:
        """The layer that makes logits of features."""
        layers = [one for one in self.network.modules() if [*one.parameters(recurse=False)]]
        linear = [one for one in layers if isinstance(one, nn.Linear)]
        return (linear or layers)[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return self.network(images)


def build_outside(name: str, *, channels: int, classes: int, size: int, seed: int) -> Outside:
    """Build a classifier by the function of an extension, the same for the same seed.

    Parameters
    ----------
    name : str
        ``package.module:function``; called with ``channels``, ``classes`` and ``size``.
    channels : int
        C.
    classes : int
        K.
    size : int
        S, pixels or voxels a side.
    seed : int

    Raises
    ------
    ConfigError
        The function may not be loaded here, cannot be called, or returns no network.
    """
    function = load_extension(name, KEY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = function(channels=channels, classes=classes, size=size)
        except TypeError as error:
            raise ConfigError(
                f"{KEY} = '{name}': it cannot be called with channels, classes and size ({error})"
            ) from error
    if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
        raise ConfigError(f"{KEY} = '{name}': it returns no torch.nn.Module with parameters")
    return Outside(network)


def check_outside(name: str, channels: int, classes: int, size: int, dimensions: int) -> None:
    """Refuse a network that does not make logits of images, by one look at two black ones.

    Raises
    ------
    ConfigError
    """
    load_extension(name, KEY)  # also where it was looked at before it was disallowed
    _look(name, channels, classes, size, dimensions)


@lru_cache(maxsize=8)
def _look(name: str, channels: int, classes: int, size: int, dimensions: int) -> None:
    model = build_outside(name, channels=channels, classes=classes, size=size, seed=0).eval()
    shape = (2, channels, *(size,) * dimensions)
    try:
        with torch.no_grad(), captured_features(model) as seen:
            found = model(torch.zeros(shape))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        what = f"{KEY} = '{name}': it does not accept images of shape {shape}"
        raise ConfigError(f"{what}: {error}", public=what) from error
    if not isinstance(found, Tensor) or found.shape != (2, classes):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"{KEY} = '{name}': of images {shape} it makes {got}, not (2, {classes})")
    if len(seen) != 1:
        raise ConfigError(
            f"{KEY} = '{name}': its last linear layer is used {len(seen)} times in a pass; it has "
            "to be the one that makes the logits"
        )


def running_statistics(model: nn.Module) -> frozenset[str]:
    """Name the running means and variances of a model's batch normalizations."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
        for name in ("running_mean", "running_var")
    )
