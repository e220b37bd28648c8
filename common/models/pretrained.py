"""Weights of an EfficientNet from a file that somebody else made.

Only safetensors: to open a pickle runs whatever code its writer put there. Three namings are known,
and with each the details that the network was trained with:

=======================  ======  ==================================================
naming of                ε       what strided convolutions add to a side
=======================  ======  ==================================================
torchvision              1e-5    zeros at both ends
timm                     1e-5    zeros at both ends
EfficientNet-PyTorch     1e-3    zeros as in TensorFlow, where the weights are from
=======================  ======  ==================================================

timm's ``tf_efficientnet_*`` have its names and TensorFlow's details, and nothing in the file says
so: they load and work, though not exactly as trained. Take timm's ``efficientnet_b0`` or ``_b2``.

The head is taken if it has as many classes as are asked for, else left as it was built; everything
else has to be there, in its shape, and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from common.errors import ConfigError, FileError
from common.models.efficientnet import FrozenBatchNorm, PictureEfficientNet
from common.reading import read_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_FILE = 2**28  # bytes; EfficientNet-B2 in float64 has 73 million
ACCEPTED = (
    "accepted is a safetensors file of the same EfficientNet as torchvision, timm or "
    "EfficientNet-PyTorch names its tensors"
)
_HEAD = "_fc"
_COUNTS = ".num_batches_tracked"  # of BatchNorm: no weights
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Naming:
    """How a library names the modules of an EfficientNet, and what else it does its own way.

    Parameters
    ----------
    modules : mapping of str to str
        Its name of each module outside of the blocks, by MONAI's.
    block : callable
        Given a stage, a block's number in it, the block's number in all and whether the block
        expands: its name of each of the block's modules, by MONAI's.
    epsilon : float
        Of BatchNorm.
    same_padding : bool
        Whether padding is TensorFlow's.
    """

    modules: Mapping[str, str]
    block: Callable[[int, int, int, bool], dict[str, str]]
    epsilon: float
    same_padding: bool


def _torchvision(stage: int, number: int, _: int, expands: bool) -> dict[str, str]:
    at = f"features.{stage + 1}.{number}.block."
    k = int(expands)
    names = {
        "_depthwise_conv": f"{k}.0",
        "_bn1": f"{k}.1",
        "_se_reduce": f"{k + 1}.fc1",
        "_se_expand": f"{k + 1}.fc2",
        "_project_conv": f"{k + 2}.0",
        "_bn2": f"{k + 2}.1",
    }
    expansion = {"_expand_conv": "0.0", "_bn0": "0.1"} if expands else {}
    return {ours: at + theirs for ours, theirs in {**expansion, **names}.items()}


def _timm(stage: int, number: int, _: int, expands: bool) -> dict[str, str]:
    at, k = f"blocks.{stage}.{number}.", int(expands)
    names = {
        "_depthwise_conv": "conv_dw",
        "_bn1": f"bn{k + 1}",
        "_se_reduce": "se.conv_reduce",
        "_se_expand": "se.conv_expand",
        "_project_conv": "conv_pwl" if expands else "conv_pw",
        "_bn2": f"bn{k + 2}",
    }
    expansion = {"_expand_conv": "conv_pw", "_bn0": "bn1"} if expands else {}
    return {ours: at + theirs for ours, theirs in {**expansion, **names}.items()}


def _efficientnet_pytorch(_: int, __: int, place: int, expands: bool) -> dict[str, str]:
    names = ["_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2"]
    if expands:
        names += ["_expand_conv", "_bn0"]
    return {name: f"_blocks.{place}.{name}" for name in names}


_ENDS = ("_conv_stem", "_bn0", "_conv_head", "_bn1", _HEAD)  # MONAI's


def _ends(*names: str) -> dict[str, str]:
    return dict(zip(_ENDS, names, strict=True))


NAMINGS = {
    "torchvision": Naming(
        _ends("features.0.0", "features.0.1", "features.8.0", "features.8.1", "classifier.1"),
        _torchvision,
        epsilon=1e-5,
        same_padding=False,
    ),
    "timm": Naming(
        _ends("conv_stem", "bn1", "conv_head", "bn2", "classifier"),
        _timm,
        epsilon=1e-5,
        same_padding=False,
    ),
    "efficientnet-pytorch": Naming(
        _ends(*_ENDS), _efficientnet_pytorch, epsilon=1e-3, same_padding=True
    ),
}


def file_names(model: PictureEfficientNet, naming: Naming) -> dict[str, str]:
    """Return a file's name of each tensor of a pretrained network, by the name in its state."""
    found, place = _tensors(model.network, naming.modules, "network."), 0
    for stage, blocks in enumerate(model.network._blocks.named_children()):
        for number, (key, block) in enumerate(blocks[1].named_children()):
            names = naming.block(stage, number, place, block.expand_ratio != 1)
            found |= _tensors(block, names, f"network._blocks.{blocks[0]}.{key}.")
            place += 1
    return found


