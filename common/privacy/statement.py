"""What a run promised the people of its sites, in the words of its files.

Each site tells its part beside the metrics of its training (:data:`TOLD`): all of it follows from
the run's configuration and the number of people whom the site trains on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.config.run_config import RunConfig

EPSILON, DELTA, NOISE, SECRET = "epsilon", "delta", "noise-multiplier", "secret-noise"
TOLD = (EPSILON, DELTA, NOISE, SECRET)  # metrics of a training that are about nobody's images
UNIT = "person"


def told(
    config: RunConfig, people: int, round_number: int, *, secret_noise: bool
) -> dict[str, float]:
    """Return what a site tells of its guarantee after a round; nothing where there is none.

    Parameters
    ----------
    config : RunConfig
    people : int
        Whom the site trains on.
    round_number : int
        Up to which ε is told, as if the site had taken part in each.
    secret_noise : bool
        Whether the noise follows from a secret of the site; else whoever knows the run's seed can
        compute it.

    Returns
    -------
    dict of str to float
        ``epsilon`` spent so far, ``delta``, ``noise-multiplier``, and ``secret-noise``, 0 or 1.
    """
    if not config.privacy.is_on:
        return {}
    from common.privacy.guarantee import guarantee_of  # with PyTorch, which few readers need

    guarantee = guarantee_of(config, people)
    return {
        EPSILON: guarantee.spent(round_number),
        DELTA: guarantee.delta,
        NOISE: guarantee.noise_multiplier,
        SECRET: float(secret_noise),
    }


def statement(config: RunConfig, *fits: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return what a run's summary says of its guarantee; nothing where there is none.

    Parameters
    ----------
    config : RunConfig
    *fits : mapping of str to mapping
        What sites have told with a training, the later the better known.

    Returns
    -------
    dict
        ``privacy``: ``unit``, ``epsilon`` (the budget of the whole run), ``max_norm``,
        ``images_a_person``, ``secret_noise`` (whether all sites say that theirs is; None: none
        has told, as with secure sums) and ``sites[site]``: ``epsilon`` spent, ``delta``,
        ``noise_multiplier``.
    """
    if not config.privacy.is_on:
        return {}
    known = {name: one for fit in fits for name, one in fit.items() if EPSILON in one}
    return {
        "privacy": {
            "unit": UNIT,
            "epsilon": config.privacy.epsilon,
            "max_norm": config.privacy.max_norm,
            "images_a_person": config.privacy.images_a_person,
            "secret_noise": all(one.get(SECRET) for one in known.values()) if known else None,
            "sites": {
                name: {key.replace("-", "_"): one.get(key) for key in (EPSILON, DELTA, NOISE)}
                for name, one in sorted(known.items())
            },
        }
    }
