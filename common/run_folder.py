"""A run's folder: what was asked for, what happened, what came out, and what it goes on from."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import run_checkpoint
from common.checkpoints import read_description
from common.config.run_config import RunConfig
from common.errors import ConfigError, FedscanError
from common.files import make_folder, write_json
from common.metrics_log import LineLog, MetricsLog
from common.provenance import source_hash, versions
from common.reading import read_json
from common.site_names import SITE_NAME

if TYPE_CHECKING:
    from common.participation import Attendance
    from common.run_state import RunState
    from common.tasks.task import Task

MANIFEST, METRICS, SUMMARY, FAILURE = (
    "manifest.json",
    "metrics.jsonl",
    "summary.json",
    "failure.json",
)
LAUNCH = "launch.json"  # how `fedscan run` and `federate` have started it
ATTENDANCE = "attendance.jsonl"
CHECKPOINT = "checkpoint"  # a folder
GATES = "gates"  # a folder: what the gates of separate processes keep
TOGETHER = "together"  # of a summary: what all sites' test images say, where no site's are told
READMITTED = "readmitted"  # a folder: an empty file for each site that is to be asked again


def default_output_dir() -> Path:
    """Folder for run folders when the run config names none."""
    from platformdirs import user_data_path

    return user_data_path("fedscan") / "runs"


class RunFolder:
    """``OUTPUT/<name>/``.

    Parameters
    ----------
    config : RunConfig
        Its ``output_dir`` is OUTPUT.
    run_id : str
        Flower's, the name of a run that has none.

    Raises
    ------
    ConfigError
        If it holds another run, a run that is not to be resumed, or none that can be.
    """

    def __init__(self, config: RunConfig, run_id: str) -> None:
        self.config, self.run_id = config, config.run.id or run_id
        self.path = Path(config.run.output_dir or default_output_dir()) / self.run_id
        begun = (self.path / MANIFEST).is_file()
        if config.run.resume:
            require_resumable(self.path, config)
        elif begun:
            raise ConfigError(
                f"{self.path}: a run of that name was begun there. Resume it (--resume), or give "
                "another run.id"
            )
        make_folder(self.path)
        self.metrics = MetricsLog(self.path / METRICS)
        self.attendance = AttendanceLog(self.path / ATTENDANCE)
        self._held = self.metrics.path.open("ab")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._held.close()
            raise ConfigError(f"{self.path}: another server is at work on this run") from None
        self._readmitted: list[str] = []

    def close(self) -> None:
        """Let another server go on with the run."""
        self._held.close()

    def begun(self) -> dict[str, dict[str, Any]]:
        """Return the sites of a run that goes on, with their counts; empty if none has begun."""
        try:
            return read_json(self.path / MANIFEST)["sites"]
        except FileNotFoundError:
            return {}

    def write_manifest(self, sites: dict[str, dict[str, Any]], first_weights: str) -> None:
        """Write what is known before training: configuration, sites with counts, versions.

        ``first_weights`` is the fingerprint by which sites approve weights that they cannot build.
        """
        write_json(
            self.path / MANIFEST,
            {
                "run_id": self.run_id,
                "config": self.config.to_flower(),
                "sites": sites,
                "first_weights": first_weights,
                "versions": versions(),
                "source_hash": source_hash(),
            },
        )

    def save_checkpoint(self, state: RunState, seconds: float) -> None:
        """Keep what the run goes on from, whole or not at all."""
        logs = {}
        for path in (self.metrics.path, self.attendance.path):
            with path.open("rb") as file:
                os.fsync(file.fileno())
                logs[path.name] = os.fstat(file.fileno()).st_size
        run_checkpoint.save(self.path / CHECKPOINT, state, {"seconds": seconds, "logs": logs})
        for name in self._readmitted:
            (self.path / READMITTED / name).unlink(missing_ok=True)
        self._readmitted = []

    def load_checkpoint(
        self, state: RunState, task: Task, config: RunConfig
    ) -> tuple[RunState, float]:
        """Return the state after the last whole round, and the seconds until then.

        What the logs tell of rounds after it is cut off: these are done again.

        Parameters
        ----------
        state : RunState
            Of the beginning, which is returned where no round is whole.
        task : Task
        config : RunConfig
        """
        (self.path / FAILURE).unlink(missing_ok=True)
        about: dict[str, Any] = {"seconds": 0.0, "logs": {}}
        if (self.path / CHECKPOINT).is_dir():
            state, about = run_checkpoint.load(self.path / CHECKPOINT, state, task, config)
        cut_logs(self.path)
        return state, about["seconds"]

    def readmitted(self) -> list[str]:
        """Return the sites that the researcher has readmitted; forgotten with a checkpoint."""
        folder = self.path / READMITTED
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        new = [one for one in found if SITE_NAME.fullmatch(one) and one not in self._readmitted]
        self._readmitted += new
        return new

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the result; its presence says that the run is whole, and nothing goes on."""
        write_json(self.path / SUMMARY, summary)
        shutil.rmtree(self.path / CHECKPOINT, ignore_errors=True)

    def write_failure(self, failure: dict[str, str]) -> None:
        """Write why the run ended early: site, phase, error, traceback."""
        write_json(self.path / FAILURE, failure)


