"""All that a run promises, in one list: to each site's people, and to the sites themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from common.privacy.guarantee import central_guarantee_of, guarantee_of

if TYPE_CHECKING:
    from common.config.run_config import RunConfig


@dataclass(frozen=True)
class Promise:
    """(ε, δ) of a whole run.

    Parameters
    ----------
    unit : {"person", "site"}
        Whose part in the data may be added or taken away.
    site : str
        Whose people; "" where the unit is the site.
    epsilon : float
    delta, noise_multiplier, rate : float or None
        δ, σ and q; None of a site whose number of people is not known.
    steps : int
        Releases that are composed: optimizer steps, or rounds.
    norm : float
        To which one unit's part in a release is clipped.
    """

    unit: Literal["person", "site"]
    site: str
    epsilon: float
    delta: float | None
    noise_multiplier: float | None
    rate: float | None
    steps: int
    norm: float


def promises_of(config: RunConfig, people: Mapping[str, int | None]) -> list[Promise]:
    """Return what a run promises; nothing without differential privacy.

    The same for classifiers and generators: a generator's images come of a discriminator whose
    steps are those that are counted.

    Parameters
    ----------
    config : RunConfig
    people : mapping of str to int or None
        Of each site that learns, how many people it trains on; None where that is not known.

    Raises
    ------
    ConfigError
        Opacus is not installed, no noise is enough, or a δ is too large for so few.
    """
    privacy, found = config.privacy, []
    if privacy.is_on:
        for site, number in sorted(people.items()):
            own = guarantee_of(config, number) if number else None
            found.append(
                Promise(
                    unit="person",
                    site=site,
                    epsilon=privacy.epsilon,
                    delta=own.delta if own else None,
                    noise_multiplier=own.noise_multiplier if own else None,
                    rate=own.rate if own else None,
                    steps=config.total_steps,
                    norm=privacy.max_norm,
                )
            )
    if privacy.is_central:
        common = central_guarantee_of(config, len(people))
        found.append(
            Promise(
                unit="site",
                site="",
                epsilon=common.epsilon,
                delta=common.delta,
                noise_multiplier=common.noise_multiplier,
                rate=common.rate,
                steps=common.rounds,
                norm=privacy.central_norm,
            )
        )
    return found


def central_statement(
    config: RunConfig, sites: int, *, secret_noise: bool | None
) -> dict[str, Any]:
    """Return what a run's summary says of the server's noise; nothing where there is none.

    Parameters
    ----------
    config : RunConfig
    sites : int
        That learn.
    secret_noise : bool, optional
        Whether the noise follows from nothing that anybody knows; else it follows from the run's
        seed. None: that is not known.

    Returns
    -------
    dict
        ``central_privacy``: ``unit``, ``epsilon`` and ``delta`` of the whole run,
        ``noise_multiplier``, ``max_norm`` of a site's update, ``rounds``, ``sites``,
        ``secret_noise``.
    """
    if not config.privacy.is_central:
        return {}
    known = central_guarantee_of(config, sites)
    return {
        "central_privacy": {
            "unit": "site",
            "epsilon": known.epsilon,
            "delta": known.delta,
            "noise_multiplier": known.noise_multiplier,
            "max_norm": config.privacy.central_norm,
            "rounds": known.rounds,
            "sites": sites,
            "secret_noise": secret_noise,
        }
    }
