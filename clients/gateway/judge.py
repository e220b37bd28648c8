"""A reply judged against what was asked, and composed anew: none of the app's bytes leave.

What leaves is made of what this module writes itself: names from the order and from fedscan's own
declarations, numbers within bounds, arrays of exactly the form that was asked for, words from a
short list. What it cannot see is what the numbers of such an array mean.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from clients.gateway.runtime_api import Refused
from common import errors, messages
from common.clipping import clipped
from common.disclosure import WITHHELD
from common.evaluation.of_site import Evaluation
from common.strategies.strategy import ARRAYS as FURTHER
from common.transport import decode_update

if TYPE_CHECKING:
    import re

    from numpy.typing import NDArray
    from torch import Tensor

    from clients.gateway.facts import SplitFacts
    from clients.gateway.form import Form
    from clients.gateway.policy import GatePolicy
    from clients.gateway.run import Asked, SiteRun

ERRORS = frozenset(
    name
    for module in (errors, builtins)
    for name, thing in vars(module).items()
    if isinstance(thing, type) and issubclass(thing, Exception)
) | {"OutOfMemoryError"}


@dataclass(frozen=True)
class Composed:
    """What leaves.

    Parameters
    ----------
    content : RecordDict
    trained : dict of str to Tensor
        Of an answer to an order to train: whole weights, for the next order's decision.
    failure : str
        Of an app that could not do it: the kind of error.
    masked : int
        Numbers in a masked vector, where that is all.
    """

    content: RecordDict
    trained: dict[str, Tensor] = field(default_factory=dict)
    failure: str = ""
    masked: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, through those of the objects that it names."""
        return self.content.object_id

    @property
    def size(self) -> int:
        """Bytes of all of it, as Flower sends it."""
        return sum(len(one.deflate()) for one in get_all_nested_objects(self.content).values())

    def names(self) -> tuple[dict[str, tuple[tuple[int, ...], str]], list[str]]:
        """Return the arrays' shapes and types, and the metrics' names."""
        if self.masked:
            return {"masked": ((self.masked,), "unsigned")}, []
        record = self.content.array_records.get(messages.ARRAYS)
        arrays = {} if record is None else messages.unpack(record)
        metrics = self.content.metric_records.get(messages.METRICS, {})
        return {n: (tuple(a.shape), _type(a)) for n, a in arrays.items()}, list(metrics)


def compose(reply: Message, asked: Asked, run: SiteRun, form: Form, gate: GatePolicy) -> Composed:
    """Compose a reply anew.

    Parameters
    ----------
    reply : Message
        The app's, whole.
    asked : Asked
    run : SiteRun
    form : Form
        What an answer to the order may hold.
    gate : GatePolicy

    Raises
    ------
    Refused
        If it holds anything else.
    """
    if reply.has_error():
        return _failed(run.site.name, asked, "ClientAppError", "", gate)
    content = reply.content
    if messages.FAILURE in content:
        told = content[messages.FAILURE]
        kind, error = str(told.get("kind", "")), str(told.get("error", ""))
        return _failed(run.site.name, asked, kind, error, gate)
    records = {
        messages.HELLO: ({messages.IDENTITY, messages.METRICS}, set()),
        messages.TRAIN: ({messages.ARRAYS, messages.METRICS}, set()),
        messages.EVALUATE: ({messages.METRICS}, {messages.ARRAYS, messages.WORDS}),
    }
    needed, further = records[asked.kind]
    if not needed <= set(content) <= needed | further:
        raise Refused("a record that was not asked for, or none of one that was")
    if asked.kind == messages.HELLO:
        return Composed(_identity(content, asked, run, form))
    if asked.kind == messages.TRAIN:
        return _update(content, run, form, gate)
    return Composed(_evaluation(content, asked, run, form, gate))


def _failed(site: str, asked: Asked, kind: str, error: str, gate: GatePolicy) -> Composed:
    """Say that the app could not do it, by the kind of error and the order that it was."""
    kind = kind if kind in ERRORS else "Exception"
    words = f"{kind} (its words stay in the site's log)"
    if gate.error_words and error:
        words = messages.printable(error)
    return Composed(failure_content(site, asked.name, words, kind), failure=kind)


def failure_content(site: str, phase: str, words: str, kind: str) -> RecordDict:
    """Compose the words of a failure."""
    told = messages.Failure(site=site, phase=phase, error=words, traceback="", kind=kind)
    return RecordDict({messages.FAILURE: ConfigRecord(dict(vars(told)))})


def _identity(content: RecordDict, asked: Asked, run: SiteRun, form: Form) -> RecordDict:
    told = {name: str(word) for name, word in content[messages.IDENTITY].items()}
    if told.keys() != form.identity.keys():
        raise Refused("an identity that says more or less than fedscan's")
    _require_words(told, form.identity)
    if told["source-hash"] != asked.source:
        raise Refused("the hash of other sources than the server's")
    numbers = dict(content[messages.METRICS])
    if numbers.keys() != form.counts:
        raise Refused("other counts than fedscan's")
    known = run.facts.counts | {"min_participants": run.policy.min_participants}
    known["left_out"] = sum(run.facts.counts.values())
    for name, value in numbers.items():
        if not _whole(value, known[name]):
            raise Refused(f"{name}, a count that the site's table does not bear out")
    return RecordDict(
        {
            messages.IDENTITY: ConfigRecord(dict(sorted(told.items()))),
            messages.METRICS: MetricRecord({name: int(numbers[name]) for name in sorted(numbers)}),
        }
    )


