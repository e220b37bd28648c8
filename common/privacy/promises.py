"""What a run promises its sites by the server's noise, in the words of its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.privacy.guarantee import central_guarantee_of

if TYPE_CHECKING:
    from common.config.run_config import RunConfig


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
