"""How many bytes a hostile app hides in weights of the right form, in one round, behind a gate.

``python tests/gate_capacity.py`` prints a table for the default brain classifier. Each weight has
as many values as its type and the gate's rounding leave; where updates are shortened, those that
differ from the weight received by no more than its share of the length. A random message is
written in these values, passes the gate's own functions, and is read again.
"""

from __future__ import annotations

import math

import numpy as np

from clients.gateway.judge import rounded
from common.clipping import clipped
from common.config.run_config import RunConfig
from common.tasks.task import load_task, read_run_config

ROUNDING = (23, 10, 7, 4)
NORMS = (0.0, 1.0, 0.1)


def weights(config: RunConfig) -> np.ndarray:
    """Return all weights that the run begins with, one after the other."""
    task = load_task(config.task)
    shared = task.shared_state(task.build_model(config), config)
    return np.concatenate([tensor.numpy().ravel() for tensor in shared.values()])


def indices(values: np.ndarray, bits: int) -> np.ndarray:
    """Number floating-point numbers of so many bits of mantissa by size, around zero."""
    words = rounded(values, bits).view(np.int32).astype(np.int64)
    sizes = (words & 0x7FFFFFFF) >> (23 - bits)
    return np.where(words < 0, -sizes, sizes)


def values_of(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Return the numbers that :func:`indices` counts."""
    words = (np.abs(numbers) << (23 - bits)).astype(np.uint32)
    return (words | np.where(numbers < 0, np.uint32(1 << 31), np.uint32(0))).view(np.float32)


def capacity(received: np.ndarray, bits: int, norm: float) -> float:
    """Return the bytes of one round, after a message has passed."""
    import torch

    reach = 0.999 * norm / math.sqrt(received.size) if norm else np.float32(2.0**126)
    low, high = received - np.float32(reach), received + np.float32(reach)
    least, most = indices(low.astype(np.float32), bits), indices(high.astype(np.float32), bits)
    least += values_of(least, bits) < low
    most -= values_of(most, bits) > high
    choices = np.maximum(most - least + 1, 1)
    message = np.random.default_rng(0).integers(0, choices)
    sent = np.where(most >= least, values_of(np.minimum(least + message, most), bits), received)
    if norm:
        shortened = clipped(
            {"w": torch.from_numpy(sent)}, {"w": torch.from_numpy(received)}, norm, "float32"
        )
        sent = shortened["w"].numpy()
    read = indices(rounded(sent, bits), bits) - least
    assert np.array_equal(read[choices > 1], message[choices > 1])
    return float(np.log2(choices).sum() / 8)


if __name__ == "__main__":
    received = weights(read_run_config({}))
    print(f"{received.size:,} weights, {4 * received.size:,} bytes")
    for bits in ROUNDING:
        cells = " | ".join(f"{capacity(received, bits, norm):,.0f}" for norm in NORMS)
        print(f"| {bits} | {cells} |")
