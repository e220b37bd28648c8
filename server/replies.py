"""What sites answer, taken apart: whatever is wrong is reported in that site's name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MetricRecord

from common import messages
from common.config.run_config import RunConfig
from common.disclosure import WITHHELD
from common.errors import FedscanError
from common.evaluation.extractor import DEFAULTS, MOST_FEATURES
from common.evaluation.of_site import Evaluation
from common.messages import Failure
from common.metrics_log import BYTES, UNUSABLE, UPDATE_NORM
from common.provenance import require_same_source
from common.run_state import Update
from common.site_names import SITE_NAME
from common.strategies.strategy import State
from common.transport import decode_update


class SiteFailure(FedscanError):
    """A site could not do its part, so the round cannot be whole."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(
            f"site '{failure.site}' failed in {failure.phase}: {failure.error}\n{failure.traceback}"
        )
        self.failure = failure


@dataclass(frozen=True)
class Identity:
    """What a site says of itself before anything begins."""

    site: str
    device: str
    extractor_hash: str
    counts: dict[str, int]


TRAINING = "n_train"  # the count of scans that a site trains on
COUNTS = {TRAINING, "n_val", "n_test"}
# What no honest site comes near, so that no answer fills memory, log or terminal, or outvotes all.
MOST_SCANS = 1_000_000
MOST_IMAGES = 10 * MOST_SCANS  # of which a scan may have several
MOST_NUMBERS = 1000
LARGEST_NUMBER = 1e15
LONGEST_NAME = 200
LONGEST_REASON = 1000  # characters


def read_identity(reply: Message, label: str, phase: str, *, counts: bool = True) -> Identity:
    """Read the answer to the question who a site is.

    Parameters
    ----------
    reply : Message
    label : str
        What a refusal calls the site as long as it has not said its name.
    phase : str
    counts : bool
        Whether it tells numbers of scans: with secure sums it does not.

    Raises
    ------
    ProvenanceError
        If the site runs other sources, whatever else it says.
    SiteFailure
    """
    with _blamed(label, phase):
        identity = reply.content[messages.IDENTITY]
        site, sources = _text(identity, "site"), _text(identity, "source-hash")
        if not SITE_NAME.fullmatch(site):
            raise FedscanError("its name is not one for a site")
    require_same_source(sources, f"site '{site}'")
    with _blamed(site, phase):
        numbers = _numbers(reply.content[messages.METRICS])
        told = {name: _whole(name, value, least=0) for name, value in numbers.items()}
        if counts and (missing := COUNTS - told.keys()):
            raise FedscanError(f"{min(missing)} is missing")
        if told and not counts:
            raise FedscanError("it tells numbers of scans, which secure sums are to hide")
        device, extractor = (_text(identity, key) for key in ("device", "extractor-hash"))
        return Identity(site, device, extractor, told)


def read_stage(reply: Message, site: str, phase: str) -> bytes:
    """Read the answer to a stage of a secure sum.

    Raises
    ------
    SiteFailure
        It holds anything else.
    """
    with _blamed(site, phase):
        return messages.answer_in(reply)


def read_update(
    reply: Message,
    site: str,
    phase: str,
    shared: State,
    encoding: str,
    scans: int,
    allowed: Collection[str],
) -> Update:
    """Read the answer to a training order.

    Parameters
    ----------
    reply : Message
    site, phase : str
        For the words of a refusal.
    shared : mapping of str to Tensor
        The server's own weights, which the update is added to.
    encoding : str
    scans : int
        How many training scans the site had when the run began.
    allowed : collection of str
        Names of the metrics that a training may report.

    Raises
    ------
    SiteFailure
    """
    with _blamed(site, phase):
        records = reply.content.array_records, reply.content.metric_records
        if [list(kind) for kind in records] != [[messages.ARRAYS], [messages.METRICS]]:
            names = f"'{messages.ARRAYS}' and '{messages.METRICS}'"
            raise FedscanError(f"of weights and of numbers it must have one record, {names}")
        metrics = _numbers(reply.content[messages.METRICS])
        count = _count(metrics)
        if count != scans:
            raise FedscanError(f"{count} scans trained on, of {scans} that were there at first")
        _require_known(metrics, allowed)
        update = messages.unpack(reply.content[messages.ARRAYS])
        return Update(count, metrics, decode_update(update, shared, encoding))


