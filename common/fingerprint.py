"""Hashes of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def digest(state: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and values of tensors: 64 hexadecimal digits of SHA-256."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Hash weights as float16, so that it is the same in every transport."""
    return digest({name: tensor.half() for name, tensor in weights.items()})
