"""A reply that cannot be put together, or would fill the server's memory, is its sender's loss."""

from __future__ import annotations

import hashlib
import json
import re
import tracemalloc
from collections.abc import Callable, Iterable, Mapping

import httpx
import pytest
import torch
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.run import Run
from flwr.superlink.grid import HttpGrid
from test_server_rounds import Clock, ScriptedSite, nodes, rounds_lost, run

from common import messages
from common.incoming import Bounds
from common.messages import ARRAYS, METRICS, TRAIN
from server import exchange, participants

pytestmark = pytest.mark.usefixtures("task_identity")
Objects = dict[str, bytes]
WEIGHTS = {"a": torch.zeros(500, 100), "b": torch.ones(3)}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(exchange, "time", Clock())
    monkeypatch.setattr(participants, "SETTLE_SECONDS", 0.0)


# A reply as a SuperLink holds it


class Sent:
    """A reply in its objects, to be tampered with."""

    def __init__(self, reply: Message) -> None:
        reply.metadata.__dict__["_message_id"] = self.root = reply.object_id
        self.objects = {i: one.deflate() for i, one in get_all_nested_objects(reply).items()}
        self.proto = message_to_proto(remove_content_from_message(reply))
        self.never: set[str] = set()  # objects that are announced and not sent

    def first(self, kind: str) -> str:
        return next(i for i, one in self.objects.items() if one.startswith(kind.encode() + b" "))

    def replace(self, object_id: str, content: bytes) -> None:
        """Put another object in its place, and mend the names of all that lead to it."""
        new = hashlib.sha256(content).hexdigest()
        del self.objects[object_id]
        self.objects[new] = content
        if object_id == self.root:
            self.root = self.proto.metadata.message_id = new
        for above, old in list(self.objects.items()):
            if above != new and object_id.encode() in old:
                self.replace(above, with_body(old.replace(object_id.encode(), new.encode())))

    def change(self, kind: str, how: Callable[[dict], dict]) -> None:
        """Change what is written in an object in JSON."""
        which = self.first(kind)
        head, body = self.objects[which].split(b"\0", 1)
        self.replace(which, with_body(head + b"\0" + json.dumps(how(json.loads(body))).encode()))

    def tree(self) -> ObjectTree:
        others = [ObjectTree(object_id=one) for one in self.objects if one != self.root]
        return ObjectTree(object_id=self.root, children=others)


def with_body(content: bytes) -> bytes:
    """Write an object's head anew, which says how long its body is."""
    head, body = content.split(b"\0", 1)
    kind, named, _ = head.split(b" ")
    return b" ".join([kind, named, str(len(body)).encode()]) + b"\0" + body


class SuperLink:
    """Flower's Runtime API as far as a Grid asks for it: replies are handed out once."""

    def __init__(self, sites: Mapping[int, Callable[[Message], Message | None]]) -> None:
        self.sites, self.tampered = sites, {}
        self.replies: dict[str, Sent] = {}
        self.pulled = 0
        self.received: list[str] = []

    def answer(self, requests: Iterable[Message]) -> None:
        for request in requests:
            node = request.metadata.dst_node_id
            if reply := self.sites[node](request):
                sent = Sent(reply)
                self.tampered.get(node, lambda sent: None)(sent)
                self.replies[request.metadata.message_id] = sent

    def PullMessages(self, request):
        found = [self.replies[one] for one in request.message_ids if one in self.replies]
        self.held = getattr(self, "held", {})
        for one in request.message_ids:
            if sent := self.replies.pop(one, None):
                self.held |= {i: (sent, content) for i, content in sent.objects.items()}
        return PullAppMessagesResponse(
            messages_list=[sent.proto for sent in found],
            message_object_trees=[sent.tree() for sent in found],
        )

    def PullObject(self, request):
        self.pulled += 1
        if request.object_id not in self.held:
            return PullObjectResponse(object_found=False)
        sent, content = self.held[request.object_id]
        if request.object_id in sent.never:
            return PullObjectResponse(object_found=True, object_available=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request):
        self.received.append(request.message_object_id)