class AttendanceLog(LineLog):
    """``attendance.jsonl``: what came of each order to each site, one a line."""

    def append(self, one: Attendance) -> None:
        """Write a line."""
        self.write([vars(one)])


def cut_logs(folder: Path) -> None:
    """Cut off what the logs tell of rounds that are done again in a resumed run.

    Raises
    ------
    FedscanError
        A log is shorter than when the checkpoint was written.
    """
    sizes: dict[str, int] = {}
    if (folder / CHECKPOINT).is_dir():
        sizes = read_description(folder / CHECKPOINT, run_checkpoint.NAME)["about"]["logs"]
    for name in (METRICS, ATTENDANCE):
        with contextlib.suppress(FileNotFoundError), (folder / name).open("r+b") as file:
            if os.fstat(file.fileno()).st_size < (size := sizes.get(name, 0)):
                raise FedscanError(
                    f"{folder / name}: a part of it is missing. Copy the whole folder, or start "
                    "the run anew"
                )
            file.truncate(size)


def require_resumable(folder: Path, config: RunConfig) -> None:
    """Refuse to go on with a run that is whole, or was begun otherwise.

    Raises
    ------
    ConfigError
        Naming each key that differs, with both values.
    """
    if (folder / SUMMARY).is_file():
        raise ConfigError(f"{folder}: this run is whole, there is nothing to resume")
    if not (folder / MANIFEST).is_file():
        raise ConfigError(f"{folder}: no run was begun there: leave --resume out")
    manifest = read_json(folder / MANIFEST)
    before, now = RunConfig.from_flower(manifest["config"]).of_result(), config.of_result()
    changed = [
        f"{key} was {before[key]!r}, now {now[key]!r}" for key in now if before[key] != now[key]
    ]
    if manifest["source_hash"] != source_hash():
        was, current = manifest["versions"], versions()
        other = [f"{n} was {was.get(n)}, now {v}" for n, v in current.items() if was.get(n) != v]
        changed.append(f"fedscan's sources have changed ({'; '.join(other) or 'same versions'})")
    if changed:
        raise ConfigError(
            f"{folder}: the run was begun otherwise: {'; '.join(changed)}. Resume it as it was "
            "begun, or start another"
        )


def require_same_sites(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to go on with other sites, or with a site that has other counts of images.

    Raises
    ------
    ConfigError
    """
    strange = [f"site '{name}' was not there" for name in sorted(now.keys() - before.keys())]
    lacking = [f"site '{name}' is missing" for name in sorted(before.keys() - now.keys())]
    other = [
        f"site '{name}' had {key} = {value}, now {now[name].get(key)}"
        for name in sorted(before.keys() & now.keys())
        for key, value in before[name].items()
        if key != "device" and now[name].get(key) != value
    ]
    if found := strange + lacking + other:
        raise ConfigError(f"the run was begun with other data: {'; '.join(found)}")
