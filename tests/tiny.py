"""Run configs by the last part of their keys, data sets of arrays, and models that were saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from common.checkpoints import DESCRIPTION
from common.config.run_config import RunConfig, Value, known_keys
from common.data.dataset import Dataset, InMemory

_KEYS = {key.rpartition(".")[2].replace("-", "_"): key for key in known_keys()}


def run_config(values: Mapping[str, Value], **changes: Value) -> RunConfig:
    """Read a run config in which ``local_steps=3`` stands for ``training.local-steps = 3``."""
    assert len(_KEYS) == len(known_keys())  # no two keys end alike
    return RunConfig.from_flower(
        {**values, **{_KEYS.get(name, name): value for name, value in changes.items()}}
    )


def dataset(
    images: np.ndarray,
    labels: Any = None,
    persons: Iterable[str] = (),
    conditions: Iterable[Mapping[str, str]] = (),
) -> Dataset:
    """Images (N, *shape) in [0, 1], each of a person of its own where nobody is named."""
    labels = np.zeros(len(images)) if labels is None else labels
    names = tuple(persons) or tuple(f"sub-{k:03d}" for k in range(len(images)))
    assert len(labels) == len(names) == len(images)
    return Dataset(InMemory(images), np.asarray(labels, np.int64), names, tuple(conditions))


def load_model(folder: Path, model: Any) -> dict[str, Any]:
    """Load what `save_model` wrote into a model; return the description in the weights' file."""
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        model.load_state_dict({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
        return json.loads(tensors.metadata()[DESCRIPTION])
