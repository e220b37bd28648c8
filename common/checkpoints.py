"""Weights on disk: safetensors with a JSON sidecar, written whole, loaded strictly.

Never a pickle: to open one runs whatever code its writer put there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import FedscanError
from common.files import without_nan, write_atomically, write_json
from common.reading import LARGEST_WEIGHTS, open_plain, parse_json, read_bytes, read_json

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "model.safetensors"
DESCRIPTION = "description"  # key of a model's own metadata: the sidecar once more, as JSON
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib")


def save_model(folder: Path, state: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write ``model.safetensors`` and ``model.json`` into a folder.

    The description is in both: in the weights' own metadata, so that a file of weights says which
    they are even where the process ends before the sidecar is replaced; and in the sidecar, for
    people and programs that open no tensors.

    Parameters
    ----------
    folder : Path
    state : dict of str to Tensor
        A state dict. The same state gives the same bytes.
    description : dict
        What is needed to build the model again (task, classifier, image size, …), JSON values.
    """
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    # One key, for safetensors writes several in any order, and the same state is the same bytes.
    metadata = {DESCRIPTION: json.dumps(without_nan(description), allow_nan=False)}
    write_atomically(folder / MODEL, save(tensors, metadata))
    write_json(folder / "model.json", description)


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what :func:`save_model` wrote: the weights, and what their own file says of them.

    Raises
    ------
    FedscanError
        There is none, it is a pickle, or no file of :func:`save_model`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    needed = f"A folder with the {MODEL} of a fedscan run is needed"
    _require_no_pickle(folder, needed)
    if not folder.is_dir():
        raise FedscanError(f"{folder}: there is no such folder. {needed}")
    try:
        raw = read_bytes(folder / MODEL, limit=LARGEST_WEIGHTS)
    except FileNotFoundError:
        raise FedscanError(
            f"{folder}: no model is here, for {MODEL} is missing{_pickles_in(folder)}. "
            f"{_inside(folder, MODEL) or needed}"
        ) from None
    try:
        tensors = load(raw)  # first, for it judges the header
        header = parse_json(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        description = parse_json(header["__metadata__"][DESCRIPTION].encode())
        if not isinstance(description, dict):
            raise ValueError("no object")
    except (SafetensorError, LookupError, AttributeError, TypeError, ValueError, RuntimeError):
        raise FedscanError(f"{folder}: its {MODEL} is damaged or not fedscan's. {needed}") from None
    return description, tensors


def save_snapshot(
    folder: Path,
    name: str,
    state: dict[str, Tensor],
    description: dict[str, Any],
) -> None:
    """Replace a folder's snapshot by another, in one instant.

    The tensors go to ``NAME-HASH.safetensors``, a file that nobody knows yet; then ``NAME.json``,
    which names it, is replaced; then older tensors are removed. Whenever the process ends, the
    sidecar and the tensors that it names belong together.

    Parameters
    ----------
    folder : Path
    name : str
    state : dict of str to Tensor
        Contiguous. The same state gives the same bytes.
    description : dict
        JSON values; a key ``weights`` is added.
    """
    from safetensors.torch import save

    data = save(state)
    digest = hashlib.sha256(data).hexdigest()
    weights = f"{name}-{digest[:16]}.safetensors"
    write_atomically(folder / weights, data)
    about = {**description, "weights": {"file": weights, "sha256": digest}}
    write_json(folder / f"{name}.json", about)
    for old in folder.glob(f"{name}-*.safetensors"):
        if old.name != weights:
            old.unlink(missing_ok=True)


def read_description(folder: Path, name: str) -> dict[str, Any]:
    """Read the sidecar of a snapshot.

    Parameters
    ----------
    folder : Path
        The folder, or a file of the snapshot in it.
    name : str

    Raises
    ------
    FedscanError
        If there is none, it is broken, or what is there is a pickle.
    """
    wanted = f"{name}.json"
    _require_no_pickle(folder, f"A folder with {wanted} and its .safetensors is needed")
    if not folder.exists():
        raise FedscanError(f"{folder}: there is no such folder. One with {wanted} is needed")
    path = folder / wanted if folder.is_dir() else folder.with_name(wanted)
    try:
        description = read_json(path, remedy="Restore the checkpoint's sidecar, or train anew")
    except FileNotFoundError as error:
        way_out = _inside(path.parent, wanted)
        raise FedscanError(
            f"{path.parent}: no checkpoint is here, for {wanted} is missing"
            f"{_pickles_in(path.parent)}. "
            f"{way_out or 'A run that failed has none; name the folder of one that has ended'}"
        ) from error
    if not isinstance(description.get("weights"), dict):
        raise FedscanError(
            f"{path}: this is no sidecar of a checkpoint, since it names no weights. Name the "
            "folder in which a training kept its checkpoint"
        )
    return description


def read_snapshot(
    folder: Path, name: str, prefixes: tuple[str, ...] = ("",)
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a snapshot's sidecar and those of its tensors whose names begin in one of some ways.

    Raises
    ------
    FedscanError
        As :func:`read_description`; and if the tensors are missing or not those that were written.
    """
    from safetensors import SafetensorError, safe_open

    description = read_description(folder, name)
    parent = folder if folder.is_dir() else folder.parent
    file, digest = (str(description["weights"].get(key)) for key in ("file", "sha256"))
    path = parent / Path(file).name  # a sidecar may name files beside it, no others
    shown = path if path.name.isprintable() else parent / f"{name}.json"
    try:
        with open_plain(path, limit=LARGEST_WEIGHTS) as stream:
            whole = hashlib.file_digest(stream, "sha256").hexdigest() == digest
        if whole:
            with safe_open(path, "pt") as tensors:
                chosen = [key for key in tensors.keys() if key.startswith(prefixes)]  # noqa: SIM118
                return description, {key: tensors.get_tensor(key) for key in chosen}
    except (SafetensorError, ValueError):  # ValueError: no file can have that name
        pass
    except OSError as error:
        if read_description(folder, name) != description:  # replaced between the two readings
            return read_snapshot(folder, name, prefixes)
        raise FedscanError(
            f"{shown}: the checkpoint's tensors cannot be read ({type(error).__name__}). Copy all "
            f"of the folder: {name}.json and the .safetensors that it names belong together"
        ) from error
    raise FedscanError(
        f"{shown}: the checkpoint is damaged, since the file is not the one that {name}.json was "
        "written with. Restore both, or train anew"
    )


def _require_no_pickle(path: Path, needed: str) -> None:
    if path.suffix.lower() in PICKLES:
        raise FedscanError(
            f"{path}: this is a pickle, which fedscan never opens, for opening one runs the code "
            f"in it. {needed}"
        )


def _pickles_in(folder: Path) -> str:
    others = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
    return f"; {others[0]} is a pickle, which fedscan never opens" if others else ""


def _inside(folder: Path, wanted: str) -> str:
    """Name the newest of the folders inside one that hold a file."""
    found = sorted(folder.glob(f"*/{wanted}"), key=lambda path: path.stat().st_mtime)
    return (
        f"Name {found[-1].parent}, or another folder in which a training kept its model"
        if found
        else ""
    )
