"""What a site lets itself be asked: bounds that its owner sets, whatever the server wants.

They protect against a server that means ill while the site runs fedscan's own code: an order to
train one step on one image, from weights chosen for it, gives that image away (Geiping et al. 2020,
"Inverting gradients", NeurIPS). They make this hard, not impossible, for a patient and clever
server; what bounds it are clipping, noise and secure sums. They are no guard against other code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator

from common.config.privacy import FEWEST_SITES
from common.config.run_config import RunConfig, extensions_of
from common.disclosure import EVERYTHING, MIN_PARTICIPANTS, Disclosure
from common.errors import ConfigError, DataContractError
from common.extensions import is_extension
from common.reading import parse_toml
from common.settings import NonNegative, Positive, Settings
from common.strategies.strategy import load_strategy
from common.tasks.task import load_task

VARIABLE = "FEDSCAN_POLICY"
GATE, SUMS = "gate", "secure-sums"  # the file's tables for the gate: clients/gateway/policy.py
GATED = "FEDSCAN_GATED"  # set where the gate judges what this process answers
LARGEST_FILE = 100_000  # bytes
HASH_DIGITS = 64


class PolicySettings(Settings):
    """What a site's owner writes into the policy file."""

    what: ClassVar[str] = "site policy"

    @classmethod
    def of_file(cls, path: Path, values: Mapping[str, Any]) -> Self:
        """Validate what a file holds; a refusal names the file, its public words do not."""
        try:
            return cls.from_mapping(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}", public=str(error)) from None

    @classmethod
    def explained(cls, key: str) -> str:
        """Say in one line what a key means and which values it takes."""
        meaning = cls._keys()[key].description
        return f"{meaning} ({cls.accepted_values(key).removesuffix(f' ({meaning})')})"


