"""Feature extractors by name or by file, each with a hash that says exactly which network it is.

The defaults, `DEFAULTS`, are the project's own: ``fedscan-brain`` for axial slices of heads and
``fedscan-skin`` for colour photographs of skin lesions. Each is made by code, a module of
`common.evaluation.extractors`, in about half a minute when first asked for, and the cache keeps it.
They are trained on phantoms made by code, never on a picture of a real patient, with other seeds,
people and instruments than any cohort's, and they are validated on phantoms only. They know what
their module says and may be blind to what phantoms lack, such as real artefacts. Whoever judges
pictures of a real cohort by them learns how near they are in what the extractor knows, and no
more; for more, give a network trained on real pictures as a file (``--extractor FILE`` on the
command line, a path for `load_extractor`). The file may be:

- *safetensors*: weights of the project's own architecture, such as a copy of another machine's
  default. Only numbers are read.
- *TorchScript* (``torch.jit.save``), such as an Inception or a RadImageNet network. Such a file
  holds a program of its own. It is run by TorchScript's interpreter, not by Python, but it can do
  whatever TorchScript's operators can, files and memory included: name only files that you trust.

Nothing is ever unpickled by Python: a ``torch.save`` file is refused. A file is read once: what is
hashed is what is loaded.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import zipfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConfigError, FedscanError, FileError
from common.evaluation.extractors.network import MARKS, SIZE, PlaceNetwork
from common.evaluation.image_statistics import check_shape
from common.files import PRIVATE_FILE, make_folder, write_atomically, write_json
from common.reading import read_bytes, read_json, read_up_to

DEFAULTS = ("fedscan-brain", "fedscan-skin")  # each a module of `common.evaluation.extractors`
DEFAULT = DEFAULTS[0]
FOREIGN_SIZE, FOREIGN_CHANNELS = 299, 3  # Inception's, unless a file beside says otherwise
SMALLEST_SIZE, LARGEST_SIZE = 16, 1024  # pixels a side that a file beside may ask for
LARGEST_FILE = 2 * 2**30  # bytes: far above any network that turns slices into features
MOST_FEATURES = 8192  # of an image: their covariance has half a gibibyte

Images = Tensor | np.ndarray

_BATCH = 128
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extractor:
    """A network that turns images into features, and what it wants its images to be.

    Images of any resolution and of 1 to 4 channels are fitted to it: resized bilinearly with
    antialiasing to ``size``; a grey picture repeated where three channels are wanted, other numbers
    of channels averaged first.

    Parameters
    ----------
    name : str
        One of `DEFAULTS`, or the file's name.
    hash : str
        SHA-256 of the file's bytes, hexadecimal.
    network : nn.Module
    size : int
        Pixels a side that the network sees: what is finer, it does not judge.
    channels : int
        1 or 3.
    value_range : tuple of float
        What -1 and 1 become.
    """

    name: str
    hash: str
    network: nn.Module
    size: int = SIZE
    channels: int = 1
    value_range: tuple[float, float] = (-1.0, 1.0)

    def identity(self) -> dict[str, Any]:
        """What must stand beside every number that the features lead to."""
        fitted = {"size": self.size, "channels": self.channels, "range": list(self.value_range)}
        return {"name": self.name, "hash": self.hash, **fitted}

    @torch.no_grad()
    def features(self, images: Images) -> np.ndarray:
        """Features of images (N, C, R, R) in [-1, 1], clipped to it, as float64 (N, D).

        Raises
        ------
        FedscanError
            The images are not such images, or not finite.
        ConfigError
            The network makes more than `MOST_FEATURES`, as one that does not average over places.
        """
        images = _checked(images)
        if not bool(torch.isfinite(images).all()):
            raise FedscanError(
                "images to judge hold values that are not finite: the generator has diverged"
            )
        network = self.network.to(images.device)
        found = []
        for part in images.split(_BATCH):
            fitted = self._fit(part.clamp(-1, 1))
            if isinstance(network, PlaceNetwork):
                found.append(network.features(fitted))
            else:
                found.append(_first_tensor(network(fitted)).flatten(1).double())
            if (many := found[-1].shape[1]) > MOST_FEATURES:
                raise ConfigError(
                    f"the extractor's network gives {many:,} features of an image; accepted are up "
                    f"to {MOST_FEATURES:,}, so give one that averages over places"
                )
        return torch.cat(found).cpu().numpy()

    def require_features(self) -> None:
        """Judge two pictures, so that what cannot judge is refused before a training.

        Raises
        ------
        ConfigError
        """
        self.features(_ramps())

    def maps(self, images: Images) -> list[Tensor]:
        """Feature maps (N, C, h, w), differentiable with respect to the images.

        Of a TorchScript network they are its output, as one map of 1 x 1 where it has no places.
        """
        images = _checked(images)
        network = self.network.to(images.device)
        fitted = self._fit(images)
        if isinstance(network, PlaceNetwork):
            return network.maps(fitted)
        output = _first_tensor(network(fitted))
        return [output if output.ndim == 4 else output.flatten(1)[:, :, None, None]]

    def perceptual_distance(self, a: Images, b: Images) -> Tensor:
        """Distance of pairs of images, (N,), differentiable.

        As LPIPS (Zhang et al. 2018, eq. 1) with unit weights: feature maps normalised along the
        channels, squared difference, mean over places, sum over maps.
        """
        pairs = zip(self.maps(a), self.maps(b), strict=True)
        return sum(
            (_unit(left) - _unit(right)).square().sum(dim=1).mean(dim=(1, 2))
            for left, right in pairs
        )

    def _fit(self, images: Tensor) -> Tensor:
        """Images as the network wants them: (N, channels, size, size) in ``value_range``."""
        if images.shape[1] not in (1, self.channels):
            images = images.mean(dim=1, keepdim=True)
        images = images.expand(-1, self.channels, -1, -1)
        if images.shape[-1] != self.size:
            shape = (self.size, self.size)
            images = F.interpolate(images, size=shape, mode="bilinear", antialias=True)
        low, high = self.value_range
        return images if (low, high) == (-1, 1) else low + (images + 1) * ((high - low) / 2)


def load_extractor(name_or_path: str | Path = DEFAULT, cache: Path | None = None) -> Extractor:
    """Load an extractor by name, or from a file.

    Parameters
    ----------
    name_or_path : str or Path
        One of `DEFAULTS`, or a TorchScript or safetensors file of at most 2 GiB.
        What a TorchScript network wants is read from a JSON file of its name with ``.json``
        appended, where there is one: ``size`` (299; 16 to 1024), ``channels`` (3; 1 or 3) and
        ``range`` ([-1, 1]).
    cache : Path, optional
        Folder in which the default extractors are kept; by default the user's.

    Raises
    ------
    ConfigError
        No such name or file, or a file that is not accepted.
    """
    if (name := str(name_or_path)) in DEFAULTS:
        from common.paths import cache_dir

        return _default(name, cache_dir() if cache is None else Path(cache))
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"extractor '{name_or_path}': accepted are {', '.join(map(repr, DEFAULTS))} and the "
            "path of a TorchScript or safetensors file",
            public="the feature extractor does not exist",
        )
    raw = _read(path)
    digest = _sha256(raw)
    if zipfile.is_zipfile(io.BytesIO(raw)):
        return _torchscript(path, raw, digest)
    if (own := _own(path.name, raw)) is None:
        raise _refused(path, "it is neither TorchScript nor weights of the project's own network")
    return own


def recipe(name: str) -> ModuleType:
    """Module that makes and validates the default extractor of this name."""
    return import_module(f"common.evaluation.extractors.{name.removeprefix('fedscan-')}")


def _default(name: str, cache: Path) -> Extractor:
    """From the cache, or made under a lock: who comes second waits and finds it there."""
    from filelock import FileLock

    folder = cache / "extractors"
    version = recipe(name).version()
    weights = folder / f"{name}-{version}.safetensors"
    if (found := _cached(name, weights)) is not None:
        return found
    try:
        make_folder(folder)
        with FileLock(weights.with_suffix(".lock"), mode=PRIVATE_FILE):
            if (found := _cached(name, weights)) is None:
                raw = _make(name)
                write_atomically(weights, raw)
                about = {"name": name, "recipe": version, "sha256": _sha256(raw)}
                write_json(weights.with_suffix(".json"), {**about, "torch": torch.__version__})
                found = _cached(name, weights)
    except OSError as error:
        _log.warning("the extractor cannot be kept in the cache (%s): made anew", error.strerror)
        found = None
    return _own(name, _make(name)) if found is None else found


def _make(name: str) -> bytes:
    """Make a default extractor's file."""
    from safetensors.torch import save

    _log.info("making the feature extractor %s, once: about half a minute", name)
    return save(recipe(name).make_network().state_dict())


