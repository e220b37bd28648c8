"""The rounds of a federation: train, average, validate; then test the best round's model, once."""

from __future__ import annotations

import logging
import math
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
from common.config import RunConfig
from common.errors import AnswerError, DivergedError
from common.metrics_log import WHOLE, Row
from common.run_folder import RunFolder
from common.tasks import Evaluation, Place, State, Verdict, load_task
from common.transport import broadcast, received, to_keep
from server.replies import (
    TRAINING,
    SiteFailure,
    read_evaluation,
    read_update,
    require_same_metrics,
)
from server.roll_call import RollCall
from server.selection import BestRound, due
from server.strategies import give_votes, make_strategy

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
        self.distances: dict[str, float] = {}

    def run(self) -> None:
        """Run every round, select, test, write."""
        config, sites, rounds = self.config, self.roll_call.sites, self.config.num_server_rounds
        self.folder.write_manifest(
            {name: {**site.counts, "device": site.device} for name, site in sites.items()}
        )
        log.info("Sites: %s. Run folder: %s", ", ".join(sites), self.folder.path)
        model = self.task.build_model(config, self.place)
        self.task.warm_start(model, config)
        shared, released = self.task.shared_state(model, config), self.task.first_release(model)
        del model
        self.strategy = make_strategy(config, shared, participants=len(sites))
        best: BestRound[tuple[State, Fits]] = BestRound()
        for number in range(1, rounds + 1):
            shared = self._train(number, shared)
            released = self.task.release(
                released, shared, config, round_number=number, participants=len(sites)
            )
            if not due(number, config.evaluate_every, rounds):
                continue
            validation = self._evaluate(number, released, "val")
            verdict = self._judge(number, "val", validation)
            self._log_whole(number, "val", verdict, validation)
            self.distances = {
                name: one.metrics.get("kernel_distance", math.nan)
                for name, one in validation.items()
            }
            if best.offer(number, verdict.loss, (released, self.fits)):
                # At once: what ends the run early must not take the best generator with it.
                self.task.save(
                    self.folder.path,
                    released,
                    shared,
                    config,
                    round_number=number,
                    place=self.place,
                )
            log.info("Round %d/%d: %s", number, rounds, verdict.words)
            self.task.illustrate(
                self.folder.path, released, config, round_number=number, place=self.place
            )
        if best.model is None:
            raise DivergedError("no round had a finite validation loss: the run has diverged")
        self._finish(best.round_number, *best.model)

    def _train(self, number: int, shared: State) -> State:
        encoding, phase = self.config.transport, f"{messages.TRAIN}, round {number}"
        message = broadcast(shared, encoding, self.reference)
        self.reference = to_keep(received(message, self.reference), encoding)
        replies = self._ask(messages.TRAIN, number, message, "train")
        updates = {
            name: read_update(
                reply, name, phase, shared, encoding, self.roll_call.sites[name].counts[TRAINING]
            )
            for name, reply in replies.items()
        }
        require_same_metrics(updates, phase)
        self.fits = {name: update.metrics for name, update in updates.items()}
        self._log(number, "train", {n: (u.count, u.metrics) for n, u in updates.items()})
        states = {name: update.state for name, update in updates.items()}
        self.task.align(states, self.config)
        for name, reply in replies.items():
            reply.content[messages.ARRAYS] = messages.pack(states[name])
        give_votes(replies, self.config, self.distances)
        averaged, _ = self.strategy.aggregate_train(number, list(replies.values()))
        return messages.unpack(averaged)

    def _evaluate(self, number: int, released: State, split: str) -> dict[str, Evaluation]:
        message = broadcast(released, self.config.transport)
        replies = self._ask(messages.EVALUATE, number, message, split)
        phase = f"{messages.EVALUATE} ({split}), round {number}"
        counts = {name: self.roll_call.sites[name].counts for name in replies}
        found = {
            name: read_evaluation(
                reply, name, phase, counts[name], self.task.most_judged(counts[name][f"n_{split}"])
            )
            for name, reply in replies.items()
        }
        self._log(number, split, {name: (one.count, one.metrics) for name, one in found.items()})
        return found

    def _ask(self, kind: str, number: int, state: State, split: str) -> dict[str, Message]:
        arrays = messages.pack(state)
        compose = partial(
            messages.request,
            kind,
            round_number=number,
            split=split,
            sites=self.place.sites,
            arrays=arrays,
            timeout=self.config.reply_timeout,
        )
        replies = self.roll_call.ask(f"{kind} ({split})", compose, number)
        down = sum(len(array.data) for array in arrays.values())
        up = {name: messages.payload_bytes(reply) for name, reply in replies.items()}
        self.bytes_down += down * len(replies)
        self.bytes_up += sum(up.values())
        self._log(
            number,
            split,
            {
                name: (0, {f"bytes-down-{kind}": down, f"bytes-up-{kind}": size})
                for name, size in up.items()
            },
        )
        return replies

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

    def _judge(self, number: int, split: str, parts: Mapping[str, Evaluation]) -> Verdict:
        """Put the sites' evaluations together, of which none may be unusable."""
        try:
            return self.task.judge(parts, self.config)
        except AnswerError as error:
            phase = f"evaluate ({split}), round {number}"
            raise SiteFailure(messages.Failure(error.site, phase, str(error), "")) from error

    def _log_whole(
        self, number: int, split: str, verdict: Verdict, parts: Mapping[str, Evaluation]
    ) -> None:
        count = sum(one.count for one in parts.values())
        self._log(number, split, {WHOLE: (count, verdict.whole)})

    def _finish(self, number: int, released: State, fits: Fits) -> None:
        config = self.config
        test = self._evaluate(number, released, "test")
        verdict = self._judge(number, "test", test)
        self._log_whole(number, "test", verdict, test)
        whole, sites = self.task.summary(test, verdict, fits, config, round_number=number)
        summary: dict[str, Any] = {
            "run_id": self.folder.run_id,
            "arm": "federated",
            "strategy": config.strategy,
            "seed": config.seed,
            "rounds": config.num_server_rounds,
            "best_round": number,
            "seconds": round(time.monotonic() - self.began, 1),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            **whole,
            "sites": {
                name: {**self.roll_call.sites[name].counts, **values}
                for name, values in sites.items()
            },
        }
        self.folder.write_summary(summary)
        log.info("Tested the model of round %d. Done: %s", number, self.folder.path)
