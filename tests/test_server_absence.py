"""Sites come and go, fail and send what cannot be used: the run goes on, and tells of it."""

from __future__ import annotations

import errno
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from safetensors.torch import load_file
from test_server_rounds import (
    Clock,
    InProcessGrid,
    ScriptedSite,
    fail,
    nodes,
    own_words,
    run,
    run_config,
    summary_of,
    trained,
)

from common import messages
from common.errors import ConfigError
from common.files import without_nan, write_atomically
from common.fingerprint import fingerprint
from common.messages import EVALUATE, HELLO, TRAIN
from common.metrics_log import SERVER_MEMORY, read_rows
from common.participation import in_training
from common.run_folder import RunFolder
from common.transport import received
from server import exchange, participants
from server.replies import SiteFailure
from server.rounds import federate

pytestmark = pytest.mark.usefixtures("task_identity", "in_simulation", "one_thread")

AWAY = None  # no answer


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(participants, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(participants, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(exchange, "time", Clock())


@dataclass
class Troubled(ScriptedSite):
    """A site with an answer of its own to some orders: by kind and round."""

    trouble: dict[tuple[str, int], Callable[[Message], Message | None]] = field(
        default_factory=dict
    )

    def __call__(self, message: Message) -> Message | None:
        order = message.content[messages.CONFIG]
        how = self.trouble.get((message.metadata.message_type, int(order["round"])))
        return how(message) if how else super().__call__(message)


class Remembering(ScriptedSite):
    """A site that starts a round from what it held after the one before, as real ones do."""

    def train(self, message: Message, round_number: int) -> Message:
        self.held = getattr(self, "held", {})
        self.kept = self.held.get(round_number - 1, {})
        reply = super().train(message, round_number)
        self.held[round_number] = self.kept
        return reply


def absent(message: Message) -> None:
    return AWAY


def not_a_number(message: Message) -> Message:
    reply = ScriptedSite("south").train(message, 1)
    state = messages.unpack(reply.content[messages.ARRAYS])
    state = {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    reply.content[messages.ARRAYS] = messages.pack(state)
    return reply


def unchanged(message: Message) -> Message:
    state = messages.unpack(message.content[messages.ARRAYS])
    return messages.update_reply(message, 10, {"loss": 0.5}, state)


def attendance(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "attendance.jsonl").read_text().splitlines()]


def outcomes(folder: Path, site: str, order: str = "train") -> list[str]:
    return [
        one["outcome"] for one in attendance(folder) if (one["site"], one["order"]) == (site, order)
    ]


def grid_of(*sites: ScriptedSite) -> InProcessGrid:
    return InProcessGrid(nodes(*sites))


# Answers that do not come


@pytest.mark.parametrize("how", [absent, own_words, not_a_number])
@pytest.mark.parametrize("kind", [TRAIN, EVALUATE])
def test_round_with_enough_answers_goes_on_without_the_others(tmp_path, how, kind):
    south = Troubled("south", trouble={(kind, 2): how})
    grid = grid_of(ScriptedSite("east"), ScriptedSite("north"), south)
    folder = run(tmp_path, grid, min_replies=2)
    lost = {absent: "absent", own_words: "failed", not_a_number: "unusable"}[how]
    order = "train" if kind == TRAIN else "val"
    assert outcomes(folder, "south", order) == ["used", lost, "used"]
    assert outcomes(folder, "north", order) == ["used"] * 3
    told = [one for one in attendance(folder) if one["outcome"] == lost]
    assert [(one["round"], bool(one["why"])) for one in told] == [(2, True)]
    assert summary_of(folder)["sites"]["south"]["rounds_lost"] == 1
    assert summary_of(folder)["sites"]["south"]["n_test"] == 5


def test_round_with_too_few_answers_is_repeated_and_keeps_those_that_came(tmp_path):
    tries = Counter()

    def late(message: Message) -> Message | None:
        tries["south"] += 1
        return ScriptedSite("south").train(message, 2) if tries["south"] == 3 else AWAY

    south = Troubled("south", trouble={(TRAIN, 2): late})
    grid = grid_of(ScriptedSite("north"), south)
    folder = run(tmp_path, grid, min_replies=2, round_retries=2, round_timeout=3.0)
    assert outcomes(folder, "south") == ["used"] * 3
    whole = run(tmp_path / "whole", grid_of(ScriptedSite("north"), ScriptedSite("south")))
    models = [(f / "model.safetensors").read_bytes() for f in (folder, whole)]
    assert models[0] == models[1]
    assert len([m for m in grid.requests if m.metadata.dst_node_id == 101]) == 8  # each once


def test_run_that_stays_without_enough_answers_ends_with_an_error(tmp_path):
    south = Troubled("south", trouble={(TRAIN, 2): own_words})
    grid = grid_of(ScriptedSite("north"), south)
    failure = fail(tmp_path, grid, SiteFailure, min_replies=2, round_retries=1)
    assert (failure["site"], failure["phase"]) == ("south", "train, round 2")
    asked = [m for m in grid.requests if m.metadata.dst_node_id == 108]
    assert [int(m.content[messages.CONFIG]["round"]) for m in asked] == [0, 1, 1, 2, 2]


def test_more_answers_than_sites_that_train_are_refused(tmp_path):
    sites = [ScriptedSite(name) for name in "abcd"]
    with pytest.raises(ConfigError, match="2 of 4 sites train in a round"):
        run(tmp_path, grid_of(*sites), min_replies=3, fraction=0.5)


def test_a_site_that_fails_at_hello_takes_no_part(tmp_path):
    south = Troubled("south", trouble={(HELLO, 0): own_words})
    grid = grid_of(ScriptedSite("east"), ScriptedSite("north"), south)
    folder = run(tmp_path, grid, min_replies=2)
    assert list(summary_of(folder)["sites"]) == ["east", "north"]


def test_grace_begins_when_enough_have_answered(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(exchange, "time", clock)
    south = Troubled("south", trouble={(TRAIN, 1): absent})
    grid = grid_of(ScriptedSite("east"), ScriptedSite("north"), south)
    run(tmp_path, grid, rounds=1, min_replies=2, grace_seconds=20.0, round_timeout=1000.0)
    assert 20 <= clock.now < 40


@pytest.mark.parametrize("there", [True, False], ids=["enough", "too few"])
def test_with_noise_at_the_server_no_sites_answer_decides_whose_are_waited_for(
    tmp_path, monkeypatch, there
):
    """One more answer would otherwise cut off, or spare asking again, another site's."""
    clock = Clock()
    monkeypatch.setattr(exchange, "time", clock)
    away = {(TRAIN, 1): absent}
    east = ScriptedSite("east") if there else Troubled("east", trouble=away)
    grid = grid_of(east, ScriptedSite("north"), Troubled("south", trouble=away))
    options = {"rounds": 1, "min_replies": 2, "grace_seconds": 20.0, "round_timeout": 1000.0}
    central = {"central_epsilon": 8.0, "evaluate_every": 1}
    if there:
        run(tmp_path, grid, **options, **central)
    else:
        fail(tmp_path, grid, SiteFailure, **options, **central)
    asked = [m for m in grid.requests if m.metadata.message_type == TRAIN]
    assert len(asked) == 3 and clock.now >= 1000


def test_site_at_work_on_two_orders_is_not_asked_and_its_late_answers_are_dropped(tmp_path, caplog):
    """South's answers of round 1 are there when the others train for round 2."""
    south = Troubled("south", trouble={(TRAIN, 1): absent, (EVALUATE, 1): absent})
    grid = grid_of(ScriptedSite("east"), ScriptedSite("north"), south)
    push = grid.push_messages

    def with_late(sent):
        first = (sent := list(sent))[0]
        of_round = int(first.content[messages.CONFIG]["round"])
        if first.metadata.message_type == TRAIN and of_round == 2:
            for message_id in [one for one, reply in grid.waiting.items() if reply is None]:
                asked = next(m for m in grid.requests if m.metadata.message_id == message_id)
                grid.waiting[message_id] = ScriptedSite("south")(asked)
        return push(sent)

    def pull(ids):
        there = [one for one in ids if grid.waiting.get(one)]
        return [grid.waiting.pop(one) for one in there]

    grid.push_messages, grid.pull_messages = with_late, pull
    with caplog.at_level("INFO", "flwr.fedscan"):
        folder = run(tmp_path, grid, min_replies=2, round_timeout=1000.0, grace_seconds=5.0)
    assert outcomes(folder, "south") == ["absent", "busy", "used"]
    assert outcomes(folder, "south", "val") == ["absent", "used", "used"]
    assert caplog.text.count("A late answer of site 'south' was dropped") == 2


# Who was away


@pytest.mark.parametrize("transport", ["float32", "float16", "int8"])
def test_site_that_was_away_gets_whole_weights_and_holds_what_the_others_hold(tmp_path, transport):
    south = Troubled("south", transport=transport, trouble={(TRAIN, 2): absent})
    others = [ScriptedSite(name, transport=transport) for name in ("east", "north")]
    grid = grid_of(*others, south)
    run(tmp_path, grid, min_replies=2, transport=transport)
    orders = [
        m
        for m in grid.requests
        if m.metadata.message_type == TRAIN and int(m.content[messages.CONFIG]["round"]) == 3
    ]
    sent = {m.metadata.dst_node_id: messages.unpack(m.content[messages.ARRAYS]) for m in orders}
    held = received(sent[115], {}) if transport == "int8" else received(sent[115])
    assert all(tensor.dtype == torch.float32 for tensor in held.values())
    if transport == "int8":
        assert {t.dtype for t in sent[115].values()} == {torch.float32}
        assert torch.int8 in {t.dtype for t in sent[101].values()}
        assert all(torch.equal(others[0].kept[name], tensor) for name, tensor in held.items())
    else:
        assert all(torch.equal(sent[101][name], sent[115][name]) for name in sent[101])


def test_site_that_is_not_connected_is_not_waited_for_and_may_come_back_as_another_node(tmp_path):
    grid = grid_of(*(ScriptedSite(name) for name in ("east", "north", "south")))
    push = grid.push_messages

    def leave_and_return(sent):
        found = push(sent)
        rounds = {int(m.content[messages.CONFIG]["round"]) for m in grid.requests}
        if max(rounds) == 1 and 115 in grid.nodes:
            grid.nodes.pop(115)
        if max(rounds) == 2:
            grid.nodes[999] = ScriptedSite("south")
        return found

    grid.push_messages = leave_and_return
    folder = run(tmp_path, grid, min_replies=2)
    assert outcomes(folder, "south")[0] == "used"
    assert outcomes(folder, "south")[1] == "absent"
    assert outcomes(folder, "south")[2] == "used"
    assert summary_of(folder)["sites"]["south"]["n_test"] == 5


# Answers that cannot be used


@pytest.mark.parametrize("how", [not_a_number, unchanged])
def test_site_with_three_unusable_answers_in_a_row_is_suspended_until_it_is_readmitted(
    tmp_path, how
):
    bad = {(TRAIN, number): how for number in (1, 2, 3)}
    south = Troubled("south", val_loss=[0.5] * 8, trouble=bad)
    others = [ScriptedSite(name, val_loss=[0.5] * 8) for name in ("east", "north")]
    grid = grid_of(*others, south)
    push = grid.push_messages

    def readmit_before_round_6(sent):
        found = push(sent)
        if any(int(m.content[messages.CONFIG]["round"]) == 5 for m in grid.requests[-3:]):
            note = tmp_path / "run" / "readmitted" / "south"
            note.parent.mkdir(exist_ok=True)
            note.touch()
        return found

    grid.push_messages = readmit_before_round_6
    folder = run(tmp_path, grid, rounds=7, min_replies=2)  # its evaluations are used all the time
    assert outcomes(folder, "south") == [
        *(["unusable"] * 3),
        *(["suspended"] * 2),
        *(["used"] * 2),
    ]
    assert "suspended" not in summary_of(folder)["sites"]["south"]


def test_three_updates_far_outside_the_others_suspend_a_site(tmp_path):
    drifts = {"a": 0.01, "b": 0.02, "c": 0.01, "loud": 10.0}
    sites = [ScriptedSite(n, drift=d, val_loss=[0.5] * 5) for n, d in drifts.items()]
    folder = run(tmp_path, grid_of(*sites), rounds=5)
    assert outcomes(folder, "loud") == [*(["unusable"] * 3), *(["suspended"] * 2)]
    assert summary_of(folder)["sites"]["loud"]["suspended"]


def test_run_all_of_whose_sites_are_suspended_ends_with_an_error(tmp_path):
    bad = {(TRAIN, number): unchanged for number in (1, 2, 3)}
    sites = [ScriptedSite("north", val_loss=[0.5] * 6), Troubled("south", trouble=bad)]
    folder = run(tmp_path, grid_of(*sites), rounds=3)
    assert outcomes(folder, "south") == ["unusable"] * 3
    alone = [Troubled("south", val_loss=[0.5] * 6, trouble=bad)]
    with pytest.raises(SiteFailure):
        run(tmp_path / "alone", grid_of(*alone), rounds=6, min_sites=1)


def test_update_far_outside_the_others_is_left_out(tmp_path):
    drifts = {"a": 0.01, "b": 0.02, "c": 0.01, "loud": 10.0}
    grid = grid_of(*(ScriptedSite(n, drift=d) for n, d in drifts.items()))
    folder = run(tmp_path, grid, rounds=1)
    assert outcomes(folder, "loud") == ["unusable"]
    quiet = grid_of(*(ScriptedSite(n, drift=d) for n, d in drifts.items() if n != "loud"))
    alone = run(tmp_path / "alone", quiet, rounds=1)
    found, wanted = (load_file(f / "model.safetensors") for f in (folder, alone))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_metric_of_a_foreign_name_costs_the_round(tmp_path):
    south = ScriptedSite("south", claims={"vote": 1.0})
    folder = run(tmp_path, grid_of(ScriptedSite("north"), south), rounds=1)
    assert outcomes(folder, "south") == ["unusable"]


# A part of the sites


def test_share_of_the_sites_is_drawn_by_name_and_round(tmp_path):
    config = run_config(tmp_path, fraction=0.5)
    names = tuple("abcdefgh")
    drawn = [in_training(number, names, config) for number in range(1, 40)]
    assert {len(one) for one in drawn} == {4}
    assert drawn == [in_training(number, names, config) for number in range(1, 40)]
    assert len(set(drawn)) > 10
    counts = Counter(name for one in drawn for name in one)
    assert min(counts.values()) > 8
    other = run_config(tmp_path, fraction=0.5, seed=1)
    assert [in_training(n, names, other) for n in range(1, 40)] != drawn


def test_only_sites_that_were_drawn_train_and_all_judge(tmp_path):
    sites = [ScriptedSite(name) for name in "abcd"]
    grid = grid_of(*sites)
    folder = run(tmp_path, grid, fraction=0.5)
    assert len(trained(grid)) == 3 * 2
    assert len(outcomes(folder, "a", "val")) == 3


# The end


def test_training_ends_where_validation_gets_no_better(tmp_path):
    losses = [0.5, 0.4, 0.45, 0.44, 0.3, 0.2]
    grid = grid_of(*(ScriptedSite(name, val_loss=losses) for name in ("north", "south")))
    folder = run(tmp_path, grid, rounds=6, patience=2)
    summary = summary_of(folder)
    assert (summary["rounds_done"], summary["best_round"], summary["rounds"]) == (4, 2, 6)
    accuracy = grid_of(*(ScriptedSite(name, val_loss=losses) for name in ("north", "south")))
    other = run(tmp_path / "b", accuracy, rounds=6, patience=3, stop_metric="balanced_accuracy")
    assert summary_of(other)["rounds_done"] == 4  # which is 0.5 in every round


def test_memory_of_the_server_is_written_down_after_each_round(tmp_path):
    folder = run(tmp_path, grid_of(ScriptedSite("north"), ScriptedSite("south")))
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row.name == SERVER_MEMORY]
    assert [row.round for row in rows] == [1, 2, 3]
    assert all(10 < row.value < 100_000 for row in rows)


# Going on


class Killed(BaseException):
    """Ends the server as a signal does."""


def killed_after(grid: InProcessGrid, orders: int) -> InProcessGrid:
    """Let the server die when it sends an order after so many."""
    push = grid.push_messages

    def dying(sent):
        if len(grid.requests) >= orders:
            raise Killed
        return push(sent)

    grid.push_messages = dying
    return grid


def without_time(folder: Path) -> list[tuple]:
    rows = read_rows(folder / "metrics.jsonl")
    return [
        (r.round, r.site, r.split, r.name, str(r.value), r.n)
        for r in rows
        if r.name != SERVER_MEMORY
    ]


@pytest.mark.parametrize("transport", ["float32", "int8"])
@pytest.mark.parametrize("orders", [2, 4, 6, 8, 10, 13])
def test_run_that_was_killed_at_any_order_ends_in_the_same_bytes(tmp_path, transport, orders):
    """A server that dies between two orders, and another that goes on where it ended."""

    def sites():
        return [Remembering(name, transport=transport) for name in ("north", "south")]

    whole = run(tmp_path / "whole", grid_of(*sites()), transport=transport)
    folder = tmp_path / "killed"
    first = killed_after(grid_of(*sites()), orders)
    with pytest.raises(Killed):
        run(folder, first, transport=transport)
    again = InProcessGrid(first.nodes)  # sites keep what they hold
    run(folder, again, transport=transport, resume=True)
    for name in ("model.safetensors", "model.json", "attendance.jsonl"):
        assert (folder / "run" / name).read_bytes() == (whole / name).read_bytes()
    assert without_time(folder / "run") == without_time(whole)
    one, other = summary_of(folder / "run"), summary_of(whole)
    assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert not (folder / "run" / "checkpoint").exists()


def test_full_disk_ends_the_run_and_loses_no_finished_round(tmp_path, monkeypatch):
    def sites():
        return grid_of(*(Remembering(name) for name in ("north", "south")))

    whole = run(tmp_path / "whole", sites())
    written, limit = [], 4  # files of checkpoints: the tensors and the sidecar of two rounds

    def full(path, data, **how):
        written.append(path)
        if len(written) > limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, data, **how)

    monkeypatch.setattr("common.checkpoints.write_atomically", full)
    monkeypatch.setattr("common.checkpoints.write_json", lambda p, v: full(p, json_bytes(v)))
    monkeypatch.setattr("common.tasks.classification.Classification.save", lambda *_, **__: None)
    grid = sites()
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "full", grid)
    monkeypatch.undo()
    monkeypatch.setattr(participants, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(exchange, "time", Clock())
    folder = run(tmp_path / "full", InProcessGrid(grid.nodes), resume=True)
    assert without_time(folder) == without_time(whole)
    assert (folder / "attendance.jsonl").read_bytes() == (whole / "attendance.jsonl").read_bytes()


def json_bytes(values: object) -> bytes:
    return (json.dumps(without_nan(values), indent=2) + "\n").encode()


def test_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", grid_of(ScriptedSite("north"), ScriptedSite("south")))
    jumps = random.Random(0)
    monkeypatch.setattr("time.time", lambda: jumps.uniform(0, 4e9))
    folder = run(tmp_path / "jumps", grid_of(ScriptedSite("north"), ScriptedSite("south")))
    assert without_time(folder) == without_time(whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "run.seed was 0, now 1"),
        ({"transport": "float16"}, "transport was 'float32', now 'float16'"),
    ],
)
def test_run_that_was_begun_otherwise_is_not_gone_on_with(tmp_path, changes, words):
    with pytest.raises(Killed):
        run(tmp_path, killed_after(grid_of(ScriptedSite("north"), ScriptedSite("south")), 5))
    with pytest.raises(ConfigError, match=words):
        run(tmp_path, grid_of(), resume=True, **changes)


