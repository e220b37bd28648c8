"""What a GAN's training is to be: resolved from a request, or from one that it goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.run_config import default_extractor
from common.errors import ConfigError, FileError
from common.reading import read_json, require_plain_tree
from common.run_folder import MANIFEST
from common.studies.sections import SITE
from common.studies.study import read_study
from simulations import folders
from simulations.gan.private import Private
from simulations.gan.sites import choose_sites

if TYPE_CHECKING:
    from common.training.gan_config import GanConfig

DEFAULT_PRESET, DEFAULT_STUDY = "tiny-32", "brain-sex"
FREE = ("kimg", "log-every", "snapshot-every")  # may change on --resume: no weight depends on them
KEPT = {  # of a manifest, what a training goes on with
    **dict.fromkeys(("study", "preset", "cohort", "data", "source_hash"), str),
    **dict.fromkeys(("config", "sites"), dict),
}
MACHINE = ("threads", "device")  # may change too: they decide the last bits of the weights


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Parameters
    ----------
    out : Path
    study : str or None
        As a run config has it; None for `DEFAULT_STUDY`, or, on ``resume``, that of the beginning.
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
        Name or file of the network whose features the summary's distances are between; ``auto``:
        the default one for the study's images.
    epsilon, delta : float
        Of the people trained on; 0: no differential privacy, or, on ``resume``, as at the
        beginning.
    """

    out: Path
    study: str | None = None
    cohort: Path | None = None
    sites: tuple[str, ...] = ()
    preset: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    resume: bool = False
    extractor: str = "auto"
    epsilon: float = 0.0
    delta: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A training, resolved: what ``manifest.json`` says of it."""

    study: str
    extractor: str
    config: GanConfig
    preset: str
    cohort: Path | None
    sites: tuple[str, ...]
    before: Mapping[str, Any] | None  # the manifest of a training that goes on
    private: Private | None = None


def resolve(request: Request) -> Plan:
    """Resolve a request, with the manifest of what it goes on with; nothing is written.

    Raises
    ------
    ConfigError, DataContractError
        For a folder that holds other files or links, a training that was not asked to be resumed,
        or one that was begun otherwise; for a setting, preset, cohort or site that cannot be.
    """
    from common.training.gan_presets import preset
    from common.training.gan_private import CHANGES, require_covered

    if not request.resume:
        require_empty(request.out)
        name = request.preset or DEFAULT_PRESET
        study = request.study or DEFAULT_STUDY
        private = _private(study, request.epsilon, request.delta)
        usual = CHANGES if private else {}
        config = _for_study(preset(name), study, {**usual, **request.changes})
        if private:
            require_covered(config)
        sites = tuple(choose_sites(study, request.cohort, request.sites))
        judge = _extractor(request, study)
        return Plan(study, judge, config, name, request.cohort, sites, None, private)
    before = _read_manifest(request.out)
    require_plain_tree(request.out)
    study = before["study"]
    if request.study not in (None, study):
        raise _other(request.out, "study", read_study(study).name)
    began = type(preset(before["preset"])).from_mapping(before["config"])
    if request.preset not in (None, before["preset"]):
        raise _other(request.out, "preset", before["preset"])
    config = began.with_changes(request.changes)
    was, now = began.to_mapping(), config.to_mapping()
    promised = before.get("privacy", {})
    private = _private(study, promised.get("epsilon", 0.0), promised.get("delta", 0.0))
    for key in ("epsilon", "delta"):
        if getattr(request, key) not in (0.0, promised.get(key, 0.0)):
            raise _other(request.out, key, promised.get(key, 0.0))
    free = FREE[1:] if private else FREE  # the noise is for so many steps
    if changed := [key for key in was if was[key] != now[key] and key not in free + MACHINE]:
        raise _other(request.out, changed[0], was[changed[0]])
    sites = tuple(before["sites"])
    if request.sites and tuple(sorted(set(request.sites))) != sites:
        raise _other(request.out, "choice of sites", "+".join(sites))
    cohort = request.cohort or (Path(before["cohort"]) if before["cohort"] else None)
    choose_sites(study, cohort, sites)
    judge = _extractor(request, study)
    return Plan(study, judge, config, before["preset"], cohort, sites, before, private)


def _private(study: str, epsilon: float, delta: float) -> Private | None:
    if delta and not epsilon:
        raise ConfigError("--delta has no effect without --epsilon: leave it out")
    return Private(epsilon, delta, study) if epsilon else None


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


def _extractor(request: Request, study: str) -> str:
    auto = request.extractor == "auto"
    return default_extractor(read_study(study)) if auto else request.extractor


def _for_study(base: GanConfig, study: str, changes: Mapping[str, Any]) -> GanConfig:
    """Fit a preset to a study, change it, and refuse networks for other images than the study's.

    A preset's labels are kept where the study has all of them; else its conditions take their
    place, but for the site, which says nothing where there is one.
    """
    from common.training.gan_presets import for_study

    asked = read_study(study)
    known, channels = asked.generator.conditions, asked.images.channels
    labels = base.label_kinds
    if not set(labels) <= set(known):
        labels = [kind for kind in known if kind != SITE]
    config = for_study(base, asked, {"label-kinds": ",".join(labels) or "none", **changes})
    if not set(config.label_kinds) <= set(known):
        raise ConfigError(
            f"label-kinds = {','.join(config.label_kinds)}: accepted is none, or some of "
            f"{', '.join(known)}"
        )
    if config.channels != channels:
        raise ConfigError(
            f"channels = {config.channels}, but the images of study '{asked.name}' have "
            f"{channels}: leave it out"
        )
    return config


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_json(folder / MANIFEST)
        whole = all(isinstance(manifest.get(key), kind) for key, kind in KEPT.items())
        if whole and isinstance(manifest.get("privacy", {}), dict):
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
