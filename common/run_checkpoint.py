"""What a run goes on from after an interruption: the server's whole state after a round.

Tensors are in one safetensors file, all else in the sidecar beside it; both are replaced in one
instant (:func:`common.checkpoints.save_snapshot`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.checkpoints import read_snapshot, save_snapshot
from common.early_stopping import EarlyStopping
from common.errors import FedscanError
from common.evaluation.of_site import Evaluation
from common.files import make_folder
from common.incidents import Incidents
from common.participation import Standing
from common.run_state import Best, RunState
from common.selection import Judged
from common.strategies.strategy import with_prefix

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig
    from common.tasks.task import Task

NAME = "state"
TENSORS = ("shared", "released", "strategy", "reference", "unshared")  # mappings of RunState
PLAIN = ("round", "trained", "is_known", "judged_on", "bytes_up", "bytes_down")
BEST, STATISTICS = "best/", "statistics/"  # prefixes


def save(folder: Path, state: RunState, about: Mapping[str, Any]) -> None:
    """Write a run's state.

    Parameters
    ----------
    folder : Path
        Made where there is none.
    state : RunState
        Of a run whose sites are remote: they keep their private state themselves.
    about : mapping
        JSON values that come back from :func:`load`.
    """
    make_folder(folder)
    tensors = {f"{name}/": getattr(state, name) for name in TENSORS}
    values: dict[str, Any] = {name: getattr(state, name) for name in PLAIN}
    values |= {"fits": state.fits, "incidents": asdict(state.incidents)}
    values |= {"standing": asdict(state.standing), "stopping": asdict(state.stopping)}
    if best := state.best:
        tensors[BEST] = best.released
        judged = best.judged
        for site, one in judged.evaluations.items():
            tensors[f"{STATISTICS}{site}/"] = one.statistics
        values["best"] = {
            "round": best.round,
            "fits": best.fits,
            "refused": judged.refused,
            "undefined": sorted(judged.undefined),
            "disagree": judged.disagree,
            "evaluations": {
                site: {"count": one.count, "metrics": one.metrics, "words": one.words}
                for site, one in judged.evaluations.items()
            },
        }
    whole = {
        prefix + name: tensor.detach().cpu().contiguous().clone()
        for prefix, part in tensors.items()
        for name, tensor in part.items()
    }
    # Of the names too, for safetensors sorts them, and sums in another order have other bits.
    description = {"state": values, "about": dict(about), "order": list(whole)}
    save_snapshot(folder, NAME, whole, description)


def load(
    folder: Path, state: RunState, task: Task, config: RunConfig
) -> tuple[RunState, dict[str, Any]]:
    """Read what :func:`save` wrote.

    Parameters
    ----------
    folder : Path
    state : RunState
        Of the run's beginning, with the names and shapes that its weights must have.
    task : Task
    config : RunConfig

    Returns
    -------
    state : RunState
    about : dict

    Raises
    ------
    FedscanError
        If it is damaged, or of another run.
    """
    description, found_tensors = read_snapshot(folder, NAME)
    try:
        tensors = {name: found_tensors[name] for name in description["order"]}
        values, about = description["state"], description["about"]
        found = RunState(
            **{name: _owned(with_prefix(tensors, f"{name}/")) for name in TENSORS},
            **{name: values[name] for name in PLAIN},
            fits=_numbers(values["fits"]),
            incidents=Incidents(**_lists_of_pairs(values["incidents"])),
            standing=Standing(**values["standing"]),
            stopping=EarlyStopping(**values["stopping"]),
        )
        if "best" in values:
            found.best = _best(values["best"], tensors, task, config)
    except (KeyError, TypeError, AttributeError) as error:
        raise FedscanError(
            f"{folder}: this is no checkpoint of this version of fedscan ({error}). Start the run "
            "anew"
        ) from error
    same = found.shared.keys() == state.shared.keys() and all(
        found.shared[name].shape == tensor.shape for name, tensor in state.shared.items()
    )
    if not same:
        raise FedscanError(f"{folder}: it is the checkpoint of another model. Start the run anew")
    return found, about


def _best(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], task: Task, config: RunConfig
) -> Best:
    evaluations = {
        site: Evaluation(
            one["count"],
            _floats(one["metrics"]),
            _owned(with_prefix(tensors, f"{STATISTICS}{site}/")),
            one["words"],
        )
        for site, one in values["evaluations"].items()
    }
    judged = Judged(
        task.judge(evaluations, config),
        evaluations,
        values["refused"],
        frozenset(values["undefined"]),
        values["disagree"],
    )
    released = _owned(with_prefix(tensors, BEST))
    return Best(values["round"], released, _numbers(values["fits"]), judged)


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy: tensors that were just read are windows on a file that the next round removes."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _numbers(fits: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {site: _floats(metrics) for site, metrics in fits.items()}


def _floats(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Read metrics: JSON has no NaN."""
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def _lists_of_pairs(incidents: Mapping[str, Any]) -> dict[str, Any]:
    known = {one.name for one in fields(Incidents)}
    found = {name: value for name, value in incidents.items() if name in known}
    return found | {"withholds": [(site, split) for site, split in incidents["withholds"]]}
