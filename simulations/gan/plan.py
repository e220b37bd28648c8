"""What a GAN's training is to be: resolved from a request, or from one that it goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, FileError
from common.reading import read_json, require_plain_tree
from common.run_folder import MANIFEST
from simulations import folders
from simulations.gan.sites import STUDY, choose_sites

if TYPE_CHECKING:
    from common.training.gan_config import GanConfig

DEFAULT_PRESET = "tiny-32"
FREE = ("kimg", "log-every", "snapshot-every")  # may change on --resume: no weight depends on them
KEPT = {  # of a manifest, what a training goes on with
    **dict.fromkeys(("preset", "cohort", "data", "source_hash"), str),
    **dict.fromkeys(("config", "sites"), dict),
}
MACHINE = ("threads", "device")  # may change too: they decide the last bits of the weights


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    out : Path
    cohort : Path or None
        None for phantom hospitals, or, on ``resume``, for the cohort of the beginning.
    sites : tuple of str
        Pooled; none: all of the cohort.
    preset : str or None
    changes : mapping
        Overrides of the preset, by kebab-case key.
    minutes : float or None
        Stop training after this time, counted anew each time that it is started.
    resume : bool
    extractor : str
        Name or file of the network whose features the summary's distances are between.
    """

    out: Path
    cohort: Path | None = None
    sites: tuple[str, ...] = ()
    preset: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    resume: bool = False
    extractor: str = "fedscan-brain"


@dataclass(frozen=True)
class Plan:
    """A training, resolved: what ``manifest.json`` says of it."""

    config: GanConfig
    preset: str
    cohort: Path | None
    sites: tuple[str, ...]
    before: Mapping[str, Any] | None  # the manifest of a training that goes on


def resolve(request: Request) -> Plan:
    """Resolve a request, with the manifest of what it goes on with; nothing is written.

    Raises
    ------
    ConfigError, DataContractError
        For a folder that holds other files or links, a training that was not asked to be resumed,
        or one that was begun otherwise; for a setting, preset, cohort or site that cannot be.
    """
    from common.training.gan_presets import preset

    if not request.resume:
        require_empty(request.out)
        name = request.preset or DEFAULT_PRESET
        config = preset(name).with_changes(request.changes)
        _require_slices(config)
        sites = choose_sites(request.cohort, request.sites)
        return Plan(config, name, request.cohort, tuple(sites), None)
    before = _read_manifest(request.out)
    require_plain_tree(request.out)
    began = type(preset(before["preset"])).from_mapping(before["config"])
    if request.preset not in (None, before["preset"]):
        raise _other(request.out, "preset", before["preset"])
    config = began.with_changes(request.changes)
    was, now = began.to_mapping(), config.to_mapping()
    if changed := [key for key in was if was[key] != now[key] and key not in FREE + MACHINE]:
        raise _other(request.out, changed[0], was[changed[0]])
    sites = tuple(before["sites"])
    if request.sites and tuple(sorted(set(request.sites))) != sites:
        raise _other(request.out, "choice of sites", "+".join(sites))
    cohort = request.cohort or (Path(before["cohort"]) if before["cohort"] else None)
    choose_sites(cohort, sites)
    return Plan(config, before["preset"], cohort, sites, before)


def require_empty(folder: Path) -> None:
    """Refuse a folder in which anything would be overwritten.

    Raises
    ------
    ConfigError
    """
    if (folder / MANIFEST).exists():
        raise ConfigError(
            f"{folder} holds a training. Continue it with --resume, or give another --out",
            public="--out holds a training. Continue it with --resume, or give another --out",
        )
    folders.require_empty(folder)


def _require_slices(config: GanConfig) -> None:
    """Refuse networks for other pictures than slices, before a phantom or a cube is made."""
    from common.imaging.slices import RESOLUTIONS
    from common.studies.study import load_study

    known = load_study(STUDY).generator.conditions
    if not set(config.label_kinds) <= set(known):
        raise ConfigError(
            f"label-kinds = {','.join(config.label_kinds)}: accepted is none, or some of "
            f"{', '.join(known)}"
        )
    if config.channels != 1:
        raise ConfigError(
            f"channels = {config.channels}, but slices of scans have 1: add --set channels=1"
        )
    if config.resolution not in RESOLUTIONS:
        raise ConfigError(
            f"resolution = {config.resolution}: accepted for slices of scans is one of "
            f"{', '.join(map(str, RESOLUTIONS))}"
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_json(folder / MANIFEST)
        if all(isinstance(manifest.get(key), kind) for key, kind in KEPT.items()):
            return manifest
        why = "lacks an entry that a manifest has"
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} holds no training: leave --resume out to begin one",
            public="--out holds no training: leave --resume out to begin one",
        ) from None
    except FileError as error:
        why = error.problem
    raise ConfigError(
        f"{folder / MANIFEST} is not of a training of fedscan train-gan: it {why}. Restore it, or "
        "begin anew with another --out",
        public=f"{MANIFEST} in --out is not of a training of fedscan train-gan",
    )


def _other(folder: Path, what: str, was: object) -> ConfigError:
    remedy = "Resume it as it was begun, or give another --out"
    return ConfigError(
        f"{folder} holds a training with another {what} ({was}). {remedy}",
        public=f"--out holds a training with another {what}. {remedy}",
    )
