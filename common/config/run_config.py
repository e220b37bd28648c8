"""The run configuration: frozen, validated once, the same object on the server and at every site.

Flower hands both sides a flat mapping of dotted, kebab-case keys (``training.batch-size``) to bool,
int, float or str. This module is its only reader: everything behind it works with
:class:`RunConfig`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from common.config.groups import Data, Group, Model, Run, Strategy, Training, nodes_of_sites
from common.config.privacy import Privacy
from common.config.renamed import hint
from common.config.trouble import Trouble
from common.errors import ConfigError
from common.extensions import is_extension
from common.settings import MOST_FAULTS, Settings, as_words, few_known, likeness
from common.site_files import plain
from common.studies.study import LARGEST_FILE, Study, read_study

Value = bool | int | float | str

GROUPS: dict[str, type[Group]] = {
    "run": Run,
    "data": Data,
    "model": Model,
    "training": Training,
    "strategy": Strategy,
    "privacy": Privacy,
    "trouble": Trouble,
}
# Where, under which name and how patiently a run is done. They may change while it is interrupted.
OF_CIRCUMSTANCES = (
    *("run.id", "run.resume", "run.output-dir", "run.site-nodes", "run.min-sites"),
    *("run.connect-timeout", "run.round-timeout", "run.grace-seconds", "run.min-replies"),
    *("run.round-retries", "data.cohort-dir"),
)
NEVER = 100_000  # of run.evaluate-every, but for the last round: as many as a run may have
OPTION = re.compile(r"[a-z][a-z0-9-]*")  # a key of strategy.options
OF_SLICES = ("slices", "gan-features")  # classifiers that see stacks of slices, not cubes
OF_CLASSIFICATION = (  # generation has its own of these, as keys of `model.gan-changes`, or none
    *("training.learning-rate", "training.weight-decay", "training.label-smoothing"),
    *("training.layer-decay", "model.trains", "model.normalization", "model.warm-start"),
    *(
        "training.augment",
        "training.local-epochs",
        "training.loss",
        "training.focal-gamma",
        "training.logit-tau",
        "training.balance",
        "training.absent-classes",
        "data.size",
        "data.unlabelled",
        "model.classifier",
        "model.heights",
        "model.adapt",
        "trouble.label-noise",
    ),
    "model.gan-checkpoint",
)

# What suits a task, where the run config leaves it open.
_SUITABLE: dict[str, dict[str, Value]] = {
    "classification": {
        "run.rounds": 45,
        "run.evaluate-every": 1,
        "training.local-steps": 40,
        "training.batch-size": 16,
        "strategy.weighting": "images",
    },
    "generation": {
        "model.adapt": "none",
        "strategy.name": "fedavg",
        "run.rounds": 300,
        "run.evaluate-every": 30,
        "training.local-steps": 8,
        "training.batch-size": 4,
        "strategy.weighting": "uniform",
    },
}


class RunConfig(Settings):
    """Everything that decides a run's result, apart from the images and the code.

    What is left open takes the value that suits the task and the study, so an object has none of
    these; ``strategy.server_learning_rate`` stays open until it is known how many sites take part.

    The defaults are those of ``[tool.flwr.app.config]`` in pyproject.toml, which Flower needs
    to know the keys; a test holds the two together. Build it with :meth:`from_flower`.
    """

    what: ClassVar[str] = "run config"

    study: str = Field(
        "brain-sex",
        max_length=LARGEST_FILE,
        description="what is asked of which images",
        json_schema_extra={"accepted": "a built-in study's name, or the whole text of a study"},
    )
    task: Literal["classification", "generation"] = Field(
        "classification", description="what is learned"
    )
    transport: Literal["float32", "float16", "int8"] = Field(
        "float32",
        description="how weights travel; float16: a site's update as differences of that type; "
        "int8: the server's broadcast too; with error feedback",
    )
    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    strategy: Strategy = Strategy()
    privacy: Privacy = Privacy()
    trouble: Trouble = Trouble()

    @classmethod
    def from_flower(cls, run_config: Mapping[str, Any]) -> RunConfig:
        """Validate Flower's flat run config.

        Parameters
        ----------
        run_config : mapping of str to bool, int, float or str
            Dotted, kebab-case keys, as in ``[tool.flwr.app.config]``; tables are read as Flower
            flattens them. Missing keys take the default. A key ``strategy.X`` that no strategy
            shares with others is one of ``strategy.options``.

        Raises
        ------
        ConfigError
            For an unknown key, a wrong type or a value out of range: one line a fault, with what
            was got, what is accepted and, for an unknown key, the one that has its meaning now or
            is nearest.
        """
        top, parts, unknown = _by_group(flatten(run_config))
        known = known_keys()
        faults = [f"{cls.what}: {_unknown(key, known)}" for key in unknown[:MOST_FAULTS]]
        if len(unknown) > MOST_FAULTS:
            faults.append(f"{cls.what}: and {len(unknown) - MOST_FAULTS} more unknown keys")
        try:
            chosen = cls.from_mapping(top)
            study = chosen.read_study()
        except ConfigError as error:  # the groups are still judged, by the defaults of the rest
            words = str(error)
            faults.append(words if words.startswith(cls.what) else f"{cls.what}: {words}")
            chosen, study = cls(), read_study(cls().study)
        built: dict[str, Any] = {}
        for name, group in GROUPS.items():
            part = parts[name]
            privacy = parts["privacy"]
            suitable = _suitable(
                chosen.task,
                study,
                name,
                private=bool(privacy.get("epsilon")),
                central=bool(privacy.get("central-epsilon")),
            )
            for key, value in suitable.items():
                if key == "local-steps" and part.get("local-epochs"):
                    continue
                left_open = group.model_fields[key.replace("-", "_")].default
                given = part.get(key, left_open)
                alike = type(given) in (type(left_open), int) and type(given) is not bool
                if given == left_open and alike:  # a whole 0 also leaves a fraction open
                    adjusted = key == "balance" and part.get("loss") == "logit-adjusted"
                    part[key] = "none" if adjusted else value
            try:
                built[name] = group.from_mapping(part)
            except ConfigError as error:
                faults.append(str(error))
        if unknown:
            near = few_known(unknown[:MOST_FAULTS], known)
            faults.append(f"{cls.what}: {near}; `fedscan config` lists all")
        if faults:
            raise ConfigError("\n".join(faults))
        config = chosen.model_copy(update=built)
        config._check_combinations()
        return config

    def to_flower(self) -> dict[str, Value]:
        """Return the flat mapping that :meth:`from_flower` reads."""
        return flatten(self.model_dump(by_alias=True))

    def of_result(self) -> dict[str, Value]:
        """Return the keys on which a run's result depends, as :meth:`to_flower` has them."""
        return {key: v for key, v in self.to_flower().items() if key not in OF_CIRCUMSTANCES}

    def replace(self, values: Mapping[str, Value]) -> RunConfig:
        """Return a run config in which some of Flower's keys have other values.

        Raises
        ------
        ConfigError
        """
        return self.from_flower({**self.to_flower(), **values})

    def read_study(self) -> Study:
        """Return the study.

        Raises
        ------
        ConfigError
            There is none of that name, or its text is not accepted.
        """
        return read_study(self.study)

    def nodes_of_sites(self) -> dict[str, int]:
        """Return Flower's number of each site's SuperNode, by site; empty where none is bound."""
        return nodes_of_sites(self.run.site_nodes)

    @property
    def total_steps(self) -> int:
        """Optimizer steps in a run whose sites all make ``training.local-steps`` a round."""
        return self.run.rounds * self.training.local_steps

    def local_steps(self, images: int) -> int:
        """Return the optimizer steps in a round at a site that trains on so many images."""
        epochs = self.training.local_epochs
        if epochs:
            return epochs * math.ceil(images / self.training.batch_size)
        return self.training.local_steps

    def _check_combinations(self) -> None:
        faults = [*self._of_sites(), *self._of_task(), *self._of_classifier(), *self._of_trouble()]
        faults += self.privacy.faults_of_sums(self.transport, self.run, self.data, self.strategy)
        faults += self.privacy.faults(
            self.task, self.run, self.data, self.model, self.training, self.strategy
        )
        if faults:
            raise ConfigError("\n".join(f"{self.what}: {fault}" for fault in faults))

    def _of_sites(self) -> list[str]:
        if not 0 < (bound := len(self.nodes_of_sites())) < self.run.min_sites:
            return []
        return [
            f"run.site-nodes binds {bound} sites and run.min-sites is {self.run.min_sites}: only "
            "sites that are bound take part"
        ]

    def _of_trouble(self) -> list[str]:
        found = self.trouble.faults(self.task)
        if (self.trouble.dropout or self.trouble.late) and not self.run.min_replies:
            found.append(
                "trouble.dropout and trouble.late need run.min-replies: without it every site must "
                "answer in every round"
            )
        return found

    def _of_task(self) -> list[str]:
        if self.task == "generation":
            usual = {"study": self.study, "model.adapt": "none"}
            defaults = RunConfig.from_flower(usual).to_flower()
            return [
                f"{key} has no effect with task '{self.task}': leave it out. How a StyleGAN2-ADA "
                "trains is told in model.gan-changes"
                for key, value in self.to_flower().items()
                if key in OF_CLASSIFICATION and value != defaults[key]
            ]
        found = []
        if self.strategy.share != "both":
            found.append("strategy.share has no effect without task 'generation'")
        if self.training.local_epochs and self.training.local_steps:
            found.append("training.local-steps and training.local-epochs: set one of them")
        return found

    def _of_classifier(self) -> list[str]:
        if self.task != "classification":
            return []
        given, found = self.model.classifier, []
        for key in ("gan", "gan_changes", "heights"):
            default = Model.model_fields[key].default
            if given not in OF_SLICES and getattr(self.model, key) != default:
                found.append(
                    f"model.{key.replace('_', '-')} has no effect with classifier '{given}': set "
                    f"it {default!r}, or model.classifier to "
                    f"{' or '.join(map(repr, OF_SLICES))}"
                )
        for key, loss in (("focal_gamma", "focal"), ("logit_tau", "logit-adjusted")):
            default = Training.model_fields[key].default
            if self.training.loss != loss and getattr(self.training, key) != default:
                found.append(
                    f"training.{key.replace('_', '-')} has no effect with training.loss = "
                    f"'{self.training.loss}': leave it out, or set training.loss = '{loss}'"
                )
        if self.training.loss == "logit-adjusted" and self.training.balance != "none":
            found.append(
                f"training.balance = '{self.training.balance}' and training.loss = "
                "'logit-adjusted' make up for the same mix of classes twice: leave one of them out"
            )
        return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write the keys of nested tables with dots, as Flower does."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def known_keys() -> list[str]:
    """List the run config's keys, as Flower has them."""
    top = [key for key in RunConfig.model_fields if key not in GROUPS]
    return top + [
        f"{group.prefix}{name.replace('_', '-')}"
        for group in GROUPS.values()
        for name in group.model_fields
    ]


