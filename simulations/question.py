"""What a comparison asks, and whether a folder holds that very one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.run_config import RunConfig
from common.errors import ConfigError, FileError
from common.provenance import PACKAGES, source_hash
from common.reading import read_json, require_plain_tree
from common.strategies.strategy import strategy_names
from simulations.folders import require_empty
from simulations.plan import OPTIONS, PRETRAINING, USE, Cell, Plan, Values

MANIFEST = "manifest.json"


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that holds something else than the comparison to resume; it may be missing.

    Raises
    ------
    ConfigError
    """
    if resume and folder.is_dir():
        require_plain_tree(folder)
    if not (folder / MANIFEST).is_file():
        if resume and folder.is_dir() and any(folder.glob("[!.]*")):
            raise ConfigError(
                f"{folder} holds no comparison to resume, but other files. Name the comparison's "
                "folder with --out"
            )
        require_empty(folder)
    elif not resume:
        raise ConfigError(
            f"{folder} holds a comparison. Continue it with --resume, or give another --out"
        )


def question(plan: Plan, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a comparison asks: of its manifest, all that knows nothing of the sites' data."""
    config = usual(plan, base)
    return {
        "config": config.to_flower(),
        "arms": list(plan.arms),
        "strategies": list(plan.strategies),
        "repetitions": list(plan.seed_range),
        "plan": plan.model_dump(by_alias=True),
        "budget": {
            "steps": config.total_steps,
            "batch_size": config.training.batch_size,
            "centralized_batch": plan.centralized_batch,
        },
        "source_hash": source_hash(packages=(*PACKAGES, "simulations")),
    }


def require_same(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a comparison whose manifest says otherwise; there may be none.

    Raises
    ------
    ConfigError
        Naming all that differs, or if the manifest cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    try:
        before = read_json(path, remedy="Restore it, or give another --out")
    except FileError as error:
        raise ConfigError(str(error), public=error.public) from None
    told: list[str] = []
    for key, now in json.loads(json.dumps(asked)).items():
        then = before.get(key)
        if then == now or (told and key in ("plan", "budget")):  # these follow from the rest
            continue
        inside = ""
        if isinstance(then, dict) and isinstance(now, dict):
            other = sorted(k for k in then.keys() | now.keys() if then.get(k) != now.get(k))
            inside = f" ({', '.join(other)})"
        told.append(f"{key.replace('_', ' ')}{inside}")
    if told:
        raise ConfigError(
            f"{folder} holds a comparison that differs in {', '.join(told)}. Resume it as it was "
            "begun, with the same options, data and release, or give another --out"
        )


def usual(plan: Plan, base: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of no variant."""
    reference = plan.reference_strategy
    plain = "" if reference in plan.variants else reference
    return plan.config(Cell("", plain, plan.first_repetition), base)


def differing(plan: Plan, base: Mapping[str, Any]) -> dict[str, Values]:
    """Return where strategies, what goes before and what comes after differ from :func:`usual`."""
    plain, found = usual(plan, base).to_flower(), {}
    for cell in (cell for stage in plan.stages() for cell in stage):
        name = cell.arm if cell.arm in (PRETRAINING, USE) else cell.strategy
        if cell.seed == plan.first_repetition and name:
            own = plan.config(cell, base).to_flower()
            differs = {k: v for k, v in own.items() if v != plain[k] and k not in OPTIONS}
            if differs or name not in strategy_names():
                found[name] = differs
    return found
