"""A federated generation, in one process: what travels, what stays, and where it stays."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_server_rounds import InProcessGrid, clients
from tiny import run_config

from clients import local
from clients.state import SiteState
from common import messages
from common.config.run_config import RunConfig
from common.errors import ConfigError
from common.messages import EVALUATE, TRAIN
from common.metrics_log import read_rows
from common.run_folder import METRICS
from common.tasks import generation_quality
from common.tasks.task import SiteContext, load_task
from common.transport import received, to_keep
from server.rounds import federate

pytestmark = pytest.mark.usefixtures("in_simulation", "task_identity")
GAN = "resolution=16 channel-max=8 z-dim=8 w-dim=8 ada-interval=1 label-kinds=sex,height,site"
generation = load_task("generation")
SITES = ("island", "north")


@pytest.fixture(autouse=True)
def places(monkeypatch, session_cache, tmp_path):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    local._remembered.cache_clear()

    def features(images: np.ndarray) -> np.ndarray:
        return np.asarray(images, np.float64).reshape(len(images), -1)[:, 100:112]

    pixels = SimpleNamespace(
        name="pixels",
        hash="0" * 64,
        features=features,
        identity=lambda: {"name": "pixels", "hash": "0" * 64},
    )
    monkeypatch.setattr(generation_quality, "_extractor", lambda name: pixels)


def of(folder: Path, cohort: Path, **changes) -> RunConfig:
    values = {
        "task": "generation",
        "model.gan-changes": GAN,
        "run.rounds": 2,
        "training.local-steps": 2,
        "training.batch-size": 4,
        "run.evaluate-every": 1,
        "data.cohort-dir": str(cohort),
        "run.output-dir": str(folder),
        "run.device": "cpu",
    }
    return run_config(values, **changes)


def federated(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[InProcessGrid, dict]:
    """Run a federation; return its messages, and the private state of each site after training."""
    kept: dict[str, dict[str, torch.Tensor]] = {}
    save = SiteState.save

    def spy(
        self: SiteState, round_number: int, state: dict[str, torch.Tensor], *, keep: int
    ) -> None:
        kept[self.site] = {name: tensor.clone() for name, tensor in state.items()}
        save(self, round_number, state, keep=keep)

    monkeypatch.setattr(SiteState, "save", spy)
    answers, contexts = clients([{"partition-id": i, "num-partitions": 2} for i in (0, 1)], config)
    grid = InProcessGrid(answers)
    federate(grid, config, run_id="run")
    assert all(not context.state for context in contexts)
    return grid, kept


@pytest.mark.parametrize("share", ["both", "generator"])
@pytest.mark.parametrize("transport", ["float32", "int8"])
def test_private_state_never_is_in_a_message(
    share, transport, tiny_cohort, tmp_path, monkeypatch
) -> None:
    config = of(tmp_path / "runs", tiny_cohort, share=share, transport=transport)
    grid, kept = federated(config, monkeypatch)
    assert sorted(kept) == list(SITES)
    place = SiteContext("server", SITES, torch.device("cpu"))
    shared = set(generation.shared_state(generation.build_model(config, place), config))
    scales = {f"{name}/scale" for name in shared} if transport == "int8" else set()
    private = {
        name: tensor.numpy().tobytes()
        for state in kept.values()
        for name, tensor in state.items()
        # What is zero, one number or as short is in anything; references are what was received.
        if tensor.numel() > 8 and tensor.any() and not name.startswith("reference/")
    }
    assert any(name.endswith("/exp_avg_sq") for name in private)
    assert any("discriminator.dense.weight" in name for name in private)
    for message in grid.replies + grid.requests:
        record = message.content.array_records.get(messages.ARRAYS)
        sent = b"" if record is None else record[messages.WEIGHTS].data
        for name, data in private.items():
            assert data not in sent, name
    for reply in grid.replies:
        kind = reply.metadata.message_type
        if kind == TRAIN:
            names = set(messages.unpack(reply.content[messages.ARRAYS]))
            assert names == shared | scales
            if share == "generator":
                assert not any("discriminator" in name for name in names)
        if kind == EVALUATE:
            assert set(messages.unpack(reply.content[messages.ARRAYS])) == {
                f"{split}.{name}"
                for split in generation_quality.SAMPLE
                for name in ("count", "mean", "covariance")
            }
    held: dict[str, torch.Tensor] = {}
    for order in [m for m in grid.requests if m.metadata.message_type == TRAIN][::2]:  # of a round
        held = received(messages.unpack(order.content[messages.ARRAYS]), held)
        held = dict(to_keep(held, transport))
    for state in kept.values():  # bit for bit the same, at both sites
        assert all(torch.equal(state[f"reference/{name}"], held[name]) for name in held)


def test_the_run_leaves_its_results_and_the_sites_keep_theirs(
    tiny_cohort, tmp_path, monkeypatch
) -> None:
    config = of(tmp_path / "runs", tiny_cohort)
    federated(config, monkeypatch)
    folder = tmp_path / "runs" / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["generation"]["images_seen"] == summary["best_round"] * 2 * 4 * 2
    assert summary["bytes_plain"] > 0
    assert len(list((folder / "grids").iterdir())) == 2
    for site in SITES:
        own = tmp_path / "records" / site
        assert [path.name for path in own.rglob("*.png")] == ["look-alikes.png"]
        assert not list(own.rglob("*.safetensors"))  # the private state went with the test
        assert summary["sites"][site]["generation"]["p_ada"] is not None
    assert not list(folder.rglob("look-alikes*"))


def test_a_run_with_privacy_of_people_and_of_sites_tells_what_is_covered_and_no_more(
    tiny_cohort, tmp_path, monkeypatch
) -> None:
    both = {"epsilon": 8.0, "central_epsilon": 8.0, "evaluate_every": 2}
    config = of(tmp_path / "runs", tiny_cohort, **both)
    federated(config, monkeypatch)
    folder = tmp_path / "runs" / "run"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best_round"] == 2
    promise = summary["central_privacy"]
    assert (promise["unit"], promise["epsilon"], promise["sites"]) == ("site", 8.0, 2)
    rows = [row for row in read_rows(folder / METRICS) if row.split == "train"]
    assert {"epsilon", "loss-generator"} <= {row.name for row in rows}
    without_noise = {"loss-discriminator", "sign-real", "images-per-second"}
    assert not without_noise & {row.name for row in rows}
    for site in SITES:  # whether it copies those trained on is seen at the site alone
        assert not {*generation_quality.COPYING} & summary["sites"][site]["generation"].keys()
        assert list((tmp_path / "records" / site).rglob("look-alikes.png"))


def order(kind: str, **changes) -> messages.Message:
    return messages.request(kind, 1, **{"round_number": 1, "sites": SITES, **changes})


@pytest.mark.parametrize(
    "sites", [(), ("north",), ("island", "island"), ("island", "../north"), ("island",) * 3]
)
def test_a_list_of_sites_that_cannot_be_is_refused(sites, tiny_cohort, tmp_path) -> None:
    config = of(tmp_path, tiny_cohort)
    _, contexts = clients([{"partition-id": 0, "num-partitions": 2}], config)
    place = SiteContext("server", SITES, torch.device("cpu"))
    state = generation.shared_state(generation.build_model(config, place), config)
    message = order(TRAIN, sites=sites, arrays=messages.pack(state))
    local.SiteClient(contexts[0]).hello(order(messages.HELLO))
    with pytest.raises(ConfigError, match="list of sites"):
        local.SiteClient(contexts[0]).train(message)


def test_a_model_is_judged_on_validation_and_test_scans_only(tiny_cohort, tmp_path) -> None:
    config = of(tmp_path, tiny_cohort)
    _, contexts = clients([{"partition-id": 0, "num-partitions": 2}], config)
    with pytest.raises(ConfigError, match="'val' or 'test'"):
        local.SiteClient(contexts[0]).evaluate(order(EVALUATE, split="train"))


def test_the_servers_word_opens_no_file_of_an_extractor_at_a_hospital(
    tiny_cohort, tmp_path
) -> None:
    config = of(tmp_path, tiny_cohort, extractor="/somewhere/program.pt", cohort_dir="")
    node = {"site": "north", "data-dir": str(tiny_cohort / "north")}
    _, contexts = clients([node, {**node, "extractor": "/own/network.pt"}], config)
    with pytest.raises(ConfigError, match="name it when you start the SuperNode"):
        local.SiteClient(contexts[0])
    assert local.SiteClient(contexts[1]).config.model.extractor == "/own/network.pt"
