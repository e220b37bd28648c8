"""What a run promises the people of a site, or each site: its (ε, δ), and the noise that keeps it.

All follows from the run's configuration and the number N of people whom the site trains on, or of
sites. N is no secret of the guarantee.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.privacy.accounting import epsilon_of, noise_for
from common.privacy.dp_sgd import DPSGD

if TYPE_CHECKING:
    from common.config.run_config import RunConfig

SAFER = 10  # δ by itself: so many times below 1/N


@dataclass(frozen=True)
class Guarantee:
    """The guarantee of a whole run: to the people of one site, or to all sites.

    Parameters
    ----------
    epsilon, delta : float
        Of all of the run's steps.
    rate : float
        q, the chance of a person to be in a step; of a site in a round it is 1.
    steps_a_round, rounds : int
    """

    epsilon: float
    delta: float
    rate: float
    steps_a_round: int
    rounds: int

    @cached_property
    def noise_multiplier(self) -> float:
        """σ, calibrated to all steps of the run.

        Raises
        ------
        ConfigError
            Opacus is not installed, or no noise is enough.
        """
        steps = self.rounds * self.steps_a_round
        return noise_for(self.epsilon, self.delta, self.rate, steps)

    def spent(self, round_number: int) -> float:
        """Return the ε of all rounds up to one, as if the site had taken part in each."""
        steps = round_number * self.steps_a_round
        return epsilon_of(self.noise_multiplier, self.rate, steps, self.delta)


def guarantee_of(config: RunConfig, people: int) -> Guarantee:
    """Return the guarantee of a run to the people of a site.

    Parameters
    ----------
    config : RunConfig
        With ``privacy.epsilon`` above 0.
    people : int
        N, with an image that the site trains on.

    Raises
    ------
    ConfigError
        ``privacy.delta`` is above 1/N: to publish one person's data whole would be allowed.
    """
    privacy = config.privacy
    return Guarantee(
        epsilon=privacy.epsilon,
        delta=_delta("privacy.delta", privacy.delta, people, "people of a site"),
        rate=min(1.0, config.training.batch_size / people),
        steps_a_round=config.training.local_steps,
        rounds=config.run.rounds,
    )


def central_guarantee_of(config: RunConfig, sites: int) -> Guarantee:
    """Return the guarantee of a run to each of its sites, by the noise of the server.

    Parameters
    ----------
    config : RunConfig
        With ``privacy.central-epsilon`` above 0.
    sites : int
        That learn.

    Raises
    ------
    ConfigError
        ``privacy.central-delta`` is above 1 / sites.
    """
    privacy = config.privacy
    return Guarantee(
        epsilon=privacy.central_epsilon,
        delta=_delta("privacy.central-delta", privacy.central_delta, sites, "sites"),
        rate=1.0,
        steps_a_round=1,
        rounds=config.run.rounds,
    )


def _delta(key: str, given: float, number: int, of_what: str) -> float:
    if given * number > 1:
        raise ConfigError(
            f"{key} = {given:g} is above 1 / (the {of_what}): set it lower, or 0 for 1 / "
            f"({SAFER} · {of_what})"
        )
    return given or 1 / (SAFER * number)


def dp_sgd_of(config: RunConfig, people: int, seed: int) -> DPSGD:
    """Return the draws and gradients of one round at a site.

    Parameters
    ----------
    config : RunConfig
        With ``privacy.epsilon`` above 0.
    people : int
        N.
    seed : int
        Of people and noise: secret, and another in each round.

    Raises
    ------
    ConfigError
        See :func:`guarantee_of`; or there is no Opacus.
    """
    guarantee = guarantee_of(config, people)
    return DPSGD(
        noise_multiplier=guarantee.noise_multiplier,
        max_norm=config.privacy.max_norm,
        people=config.training.batch_size,  # at q = 1 more than there are: known to all, as it is
        rate=guarantee.rate,
        images=config.privacy.images_a_person,
        seed=seed,
    )
