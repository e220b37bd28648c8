"""What server and sites say to each other: the only place that knows record and metric names.

A request holds a ``config`` record (round, split, the run's sites, the sender's source hash) and
mostly the global ``arrays``. A reply holds ``metrics`` and, after training, ``arrays``; after an
evaluation also statistics (as ``arrays``) and ``words``; or a ``failure`` record, with the site,
the phase and what may be told about the error. A site may withhold what it has measured, as when
it is of few people: then a training's metrics are left out, and an evaluation is a count of 0 with
a word ``withheld`` that says why. In a secure sum (:mod:`common.summed`) a request
also holds a ``sum`` record, and the reply is that record, or a masked vector as the only array.
Flower's own error messages are a last resort: they hold an exception's text, which may hold a path
or a participant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import (
    DEFAULT_TTL,
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from common.evaluation.of_site import Evaluation
from common.provenance import source_hash

if TYPE_CHECKING:
    from torch import Tensor

HELLO = "query.hello"  # who are you, how many scans have you, which code do you run?
TRAIN = MessageType.TRAIN
EVALUATE = MessageType.EVALUATE
SUM = "query.sum"  # a stage of a secure sum before or after that of masked vectors

WEIGHT = "num-examples"  # the metric that weights a reply in an average
LONGEST_TEXT = 20_000  # characters of a failure's words that are passed on
HALF = LONGEST_TEXT // 2
ARRAYS, CONFIG, METRICS, WORDS = "arrays", "config", "metrics", "words"
IDENTITY, FAILURE, OF_SUM = "identity", "failure", "sum"
WEIGHTS, FORMAT = "weights", "safetensors"  # the one array of a record of arrays
MOST_HEADER_BYTES = 2 * 2**20  # of the names, types and shapes of all tensors of a message
FLOATS, WHOLE = ("float16", "float32", "float64"), ("int8", "uint8", "int16", "int32", "int64")
PLAIN = frozenset({*FLOATS, *WHOLE, "bool"})


@dataclass(frozen=True)
class Failure:
    """Why a site could not answer.

    ``error`` and ``traceback`` are what the site lets out: everything when it is simulated, else
    the public words of the error and no values. ``kind`` is the name of the exception's class.
    """

    site: str
    phase: str
    error: str
    traceback: str
    kind: str = ""


@dataclass(frozen=True)
class Stage:
    """A stage of a secure sum, as a site is asked for it.

    Parameters
    ----------
    stage : str
        One of :data:`common.secure_sums.protocol.STAGES`.
    attempt : str
        Names the attempt at the sum.
    asked : tuple of str
        The sites that the sum is to be over.
    least : int
        Over how many of them it must be.
    message : bytes
        The protocol's.
    """

    stage: str
    attempt: str
    asked: tuple[str, ...]
    least: int
    message: bytes


def request(
    kind: str,
    node_id: int,
    *,
    round_number: int = 0,
    split: str = "",
    sites: Sequence[str] = (),
    best: int = 0,
    arrays: ArrayRecord | None = None,
    timeout: float = 0.0,
    stage: Stage | None = None,
) -> Message:
    """Compose a request to one site; ``sites`` are all that take part, sorted.

    ``best`` is the round whose model is the best so far; 0: none is.
    ``timeout`` is how many seconds an answer is waited for, which Flower must not cut short.
    """
    order = {"round": round_number, "split": split, "sites": list(sites), "best": best}
    content = RecordDict({CONFIG: ConfigRecord({**order, "source-hash": source_hash()})})
    if arrays is not None:
        content[ARRAYS] = arrays
    if stage is not None:
        content[OF_SUM] = ConfigRecord({**vars(stage), "asked": list(stage.asked)})
    return Message(
        content=content,
        message_type=kind,
        dst_node_id=node_id,
        group_id=str(round_number),
        ttl=max(timeout, DEFAULT_TTL),
    )


def update_reply(
    message: Message, count: int, metrics: Mapping[str, float], update: Mapping[str, Tensor]
) -> Message:
    """Compose a site's answer to :data:`TRAIN`: scans trained on, numbers, weights."""
    numbers = MetricRecord({WEIGHT: count, **metrics})
    return Message(content=RecordDict({METRICS: numbers, ARRAYS: pack(update)}), reply_to=message)


