"""Runs with secure sums: the weights are those of a plain run, and the server sees sums alone."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OPEN_POLICY
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from safetensors.torch import load_file
from test_server_rounds import Clock, InProcessGrid, dotted

from clients import local, sums
from clients.app import app
from clients.gateway.approvals import Approvals
from clients.gateway.form import form_of
from clients.gateway.gate import Gate
from clients.gateway.judge import compose
from clients.policy import GATED, SitePolicy
from common import messages
from common.config.run_config import RunConfig
from common.errors import ConfigError, FedscanError, SecureSumError
from common.evaluation.of_site import Evaluation
from common.imaging.cohorts import write_cohort
from common.messages import EVALUATE, HELLO, SUM, TRAIN
from common.metrics_log import WHOLE, read_rows
from common.processes.environment import toml
from common.rounds import require_number
from common.secure_sums.site import Site
from common.sites import Site as Folder
from common.strategies.strategy import load_strategy, strategy_names
from common.summed import Change, evaluation_of, layout_of, threshold, update_of, vector_of
from common.tasks.task import read_run_config
from server import exchange, participants
from server.rounds import federate
from simulations import console
from simulations.model_card import metadata, read_facts
from simulations.model_card_text import render
from simulations.report.document import write_report

pytestmark = pytest.mark.usefixtures("in_simulation", "one_thread", "task_identity")

SITES = ("east", "island", "north", "south", "west")
SCANS = dict(zip(SITES, (6, 4, 8, 5, 7), strict=True))
TINY = {
    "run.rounds": 1,
    "training.local-steps": 2,
    "training.batch-size": 4,
    "data.size": 16,
    "run.round-timeout": 7.0,
    "run.connect-timeout": 0.05,
    "run.min-replies": 3,
    "run.min-sites": 5,
    "strategy.name": "fedavg",
}
SECRET = RunConfig.from_flower({**TINY, "privacy.secure-sums": True})
FAB = b"the bundle"
HASH = hashlib.sha256(FAB).hexdigest()
Away = Callable[[str, Message], bool]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five hospitals of 4 to 8 training scans."""
    out = tmp_path_factory.mktemp("five") / "cohort"
    return write_cohort(out, SCANS, n_test=4, seed=5, workers=1)


@pytest.fixture(autouse=True)
def folders(monkeypatch, session_cache, tmp_path) -> None:
    monkeypatch.setattr(participants, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(participants, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(exchange, "time", Clock())
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))


def nobody(site: str, message: Message) -> bool:
    del site, message
    return False


def gone(*sites: str, stage: str = "mask", number: int = 1) -> Away:
    """Return who does not answer in a round, from the stage on; plain orders have the one stage."""
    stages = ("advertise", "share", "mask", "agree", "unmask")

    def away(site: str, message: Message) -> bool:
        order = message.content[messages.CONFIG]
        if site not in sites or (order["split"], order["round"]) != ("train", number):
            return False
        asked = messages.stage_in(message)
        return asked is None or stages.index(asked.stage) >= stages.index(stage)

    return away


def grid_of(
    cohort: Path, config: RunConfig, away: Away, sites: tuple[str, ...] = SITES
) -> InProcessGrid:
    """Return the sites of a simulation, behind Flower's messages."""

    def node(number: int, site: str):
        given = {"partition-id": number, "num-partitions": len(sites)}

        def answer(message: Message) -> Message | None:
            context = Context(1, 5, given, RecordDict(), config.to_flower())
            return None if away(site, message) else app(message, context)

        return answer

    return InProcessGrid({101 + 7 * i: node(i, site) for i, site in enumerate(sites)})


