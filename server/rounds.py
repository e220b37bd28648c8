"""A federation over Flower: sites asked by messages, from the first hello to the summary."""

from __future__ import annotations

import contextlib
import time
import traceback
from dataclasses import asdict
from typing import Any

import torch
from flwr.serverapp import Grid

from common.config.run_config import RunConfig
from common.evaluation.of_site import counts_of_use
from common.fingerprint import fingerprint
from common.metrics_log import WHOLE
from common.participation import learning_sites
from common.privacy.promises import central_statement
from common.privacy.statement import statement
from common.rounds import Result, begin, first_order, log, run_rounds
from common.run_folder import TOGETHER, RunFolder, require_same_sites
from common.run_state import RunState
from common.tasks.task import SiteContext, load_task
from server.participants import Participants
from server.replies import SiteFailure
from server.sites import RemoteSites
from server.sums import SummedSites


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
        with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
            folder.write_failure(failure)
        raise
    finally:
        folder.close()


def _federate(grid: Grid, config: RunConfig, folder: RunFolder) -> None:
    began = time.monotonic()
    before = folder.begun() if config.run.resume else {}
    participants = Participants(grid, config, roster=before)
    place = SiteContext("server", tuple(participants.sites), torch.device("cpu"))
    state = begin(config, place)
    found = {n: {**one.counts, "device": one.device} for n, one in participants.sites.items()}
    if before:
        require_same_sites(before, found)
        state, seconds = folder.load_checkpoint(state, load_task(config.task), config)
        began -= seconds
        log.info("Resumed after round %d of %d", state.round, config.run.rounds)
    else:
        folder.write_manifest(found, fingerprint(first_order(state, config)))
    state.secret_noise = not participants.mail.is_simulated
    log.info("Sites: %s. Run folder: %s", ", ".join(participants.sites), folder.path)
    kind = SummedSites if config.privacy.secure_sums else RemoteSites
    sites = kind(participants, config, folder, began)
    result = run_rounds(state, config, sites, place=place, folder=folder.path)
    folder.write_summary(
        {"run_id": folder.run_id, **_summary(result, state, config, participants, began)}
    )
    sites.close()
    log.info("Tested the model of round %d. Done: %s", result.round, folder.path)


def _summary(
    result: Result, state: RunState, config: RunConfig, participants: Participants, began: float
) -> dict[str, Any]:
    task = load_task(config.task)
    whole: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    counts, fits = {name: site.counts for name, site in participants.sites.items()}, result.fits
    for name, one in result.test.evaluations.items():  # only now were its test files opened
        tested = one.count // task.images_per_file(config)
        if name == WHOLE:  # of a secure sum there is nothing of single sites
            whole[TOGETHER] = {"n_test": tested, **one.metrics}
            fits = dict.fromkeys(participants.sites, fits[WHOLE])  # in the mean all are alike
        else:
            counts[name] = counts_of_use(counts[name], {"n_test": tested})
    if result.test.merged:
        told, found = task.summary(
            result.test.evaluations,
            result.test.merged,
            fits,
            config,
            round_number=result.round,
        )
        whole |= told
    return {
        "arm": "federated",
        "strategy": config.strategy.name,
        "seed": config.run.seed,
        "rounds": config.run.rounds,
        "rounds_done": state.round,
        "best_round": result.round,
        "selected_by": result.selected_by,
        "seconds": round(time.monotonic() - began, 1),
        "bytes_up": state.bytes_up,
        "bytes_down": state.bytes_down,
        **whole,
        **central_statement(
            config,
            len(learning_sites(tuple(participants.sites), config)),
            secret_noise=state.secret_noise,
        ),
        **statement(config, result.fits, state.fits),
        "sites": {
            name: {
                **counts[name],
                **found.get(name, {}),
                **state.incidents.of(name),
                **({"suspended": True} if name in state.standing.suspended else {}),
            }
            for name in participants.sites
        },
    }
