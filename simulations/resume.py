"""Going on with a run that was interrupted, as it was begun."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.config.run_config import OF_CIRCUMSTANCES, RunConfig, Value
from common.errors import ConfigError
from common.files import write_json
from common.reading import read_json
from common.run_folder import CHECKPOINT, GATES, LAUNCH, MANIFEST, SUMMARY
from common.tasks.task import read_run_config
from simulations.launch import Resources

SHOWN = 80  # characters of a value that differs


@dataclass(frozen=True)
class Launch:
    """How a run was started.

    Parameters
    ----------
    config : RunConfig
    resources : Resources
    folders : mapping of str to Path
        Each site's data.
    separate : bool
        Whether sites are separate processes.
    policy : Path, optional
        Of all sites; without it the open one.
    """

    config: RunConfig
    resources: Resources
    folders: Mapping[str, Path]
    separate: bool = False
    policy: Path | None = None

    def write(self, folder: Path) -> None:
        """Write it into the run's folder."""
        values = {
            "config": self.config.to_flower(),
            "resources": asdict(self.resources),
            "folders": {name: str(path) for name, path in self.folders.items()},
            "separate": self.separate,
            "policy": str(self.policy or ""),
        }
        write_json(folder / LAUNCH, values)

    @classmethod
    def read(cls, folder: Path) -> Launch:
        """Read it from a run's folder.

        Raises
        ------
        ConfigError
            None was started there by ``fedscan run`` or ``federate``, or it is damaged.
        """
        wanted = "Name the folder of a run by fedscan run or federate"
        try:
            values = read_json(folder / LAUNCH, remedy=wanted)
        except FileNotFoundError:
            raise ConfigError(f"{folder}: no run was started there. {wanted}") from None
        try:
            return cls(
                RunConfig.from_flower(values["config"]),
                Resources(**values["resources"]),
                {name: Path(path) for name, path in values["folders"].items()},
                bool(values["separate"]),
                Path(values["policy"]) if values["policy"] else None,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{folder / LAUNCH}: damaged ({error}). {wanted}") from None


def resumed(
    folder: Path, overrides: Mapping[str, Value], accepted: Collection[str], *, separate: bool
) -> Launch:
    """Return how an interrupted run is started again.

    Parameters
    ----------
    folder : Path
        The run's.
    overrides : mapping of str to value
        Keys of the run config that are to be others than at the beginning.
    accepted : collection of str
        Those of them that may change.
    separate : bool
        Whether ``fedscan federate`` asks.

    Raises
    ------
    ConfigError
        It is whole, was not begun, would go on otherwise than it began, or needs an extension that
        is not allowed.
    """
    launch = Launch.read(folder)
    if (folder / SUMMARY).is_file():
        raise ConfigError(f"{folder}: this run is whole, there is nothing to resume")
    if separate != launch.separate:
        command = "federate" if launch.separate else "run"
        raise ConfigError(f"{folder}: this run goes on with `fedscan {command} --resume`")
    before = launch.config.to_flower()
    wanted = RunConfig.from_flower({**before, **overrides}).to_flower()
    changed = {key: (before[key], v) for key, v in wanted.items() if before[key] != v}
    if refused := sorted(changed.keys() - set(accepted)):
        pairs = {key: tuple(repr(value)[:SHOWN] for value in changed[key]) for key in refused}
        told = "; ".join(f"{key} was {old}, now {new}" for key, (old, new) in pairs.items())
        harmless = [key for key in refused if key in OF_CIRCUMSTANCES]
        way_out = (
            f". --accept-change {harmless[0]} accepts it"
            if harmless
            else f". Leave {refused[0]} out to go on as it was begun, or --resume to begin another "
            "run"
        )
        raise ConfigError(f"{folder}: the run was begun otherwise: {told}{way_out}")
    if costly := sorted(key for key in changed if key not in OF_CIRCUMSTANCES):
        raise ConfigError(
            f"--accept-change {costly[0]}: the result depends on it. Accepted is one of "
            f"{', '.join(sorted(OF_CIRCUMSTANCES))}"
        )
    gone = [path for path in launch.folders.values() if not path.is_dir()]
    if gone and not wanted["data.cohort-dir"]:
        raise ConfigError(f"{gone[0]}: this folder of a site's data is gone: start the run anew")
    place: dict[str, Any] = {"run.output-dir": str(folder.parent), "run.id": folder.name}
    place["run.resume"] = (folder / MANIFEST).is_file()
    config = read_run_config({**wanted, **place})  # an extension only if the user has allowed it
    return Launch(config, launch.resources, launch.folders, separate, launch.policy)


def way_on(folder: Path) -> str:
    """Say how to go on with a run; empty where no round of it is whole."""
    if not (folder / CHECKPOINT).is_dir():
        return ""
    command = "federate" if (folder / GATES).is_dir() else "run"
    return f"What is done is kept. Go on with: fedscan {command} --resume {folder}"
