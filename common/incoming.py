"""A message on its way in: its objects, and how much they may become before it is put together.

Flower sends a message in parts. A *Message* names a *RecordDict*, which names records, of which an
*ArrayRecord* names *Arrays*, whose bytes are in *ArrayChunks*; each part is named by its SHA-256.
An Array may list one chunk any number of times, and a record one Array under any number of names,
so a few megabytes can stand for a terabyte. Flower counts nothing of it; here it is counted from
the parts alone, before anything is put together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from common import messages
from common.errors import FedscanError

RECORDS = ("ArrayRecord", "ConfigRecord", "MetricRecord")
# What each kind of object may name: it leaves no room for a reply within a reply, at any depth.
PARTS: dict[str, tuple[str, ...]] = {
    "Message": ("RecordDict",),
    "RecordDict": RECORDS,
    "ArrayRecord": ("Array",),
    "Array": ("ArrayChunk",),
    "ArrayChunk": (),
    "ConfigRecord": (),
    "MetricRecord": (),
}
MOST_TEXT_BYTES = 2 * 2**20  # of all objects but chunks: names, metrics and words
MOST_OBJECTS = 100  # besides pieces of arrays
SPARE_BYTES = 64 * 2**10  # of an update, for the names of scales


@dataclass(frozen=True)
class Bounds:
    """What one reply may hold.

    Parameters
    ----------
    objects : int
        Objects that it is sent in, and arrays that it names.
    array_bytes : int
        Bytes of its arrays once they are put together, each counted as often as it is named.
    """

    objects: int
    array_bytes: int

    @classmethod
    def of_answer_to(cls, request: Message, statistics: int = 0) -> Bounds:
        """Return what an answer to a request may hold.

        Twice the bytes of the weights that were sent, and a little: an update has as many, in int8
        with a scale beside each tensor; and ``statistics`` bytes for what is measured and not
        trained.
        """
        sent = messages.payload_bytes(request)
        weights = 2 * sent + SPARE_BYTES if sent else 0
        return cls.of_bytes(weights + statistics)

    @classmethod
    def of_bytes(cls, array_bytes: int) -> Bounds:
        """Allow so many bytes of arrays, and as many objects as these may take.

        Flower cuts arrays into pieces of 5 MiB.
        """
        return cls(objects=MOST_OBJECTS + array_bytes // 2**20, array_bytes=array_bytes)


@dataclass
class Incoming:
    """The objects of one reply, as far as they have come.

    Parameters
    ----------
    root : str
        The reply's own object.
    bounds : Bounds
    """

    root: str
    bounds: Bounds
    contents: dict[str, bytes] = field(default_factory=dict)
    _wanted: tuple[str, ...] = ()
    _taken: int = 0  # bytes
    _lock: Lock = field(default_factory=Lock)

    def expect(self, object_ids: Iterable[str]) -> None:
        """Take the list of all objects.

        Raises
        ------
        FedscanError
            If there are too many.
        """
        listed = tuple(islice(object_ids, self.bounds.objects + 1))
        if len(listed) > self.bounds.objects:
            raise FedscanError(f"it is sent in more than {self.bounds.objects} objects")
        self._wanted = tuple(dict.fromkeys(listed))

    def missing(self) -> list[str]:
        """List the objects that have not come."""
        return [one for one in self._wanted if one not in self.contents]

    def take(self, object_id: str, content: bytes) -> None:
        """Keep one object.

        Raises
        ------
        FedscanError
            If the objects are more bytes than the reply may have.
        """
        with self._lock:  # Flower fetches objects in several threads
            self._taken += len(content)
        if self._taken > self.bounds.array_bytes + MOST_TEXT_BYTES:
            raise FedscanError(f"it is more than {self.bounds.array_bytes:,} bytes of arrays")
        self.contents[object_id] = content

    def open(self) -> Message:
        """Put the reply together.

        Raises
        ------
        FedscanError
            If it would be more than it may.
        Exception
            Whatever Flower raises where an object is not what it should be.
        """
        self._require_bounded()
        message = inflate_object_from_contents(self.root, self.contents)
        if not isinstance(message, Message):
            raise FedscanError("it is no message")
        return message

    def _require_bounded(self) -> None:
        """Count what the arrays become, from chunks and from how often each is named."""
        texts = sum(len(c) for c in self.contents.values() if not c.startswith(b"ArrayChunk "))
        if texts > MOST_TEXT_BYTES:
            raise FedscanError(f"it is more than {MOST_TEXT_BYTES:,} bytes besides its arrays")
        sizes: dict[str, tuple[int, int]] = {}  # arrays named, and their bytes, by object
        arrays, size = self._size(self.root, ("Message",), sizes)
        if arrays > self.bounds.objects:
            raise FedscanError(f"it names more than {self.bounds.objects} arrays")
        if size > self.bounds.array_bytes:
            raise FedscanError(
                f"its arrays would be {size:,} bytes: accepted are {self.bounds.array_bytes:,}"
            )

    def _size(
        self, object_id: str, kinds: tuple[str, ...], sizes: dict[str, tuple[int, int]]
    ) -> tuple[int, int]:
        if object_id not in self.contents:
            raise FedscanError("it names an object that was not sent")
        content = self.contents[object_id]
        kind, named, _ = get_object_head_values_from_object_content(content)
        if kind not in kinds:
            raise FedscanError(f"it holds an object of type {kind[:40]!r} where none may be")
        if object_id in sizes:
            return sizes[object_id]
        parts = {one: self._size(one, PARTS[kind], sizes) for one in named}
        if kind == "ArrayChunk":
            sizes[object_id] = 0, len(content)
        elif kind == "Array":
            order = json.loads(_body(content))["arraychunk_ids"]
            sizes[object_id] = 1, sum(parts[named[index]][1] for index in order)
        elif kind in ("ArrayRecord", "RecordDict"):
            each = [parts[one] for one in json.loads(_body(content)).values()]
            sizes[object_id] = sum(n for n, _ in each), sum(size for _, size in each)
        else:
            sizes[object_id] = sum(n for n, _ in parts.values()), sum(s for _, s in parts.values())
        return sizes[object_id]


def _body(content: bytes) -> bytes:
    return content.split(b"\0", 1)[1]