def read_evaluation(
    reply: Message, site: str, phase: str, allowed: Collection[str], most: int
) -> Evaluation:
    """Read the answer to an evaluation order.

    A site that withholds what it has measured is an evaluation of 0 images, with no numbers.

    Parameters
    ----------
    reply : Message
    site, phase : str
        For the words of a refusal.
    allowed : collection of str
        Names of the metrics that an evaluation may report.
    most : int
        How many images it can have judged, by those counts: it weighs as much in a common loss.

    Raises
    ------
    SiteFailure
    """
    with _blamed(site, phase):
        metrics = _numbers(reply.content[messages.METRICS])
        words = reply.content.config_records.get(messages.WORDS, ConfigRecord())
        withheld = WITHHELD in words
        count = _count(metrics, least=0 if withheld else 1)
        if withheld and (count or metrics or reply.content.array_records):
            raise FedscanError("it withholds its evaluation and tells of it")
        if count > most:
            raise FedscanError(f"judged on {count} images, of {most} that were there at first")
        _require_known(metrics, allowed)
        if len(words) > MOST_NUMBERS:
            raise FedscanError(f"{len(words)} words: accepted are up to {MOST_NUMBERS}")
        for key in words:
            _text(words, key)
        return messages.evaluation_in(reply)


def unusable(site: str, phase: str, error: Exception | str) -> SiteFailure:
    """Say in a site's name that its answer cannot be used, and why."""
    why = error if isinstance(error, str | FedscanError) else f"{type(error).__name__}: {error}"
    reason = messages.printable(str(why)[:LONGEST_REASON])
    return SiteFailure(Failure(site, phase, f"its answer is not usable: {reason}", ""))


def phase_of(kind: str, number: int, split: str) -> str:
    """Name what sites are asked for, as a failure tells it."""
    return (
        f"{kind}, round {number}" if kind == messages.TRAIN else f"{kind} ({split}), round {number}"
    )


def require_same_count(name: str, phase: str, one: Evaluation, judged_on: dict[str, int]) -> None:
    """Refuse a site that judges on other images than before: losses would not compare."""
    if not one.count:
        return
    before = judged_on.setdefault(name, one.count)
    if one.count != before:
        raise unusable(name, phase, f"judged on {one.count} images, of {before} before")


def all_unusable(phase: str, failures: Mapping[str, SiteFailure]) -> SiteFailure:
    """Name all sites, of which none has answered in a way that can be used."""
    first = next(iter(failures.values())).failure
    if len(failures) == 1:
        return SiteFailure(first)
    reasons = "; ".join(f"{name}: {one.failure.error}" for name, one in sorted(failures.items()))
    return SiteFailure(Failure(", ".join(sorted(failures)), phase, reasons, ""))


def statistics_bytes(config: RunConfig) -> int:
    """Return at most how many bytes of statistics a site may tell of features.

    Of real and of generated pictures a count, a mean and a covariance, in float64.
    """
    if config.task != "generation":
        return 0
    own = config.model.extractor not in DEFAULTS
    features = MOST_FEATURES if own else 2048
    return 2 * 8 * (features + 1) ** 2 + 2**20


@contextlib.contextmanager
def _blamed(site: str, phase: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # unpacking what may be anything at all raises anything at all
        raise unusable(site, phase, error) from error


def _numbers(record: MetricRecord) -> dict[str, float]:
    """Metrics, each a single number; NaN is one, where a measure is not defined."""
    if len(record) > MOST_NUMBERS:
        raise ValueError(f"{len(record)} metrics: accepted are up to {MOST_NUMBERS}")
    for name, value in record.items():
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError(f"metric {name[:40]!r} has no usable name")
        if name in (UNUSABLE, UPDATE_NORM) or name.startswith(BYTES):
            raise ValueError(f"metric {name[:40]!r} has the name of one of the server's")
        if not isinstance(value, int | float):
            raise ValueError(f"metric {name[:40]!r} is not a number")
        if math.isfinite(value) and abs(value) > LARGEST_NUMBER:
            raise ValueError(f"{name[:40]} = {value:.3g}: no measure is as large")
    return dict(record)


def _require_known(metrics: Mapping[str, float], allowed: Collection[str]) -> None:
    if strange := sorted(metrics.keys() - set(allowed)):
        raise FedscanError(f"metric {strange[0][:40]!r} is none that this run reports")


def _count(metrics: dict[str, float], *, least: int = 1) -> int:
    return _whole(messages.WEIGHT, metrics.pop(messages.WEIGHT), least=least, most=MOST_IMAGES)


def _whole(name: str, value: float, *, least: int, most: int = MOST_SCANS) -> int:
    if not (math.isfinite(value) and least <= value <= most and value == int(value)):
        raise ValueError(
            f"{name[:40]} = {value}: accepted is a whole number from {least} to {most:,}"
        )
    return int(value)


def _text(record: ConfigRecord, key: str) -> str:
    value = record[key]
    if not isinstance(value, str) or len(value) > LONGEST_NAME or not value.isprintable():
        raise ValueError(f"{key} is no short text")
    return value
