"""Weights on disk: safetensors with a JSON sidecar, written whole, loaded strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import FedscanError
from common.files import write_atomically, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn


def save_model(folder: Path, state: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write ``model.safetensors`` and ``model.json`` into a folder.

    Parameters
    ----------
    folder : Path
    state : dict of str to Tensor
        A state dict. The same state gives the same bytes.
    description : dict
        What is needed to build the model again (task, classifier, image size, …), JSON values.
    """
    from safetensors.torch import save

    write_atomically(
        folder / "model.safetensors", save({k: v.contiguous() for k, v in state.items()})
    )
    write_json(folder / "model.json", description)


def load_model(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Load ``model.safetensors`` into a model, strictly, and return the sidecar.

    Raises
    ------
    FedscanError
        If a file is missing or broken, or names or shapes do not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        description = json.loads((folder / "model.json").read_text())
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise FedscanError(
            f"{folder}: no model that fits could be loaded ({error}). A run folder with a whole "
            "model.safetensors and model.json is needed, made with the same model settings"
        ) from error
    return description