def load_pretrained(model: PictureEfficientNet, path: Path) -> bool:
    """Load a file into a network that was built for pretrained weights.

    Parameters
    ----------
    model : PictureEfficientNet
        Built with ``pretrained=True``; changed in place.
    path : Path
        May be a link, as in the caches of downloaded files.

    Returns
    -------
    bool
        Whether the head was taken, too.

    Raises
    ------
    ConfigError
        There is no such file, it is too large, no safetensors file, or holds other tensors than
        the network has, or numbers that no weights are. The public words hold no path, and no
        words hold a text read from the file.
    """
    tensors = _parse(path, _read(path))
    naming = next(
        (one for one in NAMINGS.values() if f"{one.modules['_conv_stem']}.weight" in tensors), None
    )
    if naming is None:
        raise _refused(path, "holds no EfficientNet under a known naming")
    state, wanted = model.state_dict(), file_names(model, naming)
    heads = [name for name in wanted if name.startswith(f"network.{_HEAD}.")]
    fits = all(_shape(tensors, wanted[name]) == tuple(state[name].shape) for name in heads)
    if not fits:
        for name in heads:  # of other classes, or of none
            tensors.pop(wanted.pop(name), None)
    _require_fit(path, tensors, wanted, state)
    for ours, theirs in wanted.items():
        state[ours] = _weights(path, ours, tensors[theirs], naming.epsilon)
    state["same_padding"] = torch.full((1,), float(naming.same_padding))
    model.load_state_dict(state)
    return fits


def _tensors(parent: nn.Module, names: Mapping[str, str], prefix: str) -> dict[str, str]:
    """A file's name of each tensor of some children of a module."""
    statistics = {"mean": "running_mean", "variance": "running_var"}
    found = {}
    for ours, theirs in names.items():
        module = getattr(parent, ours)
        renamed = statistics if isinstance(module, FrozenBatchNorm) else {}
        for tensor in module.state_dict():
            found[f"{prefix}{ours}.{tensor}"] = f"{theirs}.{renamed.get(tensor, tensor)}"
    return found


def _refused(path: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"pretrained weights '{path}': the file {problem}; {ACCEPTED}",
        public=f"the file of pretrained weights {problem}; {ACCEPTED}",
    )


def _read(path: Path) -> bytes:
    try:
        # The user names this file, not a folder with files of somebody else: it may be a link.
        return read_bytes(path.resolve(), limit=LARGEST_FILE)
    except FileNotFoundError:
        raise _refused(path, "does not exist") from None
    except FileError as error:
        raise _refused(path, error.problem) from None
    except (OSError, RuntimeError, ValueError):  # links in a circle, a NUL in the name
        raise _refused(path, "cannot be read") from None


def _parse(path: Path, raw: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(raw)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        raise _refused(
            path, "is no safetensors file (of a pickle from torch.save, make one first)"
        ) from None
    return {name: value for name, value in tensors.items() if not name.endswith(_COUNTS)}


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _require_fit(
    path: Path,
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, str],
    state: Mapping[str, Tensor],
) -> None:
    """Refuse a file of another network; whose names are told are the network's, not the file's."""
    missing = [name for name in wanted.values() if name not in tensors]
    unknown = len(tensors.keys() - set(wanted.values()))
    if missing:
        raise _refused(path, f"lacks {len(missing)} tensors of this network, such as {missing[0]}")
    if unknown:
        raise _refused(path, f"holds {unknown} tensors that this network does not have")
    for ours, theirs in wanted.items():
        got, needed = _shape(tensors, theirs), tuple(state[ours].shape)
        if got != needed:
            raise _refused(path, f"has {theirs} of shape {got}, where {needed} is needed")


def _weights(path: Path, name: str, tensor: Tensor, epsilon: float) -> Tensor:
    """Float32 of a tensor, a variance with BatchNorm's ε added."""
    if tensor.dtype not in _FLOATS:
        raise _refused(path, "holds numbers that are no floating-point weights")
    value = tensor.float()
    if not bool(value.isfinite().all()):
        raise _refused(path, "holds NaN or infinite numbers")
    if not name.endswith(".variance"):
        return value
    if bool((value < 0).any()):
        raise _refused(path, "holds a negative variance")
    return value + epsilon
