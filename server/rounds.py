"""A federation over Flower: sites asked by messages, from the first hello to the summary."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from common import messages
from common.config.run_config import RunConfig
from common.evaluation.extractor import DEFAULTS, MOST_FEATURES
from common.evaluation.of_site import Evaluation, counts_of_use
from common.fingerprint import fingerprint
from common.messages import Failure
from common.metrics_log import BYTES, UNUSABLE, Row
from common.rounds import (
    Measured,
    Result,
    RunState,
    Update,
    begin,
    first_order,
    log,
    run_rounds,
)
from common.run_folder import RunFolder
from common.selection import Judged, judge_usable
from common.strategies.strategy import State
from common.tasks.task import SiteContext, ValidationResult, load_task
from common.transport import broadcast, received, to_keep
from server.participants import Participants
from server.replies import TRAINING, SiteFailure, read_evaluation, read_update, unusable


def federate(grid: Grid, config: RunConfig, *, run_id: str) -> None:
    """Run one federation and leave its folder.

    Raises
    ------
    Exception
        Whatever ended the run early, after it was written to ``failure.json``.
    """
    folder = RunFolder(config, run_id)
    try:
        _federate(grid, config, folder)
    except Exception as error:
        failure = (
            asdict(error.failure)
            if isinstance(error, SiteFailure)
            else {
                "site": "",
                "phase": "server",
                "error": str(error) or type(error).__name__,
                "traceback": traceback.format_exc(),
            }
        )
        folder.write_failure(failure)
        raise


def _federate(grid: Grid, config: RunConfig, folder: RunFolder) -> None:
    began = time.monotonic()
    participants = Participants(grid, config)
    place = SiteContext("server", tuple(participants.sites), torch.device("cpu"))
    state = begin(config, place)
    folder.write_manifest(
        {name: {**site.counts, "device": site.device} for name, site in participants.sites.items()},
        fingerprint(first_order(state, config)),
    )
    log.info("Sites: %s. Run folder: %s", ", ".join(participants.sites), folder.path)
    sites = RemoteSites(participants, config, folder, began)
    result = run_rounds(state, config, sites, place=place, folder=folder.path)
    folder.write_summary(
        {"run_id": folder.run_id, **_summary(result, state, config, participants, began)}
    )
    log.info("Tested the model of round %d. Done: %s", result.round, folder.path)


def _summary(
    result: Result, state: RunState, config: RunConfig, participants: Participants, began: float
) -> dict[str, Any]:
    task = load_task(config.task)
    whole: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    counts = {name: site.counts for name, site in participants.sites.items()}
    for name, one in result.test.evaluations.items():  # only now were its test files opened
        tested = one.count // task.images_per_file(config)
        counts[name] = counts_of_use(counts[name], {"n_test": tested})
    if result.test.merged:
        whole, found = task.summary(
            result.test.evaluations,
            result.test.merged,
            result.fits,
            config,
            round_number=result.round,
        )
    return {
        "arm": "federated",
        "strategy": config.strategy.name,
        "seed": config.run.seed,
        "rounds": config.run.rounds,
        "best_round": result.round,
        "selected_by": result.selected_by,
        "seconds": round(time.monotonic() - began, 1),
        "bytes_up": state.bytes_up,
        "bytes_down": state.bytes_down,
        **whole,
        "sites": {
            name: {**counts[name], **found.get(name, {}), **state.incidents.of(name)}
            for name in participants.sites
        },
    }


class RemoteSites:
    """The sites of a run as the loop of rounds sees them, reached by Flower's messages.

    Parameters
    ----------
    participants : Participants
    config : RunConfig
    folder : RunFolder
    began : float
        When the run began, by the monotonic clock.
    """

    def __init__(
        self, participants: Participants, config: RunConfig, folder: RunFolder, began: float
    ) -> None:
        self.config, self.folder, self.began = config, folder, began
        self.task, self.participants = load_task(config.task), participants
        self.names = tuple(participants.sites)

    def train(self, number: int, weights: State, state: RunState) -> dict[str, Update]:
        """Order every site to train, and read what can be used of the replies.

        Raises
        ------
        SiteFailure
            A site has failed, or no site's answer can be used.
        """
        encoding, phase = self.config.transport, f"{messages.TRAIN}, round {number}"
        message = broadcast({**state.unshared, **weights}, encoding, state.reference)
        known = received(message, state.reference)
        state.reference = to_keep({name: known[name] for name in weights}, encoding)
        replies, failures = self._ask(messages.TRAIN, number, message, "train", state)
        updates: dict[str, Update] = {}
        for name, reply in replies.items():
            scans = self.participants.sites[name].counts[TRAINING]
            try:
                updates[name] = read_update(reply, name, phase, weights, encoding, scans)
            except SiteFailure as failure:
                failures[name] = failure
        self._leave_out(number, "train", failures, state)
        if not updates:
            raise _all_unusable(phase, failures)
        return updates

    def evaluate(self, number: int, released: State, split: str, state: RunState) -> Judged:
        """Have the sites judge what is released, and put together what of it can be used.

        Raises
        ------
        SiteFailure
            A site has failed, or no site's answer can be used.
        """
        message = broadcast(released, self.config.transport)
        replies, failures = self._ask(messages.EVALUATE, number, message, split, state)
        phase = f"{messages.EVALUATE} ({split}), round {number}"
        found: dict[str, Evaluation] = {}
        for name, reply in replies.items():
            counts = self.participants.sites[name].counts
            most = counts[f"n_{split}"] * self.task.images_per_file(self.config)
            try:
                one = read_evaluation(reply, name, phase, counts, most)
                _require_same_count(name, phase, one, state.judged_on.setdefault(split, {}))
                found[name] = one
            except SiteFailure as failure:
                failures[name] = failure
        judged = judge_usable(self._merge, {name: one for name, one in found.items() if one.count})
        failures |= {name: unusable(name, phase, why) for name, why in judged.refused.items()}
        self._leave_out(number, split, failures, state)
        if len(failures) == len(self.names) and not judged.disagree:
            raise _all_unusable(phase, failures)
        state.incidents.withhold(split, {n: e.words for n, e in found.items() if not e.count})
        return judged

    def record(self, number: int, split: str, measured: Measured) -> None:
        """Write metrics, by site with the count of what they were measured on."""
        seconds = round(time.monotonic() - self.began, 3)
        self.folder.metrics.append(
            [
                Row(number, site, split, name, value, count, seconds)
                for site, (count, metrics) in measured.items()
                for name, value in metrics.items()
            ]
        )

    def _merge(self, evaluations: Mapping[str, Evaluation]) -> ValidationResult:
        return self.task.judge(evaluations, self.config)

    def _leave_out(
        self, number: int, split: str, failures: Mapping[str, SiteFailure], state: RunState
    ) -> None:
        """Tell whose answers are not used."""
        for name, failure in sorted(failures.items()):
            state.incidents.lose(number, name, failure.failure.phase, failure.failure.error)
        self.record(number, split, {n: (0, {UNUSABLE: 1.0}) for n in sorted(failures)})

    def _ask(
        self, kind: str, number: int, weights: State, split: str, state: RunState
    ) -> tuple[dict[str, Message], dict[str, SiteFailure]]:
        arrays = messages.pack(weights)
        compose = partial(
            messages.request,
            kind,
            round_number=number,
            split=split,
            sites=self.names,
            best=state.best.round if state.best else 0,
            arrays=arrays,
            timeout=self.config.run.reply_timeout,
        )
        statistics = _statistics_bytes(self.config) if kind == messages.EVALUATE else 0
        replies, unreadable = self.participants.ask(
            f"{kind} ({split})", compose, number, statistics
        )
        down = sum(len(array.data) for array in arrays.values())
        up = dict.fromkeys(self.names, 0)
        up |= {name: messages.payload_bytes(reply) for name, reply in replies.items()}
        state.bytes_down += down * len(up)
        state.bytes_up += sum(up.values())
        self.record(
            number,
            split,
            {
                name: (0, {f"{BYTES}down-{kind}": down, f"{BYTES}up-{kind}": size})
                for name, size in up.items()
            },
        )
        return replies, unreadable


def _require_same_count(name: str, phase: str, one: Evaluation, judged_on: dict[str, int]) -> None:
    """Refuse a site that judges on other images than before: losses would not compare."""
    if not one.count:
        return
    before = judged_on.setdefault(name, one.count)
    if one.count != before:
        raise unusable(name, phase, f"judged on {one.count} images, of {before} before")


def _all_unusable(phase: str, failures: Mapping[str, SiteFailure]) -> SiteFailure:
    """Name all sites, of which none has answered in a way that can be used."""
    first = next(iter(failures.values())).failure
    if len(failures) == 1:
        return SiteFailure(first)
    reasons = "; ".join(f"{name}: {one.failure.error}" for name, one in sorted(failures.items()))
    return SiteFailure(Failure(", ".join(sorted(failures)), phase, reasons, ""))


def _statistics_bytes(config: RunConfig) -> int:
    """Return at most how many bytes of statistics a site may tell of features.

    Of real and of generated pictures a count, a mean and a covariance, in float64.
    """
    if config.task != "generation":
        return 0
    own = config.model.extractor not in DEFAULTS
    features = MOST_FEATURES if own else 2048
    return 2 * 8 * (features + 1) ** 2 + 2**20
