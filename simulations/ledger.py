"""The ledger of a run's privacy: what was promised of whom, and what attacks have found."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clients.budget import Budget
from clients.gateway.policy import read_policies
from common.config.run_config import RunConfig
from common.errors import ConfigError, FedscanError
from common.files import write_json
from common.metrics_log import read_rows
from common.participation import learning_sites
from common.privacy.promises import central_statement
from common.privacy.statement import TOLD, statement
from common.reading import read_json
from common.run_folder import LAUNCH, MANIFEST, METRICS, SUMMARY
from simulations.report.ledger import (
    ATTACKS,
    NO_PRIVACY,
    PROMISES,
    promises,
    protection,
    weaknesses,
)
from simulations.report.words import is_number, mapping

BESIDE = f"*/{ATTACKS}.json"
# What makes two results of attacks the same question.
QUESTION = ("kind", "method", "site", "features", "people")


def merged(*results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Bring together results of attacks, of which the last of the same question holds."""
    found = {
        tuple(one.get(key) for key in QUESTION): one
        for some in results
        for one in map(mapping, some)
        if one.get("kind")
    }
    return list(found.values())


def keep(folder: Path, attacks: Sequence[Mapping[str, Any]]) -> bool:
    """Add results of attacks to the summary of the model that they are of.

    Returns
    -------
    bool
        False where there is no summary, as of a training that has not ended.
    """
    try:
        summary = read_json(folder / SUMMARY)
    except FileNotFoundError:
        return False
    summary[ATTACKS] = merged(summary.get(ATTACKS) or [], attacks)
    write_json(folder / SUMMARY, summary)
    return True


