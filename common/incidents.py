"""What befell each site of a run: answers that were not used, votes and updates that were bounded.

Each is reported in the log where it happens, bounds once a site, and counted for the summary.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from common.disclosure import WITHHELD

# A child of Flower's logger, so that lines reach its console and `flwr run --stream`.
log = logging.getLogger("flwr.fedscan")

Rounds = dict[str, list[int]]  # by site


@dataclass
class Incidents:
    """Rounds of each site, by what befell it in them.

    Parameters
    ----------
    lost, share_bounded, norm_bounded : dict of str to list of int
        Rounds without a usable answer of a site, or in which its votes or its update were bounded.
    withholds : list of (str, str)
        Sites and splits of which no evaluation is reported.
    """

    lost: Rounds = field(default_factory=dict)
    share_bounded: Rounds = field(default_factory=dict)
    norm_bounded: Rounds = field(default_factory=dict)
    withholds: list[tuple[str, str]] = field(default_factory=list)

    def lose(self, number: int, site: str, phase: str, error: str) -> None:
        """Count a round in which there is no answer of a site that is used."""
        log.warning("Site '%s' is left out of %s: %s", site, phase, error)
        _add(self.lost, site, number)

    def share(self, number: int, sites: Iterable[str], most_share: float) -> None:
        """Count a round in which sites had more votes than one may have."""
        for site in sites:
            if site not in self.share_bounded:
                log.warning(
                    "Round %d: most-share bounds the votes of site '%s' to a share of %g, here and "
                    "in later rounds",
                    *(number, site, most_share),
                )
            _add(self.share_bounded, site, number)

    def norm(self, number: int, site: str, norm: float, most: float) -> None:
        """Count a round in which a site's update was longer than most-norm allows."""
        log.warning(
            "Round %d: the update of site '%s' is %.3g long and is shortened to %.3g, by most-norm",
            *(number, site, norm, most),
        )
        _add(self.norm_bounded, site, number)

    def withhold(self, split: str, words: Mapping[str, Mapping[str, str]]) -> None:
        """Say, once a split, which sites do not tell how well a model fared."""
        for site, said in words.items():
            if (site, split) not in self.withholds:
                self.withholds.append((site, split))
                why = said.get(WITHHELD, "")
                log.info("Site '%s' withholds its evaluations (%s): %s", site, split, why)

    def of(self, site: str) -> dict[str, int]:
        """Return a site's part of the summary: numbers of rounds."""
        return {
            "rounds_lost": _count(self.lost, site),
            "rounds_share_bounded": _count(self.share_bounded, site),
            "rounds_norm_bounded": _count(self.norm_bounded, site),
        }


def _add(rounds: Rounds, site: str, number: int) -> None:
    """Count a round once, whatever else befell the site in it."""
    if number not in rounds.setdefault(site, []):
        rounds[site].append(number)


def _count(rounds: Mapping[str, Collection[int]], site: str) -> int:
    return len(rounds.get(site, ()))
