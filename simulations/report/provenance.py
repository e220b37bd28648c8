"""Where a result comes from: configuration, versions, machine, scans, as the manifest says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from common.run_folder import LAUNCH
from simulations.report import tables
from simulations.report.blocks import Block, Section
from simulations.report.tables import duration
from simulations.report.words import is_number, listed, mapping

OF_A_CELL = (
    "run.output-dir",
    "run.seed",
    "strategy.name",
)  # or of the machine: in a comparison left out


def simulated(folder: Path, config: Mapping[str, Any]) -> bool | None:
    """Tell whether a run's people and devices are simulated; None where that is not known.

    Without a cohort a simulation is of phantoms. A federation of hospitals names none either, as
    each hospital knows its own folder: its run has no file that says how it was launched.
    """
    return config.get("data.cohort-dir") == "" if (folder / LAUNCH).is_file() else None


def section(
    manifest: Mapping[str, Any],
    sites: Mapping[str, Any],
    poor: str,
    title: str,
    *,
    left_out: tuple[str, ...] = OF_A_CELL,
) -> Section:
    """Return the section; ``title`` is that of the table of the sites' scans, if there are any."""
    config = mapping(manifest.get("config"))
    columns = [
        ("Run configuration", list(_config(config, left_out))),
        ("What ran", list(_ran(manifest))),
    ]
    if differing := list(_differing(manifest)):
        columns.append(("Where trainings differ from it", differing))
    blocks: list[Block] = [("columns", columns)]
    if counts := tables.sites_table(sites, poor, title):
        blocks.append(("table", counts))
    return Section("provenance", "Provenance", "Configuration and provenance", blocks)


def _config(config: Mapping[str, Any], left_out: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if key in left_out:
            continue
        if key == "data.cohort-dir":
            value = PurePath(str(value)).name or "none: phantoms"
        yield key, _told(value) or "–"


def _differing(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Values of the compared variants, of what went before and of what came after."""
    begun = mapping(manifest.get("plan")).get("pretrained") or []
    for name, values in mapping(manifest.get("differing")).items():
        told = [f"{key} = {_told(value) or 'none'}" for key, value in mapping(values).items()]
        told += ["features of the pretraining"] * (name in begun)
        yield name, ", ".join(told) or "nothing"


def _told(value: object) -> str:
    """Return a value; of a path its end, as the whole would tell of the machine and its user."""
    if isinstance(value, bool):
        return str(value).lower()  # as a configuration file has it
    return PurePath(str(value)).name if str(value).startswith("/") else str(value)


def _ran(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    machine = mapping(manifest.get("machine"))
    if manifest.get("description"):
        yield "question", str(manifest["description"])
    for key in ("arms", "strategies", "repetitions"):
        if "run_id" not in manifest:
            yield key, listed(manifest.get(key))
    if manifest.get("repeated"):
        yield "what varies between repetitions", str(manifest["repeated"])
    if "run_id" in manifest:
        yield "run", str(manifest["run_id"])
    else:
        yield "started", str(manifest.get("started", "–"))
        took = manifest.get("seconds")
        yield "time of all trainings", duration(took) if is_number(took) else "–"
    for key, value in machine.items():
        yield key.replace("_", " "), listed(value) if isinstance(value, list) else str(value)
    yield "source hash", str(manifest.get("source_hash", "–"))
    for name, version in mapping(manifest.get("versions")).items():
        yield str(name), str(version)
