"""A round that is interrupted goes on where it was, and ends in the same bits as any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_clients_local import ONE_MESSAGE, ROOT, SITES, TINY, Site, same
from test_task_generation import TINY as TINY_GAN
from test_task_generation import slices
from tiny import dataset
from tiny_gan import start, toy_slices

from clients import local
from clients.state import SiteState
from common.config.run_config import RunConfig
from common.local_round import LocalRound, first_weights, train_one_round
from common.messages import TRAIN
from common.strategies.strategy import load_strategy, strategy_names
from common.tasks.task import SiteContext, load_task, read_run_config
from common.training import gan, progress
from common.training.classifier import train
from common.training.hooks import Hooks
from common.training.progress import Progress

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 3
NORTH = SiteContext("north", SITES, torch.device("cpu"))
OPTIONS = {"apfl": {"strategy.alpha-rate": 0.1}, "fedrep": {"strategy.head-steps": 1}}
VARIANTS = [  # what else may be remembered, drawn or put back
    {"model.trains": "head", "training.augment": "none"},
    {"model.adapt": "statistics", "training.absent-classes": "mask"},
    {"training.balance": "batches"},
    {"privacy.epsilon": 8.0},
]
TWO_PARTS = {"model": {"w": torch.arange(3.0)}, "random": {"": torch.tensor(7)}}


class Interrupted(Exception):
    """The process has ended."""


def end_after_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    offer = Progress.offer

    def interrupted(self: Progress, *arguments, **named) -> None:
        offer(self, *arguments, **named)
        raise Interrupted

    monkeypatch.setattr(progress, "SECONDS", 0)
    monkeypatch.setattr(Progress, "offer", interrupted)


def of_cubes(config: RunConfig):
    """Images of a class 1 and 2, and two without a label where that is of use."""
    unlabelled = load_strategy(config.strategy.name).uses_unlabelled
    labels = [0, 1, 0, 1, 1, 0] + [-1, -1] * unlabelled
    images = np.random.default_rng(0).random((len(labels), 1, 16, 16, 16), np.float32)
    return dataset(images, labels)


def second_round(config: RunConfig, data, folder: Path) -> tuple[LocalRound, int]:
    """Do a site's second round, again whenever it is interrupted; return how often that was."""
    task = load_task(config.task)
    weights = first_weights(task, task.build_model(config, NORTH), config, SITES)
    named = {"place": NORTH, "round_number": 1, "received": weights, "private": {}}
    first = train_one_round(task, task.build_model(config, NORTH), data, config, **named)
    named |= {"round_number": 2, "received": first.sent, "private": first.private}
    interruptions = 0
    while True:
        kept = Progress(folder, {"round": 2})
        model = task.build_model(config, NORTH)
        try:
            done = train_one_round(task, model, data, config, **named, progress=kept)
        except Interrupted:
            interruptions += 1
        else:
            return done, interruptions


def without_speed(metrics: dict[str, float]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in metrics.items() if name != "images-per-second"]


def require_same_bits(config: RunConfig, data, folder: Path, monkeypatch) -> int:
    undisturbed, none = second_round(config, data, folder / "undisturbed")
    end_after_each_step(monkeypatch)
    resumed, interruptions = second_round(config, data, folder / "resumed")
    assert same(resumed.sent, undisturbed.sent)
    assert same(resumed.private, undisturbed.private)
    assert without_speed(resumed.metrics) == without_speed(undisturbed.metrics)
    assert none == 0
    return interruptions


def of_classifier(strategy: str, **values: object) -> RunConfig:
    given = {**TINY, "training.local-steps": STEPS, "strategy.name": strategy}
    return read_run_config(given | OPTIONS.get(strategy, {}) | values)


@pytest.mark.parametrize("name", strategy_names())
def test_a_round_interrupted_after_each_step_is_the_undisturbed_one_for_every_strategy(
    name, tmp_path, monkeypatch
):
    config = of_classifier(name)
    interruptions = require_same_bits(config, of_cubes(config), tmp_path, monkeypatch)
    models = 2 if name in ("apfl", "ditto") else 1  # of which the first is not trained again
    assert interruptions == STEPS * models


@pytest.mark.parametrize("values", VARIANTS, ids=" ".join)
def test_so_it_is_however_a_classifier_is_trained(values, tmp_path, monkeypatch):
    config = of_classifier("fedavg", **values)
    assert require_same_bits(config, of_cubes(config), tmp_path, monkeypatch) == STEPS


def test_so_it_is_for_generators(tmp_path, monkeypatch):
    config = read_run_config({**TINY_GAN, "training.local-steps": STEPS})
    assert require_same_bits(config, slices("north", 3, 0), tmp_path, monkeypatch) == STEPS


def test_so_it_is_for_means_of_which_some_are_logged_before(tmp_path, monkeypatch):
    def fitted() -> gan.GanFit:
        kept = Progress(tmp_path, {})
        return gan.fit(start(log_every=2), toy_slices(), steps=3, seed=1, progress=kept)

    undisturbed = fitted()
    end_after_each_step(monkeypatch)
    for _ in range(3):
        with pytest.raises(Interrupted):
            fitted()
    assert without_speed(fitted().metrics) == without_speed(undisturbed.metrics)


