"""A run's configuration from a file: ``fedscan run --config FILE.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.run_config import RunConfig, flatten
from common.errors import ConfigError
from common.paths import expanded
from common.reading import parse_toml, read_bytes
from simulations.options import allow_named

LARGEST = 2**20  # bytes
WANTED = "Accepted is a TOML file; `fedscan config --out FILE.toml` writes one with all keys"


@dataclass(frozen=True)
class ConfigFile:
    """What a file says of a run.

    Parameters
    ----------
    values : dict
        Run config, as Flower has it, also of the study.
    cohort, out : Path, optional
    """

    values: dict[str, Any]
    cohort: Path | None = None
    out: Path | None = None


def read_config_file(path: Path | None) -> ConfigFile:
    """Read a file of run-config tables, with ``study``, ``cohort`` and ``out`` above them.

    Paths of the three may be relative to the file's folder. A file for ``flwr run --run-config`` is
    one as well: the study's text, ``data.cohort-dir`` and ``run.output-dir`` are understood. Keys
    are judged later, by :meth:`common.config.run_config.RunConfig.from_flower`.

    Raises
    ------
    ConfigError
        There is no such file, it is no TOML, or its study cannot be used.
    """
    if path is None:
        return ConfigFile({})
    values = flatten(read_toml(path, WANTED))
    here = path.parent
    cohort = _path(values, here, "cohort", "data.cohort-dir")
    out = _path(values, here, "out", "run.output-dir")
    if isinstance(study := values.get("study"), str) and "\n" not in study:
        values["study"] = _study(study, here)
    allow_named(values)
    return ConfigFile(values, cohort, out)


def asked_run(
    file: Path | None,
    overrides: Mapping[str, Any],
    *,
    cohort: Path | None,
    sites: int | None,
    out: Path | None,
    test_scans: int | None,
) -> tuple[RunConfig, int]:
    """Put together what a run is asked for; return the number of its sites, too.

    Parameters
    ----------
    file : Path, optional
        As of :func:`read_config_file`, absolute.
    overrides : mapping
        Keys of the run config, which win over the file's.
    cohort, out : Path, optional
        Absolute; of the file by default, else simulated hospitals and ``runs``.
    sites : int, optional
        Simulated hospitals.
    test_scans : int, optional
        Of each.

    Raises
    ------
    ConfigError, DataContractError
        As of :func:`read_config_file`, :func:`simulations.hospitals.count_sites` and
        :func:`common.tasks.task.read_run_config`.
    """
    from common.tasks.task import read_run_config
    from simulations.hospitals import count_sites

    for key, path in {"data.cohort-dir": "cohort", "run.output-dir": "out"}.items():
        if key in overrides:
            raise ConfigError(f"{key}: give {path} instead (--{path}), which takes any path")
    told = read_config_file(file)
    cohort = cohort or told.cohort
    number = count_sites(cohort, sites, test_scans)
    config = read_run_config(
        {
            "run.min-sites": number,
            **told.values,
            **overrides,
            "data.cohort-dir": str(cohort or ""),
            "run.output-dir": str(out or told.out or Path("runs").absolute()),
        }
    )
    if config.run.min_sites > number:
        raise ConfigError(
            f"--set run.min-sites={config.run.min_sites}, but {number} sites are simulated"
        )
    return config, number


def read_toml(path: Path, wanted: str) -> dict[str, Any]:
    """Read a TOML file of a user's.

    Raises
    ------
    ConfigError
        Saying what is ``wanted``.
    """
    try:
        return parse_toml(read_bytes(path, limit=LARGEST, remedy=wanted).decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file. {wanted}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: it is no TOML ({error}). {wanted}") from None


def _path(values: dict[str, Any], here: Path, *keys: str) -> Path | None:
    """Take a path out of the values; it may stand under one of two keys."""
    given = {key: values.pop(key) for key in keys if key in values}
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} mean the same: give one of them")
    for key, value in given.items():
        if not isinstance(value, str):
            raise ConfigError(f"{key} = {value!r}: accepted is a path")
        return (here / expanded(Path(value))).absolute() if value else None
    return None


def _study(study: str, here: Path) -> str:
    """Return a study's text, by its name or its file."""
    from common.studies.study import built_in_studies
    from simulations.options import study_override

    known = study in built_in_studies()
    return study_override(study if known else str(here / expanded(Path(study)))).get("study", "")
