"""What would leave a site in a run, told before the run starts and without opening a scan.

It follows from the site's policy, its table of images and the run's configuration, through the same
code that later judges the replies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clients.gateway.facts import SplitFacts, facts_of_splits
from clients.gateway.form import (
    ArrayForm,
    Form,
    form_of_evaluation,
    form_of_hello,
    form_of_training,
)
from clients.gateway.policy import GatePolicy
from clients.policy import SitePolicy
from common.config.run_config import RunConfig
from common.data.site_data import read_table
from common.disclosure import Disclosure
from common.errors import DataContractError
from common.evaluation.of_site import Evaluation
from common.selection import due
from common.tasks.task import load_task, survey_table, use_of_labels

FULL_MANTISSA = 23  # bits, of float32
HEADER = 128  # bytes before each array
OF_SPLIT = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Leaving:
    """One kind of message in a run.

    Parameters
    ----------
    what : str
    times : int
    counts : list of str
        Whole numbers, by name.
    metrics : list of str
        Names of the numbers that are told.
    withheld : list of str
        Names of those that this site has too few people for.
    why : str
        Why they are withheld.
    arrays : dict
        Of each array its shape and its type; of statistics the longest that it can be.
    bytes : int
        Of the arrays, at most.
    words : list of str
        Names of texts, each one of a few that there can be.
    """

    what: str
    times: int
    counts: list[str]
    metrics: list[str]
    withheld: list[str] = field(default_factory=list)
    why: str = ""
    arrays: dict[str, tuple[list[int], str]] = field(default_factory=dict)
    bytes: int = 0
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Explanation:
    """All of it.

    Parameters
    ----------
    site, study, task, strategy : str
    rounds : int
    people : dict of str to int
        Of each split, with a label.
    refused : list of str
        What the policy does not accept of the run, or cannot: then nothing but this leaves.
    messages : list of Leaving
        Empty where the data cannot be used.
    digits : int
        Significant digits of numbers; 0: all.
    error_words : bool
        Whether the words of an error leave.
    bytes : int
        Of all arrays of the run, at most.
    changes : list of str
        What the gate changes of weights, and that no app is approved.
    """

    site: str
    study: str
    task: str
    strategy: str
    rounds: int
    people: dict[str, int]
    refused: list[str]
    messages: list[Leaving]
    digits: int
    error_words: bool
    bytes: int
    changes: list[str] = field(default_factory=list)


def explain(
    config: RunConfig, policy: SitePolicy, gate: GatePolicy, *, site: str, data_dir: Path
) -> Explanation:
    """Say what of a site would leave it in a run.

    Parameters
    ----------
    config : RunConfig
    policy : SitePolicy
    gate : GatePolicy
    site : str
    data_dir : Path

    Raises
    ------
    ConfigError, DataContractError
        The site's table cannot be read.
    """
    refused = policy.objections(config)
    if (config.model.warm_start or config.model.gan_checkpoint) and not policy.approved_weights:
        refused.append(
            "the first weights do not follow from the run's seed, and approved-weights is empty"
        )
    whole = read_table(config.read_study(), site, data_dir)
    table = use_of_labels(site, config).of(whole)
    try:
        survey_table(whole, config)
    except DataContractError as error:
        refused.append(error.public)
    facts = facts_of_splits(table, config)
    people = {split: one.people for split, one in facts.items()}
    if people["train"] < policy.min_batch_size:
        refused.append(
            f"{_people(people['train'])} to train on, accepted are {policy.min_batch_size} or more "
            "(min-batch-size)"
        )
    messages = [_hello(site, config), _training(config, policy, site, facts["train"])]
    messages += [_evaluation(config, policy, split, facts) for split in OF_SPLIT]
    total = sum(one.times * one.bytes for one in messages)
    refused += _too_large(messages, total, gate)
    return Explanation(
        site,
        config.read_study().name,
        config.task,
        config.strategy.name,
        config.run.rounds,
        people,
        refused,
        messages,
        gate.metric_digits,
        gate.error_words,
        total,
        list(_changes(gate, config)),
    )


def _people(number: int) -> str:
    return f"{number} {'person' if number == 1 else 'people'}"


def _changes(gate: GatePolicy, config: RunConfig) -> Iterator[str]:
    """Say what the gate changes of an update."""
    if config.privacy.secure_sums:
        yield (
            "Updates and evaluations leave masked, in secure sums: the server learns a sum over "
            "sites, and of this site none of the numbers above"
        )
    if gate.mantissa_bits < FULL_MANTISSA:
        yield f"Weights leave with {gate.mantissa_bits} bits of their mantissas (mantissa-bits)"
    if gate.max_update_norm:
        yield f"An update leaves no longer than {gate.max_update_norm:g} (max-update-norm)"
    if gate.sandbox == "none":
        yield "A run's code has all rights of the gate's user (sandbox)"


def _hello(site: str, config: RunConfig) -> Leaving:
    form = form_of_hello(site, config)
    return Leaving("who the site is", 1, sorted(form.counts), [], words=sorted(form.identity))


def _training(config: RunConfig, policy: SitePolicy, site: str, facts: SplitFacts) -> Leaving:
    form = form_of_training(config, (site,))
    steps = config.local_steps(facts.images)
    files = load_task(config.task).images_per_file(config)
    shown = min(facts.people, steps * config.training.batch_size // files)
    disclosure = policy.told(config)
    told = disclosure.training(dict.fromkeys(form.metrics, 0.0), shown)
    least = disclosure.min_participants
    why = (
        f"a round is about {_people(shown)}, and the policy wants {least}"
        if shown < least
        else "measured on a single batch now and then"
    )
    return _leaving("an update of the model", config.run.rounds, form, told, why)


def _evaluation(
    config: RunConfig, policy: SitePolicy, split: str, facts: dict[str, SplitFacts]
) -> Leaving:
    """Put an evaluation without values through the same rules as one with values."""
    form = form_of_evaluation(config, policy, split)
    people, fewest = facts[split].people, facts[split].fewest
    if split == "test" and config.task == "generation":  # what copies training scans is told, too
        people = fewest = min(people, facts["train"].people)
    disclosure = policy.told(config)
    least = disclosure.min_participants
    told = disclosure.evaluation(
        Evaluation(
            *(people, dict.fromkeys(form.metrics, 0.0)),
            **{"people": people, "fewest": fewest, "classes": facts[split].classes},
        )
    )
    arrays = _statistics(form, disclosure, people) if told.metrics else {}
    rounds, every = config.run.rounds, config.run.evaluate_every
    times = sum(due(number, every, rounds) for number in range(1, rounds + 1))
    few, of = (people, "it") if people < least else (fewest, "its smallest class")
    why = f"{of} has {_people(few)}, and the policy wants {least}"
    what = f"{OF_SPLIT[split]} of the model"
    return _leaving(what, 1 if split == "test" else times, form, told.metrics, why, arrays)


def _leaving(
    what: str,
    times: int,
    form: Form,
    told: Iterable[str],
    why: str,
    arrays: dict[str, ArrayForm] | None = None,
) -> Leaving:
    names, sent = set(told), form.arrays if arrays is None else arrays
    withheld = sorted(form.metrics - names)
    return Leaving(
        what,
        times,
        sorted(form.counts),
        sorted(names),
        withheld,
        why if withheld else "",
        {name: (list(one.shape), one.dtype) for name, one in sent.items()},
        sum(_bytes(one) for one in sent.values()),
        sorted(form.words),
    )


def _statistics(form: Form, disclosure: Disclosure, people: int) -> dict[str, ArrayForm]:
    sizes = [one.shape[0] for name, one in form.arrays.items() if name.endswith(".mean")]
    told = all(disclosure.tells_moments(size, people) for size in sizes)
    return dict(form.arrays) if told else {}


def _bytes(form: ArrayForm) -> int:
    return HEADER + math.prod(form.shape) * np.dtype(form.dtype).itemsize


def _too_large(messages: list[Leaving], total: int, gate: GatePolicy) -> list[str]:
    """Say which of the gate's limits on bytes the run would reach."""
    largest = max(one.bytes for one in messages)
    limits = [
        ("a message", "max-message-bytes", largest, gate.max_message_bytes),
        ("the run", "max-run-bytes", total, gate.max_run_bytes),
        ("a message", "max-day-bytes", largest, gate.max_day_bytes),
    ]
    return [
        f"{what} has {size} bytes, accepted is {most} or fewer (gate.{key})"
        for what, key, size, most in limits
        if most and size > most
    ]