def evaluation_reply(message: Message, evaluation: Evaluation) -> Message:
    """Compose a site's answer to :data:`EVALUATE`."""
    content = RecordDict({METRICS: MetricRecord({WEIGHT: evaluation.count, **evaluation.metrics})})
    if evaluation.statistics:
        content[ARRAYS] = pack(evaluation.statistics)
    if evaluation.words:
        content[WORDS] = ConfigRecord(dict(evaluation.words))
    return Message(content=content, reply_to=message)


def evaluation_in(message: Message) -> Evaluation:
    """Read what :func:`evaluation_reply` composed."""
    return evaluation_of(message.content)


def evaluation_of(content: RecordDict) -> Evaluation:
    """Read the content of what :func:`evaluation_reply` composed."""
    metrics = dict(content[METRICS])
    arrays = content.array_records.get(ARRAYS)
    words = content.config_records.get(WORDS, {})
    return Evaluation(
        int(metrics.pop(WEIGHT)),
        {name: float(value) for name, value in metrics.items()},
        {} if arrays is None else unpack(arrays),
        {name: str(word) for name, word in words.items()},
    )


def stage_in(message: Message) -> Stage | None:
    """Return the stage of a secure sum that a request asks for; None where it asks for none.

    Raises
    ------
    ValueError
        If it is not as :func:`request` composes it.
    """
    if OF_SUM not in message.content:
        return None
    told = message.content[OF_SUM]
    if not isinstance(told, ConfigRecord) or told.keys() != Stage.__dataclass_fields__.keys():
        raise ValueError("a stage of a secure sum of another form")
    if not isinstance(told["message"], bytes) or not isinstance(told["asked"], list):
        raise ValueError("a stage of a secure sum of another form")
    return Stage(
        str(told["stage"]),
        str(told["attempt"]),
        tuple(map(str, told["asked"])),
        int(told["least"]),
        told["message"],
    )


def stage_reply(message: Message, answer: bytes) -> Message:
    """Compose a site's answer to :data:`SUM`."""
    return Message(content=stage_content(answer), reply_to=message)


def stage_content(answer: bytes) -> RecordDict:
    """Compose what an answer to :data:`SUM` holds."""
    return RecordDict({OF_SUM: ConfigRecord({"message": answer})})


def masked_reply(message: Message, masked: bytes) -> Message:
    """Compose a site's answer to an order that is part of a secure sum: its masked vector."""
    return Message(content=masked_content(masked), reply_to=message)


def masked_content(masked: bytes) -> RecordDict:
    """Compose what :func:`masked_reply` holds."""
    array = Array("uint8", (len(masked),), FORMAT, masked)
    return RecordDict({ARRAYS: ArrayRecord({WEIGHTS: array})})


def answer_in(message: Message) -> bytes:
    """Read what :func:`stage_reply` or :func:`masked_reply` composed.

    Raises
    ------
    ValueError
        If it holds anything else.
    """
    content = message.content
    if list(content) == [OF_SUM] and list(content.config_records) == [OF_SUM]:
        told = content[OF_SUM]
        if list(told) == ["message"] and isinstance(told["message"], bytes):
            return told["message"]
    if list(content) == [ARRAYS] and list(content.array_records) == [ARRAYS]:
        arrays = content[ARRAYS]
        if list(arrays) == [WEIGHTS] and arrays[WEIGHTS].stype == FORMAT:
            return bytes(arrays[WEIGHTS].data)
    raise ValueError("it must hold one message of a secure sum, and nothing else")