def test_what_a_model_or_a_strategy_draws_at_random_goes_on(tmp_path, monkeypatch):
    class Noise(Hooks):
        def loss(self, model, batch):
            return torch.rand(()) * batch.features.sum()

    config, task = of_classifier("fedavg"), load_task("classification")
    named = {"device": NORTH.device, "seed": 1, "round_number": 1, "moments": {}}

    def trained() -> dict[str, torch.Tensor]:
        model = task.build_model(config, NORTH)
        kept = Progress(tmp_path, {})
        train(model, of_cubes(config), config, **named, hooks=Noise(), progress=kept)
        return model.state_dict()

    undisturbed = trained()
    end_after_each_step(monkeypatch)
    for _ in range(STEPS):
        with pytest.raises(Interrupted):
            trained()
    assert same(trained(), undisturbed)


# What is written when, and what is taken over


def offer(kept: Progress, steps: int, *, last: bool = False) -> None:
    kept.offer(steps, lambda: TWO_PARTS, last=last)


def test_what_was_offered_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)
    offer(Progress(tmp_path, {"round": 2}), 5)
    steps, parts = Progress(tmp_path, {"round": 2}).load()
    assert steps == 5
    assert {name: part.keys() for name, part in parts.items()} == {"model": {"w"}, "random": {""}}
    assert torch.equal(parts["model"]["w"], TWO_PARTS["model"]["w"])


def test_once_a_minute_something_is_written_and_at_the_end_of_a_long_training(
    tmp_path, monkeypatch
):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    kept, written = Progress(tmp_path, {}, began=now), []
    for steps, now in enumerate([110.0, 159.0, 160.0, 219.0, 221.0, 230.0], 1):  # noqa: B007
        offer(kept, steps)
        written.append((kept.load() or [0])[0])
    assert written == [0, 0, 3, 3, 5, 5]
    offer(kept, 7, last=True)
    assert kept.load()[0] == 7


def test_a_short_round_writes_nothing(tmp_path):
    offer(Progress(tmp_path / "none", {}), 1, last=True)
    assert not (tmp_path / "none").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: cut(folder / "training-1.json"),
        lambda folder: cut(*folder.glob("*.safetensors")),
        lambda folder: next(folder.glob("*.safetensors")).unlink(),
        lambda folder: (folder / "training-1.json").write_text("{}"),
    ],
)
def test_what_is_damaged_is_not_taken_over(spoil, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "SECONDS", 0)
    offer(Progress(tmp_path, {}), 5)
    spoil(tmp_path)
    assert Progress(tmp_path, {}).load() is None
    assert "it begins anew" in caplog.text
    assert str(tmp_path) not in caplog.text


@pytest.mark.parametrize("other", [{"round": 3}, {"round": 2, "order": "another"}])
def test_nothing_of_another_round_is_taken_over(other, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)
    offer(Progress(tmp_path, {"round": 2}), 5)
    assert Progress(tmp_path, other).load() is None


def test_nothing_of_another_training_of_the_round_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)
    kept = Progress(tmp_path, {})
    offer(kept, 5)
    assert kept.of(2).load() is None


def test_a_full_disk_does_not_fail_a_round(tmp_path, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress, "SECONDS", 0)
    monkeypatch.setattr(os, "fsync", full)
    offer(Progress(tmp_path, {}), 5)
    assert "Step 5 of the round could not be kept (OSError)" in caplog.text
    assert Progress(tmp_path, {}).load() is None


def test_what_is_kept_within_a_round_goes_when_the_round_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)
    state = SiteState("north", 7, tmp_path)
    offer(state.progress(2, "order"), 5)
    assert state.progress(2, "order").load()
    assert state.progress(3, "order").load() is state.progress(2, "other").load() is None
    state.save(2, {})
    assert [path.name for path in state.folder.iterdir()] == ["round-2"]


# A process that is killed

KILLED = """
import os, signal
from common.training import progress

progress.SECONDS, writes, fsync = 0, 0, os.fsync

def killed(descriptor):
    global writes
    writes += os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2].startswith(".training")
    if writes == 6:  # the sidecar of the third step: the second is what is kept
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = killed
"""


@pytest.mark.usefixtures("task_identity")
def test_a_site_that_is_killed_in_a_round_goes_on_and_gives_the_same_answer(
    tiny_cohort, session_cache, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    local._remembered.cache_clear()
    config = RunConfig.from_flower({**TINY, "training.local-steps": 4, "transport": "int8"})
    site = Site(config, tiny_cohort)
    first = site.train(1, site.start)
    between = site.after(site.start, first)
    save_file(site.sent(TRAIN, 2, between), tmp_path / "sent")

    values = (site.node, config.to_flower(), str(tmp_path / "sent"), 2, SITES, "")
    done = subprocess.run(
        [sys.executable, "-c", KILLED + ONE_MESSAGE, *map(json.dumps, values)],
        cwd=ROOT,
        timeout=120,
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with caplog.at_level("INFO", "flwr.fedscan"):
        resumed = site.train(2, between)
    assert "The round goes on after step 2" in caplog.text
    kept = site.state.load(2)
    assert same(site.train(2, between), resumed)  # which is undisturbed now
    assert caplog.text.count("goes on") == 1
    assert same(site.state.load(2), kept)
