"""Configuration of a StyleGAN2-ADA training: frozen, validated once, with presets by resolution.

Sources: StyleGAN, Karras et al. 2019, arXiv 1812.04948; StyleGAN2, Karras et al. 2020,
arXiv 1912.04958; ADA, Karras et al. 2020, arXiv 2006.06676; R1, Mescheder et al. 2018,
arXiv 1801.04406; DSGAN, Yang et al. 2019, arXiv 1901.09024.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from common.errors import ConfigError
from common.models.architecture import Architecture
from common.settings import Fraction, NonNegative, Positive, Settings
from common.studies.sections import HEIGHT, SITE

if TYPE_CHECKING:
    pass

KIND = re.compile(r"[^\s,=][^,=]{0,199}")  # a label's kind: the name of a condition
MOST_KINDS = 16


class GanConfig(Settings):
    """Everything that decides a generator's training, apart from the scans and the code.

    Build it from a preset, ``PRESETS["tiny-32"]``, and :meth:`with_changes`, or from a mapping of
    kebab-case keys with :meth:`from_mapping`.
    """

    what: ClassVar[str] = "GAN config"

    # What is learned.
    resolution: int = Field(32, ge=16, le=1024, description="R, pixels a side, a power of two")
    channels: int = Field(1, ge=1, le=4, description="1: gray, 3: colour")
    label_kinds: tuple[str, ...] = Field(
        ("sex",),
        description="labels of a slice that condition both networks (ADA, section 4)",
        json_schema_extra={"accepted": "none, or names of conditions, as in 'sex,site'"},
    )
    mirror: bool = Field(
        True, description="each slice also as its mirror image, a data set twice as large (ADA, 4)"
    )

    # The networks: their sizes (StyleGAN2, appendix B; ADA, figure 24).
    channel_base: int = Field(
        4096, ge=64, le=2**17, description="channels at resolution r: min(base // r, max)"
    )
    channel_max: int = Field(64, ge=4, le=1024, description="most channels at any resolution")
    z_dim: int = Field(
        512, ge=1, le=4096, description="dimension of the latent space Z (StyleGAN, 2)"
    )
    w_dim: int = Field(
        512, ge=1, le=4096, description="dimension of the latent space W (StyleGAN, 2)"
    )
    mapping_layers: int = Field(2, ge=1, le=16, description="layers of f: Z → W; ADA 2 or 8")
    minibatch_group: int = Field(
        4, ge=1, le=64, description="images over which D sees a standard deviation (StyleGAN2, B)"
    )

    # Budget.
    batch_size: int = Field(16, ge=1, le=4096, description="images an iteration")
    kimg: Positive = Field(80.0, le=1e6, description="length: thousands of real images shown to D")

    # Adam (StyleGAN2, appendix B: the same for both networks).
    generator_learning_rate: Positive = Field(
        0.0025, le=1.0, description="λ of G; StyleGAN2: 0.002"
    )
    discriminator_learning_rate: Positive = Field(
        0.0025, le=1.0, description="λ of D; StyleGAN2: 0.002"
    )
    beta1: float = Field(0.0, ge=0, lt=1, description="Adam's β₁ (StyleGAN2, B)")
    beta2: float = Field(0.99, ge=0, lt=1, description="Adam's β₂ (StyleGAN2, B)")

    # Regularisation.
    r1_gamma: NonNegative = Field(
        0.0128, le=1e4, description="γ of R1 (R1, eq. 9); grows with R² / batch-size; 0: none"
    )
    r1_interval: int = Field(
        16, ge=1, le=10_000, description="k of D: iterations between R1 steps (StyleGAN2, B)"
    )
    path_weight: NonNegative = Field(
        2.0, le=1e4, description="weight of path-length regularisation (StyleGAN2, eq. 4); 0: none"
    )
    path_interval: int = Field(
        4,
        ge=1,
        le=10_000,
        description="k of G: iterations between path-length steps (StyleGAN2, B)",
    )
    path_batch_shrink: int = Field(
        2,
        ge=1,
        le=64,
        description="a path-length step takes batch-size / this images (StyleGAN2, B)",
    )
    path_decay: Positive = Field(
        0.01,
        le=1.0,
        description="weight of the newest mean in a, the running path length (StyleGAN2, B)",
    )
    style_mixing: Fraction = Field(
        0.9, description="share of images made of two latents (StyleGAN, 3.1)"
    )
    diversity_weight: NonNegative = Field(
        0.0,
        le=1e4,
        description="weight of G's cost for slices of one label that are more alike than real "
        "ones (DSGAN, eq. 2); 0: none, and so where no two slices share their labels",
    )

    # Average of the generator: the network that makes the pictures.
    ema_kimg: NonNegative = Field(
        5.0, le=1e4, description="half-life of G's average in thousands of images; StyleGAN2: 10"
    )
    ema_rampup: NonNegative = Field(
        0.05, le=1.0, description="half-life at most this share of the images seen; 0: no ramp-up"
    )

    # Adaptive discriminator augmentation (ADA).
    augment: Literal["adaptive", "fixed", "off"] = Field(
        "adaptive", description="adaptive: p follows D's overfitting; fixed: p stays augment-p"
    )
    augment_p: Fraction = Field(0.0, description="p, strength of augmentation, at the start")
    augment_steps: Literal["b", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"] = Field(
        "bgc",
        description="blitting, geometry, colour, filter, noise, cutout (ADA, appendix B): "
        "the first so many",
    )
    ada_target: float = Field(
        0.6, ge=-1, le=1, description="target of r_t = E[sign D(real)] (ADA, 3.1)"
    )
    ada_interval: int = Field(
        4, ge=1, le=10_000, description="iterations between two changes of p (ADA, 3.1)"
    )
    ada_kimg: Positive = Field(
        500.0, le=1e6, description="thousands of images in which p can go from 0 to 1 (ADA, 3.1)"
    )

    # How it is computed.
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of the larger convolutions; auto: float32 on CPUs, a half type on GPUs",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU if there is one"
    )
    threads: int = Field(1, ge=1, le=256, description="CPU threads: part of the result's bits")
    seed: int = Field(0, ge=0, le=2**53, description="decides every random draw")
    log_every: int = Field(
        50, ge=1, le=10**6, description="iterations between two lines of the log"
    )
    snapshot_every: int = Field(
        500, ge=1, le=10**7, description="iterations between two checkpoints with a grid of images"
    )

    @field_validator("resolution")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("not a power of two")  # put into words by accepted_values
        return value

    @model_validator(mode="after")
    def _groups(self) -> GanConfig:
        if self.batch_size > self.minibatch_group and self.batch_size % self.minibatch_group:
            raise ValueError(
                f"batch-size {self.batch_size} is no multiple of minibatch-group "
                f"{self.minibatch_group}: make it one, or smaller than the group"
            )
        return self

    @field_validator("label_kinds", mode="before")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        """Read ``"sex,site"``, a flat mapping's way to say a list, or a list."""
        if isinstance(value, str):
            value = [kind.strip() for kind in value.split(",")] if value not in ("", "none") else []
        if isinstance(value, list | tuple):
            named = all(isinstance(kind, str) and KIND.fullmatch(kind) for kind in value)
            if not named or len(set(value)) < len(value) or len(value) > MOST_KINDS:
                raise ValueError("not names of conditions")
            return tuple(sorted(value, key=_rank))  # one order: one network
        return value

    @field_serializer("label_kinds")
    def _flat_kinds(self, value: tuple[str, ...]) -> str:
        return ",".join(value) or "none"

    @property
    def total_steps(self) -> int:
        """Iterations that show ``kimg`` thousand real images."""
        return math.ceil(self.kimg * 1000 / self.batch_size)

    def with_changes(self, changes: Mapping[str, Any]) -> GanConfig:
        """Return a copy in which some kebab-case keys have other values.

        Raises
        ------
        ConfigError
            As :meth:`from_mapping`.
        """
        return type(self).from_mapping({**self.to_mapping(), **changes})

    def architecture(self, values: Mapping[str, Sequence[str]] | None = None) -> Architecture:
        """Sizes of the networks.

        Parameters
        ----------
        values : mapping of str to sequence of str, optional
            For each kind in ``label_kinds`` the values it can take, in a federation those of all
            sites: see :func:`label_values`. They are sorted.

        Raises
        ------
        ConfigError
            If a kind has no values.
        """
        labels = tuple((kind, _in_order((values or {}).get(kind, ()))) for kind in self.label_kinds)
        if empty := [kind for kind, found in labels if not found]:
            raise ConfigError(
                f"label-kinds = {','.join(self.label_kinds)}: the values of {empty[0]} are not "
                "known. Give those of all sites, or set label-kinds to none"
            )
        return Architecture(
            resolution=self.resolution,
            channels=self.channels,
            labels=labels,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            z_dim=self.z_dim,
            w_dim=self.w_dim,
            mapping_layers=self.mapping_layers,
            minibatch_group=self.minibatch_group,
            noise_seed=self.seed,
        )


def label_values(
    rows: Sequence[Mapping[str, str]], kinds: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Values that each kind of label, or every one, takes in a set of images, sorted."""
    kinds = kinds or sorted({kind for row in rows for kind in row}, key=_rank)
    return {kind: _in_order({row[kind] for row in rows if kind in row}) for kind in kinds}


def _in_order(values: Iterable[str]) -> tuple[str, ...]:
    """Sort numbers as numbers, before words, of which "nan" and "inf" are some."""

    def key(value: str) -> tuple[bool, float, str]:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        return (False, number, value) if math.isfinite(number) else (True, 0.0, value)

    return tuple(sorted(values, key=key))


def _rank(kind: str) -> tuple[bool, bool, str]:
    return kind == SITE, kind == HEIGHT, kind
