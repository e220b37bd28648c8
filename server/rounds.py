"""The rounds of a federation: train, average, validate; then test the best round's model, once."""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import asdict
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from common import messages
from common.config import RunConfig
from common.errors import DivergedError
from common.metrics_log import Row
from common.run_folder import RunFolder
from common.tasks import load_task
from server.roll_call import RollCall, SiteFailure
from server.selection import BestRound, pooled
from server.strategies import make_strategy

# A child of Flower's logger, so that lines reach its console and `flwr run --stream`.
log = logging.getLogger("flwr.fedscan")


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
        self.strategy = make_strategy(config)
        self.began = time.monotonic()
        self.bytes_up = self.bytes_down = 0
        self.roll_call = RollCall(grid, config)

    def run(self) -> None:
        """Run every round, select, test, write."""
        config, sites = self.config, self.roll_call.sites
        self.folder.write_manifest(
            {name: {**site.counts, "device": site.device} for name, site in sites.items()}
        )
        log.info("Sites: %s. Run folder: %s", ", ".join(sites), self.folder.path)
        model = self.task.build_model(config)
        arrays = messages.pack(self.task.shared_state(model))
        best: BestRound[ArrayRecord] = BestRound()
        for round_number in range(1, config.num_server_rounds + 1):
            arrays = self._train(round_number, arrays)
            validation = self._evaluate(round_number, arrays, "val")
            loss = pooled(validation, "loss", messages.WEIGHT)
            best.offer(round_number, loss, arrays)
            log.info(
                "Round %d/%d: validation loss %.3f, balanced accuracy %s",
                round_number,
                config.num_server_rounds,
                loss,
                ", ".join(f"{n} {m['balanced_accuracy']:.2f}" for n, m in validation.items()),
            )
        if best.model is None:
            raise DivergedError("no round had a finite validation loss: the run has diverged")
        self._finish(best)

    def _train(self, round_number: int, arrays: ArrayRecord) -> ArrayRecord:
        replies = self._ask(messages.TRAIN, round_number, arrays, "train")
        self._log(round_number, "train", replies)
        averaged, _ = self.strategy.aggregate_train(round_number, list(replies.values()))
        return averaged

    def _evaluate(
        self, round_number: int, arrays: ArrayRecord, split: str
    ) -> dict[str, dict[str, float]]:
        replies = self._ask(messages.EVALUATE, round_number, arrays, split)
        return self._log(round_number, split, replies)

    def _ask(
        self, kind: str, round_number: int, arrays: ArrayRecord, split: str
    ) -> dict[str, Message]:
        compose = partial(
            messages.request, kind, round_number=round_number, split=split, arrays=arrays
        )
        replies = self.roll_call.ask(f"{kind} ({split})", compose, round_number)
        weights = sum(len(array.data) for array in arrays.values())
        self.bytes_down += weights * len(replies)
        self.bytes_up += sum(map(messages.payload_bytes, replies.values()))
        return replies

    def _log(
        self, round_number: int, split: str, replies: dict[str, Message]
    ) -> dict[str, dict[str, float]]:
        metrics = {name: dict(r.content[messages.METRICS]) for name, r in replies.items()}
        seconds = round(time.monotonic() - self.began, 3)
        self.folder.metrics.append(
            [
                Row(round_number, site, split, name, value, int(values[messages.WEIGHT]), seconds)
                for site, values in metrics.items()
                for name, value in values.items()
                if name != messages.WEIGHT
            ]
        )
        return metrics

    def _finish(self, best: BestRound[ArrayRecord]) -> None:
        config = self.config
        self.folder.write_model(messages.unpack(best.model), round_number=best.round_number)
        test = self._evaluate(best.round_number, best.model, "test")
        summary: dict[str, Any] = {
            "run_id": self.folder.run_id,
            "arm": "federated",
            "strategy": config.strategy,
            "seed": config.seed,
            "rounds": config.num_server_rounds,
            "best_round": best.round_number,
            "seconds": round(time.monotonic() - self.began, 1),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "sites": {
                name: {
                    **self.roll_call.sites[name].counts,
                    "n_test": int(values.pop(messages.WEIGHT)),
                    **values,
                }
                for name, values in test.items()
            },
        }
        self.folder.write_summary(summary)
        log.info("Tested the model of round %d. Done: %s", best.round_number, self.folder.path)
