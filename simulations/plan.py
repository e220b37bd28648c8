"""What a comparison will do: presets, overrides, and the cells that follow from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.config.renamed import OF_COMPARISONS
from common.config.run_config import OF_CLASSIFICATION, OF_SLICES, RunConfig, flatten
from common.data.phantoms.cohorts import PHANTOM_SEED
from common.errors import ConfigError
from common.extensions import allow, is_extension
from common.settings import did_you_mean
from common.strategies.strategy import strategy_names
from common.studies.study import read_study
from common.tasks.task import read_run_config
from common.training.gan_presets import stylegan2
from simulations.contrasts import reference_of
from simulations.options import allow_named
from simulations.placeholders import fill_in
from simulations.preset_files import read_preset
from simulations.scenarios import crossed
from simulations.strategy_options import options_of, own_options

Values = dict[str, bool | int | float | str]

ARMS = ("centralized", "local", "federated")
PRETRAINING, USE = "pretraining", "use"  # cells that are no arm: what goes before, and after
VARIANT = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
OPTIONS = {  # what a comparison decides for all cells alike
    "run.seed": "--repetitions and --first-repetition",
    "strategy.name": "--strategies",
    "data.cohort-dir": "--cohort",
    "run.output-dir": "--out",
    "run.min-sites": "every site there is",
    "run.id": "each training has its own",
    "run.resume": "--resume",
}
# What generators before a comparison, and classifiers after it, share with it: where, on what,
# judged how; not how the compared models are trained.
SHARED = (
    *("study", "data.cohort-dir", "run.min-sites", "run.connect-timeout", "run.round-timeout"),
    *("run.device", "run.threads", "run.seed"),
    *("model.gan", "model.gan-changes", "model.extractor", "data.harmonize"),
)


class Plan(BaseModel):
    """A comparison: arms × strategies × repetitions under one run config.

    Parameters
    ----------
    arms, strategies
        What is compared. Strategies concern the federated arm alone: of common/strategies, or
        variants.
    variants : dict of str to dict
        Strategies by a name of one's own, each with the run-config values in which it differs; its
        ``model.gan-changes`` are told after those of ``run``.
    repetitions : int
        Each has a seed of its own for initial weights, batches and augmentation. Simulated
        hospitals have other people, too, in each: their cohort's seed is the repetition's.
    first_repetition : int
        Where their seeds begin: 0, or beyond those that a recipe was chosen on.
    same_cohort : bool
        Simulated hospitals have the people of ``fedscan run`` in every repetition, as a cohort of
        one's own has its own.
    test_scans : int
        Test subjects of each simulated hospital; 0: the default.
    sites : int
        How many hospitals are simulated, where no other number is asked for.
    in_place : bool
        Federations train site after site in one process, without messages: the same weights, in
        less time where trainings are short.
    centralized_batch : {"large", "small"}
        Equal optimizer steps and images, with batches of sites × batch-size; or equal images only,
        with batch-size and sites × as many steps.
    local : {"all", "poor"}
        Which sites train by themselves: each, or the one with the fewest scans.
    run : dict
        Overrides of the run config.
    pretraining : dict
        Run-config values of a federation of generators that goes before, once a repetition, where
        there are any and a variant begins with it. Of ``run`` it takes :data:`SHARED`.
    pretrained : list of str
        Variants whose discriminator's features are those of that federation.
    use : dict
        For generation: run-config values of the classifiers that show what the generators'
        pictures are good for, where there are any. Of ``run`` they take :data:`SHARED`.
    reference : str
        The strategy that stands for the federated arm, where it is compared; else it is
        ``fedavg``, and without that the first.
    pooled : list of str
        Variants that the pool of all sites is trained under as well: of what is learned, not of
        how sites are averaged. Where strategies are named, those of them.
    alone : list of str
        Variants that sites are trained under by themselves as well, by the same rule.
    membership : bool
        Whether released models are attacked: does the loss tell who was in training?
    reach : float
        For generation: a Fréchet distance to validation images, of which it is told after how many
        training images each generator reaches it; 0: none.
    contrasts : list of pairs
        Names among strategies, ``local``, ``centralized`` and either with ``/VARIANT`` whose
        differences are told, first − second; without any, every further strategy is set against
        the reference. Pairs of which one is not compared have no effect.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    description: str = ""
    arms: list[Literal["centralized", "local", "federated"]] = Field(list(ARMS), min_length=1)
    strategies: list[str] = Field(["fedavg"], min_length=1)
    variants: dict[str, Values] = {}
    repetitions: int = Field(1, ge=1, le=1000)
    first_repetition: int = Field(0, ge=0, le=1_000_000, alias="first-repetition")
    same_cohort: bool = Field(False, alias="same-cohort")
    test_scans: int = Field(0, ge=0, le=100_000, alias="test-scans")
    sites: int = Field(3, ge=2, le=1000)
    in_place: bool = Field(False, alias="in-place")
    centralized_batch: Literal["large", "small"] = Field("large", alias="centralized-batch")
    local: Literal["all", "poor"] = "all"
    run: Values = {}
    pretraining: Values = {}
    pretrained: list[str] = []
    use: Values = {}
    reference: str = ""
    pooled: list[str] = []
    alone: list[str] = []
    membership: bool = False
    reach: float = Field(0.0, ge=0)
    contrasts: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []

    @model_validator(mode="before")
    @classmethod
    def _keys_are_todays(cls, values: Any) -> Any:
        for old in OF_COMPARISONS.keys() & set(values):
            raise ValueError(f"unknown key '{old}'; it is '{OF_COMPARISONS[old]}' now")
        return values

    @model_validator(mode="after")
    def _strategies_are_known(self) -> Plan:
        strategies = strategy_names()
        for name in self.variants:
            if not VARIANT.fullmatch(name):
                raise ValueError(f"variant '{name}': accepted are lower-case letters, digits, '-'")
            if name in (*strategies, *ARMS):
                raise ValueError(f"variant '{name}': that name is taken. Give it one of its own")
        known = [*strategies, *self.variants]
        given = [name for name in self.strategies if not is_extension(name)]
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"strategy '{unknown[0]}': accepted are {', '.join(known)}")
        for key in ("pretrained", "pooled", "alone"):
            names = getattr(self, key)
            if lost := [name for name in names if name not in self.variants]:
                raise ValueError(f"{key}: '{lost[0]}' is no variant")
        if self.pretrained and not self.pretraining:
            raise ValueError("pretrained variants need a table `pretraining`")
        if self.reference and self.reference not in known:
            raise ValueError(f"reference '{self.reference}': accepted are {', '.join(known)}")
        for first, second in self.contrasts:
            both = {of(name) for name in self.variants for of in (pooled_name, alone_name)}
            if strange := {first, second} - {*known, "local", "centralized", *both}:
                raise ValueError(f"contrast with '{min(strange)}', which is no strategy and no arm")
            if first == second:
                raise ValueError(f"contrast of '{first}' with itself")
        return self

    @property
    def seed_range(self) -> range:
        """The seeds of the repetitions."""
        return range(self.first_repetition, self.first_repetition + self.repetitions)

    @property
    def cohort_seeds(self) -> dict[int, int]:
        """Of each repetition's simulated hospitals the seed; of one cohort that of the usual."""
        return {seed: PHANTOM_SEED if self.same_cohort else seed for seed in self.seed_range}

    @property
    def reference_strategy(self) -> str:
        """The strategy that stands for the federated arm; "" without that arm."""
        return reference_of(self.strategies, self.reference) if "federated" in self.arms else ""

    @property
    def compared_contrasts(self) -> list[list[str]]:
        """The named pairs of which both are compared."""
        federated = self.strategies if "federated" in self.arms else []
        pools = self.pooled if "centralized" in self.arms else []
        alone = self.alone if "local" in self.arms else []
        compared = {*self.arms, *federated, *map(pooled_name, pools), *map(alone_name, alone)}
        return [pair for pair in self.contrasts if compared.issuperset(pair)]

    def cells(self) -> list[Cell]:
        """Return the compared cells, the slowest arm first, so that no core waits at the end."""
        found = []
        for seed in self.seed_range:
            if "federated" in self.arms:
                found += [Cell("federated", strategy, seed) for strategy in self.strategies]
            found += [Cell(arm, "", seed) for arm in ("centralized", "local") if arm in self.arms]
            for arm, variants in (("centralized", self.pooled), ("local", self.alone)):
                found += [Cell(arm, variant, seed) for variant in variants if arm in self.arms]
        return found

    def stages(self) -> list[list[Cell]]:
        """Return all cells, in groups each of which may need the results of those before."""
        begun = "federated" in self.arms and not set(self.pretrained).isdisjoint(self.strategies)
        before = [Cell(PRETRAINING, "", seed) for seed in self.seed_range if begun]
        after = [Cell(USE, "", seed) for seed in self.seed_range if self.use]
        return [stage for stage in (before, self.cells(), after) if stage]

    def config(self, cell: Cell, base: Mapping[str, Any], *, features: str = "") -> RunConfig:
        """Return a cell's run config: the base, the plan's overrides, the cell's own.

        Parameters
        ----------
        cell : Cell
        base : mapping
        features : str
            Absolute folder of the seed's pretraining.

        Raises
        ------
        ConfigError
        """
        values = {**base, **self.run, "run.seed": cell.seed}
        if cell.arm in (PRETRAINING, USE):
            values = {key: values[key] for key in SHARED if key in values}
        values |= {PRETRAINING: self.pretraining, USE: self.use}.get(cell.arm, {})
        if cell.arm == USE:
            values = _of_pictures_use(values)
        own = dict(self.variants.get(cell.strategy, {}))
        if "model.gan-changes" in own and "model.gan-changes" in values:
            # Of a key given twice the last holds.
            own["model.gan-changes"] = f"{values['model.gan-changes']} {own['model.gan-changes']}"
        name = own.get("strategy.name", cell.strategy)
        name = name if name in strategy_names() or is_extension(name) else "fedavg"
        # What concerns some strategies alone is left to their cells.
        others = own_options(self.strategies).keys() - set(options_of(name))
        values = {key: value for key, value in values.items() if key not in others}
        values |= {**own, "strategy.name": name}
        if cell.strategy in self.pretrained:
            values["model.gan-checkpoint"] = features
        return read_run_config(values)


