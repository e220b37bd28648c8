"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from common.config.renamed import OF_COMPARISONS
from common.errors import ConfigError
from common.paths import expanded


class Format(StrEnum):
    """How results are printed."""

    text = "text"
    json = "json"


class Device(StrEnum):
    """Where networks compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def finite(value: float | None) -> float | None:
    """Refuse NaN, which passes every range since each comparison with it is false, and infinity.

    Raises
    ------
    typer.BadParameter
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not accepted: give a finite number")
    return value


FormatOption = Annotated[Format, typer.Option("--format", help="json: for machines, on stdout.")]
StudyOption = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="NAME|FILE.toml",
        help="What is asked of which images: one of `fedscan studies`, or your own file; "
        "brain-sex by default.",
    ),
]
CohortOption = Annotated[
    Path | None,
    typer.Option(help="Folder with one folder a hospital. Without it: simulated hospitals."),
]
MovedCohortOption = Annotated[
    Path | None,
    typer.Option(
        "--cohort", help="Folder above the sites' data, if they are no longer where they were."
    ),
]
SitesOption = Annotated[
    int | None, typer.Option(min=2, help="Phantom hospitals to simulate; 3 by default.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override the run config; repeatable."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.toml",
        help="Run config, study and cohort from a file; other options win over it. `fedscan config "
        "--out FILE.toml` writes one.",
    ),
]
RayAddressOption = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        help="Ray cluster to use, this machine among its nodes; all share one file system.",
    ),
]
# Of commands that run many trainings.
GpusPerCellOption = Annotated[
    float,
    typer.Option(
        min=0.0, callback=finite, help="Share of a GPU for each training, for example 0.5."
    ),
]
CellTimeoutOption = Annotated[
    float,
    typer.Option(min=1.0, callback=finite, help="Seconds after which one training is ended."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Run only what is missing.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan and an estimate of the time.")
]
TestScansOption = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Of each simulated hospital; of brains 60 by default, of skin lesions, where they are "
        "patients, a fifth and so many more that 20 have each diagnosis.",
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="auto: a GPU if there is one.")]


def renamed_option(name: str) -> Any:
    """Return a hidden option that refuses its value and tells the name it has now."""

    def refuse(value: int | None) -> None:
        if value is not None:
            now = OF_COMPARISONS[name.removeprefix("--")]
            raise ConfigError(f"{name} {value}: it is --{now} now")

    return typer.Option(name, hidden=True, callback=refuse)


def parse_set(assignments: list[str]) -> dict[str, bool | int | float | str]:
    """Read ``key=value`` as TOML would; what is no TOML value is a text.

    Raises
    ------
    ConfigError
        For a text without a key or an equals sign.
    """
    import tomllib

    values = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {assignment}: accepted is key=value, as in --set run.seed=1")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    return values


def study_override(study: str | None) -> dict[str, str]:
    """Return the run config's key of a study, where one is named; a file's text, not its path.

    Raises
    ------
    ConfigError
        The study cannot be used, also for want of a reader of its storage.
    """
    from common.data.site_data import reader_of
    from common.studies.study import read_study

    found = _study_text(study)
    allow_named(found)
    for text in found.values():
        reader_of(read_study(text))
    return found


def _study_text(study: str | None) -> dict[str, str]:
    from common.studies.run_text import run_config_study

    return {"study": run_config_study(study)} if study else {}


def run_overrides(
    assignments: list[str] | None, study: str | None, *, allowing: bool = True
) -> dict[str, bool | int | float | str]:
    """Return what ``--set`` and ``--study`` change of a run config.

    Parameters
    ----------
    assignments : list of str, optional
    study : str, optional
    allowing : bool
        Whether the extensions that they name may be loaded; not if they are somebody else's words.

    Raises
    ------
    ConfigError
        One of them cannot be used, or both name a study.
    """
    given = parse_set(assignments or [])
    chosen = study_override(study) if allowing else _study_text(study)
    if chosen.keys() & given.keys():
        raise ConfigError("--study and --set study: give one of them")
    if allowing:
        allow_named(given)
    return given | chosen


def allow_named(values: Mapping[str, Any]) -> None:
    """Let the extensions be loaded that a user has named, by key of the run config or in a study.

    Whoever types a name means it; that of a folder of results may be anybody's.
    """
    from common.extensions import allow
    from common.studies.study import read_study

    allow(str(values[key]) for key in ("strategy.name", "model.classifier") if key in values)
    if "study" in values:
        allow([read_study(str(values["study"])).images.storage])


@contextlib.contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Let PyTorch compute with so many CPU threads while the block runs, and keep its memory."""
    import torch

    from common.training.allocator import keep_freed_memory

    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def absolute(path: Path) -> Path:
    """Return a path that a user gave, as it is from any folder."""
    return expanded(path).absolute()


def tell(
    found: dict[str, Any],
    folder: Path,
    output_format: Format,
    show: Callable[[dict[str, Any]], None],
) -> None:
    """Print what a command has found as JSON, or show it and name the folder that holds it."""
    if output_format is Format.json:
        typer.echo(json.dumps(found))
        return
    show(found)
    typer.echo(str(folder))
