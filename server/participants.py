"""Who takes part: sites by name, orders to them, and what came of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from common import messages
from common.bounds import MOST_TIMES, outsized
from common.config.run_config import RunConfig
from common.errors import AbsentError, ConfigError, ProvenanceError
from common.evaluation.generation import require_one_extractor
from common.messages import Failure
from common.participation import Outcome
from common.site_names import SITE_NAME
from server.exchange import Deadline, Mail, UnfinishedError
from server.replies import TRAINING, Identity, SiteFailure, read_identity, unusable

log = logging.getLogger("flwr.fedscan")

SETTLE_SECONDS = 1.0  # no new site for so long: everybody who was starting with the others is here
LOOK_SECONDS = 0.2
RETRY_SECONDS = 5.0  # before a round is asked for again
PAUSE_SECONDS = 60.0  # before a SuperNode that is no site of the run is asked again who it is
RETURN_SECONDS = 120.0  # for the answer of a SuperNode that is new: which site is it?


@dataclass(frozen=True)
class Participant:
    """A connected site: Flower's number for it, its counts of scans, its device."""

    node_id: int
    counts: dict[str, int]
    device: str


class Participants:
    """The sites of one run, ordered by name, which is stable where Flower's node ids are random.

    Parameters
    ----------
    grid : Grid
    config : RunConfig
        ``min_sites``, ``min_replies``, ``connect_timeout``, ``round_timeout`` and ``site_nodes``.
        With site nodes, only those are asked, and each must say the name that it is bound to.
    roster : mapping of str to mapping
        The sites of a run that is resumed, with their counts: no others take part. Those that are
        away then are waited for in every round, if not every site must answer.

    Raises
    ------
    ConfigError
        If too few sites connect in time, two claim one name, or one claims another's.
    FedscanError
        If they judge pictures with different extractors, or one runs other sources.
    SiteFailure
        If a site cannot take part, and the run needs every site's answers.
    """

    def __init__(
        self, grid: Grid, config: RunConfig, roster: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        roster = roster or {}
        run = config.run
        self._least = min(run.min_sites, run.min_replies) if roster and run.min_replies else 0
        self._least = self._least or run.min_sites
        self._grid, self._config, self.mail = grid, config, Mail(grid)
        self._bound = config.nodes_of_sites()
        nodes = self._wait_for_nodes(set(self._bound.values()), len(roster))
        self._extractors: dict[str, str] = {}
        self._known: set[int] = set()
        self._asked: dict[int, float] = {}  # when each node was asked who it is
        self.sites: dict[str, Participant] = {}
        failures: dict[str, SiteFailure] = {}
        for label, said in self._hello(nodes, config.run.round_timeout):
            if isinstance(said, SiteFailure):
                failures[label] = said
            elif said.site in self.sites:
                raise ConfigError(
                    f"two SuperNodes say that they are site '{said.site}'. Give each its own name"
                )
            elif not roster or said.site in roster:
                self._take(int(label), said)
        for _, failure in sorted(failures.items()):
            if not config.run.min_replies:
                raise failure
            log.warning("A site takes no part: %s", failure)
        if len(self.sites) < self._least:
            raise next(iter(failures.values()), ConfigError(self._too_few(len(self.sites))))
        for name in roster.keys() - self.sites.keys() if self._may_be_away else ():
            counts = {key: n for key, n in roster[name].items() if key != "device"}
            device, node = str(roster[name]["device"]), self._bound.get(name, 0)
            self.sites[name] = Participant(node, counts, device)
        require_one_extractor(dict(sorted(self._extractors.items())))
        self.sites = dict(sorted(self.sites.items()))
        told = {name: site.counts for name, site in self.sites.items() if site.counts}
        scans = {name: counts[TRAINING] for name, counts in told.items()}
        for name, usual in outsized(scans).items():
            log.warning(
                "Site '%s' says that it has %d training scans, more than %d times the others' "
                "median of %g",
                *(name, scans[name], MOST_TIMES, usual),
            )

    @property
    def extractor(self) -> str:
        """Hash of the network by which all sites judge pictures; "" where there is none."""
        return next(iter(self._extractors.values()), "")

    def ask(
        self,
        phase: str,
        names: Collection[str],
        compose: Callable[[str, int], Message],
        deadline: Deadline,
        statistics: int = 0,
    ) -> Iterator[tuple[str, Message | tuple[Outcome, SiteFailure]]]:
        """Ask sites, and yield what comes of it as soon as it is known.

        Parameters
        ----------
        phase : str
            What is asked for, in an error's words.
        names : collection of str
        compose : callable
            Given a site and its node id, returns the order.
        deadline : Deadline
        statistics : int
            Bytes that a reply may have besides weights.

        Yields
        ------
        site : str
            Each of ``names`` once.
        answer : Message or (Outcome, SiteFailure)
        """
        self._look_for_returned()
        connected, busy, asked = set(self._grid.get_node_ids()), self.mail.busy(), {}
        for name in names:
            node = self.sites[name].node_id
            if name in busy:
                why = "it is still at work on earlier orders"
                yield name, _lost(Outcome.BUSY, name, phase, why)
            elif self._may_be_away and node not in connected:
                yield name, _lost(Outcome.ABSENT, name, phase, "it is not connected")
            else:
                asked[name] = compose(name, node)
        silent = dict.fromkeys(asked)
        for name, answer in self.mail.ask(asked, deadline, statistics):
            del silent[name]
            if isinstance(answer, UnfinishedError):
                yield name, _lost(Outcome.ABSENT, name, phase, str(answer))
            elif isinstance(answer, Exception):
                yield name, (Outcome.UNUSABLE, unusable(name, phase, answer))
            elif failure := messages.failure_in(answer, name, phase):
                # Who it is, a site says only when it is asked: else it could blame another.
                away = failure.kind == AbsentError.__name__  # as a simulation has it
                outcome = Outcome.ABSENT if away else Outcome.FAILED
                yield name, (outcome, SiteFailure(replace(failure, site=name)))
            else:
                yield name, answer
        for name in silent:
            why = f"no answer within {deadline.passed:.3g} s"
            yield name, _lost(Outcome.ABSENT, name, phase, why)

    def wait_for(self, number: int) -> None:
        """Wait a little, and until so many of the sites are connected, as long as at a start."""
        time.sleep(RETRY_SECONDS)
        deadline = Deadline(self._config.run.connect_timeout)
        while deadline.left > 0:
            self._look_for_returned()
            connected = set(self._grid.get_node_ids())
            if sum(site.node_id in connected for site in self.sites.values()) >= number:
                return
            time.sleep(LOOK_SECONDS)

    @property
    def _may_be_away(self) -> bool:
        return self._config.run.min_replies > 0

    def _look_for_returned(self) -> None:
        """Find sites whose SuperNode was started anew, and has another number since."""
        connected = set(self._grid.get_node_ids())
        away = {name for name, site in self.sites.items() if site.node_id not in connected}
        recent = time.monotonic() - PAUSE_SECONDS
        new = sorted(n for n in connected - self._known if self._asked.get(n, -1e9) < recent)
        if not away or not new or not self._may_be_away or self._bound:
            return
        for label, said in self._hello(new, RETURN_SECONDS):
            if isinstance(said, SiteFailure):
                log.warning("%s", said)
            elif (
                said.site in away
                and said.counts == self.sites[said.site].counts
                and said.extractor_hash == self._extractors.get(said.site, said.extractor_hash)
            ):
                log.info("Site '%s' is back", said.site)
                self._take(int(label), said)

    def _take(self, node: int, said: Identity) -> None:
        self.sites[said.site] = Participant(node, said.counts, said.device)
        self._extractors[said.site] = said.extractor_hash

    def _hello(
        self, nodes: list[int], seconds: float
    ) -> Iterator[tuple[str, Identity | SiteFailure]]:
        """Ask SuperNodes who they are; yield the answers by the number of the node."""
        phase, found = messages.HELLO, {}
        self._asked |= dict.fromkeys(nodes, time.monotonic())
        orders = {str(node): messages.request(phase, node, timeout=seconds) for node in nodes}
        silent = dict.fromkeys(orders)
        for label, answer in self.mail.ask(orders, Deadline(seconds)):
            del silent[label]
            found[label] = self._identity(label, answer)
        for label in silent:
            why = f"no answer within {seconds:g} s"
            found[label] = SiteFailure(Failure(label, phase, why, ""))
        self._known |= {int(label) for label, said in found.items() if isinstance(said, Identity)}
        yield from sorted(found.items(), key=lambda one: int(one[0]))

    def _identity(self, label: str, answer: Message | Exception) -> Identity | SiteFailure:
        phase = messages.HELLO
        if isinstance(answer, Exception):
            return unusable(label, phase, answer)
        if failure := messages.failure_in(answer, label, phase):
            named = SITE_NAME.fullmatch(failure.site)
            return SiteFailure(failure if named else replace(failure, site=label))
        try:
            secret = self._config.privacy.secure_sums
            said = read_identity(answer, label, phase, counts=not secret)
        except SiteFailure as failure:
            return failure
        except ProvenanceError as error:
            if not self._may_be_away:
                raise
            return SiteFailure(Failure(label, phase, str(error), ""))
        bound, node = self._bound, int(label)
        if bound and bound.get(said.site) != node:
            own = next(site for site, number in bound.items() if number == node)
            raise ConfigError(
                f"SuperNode {label} says that it is site '{said.site}', and site-nodes binds it to "
                f"site '{own}'. Set its name in --node-config, or mend site-nodes"
            )
        return said

    def _too_few(self, count: int) -> str:
        run = self._config.run
        return (
            f"{count} sites connected within {run.connect_timeout:g} s, run.min-sites = "
            f"{run.min_sites}. Start the missing SuperNodes, or lower min-sites"
        )

    def _wait_for_nodes(self, bound: set[int], wanted: int) -> list[int]:
        """Wait for enough nodes; where some are bound to sites, no other counts."""
        deadline = time.monotonic() + self._config.run.connect_timeout
        known: set[int] = set()
        since = time.monotonic()
        while True:
            connected = set(self._grid.get_node_ids())
            if bound:
                connected &= bound
            if connected != known:
                known, since = connected, time.monotonic()
            late = time.monotonic() > deadline
            enough = len(known) >= (self._least if late else max(self._least, wanted))
            if enough and (late or time.monotonic() - since >= SETTLE_SECONDS):
                return sorted(known)
            if late:
                raise ConfigError(self._too_few(len(known)))
            time.sleep(LOOK_SECONDS)


def _lost(outcome: Outcome, name: str, phase: str, why: str) -> tuple[Outcome, SiteFailure]:
    return outcome, SiteFailure(Failure(name, phase, why, ""))
