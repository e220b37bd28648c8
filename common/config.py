"""The run configuration: frozen, validated once, the same object on the server and at every site.

Flower hands both sides a flat mapping of kebab-case keys to bool, int, float or str. This module is
its only reader: everything behind it works with :class:`RunConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from common.settings import NonNegative, Positive, Settings

if TYPE_CHECKING:
    from common.training.gan_config import GanConfig

_ABSOLUTE = {
    "accepted": "an absolute path or nothing, since Flower runs the app in the folder where its "
    "SuperLink was started, not in yours"
}
# What suits a task, where the run config leaves it open with 0 or "auto".
_SUITABLE: dict[str, dict[str, int | str]] = {
    "classification": {
        "num-server-rounds": 45,
        "local-steps": 40,
        "batch-size": 16,
        "evaluate-every": 1,
        "weighting": "images",
    },
    "generation": {
        "num-server-rounds": 300,
        "local-steps": 8,
        "batch-size": 4,
        "evaluate-every": 30,
        "weighting": "uniform",
    },
}

OF_SLICES = ("slices", "gan-features")  # classifiers that see stacks of slices, not cubes
OF_CLASSIFICATION = (  # generation has its own of these, as keys of `gan-changes`, or none
    *("learning-rate", "weight-decay", "label-smoothing", "augment", "image-size", "classifier"),
    *("feature-layer", "features", "heights", "adapt", "gan-checkpoint"),
)


class RunConfig(Settings):
    """Everything that decides a run's result, apart from the scans and the code.

    What is left open (0 rounds, steps or images, ``weighting = "auto"``) takes the value that suits
    the task, so an object has none of these; ``server_learning_rate`` stays open until it is known
    how many sites take part.

    The defaults are those of ``[tool.flwr.app.config]`` in pyproject.toml, which Flower needs
    to know the keys; a test holds the two together. Build it with :meth:`from_flower`.
    """

    what: ClassVar[str] = "run config"

    task: Literal["classification", "generation"] = Field(
        "classification", description="what is learned"
    )
    cohort_dir: str = Field(
        "",
        description="simulation: absolute folder with one BIDS data set a site; "
        "empty: a phantom cohort in the user's cache",
        json_schema_extra=_ABSOLUTE,
    )
    output_dir: str = Field(
        "",
        description="absolute folder for run folders; empty: runs/ in the user's data folder",
        json_schema_extra=_ABSOLUTE,
    )
    strategy: Literal["fedavg", "fedprox"] = Field("fedavg", description="how updates are merged")
    proximal_mu: NonNegative = Field(
        0.0, description="FedProx: weight of the pull towards the round's global model"
    )
    weighting: Literal["auto", "images", "uniform", "distance"] = Field(
        "auto",
        description="a site's weight in the average: its training scans; one site one vote; or the "
        "inverse of its kernel distance (generation); auto: images, in generation uniform",
    )
    server_learning_rate: NonNegative = Field(
        0.0,
        le=10.0,
        description="length of the server's step along the average; 0: as suits the task: 1, in "
        "generation the root of the number of sites",
    )
    server_momentum: float = Field(
        0.0, ge=0, lt=1, description="of the server's steps (FedAvgM); 0: none"
    )
    most_share: float = Field(
        0.8,
        gt=0,
        le=1,
        description="of two or more sites' votes in the average, the largest share that one may "
        "have, however many scans it says it has; 1: any",
    )
    most_norm: NonNegative = Field(
        10.0,
        le=1e6,
        description="length of a site's update in medians of the other sites', from which on it "
        "is shortened; 0: any",
    )
    transport: Literal["float32", "float16", "int8"] = Field(
        "float32",
        description="how weights travel; float16: a site's update as differences of that type; "
        "int8: the server's broadcast too; with error feedback",
    )
    num_server_rounds: int = Field(
        0, ge=0, le=100_000, description="communication rounds; 0: as many as suit the task"
    )
    local_steps: int = Field(
        0, ge=0, le=1_000_000, description="optimizer steps a site and round; 0: as suits the task"
    )
    batch_size: int = Field(
        0, ge=0, le=4096, description="images an optimizer step at a site; 0: as suits the task"
    )
    evaluate_every: int = Field(
        0, ge=0, le=100_000, description="rounds between two validations; 0: as suits the task"
    )
    learning_rate: Positive = Field(1e-3, le=10.0, description="AdamW's peak, cosine-decayed")
    weight_decay: NonNegative = Field(0.3, le=10.0, description="AdamW's decoupled weight decay")
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a label that is spread over both classes (arXiv 1512.00567, section "
        "7), so that correctly classified scans keep a gradient",
    )
    augment: Literal["all", "none"] = Field(
        "all", description="what training varies of a head: side, place and contrast, or nothing"
    )
    image_size: int = Field(48, ge=16, le=256, description="voxels a side of the prepared cube")
    classifier: Literal["small", "efficientnet-b2", "slices", "gan-features"] = Field(
        "small",
        description="small: GroupNorm CNN for CPUs; efficientnet-b2: MONAI's, in 3-D; slices: CNN "
        "of axial slices; gan-features: a discriminator's features of slices, then a linear layer",
    )
    gan_checkpoint: str = Field(
        "",
        description="gan-features: absolute folder, at the server, of the run or training whose "
        "discriminator it begins with; empty: an untrained one",
        json_schema_extra=_ABSOLUTE,
    )
    feature_layer: int = Field(
        0,
        ge=0,
        le=6,  # of a discriminator of 256 pixels
        description="gan-features: the discriminator's layer whose activations, averaged over "
        "cells, are the features; 0: its first convolution, of single pixels; n: its nth block",
    )
    features: Literal["frozen", "tuned"] = Field(
        "frozen", description="gan-features: whether the discriminator's weights are trained on"
    )
    heights: Literal["generated", "whole-head"] = Field(
        "generated",
        description="slices and gan-features: the axial slices of a head that they see, the five "
        "that generators make, or twelve from the temporal lobes to the crown",
    )
    adapt: Literal["none", "center"] = Field(
        "none",
        description="slices and gan-features: center takes a site's own mean out of the features "
        "of its scans (after AdaBN, arXiv 1603.04779, but with both sexes counting as much)",
    )
    gan: str = Field("tiny-32-federated", description="generation: preset of the StyleGAN2-ADA")
    gan_changes: str = Field(
        "",
        description="generation: keys of the preset that differ, as in "
        "'r1-gamma=0.1 label-kinds=sex,site'",
    )
    share: Literal["both", "generator"] = Field(
        "both", description="generation: both networks travel, or each site keeps its discriminator"
    )
    extractor: str = Field(
        "fedscan-brain",
        description="generation: what judges pictures, a name or an absolute path at each site",
    )
    seed: int = Field(0, ge=0, le=2**53, description="decides every random draw of the run")
    device: Literal["auto", "cpu"] = Field(
        "auto", description="auto: the GPU share that Ray grants, else the CPU; cpu: never a GPU"
    )
    threads: int = Field(
        1, ge=1, le=256, description="CPU threads a site computes with: part of the result's bits"
    )
    min_sites: int = Field(
        2, ge=1, le=10_000, description="the server starts when this many sites are connected"
    )
    site_nodes: str = Field(
        "",
        description="which SuperNode each site is, as in 'north:1234 south:5678', where SuperNodes "
        "are registered with keys; others are not asked",
        json_schema_extra={
            "accepted": "pairs SITE:NODE with blanks between them, as in 'north:1234 south:5678', "
            "each site and each node once, or nothing"
        },
    )
    connect_timeout: Positive = Field(
        600.0, le=1e6, description="seconds that the server waits for min-sites"
    )
    reply_timeout: Positive = Field(
        3600.0, le=1e6, description="seconds that a site may take to answer one message"
    )

    @model_validator(mode="before")
    @classmethod
    def _suit_the_task(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        for key, suitable in _SUITABLE.get(str(values.get("task", "classification")), {}).items():
            name = key.replace("-", "_")
            given = key if key in values or name not in values else name
            left_open = values.get(given, cls.model_fields[name].default)
            if left_open == cls.model_fields[name].default and type(left_open) is type(suitable):
                values[given] = suitable
        return values

    @field_validator("cohort_dir", "output_dir", "gan_checkpoint")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and not Path(value).is_absolute():
            raise ValueError("relative path")  # put into words by accepted_values
        return value

    @field_validator("site_nodes")
    @classmethod
    def _pairs(cls, value: str) -> str:
        _nodes_of_sites(value)
        return value

    @model_validator(mode="after")
    def _enough_site_nodes(self) -> RunConfig:
        if 0 < (bound := len(self.nodes_of_sites())) < self.min_sites:
            raise ValueError(
                f"site-nodes binds {bound} sites and min-sites is {self.min_sites}: only sites "
                "that are bound take part"
            )
        return self

    @model_validator(mode="after")
    def _classifier_options(self) -> RunConfig:
        fields = type(self).model_fields
        if self.task != "classification":
            for key in OF_CLASSIFICATION:
                name = key.replace("-", "_")
                if getattr(self, name) != fields[name].default:
                    raise ValueError(
                        f"{key} has no effect with task '{self.task}': leave it "
                        "out. How a StyleGAN2-ADA trains is told in gan-changes"
                    )
            return self
        takers = {
            "gan": OF_SLICES,
            "gan_changes": OF_SLICES,
            "heights": OF_SLICES,
            "adapt": OF_SLICES,
            "feature_layer": ("gan-features",),
            "features": ("gan-features",),
        }
        for key, classifiers in takers.items():
            default = fields[key].default
            if self.classifier not in classifiers and getattr(self, key) != default:
                raise ValueError(
                    f"{key.replace('_', '-')} has no effect with classifier '{self.classifier}': "
                    f"set it {default!r}, or the classifier to "
                    f"{' or '.join(map(repr, classifiers))}"
                )
        return self

    @model_validator(mode="after")
    def _feature_options(self) -> RunConfig:
        if self.task != "classification" or self.classifier != "gan-features":
            return self
        if self.server_momentum or self.server_learning_rate not in (0, 1):
            raise ValueError(
                "server-learning-rate and server-momentum have no place with classifier "
                "'gan-features': the features' variance is averaged, no step is taken in it. "
                "Set both 0"
            )
        return self

    @model_validator(mode="after")
    def _strategy_options(self) -> RunConfig:
        if self.strategy == "fedprox" and self.proximal_mu == 0:
            raise ValueError("strategy 'fedprox' needs proximal-mu above 0; with 0 it is 'fedavg'")
        if self.strategy != "fedprox" and self.proximal_mu != 0:
            raise ValueError(f"proximal-mu has no effect with strategy '{self.strategy}': set it 0")
        if self.strategy == "fedprox" and (self.server_learning_rate or self.server_momentum):
            raise ValueError("server-learning-rate and server-momentum need strategy 'fedavg'")
        if self.task == "generation" and self.strategy == "fedprox":
            raise ValueError("task 'generation' has no strategy 'fedprox': accepted is 'fedavg'")
        if self.task != "generation" and self.weighting == "distance":
            raise ValueError("weighting 'distance' needs task 'generation': only there is one")
        if self.task != "generation" and self.share != "both":
            raise ValueError("share has no effect without task 'generation'")
        return self

    @model_validator(mode="after")
    def _networks(self) -> RunConfig:
        if self.task == "generation":
            settings = self.stylegan2()
            if settings.diversity_weight and self.batch_size < 2:
                raise ValueError("diversity-weight compares two pictures: set batch-size above 1")
        elif self.classifier in OF_SLICES:
            settings = self.stylegan2()
        else:
            return self
        from common.imaging.slices import RESOLUTIONS
        from common.models.architecture import Architecture

        if settings.channels != 1 or settings.resolution not in RESOLUTIONS:
            raise ValueError(
                f"gan '{self.gan}' with gan-changes '{self.gan_changes}' makes pictures of "
                f"{settings.resolution} pixels a side and {settings.channels} channels: slices of "
                f"scans have {', '.join(map(str, RESOLUTIONS))} pixels and 1 channel"
            )
        last = len(Architecture(resolution=settings.resolution).resolutions) - 1
        if self.classifier == "gan-features" and self.feature_layer > last:
            raise ValueError(
                f"feature-layer {self.feature_layer}: a discriminator of {settings.resolution} "
                f"pixels a side has layers 0 to {last}"
            )
        return self

    def stylegan2(self) -> GanConfig:
        """Return the configuration of the StyleGAN2-ADA: the preset, its changes, the run's budget.

        Raises
        ------
        ConfigError
            For an unknown preset, or a change that is not accepted.
        """
        from common.training.gan_config import changed_preset

        # A classifier's batches say nothing of the networks that it takes from a GAN.
        batch_size = self.batch_size if self.task == "generation" else 1
        return changed_preset(
            self.gan,
            self.gan_changes,
            {
                "batch-size": batch_size,
                "seed": self.seed,
                "threads": self.threads,
                "kimg": self.total_steps * batch_size / 1000,
                "device": self.device,
            },
            idle=("log-every", "snapshot-every"),
        )

    def nodes_of_sites(self) -> dict[str, int]:
        """Return Flower's number of each site's SuperNode, by site; empty where none is bound."""
        return _nodes_of_sites(self.site_nodes)

    @property
    def total_steps(self) -> int:
        """Optimizer steps that one site makes in the whole run."""
        return self.num_server_rounds * self.local_steps

    @classmethod
    def from_flower(cls, run_config: Mapping[str, Any]) -> RunConfig:
        """Validate Flower's flat run config.

        Parameters
        ----------
        run_config : mapping of str to bool, int, float or str
            Kebab-case keys, as in ``[tool.flwr.app.config]``. Missing keys take the default.

        Returns
        -------
        RunConfig

        Raises
        ------
        ConfigError
            For an unknown key, a wrong type or a value out of range: one line a fault, with what
            was got, what is accepted and, for an unknown key, the nearest known one.
        """
        return cls.from_mapping(run_config)

    def to_flower(self) -> dict[str, bool | int | float | str]:
        """Return the flat, kebab-case mapping that :meth:`from_flower` reads."""
        return self.to_mapping()


def _nodes_of_sites(pairs: str) -> dict[str, int]:
    from common.sites import SITE_NAME  # it knows the run config

    found: dict[str, int] = {}
    for pair in pairs.split():
        site, _, node = pair.partition(":")
        known = site in found or int(node or 0) in found.values()
        if not SITE_NAME.fullmatch(site) or not node.isdecimal() or known:
            raise ValueError(pair)  # put into words by accepted_values
        found[site] = int(node)
    return found