def _update(content: RecordDict, run: SiteRun, form: Form, gate: GatePolicy) -> Composed:
    numbers = dict(content[messages.METRICS])
    facts, encoding = run.facts.splits["train"], run.config.transport
    count = numbers.pop(messages.WEIGHT, None)
    if not _whole(count, facts.images) or not count:
        raise Refused("a count of images that the site's table does not bear out")
    metrics = _metrics(numbers, form.metrics, gate)
    steps = run.config.local_steps(int(count)) * run.config.training.batch_size
    shown = min(facts.people, steps // run.task.images_per_file(run.config))
    metrics = run.policy.told(run.config).training(metrics, shown)  # as the app should have done
    update = _arrays(content, form)
    reference = {n: run.received[n] for n in form.arrays if n in run.received}
    if gate.max_update_norm:
        apart = {n for n in reference if n.startswith(FURTHER)}
        apart |= run.task.statistics_of(run.config)
        update = clipped(update, reference, gate.max_update_norm, encoding, apart)
    bits = gate.mantissa_bits
    update = {n: torch.from_numpy(rounded(t.numpy(), bits)) for n, t in update.items()}
    trained = decode_update(update, reference, encoding)
    return Composed(
        RecordDict(
            {
                messages.METRICS: MetricRecord({messages.WEIGHT: int(count), **metrics}),
                messages.ARRAYS: messages.pack(update),
            }
        ),
        trained,
    )


def _evaluation(
    content: RecordDict, asked: Asked, run: SiteRun, form: Form, gate: GatePolicy
) -> RecordDict:
    facts, numbers = run.facts.splits[asked.split], dict(content[messages.METRICS])
    count = numbers.pop(messages.WEIGHT, None)
    if not _whole(count, facts.images * run.task.images_per_file(run.config)):
        raise Refused("a count of images that the site's table does not bear out")
    words = {name: str(word) for name, word in content.get(messages.WORDS, {}).items()}
    _require_words(words, form.words)
    metrics = _metrics(numbers, form.metrics, gate)
    statistics = _arrays(content, form)
    people = {"people": facts.people, "fewest": facts.fewest, "classes": facts.classes}
    found = Evaluation(int(count), metrics, statistics, words, **people)
    if WITHHELD in words and (count or metrics or statistics):
        raise Refused("an evaluation that is withheld and told")
    _require_moments(statistics, run, facts)
    may = run.policy.told(run.config).evaluation(found)  # as the app should have done
    numbers = MetricRecord({messages.WEIGHT: may.count, **may.metrics})
    out = RecordDict({messages.METRICS: numbers})
    if may.statistics:
        out[messages.ARRAYS] = messages.pack(may.statistics)
    if may.words:
        out[messages.WORDS] = ConfigRecord(dict(sorted(may.words.items())))
    return out


def _require_moments(statistics: Mapping[str, Tensor], run: SiteRun, facts: SplitFacts) -> None:
    """Refuse moments over more features than their people allow, by their largest axis."""
    longest = max((max(one.shape, default=1) for one in statistics.values()), default=0)
    if longest > 1 and not run.policy.disclosure.tells_moments(longest, facts.people):
        raise Refused("moments of fewer people than the policy asks for")


def _metrics(
    told: Mapping[str, object], allowed: frozenset[str], gate: GatePolicy
) -> dict[str, float]:
    if set(told) - allowed:
        raise Refused("a metric that fedscan does not report")
    return {name: _number(told[name], gate.metric_digits) for name in sorted(told)}


def _number(value: object, digits: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("a metric that is no single number")
    number = float(value)
    if math.isnan(number):
        return math.nan  # its payload has room for more
    return float(f"{number:.{digits}g}") if digits and math.isfinite(number) else number


def _whole(value: object, most: int) -> bool:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return whole and 0 <= value <= most and value == int(value)


def _require_words(told: Mapping[str, str], allowed: Mapping[str, re.Pattern[str]]) -> None:
    if not all(name in allowed and allowed[name].fullmatch(word) for name, word in told.items()):
        raise Refused("words that are not fedscan's")


def _arrays(content: RecordDict, form: Form) -> dict[str, Tensor]:
    """Read arrays of exactly the form that was asked for, in its order."""
    record = content.array_records.get(messages.ARRAYS)
    try:
        told = {} if record is None else messages.unpack(record)
    except Exception as error:  # whatever made-up bytes make a parser raise
        raise Refused("arrays that cannot be read") from error
    if told.keys() != form.arrays.keys() and (told or form.whole):
        raise Refused("an array that was not asked for, or none of one that was")
    for name, value in told.items():
        if not form.arrays[name].fits(tuple(value.shape), _type(value)):
            raise Refused("an array of another shape or type than was asked for")
        if not value.isfinite().all():
            raise Refused("an array that is not finite")
    return {name: told[name] for name in form.arrays if told}


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def rounded(value: NDArray[np.generic], bits: int) -> NDArray[np.generic]:
    """Round the mantissas of floating-point numbers to so many bits, to the nearest."""
    floating = value.dtype in (np.float32, np.float16) and value.size > 1  # no count, no scale
    if not floating or bits >= (own := np.finfo(value.dtype).nmant):
        return value
    kind = np.uint32 if value.dtype == np.float32 else np.uint16
    dropped, whole = own - bits, value.copy().view(kind)
    rounded = ((whole + kind(1 << (dropped - 1))) >> kind(dropped)) << kind(dropped)
    result = rounded.view(value.dtype)
    return np.where(np.isfinite(result), result, value)  # one that was rounded up to infinity