def _cached(name: str, weights: Path) -> Extractor | None:
    """A default extractor from its two files, or None where one is absent or damaged."""
    try:
        raw = read_bytes(weights, limit=LARGEST_FILE)
        about = read_json(weights.with_suffix(".json"))
    except (FileNotFoundError, FileError):
        return None
    return _own(name, raw) if about.get("sha256") == _sha256(raw) else None


def _own(name: str, raw: bytes) -> Extractor | None:
    """Extractor of the project's own network with these weights, or None for other bytes."""
    network = _from_safetensors(raw)
    if network is None:
        return None
    return Extractor(name, _sha256(raw), network, channels=network.channels)


def _from_safetensors(raw: bytes) -> PlaceNetwork | None:
    """The project's own network with these weights, or None if they are not its weights."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        weights = load(raw)
    except SafetensorError:
        return None
    for channels in MARKS:
        with torch.random.fork_rng(devices=[]):  # building draws weights that are replaced at once
            network = PlaceNetwork(channels)
        try:
            network.load_state_dict(weights)
        except (RuntimeError, KeyError):
            continue
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())
        return network.eval().requires_grad_(False) if finite else None
    return None


def _read(path: Path) -> bytes:
    """All of a file, unless it is too large: looked up first, as whoever reads may lack memory."""
    try:
        with path.open("rb") as file:
            large = os.fstat(file.fileno()).st_size > LARGEST_FILE
            raw = b"" if large else read_up_to(file, LARGEST_FILE)
    except OSError as error:
        raise _refused(path, f"it cannot be read ({error.strerror})") from None
    if large or len(raw) > LARGEST_FILE:  # it may have grown since
        raise _refused(path, f"it is too large: accepted are up to {LARGEST_FILE:,} bytes")
    return raw


def _torchscript(path: Path, raw: bytes, digest: str) -> Extractor:
    """Load a TorchScript archive; other archives of PyTorch are pickles and refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        raise _refused(path, "it is a damaged archive") from None
    if "constants.pkl" not in inside or not any(name.startswith("code/") for name in inside):
        raise _refused(
            path,
            "it is a pickle (torch.save), which could run any code; save the network with "
            "torch.jit.save(torch.jit.script(network)) or its weights as safetensors",
        )
    try:
        network = torch.jit.load(io.BytesIO(raw), map_location="cpu").eval()
    except RuntimeError as error:
        raise _refused(path, str(error).strip().splitlines()[-1]) from None
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    extractor = Extractor(path.name, digest, network, **_wanted(path))
    try:
        with torch.no_grad():
            maps = extractor.maps(_ramps())[0]
    except (RuntimeError, ValueError, TypeError, IndexError, FedscanError) as error:
        last = (str(error).strip() or "it fails").splitlines()[-1]
        wanted = f"{extractor.channels} × {extractor.size} × {extractor.size}"
        raise _refused(
            path,
            f"of two pictures of {wanted} it makes nothing ({last}). {path.name}.json says which "
            "size and channels it wants",
        ) from None
    if len(maps) != 2 or not maps.numel() or not bool(torch.isfinite(maps).all()):
        raise _refused(path, "of two pictures it makes no two rows of finite features")
    return extractor