class SitePolicy(PolicySettings):
    """A site's bounds; the defaults are those of a deployed site, and admit every preset.

    Simulated trouble no deployed site admits. Build it with :meth:`of_site`.
    """

    min_participants: int = Field(
        MIN_PARTICIPANTS,
        ge=1,
        description="fewest people that a metric, a loss or a statistic must be about to leave",
    )
    min_batch_size: int = Field(
        4, ge=1, description="fewest images in an optimizer step, and people that a site trains on"
    )
    min_local_steps: int = Field(2, ge=1, description="fewest optimizer steps in a round")
    min_learning_rate: NonNegative = Field(
        1e-6, description="least learning rate of a classifier or a generator"
    )
    max_learning_rate: Positive = Field(
        0.01, description="greatest learning rate of a classifier or a generator"
    )
    require_augmentation: bool = Field(
        True, description="whether training must vary its images at random"
    )
    max_rounds: int = Field(1000, ge=1, description="most rounds of a run")
    max_term_weight: NonNegative = Field(
        1.0,
        description="greatest weight of a term that a strategy adds to the loss, such as "
        "FedProx's μ: beside a strong one an update shows little but the last steps, or what the "
        "server aims at",
    )
    private_seed: bool = Field(
        True,
        description="whether batches and augmentation also follow from a secret of the site's own; "
        "else the server can compute them",
    )
    max_movement: NonNegative = Field(
        4.0,
        description="how far weights may move from one round to the next, in a tensor: times the "
        "site's own largest update so far; 0: as far as they like",
    )
    max_absence: int = Field(
        3,
        ge=0,
        description="rounds in a row that the site may have been away from, for each of which "
        "weights may have moved by as much again",
    )
    approved_weights: tuple[str, ...] = Field(
        (),
        description="fingerprints of first weights that are not the run's own random ones",
        json_schema_extra={"accepted": f"a list of texts of {HASH_DIGITS} hexadecimal digits"},
    )
    share_moments: bool = Field(
        False, description="whether moments of features leave however few people they are over"
    )

    allowed_extensions: tuple[str, ...] = Field(
        (),
        description="code of packages that the site has installed, which a run may name and the "
        "site then imports",
        json_schema_extra={"accepted": "a list of names, each package.module:attribute"},
    )

    max_epsilon: NonNegative = Field(
        0.0,
        description="ε that all runs together may spend over the life of the site's data; runs "
        "without differential privacy are then refused; 0: any runs",
    )
    max_delta: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="δ that all runs together may spend where max-epsilon is set; 0: 1 / people "
        "that the site trains on",
    )

    @field_validator("approved_weights", mode="before")
    @classmethod
    def _fingerprints(cls, value: object) -> object:
        if not isinstance(value, list | tuple) or not all(map(_is_fingerprint, value)):
            raise ValueError("no fingerprints")  # put into words by accepted_values
        return tuple(value)

    @field_validator("allowed_extensions", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        texts = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        if not texts or not all(map(is_extension, value)):
            raise ValueError("no names")  # put into words by accepted_values
        return tuple(value)

    @classmethod
    def of_site(cls, *, simulated: bool) -> SitePolicy:
        """Read the policy that ``FEDSCAN_POLICY`` names, or take the default.

        Parameters
        ----------
        simulated : bool
            A simulated site has the researcher for its owner, who bounds himself in nothing unless
            he names a policy to try out.

        Raises
        ------
        ConfigError
            If the file cannot be read, or holds what is not accepted.
        """
        named = os.environ.get(VARIABLE)
        if not named:
            return SIMULATED if simulated else cls()
        if not Path(named).is_absolute():
            raise ConfigError(
                f"{VARIABLE}={named}: accepted is an absolute path",
                public=f"{VARIABLE}: accepted is an absolute path",
            )
        return cls.read(Path(named))

    @classmethod
    def read(cls, path: Path) -> SitePolicy:
        """Read a TOML file of kebab-case keys; what it leaves out has the default.

        The tables of the site's gate are passed over: this code may come with a run.

        Raises
        ------
        ConfigError
            Its public words name the key, never the path.
        """
        values = read_file(path)
        for table in (GATE, SUMS):
            if isinstance(values.get(table), dict):
                del values[table]
        return cls.of_file(path, values)

    @property
    def disclosure(self) -> Disclosure:
        """What the site tells of its people."""
        return Disclosure(self.min_participants, self.share_moments)

    def told(self, config: RunConfig) -> Disclosure:
        """Return what the site tells in a run: more where it is in sums over sites alone."""
        own = self.disclosure
        return own.in_sum(FEWEST_SITES) if config.privacy.secure_sums else own

    def objections(self, config: RunConfig) -> list[str]:
        """Say what in a run's configuration the site does not accept, in a line each."""
        strategy = load_strategy(config.strategy.name)
        steps = config.training.local_steps
        least = [
            (
                "training.batch-size",
                config.training.batch_size,
                self.min_batch_size,
                "min-batch-size",
            ),
            (
                "training.local-steps",
                strategy.shared_steps(steps, config) if steps else self.min_local_steps,
                self.min_local_steps,
                "min-local-steps",
            ),
        ]
        found = [
            f"{key} = {value}, accepted is {bound} or more ({name})"
            for key, value, bound, name in least
            if value < bound
        ]
        if config.run.rounds > self.max_rounds:
            found.append(
                f"run.rounds = {config.run.rounds}, accepted is {self.max_rounds} or "
                "fewer (max-rounds)"
            )
        task = load_task(config.task)
        for key, value in task.learning_rates(config).items():
            if not self.min_learning_rate <= value <= self.max_learning_rate:
                found.append(
                    f"{key} = {value:g}, accepted is {self.min_learning_rate:g} to "
                    f"{self.max_learning_rate:g} (min-learning-rate, max-learning-rate)"
                )
        found += [
            f"strategy.{key} = {weight:g}, accepted is {self.max_term_weight:g} or less "
            "(max-term-weight)"
            for key, weight in strategy.added_terms(config).items()
            if weight > self.max_term_weight
        ]
        if self.max_epsilon and not 0 < config.privacy.epsilon <= self.max_epsilon:
            found.append(
                f"privacy.epsilon = {config.privacy.epsilon:g}, accepted is above 0 up to "
                f"{self.max_epsilon:g} (max-epsilon)"
            )
        if self is not SIMULATED:
            found += [
                f"{key} = {name}, an extension that is not among allowed-extensions"
                for key, name in extensions_of(config).items()
                if name not in self.allowed_extensions
            ]
        if config.trouble.is_on and self is not SIMULATED:
            found.append("trouble.* is for simulations: leave it out")
        if config.data.classes and self is not SIMULATED:
            found.append(
                "data.classes is for simulations, since every answer would tell how many images of "
                "these classes there are: leave it out"
            )
        if self.require_augmentation and (why := task.without_augmentation(config)):
            found.append(f"{why} (require-augmentation)")
        return found

    def require(self, site: str, config: RunConfig) -> None:
        """Refuse a run whose configuration the site does not accept.

        Raises
        ------
        ConfigError
            With all objections.
        """
        if found := self.objections(config):
            raise ConfigError(
                f"site '{site}': its policy refuses this run: {'; '.join(found)}. Change the run, "
                f"or ask the site to change its policy, the file that {VARIABLE} names there"
            )

    def require_training(self, site: str, people: int, images: int, config: RunConfig) -> None:
        """Refuse a training on too few people, or of too few steps.

        Parameters
        ----------
        site : str
        people, images : int
            That the site trains on.
        config : RunConfig

        Raises
        ------
        DataContractError
        """
        if people < self.min_batch_size:
            raise DataContractError(
                site,
                f"fewer than {self.min_batch_size} participants to train on",
                remedy="A batch would repeat them: its policy (min-batch-size) refuses that",
            )
        strategy = load_strategy(config.strategy.name)
        if strategy.shared_steps(config.local_steps(images), config) < self.min_local_steps:
            raise DataContractError(
                site,
                f"fewer than {self.min_local_steps} steps a round move what leaves it",
                remedy="Its policy (min-local-steps) refuses that: set more training.local-epochs "
                "or local-steps",
            )


def read_file(path: Path) -> dict[str, Any]:
    """Read a policy file as TOML.

    Raises
    ------
    ConfigError
        It cannot be read; the public words do not name it.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE} bytes")
        return parse_toml(text.decode())
    except (OSError, ValueError) as error:
        problem = "the site's policy cannot be read"
        raise ConfigError(f"{problem}: {path}: {error}", public=problem) from error


# The researcher owns every site: of the bounds those remain that an honest server always keeps.
SIMULATED = SitePolicy(
    min_participants=EVERYTHING.min_participants,
    share_moments=EVERYTHING.moments,
    min_batch_size=1,
    min_local_steps=1,
    min_learning_rate=0.0,
    max_learning_rate=10.0,
    require_augmentation=False,
    max_rounds=100_000,
    max_movement=0.0,
    max_term_weight=1e30,
    private_seed=False,
)


def _is_fingerprint(value: object) -> bool:
    return (
        isinstance(value, str)
        and len(value) == HASH_DIGITS
        and set(value) <= set("0123456789abcdef")
    )
