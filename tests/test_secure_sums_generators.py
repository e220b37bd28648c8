"""Generators with secure sums: the weights and distances of a plain run, and sums alone leave."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import OPEN_POLICY
from flwr.app import Context, RecordDict
from safetensors.torch import load_file
from test_secure_sums_runs import bytes_of, chunks, federate_behind_gates, grid_of, nobody
from test_server_rounds import Clock, InProcessGrid

from clients import local, sums
from clients.app import app
from clients.policy import GATED
from common import messages
from common.config.run_config import RunConfig
from common.errors import ConfigError
from common.evaluation.generation import Moments
from common.evaluation.of_site import Evaluation
from common.imaging.cohorts import write_cohort
from common.messages import EVALUATE, HELLO
from common.metrics_log import WHOLE, read_rows
from common.summed import LARGEST_FEATURE, Change, evaluation_of, layout_of, vector_of
from common.tasks import generation_quality
from common.tasks.task import read_run_config
from common.training.gan_presets import stylegan2
from server import exchange, participants
from server.rounds import federate
from simulations import console
from simulations.model_card import read_facts
from simulations.report.document import write_report

pytestmark = pytest.mark.usefixtures("one_thread", "task_identity")

SITES = ("east", "north", "west")
SCANS = dict(zip(SITES, (4, 6, 5), strict=True))
SMALL = "resolution=16 channel-max=8 z-dim=8 w-dim=8 path-weight=2 ema-kimg=0.05"
TINY = {
    "task": "generation",
    "model.gan-changes": f"{SMALL} label-kinds=sex,height",
    "run.rounds": 1,
    "training.local-steps": 2,
    "training.batch-size": 4,
    "run.round-timeout": 60.0,
    "run.connect-timeout": 0.05,
    "run.min-replies": 3,
    "run.min-sites": 3,
    "strategy.name": "fedavg",
}
SECRET = RunConfig.from_flower({**TINY, "privacy.secure-sums": True})
D = 64  # features


class Blocks:
    """An extractor that looks at means of 2 × 2 pixels, in the place of the study's."""

    name, hash = "fedscan-brain", "0" * 64

    def identity(self) -> dict[str, str]:
        return {"name": self.name, "hash": self.hash}

    def features(self, images: np.ndarray) -> np.ndarray:
        wide = np.asarray(images, np.float64).reshape(len(images), 8, 2, 8, 2)
        return wide.mean((2, 4)).reshape(len(images), D)


def patch_all(patch: pytest.MonkeyPatch, cache: Path, records: Path) -> Blocks:
    """Let sites judge by blocks, and nobody wait."""
    blocks = Blocks()
    patch.setattr(generation_quality, "_extractor", lambda name: blocks)
    patch.setattr(participants, "SETTLE_SECONDS", 0.0)
    patch.setattr(exchange, "time", Clock())
    patch.setattr("clients.guard.declared", dict)
    patch.setattr("clients.local.declared", dict)
    patch.setenv("FEDSCAN_CACHE", str(cache))
    patch.setenv("FEDSCAN_RECORDS", str(records))
    return blocks


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch, session_cache: Path, tmp_path: Path) -> Blocks:
    return patch_all(monkeypatch, session_cache, tmp_path / "records")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("three") / "cohort"
    return write_cohort(out, SCANS, n_test=5, seed=5, workers=1)


@dataclass
class Seen:
    """What a run has left, what came to its server, and what should not have come."""

    folder: Path
    grid: InProcessGrid
    hidden: list[bytes]


def run(home: Path, cohort: Path, *, secret: bool) -> Seen:
    """Run a federation of simulated sites."""
    values = {"run.output-dir": str(home), "data.cohort-dir": str(cohort), "run.id": "7"}
    config = RunConfig.from_flower({**TINY, **values, "privacy.secure-sums": secret})
    grid, hidden = grid_of(cohort, config, nobody, SITES), []

    def spied(layout, config, split, told):
        vector = vector_of(layout, config, split, told)
        hidden.extend(chunks(vector))
        arrays = list(told.statistics.values()) if isinstance(told, Evaluation) else []
        if isinstance(told, Change):
            for name, tensor in told.trained.items():
                change = tensor - told.received[name]
                arrays += [tensor, change, change.half(), change * told.images]
        for array in arrays:
            hidden.extend(chunks(array.numpy()))
        own = [v for v in told.metrics.values() if math.isfinite(v) and 4 * v != round(4 * v)]
        hidden.extend(struct.pack(f, v) for v in own for f in ("<d", ">d"))
        hidden.extend(repr(v).encode() for v in own)
        return vector

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "vector_of", spied)
        local._remembered.cache_clear()
        federate(grid, config, run_id="7")
    return Seen(home / "7", grid, hidden)