def _wanted(path: Path) -> dict[str, Any]:
    """What a TorchScript network wants its images to be, from the JSON file beside it."""
    beside = path.with_name(path.name + ".json")
    try:
        # Whoever names a link means what it leads to: this is a user's own folder.
        told = read_json(beside.resolve()) if beside.exists() else {}
        size = int(told.get("size", FOREIGN_SIZE))
        channels = int(told.get("channels", FOREIGN_CHANNELS))
        low, high = (float(value) for value in told.get("range", (-1, 1)))
    except (FileError, OSError, RuntimeError, ValueError, TypeError, OverflowError):
        size = 0  # RuntimeError: a circle of links
    sized = SMALLEST_SIZE <= size <= LARGEST_SIZE
    if not sized or channels not in (1, 3) or not -math.inf < low < high < math.inf:
        raise _refused(
            path,
            f"{beside.name}: accepted are size ({SMALLEST_SIZE} to {LARGEST_SIZE} pixels), "
            "channels (1 or 3), range [low, high]",
        )
    return {"size": size, "channels": channels, "value_range": (low, high)}


def _refused(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"extractor file '{path}' is refused: {why}", public="the extractor's file is refused"
    )


def _ramps() -> Tensor:
    """Two pictures of every grey, (2, 1, R, R): a network may divide by their SD."""
    side = SMALLEST_SIZE
    ramp = torch.linspace(-1, 1, side * side).view(1, 1, side, side)
    return torch.cat([ramp, ramp.flip(-1)])


def _checked(images: Images) -> Tensor:
    """Images as a float32 tensor, where their shape is accepted."""
    images = torch.as_tensor(images)
    check_shape(images.shape)
    return images.to(torch.float32)


def _first_tensor(output: Any) -> Tensor:
    """Output of a foreign network: a tensor, or the first of several."""
    while isinstance(output, list | tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise FedscanError("the extractor's network returns no tensor (N, …)")
    return output


def _unit(maps: Tensor) -> Tensor:
    """Maps (N, C, h, w) of unit length along the channels."""
    return maps * (maps.square().sum(dim=1, keepdim=True) + 1e-8).rsqrt()


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