def _of_pictures_use(values: Values) -> Values:
    """Let classifiers see images as generators make them, where nothing else is asked for."""
    shared = {key: values[key] for key in SHARED if key in values}
    run = RunConfig.from_flower({**shared, "task": "generation"})
    if run.read_study().images.view != "picture":
        as_made: Values = {"model.classifier": "slices"}
    else:
        as_made = {"data.size": stylegan2(run).resolution}
        if values.get("model.classifier") not in OF_SLICES:
            values = {k: v for k, v in values.items() if not k.startswith("model.gan")}
    return {"model.adapt": "none", **as_made, **values}


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


def pooled_name(variant: str) -> str:
    """Return the name of a variant of the centralized arm."""
    return f"centralized/{variant}"


def alone_name(variant: str) -> str:
    """Return the name of a variant of the local arm."""
    return f"local/{variant}"


def load_plan(preset: str, overrides: Mapping[str, Any], run: Mapping[str, Any]) -> Plan:
    """Build a plan from a preset, by name or file, command-line overrides and run-config overrides.

    A preset's table ``volumes`` is added to its ``run`` for studies of volumes; its values may have
    :mod:`simulations.placeholders`, ``auto`` among strategies is the study's own, and each strategy
    is also compared under each of ``scenarios`` (:mod:`simulations.scenarios`).

    Raises
    ------
    ConfigError
        For an unknown preset, or a value that is not accepted.
    """
    values = read_preset(preset)
    values.update({key: value for key, value in overrides.items() if value is not None})
    if unknown := [arm for arm in values.get("arms", ARMS) if arm not in ARMS]:
        meant = did_you_mean(unknown[0], ARMS, cutoff=0.4)
        raise ConfigError(f"unknown arm '{unknown[0]}': accepted are {', '.join(ARMS)}{meant}")
    for table in ("pretraining", "use"):
        values[table] = flatten(values.get(table, {}))
    values["variants"] = {
        name: flatten(changes) for name, changes in values.get("variants", {}).items()
    }
    preset_run = flatten(values.get("run", {}))
    study_text = {"study": RunConfig.model_fields["study"].default, **preset_run, **run}["study"]
    study = read_study(study_text)
    of_volumes = flatten(values.pop("volumes", {}))
    if study.images.view != "picture":
        preset_run |= of_volumes
    fill_in([preset_run, *values["variants"].values()], study)
    task = preset_run.get("task", RunConfig.model_fields["task"].default)
    if run.get("task", task) != task:  # the preset's classifiers are not what is asked for
        preset_run = {k: v for k, v in preset_run.items() if k not in OF_CLASSIFICATION}
    values["run"] = {**preset_run, **run}
    for named in (values["run"], *values["variants"].values()):
        allow_named(named)  # the user's, or a preset's that the user has named
    allow(values.get("strategies", []))
    usual = read_run_config({"study": study_text, "task": values["run"].get("task", task)})
    values["strategies"] = [
        usual.strategy.name if one == "auto" else one for one in values.get("strategies", ["auto"])
    ]
    if overrides.get("strategies"):
        for key in ("pooled", "alone"):
            values[key] = [n for n in values.get(key, []) if n in values["strategies"]]
    values |= crossed(
        values["strategies"],
        values["variants"],
        {name: flatten(changes) for name, changes in values.pop("scenarios", {}).items()},
        values.get("contrasts", []),
    )
    if clash := OPTIONS.keys() & values["run"].keys():
        key = min(clash)
        raise ConfigError(f"--set {key}: a comparison takes {OPTIONS[key]}")
    try:
        plan = Plan.model_validate(values)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg']}"
            if fault["loc"]
            else fault["msg"].removeprefix("Value error, ")
            for fault in error.errors()
        ]
        raise ConfigError("comparison: " + "\ncomparison: ".join(faults)) from None
    for key, owners in own_options().items():
        if key in run and not set(owners) & set(plan.strategies):
            wanted = " or ".join(owners)
            raise ConfigError(f"--set {key} has no effect without --strategies {wanted}")
    if plan.pretraining and "model.gan-checkpoint" in run:
        raise ConfigError(
            f"--set model.gan-checkpoint: preset '{preset}' compares features of generators that "
            "it trains itself. For another's: fedscan run --set "
            "model.classifier=gan-features --set "
            "model.gan-checkpoint=RUN"
        )
    if (plan.pretraining or plan.use or plan.membership) and run.get("task", task) != task:
        raise ConfigError(
            f"--set task={run['task']}: preset '{preset}' is made for {task}. Choose another preset"
        )
    if "local" in plan.arms and plan.run.get("data.unlabelled"):
        raise ConfigError(
            "data.unlabelled: a site without labels cannot train by itself: leave local out of "
            "--arms"
        )
    if "federated" not in plan.arms and overrides.get("strategies"):
        raise ConfigError("--strategies has no effect without the arm federated: leave it out")
    pooled = "centralized" in plan.arms and plan.config(Cell("centralized", "", 0), {})
    if pooled and pooled.model.adapt == "center":
        # `statistics` and `threshold` adapt whatever model a site is given, one of a pool as well.
        raise ConfigError(
            "model.adapt = 'center' trains without what is a site's own, which a pool of sites has "
            "not: leave centralized out of --arms"
        )
    for values in (plan.arms, plan.strategies):
        if len(set(values)) < len(values):
            raise ConfigError(f"comparison: {', '.join(values)}: each may be named once")
    return plan
