"""Requests go out together; each reply is fetched by itself, and judged by what it was asked for.

Flower's ``send_and_receive`` fetches all replies that are there and puts them together one after
the other. One that cannot be put together raises, hides who sent it, and takes all the others with
it, since Flower hands a reply out once. What a reply says of its sender is also the sender's own
word. Here a reply belongs to the site whose request it was fetched by.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import httpx
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects
from flwr.superlink.grid import HttpGrid

from common.errors import FedscanError
from common.incoming import Bounds, Incoming

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 3.0  # seconds between two looks for replies
# Of Flower's own answers those that tell that a site's reply was there and cannot be had.
LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


def exchange(
    grid: Grid, requests: Mapping[str, Message], timeout: float, statistics: int = 0
) -> tuple[dict[str, Message], dict[str, Exception]]:
    """Send requests and wait for the replies.

    Parameters
    ----------
    grid : Grid
    requests : mapping of str to Message
        By site.
    timeout : float
        Seconds that all of them may take.
    statistics : int
        Bytes that a reply may have besides weights: :meth:`common.incoming.Bounds.of_answer_to`.

    Returns
    -------
    replies : dict of str to Message
        By site, in the order of ``requests``. Who has not answered in time is in neither.
    unreadable : dict of str to Exception
        What is wrong with each reply that came and cannot be put together.
    """
    began = time.monotonic()
    grid.push_messages(list(requests.values()))
    bounds = {name: Bounds.of_answer_to(one, statistics) for name, one in requests.items()}
    waiting = {name: one.metadata.message_id for name, one in requests.items()}
    puller = _Puller(grid) if isinstance(grid, HttpGrid) else None
    replies: dict[str, Message] = {}
    unreadable: dict[str, Exception] = {}
    while waiting:
        looked, before = time.monotonic(), len(waiting)
        for name, request_id in list(waiting.items()):
            try:
                if puller:
                    reply = puller.pull(request_id, bounds[name])
                else:  # a simulation's: whole objects, of this machine
                    reply = next(iter(grid.pull_messages([request_id])), None)
                if reply is None:
                    continue
                if reply.has_error() and reply.error.code in LOST:
                    raise FedscanError("parts of it were never sent")
                replies[name] = reply
            except httpx.TransportError:  # the server's own connection to its SuperLink
                raise
            except Exception as error:  # what may be anything at all raises anything at all
                unreadable[name] = error
            del waiting[name]
        now = time.monotonic()
        if not waiting or now - began >= timeout:
            break
        # The longer an answer takes, the rarer; and hundreds of sites do not keep a core busy.
        pause = min(max((now - began) / 50, SHORTEST_PAUSE), LONGEST_PAUSE)
        if len(waiting) == before:  # else it was the fetching that took so long
            pause = max(pause, 4 * (now - looked))
        time.sleep(min(pause, began + timeout - now))
    for name in waiting:
        if puller and (part := puller.on_its_way.get(waiting[name])):
            unreadable[name] = FedscanError(
                f"{len(part.missing())} of its objects did not come within {timeout:g} s"
            )
    return {name: replies[name] for name in requests if name in replies}, unreadable


class _Puller:
    """Fetches single replies from a SuperLink, each object of each once.

    Parameters
    ----------
    grid : HttpGrid
        Of flwr 1.41: its client of the Runtime API is used, since what Flower's own
        ``pull_messages`` fetches is put together before anybody can look at its size.
    """

    def __init__(self, grid: HttpGrid) -> None:
        self._client, self._node, self._run_id = grid._runtime_client, grid.node, grid.run.run_id
        self.on_its_way: dict[str, Incoming] = {}  # by the request's id

    def pull(self, request_id: str, bounds: Bounds) -> Message | None:
        """Return the reply to a request, or None as long as it is not whole.

        Raises
        ------
        FedscanError
            If it holds more than it may.
        Exception
            Whatever Flower raises where it cannot be put together.
        """
        try:
            if request_id not in self.on_its_way:
                self._claim(request_id, bounds)
            incoming = self.on_its_way.get(request_id)
            if incoming is None:
                return None
            pull_objects(incoming.missing(), lambda one: self._fetch(one, incoming))
            if incoming.missing():
                return None
            message = incoming.open()
        except BaseException:
            self._forget(request_id)
            raise
        self._forget(request_id)
        return message

    def _claim(self, request_id: str, bounds: Bounds) -> None:
        """Ask for the reply; if it is there, the SuperLink hands it out this once."""
        answer = self._client.PullMessages(PullAppMessagesRequest(message_ids=[request_id]))
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            if message.metadata.reply_to_message_id == request_id:
                incoming = Incoming(message.metadata.message_id, bounds)
                self.on_its_way[request_id] = incoming
                incoming.expect(one.object_id for one in iterate_object_tree(tree))

    def _fetch(self, object_id: str, incoming: Incoming) -> bytes:
        fetch = make_pull_object_fn_protobuf(self._client.PullObject, self._node, self._run_id)
        try:
            content = fetch(object_id)
        except ObjectUnavailableError:
            return b""  # still on its way: another look, when the others have had theirs
        incoming.take(object_id, content)
        return b""

    def _forget(self, request_id: str) -> None:
        """Tell the SuperLink that it need not keep the objects."""
        incoming = self.on_its_way.pop(request_id, None)
        if incoming is None:
            return
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._node, run_id=self._run_id, message_object_id=incoming.root
            )
        )