class LinkedGrid(HttpGrid):
    """Flower's Grid, whose SuperLink is in this process."""

    def __init__(self, link: SuperLink) -> None:
        super().__init__(token="-")
        self.link = self._client = link
        self.set_run(Run.create_empty(1))

    def get_node_ids(self) -> Iterable[int]:
        return list(self.link.sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        for message in sent:
            message.metadata.__dict__["_message_id"] = message.object_id
        self.link.answer(sent)
        return [message.metadata.message_id for message in sent]


def honest(request: Message) -> Message:
    return messages.update_reply(request, 10, {"loss": 0.5}, WEIGHTS)


def other(request: Message) -> Message:
    """No object is also one of the honest site's, which a SuperLink would keep once."""
    return messages.update_reply(
        request, 10, {"loss": 0.25}, {n: w + 2 for n, w in WEIGHTS.items()}
    )


def ask(
    tamper: Callable[[Sent], None], *others: Callable[[Message], Message | None]
) -> tuple[SuperLink, dict[str, Message], dict[str, Exception]]:
    """Ask bad, whose reply is tampered with, before and after others."""
    sites = [other, honest, *others]
    link = SuperLink(nodes(*sites))
    numbers = list(link.sites)
    link.tampered[numbers[0]] = tamper
    names = ["bad", "good", *(f"other-{i}" for i in range(len(others)))]
    requests = {
        name: messages.request(TRAIN, node, round_number=1, arrays=messages.pack(WEIGHTS))
        for name, node in zip(names, numbers, strict=True)
    }
    return link, *exchanged(LinkedGrid(link), requests)


def exchanged(
    grid: LinkedGrid, requests: dict[str, Message], statistics: int = 0
) -> tuple[dict[str, Message], dict[str, Exception]]:
    """Ask, and sort what comes into replies and what is unreadable."""
    found: tuple[dict, dict] = {}, {}
    for name, answer in exchange.Mail(grid).ask(requests, exchange.Deadline(60.0), statistics):
        found[isinstance(answer, Exception)][name] = answer
    return found


def nothing(sent: Sent) -> None:
    del sent


# What goes wrong


def test_replies_come_in_whole_and_are_confirmed():
    link, replies, unreadable = ask(nothing)
    assert unreadable == {}
    assert list(replies) == ["bad", "good"]
    for name, more, loss in (("bad", 2, 0.25), ("good", 0, 0.5)):
        found = messages.unpack(replies[name].content[ARRAYS])
        assert all(torch.equal(found[name], weight + more) for name, weight in WEIGHTS.items())
        assert dict(replies[name].content[METRICS]) == {"num-examples": 10, "loss": loss}
    assert len(link.received) == 2


def repeated(times: int) -> Callable[[Sent], None]:
    return lambda sent: sent.change("Array", lambda told: told | {"arraychunk_ids": [0] * times})


def garbage(sent: Sent) -> None:
    which = sent.first("Array")
    sent.replace(which, with_body(sent.objects[which].split(b"\0")[0] + b"\0{not json"))


def nested(sent: Sent) -> None:
    """An Array whose pieces are an Array, many times, as often as one likes."""
    which = sent.first("Array")
    inner = with_body(sent.objects[which] + b" ")
    for _ in range(3):
        name = hashlib.sha256(inner).hexdigest()
        sent.objects[name] = inner
        body = json.dumps(
            {"dtype": "", "shape": [], "stype": "", "arraychunk_ids": [0] * 1000}
        ).encode()
        inner = with_body(b"Array " + name.encode() + b" 0\0" + body)
    sent.replace(which, inner)


def many_names(sent: Sent) -> None:
    """One Array under thousands of names, each of which becomes a tensor."""
    one = sent.first("Array")
    which = sent.first("ArrayRecord")
    body = json.dumps({f"w{i}": one for i in range(20_000)}).encode()
    sent.replace(which, with_body(b"ArrayRecord " + one.encode() + b" 0\0" + body))


def many_records(sent: Sent) -> None:
    sent.change(
        "RecordDict", lambda named: named | {f"more{i}": named[ARRAYS] for i in range(10_000)}
    )


def missing(sent: Sent) -> None:
    del sent.objects[sent.first("ArrayChunk")]


def never_sent(sent: Sent) -> None:
    sent.never.add(sent.first("ArrayChunk"))


def not_announced(sent: Sent) -> None:
    which = sent.first("RecordDict")
    sent.replace(which, sent.objects[which].replace(b" ", b" " + b"0" * 64 + b",", 1))


def other_root(sent: Sent) -> None:
    sent.root = sent.proto.metadata.message_id = sent.first("RecordDict")


def heavy(sent: Sent) -> None:
    which = sent.first("ArrayChunk")
    sent.replace(which, with_body(b"ArrayChunk  0\0" + bytes(5_000_000)))


def wordy(sent: Sent) -> None:
    which = sent.first("MetricRecord")
    sent.replace(which, with_body(b"MetricRecord  0\0" + bytes(3_000_000)))


def splinters(sent: Sent) -> None:
    for number in range(2000):
        content = with_body(b"ArrayChunk  0\0" + str(number).encode())
        sent.objects[hashlib.sha256(content).hexdigest()] = content


UNREADABLE = {
    garbage: "JSONDecodeError|Expecting",
    repeated(100_000): "its arrays would be 20,0[0-9,]* bytes",  # 20 GB of 0.3 MB
    nested: "'Array' where none may be",
    many_names: "arrays",
    many_records: "arrays",
    missing: "not sent|not be found",
    never_sent: "1 of its objects did not come within 60 s",
    not_announced: "",
    other_root: "'RecordDict' where none may be",
    heavy: "more than",
    wordy: "besides its arrays|more than",
    splinters: "more than [0-9]+ objects",
}


@pytest.mark.parametrize(("tamper", "why"), UNREADABLE.items())
def test_reply_that_cannot_be_put_together_is_its_senders_and_takes_no_memory(tamper, why):
    tracemalloc.start()
    _, replies, unreadable = ask(tamper)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(unreadable) == ["bad"]
    assert re.search(why, repr(unreadable["bad"]))
    assert list(replies) == ["good"]
    assert torch.equal(messages.unpack(replies["good"].content[ARRAYS])["b"], WEIGHTS["b"])
    assert peak < 100_000_000


def test_sender_is_who_was_asked_whatever_a_reply_says_of_itself():
    def as_another(sent: Sent) -> None:
        which = sent.root
        head, body = sent.objects[which].split(b"\0", 1)
        from flwr.proto.message_pb2 import Message as Proto

        proto = Proto.FromString(body)
        proto.metadata.src_node_id = 108
        proto.metadata.reply_to_message_id = "0" * 64
        sent.replace(which, with_body(head + b"\0" + proto.SerializeToString()))

    _, replies, unreadable = ask(as_another)
    assert (list(replies), unreadable) == (["bad", "good"], {})


def test_site_that_does_not_answer_is_in_neither():
    _, replies, unreadable = ask(nothing, lambda request: None)
    assert (list(replies), unreadable) == (["bad", "good"], {})


def test_flowers_word_that_a_reply_is_lost_is_its_senders_loss():
    def lost(request: Message) -> Message:
        return Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "expired"), reply_to=request)

    _, replies, unreadable = ask(nothing, lost)
    assert (list(replies), list(unreadable)) == (["bad", "good"], ["other-0"])


