"""The gate's side towards Flower's SuperNode: take a task and its order, send back one reply."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, message_from_proto, run_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PullTaskInputResponse,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message

from common.errors import FedscanError
from common.incoming import Bounds, Incoming

if TYPE_CHECKING:
    from typing import Self

log = logging.getLogger("flwr.fedscan")

TASK_TYPE = "flwr-clientapp"
TASK_TYPES = (TASK_TYPE, "flwr-agentapp")
RETRY_SECONDS = 20.0  # with a SuperNode of this machine
SHORTEST_PAUSE = 0.05  # seconds between two looks for an object


@dataclass(frozen=True)
class Order:
    """A message to the site, with the run that it belongs to, as the SuperNode gave it.

    Parameters
    ----------
    message : Message
    about : MessageProto
        The message without its content.
    tree : ObjectTree
        Which objects the content is sent in.
    contents : dict of str to bytes
        These objects.
    given : PullTaskInputResponse
        Run, context and the app's bundle.
    run : Run
    context : Context
    """

    message: Message
    about: MessageProto
    tree: ObjectTree
    contents: dict[str, bytes]
    given: PullTaskInputResponse
    run: Run
    context: Context
    problem: str = ""  # why it could not be fetched whole; its message then has no content


class Tasks:
    """Where a SuperNode hands out tasks, for the secret that it was started with.

    Parameters
    ----------
    address : str
        ``HOST:PORT`` of the SuperNode's Runtime API.
    secret : bytes
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self._address = address
        self._client = _client(
            address,
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=secret, protected_methods=["/flwr.proto.Runtime/AcquireTask"]
            ),
        )

    def acquire(self) -> SuperNodeTask | None:
        """Take the next task; None where there is none yet.

        Also one of another kind of app, to be refused: else the SuperNode waits for it for good.

        Raises
        ------
        httpx.HTTPError
            If the SuperNode refuses, or does not answer.
        """
        answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=TASK_TYPES))
        if not answer.token:
            return None
        return SuperNodeTask(self._address, answer.token, answer.task.type)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class SuperNodeTask:
    """One task of a ClientApp, in whose name the gate speaks to the SuperNode.

    It is a context manager: while it is open the SuperNode hears that the task is alive, and on
    leaving that it is done.
    """

    def __init__(self, address: str, token: str, kind: str = TASK_TYPE) -> None:
        self.kind = kind
        self._retry = make_simple_http_retry_invoker()
        self._retry.max_time = RETRY_SECONDS
        self._client = _client(
            address,
            RuntimeVersionHttpInterceptor(component_name=TASK_TYPE),
            RuntimeTokenHttpInterceptor(token),
            retry_invoker=self._retry,
        )
        self._heartbeat = HeartbeatSender(self._beat)
        self._replied = False

    def __enter__(self) -> Self:
        """Begin to say that the task is alive."""
        self._heartbeat.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Say that the task is done. No context and no words of the app's go with it.

        Without a reply nothing is said: only of a task that is no longer heard of does Flower
        itself make a reply, and the SuperNode waits for one.
        """
        self._retry.max_tries = 1  # the SuperNode may have gone
        try:
            if self._replied:
                done = PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details="")
                self._client.PushTaskOutput(done)
        except httpx.HTTPError as problem:
            log.warning("The SuperNode did not hear of a task's end: %s", type(problem).__name__)
        finally:
            if self._heartbeat.is_running:
                self._heartbeat.stop()
            self._client.close()

    def _beat(self) -> bool:
        """Say that the task is alive. Flower's own function ends the whole process on a refusal."""
        with contextlib.suppress(httpx.HTTPError):
            self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        return True

    def pull(self, most_bytes: int) -> Order:
        """Fetch the order, whole; the SuperNode forgets it then.

        One that cannot be put together, or is larger than it may be, has a ``problem``.

        Raises
        ------
        FedscanError
            If there is none.
        httpx.HTTPError
            If the SuperNode does not answer.
        """
        given = self._client.PullTaskInput(PullTaskInputRequest())
        run, context = run_from_proto(given.run), context_from_proto(given.context)
        # What composes messages in this process asks Flower's globals who it is.
        TaskIdentity.task_id = given.task_id
        TaskIdentity.run_id, TaskIdentity.node_id = run.run_id, context.node_id
        answer = self._client.PullMessages(PullAppMessagesRequest())
        if len(answer.messages_list) != 1 or len(answer.message_object_trees) != 1:
            raise FedscanError("there is no order with the task")
        about, tree = answer.messages_list[0], answer.message_object_trees[0]
        if self.kind != TASK_TYPE:
            problem = "a run of another kind of app than a ClientApp"
            return Order(message_from_proto(about), about, tree, {}, given, run, context, problem)
        try:
            message, contents = self._fetch(tree, Node(node_id=context.node_id), run, most_bytes)
        except httpx.HTTPError:
            raise
        except Exception as error:  # what somebody else has sent may raise anything
            problem = f"the order cannot be put together ({type(error).__name__})"
            return Order(message_from_proto(about), about, tree, {}, given, run, context, problem)
        return Order(message, about, tree, contents, given, run, context)

    def _fetch(
        self, tree: ObjectTree, node: Node, run: Run, most_bytes: int
    ) -> tuple[Message, dict[str, bytes]]:
        """Fetch an order's objects, and put them together."""
        incoming = Incoming(tree.object_id, Bounds.of_bytes(most_bytes))
        incoming.expect(one.object_id for one in iterate_object_tree(tree))
        fetch = make_pull_object_fn_protobuf(self._client.PullObject, node, run.run_id)

        def take(object_id: str) -> bytes:
            incoming.take(object_id, fetch(object_id))
            return b""

        # A task is handed out before all of its order has come, and Flower then waits a second.
        pull_objects(incoming.missing(), take, initial_backoff=SHORTEST_PAUSE)
        contents = dict(incoming.contents)  # which Flower empties as it puts them together
        message = incoming.open()
        message.metadata.__dict__["_message_id"] = tree.object_id
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=node, run_id=run.run_id, message_object_id=tree.object_id
            )
        )
        return message, contents

    def reply(self, order: Order, content: RecordDict) -> None:
        """Send the reply."""
        push_message(self._client, Message(content, reply_to=order.message), order.context)
        self._replied = True


def _client(address: str, *interceptors: object, **options: object) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        address, insecure=True, root_certificates=None, interceptors=list(interceptors), **options
    )
