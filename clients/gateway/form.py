"""What a reply to an order may hold: by name, shape and type, and nothing that is not foreseen.

All of it follows from this installation's own code, from the run's configuration and from what was
asked, before the site's own process has answered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from clients.policy import SitePolicy
from common import messages
from common.config.run_config import RunConfig
from common.data.unlabelled import nothing_to_judge_by
from common.disclosure import WITHHELD, too_few
from common.errors import ConfigError
from common.evaluation.extractor import DEFAULTS
from common.imaging.splits import SPLITS
from common.local_round import shapes_sent
from common.site_names import require_sites
from common.tasks.task import load_task
from common.transport import SCALE, Encoding

Shape = tuple[int, ...]
SHA256 = "[0-9a-f]{64}"
DEVICE = r"cpu|mps|cuda(:\d{1,3})?"
COUNTS = frozenset({*(f"n_{split}" for split in SPLITS), "left_out", "min_participants"})
DTYPES: dict[Encoding, str] = {"float32": "float32", "float16": "float16", "int8": "int8"}


@dataclass(frozen=True)
class ArrayForm:
    """What an array must be.

    Parameters
    ----------
    shape : tuple of int
    dtype : str
        As NumPy calls it.
    at_most : bool
        The lengths of the axes are the longest that there can be: they depend on a file of the
        site's own.
    """

    shape: Shape
    dtype: str
    at_most: bool = False

    def fits(self, shape: Shape, dtype: str) -> bool:
        """Tell whether an array has this form."""
        if len(shape) != len(self.shape) or dtype != self.dtype:
            return False
        pairs = zip(shape, self.shape, strict=True)
        return all(0 < one <= most if self.at_most else one == most for one, most in pairs)


@dataclass(frozen=True)
class Form:
    """What a reply may hold.

    Parameters
    ----------
    kind : str
        What was asked.
    counts : frozenset of str
        Whole numbers, not negative, among the metrics; all of them are there.
    metrics : frozenset of str
        Other numbers; a site may leave some out.
    arrays : mapping of str to ArrayForm
    whole : bool
        Whether all arrays must be there; else all or none.
    words : mapping of str to re.Pattern
        What the record of words may hold; a text must match in full. A site may leave some out.
    identity : mapping of str to re.Pattern
        The same of who the site is; all of them are there.
    """

    kind: str
    counts: frozenset[str]
    metrics: frozenset[str] = frozenset()
    arrays: Mapping[str, ArrayForm] = field(default_factory=dict)
    whole: bool = False
    words: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    identity: Mapping[str, re.Pattern[str]] = field(default_factory=dict)


def form_of(
    kind: str,
    config: RunConfig,
    policy: SitePolicy,
    *,
    site: str,
    sites: tuple[str, ...] = (),
    split: str = "",
) -> Form:
    """Return the form of a reply to an order.

    Parameters
    ----------
    kind : str
        What is asked: ``query.hello``, ``train`` or ``evaluate``.
    config : RunConfig
        The run's, as :func:`common.tasks.task.read_run_config` reads it, with the site's own
        extractor where it has one.
    policy : SitePolicy
    site : str
    sites : tuple of str
        All that take part, as the order says.
    split : str
        The order's, of an evaluation.

    Raises
    ------
    ConfigError
        There is no such order, its list of sites is not usable, or the configuration not.
    """
    if kind == messages.HELLO:
        return form_of_hello(site, config)
    if kind == messages.TRAIN:
        return form_of_training(config, sites)
    if kind == messages.EVALUATE:
        return form_of_evaluation(config, policy, split)
    raise ConfigError("an order is one of query.hello, train and evaluate")


def form_of_hello(site: str, config: RunConfig) -> Form:
    """Return the form of a site's answer to who it is."""
    judges = config.task == "generation"  # by a network of its own
    identity = {
        "site": re.compile(re.escape(site)),
        "source-hash": re.compile(SHA256),
        "device": re.compile(DEVICE),
        "extractor-hash": re.compile(SHA256 if judges else ""),
    }
    counts = frozenset() if config.privacy.secure_sums else COUNTS
    return Form(messages.HELLO, counts, identity=identity)


def form_of_training(config: RunConfig, sites: tuple[str, ...]) -> Form:
    """Return the form of a round's update."""
    require_sites(sites)
    return Form(
        messages.TRAIN,
        frozenset({messages.WEIGHT}),
        load_task(config.task).reports(config).training,
        encoded(shapes_sent(config, sites), config.transport),
        whole=True,
    )


def form_of_evaluation(config: RunConfig, policy: SitePolicy, split: str) -> Form:
    """Return the form of what is found of a model on one split."""
    reports, own = load_task(config.task).reports(config), config.model.extractor not in DEFAULTS
    texts = {name: _one_of(one) if one else SHA256 for name, one in reports.words.items()}
    least = policy.told(config).min_participants
    texts[WITHHELD] = _one_of({too_few(least), nothing_to_judge_by(split)})
    return Form(
        messages.EVALUATE,
        frozenset({messages.WEIGHT}),
        reports.evaluation,
        {n: ArrayForm(s, "float64", at_most=own) for n, s in reports.statistics.items()},
        words={name: re.compile(text) for name, text in texts.items()},
    )


def encoded(shapes: Mapping[str, Shape], transport: Encoding) -> dict[str, ArrayForm]:
    """Return the forms of arrays as they travel to the server."""
    forms = {name: ArrayForm(shape, DTYPES[transport]) for name, shape in shapes.items()}
    if transport == "int8":
        forms |= {name + SCALE: ArrayForm((), "float32") for name in shapes}
    return forms


def _one_of(texts: frozenset[str] | set[str]) -> str:
    return "|".join(map(re.escape, sorted(texts)))
