"""Who takes part: sites by name, and questions put to all of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from flwr.app import Message
from flwr.serverapp import Grid

from common import messages
from common.bounds import MOST_TIMES, outsized
from common.config.run_config import RunConfig
from common.errors import ConfigError
from common.evaluation.generation import require_one_extractor
from common.messages import Failure
from common.site_names import SITE_NAME
from server.exchange import exchange
from server.replies import TRAINING, SiteFailure, read_identity, unusable

log = logging.getLogger("flwr.fedscan")

SETTLE_SECONDS = 1.0  # no new site for so long: everybody who was starting with the others is here


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
        ``min_sites``, ``connect_timeout``, ``reply_timeout`` and ``site_nodes``. With site nodes,
        only those are asked, and each must say the name that it is bound to.

    Raises
    ------
    ConfigError
        If too few sites connect in time, two claim one name, or one claims another's.
    FedscanError
        If they judge pictures with different extractors, or one runs other sources.
    SiteFailure
        If a site cannot take part.
    """

    def __init__(self, grid: Grid, config: RunConfig) -> None:
        self._grid, self._config = grid, config
        bound = config.nodes_of_sites()
        nodes = {str(node): node for node in self._wait_for_nodes(set(bound.values()))}
        hello = messages.HELLO
        replies, unreadable = self._exchange(
            {
                label: messages.request(hello, node, timeout=config.run.reply_timeout)
                for label, node in nodes.items()
            },
            hello,
        )
        for failure in unreadable.values():
            raise failure
        sites: dict[str, Participant] = {}
        extractors: dict[str, str] = {}
        for label, reply in replies.items():
            said = read_identity(reply, label, hello)
            name = said.site
            if bound and bound.get(name) != nodes[label]:
                own = next(site for site, node in bound.items() if node == nodes[label])
                raise ConfigError(
                    f"SuperNode {label} says that it is site '{name}', and site-nodes binds it to "
                    f"site '{own}'. Set its name in --node-config, or mend site-nodes"
                )
            if name in sites:
                raise ConfigError(
                    f"two SuperNodes say that they are site '{name}'. Give each its own name"
                )
            sites[name] = Participant(nodes[label], said.counts, said.device)
            extractors[name] = said.extractor_hash
        require_one_extractor(dict(sorted(extractors.items())))
        self.sites = dict(sorted(sites.items()))
        scans = {name: site.counts[TRAINING] for name, site in self.sites.items()}
        for name, usual in outsized(scans).items():
            log.warning(
                "Site '%s' says that it has %d training scans, more than %d times the others' "
                "median of %g",
                *(name, scans[name], MOST_TIMES, usual),
            )

    def ask(
        self,
        kind: str,
        compose: Callable[[int], Message],
        round_number: int,
        statistics: int = 0,
    ) -> tuple[dict[str, Message], dict[str, SiteFailure]]:
        """Ask every site and return the replies by name, in order of name.

        Parameters
        ----------
        kind : str
            What is asked for, in an error's words.
        compose : callable
            Given a node id, returns the request.
        round_number : int
        statistics : int
            Bytes that a reply may have besides weights.

        Returns
        -------
        replies : dict of str to Message
        unreadable : dict of str to SiteFailure
            Of the sites whose reply came and could not be put together.

        Raises
        ------
        SiteFailure
            The first failure in order of name: no answer, or one that says that it failed.
        """
        requests = {name: compose(site.node_id) for name, site in self.sites.items()}
        return self._exchange(requests, f"{kind}, round {round_number}", statistics)

    def _exchange(
        self, requests: dict[str, Message], phase: str, statistics: int = 0
    ) -> tuple[dict[str, Message], dict[str, SiteFailure]]:
        timeout = self._config.run.reply_timeout
        replies, errors = exchange(self._grid, requests, timeout, statistics)
        for name in sorted(requests):
            if name in errors:
                continue
            if name not in replies:
                raise SiteFailure(Failure(name, phase, f"no answer within {timeout:g} s", ""))
            if failure := messages.failure_in(replies[name], name, phase):
                # Who it is, a site says only when it is asked: else it could blame another.
                if phase != messages.HELLO or not SITE_NAME.fullmatch(failure.site):
                    failure = replace(failure, site=name)
                raise SiteFailure(failure)
        unreadable = {name: unusable(name, phase, errors[name]) for name in sorted(errors)}
        return {name: replies[name] for name in sorted(replies)}, unreadable

    def _wait_for_nodes(self, bound: set[int]) -> list[int]:
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
            enough = len(known) >= self._config.run.min_sites
            late = time.monotonic() > deadline
            if enough and (late or time.monotonic() - since >= SETTLE_SECONDS):
                return sorted(known)
            if late:
                raise ConfigError(
                    f"{len(known)} sites connected within {self._config.run.connect_timeout:g} s, "
                    f"run.min-sites = {self._config.run.min_sites}. Start the missing SuperNodes, "
                    "or "
                    "lower min-sites"
                )
            time.sleep(0.2)
