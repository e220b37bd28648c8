"""Orders go out together; each reply is fetched by itself, and judged by what it was asked for.

Flower's ``send_and_receive`` fetches all replies that are there and puts them together one after
the other. One that cannot be put together raises, hides who sent it, and takes all the others with
it, since Flower hands a reply out once. What a reply says of its sender is also the sender's own
word. Here a reply belongs to the site whose order it was fetched by.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import httpx
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects
from flwr.superlink.grid import HttpGrid, InMemoryGrid

from common.errors import FedscanError
from common.incoming import Bounds, Incoming
from common.machine import usable_cpus

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 3.0  # seconds between two looks for replies
# Of Flower's own answers those that tell that a site's reply was there and cannot be had.
LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
MOST_TIMEOUTS = 3  # that an order is waited for, in its own
MOST_WAITING = 2  # orders at a site: one that it may have lost in a restart, and the next


@dataclass(frozen=True)
class _Sent:
    """An order without an answer so far."""

    site: str
    message_id: str
    bounds: Bounds
    time: float  # monotonic
    timeout: float

    @property
    def age(self) -> float:
        """Seconds since it was sent."""
        return time.monotonic() - self.time


class UnfinishedError(FedscanError):
    """An answer was on its way when others had answered and the time for it was cut."""


class Deadline:
    """Until when replies are waited for, which may come nearer meanwhile."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._latest = self._end = time.monotonic() + seconds

    def within(self, seconds: float) -> None:
        """Let no more than so many seconds pass from now."""
        self._end = min(self._end, time.monotonic() + seconds)

    @property
    def passed(self) -> float:
        """Seconds from the beginning to the end."""
        return self.seconds - (self._latest - self._end)

    @property
    def was_cut(self) -> bool:
        """Whether it has come nearer."""
        return self._end < self._latest

    @property
    def left(self) -> float:
        """Seconds, below 0 when it is over."""
        return self._end - time.monotonic()


