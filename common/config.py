"""The run configuration: frozen, validated once, the same object on the server and at every site.

Flower hands both sides a flat mapping of kebab-case keys to bool, int, float or str. This module is
its only reader: everything behind it works with :class:`RunConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from common.settings import NonNegative, Positive, Settings

_ABSOLUTE = {
    "accepted": "an absolute path or nothing, since Flower runs the app in the folder where its "
    "SuperLink was started, not in yours"
}


class RunConfig(Settings):
    """Everything that decides a run's result, apart from the scans and the code.

    The defaults are those of ``[tool.flwr.app.config]`` in pyproject.toml, which Flower needs
    to know the keys; a test holds the two together. Build it with :meth:`from_flower`.
    """

    what: ClassVar[str] = "run config"

    task: Literal["classification"] = Field("classification", description="what is learned")
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
    num_server_rounds: int = Field(45, ge=1, le=100_000, description="communication rounds")
    local_steps: int = Field(40, ge=1, le=1_000_000, description="optimizer steps a site and round")
    batch_size: int = Field(16, ge=1, le=4096, description="images an optimizer step at a site")
    learning_rate: Positive = Field(1e-3, le=10.0, description="AdamW's peak, cosine-decayed")
    weight_decay: NonNegative = Field(0.3, le=10.0, description="AdamW's decoupled weight decay")
    image_size: int = Field(48, ge=16, le=256, description="voxels a side of the prepared cube")
    classifier: Literal["small", "efficientnet-b2"] = Field(
        "small", description="small: GroupNorm CNN for CPUs; efficientnet-b2: MONAI's, in 3-D"
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
    connect_timeout: Positive = Field(
        600.0, le=1e6, description="seconds that the server waits for min-sites"
    )
    reply_timeout: Positive = Field(
        3600.0, le=1e6, description="seconds that a site may take to answer one message"
    )

    @field_validator("cohort_dir", "output_dir")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if value and not Path(value).is_absolute():
            raise ValueError("relative path")  # put into words by accepted_values
        return value

    @model_validator(mode="after")
    def _strategy_options(self) -> RunConfig:
        if self.strategy == "fedprox" and self.proximal_mu == 0:
            raise ValueError("strategy 'fedprox' needs proximal-mu above 0; with 0 it is 'fedavg'")
        if self.strategy != "fedprox" and self.proximal_mu != 0:
            raise ValueError(f"proximal-mu has no effect with strategy '{self.strategy}': set it 0")
        return self

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


def accepted_values(key: str) -> str:
    """Say in words which values a run-config key takes."""
    return RunConfig.accepted_values(key)
