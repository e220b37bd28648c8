"""Who takes part in which round of a run, and why not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from common.seeding import derive_seed
from common.strategies.strategy import load_strategy

if TYPE_CHECKING:
    from common.config.run_config import RunConfig

MOST_UNUSABLE = 3  # answers in a row, until a site is suspended


class Outcome(StrEnum):
    """What came of an order to a site."""

    USED = "used"
    UNUSABLE = "unusable"  # an answer that is not what was asked for
    FAILED = "failed"  # the site says that it could not
    ABSENT = "absent"  # not connected, or no answer in time
    BUSY = "busy"  # still at work on earlier orders
    SUSPENDED = "suspended"  # not asked


@dataclass(frozen=True)
class Attendance:
    """What came of one order to one site.

    Parameters
    ----------
    round : int
    order : str
        The split: ``train``, ``val`` or ``test``.
    site : str
    outcome : Outcome
    why : str
        Of an answer that was not used.
    """

    round: int
    order: str
    site: str
    outcome: Outcome
    why: str = ""


@dataclass
class Standing:
    """Of each site whether it is asked, and what it holds.

    Parameters
    ----------
    trained : dict of str to int
        The last round whose order to train a site has answered.
    unusable : dict of str to dict of str to int
        Answers in a row that could not be used, by order and site: one that judges well may train
        badly.
    suspended : dict of str to int
        Sites that are not asked any more, with the round since which.
    """

    trained: dict[str, int] = field(default_factory=dict)
    unusable: dict[str, dict[str, int]] = field(default_factory=dict)
    suspended: dict[str, int] = field(default_factory=dict)

    def note(self, one: Attendance) -> bool:
        """Take account of an order's outcome; return whether it suspends the site."""
        counts = self.unusable.setdefault(one.order, {})
        if one.outcome is Outcome.USED:
            counts.pop(one.site, None)
        elif one.outcome is Outcome.UNUSABLE:
            counts[one.site] = counts.get(one.site, 0) + 1
            if counts[one.site] >= MOST_UNUSABLE and one.site not in self.suspended:
                self.suspended[one.site] = one.round
                return True
        return False

    def readmit(self, site: str) -> None:
        """Ask a suspended site again."""
        self.suspended.pop(site, None)
        for counts in self.unusable.values():
            counts.pop(site, None)


def in_training(number: int, names: tuple[str, ...], config: RunConfig) -> tuple[str, ...]:
    """Return the sites that train in a round: all, or a share drawn from the run's seed by name.

    Parameters
    ----------
    number : int
        The round, from 1.
    names : tuple of str
        Sites that may be asked, sorted. Those that may not learn are always among the result.
    config : RunConfig
    """
    learning = learning_sites(names, config)
    count = sites_in_training(len(learning), config)
    ranks = {name: derive_seed(config.run.seed, site=name, sampling=number) for name in learning}
    drawn = set(sorted(learning, key=ranks.__getitem__)[:count])
    return tuple(name for name in names if name in drawn or name not in ranks)


def learning_sites(names: tuple[str, ...], config: RunConfig) -> tuple[str, ...]:
    """Return the sites that may learn: those whose labels are hidden may not, as a rule."""
    strategy = load_strategy(config.strategy.name)
    return tuple(name for name in names if strategy.trains_at(name, config))


def sites_in_training(sites: int, config: RunConfig) -> int:
    """Return how many of a run's sites train in a round, as many as the strategy needs at least."""
    needed = load_strategy(config.strategy.name).sites_needed(config)
    return min(sites, max(math.ceil(config.run.fraction * sites), needed))