def test_what_has_come_is_not_fetched_again_while_the_rest_is_waited_for():
    link, _, _ = ask(never_sent)
    whole, _, _ = ask(nothing)
    looks = link.pulled - whole.pulled
    assert 0 < looks < 300  # of the one object; rarer, the longer it takes


def test_lost_superlink_is_no_sites_fault():
    def gone(request):
        raise httpx.ConnectError("gone")

    link = SuperLink(nodes(honest))
    link.PullMessages = gone
    requests = {"good": messages.request(TRAIN, 101, arrays=messages.pack(WEIGHTS))}
    with pytest.raises(httpx.ConnectError):
        exchanged(LinkedGrid(link), requests)


def test_answer_may_be_twice_what_was_sent_and_statistics_besides():
    arrays = messages.pack({"w": torch.zeros(2**20)})
    asked = messages.request(TRAIN, 1, arrays=arrays)
    sent = messages.payload_bytes(asked)
    assert 2 * sent <= Bounds.of_answer_to(asked).array_bytes < 2 * sent + 100_000
    more = Bounds.of_answer_to(asked, statistics=10**9)
    assert more.array_bytes - Bounds.of_answer_to(asked).array_bytes == 10**9
    assert Bounds.of_answer_to(messages.request(messages.HELLO, 1)).array_bytes == 0


def test_statistics_that_are_as_large_as_expected_come_in():
    def telling(request: Message) -> Message:
        content = RecordDict({METRICS: MetricRecord({"num-examples": 1})})
        content[ARRAYS] = messages.pack({"covariance": torch.zeros(300, 300, dtype=torch.float64)})
        return Message(content=content, reply_to=request)

    link = SuperLink(nodes(telling))
    for statistics, whole in ((0, False), (300 * 300 * 8 + 200, True)):
        request = messages.request(TRAIN, 101, arrays=messages.pack({"b": WEIGHTS["b"]}))
        replies, unreadable = exchanged(LinkedGrid(link), {"site": request}, statistics)
        assert (bool(replies), bool(unreadable)) == (whole, not whole)


# A run


@pytest.mark.usefixtures("in_simulation", "one_thread")
@pytest.mark.parametrize("tamper", [garbage, repeated(100_000), never_sent])
def test_run_goes_on_without_the_round_of_a_site_whose_reply_is_unreadable(
    tmp_path, tamper, caplog
):
    link = SuperLink(nodes(ScriptedSite("north"), ScriptedSite("south")))

    def second(sent: Sent) -> None:
        if sent.proto.metadata.message_type == TRAIN and sent.proto.metadata.group_id == "2":
            tamper(sent)

    link.tampered[108] = second
    folder = run(tmp_path, LinkedGrid(link))
    assert rounds_lost(folder) == {"north": 0, "south": 1}
    assert "Site 'south' is left out of train, round 2" in caplog.text
