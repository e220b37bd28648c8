"""One generator's training in one folder: begin, go on, stop at any time without losing it.

The folder holds the checkpoint (networks, optimizers, p: all that is needed to go on bit for bit),
``manifest.json`` (what was asked for), ``metrics.jsonl``, grids of pictures of the same latents
from snapshot to snapshot, ``real.png`` and, at the end, ``summary.json``.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import ConfigError, DivergedError, FedscanError
from common.files import write_atomically, write_json
from common.machine import is_out_of_memory
from common.metrics_log import MetricsLog, Row, read_rows
from common.provenance import PACKAGES, source_hash, versions
from common.reading import LARGEST_TABLE, read_bytes
from common.run_folder import MANIFEST, METRICS, SUMMARY
from simulations import console
from simulations.folders import locked, require_writable
from simulations.gan.generate import label_name, open_extractor
from simulations.gan.plan import FREE, MACHINE, Plan, Request, require_empty, resolve
from simulations.gan.private import begin, forget
from simulations.gan.sites import digest, open_sites, require_test_images, site_folders
from simulations.gan.tables import note
from simulations.options import computing_with
from simulations.stopping import signals_noted

if TYPE_CHECKING:
    from common.data.dataset import Dataset
    from common.training.gan_state import GanTraining

REAL, NEWEST = "real.png", "grid.png"
GRID_ROWS, GRID_COLUMNS = 4, 8


def train(request: Request) -> dict[str, Any]:
    """Train, or go on training, until the configured number of images or the time is reached.

    Returns
    -------
    dict
        The summary: see :func:`simulations.gan.summary.summarize`.

    Raises
    ------
    ConfigError
        For a request that cannot be met, before anything is written: a folder that holds other
        files, a training that was not asked to be resumed, or one that was begun otherwise.
    FedscanError
        If the summary would not say which network judged.
    DivergedError
        If the losses leave the finite numbers; the last checkpoint stays.
    SystemExit
        With 128 and the signal's number, after saving, when interrupted.
    """
    from common.evaluation.extractor import DEFAULTS
    from common.training.gan_state import resolve_device

    plan = resolve(request)
    resolve_device(plan.config.device)
    if plan.extractor not in DEFAULTS:
        open_extractor(plan.extractor).require_features()  # refused before the training
    require_writable(request.out, "--out")
    with locked(request.out), computing_with(plan.config.threads):
        if not request.resume:
            require_empty(request.out)  # again: another may have begun in the meantime
        run = _Run(plan, request)
        try:
            return run.run()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise FedscanError(run.too_large()) from None


class _Enough(Exception):
    """The training is to stop here, between two iterations."""


class _Run:
    """The training of a plan in a folder that nobody else works on."""

    def __init__(self, plan: Plan, request: Request) -> None:
        self.folder, self.minutes = request.out, request.minutes
        self.plan = plan
        self.config = plan.config
        self.site = "+".join(plan.sites)
        self.saved: int | None = None  # iterations in the checkpoint on disk
        self.earlier = 0.0  # seconds of training before this process
        self.clock = time.perf_counter()

    def run(self) -> dict[str, Any]:
        from common.data.dataset import pool
        from common.evaluation.generation import require_extractor
        from simulations.gan.summary import read_current, summarize

        study = self.plan.study
        folders = site_folders(study, self.plan.cohort, self.plan.sites)
        require_test_images(study, folders)
        own = open_sites(study, folders, "train", self.config.resolution)
        data = pool(list(own.values()))
        if private := self.plan.private:
            private.require(self.config, data.people)
        with self._disk():
            training = self._begin(data, {site: len(images) for site, images in own.items()})
        seconds = self.earlier
        finished, noted = training.steps >= self.config.total_steps, []
        if not finished:
            (self.folder / SUMMARY).unlink(missing_ok=True)  # of fewer iterations
            noted = self._train(training, data)
            seconds = self._seconds()
        if training.steps >= self.config.total_steps:
            with self._disk():
                forget(self.folder)  # of a training without differential privacy there is none
        if noted:
            self._tell_saved(training)
            raise SystemExit(128 + noted[0])
        extractor = open_extractor(self.plan.extractor)
        if finished:
            before = read_current(self.folder / SUMMARY, extractor, steps=training.steps)
            left = "do" if before else f"train; judging by {extractor.name}"
            console.err.print(
                f"Nothing is left to {left}: {training.images_seen} images were asked for and "
                "seen. Raise --set kimg to train on",
                markup=False,
            )
            if before:
                return before
        try:
            test = open_sites(study, folders, "test", self.config.resolution)
            summary = summarize(
                training, data, pool(list(test.values())), extractor, seconds=seconds
            )
            summary["sites"] = list(self.plan.sites)
            if private:
                summary |= private.told(self.config, data.people, self.plan.sites)
        except (KeyboardInterrupt, SystemExit):
            self._tell_saved(training)
            raise
        require_extractor(summary)
        with self._disk():
            write_json(self.folder / SUMMARY, summary)
        return summary

    def too_large(self) -> str:
        """Say what of this training takes the memory that was not to be had, and what is kept."""
        config, preset = self.config, self.plan.preset
        kept = (
            "No checkpoint was written yet; begin anew in another --out"
            if self.saved is None
            else f"The checkpoint of iteration {self.saved} is kept"
        )
        return (
            f"out of memory: batch-size {config.batch_size}, resolution {config.resolution} "
            f"(preset {preset}). Lower --set batch-size, or choose a preset of a lower resolution. "
            f"{kept}"
        )

    def _tell_saved(self, training: GanTraining) -> None:
        with contextlib.suppress(OSError):  # nobody may be there to read it
            console.err.print(
                f"Saved after iteration {training.steps} in {self.folder}; go on with --resume",
                markup=False,
                soft_wrap=True,
            )

    def _begin(self, data: Dataset, counts: Mapping[str, int]) -> GanTraining:
        """Start the training, or take it up where its last checkpoint is."""
        from common.training.gan_checkpoint import NAME, load_checkpoint
        from common.training.gan_config import label_values
        from common.training.gan_state import GanTraining

        if self.plan.private:  # which labels there are tells of people
            values = self.plan.private.labels(self.plan.sites)
        else:
            values = label_values(data.conditions, self.config.label_kinds)
        architecture = self.config.architecture(values)
        before = self.plan.before
        if before is None:
            self._write_manifest(data, counts)
        else:
            if before["data"] != digest(data):
                problem = (
                    "the training images are not those that this training began with. Give "
                    "--cohort the same images, or begin anew with another --out"
                )
                raise ConfigError(f"{self.folder}: {problem}", public=problem)
            now = self.config.to_mapping()
            self._note_changes(before, now)
            others = [key for key in MACHINE if before["config"].get(key) != now[key]]
            if before["source_hash"] != _sources():
                others.append("fedscan sources")
            if others:
                console.err.print(
                    f"Note: begun with other {' and '.join(others)}; what follows may differ in "
                    "the last bits"
                )
        if not (self.folder / REAL).is_file():
            self._draw_real(data, architecture)
        if before is not None and (self.folder / f"{NAME}.json").is_file():
            training = load_checkpoint(self.folder, config=self.config)
            self.saved = training.steps
        else:
            training = GanTraining.start(self.config, architecture)
        self._forget_after(training.steps)
        self.metrics = MetricsLog(self.folder / METRICS)
        return training

    def _write_manifest(self, data: Dataset, counts: Mapping[str, int]) -> None:
        if self.plan.private:
            begin(self.folder)
        write_json(
            self.folder / MANIFEST,
            {
                "study": self.plan.study,
                "preset": self.plan.preset,
                "config": self.config.to_mapping(),
                "cohort": str(self.plan.cohort or ""),
                "sites": {site: {"train_images": count} for site, count in counts.items()},
                "data": digest(data),
                "versions": versions(),
                "source_hash": _sources(),
                **({"privacy": self.plan.private.asked} if self.plan.private else {}),
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        )

    def _note_changes(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Keep what was asked for this time, so that the next --resume goes on with it."""
        changed = {key: now[key] for key in FREE if before["config"].get(key) != now[key]}
        if changed:
            config = {**before["config"], **changed}
            write_json(self.folder / MANIFEST, {**before, "config": config})

    def _forget_after(self, steps: int) -> None:
        """Drop metrics and grids of iterations that are not in the checkpoint."""
        path = self.folder / METRICS
        if path.is_file():
            *lines, _ = read_bytes(path, limit=LARGEST_TABLE).split(b"\n")
            rows = list(read_rows(path))
            kept = [line for line, row in zip(lines, rows, strict=True) if row.round <= steps]
            write_atomically(path, b"".join(line + b"\n" for line in kept))
            self.earlier = max((row.seconds for row in rows if row.round <= steps), default=0.0)
        for grid in self.folder.glob("grid-*.png"):
            number = grid.stem.removeprefix("grid-")
            if number.isdecimal() and int(number) > steps:
                grid.unlink()

    def _train(self, training: GanTraining, data: Dataset) -> list[int]:
        """Train to the end, the time or a signal; return the signals."""
        import torch

        from common.training.gan import fit

        more: dict[str, Any] = {}
        if private := self.plan.private:
            mechanism = private.mechanism(self.config, data.people, self.folder)
            more = {"mechanism": mechanism, "drawn": training.steps, "site": self.site}
        limit = None if self.minutes is None else self.minutes * 60
        whole = self.config.total_steps if limit is None else math.ceil(limit)
        title = "Training" if limit is None else "Training, seconds"
        last: Mapping[str, float] = {}
        seen, drawing = training.images_seen, 0.0  # since the last row: images, snapshots' seconds
        self.clock = time.perf_counter()
        with signals_noted() as noted, console.steps(title, whole) as bar:
            if limit is None and training.steps:
                bar.advance(training.steps, "resumed")

            def after(training: GanTraining, metrics: Mapping[str, float]) -> None:
                nonlocal last, seen, drawing
                spent = time.perf_counter() - self.clock
                if metrics:
                    last = metrics = _without(metrics, training.images_seen - seen, drawing)
                    seen, drawing = training.images_seen, 0.0
                    self._log(training, metrics)
                done = 1 if limit is None else min(int(spent), whole) - bar.done
                bar.advance(done, note(training, last))
                if noted or (limit is not None and spent >= limit):
                    raise _Enough
                if training.steps % self.config.snapshot_every == 0:
                    if training.device.type == "cuda":
                        torch.cuda.synchronize(training.device)  # what is queued is training
                    began = time.perf_counter()
                    self._snapshot(training, data)
                    if not metrics:  # after a row, `fit` counts from when we return
                        drawing += time.perf_counter() - began

            left = self.config.total_steps - training.steps
            if left > 0:
                with contextlib.suppress(_Enough):
                    fit(training, data, steps=left, seed=self.config.seed, on_step=after, **more)
            if training.steps != self.saved:
                self._snapshot(training, data)
        return noted

    def _seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.clock

    def _log(self, training: GanTraining, metrics: Mapping[str, float]) -> None:
        """Append a row for each metric: ``round`` is the iteration, ``n`` the images seen."""
        seconds, seen = round(self._seconds(), 3), training.images_seen
        rows = [
            Row(training.steps, self.site, "train", name, value, seen, seconds)
            for name, value in metrics.items()
        ]
        with self._disk():
            self.metrics.append(rows)

    def _snapshot(self, training: GanTraining, data: Dataset) -> None:
        """Write a grid, then the checkpoint: what is in it is then all on disk."""
        from common.training.gan_checkpoint import save_checkpoint

        # Losses are looked at less often; a good checkpoint must not give way to a broken one.
        if not all(parameter.isfinite().all() for parameter in training.ema.parameters()):
            raise DivergedError(
                f"weights are not finite at iteration {training.steps}: the training has diverged. "
                f"The checkpoint of iteration {self.saved or 0} stays; begin anew with lower "
                "learning rates"
            )
        self._log(training, {"checkpoint": float(training.steps)})
        with self._disk():
            self._draw_grid(training)
            # How many people have which label is no part of what differential privacy covers.
            save_checkpoint(self.folder, training, None if self.plan.private else data)
        self.saved = training.steps

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """Say of a full or broken disk what is lost and what is not."""
        try:
            yield
        except OSError as error:
            kept = (
                "No checkpoint was written yet"
                if self.saved is None
                else f"The checkpoint of iteration {self.saved} is whole"
            )
            remedy = f"{kept}: make room, then go on with --resume"
            raise FedscanError(
                f"{self.folder}: {error.strerror or error}. {remedy}",
                public=f"--out cannot be written to. {remedy}",
            ) from error

    def _draw_grid(self, training: GanTraining) -> None:
        """Draw the average generator's pictures of the same latents each time.

        With labels a row is a label and a column a latent.
        """
        from common.imaging.pictures import write_grid
        from common.training.gan_sampling import combinations, sample_rows

        turns = combinations(training.architecture)
        conditional = bool(training.architecture.labels)
        lines = turns if conditional else [{}] * GRID_ROWS
        rows = [row for row in lines for _ in range(GRID_COLUMNS)]
        numbers = [
            column if conditional else line * GRID_COLUMNS + column
            for line in range(len(lines))
            for column in range(GRID_COLUMNS)
        ]
        images = sample_rows(training.ema, rows, numbers, seed=self.config.seed)
        names = [label_name(row) for row in turns] if conditional else []
        path = self.folder / f"grid-{training.steps:06d}.png"
        write_grid(path, np.split(images, len(lines)), names=names)
        write_atomically(self.folder / NEWEST, path.read_bytes())

    def _draw_real(self, data: Dataset, architecture: Any) -> None:
        """Draw training images in rows like the grids', for eyes that may see them."""
        from common.imaging.pictures import write_grid
        from common.training.gan_sampling import combinations

        draws = np.random.default_rng(self.config.seed)
        turns = [row for row in combinations(architecture) if row]
        rows, names = [], []
        for turn in turns or [{}] * GRID_ROWS:
            having = [k for k, row in enumerate(data.conditions) if turn.items() <= row.items()]
            if having:
                count = min(GRID_COLUMNS, len(having))
                rows.append(data.take(draws.choice(having, count, replace=False)) * 2 - 1)
                names.append(label_name(turn))
        write_grid(self.folder / REAL, rows, names=names if turns else [])


def _sources() -> str:
    return source_hash(packages=(*PACKAGES, "simulations"))


def _without(metrics: Mapping[str, float], images: int, seconds: float) -> dict[str, float]:
    """Metrics of a number of images, whose speed is that of training without some seconds."""
    spent = images / metrics["images-per-second"] - seconds
    return {**metrics, "images-per-second": images / max(spent, 1e-9)}
