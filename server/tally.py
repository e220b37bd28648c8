"""What befell each site of a run: answers that were not used, votes and updates that were bounded.

Each is told in the log where it happens, bounds once a site, and counted for the summary.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping

from common.config.run_config import RunConfig
from common.disclosure import WITHHELD
from server.replies import SiteFailure

log = logging.getLogger("flwr.fedscan")


class Tally:
    """Rounds of each site, by what befell it in them.

    Parameters
    ----------
    sites : collection of str
    """

    def __init__(self, sites: Collection[str]) -> None:
        self._lost: dict[str, set[int]] = {name: set() for name in sites}
        self._share: dict[str, set[int]] = {name: set() for name in sites}
        self._norm: dict[str, set[int]] = {name: set() for name in sites}
        self._silent: set[tuple[str, str]] = set()

    def lose(self, number: int, site: str, failure: SiteFailure) -> None:
        """Count a round in which a site's answer is not used."""
        what = failure.failure
        log.warning("Site '%s' is left out of %s: %s", site, what.phase, what.error)
        self._lost[site].add(number)

    def share(self, number: int, sites: Iterable[str], config: RunConfig) -> None:
        """Count a round in which sites had more votes than one may have."""
        for site in sites:
            if not self._share[site]:
                log.warning(
                    "Round %d: most-share bounds the votes of site '%s' to a share of %g, here and "
                    "in later rounds",
                    *(number, site, config.strategy.most_share),
                )
            self._share[site].add(number)

    def norm(self, number: int, site: str, norm: float, most: float) -> None:
        """Count a round in which a site's update was longer than most-norm allows."""
        log.warning(
            "Round %d: the update of site '%s' is %.3g long and is shortened to %.3g, by most-norm",
            *(number, site, norm, most),
        )
        self._norm[site].add(number)

    def withheld(self, split: str, words: Mapping[str, Mapping[str, str]]) -> None:
        """Say, once a split, which sites do not tell how well a model fared."""
        for site, said in words.items():
            if (site, split) not in self._silent:
                self._silent.add((site, split))
                why = said.get(WITHHELD, "")
                log.info("Site '%s' withholds its evaluations (%s): %s", site, split, why)

    def of(self, site: str) -> dict[str, int]:
        """Return a site's part of the summary: numbers of rounds."""
        return {
            "rounds_lost": len(self._lost[site]),
            "rounds_share_bounded": len(self._share[site]),
            "rounds_norm_bounded": len(self._norm[site]),
        }
