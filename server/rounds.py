"""The rounds of a federation: train, average, validate; then test the best round's model, once."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from flwr.app import Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from common import messages
from common.config.run_config import RunConfig
from common.errors import DivergedError
from common.evaluation.extractor import DEFAULTS, MOST_FEATURES
from common.fingerprint import fingerprint
from common.messages import Failure
from common.metrics_log import BYTES, UNUSABLE, UPDATE_NORM, WHOLE, Row
from common.run_folder import RunFolder
from common.tasks.task import Evaluation, Place, State, Verdict, load_task
from common.transport import broadcast, received, to_keep
from server.bounds import longest_norms, shortened, update_norms
from server.replies import (
    TRAINING,
    SiteFailure,
    Update,
    read_evaluation,
    read_update,
    unusable,
)
from server.roll_call import RollCall
from server.selection import Judged, Selection, due, judge_usable
from server.strategies import give_votes, make_strategy
from server.tally import Tally

# A child of Flower's logger, so that lines reach its console and `flwr run --stream`.
log = logging.getLogger("flwr.fedscan")

Fits = dict[str, dict[str, float]]  # what a round's training said, by site


def federate(grid: Grid, config: RunConfig, *, run_id: str) -> None:
    """Run one federation and leave its folder.

    Raises
    ------
    Exception
        Whatever ended the run early, after it was written to ``failure.json``.
    """
    folder = RunFolder(config, run_id)
    try:
        Federation(grid, config, folder).run()
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


class Federation:
    """One run: the sites that take part, the global weights, the log.

    Parameters
    ----------
    grid : Grid
    config : RunConfig
    folder : RunFolder
    """

    def __init__(self, grid: Grid, config: RunConfig, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
        self.task = load_task(config.task)
        self.began = time.monotonic()
        self.bytes_up = self.bytes_down = 0
        self.roll_call = RollCall(grid, config)
        self.place = Place("server", tuple(self.roll_call.sites), torch.device("cpu"))
        self.reference: State = {}  # what every site holds of the round before
        self.fits: Fits = {}
        self.judged_on: dict[tuple[str, str], int] = {}  # images, by site and split
        self.tally = Tally(self.roll_call.sites)

    def run(self) -> None:
        """Run every round, select, test, write."""
        config, sites, rounds = self.config, self.roll_call.sites, self.config.run.rounds
        model = self.task.build_model(config, self.place)
        self.task.warm_start(model, config)
        shared, released = (
            self.task.shared_state(model, config),
            self.task.first_release(model, config),
        )
        del model
        self.folder.write_manifest(
            {name: {**site.counts, "device": site.device} for name, site in sites.items()},
            fingerprint(shared),
        )
        log.info("Sites: %s. Run folder: %s", ", ".join(sites), self.folder.path)
        self.strategy = make_strategy(config, shared, participants=len(sites))
        selection: Selection[tuple[State, Fits]] = Selection(self._verdict)
        told = False  # whether it is known of any round how it fared
        for number in range(1, rounds + 1):
            shared = self._train(number, shared)
            released = self.task.release(
                released, shared, config, round_number=number, participants=len(sites)
            )
            if not due(number, config.run.evaluate_every, rounds):
                continue
            judged = self._evaluate(number, released, "val")
            told = told or judged.is_finite or 2 * len(judged.undefined) > len(sites)
            if selection.offer(number, judged, (released, self.fits)) or not told:
                # At once: what ends the run early must not take the best generator with it.
                self.task.save(
                    self.folder.path,
                    released,
                    shared,
                    config,
                    round_number=number,
                    place=self.place,
                )
            words = judged.verdict.words if judged.verdict else "no site tells how well it fared"
            log.info("Round %d/%d: %s", number, rounds, words)
            self.task.illustrate(
                self.folder.path, released, config, round_number=number, place=self.place
            )
        best = selection.best
        if best.model is not None:
            self._finish(best.round_number, *best.model, selected_by="validation")
        elif told:
            raise DivergedError("no round had a finite validation loss: the run has diverged")
        else:
            log.warning("No site has told how well any round fared: the last round's model it is")
            self._finish(rounds, released, self.fits, selected_by="last round")

    def _train(self, number: int, shared: State) -> State:
        encoding, phase = self.config.transport, f"{messages.TRAIN}, round {number}"
        message = broadcast(shared, encoding, self.reference)
        self.reference = to_keep(received(message, self.reference), encoding)
        replies, failures = self._ask(messages.TRAIN, number, message, "train")
        updates: dict[str, Update] = {}
        for name, reply in replies.items():
            scans = self.roll_call.sites[name].counts[TRAINING]
            try:
                updates[name] = read_update(reply, name, phase, shared, encoding, scans)
            except SiteFailure as failure:
                failures[name] = failure
        self._leave_out(number, "train", failures)
        if not updates:
            raise _all_unusable(phase, failures)
        self.fits = {name: update.metrics for name, update in updates.items()}
        states = self._bounded(number, updates, shared)
        # What only a site that lost the round can learn stays as the server has it.
        for name in self.roll_call.sites.keys() - states.keys():
            states[name] = {key: tensor.clone() for key, tensor in shared.items()}
        self.task.align({name: states[name] for name in self.roll_call.sites}, self.config)
        for name, update in updates.items():
            content = replies[name].content
            content.clear()  # only what was read is averaged
            content[messages.METRICS] = MetricRecord({messages.WEIGHT: update.count})
            content[messages.ARRAYS] = messages.pack(states[name])
        usable = {name: replies[name] for name in updates}
        self.tally.share(number, give_votes(usable, self.config), self.config)
        averaged, _ = self.strategy.aggregate_train(number, list(usable.values()))
        return messages.unpack(averaged)

    def _bounded(
        self, number: int, updates: Mapping[str, Update], shared: State
    ) -> dict[str, dict[str, Tensor]]:
        """Log how far each site has moved, and shorten the way of those that moved too far."""
        states = {name: update.state for name, update in updates.items()}
        norms = update_norms(states, shared)
        for name, most in longest_norms(norms, self.config.strategy.most_norm).items():
            if norms[name] > most:
                self.tally.norm(number, name, norms[name], most)
                states[name] = shortened(states[name], shared, most / norms[name])
        told = {name: {UPDATE_NORM: norm} for name, norm in norms.items()}
        self._log(number, "train", {n: (u.count, u.metrics | told[n]) for n, u in updates.items()})
        return states

    def _evaluate(self, number: int, released: State, split: str) -> Judged:
        """Have the sites judge what is released, and put together what of it can be used."""
        message = broadcast(released, self.config.transport)
        replies, failures = self._ask(messages.EVALUATE, number, message, split)
        phase = f"{messages.EVALUATE} ({split}), round {number}"
        found: dict[str, Evaluation] = {}
        for name, reply in replies.items():
            counts = self.roll_call.sites[name].counts
            most = counts[f"n_{split}"] * self.task.images_per_file(self.config)
            try:
                one = read_evaluation(reply, name, phase, counts, most)
                self._require_same_count(name, split, phase, one)
                found[name] = one
            except SiteFailure as failure:
                failures[name] = failure
        judged = judge_usable(
            self._verdict, {name: one for name, one in found.items() if one.count}
        )
        failures |= {name: unusable(name, phase, why) for name, why in judged.refused.items()}
        self._leave_out(number, split, failures)
        if len(failures) == len(self.roll_call.sites) and not judged.disagree:
            raise _all_unusable(phase, failures)
        self.tally.withheld(split, {n: one.words for n, one in found.items() if not one.count})
        usable = judged.evaluations
        self._log(number, split, {name: (one.count, one.metrics) for name, one in usable.items()})
        if judged.verdict:
            count = sum(one.count for one in usable.values())
            self._log(number, split, {WHOLE: (count, judged.verdict.whole)})
        return judged

    def _verdict(self, evaluations: Mapping[str, Evaluation]) -> Verdict:
        return self.task.judge(evaluations, self.config)

    def _require_same_count(self, name: str, split: str, phase: str, one: Evaluation) -> None:
        """Refuse a site that judges on other images than before: losses would not compare."""
        if not one.count:
            return
        before = self.judged_on.setdefault((name, split), one.count)
        if one.count != before:
            raise unusable(name, phase, f"judged on {one.count} images, of {before} before")

    def _leave_out(self, number: int, split: str, failures: Mapping[str, SiteFailure]) -> None:
        """Tell whose answers are not used."""
        for name, failure in sorted(failures.items()):
            self.tally.lose(number, name, failure)
        self._log(number, split, {n: (0, {UNUSABLE: 1.0}) for n in sorted(failures)})

    def _ask(
        self, kind: str, number: int, state: State, split: str
    ) -> tuple[dict[str, Message], dict[str, SiteFailure]]:
        arrays = messages.pack(state)
        compose = partial(
            messages.request,
            kind,
            round_number=number,
            split=split,
            sites=self.place.sites,
            arrays=arrays,
            timeout=self.config.run.reply_timeout,
        )
        statistics = _statistics_bytes(self.config) if kind == messages.EVALUATE else 0
        replies, unreadable = self.roll_call.ask(f"{kind} ({split})", compose, number, statistics)
        down = sum(len(array.data) for array in arrays.values())
        up = dict.fromkeys(self.roll_call.sites, 0)
        up |= {name: messages.payload_bytes(reply) for name, reply in replies.items()}
        self.bytes_down += down * len(up)
        self.bytes_up += sum(up.values())
        self._log(
            number,
            split,
            {
                name: (0, {f"{BYTES}down-{kind}": down, f"{BYTES}up-{kind}": size})
                for name, size in up.items()
            },
        )
        return replies, unreadable

    def _log(
        self, number: int, split: str, found: Mapping[str, tuple[int, Mapping[str, float]]]
    ) -> None:
        """Write metrics, by site with the count of what they were measured on."""
        seconds = round(time.monotonic() - self.began, 3)
        self.folder.metrics.append(
            [
                Row(number, site, split, name, value, count, seconds)
                for site, (count, metrics) in found.items()
                for name, value in metrics.items()
            ]
        )

    def _finish(self, number: int, released: State, fits: Fits, *, selected_by: str) -> None:
        config = self.config
        test = self._evaluate(number, released, "test")
        whole: dict[str, Any] = {}
        found: dict[str, dict[str, Any]] = {}
        if test.verdict:
            whole, found = self.task.summary(
                test.evaluations, test.verdict, fits, config, round_number=number
            )
        summary: dict[str, Any] = {
            "run_id": self.folder.run_id,
            "arm": "federated",
            "strategy": config.strategy.name,
            "seed": config.run.seed,
            "rounds": config.run.rounds,
            "best_round": number,
            "selected_by": selected_by,
            "seconds": round(time.monotonic() - self.began, 1),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            **whole,
            "sites": {
                name: {**site.counts, **found.get(name, {}), **self.tally.of(name)}
                for name, site in self.roll_call.sites.items()
            },
        }
        self.folder.write_summary(summary)
        log.info("Tested the model of round %d. Done: %s", number, self.folder.path)


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