def _by_group(
    flat: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[str]]:
    """Divide a flat run config into what has no group, each group's, and unknown keys."""
    known = known_keys()
    top: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    unknown = []
    options = {}
    for key, value in flat.items():
        group, _, name = key.rpartition(".")
        if group == "strategy" and key not in known and OPTION.fullmatch(name):
            options[name] = value  # known to the strategy alone
        elif key not in known:
            unknown.append(key)
        elif group:
            parts[group][name] = value
        else:
            top[key] = value
    if options:
        words = [str(parts["strategy"].get("options", "")), as_words(options)]
        parts["strategy"]["options"] = " ".join(filter(None, words))
    return top, parts, [plain(key) for key in unknown]


def _unknown(key: str, known: Sequence[str]) -> str:
    near = max(known, key=lambda one: likeness(key, one))
    nearest = f"; did you mean '{near}'?" if likeness(key, near) >= 0.6 else ""
    return f"unknown key '{key}'{hint(key) or nearest}"


def extensions_of(config: RunConfig) -> dict[str, str]:
    """Name the code of other packages that a run loads, by the key that names it."""
    named = {
        "strategy.name": config.strategy.name,
        "model.classifier": config.model.classifier,
        "the study's storage": config.read_study().images.storage,
    }
    return {key: name for key, name in named.items() if is_extension(name)}


