"""The gate's side towards a box: the few calls of Flower's Runtime API that an app needs.

The app gets the order that the gate has checked, from the gate's memory. What it answers is held
until it is whole. Nothing of a call is passed on.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from flwr.app import Message
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import (
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
    PushTaskOutputResponse,
    SendTaskHeartbeatResponse,
)
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.interceptors import TASK_TOKEN_HEADER

from common.errors import FedscanError
from common.incoming import Bounds, Incoming

if TYPE_CHECKING:
    from clients.gateway.upstream import Order

log = logging.getLogger("flwr.fedscan")

PREFIX = "/v1/runtime/"
MOST_REFUSED = 100  # calls of one task that are written down
MOST_CALL_BYTES = 16 * 2**20  # Flower sends arrays in pieces of 5 MiB, a bundle of 10 MB
MOST_CONNECTIONS = 32
IDLE_SECONDS = 600.0  # of a connection


class Refused(FedscanError):
    """The site does not let this pass; its words are the gate's own and hold no values."""


class Exchange:
    """One order, and the reply to it.

    Parameters
    ----------
    order : Order
    bounds : Bounds
        Of the reply.
    """

    def __init__(self, order: Order, bounds: Bounds) -> None:
        self.token = secrets.token_hex(32)  # the box never sees the SuperNode's
        self.refused: list[str] = []  # calls that an app has no need for
        self._order, self._bounds = order, bounds
        self._reply: Incoming | None = None
        self._failure: Exception | None = None
        self._over = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the exchange; say whether it has come."""
        return self._over.wait(seconds)

    def reply(self) -> Message | None:
        """Put the reply together; None if the app has ended without a whole one.

        Raises
        ------
        Refused
            If it holds more than it may, or came more than once.
        Exception
            Whatever Flower raises where it cannot be put together.
        """
        if self._failure:
            raise self._failure
        if self._reply is None or self._reply.missing():
            return None
        message = self._reply.open()
        message.metadata.__dict__["_message_id"] = self._reply.root
        return message

    def call(self, name: str, body: bytes) -> Any:
        """Answer one call.

        Raises
        ------
        Refused
        """
        answers: dict[str, Callable[[bytes], Any]] = {
            "pull-task-input": lambda _: self._order.given,
            "pull-messages": lambda _: PullAppMessagesResponse(
                messages_list=[self._order.about], message_object_trees=[self._order.tree]
            ),
            "pull-object": self._pull_object,
            "confirm-message-received": lambda _: ConfirmMessageReceivedResponse(),
            "send-task-heartbeat": lambda _: SendTaskHeartbeatResponse(success=True),
            "push-messages": self._push_message,
            "push-object": self._push_object,
            "push-task-output": self._end,
        }
        if name not in answers:
            if len(self.refused) < MOST_REFUSED:
                known = name if name.replace("-", "").isalpha() and len(name) < 40 else "unknown"
                self.refused.append(known)
            raise Refused("a call that an app has no need for")
        try:
            return answers[name](body)
        except FedscanError as error:
            self._failure = self._failure or error
            self._over.set()
            raise

    def _pull_object(self, body: bytes) -> PullObjectResponse:
        content = self._order.contents.get(PullObjectRequest.FromString(body).object_id)
        if content is None:
            return PullObjectResponse(object_found=False, object_available=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def _push_message(self, body: bytes) -> PushAppMessagesResponse:
        request = PushAppMessagesRequest.FromString(body)
        if self._reply is not None or len(request.message_object_trees) != 1:
            raise Refused("more than one reply")
        tree = request.message_object_trees[0]
        self._reply = Incoming(tree.object_id, self._bounds)
        self._reply.expect(one.object_id for one in iterate_object_tree(tree))
        return PushAppMessagesResponse(
            message_ids=[tree.object_id], objects_to_push=self._reply.missing(), session_id="box"
        )

    def _push_object(self, body: bytes) -> PushObjectResponse:
        request = PushObjectRequest.FromString(body)
        content = request.object_content
        if self._reply is None or request.object_id not in self._reply.missing():
            raise Refused("an object that no reply names")
        if hashlib.sha256(content).hexdigest() != request.object_id:
            raise Refused("an object under another's name")
        self._reply.take(request.object_id, content)
        return PushObjectResponse(stored=True)

    def _end(self, _: bytes) -> PushTaskOutputResponse:
        self._over.set()
        return PushTaskOutputResponse()


class RuntimeApi:
    """Answers the calls of one box, on the socket that listens inside it.

    Parameters
    ----------
    listener : socket.socket
    """

    def __init__(self, listener: socket.socket) -> None:
        self.exchange: Exchange | None = None
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = IDLE_SECONDS

            def do_POST(self) -> None:
                length = self.headers.get("content-length", "")
                known = api.knows(self.headers.get(TASK_TOKEN_HEADER, ""))
                if not known or not length.isdecimal() or int(length) > MOST_CALL_BYTES:
                    self.close_connection = True
                    self._answer(413 if known else 403, b"{}")
                    return
                self._answer(*api._answer(self.path, self.rfile.read(int(length))))

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response_only(status)
                kind = "application/protobuf" if status == 200 else "application/json"
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Write nothing: what it quotes is the app's."""

        self._server = _Server(listener, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer nothing any more."""
        self._server.shutdown()
        self._server.server_close()

    def knows(self, token: str) -> bool:
        """Tell whether a token is that of the task that is being done."""
        exchange = self.exchange
        own = exchange.token if exchange else ""
        return bool(own) and secrets.compare_digest(token.encode(), own.encode())

    def _answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        exchange = self.exchange
        try:
            if exchange is None:
                raise Refused("no task is being done")
            return 200, exchange.call(path.removeprefix(PREFIX), body).SerializeToString()
        except Exception as error:  # whatever a request's bytes make a parser raise
            log.warning("A call of the app's was refused (%s)", type(error).__name__)
            return 403, b"{}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, or none where there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, *_: object) -> None:
        """Leave a connection that broke off."""