def test_run_of_other_sources_is_not_gone_on_with(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        run(tmp_path, killed_after(grid_of(ScriptedSite("north"), ScriptedSite("south")), 5))
    monkeypatch.setattr("common.run_folder.source_hash", lambda: "other")
    with pytest.raises(ConfigError, match="sources have changed"):
        run(tmp_path, grid_of(), resume=True)


def test_other_sites_or_counts_are_not_gone_on_with(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, killed_after(grid_of(ScriptedSite("north"), ScriptedSite("south")), 5))
    other = grid_of(ScriptedSite("north"), ScriptedSite("south", n_train=11))
    with pytest.raises(ConfigError, match="site 'south' had n_train = 10, now 11"):
        run(tmp_path, other, resume=True)


def test_run_goes_on_without_a_site_that_is_away_and_it_takes_its_place_again(tmp_path):
    names = ("east", "north", "south")
    first = killed_after(grid_of(*(Remembering(name) for name in names)), 9)
    with pytest.raises(Killed):
        run(tmp_path, first, min_replies=2, min_sites=3, connect_timeout=0.3)
    again = InProcessGrid({number: first.nodes[number] for number in (101, 108)})
    push = again.push_messages

    def south_returns(sent):
        found = push(sent)
        if any(int(m.content[messages.CONFIG]["round"]) == 2 for m in again.requests):
            again.nodes[115] = first.nodes[115]
        return found

    again.push_messages = south_returns
    again_too = {"min_replies": 2, "min_sites": 3, "connect_timeout": 0.3}
    folder = run(tmp_path, again, resume=True, **again_too)
    assert outcomes(folder, "south") == ["used", "absent", "used"]
    assert list(summary_of(folder)["sites"]) == list(names)
    assert summary_of(folder)["sites"]["south"]["n_test"] == 5


def test_one_server_works_on_a_run(tmp_path):
    config = run_config(tmp_path)
    first = RunFolder(config, "run")
    with pytest.raises(ConfigError, match="another server is at work on this run"):
        RunFolder(config, "run")
    first.close()
    RunFolder(config, "run").close()


def test_run_that_stopped_in_validation_goes_on_whoever_has_come_back(tmp_path):
    """Who has judged a round's weights judges no others, as a real site would refuse."""
    judged: dict[tuple[str, int], str] = {}

    class Judging(Troubled):
        def __call__(self, message):
            order = message.content[messages.CONFIG]
            if message.metadata.message_type == EVALUATE and order["split"] == "val":
                now = fingerprint(messages.unpack(message.content[messages.ARRAYS]))
                assert judged.setdefault((self.name, int(order["round"])), now) == now
            return super().__call__(message)

    away = {(TRAIN, 2): absent, (EVALUATE, 2): absent}
    sites = [Judging("east"), Judging("north"), Judging("south", trouble=away)]
    first = grid_of(*sites)
    push = first.push_messages

    def dies_after_validation(sent):
        found = push(sent)
        first_order = first.requests[-1].content[messages.CONFIG]
        if (first_order["split"], int(first_order["round"])) == ("val", 2):
            raise Killed
        return found

    first.push_messages = dies_after_validation
    with pytest.raises(Killed):
        run(tmp_path, first, min_replies=2)
    sites[2].trouble = {}
    folder = run(tmp_path, InProcessGrid(first.nodes), min_replies=2, resume=True)
    assert outcomes(folder, "south") == ["used", "absent", "used"]
    assert outcomes(folder, "south", "val") == ["used"] * 3


def test_run_that_is_whole_or_was_not_begun_cannot_be_resumed_nor_begun_twice(tmp_path):
    with pytest.raises(ConfigError, match="no run was begun there"):
        run(tmp_path, grid_of(), resume=True)
    run(tmp_path, grid_of(ScriptedSite("north"), ScriptedSite("south")))
    with pytest.raises(ConfigError, match="this run is whole"):
        run(tmp_path, grid_of(), resume=True)
    with pytest.raises(ConfigError, match="a run of that name was begun there"):
        federate(grid_of(), run_config(tmp_path), run_id="run")