def default_extractor(study: Study) -> str:
    """Name the feature extractor that judges a study's generated images by default."""
    return "fedscan-skin" if study.images.view == "picture" else "fedscan-brain"


def _suitable(
    task: str, study: Study, group: str, *, private: bool, central: bool
) -> dict[str, Value]:
    """Return what suits a task and a study, for the keys of a group that may be left open.

    With differential privacy of people, ``private``, nothing that follows from those that a site
    trains on; with that of sites, ``central``, no weight and no choice of a round by what they say.
    """
    pictures = study.images.view == "picture"
    values = _SUITABLE[task] | {
        "data.size": study.images.size,
        "model.classifier": "slices" if study.images.view == "slices" else "small",
        "model.extractor": default_extractor(study),
        "training.learning-rate": 2e-3 if pictures else 1e-3,
        "training.balance": "weights" if len(study.label.classes.names) == 2 else "batches",
    }
    if task == "classification":
        values["model.adapt"] = study.classifier.adapt
        values["strategy.name"] = study.classifier.strategy
        values["run.rounds"] = study.classifier.rounds or values["run.rounds"]
        if private:
            values |= {"training.balance": "none", "model.adapt": "none"}
    if central:
        values |= {"strategy.weighting": "uniform", "run.evaluate-every": NEVER}
    return {
        name: value
        for key, value in values.items()
        for prefix, _, name in [key.partition(".")]
        if prefix == group
    }