def identity_reply(
    message: Message, site: str, counts: Mapping[str, int], device: str, extractor_hash: str = ""
) -> Message:
    """Compose the answer to :data:`HELLO`: a name, numbers of scans, a device, hashes.

    They are of the sources, and of the network that judges pictures, where there is one.
    """
    identity = {
        "site": site,
        "source-hash": source_hash(),
        "device": device,
        "extractor-hash": extractor_hash,
    }
    return Message(
        content=RecordDict({IDENTITY: ConfigRecord(identity), METRICS: MetricRecord(dict(counts))}),
        reply_to=message,
    )


def failure_reply(message: Message, failure: Failure) -> Message:
    """Compose the answer of a site that could not do what it was asked."""
    return Message(
        content=RecordDict({FAILURE: ConfigRecord(dict(vars(failure)))}), reply_to=message
    )


def failure_in(message: Message, site: str = "", phase: str = "") -> Failure | None:
    """Return the failure that a reply reports, in our words or in Flower's, or None.

    ``site`` and ``phase`` stand in for what a reply does not tell.
    """
    if message.has_error():
        reason = printable(message.error.reason or "no reason given")
        return Failure(site or "unknown", phase, reason, "")
    if FAILURE in message.content.config_records:
        record = message.content.config_records[FAILURE]
        unsaid = Failure(site or "unknown", phase, "no reason given", "")
        return Failure(
            **{key: printable(record.get(key, text)) for key, text in vars(unsaid).items()}
        )
    return None


def printable(text: object) -> str:
    """Another's text as it may go to a log and a terminal: not endless, and no escape codes."""
    whole = str(text)
    ends = (whole,) if len(whole) <= LONGEST_TEXT else (whole[:HALF], whole[-HALF:])
    plain = ["".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in t) for t in ends]
    return "\n…\n".join(plain)


def pack(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Turn a state dict into Flower's record, on the CPU.

    All tensors become one array, in the format of safetensors: Flower sends every array as objects
    of its own, with several requests for each. The format sorts tensors by type, so their names
    are numbered to keep their order.
    """
    from safetensors.numpy import save

    numbered = {f"{i:05}/{name}": tensor for i, (name, tensor) in enumerate(state.items())}
    data = save(
        {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in numbered.items()}
    )
    return ArrayRecord({WEIGHTS: Array("uint8", (len(data),), FORMAT, data)})


def unpack(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Turn Flower's record back into a state dict.

    Raises
    ------
    ValueError
        If it is not what :func:`pack` makes. What it promises is believed only where its bytes
        bear it out, before memory is taken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if list(arrays) != [WEIGHTS] or arrays[WEIGHTS].stype != FORMAT:
        raise ValueError(f"it must hold one array, {WEIGHTS!r}, in the format of {FORMAT}")
    data = arrays[WEIGHTS].data
    if int.from_bytes(data[:8], "little") > MOST_HEADER_BYTES:
        raise ValueError(f"its list of tensors is longer than {MOST_HEADER_BYTES:,} bytes")
    try:
        found = load(data)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that PyTorch does not have
        raise ValueError(f"its tensors cannot be read: {printable(error)[:200]}") from error
    state = {name.partition("/")[2]: found[name] for name in sorted(found)}
    if len(state) != len(found):
        raise ValueError("two of its tensors have the same name")
    for tensor in state.values():
        if str(tensor.dtype).removeprefix("torch.") not in PLAIN:
            raise ValueError(f"a tensor of type {tensor.dtype} does not hold plain numbers")
    return state


def payload_bytes(message: Message) -> int:
    """Bytes of weights that a message carries, and of a secure sum's messages.

    Names and metrics are a few hundred more.
    """
    if message.has_error():
        return 0
    of_sum = message.content.config_records.get(OF_SUM, {})
    return len(of_sum.get("message", b"")) + sum(
        len(array.data)
        for record in message.content.array_records.values()
        for array in record.values()
    )