class Mail:
    """What a server asks of sites, and what it gets.

    Parameters
    ----------
    grid : Grid

    Attributes
    ----------
    late : list of str
        Sites whose answer came after its time and was dropped, one entry each.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._puller = _Puller(grid) if isinstance(grid, HttpGrid) else None
        self._waiting: list[_Sent] = []
        self.late: list[str] = []

    def busy(self) -> set[str]:
        """Return the sites that still have to answer as many orders as they may, and have time."""
        waiting = [one.site for one in self._waiting if one.age < one.timeout]
        return {site for site in waiting if waiting.count(site) >= MOST_WAITING}

    @property
    def is_simulated(self) -> bool:
        """Whether sites are actors of this engine, which answers for each of them."""
        return isinstance(self._grid, InMemoryGrid)

    def ask(
        self, requests: Mapping[str, Message], deadline: Deadline, statistics: int = 0
    ) -> Iterator[tuple[str, Message | Exception]]:
        """Send orders, and yield each answer as soon as it is there.

        Parameters
        ----------
        requests : mapping of str to Message
            By site.
        deadline : Deadline
        statistics : int
            Bytes that a reply may have besides weights (:class:`common.incoming.Bounds`).

        Yields
        ------
        site : str
            Who has not answered in time never comes.
        answer : Message or Exception
            An exception says what is wrong with an answer that cannot be put together.
        """
        began = time.monotonic()
        queue, room = list(requests.items()), len(requests) if self._puller else _most_pushed()
        asked: set[str] = set()  # ids of orders of this time that are not answered yet
        while queue or asked:
            batch, queue = queue[: room - len(asked)], queue[room - len(asked) :]
            pushed = list(self._grid.push_messages([one for _, one in batch])) if batch else []
            if batch and not pushed:
                raise FedscanError("Flower's server accepts no messages as large as these")
            for (site, request), known in zip(batch, pushed, strict=True):
                if known is None:
                    yield site, FedscanError("Flower's server no longer knows its SuperNode")
                    continue
                asked.add(message_id := request.metadata.message_id)
                bounds = Bounds.of_answer_to(request, statistics)
                self._waiting.append(_Sent(site, message_id, bounds, began, deadline.seconds))
            looked, before = time.monotonic(), len(asked)
            for one, answer in self._look():
                self._answered(one)
                if one.message_id in asked:
                    asked.remove(one.message_id)
                    yield one.site, answer
                else:
                    self.late.append(one.site)
            if not (queue or asked) or deadline.left <= 0:
                break
            now = time.monotonic()
            # The longer an answer takes, the rarer; and hundreds of sites do not keep a core busy.
            pause = min(max((now - began) / 50, SHORTEST_PAUSE), LONGEST_PAUSE)
            if queue:
                pause = SHORTEST_PAUSE
            elif len(asked) == before:  # else it was the fetching that took so long
                pause = max(pause, 4 * (now - looked))
            time.sleep(max(0.0, min(pause, deadline.left)))
        for one in [one for one in self._waiting if one.message_id in asked]:
            if self._puller and (missing := self._puller.missing(one.message_id)):
                self._answered(one)
                passed = time.monotonic() - began
                why = f"{missing} of its objects did not come within {passed:.0f} s"
                yield one.site, UnfinishedError(why) if deadline.was_cut else FedscanError(why)
        # A late answer is looked for, but an order that a site has lost not for good.
        self._waiting = [one for one in self._waiting if one.age < MOST_TIMEOUTS * one.timeout]

    def _answered(self, sent: _Sent) -> None:
        """Expect nothing more of the orders before: a site answers one after the other."""
        self._waiting = [
            one for one in self._waiting if one.site != sent.site or one.time > sent.time
        ]

    def _look(self) -> Iterator[tuple[_Sent, Message | Exception]]:
        """Yield the answers that are there."""
        orders = {one.message_id: one for one in self._waiting}
        if self._puller:
            found = self._puller.pull({name: one.bounds for name, one in orders.items()})
        else:  # a simulation's: whole objects, of this machine
            found = (
                (reply.metadata.reply_to_message_id, reply)
                for reply in self._grid.pull_messages(list(orders))
            )
        for message_id, answer in found:
            lost = isinstance(answer, Message) and answer.has_error()
            if lost and answer.error.code in LOST:
                answer = FedscanError("parts of it were never sent")
            if message_id in orders:
                yield orders[message_id], answer


def _most_pushed() -> int:
    """Return how many orders may wait at once in a simulation.

    Its engine looks at each of them for each site, ten times a second: with hundreds it would do
    little else. Each of its actors still finds some.
    """
    ray, cpus = sys.modules.get("ray"), float(usable_cpus())
    if ray and ray.is_initialized():  # by the engine; it may be a cluster
        cpus = max(cpus, ray.cluster_resources().get("CPU", 0.0))
    return max(16, 4 * int(cpus))


class _Puller:
    """Fetches single replies from a SuperLink, each object of each once.

    Parameters
    ----------
    grid : HttpGrid
        Of flwr 1.42: its client of the Runtime API is used, since what Flower's own
        ``pull_messages`` fetches is put together before anybody can look at its size.
    """

    def __init__(self, grid: HttpGrid) -> None:
        self._client, self._node, self._run_id = grid._runtime_client, grid.node, grid.run.run_id
        self._on_its_way: dict[str, Incoming] = {}  # by the request's id

    def pull(self, orders: Mapping[str, Bounds]) -> Iterator[tuple[str, Message | Exception]]:
        """Yield the replies that are whole by now, by the order's id, or what is wrong with one."""
        yield from self._claim(orders)
        for request_id, incoming in list(self._on_its_way.items()):
            if request_id not in orders:  # nobody waits for it any more
                self._forget(request_id)
                continue
            try:
                pull_objects(incoming.missing(), partial(self._fetch, incoming))
                if incoming.missing():
                    continue
                answer: Message | Exception = incoming.open()
            except httpx.TransportError:  # the server's own connection to its SuperLink
                raise
            except Exception as error:  # what may be anything at all raises anything at all
                answer = error
            self._forget(request_id)
            yield request_id, answer

    def missing(self, request_id: str) -> int:
        """Return how many objects of a reply have not come, and expect them no more."""
        incoming = self._on_its_way.get(request_id)
        self._forget(request_id)
        return len(incoming.missing()) if incoming else 0

    def _claim(self, orders: Mapping[str, Bounds]) -> Iterator[tuple[str, Exception]]:
        """Ask for replies; those that are there, the SuperLink hands out this once."""
        ids = [one for one in orders if one not in self._on_its_way]
        if not ids:
            return
        answer = self._client.PullMessages(PullAppMessagesRequest(message_ids=ids))
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            if (request_id := message.metadata.reply_to_message_id) not in ids:
                continue
            incoming = Incoming(message.metadata.message_id, orders[request_id])
            self._on_its_way[request_id] = incoming
            try:
                incoming.expect(one.object_id for one in iterate_object_tree(tree))
            except FedscanError as error:
                self._forget(request_id)
                yield request_id, error

    def _fetch(self, incoming: Incoming, object_id: str) -> bytes:
        fetch = make_pull_object_fn_protobuf(self._client.PullObject, self._node, self._run_id)
        try:
            content = fetch(object_id)
        except ObjectUnavailableError:
            return b""  # still on its way: another look, when the others have had theirs
        incoming.take(object_id, content)
        return b""

    def _forget(self, request_id: str) -> None:
        """Tell the SuperLink that it need not keep the objects."""
        incoming = self._on_its_way.pop(request_id, None)
        if incoming is None:
            return
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._node, run_id=self._run_id, message_object_id=incoming.root
            )
        )
