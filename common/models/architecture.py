"""The shape of a StyleGAN2: everything that decides which weights fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURE_VERSION = 1  # raise it with any change after which old weights mean something else

# A checkpoint's sidecar says sizes, and networks are allocated before its weights are seen: what
# somebody else wrote must not be able to ask for all memory.
BOUNDS = {
    "channels": (1, 4),
    "channel_base": (1, 2**17),
    "channel_max": (1, 1024),
    "z_dim": (1, 4096),
    "w_dim": (1, 4096),
    "mapping_layers": (1, 16),
    "label_layers": (0, 16),
    "minibatch_group": (1, 64),
    "noise_seed": (0, 2**53),
}
LARGEST_LABEL = 1024  # entries


@dataclass(frozen=True)
class Architecture:
    """Sizes of generator and discriminator, and the labels that condition them.

    Parameters
    ----------
    resolution : int
        Sides of the pictures: a power of two from 16 to 1024.
    channels : int
        Channels of the pictures, 1 to 4.
    labels : tuple of (str, tuple of str)
        Kinds of labels with their values, ``(("sex", ("F", "M")), ("site", ("north", "south")))``;
        empty: unconditional.
    channel_base, channel_max : int
        Activations at resolution r have min(channel_base // r, channel_max) channels.
    z_dim, w_dim : int
        Sizes of latents and styles.
    mapping_layers : int
        Layers from z to w.
    label_layers : int
        Layers from a label to the discriminator's projection; 0: its embedding alone.
    minibatch_group : int
        Images whose deviation the discriminator sees.
    noise_seed : int
        Decides the fixed noise pictures, so that every site has the same.

    Raises
    ------
    ConfigError
        For a size that no network can have, or one above ``BOUNDS``.
    """

    resolution: int = 32
    channels: int = 1
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    channel_base: int = 4096
    channel_max: int = 64
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 2
    label_layers: int = 8
    minibatch_group: int = 4
    noise_seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "labels" and (type(value) is not int or value < 0):
                raise ConfigError(f"{field.name} = {value!r}: accepted is a whole number from 0")
        if self.resolution not in (16, 32, 64, 128, 256, 512, 1024):
            raise ConfigError(
                f"resolution = {self.resolution}: accepted are the powers of two from 16 to 1024"
            )
        for name, (least, most) in BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} = {getattr(self, name)}: accepted is {least} to {most}")
        if self.channel_base < self.resolution:
            raise ConfigError(
                f"channel_base = {self.channel_base} leaves no channel at {self.resolution} "
                f"pixels: accepted is {self.resolution} or more"
            )
        kinds = [kind for kind, _ in self.labels]
        if len(set(kinds)) < len(kinds):
            raise ConfigError(f"labels: a kind is named twice ({', '.join(kinds)})")
        for kind, values in self.labels:
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"labels: '{kind}' needs values, each named once")
        if self.label_dim > LARGEST_LABEL:
            raise ConfigError(
                f"labels: {self.label_dim} values in all, accepted is {LARGEST_LABEL} at most"
            )

    @property
    def resolutions(self) -> list[int]:
        """4, 8, … up to the resolution of the pictures."""
        return [1 << power for power in range(2, self.resolution.bit_length())]

    @property
    def num_ws(self) -> int:
        """Styles that an image takes: one a convolution, and one for the last picture layer."""
        return 2 * len(self.resolutions)

    @property
    def label_dim(self) -> int:
        """Entries of a label: one-hot vectors of all kinds, joined."""
        return sum(len(values) for _, values in self.labels)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that weights depend on to mean what they mean."""
        text = json.dumps([ARCHITECTURE_VERSION, self.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def width(self, resolution: int) -> int:
        """Channels of the activations at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    def noise(self, resolution: int) -> list[Tensor]:
        """Fixed noise pictures of a resolution: one at 4 pixels, two above, (R, R) each."""
        import numpy as np
        import torch

        rng = np.random.default_rng([self.noise_seed, resolution])
        shape = (1 if resolution == 4 else 2, resolution, resolution)
        # Two own copies: safetensors refuses tensors that share memory.
        return [torch.from_numpy(one.copy()) for one in rng.standard_normal(shape, np.float32)]

    def to_json(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_json` reads."""
        return {
            **asdict(self),
            "labels": [[kind, list(values)] for kind, values in self.labels],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Architecture:
        """Build from plain values.

        Raises
        ------
        ConfigError
            For unknown or missing entries, and as the constructor.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != known:
            strange = sorted(set(values) ^ known) if isinstance(values, Mapping) else []
            raise ConfigError(f"architecture: unknown or missing entries: {', '.join(strange)}")
        try:
            labels = tuple((str(kind), tuple(map(str, names))) for kind, names in values["labels"])
        except (TypeError, ValueError) as error:
            raise ConfigError("architecture: labels are kinds, each with its values") from error
        return cls(**{**values, "labels": labels})


def encode_labels(architecture: Architecture, rows: Sequence[Mapping[str, str]]) -> Tensor:
    """Turn labels into what the networks take.

    Parameters
    ----------
    architecture : Architecture
    rows : sequence of mapping
        For each image, the value of each kind: ``{"sex": "F", "site": "north"}``. A kind that a
        row does not name gets zeros.

    Returns
    -------
    Tensor
        (N, label_dim), float32.

    Raises
    ------
    ConfigError
        For a kind or a value that the networks do not know.
    """
    import torch

    columns, count = {}, 0
    for kind, values in architecture.labels:
        for value in values:
            columns[kind, value] = count
            count += 1
    encoded = torch.zeros(len(rows), count)
    for number, row in enumerate(rows):
        for entry in row.items():
            if entry not in columns:
                raise ConfigError(f"label {'='.join(entry)}: accepted is {_accepted(architecture)}")
            encoded[number, columns[entry]] = 1
    return encoded


def _accepted(architecture: Architecture) -> str:
    if not architecture.labels:
        return "none: this model is unconditional"
    return "; ".join(f"{kind} = {' or '.join(values)}" for kind, values in architecture.labels)
