"""Differential privacy of a generator that is trained in one place: its noise, and what is told.

It is that of a federated generator at a site (docs/privacy.md), in one round of all steps. The
noise follows from a secret of the folder's own, which a training that goes on needs, and which is
forgotten when it has ended: nobody can subtract the noise then.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.run_config import RunConfig
from common.errors import FedscanError
from common.files import write_json
from common.privacy.statement import statement, told
from common.reading import read_json

if TYPE_CHECKING:
    from common.privacy.dp_sgd import DPSGD
    from common.training.gan_config import GanConfig

NOISE = "noise.json"


@dataclass(frozen=True)
class Private:
    """What is promised to the people whom a training has.

    Parameters
    ----------
    epsilon, delta : float
        δ = 0: 1 / (10 · people).
    study : str
    """

    epsilon: float
    delta: float
    study: str

    @property
    def asked(self) -> dict[str, float]:
        """What a manifest says, by which a training goes on."""
        return {"epsilon": self.epsilon, "delta": self.delta}

    def labels(self, sites: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return all values of labels that the study has."""
        from common.studies.study import read_study
        from common.tasks.generation_networks import known_labels

        return known_labels(read_study(self.study), sites)

    def require(self, config: GanConfig, people: int) -> None:
        """Refuse what no noise can promise.

        Raises
        ------
        ConfigError
            δ is too large for so few people, no noise is enough, or Opacus is not installed.
        """
        from common.privacy.guarantee import guarantee_of

        _ = guarantee_of(self._run(config), people).noise_multiplier

    def mechanism(self, config: GanConfig, people: int, folder: Path) -> DPSGD:
        """Return the draws and gradients of a training, by the secret in its folder.

        Raises
        ------
        FedscanError
            The secret is missing, or cannot be read.
        """
        from common.privacy.guarantee import dp_sgd_of

        path, remedy = folder / NOISE, "Begin anew with another --out"
        try:
            seed = int(str(read_json(path, remedy=remedy)["seed"]), 16)
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise FedscanError(f"{path} does not hold the noise's seed. {remedy}") from error
        return dp_sgd_of(self._run(config), people, seed)

    def told(self, config: GanConfig, people: int, sites: Sequence[str]) -> dict[str, Any]:
        """Return what the summary says: the whole training's ε, also of one that was stopped."""
        run = self._run(config)
        return statement(run, {"+".join(sites): told(run, people, 1, secret_noise=True)})

    def _run(self, config: GanConfig) -> RunConfig:
        """Return a run of one round with as many steps."""
        return RunConfig.from_flower(
            {
                "task": "generation",
                "study": self.study,
                "run.rounds": 1,
                "training.local-steps": config.total_steps,
                "training.batch-size": config.batch_size,
                "privacy.epsilon": self.epsilon,
                "privacy.delta": self.delta,
            }
        )


def begin(folder: Path) -> None:
    """Write the secret of a training that begins."""
    from common.privacy.noise import SECRET_BITS

    seed = f"{secrets.randbits(SECRET_BITS):x}"
    write_json(folder / NOISE, {"seed": seed, "about": "secret: who knows it knows the noise"})


def forget(folder: Path) -> None:
    """Forget the secret of a training that has ended."""
    (folder / NOISE).unlink(missing_ok=True)