@pytest.fixture(scope="module")
def runs(
    cohort: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Seen, Seen]:
    """Return a plain run, and the same with secure sums."""
    found = []
    for secret in (False, True):
        home = tmp_path_factory.mktemp("secret" if secret else "plain")
        with pytest.MonkeyPatch.context() as patch:
            patch_all(patch, session_cache, home / "records")
            found.append(run(home, cohort, secret=secret))
    return found[0], found[1]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("gan*.safetensors")
    return load_file(path)


def numbers(folder: Path, split: str) -> dict[str, dict[str, tuple[float, int]]]:
    """Return by metric and site the value and over how many images."""
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for row in read_rows(folder / "metrics.jsonl"):
        if row.split == split:
            found.setdefault(row.name, {})[row.site] = (row.value, row.n)
    return found


def test_secure_sums_give_the_plain_generator_to_the_stated_error(runs):
    plain, summed = (one.folder for one in runs)
    layout = layout_of(SECRET, "train", SITES, len(SITES))
    rate = math.sqrt(len(SITES))  # the server's step; each site has a weight of 1
    error = max(layout.error(name) for name in layout.shapes if name.startswith("change/"))
    most = rate * error / len(SITES)
    expected, found = weights(plain), weights(summed)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        rounding = 1e-6 * max(1.0, float(expected[name].double().abs().max()))  # of float32
        assert float((tensor.double() - expected[name]).abs().max()) <= most + rounding, name


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["loss-generator", "loss-discriminator", "p", "sign-real"]),
        ("val", ["kernel_distance", "precision", "recall"]),
        ("test", ["kernel_distance", "density", "coverage"]),
    ],
)
def test_measures_are_means_of_the_sites_of_evaluations_by_images(runs, split, names):
    plain, summed = (numbers(one.folder, split) for one in runs)
    for name in names:
        sites = [one for site, one in plain[name].items() if site != WHOLE]
        sites = [(value, 1 if split == "train" else n) for value, n in sites]
        count = sum(n for _, n in sites)
        mean = sum(value * n for value, n in sites) / count
        assert summed[name] == {WHOLE: (pytest.approx(mean, abs=2e-3), count)}, name


def test_the_distance_of_all_images_together_is_that_of_the_plain_run(runs):
    plain, summed = (numbers(one.folder, "test")["frechet_distance"][WHOLE] for one in runs)
    assert summed == (pytest.approx(plain[0], abs=1e-3), plain[1])
    assert plain[1] > D
    told = [json.loads((one.folder / "summary.json").read_text())["generation"] for one in runs]
    assert told[1].keys() == told[0].keys()
    assert told[1]["images_seen"] == told[0]["images_seen"]
    name = told[0]["extractor"]["name"]  # its hash is that of the answer to who a site is
    assert told[1]["extractor"] == {"name": name, "hash": generation_quality.extractor_hash(SECRET)}


def test_the_server_receives_nothing_of_a_single_site(runs):
    """All bytes of all replies are searched."""
    seen = runs[1]
    received = b"".join(one for reply in seen.grid.replies for one in bytes_of(reply))
    assert len(seen.hidden) > 1000
    assert len(received) > len(SITES) * 10_000
    assert not [one for one in seen.hidden if one in received]
    for reply in seen.grid.replies:
        assert all(not record for record in reply.content.metric_records.values())
        for record in reply.content.config_records.values():
            assert all(isinstance(value, str | bytes) for value in record.values())


def test_what_the_run_tells_is_of_all_sites_together(runs, capsys, tmp_path):
    folder = shutil.copytree(runs[1].folder, tmp_path / "run")
    told = {r.site for r in read_rows(folder / "metrics.jsonl") if not r.name.startswith("bytes-")}
    assert told == {WHOLE}
    summary = json.loads((folder / "summary.json").read_text())
    assert not any("generation" in site or "n_train" in site for site in summary["sites"].values())
    console.show_run(summary)
    assert "Secure sums tell nothing of single sites." in capsys.readouterr().out
    summary["together"] |= {"authenticity": 0.5, "copies_flagged": 0.25}  # of one site of four
    (folder / "summary.json").write_text(json.dumps(summary))
    report = write_report(folder).read_text()
    assert "All sites" in report
    assert "flagged as copying training images of a site" in report
    facts = read_facts(folder)
    assert {score.place for score in facts.scores} == {WHOLE} == set(facts.copying)


