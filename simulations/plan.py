"""What a comparison will do: presets, overrides, and the cells that follow from them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.config import RunConfig
from common.errors import ConfigError

ARMS = ("centralized", "local", "federated")
STRATEGIES = ("fedavg", "fedprox")
PRESETS = Path(__file__).parent / "presets"
OPTIONS = {  # what a comparison decides for all cells alike
    "seed": "--seeds",
    "strategy": "--strategies",
    "cohort-dir": "--cohort",
    "output-dir": "--out",
    "min-sites": "every site there is",
}
FEDPROX_MU = 0.01  # when fedprox is compared and no proximal-mu is set; of Li et al.'s grid


class Plan(BaseModel):
    """A comparison: arms × strategies × seeds under one run config.

    Parameters
    ----------
    arms, strategies
        What is compared. Strategies concern the federated arm alone.
    seeds : int
        Repetitions: seeds 0, 1, … vary initial weights, batches and augmentation, never the splits.
    centralized_batch : {"large", "small"}
        Equal optimizer steps and images, with batches of sites × batch-size; or equal images only,
        with batch-size and sites × as many steps.
    run : dict
        Overrides of the run config.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    description: str = ""
    arms: list[Literal["centralized", "local", "federated"]] = Field(list(ARMS), min_length=1)
    strategies: list[Literal["fedavg", "fedprox"]] = Field(["fedavg"], min_length=1)
    seeds: int = Field(1, ge=1, le=1000)
    centralized_batch: Literal["large", "small"] = Field("large", alias="centralized-batch")
    run: dict[str, bool | int | float | str] = {}

    def cells(self) -> list[Cell]:
        """Return every cell, the slowest arm first, so that no core waits at the end."""
        found = []
        for seed in range(self.seeds):
            if "federated" in self.arms:
                found += [Cell("federated", strategy, seed) for strategy in self.strategies]
            found += [Cell(arm, "", seed) for arm in ("centralized", "local") if arm in self.arms]
        return found

    def config(self, cell: Cell, base: Mapping[str, Any]) -> RunConfig:
        """Return a cell's run config: the base, the plan's overrides, the cell's own.

        Raises
        ------
        ConfigError
        """
        values = {**base, **self.run, "seed": cell.seed}
        values["strategy"] = cell.strategy or "fedavg"
        if values["strategy"] == "fedprox":
            values["proximal-mu"] = self.run.get("proximal-mu", FEDPROX_MU)
        else:
            values["proximal-mu"] = 0.0
        return RunConfig.from_flower(values)


@dataclass(frozen=True)
class Cell:
    """One training to be done: an arm, a strategy (federated only), a repetition."""

    arm: str
    strategy: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        return "-".join(filter(None, (self.arm, self.strategy, f"seed{self.seed}")))


def presets() -> dict[str, Path]:
    """Find the presets that come with fedscan, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def load_plan(preset: str, overrides: Mapping[str, Any], run: Mapping[str, Any]) -> Plan:
    """Build a plan from a preset, command-line overrides and run-config overrides.

    Raises
    ------
    ConfigError
        For an unknown preset, or a value that is not accepted.
    """
    found = presets()
    if preset not in found:
        raise ConfigError(f"unknown preset '{preset}'; there are {', '.join(found)}")
    values = tomllib.loads(found[preset].read_text())
    values.update({key: value for key, value in overrides.items() if value is not None})
    values["run"] = {**values.get("run", {}), **run}
    if clash := OPTIONS.keys() & values["run"].keys():
        key = min(clash)
        raise ConfigError(f"--set {key}: a comparison takes {OPTIONS[key]}")
    try:
        plan = Plan.model_validate(values)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg']}"
            for fault in error.errors()
        ]
        raise ConfigError("comparison: " + "\ncomparison: ".join(faults)) from None
    if "proximal-mu" in plan.run and "fedprox" not in plan.strategies:
        raise ConfigError("--set proximal-mu has no effect without --strategies fedprox")
    for values in (plan.arms, plan.strategies):
        if len(set(values)) < len(values):
            raise ConfigError(f"comparison: {', '.join(values)}: each may be named once")
    return plan
