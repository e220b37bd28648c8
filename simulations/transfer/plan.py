"""What a transfer does: methods, sizes, repetitions, and the run configs that follow from them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.config.run_config import RunConfig, flatten
from common.errors import ConfigError
from common.tasks.task import read_run_config
from simulations.plan import VARIANT, Cell

Values = dict[str, bool | int | float | str]

PRESET = Path(__file__).parent / "transfer.toml"
SOURCE, TARGET = "source", "target"  # arms: the federation of the others; trainings at the target
SCRATCH, AS_IT_IS = "scratch", "as-it-is"  # methods: no source; the source's model, untrained
WARM_START = "model.warm-start"
TAKEN = {
    "run.seed": "--repetitions and --first-repetition",
    "data.cohort-dir": "--cohort",
    "run.output-dir": "--out",
    "task": "nothing: it is about classifiers",
    "model.trains": "its methods, which differ in it",
    "training.layer-decay": "its methods, which differ in it",
    WARM_START: "the federation that it trains itself",
}


class Plan(BaseModel):
    """Methods × sizes × repetitions at one target hospital.

    Parameters
    ----------
    sizes : list of int
        Training scans of the target, ascending.
    repetitions, first_repetition
        Each has a seed of its own, also of simulated hospitals, from the first on.
    run, source, target : dict
        Run-config values of all trainings, of the federation before, and of those at the target.
    methods : dict of str to dict
        Ways to learn at the target, each with the run-config values in which it differs. All but
        ``scratch`` begin with the federation's model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    description: str = ""
    sizes: list[int] = Field(min_length=1)
    repetitions: int = Field(ge=1, le=1000)
    first_repetition: int = Field(0, ge=0, le=1_000_000)
    run: Values = {}
    source: Values = {}
    target: Values = {}
    methods: dict[str, Values]

    @model_validator(mode="after")
    def _can_be(self) -> Plan:
        if self.sizes != sorted({*self.sizes}) or self.sizes[0] < 1:
            raise ValueError("sizes: accepted are whole numbers from 1, ascending, each once")
        wrong = [name for name in self.methods if not VARIANT.fullmatch(name) or name == AS_IT_IS]
        if wrong or SCRATCH not in self.methods:
            raise ValueError(f"methods: accepted are names of one's own and '{SCRATCH}'")
        return self

    @property
    def seeds(self) -> range:
        """The seeds of the repetitions."""
        return range(self.first_repetition, self.first_repetition + self.repetitions)

    def stages(self) -> list[list[Cell]]:
        """Return all cells: the federations, then, of each method, all trainings of a seed."""
        names = [AS_IT_IS, *self.methods]
        return [
            [Cell(SOURCE, "", seed) for seed in self.seeds],
            [Cell(TARGET, name, seed) for seed in self.seeds for name in reversed(names)],
        ]

    def config(self, arm: str, method: str, seed: int, *, source: str = "") -> RunConfig:
        """Return the run config of a federation, or of a method's trainings at the target.

        Parameters
        ----------
        arm : {"source", "target"}
        method : str
        seed : int
        source : str
            Absolute folder of the federation's model.

        Raises
        ------
        ConfigError
        """
        values: Values = {**self.run, "run.seed": seed}
        if arm == SOURCE:
            return read_run_config({**self.source, **values})
        values = {**self.target, **values, **self.methods.get(method, {}), "run.rounds": 1}
        values = {k: v for k, v in values.items() if not k.startswith("strategy.")}
        values["strategy.name"] = "fedavg"  # of one site: nobody joins
        if method != SCRATCH:
            values[WARM_START] = source
        return read_run_config(values)


@dataclass(frozen=True)
class Protocol:
    """How the target's models are tested.

    Parameters
    ----------
    folds : int
        Of a cross-validation by person over all of the target's scans; 0: its own test split.
    sizes : tuple of int
        Of the training, as far as there are so many scans.
    """

    folds: int
    sizes: tuple[int, ...]


def load_plan(overrides: Mapping[str, Any], run: Mapping[str, Any]) -> Plan:
    """Build a plan from the preset, command-line overrides and run-config overrides.

    Raises
    ------
    ConfigError
    """
    if clash := TAKEN.keys() & run.keys():
        raise ConfigError(f"--set {min(clash)}: a transfer takes {TAKEN[min(clash)]}")
    values = tomllib.loads(PRESET.read_text())
    values |= {key: value for key, value in overrides.items() if value is not None}
    for table in ("run", "source", "target"):
        values[table] = flatten(values.get(table, {}))
    values["methods"] = {name: flatten(one) for name, one in values["methods"].items()}
    values["run"] |= run
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, one['loc']))} {one['msg'].removeprefix('Value error, ')}".strip()
            for one in error.errors()
        ]
        raise ConfigError("transfer: " + "\ntransfer: ".join(faults)) from None


def parse_sizes(text: str) -> list[int]:
    """Read whole numbers with commas between them.

    Raises
    ------
    ConfigError
    """
    parts: Sequence[str] = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--sizes {text}: accepted are whole numbers, as in 5,10,20")
    return [int(part) for part in parts]