def test_gates_sum_what_their_apps_answer_and_let_nothing_else_out(
    tmp_path, cohort, runs, monkeypatch
):
    """The weights are those of a simulation, whose sites mask by themselves."""
    monkeypatch.setenv(GATED, "1")
    (tmp_path / "policy.toml").write_text(OPEN_POLICY)
    monkeypatch.setenv("FEDSCAN_POLICY", str(tmp_path / "policy.toml"))
    values = {"run.output-dir": str(tmp_path), "run.id": "7", "privacy.secure-sums": True}
    config = RunConfig.from_flower(TINY | values)
    hospitals, grid = federate_behind_gates(tmp_path / "gates", cohort, config, SITES)
    ours, theirs = weights(tmp_path / "7"), weights(runs[1].folder)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    for reply in grid.replies:
        assert all(not record for record in reply.content.metric_records.values())
    plain = messages.request(
        EVALUATE, 5, round_number=1, split="val", sites=SITES, arrays=messages.pack(ours)
    )
    told = messages.failure_in(hospitals[0].answer(plain, config))
    assert told is not None
    assert "more than a secure sum" in told.error


# A site's label


def test_no_label_names_the_site_whose_weights_it_would_be_alone():
    preset = {**TINY, "model.gan-changes": SMALL}
    assert stylegan2(RunConfig.from_flower(preset)).label_kinds == ("sex", "height", "site")
    secret = {**preset, "privacy.secure-sums": True}
    assert stylegan2(read_run_config(secret)).label_kinds == ("sex", "height")
    with pytest.raises(ConfigError, match="leave 'site' out"):
        read_run_config({**secret, "model.gan-changes": f"{SMALL} label-kinds=sex,site"})
    assert not stylegan2(RunConfig.from_flower({**secret, "model.gan": "paper-256"})).label_kinds


# Moments


def told(count: int, seed: int, **changes) -> Evaluation:
    draws = np.random.default_rng(seed)
    statistics = {}
    for kind in generation_quality.SAMPLE:
        moments = Moments.of(draws.normal(draws.normal(0, 3, D), 2.0, (count, D)))
        statistics |= {
            f"{kind}.{name}": torch.as_tensor(value, dtype=torch.float64)
            for name, value in vars(moments).items()
        }
    values = {"count": count, "metrics": {}, "statistics": statistics, **changes}
    return Evaluation(**values)


def summed(*evaluations: Evaluation) -> Evaluation:
    layout = layout_of(SECRET, "val", SITES, len(SITES))
    vectors = [vector_of(layout, SECRET, "val", one) for one in evaluations]
    total = np.sum(vectors, axis=0, dtype=vectors[0].dtype)
    return evaluation_of(total, layout, SECRET, "val")


def moments_in(found: Evaluation, kind: str) -> Moments:
    parts = (found.statistics[f"{kind}.{n}"].numpy() for n in ("count", "mean", "covariance"))
    return Moments(*parts)


def test_moments_of_all_sites_are_those_of_their_images_together():
    sites = [told(count, seed) for seed, count in enumerate((20, 1, 90))]
    found = summed(*sites, Evaluation(0, {}))  # one withholds
    assert found.count == 111
    for kind in generation_quality.SAMPLE:
        expected = Moments.merged([moments_in(one, kind) for one in sites])
        ours = moments_in(found, kind)
        assert int(ours.count) == expected.count
        np.testing.assert_allclose(ours.mean, expected.mean, atol=1e-6)
        np.testing.assert_allclose(ours.covariance, expected.covariance, atol=1e-5)


@pytest.mark.parametrize("why", ["not told", "too large"])
def test_moments_that_one_site_does_not_tell_are_none_of_all(why):
    one = told(30, 1, **({"statistics": {}} if why == "not told" else {}))
    if one.statistics:
        one.statistics["real.mean"][0] = 2 * LARGEST_FEATURE
    found = summed(told(20, 0), one)
    assert found.count == 50
    assert not found.statistics


def test_an_extractor_that_changes_in_a_run_is_refused(cohort, monkeypatch, blocks):
    """In a sum nobody would see that one site judges by another."""
    monkeypatch.setenv(GATED, "1")  # the app's answer, before the gate masks it
    config = SECRET.replace({"data.cohort-dir": str(cohort)})
    given = {"partition-id": 0, "num-partitions": len(SITES)}
    context = Context(1, 5, given, RecordDict(), config.to_flower())
    assert messages.failure_in(app(messages.request(HELLO, 5), context)) is None
    blocks.hash = hashlib.sha256(b"another").hexdigest()
    order = messages.request(
        EVALUATE, 5, round_number=1, split="val", sites=SITES, arrays=messages.pack({})
    )
    failure = messages.failure_in(app(order, context))
    assert failure is not None
    assert "extractor that judges pictures has changed" in failure.error