def read_ledger(folder: Path) -> dict[str, Any]:
    """Read what a run has promised, and what protected it.

    Parameters
    ----------
    folder : Path
        Of a run, of a training of ``train-gan``, or of one model of a comparison.

    Returns
    -------
    dict
        ``run``; ``privacy`` and ``central_privacy``, as in its summary, or of a run that has not
        ended as its sites have told so far, and as its configuration has it; ``totals[site]``:
        ``epsilon``, ``delta`` and ``runs`` of all that a site's ``budget.toml`` on this machine
        holds; ``protected_by`` and ``not_protected``, sentences; ``attacks``: results of
        ``fedscan attack`` in the summary, in the folder or beside it.

    Raises
    ------
    ConfigError
        It is no such folder.
    FedscanError
        A file of it cannot be read.
    """
    manifest, summary = (_read(folder / name) for name in (MANIFEST, SUMMARY))
    if not manifest:
        inside = sorted(one.parent for one in folder.glob(f"*/{MANIFEST}"))
        hint = f"Name a folder inside, such as {inside[-1]}" if inside else "Name a run's folder"
        raise ConfigError(f"{folder}: no {MANIFEST} is here, so this is no run. {hint}")
    config = mapping(manifest.get("config"))
    told_of = manifest.get("sites")
    sites = mapping(summary.get("sites")) or mapping(told_of)
    told = (
        summary
        or _of_training(mapping(manifest.get("privacy")))
        or _so_far(folder, config, tuple(sites))
    )
    given = promises(told)
    run = str(summary.get("run_id") or manifest.get("run_id") or folder.name)
    norm = _update_norm(folder)
    return {
        "run": run,
        **{key: dict(mapping(told.get(key))) for key in PROMISES},
        "totals": {site: found for site in sites if (found := _total(site, run))},
        "protected_by": list(_protected(config, given, sites, norm)),
        "not_protected": list(_not_protected(config, given, norm)),
        ATTACKS: _attacks(folder, summary),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, remedy="Copy the folder again, or name another")
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _of_training(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``train-gan`` promises by its manifest; nothing of another folder's."""
    if not is_number(asked.get("epsilon")):
        return {}
    run = {"task": "generation", **{f"privacy.{key}": value for key, value in asked.items()}}
    found = statement(RunConfig.from_flower(run))
    return {key: {**one, "secret_noise": True} for key, one in found.items()}


def _so_far(
    folder: Path, config: Mapping[str, Any], sites: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Return what a run without a summary promises, and what its sites have told of it."""
    if not any(config.get(key) for key in ("privacy.epsilon", "privacy.central-epsilon")):
        return {}
    run = RunConfig.from_flower(config)
    fits: dict[str, dict[str, float]] = {}
    with contextlib.suppress(FileNotFoundError):
        for row in read_rows(folder / METRICS):
            if row.split == "train" and row.name in TOLD:
                fits.setdefault(row.site, {})[row.name] = row.value
    secret = _read(folder / LAUNCH).get("separate")  # not in one process with all of its sites
    number = len(learning_sites(sites, run))  # not known of a model of a comparison
    found = central_statement(run, number, secret_noise=secret) if number else {}
    return {**statement(run, fits), **found}


def _total(site: str, run: str) -> dict[str, Any]:
    """Return the sums of a site's record, where it is on this machine, whole and of this run."""
    try:
        spent = Budget(site).spent()
    except FedscanError:
        return {}
    if run not in {one.run for one in spent}:  # of another site of that name
        return {}
    sums = {key: math.fsum(getattr(one, key) for one in spent) for key in ("epsilon", "delta")}
    return {**sums, "runs": len(spent)}


def _update_norm(folder: Path) -> float:
    """Return to which length the gates of a run's sites shorten updates, as far as it is known.

    It is where `fedscan federate` was given the policy of all sites; 0: nothing is known.
    """
    launch = _read(folder / LAUNCH)
    if not (launch.get("separate") is True and launch.get("policy")):
        return 0.0
    try:
        return read_policies(Path(str(launch["policy"])))[1].max_update_norm
    except (FedscanError, OSError):  # it is no longer there
        return 0.0


def _protected(
    config: Mapping[str, Any],
    given: Sequence[Mapping[str, Any]],
    sites: Mapping[str, Any],
    norm: float,
) -> Iterator[str]:
    """Yield what bounds what the run tells."""
    yield from (protection(one) for one in given if one.get("secret_noise"))
    if config.get("privacy.secure-sums"):
        yield "Secure sums: the server has seen the sum of the sites' updates, and no single one"
    least = {
        name: mapping(one).get("min_participants")
        for name, one in sites.items()
        if is_number(mapping(one).get("min_participants"))
    }
    if strict := {name: number for name, number in least.items() if number > 1}:
        number = min(strict.values())
        yield (
            f"Minimum counts: no metric over fewer than {number:g} people left "
            f"{', '.join(sorted(strict))}"
        )
    if norm:
        yield f"The gates have shortened updates to {norm:g} (max-update-norm)"


def _not_protected(
    config: Mapping[str, Any], given: Sequence[Mapping[str, Any]], norm: float
) -> Iterator[str]:
    """Yield what does not."""
    if not given:
        yield NO_PRIVACY
    yield from weaknesses(given)
    if not config.get("privacy.secure-sums"):
        yield "No secure sums: the server has seen every site's update in every round"
    if not norm:
        yield (
            "Whole updates: a site's gate shortens them where its policy sets max-update-norm, "
            "which is not known here"
        )
    yield "Metrics on validation and test people have no noise"


def _attacks(folder: Path, summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Results on the model of this folder, also of folders that lie inside or beside it."""
    found = [summary.get(ATTACKS) or []]
    paths = sorted({*folder.glob(BESIDE), *folder.parent.glob(BESIDE)})
    if paths and (own := _weights_hash(folder)):
        about = [one for path in paths if (one := _read(path)).get("weights") == own]
        found = [*(one.get(ATTACKS) or [] for one in about), *found]
    return merged(*found)


def _weights_hash(folder: Path) -> str:
    from simulations.trained import weights_hash

    try:
        return weights_hash(folder)
    except (FedscanError, OSError, KeyError):
        return ""
