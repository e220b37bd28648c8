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
        elif isinstance(module, NORMALIZATIONS) or getattr(module, "normalizes", False):
            part = NORM
        else:
            continue
        found.update({f"{prefix}.{name}": part for name in module.state_dict()})
    return found


@contextmanager
def captured_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the head sees, a tensor (B, F) for each call of the model."""
    seen: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()