def run(folder: Path, cohort: Path, away: Away = nobody, **changes) -> tuple[Path, InProcessGrid]:
    """Run a federation of simulated sites, each an actor that starts anew with every message."""
    name = str(changes.pop("id", "1-summed" if changes.get("secure_sums") else "1-plain"))
    values = TINY | {"run.output-dir": str(folder), "data.cohort-dir": str(cohort), "run.id": name}
    config = RunConfig.from_flower(values | dotted(changes))
    grid = grid_of(cohort, config, away)
    local._remembered.cache_clear()
    federate(grid, config, run_id=name)
    return folder / name, grid


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(five: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with secure sums in which nothing fails."""
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(participants, "SETTLE_SECONDS", 0.0)
        patch.setattr(exchange, "time", Clock())
        patch.setattr("clients.guard.declared", dict)
        patch.setattr("clients.local.declared", dict)
        patch.setenv("FEDSCAN_CACHE", str(session_cache))
        patch.setenv("FEDSCAN_RECORDS", str(home / "records"))
        folder, _ = run(home, five, secure_sums=True, id="7")
    return folder


@pytest.mark.parametrize("dropouts", [(), ("north",), ("east", "west")], ids=["0", "1", "most"])
def test_secure_sum_gives_the_plain_runs_weights_to_the_stated_error(
    tmp_path, five, whole, dropouts
):
    plain, _ = run(tmp_path, five, gone(*dropouts))
    summed = whole
    if dropouts:
        summed, _ = run(tmp_path, five, gone(*dropouts), secure_sums=True)
    layout = layout_of(SECRET, "train", SITES, len(SITES))
    losses = [r for r in read_rows(plain / "metrics.jsonl") if r.name == "loss"]
    images = sum(r.n for r in losses if r.split == "train")
    expected = weights(plain)
    for name, found in weights(summed).items():
        most = layout.error(f"change/{name}") / images
        rounding = 2e-7 * max(1.0, float(expected[name].abs().max()))  # of float32 in plain means
        assert float((found - expected[name]).abs().max()) <= most + rounding, name
    rows = [r for r in read_rows(summed / "metrics.jsonl") if r.name == "loss"]
    assert {(r.split, r.site) for r in rows} == {(s, WHOLE) for s in ("train", "val", "test")}
    for row in rows:
        one = [r for r in losses if r.split == row.split and r.site != WHOLE]
        assert row.n == sum(r.n for r in one)
        mean = sum(r.value * r.n for r in one) / sum(r.n for r in one)
        assert row.value == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize("stage", ["mask", "agree", "unmask"])
def test_with_one_dropout_more_the_round_is_refused_and_nothing_is_revealed(tmp_path, five, stage):
    away = gone("east", "north", "west", stage=stage)
    seen: dict[str, int] = {}

    def counted(site: str, message: Message) -> bool:
        asked, missing = messages.stage_in(message), away(site, message)
        if asked and not missing:
            seen[asked.stage] = seen.get(asked.stage, 0) + 1
        return missing

    with pytest.raises(FedscanError, match="2 of 5 sites are left, and a sum takes 3"):
        run(tmp_path, five, counted, secure_sums=True, round_retries=0)
    assert seen.get("unmask", 0) == (2 if stage == "unmask" else 0)  # two shares of three tell none


def test_server_receives_nothing_of_a_single_site(tmp_path, five, monkeypatch):
    """All bytes of all replies are searched."""
    hidden: list[bytes] = []

    def spied(layout, config, split, told):
        vector = vector_of(layout, config, split, told)
        hidden.extend(chunks(vector))
        if isinstance(told, Change):
            for name, tensor in told.trained.items():
                change = tensor - told.received[name]
                for one in (tensor, change, change.half(), change * told.images):
                    hidden.extend(chunks(one.numpy()))
        else:
            hidden.extend(struct.pack(f, v) for v in told.metrics.values() for f in ("<d", ">d"))
            hidden.extend(repr(v).encode() for v in told.metrics.values() if v not in (0, 1, 0.5))
        return vector

    monkeypatch.setattr(sums, "vector_of", spied)
    _, grid = run(tmp_path, five, secure_sums=True)
    assert {m.metadata.message_type for m in grid.replies} == {HELLO, SUM, TRAIN, EVALUATE}
    received = b"".join(one for reply in grid.replies for one in bytes_of(reply))
    assert len(hidden) > 1000
    assert len(received) > len(SITES) * 10_000
    assert not [one for one in hidden if one in received]
    for reply in grid.replies:  # no number at all, of images or of anything else
        assert all(not record for record in reply.content.metric_records.values())
        for record in reply.content.config_records.values():
            assert all(isinstance(value, str | bytes) for value in record.values())


def chunks(values: np.ndarray) -> list[bytes]:
    """Return the bytes of runs of 16 numbers, wherever they are not all alike."""
    runs = [values.ravel()[i : i + 16] for i in range(0, values.size - 15, 16)]
    return [run.tobytes() for run in runs if np.ptp(run.astype(np.float64))]


def bytes_of(reply: Message) -> list[bytes]:
    found = []
    for record in reply.content.values():
        for value in record.values():
            data = getattr(value, "data", value)
            found.append(data if isinstance(data, bytes) else repr(data).encode())
            if isinstance(data, bytes) and data.startswith(b"{"):
                found.append(json.dumps(json.loads(data)).encode())
    return found


NEED_MORE = ["bulyan", "coral", "dann", "fedmedian", "fednova", "fedtrimmedavg", "krum"]
NEED_MORE += ["multikrum", "qfedavg", "scaffold"]


@pytest.mark.parametrize("name", strategy_names())
def test_strategies_that_need_more_than_the_mean_are_refused(name):
    values = {**TINY, "privacy.secure-sums": True, "strategy.name": name}
    assert load_strategy(name).secure_sums == (name not in NEED_MORE)
    if name not in NEED_MORE:
        read_run_config(values)
        return
    with pytest.raises(ConfigError, match=f"'{name}' needs more .* accepted is .*fedavg, fedavgm"):
        read_run_config(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"transport": "int8"}, "accepted is 'float32' or 'float16'"),
        ({"strategy.most-share": 0.5}, "strategy.most-share looks at the updates"),
        ({"strategy.most-norm": 3.0}, "strategy.most-norm looks at the updates"),
        ({"run.min-replies": 2}, "accepted is 0 .* or 3"),
        ({"data.unlabelled": "north"}, "leave data.unlabelled out"),
        ({"privacy.secure-sums": False, "privacy.max-change": 1.0}, "no effect without"),
    ],
)
def test_what_does_not_go_with_secure_sums_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        RunConfig.from_flower({"privacy.secure-sums": True, **values})


@pytest.mark.parametrize(("sites", "replies"), [(2, 0), (5, 2), (10, 5)])
def test_too_few_sites_or_replies_are_refused_before_the_run(sites, replies):
    config = SECRET.model_copy(
        update={"run": SECRET.run.model_copy(update={"min_replies": replies})}
    )
    with pytest.raises(ConfigError, match="secure"):
        require_number(config, sites)


def test_all_sites_are_needed_unless_some_may_be_away():
    every = SECRET.replace({"run.min-replies": 0})
    assert [threshold(every, n) for n in (3, 5)] == [3, 5]
    assert [threshold(SECRET, n) for n in (3, 5, 10)] == [3, 3, 6]


class Killed(Exception):
    """The server's process has ended."""


@pytest.mark.parametrize(
    ("split", "stage"), [("train", "mask"), ("train", "unmask"), ("test", "unmask")]
)
def test_a_resumed_run_unmasks_no_sum_twice_and_ends_alike(
    tmp_path, five, whole, monkeypatch, split, stage
):
    unmasked: list[tuple[str, str]] = []
    real = Site.unmask

    def unmask(site, message):
        unmasked.append((site.name, site.plan.name))
        return real(site, message)

    monkeypatch.setattr(Site, "unmask", unmask)

    def killed(site: str, message: Message) -> bool:
        asked = messages.stage_in(message)
        order = message.content[messages.CONFIG]
        if asked and (asked.stage, order["split"], site) == (stage, split, "north"):
            raise Killed
        return False

    with pytest.raises(Killed):  # two sites have answered
        run(tmp_path, five, killed, secure_sums=True, id="7")
    resumed, _ = run(tmp_path, five, secure_sums=True, id="7", resume=True)
    assert len(set(unmasked)) == len(unmasked) == 3 * len(SITES)  # train, validate, test
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    told = [json.loads((one / "summary.json").read_text())["together"] for one in (resumed, whole)]
    assert told[0] == told[1]


def test_table_report_and_card_tell_of_all_sites_as_one(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    assert all("n_train" not in site for site in summary["sites"].values())
    console.show_run(summary)
    assert "Secure sums tell nothing of single sites." in capsys.readouterr().out
    report = write_report(folder).read_text()
    assert "mean of all sites by their images (secure sums)" in report
    assert "All sites" in report
    facts = read_facts(folder)
    assert "| all sites |" in render(facts, metadata(facts))


def test_sites_that_were_away_when_a_sum_was_unmasked_are_asked_again(tmp_path, five, whole):
    asked: list[str] = []

    def late(site: str, message: Message) -> bool:
        if not gone("east", "north", "west", stage="unmask")(site, message):
            return False
        asked.append(site)
        return asked.count(site) == 1

    found, _ = run(tmp_path, five, late, secure_sums=True, id="7")
    assert sorted(asked) == sorted(2 * ["east", "north", "west"])
    ours, theirs = weights(found), weights(whole)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_an_order_without_a_sum_is_refused_in_a_run_with_secure_sums(five, tmp_path):
    config = SECRET.replace({"data.cohort-dir": str(five)})
    context = Context(
        1, 5, {"partition-id": 0, "num-partitions": 5}, RecordDict(), config.to_flower()
    )
    arrays = messages.pack({"w": torch.zeros(3)})
    for kind, split in ((TRAIN, "train"), (EVALUATE, "val")):
        order = messages.request(kind, 5, round_number=1, split=split, sites=SITES, arrays=arrays)
        app(messages.request(HELLO, 5), context)
        failure = messages.failure_in(app(order, context))
        assert failure is not None
        assert "a stage of a secure sum" in failure.error


def evaluations(*told: Evaluation) -> Evaluation:
    layout = layout_of(SECRET, "val", SITES, len(SITES))
    vectors = [vector_of(layout, SECRET, "val", one) for one in told]
    total = np.sum(vectors, axis=0, dtype=vectors[0].dtype)
    return evaluation_of(total, layout, SECRET, "val")


def test_metrics_are_means_over_the_images_of_those_that_tell_them():
    found = evaluations(
        Evaluation(10, {"loss": 0.5, "auroc": 0.75}),
        Evaluation(30, {"loss": 0.25, "auroc": math.nan}),
        Evaluation(0, {}),  # withheld
    )
    assert found.count == 40
    assert found.metrics["loss"] == pytest.approx(0.3125)
    assert found.metrics["auroc"] == pytest.approx(0.75)
    assert "f1" not in found.metrics


def test_a_loss_that_one_site_cannot_tell_is_none_of_all():
    found = evaluations(Evaluation(10, {"loss": 0.5}), Evaluation(30, {"loss": math.inf}))
    assert math.isnan(found.metrics["loss"])


def test_a_change_beyond_the_public_bound_is_refused_not_clipped():
    layout = layout_of(SECRET, "train", SITES, len(SITES))
    shapes = {name.removeprefix("change/"): s for name, s in layout.shapes.items() if "/" in name}
    zero = {name: torch.zeros(shape) for name, shape in shapes.items()}
    far = {name: tensor + 0.51 for name, tensor in zero.items()}
    with pytest.raises(SecureSumError, match="beyond the public bound"):
        vector_of(layout, SECRET, "train", Change(4, {}, far, zero))
    near = {name: tensor + 0.25 for name, tensor in zero.items()}
    vector = vector_of(layout, SECRET, "train", Change(4, {}, near, zero))
    update = update_of(vector, layout, SECRET, zero)
    assert update.count == 4
    assert all(float((t - 0.25).abs().max()) < 1e-5 for t in update.state.values())


@pytest.mark.parametrize(("people", "told"), [(3, False), (4, True)])
def test_a_small_hospital_tells_in_a_sum_what_a_third_of_the_minimum_allows(people, told):
    """Over three sites with a third of it each, a number is about as many as the minimum."""
    found = Evaluation(people, {"loss": 0.5}, people=people, fewest=people)
    assert SitePolicy().min_participants == 10
    assert SitePolicy().disclosure.evaluation(found).count == 0
    assert bool(SitePolicy().told(SECRET).evaluation(found).count) == told


class Hospital:
    """A site behind its gate, whose box is this process."""

    def __init__(self, site: str, cohort: Path, folder: Path, keys: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        self.node = {"site": site, "data-dir": str(cohort / site)}
        policy, pem = folder / "policy.toml", serialization.Encoding.PEM
        (folder / f"{site}-sums.key").write_bytes(
            keys[site].private_bytes(
                pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        names = [f"{n}:{k.public_key().public_bytes_raw().hex()}" for n, k in keys.items()]
        policy.write_text(OPEN_POLICY + "[secure-sums]\n" + toml({"sites": names}))
        Approvals.beside(policy).approve(HASH)
        self.gate = Gate(Folder(site, cohort / site, simulated=False), policy, folder=folder)
        self.gate._ask = self.of_app
        self.gate.ledger.__enter__()

    def of_app(self, order, asked, run):
        form = form_of(
            *(asked.kind, run.config, run.policy),
            site=run.site.name,
            sites=asked.sites,
            split=asked.split,
        )
        return compose(app(order.message, order.context), asked, run, form, self.gate.settings)

    def answer(self, message: Message, config: RunConfig) -> Message:
        run = {"run_id": 7, "fab_hash": HASH, "fab_id": "fedscan/fedscan", "fab_version": "0.1.0"}
        fab = SimpleNamespace(content=FAB, hash_str=HASH)
        order = SimpleNamespace(
            message=message,
            given=SimpleNamespace(fab=fab),
            run=SimpleNamespace(**run),
            context=Context(7, 5, self.node, RecordDict(), config.to_flower()),
            problem="",
        )
        content = recorddict_to_proto(self.gate._decide(order))  # as it travels
        return Message(recorddict_from_proto(content), reply_to=message)


def federate_behind_gates(
    folder: Path, cohort: Path, config: RunConfig, sites: tuple[str, ...]
) -> tuple[list[Hospital], InProcessGrid]:
    """Run a federation whose sites answer through their gates."""
    keys = {site: Ed25519PrivateKey.generate() for site in sites}
    hospitals = [Hospital(site, cohort, folder / site, keys) for site in sites]
    grid = InProcessGrid(
        {
            101 + 7 * i: lambda message, one=one: one.answer(message, config)
            for i, one in enumerate(hospitals)
        }
    )
    local._remembered.cache_clear()
    federate(grid, config, run_id="7")
    return hospitals, grid


def test_gates_sum_what_their_apps_answer_and_let_nothing_else_out(
    tmp_path, five, whole, monkeypatch
):
    """The weights are those of a simulation, whose sites mask by themselves."""
    monkeypatch.setenv(GATED, "1")
    (tmp_path / "policy.toml").write_text(OPEN_POLICY)
    monkeypatch.setenv("FEDSCAN_POLICY", str(tmp_path / "policy.toml"))
    values = {"run.output-dir": str(tmp_path), "run.id": "7", "privacy.secure-sums": True}
    config = RunConfig.from_flower(TINY | values)
    hospitals, grid = federate_behind_gates(tmp_path / "gates", five, config, SITES)
    ours, theirs = weights(tmp_path / "7"), weights(whole)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    for reply in grid.replies:
        assert all(not record for record in reply.content.metric_records.values())
    plain = messages.request(
        EVALUATE, 5, round_number=1, split="val", sites=SITES, arrays=messages.pack(ours)
    )
    told = messages.failure_in(hospitals[0].answer(plain, config))
    assert told is not None
    assert "more than a secure sum" in told.error
