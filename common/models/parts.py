"""What the parameters of a classifier are part of: its head, its normalizations, or its body."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

HEAD, NORM, BODY = "head", "norm", "body"
NORMALIZATIONS = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm, in any number of dimensions
)


def parts_of(model: nn.Module) -> dict[str, str]:
    """Return the part of each entry of a classifier's state.

    Parameters
    ----------
    model : nn.Module
        With a linear layer ``head``, its last. A module with a true attribute ``normalizes`` is a
        normalization like those of PyTorch.

    Returns
    -------
    dict of str to {"body", "norm", "head"}
    """
    found = dict.fromkeys(model.state_dict(), BODY)
    for prefix, module in model.named_modules():
        if module is model.head:
            part = HEAD
        elif _normalizes(module):
            part = NORM
        else:
            continue
        found.update({f"{prefix}.{name}": part for name in module.state_dict()})
    return found


def layers_of(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer, from the images up; the last is the head.

    A layer is a module with parameters of its own, in the network's order, together with the
    normalizations that follow it.
    """
    found: list[list[nn.Parameter]] = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if not own or module is model.head:
            continue
        if found and _normalizes(module):
            found[-1] += own
        else:
            found.append(own)
    return [*found, list(model.head.parameters())]


def freeze_body(model: nn.Module) -> None:
    """Let the head alone learn: nothing else gets a gradient, or moves."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.head.requires_grad_(True)


def _normalizes(module: nn.Module) -> bool:
    return isinstance(module, NORMALIZATIONS) or getattr(module, "normalizes", False)


@contextmanager
def captured_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the head sees, a tensor (B, F) for each call of the model."""
    seen: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()
