"""Who takes part: sites by name, and questions put to all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from flwr.app import Message
from flwr.serverapp import Grid

from common import messages
from common.config import RunConfig
from common.errors import ConfigError
from common.evaluation.generation import require_one_extractor
from common.messages import Failure
from common.sites import SITE_NAME
from server.replies import SiteFailure, read_identity

SETTLE_SECONDS = 1.0  # no new site for so long: everybody who was starting with the others is here


@dataclass(frozen=True)
class Participant:
    """A connected site: Flower's number for it, its counts of scans, its device."""

    node_id: int
    counts: dict[str, int]
    device: str


class RollCall:
    """The sites of one run, ordered by name, which is stable where Flower's node ids are random.

    Parameters
    ----------
    grid : Grid
    config : RunConfig
        ``min_sites``, ``connect_timeout`` and ``reply_timeout``.

    Raises
    ------
    ConfigError
        If too few sites connect in time, or two claim one name.
    FedscanError
        If they judge pictures with different extractors, or one runs other sources.
    SiteFailure
        If a site cannot take part.
    """

    def __init__(self, grid: Grid, config: RunConfig) -> None:
        self._grid, self._config = grid, config
        nodes = {str(node): node for node in self._wait_for_nodes()}
        hello = messages.HELLO
        replies = self._exchange(
            {
                label: messages.request(hello, node, timeout=config.reply_timeout)
                for label, node in nodes.items()
            },
            hello,
        )
        sites: dict[str, Participant] = {}
        extractors: dict[str, str] = {}
        for label, reply in replies.items():
            said = read_identity(reply, label, hello)
            name = said.site
            if name in sites:
                raise ConfigError(
                    f"two SuperNodes say that they are site '{name}'. Give each its own name"
                )
            sites[name] = Participant(nodes[label], said.counts, said.device)
            extractors[name] = said.extractor_hash
        require_one_extractor(dict(sorted(extractors.items())))
        self.sites = dict(sorted(sites.items()))

    def ask(
        self, kind: str, compose: Callable[[int], Message], round_number: int
    ) -> dict[str, Message]:
        """Ask every site and return the replies by name, in order of name.

        Parameters
        ----------
        kind : str
            What is asked for, in an error's words.
        compose : callable
            Given a node id, returns the request.
        round_number : int

        Raises
        ------
        SiteFailure
            The first failure in order of name.
        """
        requests = {name: compose(site.node_id) for name, site in self.sites.items()}
        return self._exchange(requests, f"{kind}, round {round_number}")

    def _exchange(self, requests: dict[str, Message], phase: str) -> dict[str, Message]:
        answers = self._grid.send_and_receive(requests.values(), timeout=self._config.reply_timeout)
        asked = {message.metadata.dst_node_id: name for name, message in requests.items()}
        # For a node that was lost Flower answers as itself: what it answers tells for whom.
        sent = {message.metadata.message_id: name for name, message in requests.items()}
        replies = {}
        for reply in answers:
            about = reply.metadata
            name = asked.get(about.src_node_id) or sent.get(about.reply_to_message_id)
            if name:
                replies[name] = reply
        for name in sorted(requests):
            if name not in replies:
                reason = f"no answer within {self._config.reply_timeout:g} s"
                raise SiteFailure(Failure(name, phase, reason, ""))
            if failure := messages.failure_in(replies[name], name, phase):
                # Who it is, a site says only when it is asked: else it could blame another.
                if phase != messages.HELLO or not SITE_NAME.fullmatch(failure.site):
                    failure = replace(failure, site=name)
                raise SiteFailure(failure)
        return {name: replies[name] for name in sorted(requests)}

    def _wait_for_nodes(self) -> list[int]:
        deadline = time.monotonic() + self._config.connect_timeout
        known: set[int] = set()
        since = time.monotonic()
        while True:
            connected = set(self._grid.get_node_ids())
            if connected != known:
                known, since = connected, time.monotonic()
            enough = len(known) >= self._config.min_sites
            late = time.monotonic() > deadline
            if enough and (late or time.monotonic() - since >= SETTLE_SECONDS):
                return sorted(known)
            if late:
                raise ConfigError(
                    f"{len(known)} sites connected within {self._config.connect_timeout:g} s, "
                    f"min-sites = {self._config.min_sites}. Start the missing SuperNodes, or "
                    "lower min-sites"
                )
            time.sleep(0.2)
