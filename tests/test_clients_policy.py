"""A site's policy: which orders it follows, whatever the server wants of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from test_clients_local import TINY, Site

from clients import local
from clients.app import app
from clients.orders import require_explained
from clients.policy import SIMULATED, SitePolicy
from common import messages
from common.config.run_config import RunConfig, known_keys
from common.errors import ConfigError, FedscanError
from common.fingerprint import fingerprint
from common.messages import EVALUATE, HELLO, TRAIN
from simulations.plan import load_plan
from simulations.preset_files import presets

pytestmark = pytest.mark.usefixtures("one_thread", "task_identity")


@pytest.fixture(autouse=True)
def folders(monkeypatch, session_cache, tmp_path) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    local._remembered.cache_clear()


def run(**changes: object) -> RunConfig:
    keys = {key.rpartition(".")[2].replace("-", "_"): key for key in known_keys()}
    return RunConfig.from_flower(TINY | {keys[name]: value for name, value in changes.items()})


@pytest.fixture
def site(tiny_cohort) -> Site:
    return Site(run(), tiny_cohort)


def begin(site: Site) -> None:
    """Ask the site who it is, as every server does first."""
    context = Context(7, 5, site.node, RecordDict(), site.config.to_flower())
    assert messages.failure_in(app(messages.request(HELLO, 5), context)) is None


def refusal(site: Site, *order) -> str:
    failure = messages.failure_in(site.ask(*order))
    assert failure is not None
    assert failure.site == "north"
    return failure.error


# The run's configuration


@pytest.mark.parametrize("preset", presets())
def test_default_policy_admits_every_preset_but_for_what_is_for_simulations(preset):
    plan = load_plan(preset, {}, {})
    for stage in plan.stages():
        for cell in stage:
            config = plan.config(cell, {})
            simulated = {"trouble.*": config.trouble.is_on, "data.classes": config.data.classes}
            found = [one.split()[0] for one in SitePolicy().objections(config)]
            assert found == [key for key, on in simulated.items() if on]


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_default_policy_admits_the_default_runs(task):
    assert SitePolicy().objections(RunConfig.from_flower({"task": task})) == []


OUT_OF_BOUNDS = [
    ({"training.batch-size": 3}, "training.batch-size = 3, accepted is 4 or more (min-batch-size)"),
    (
        {"training.local-steps": 1},
        "training.local-steps = 1, accepted is 2 or more (min-local-steps)",
    ),
    ({"training.learning-rate": 0.02}, "training.learning-rate = 0.02"),
    ({"training.learning-rate": 1e-7}, "training.learning-rate = 1e-07"),
    ({"training.augment": "none"}, "training.augment is off (require-augmentation)"),
    ({"run.rounds": 1001}, "run.rounds = 1001, accepted is 1000 or fewer"),
    ({"task": "generation", "training.batch-size": 2}, "training.batch-size = 2"),
    ({"strategy.name": "fedprox", "strategy.mu": 1e12}, "strategy.mu = 1e+12"),
    ({"strategy.name": "moon", "strategy.mu": 2}, "strategy.mu = 2"),
    ({"strategy.name": "coral", "strategy.moment-weight": 50}, "strategy.moment-weight = 50"),
    ({"strategy.name": "dann", "strategy.domain-weight": 1.5}, "strategy.domain-weight = 1.5"),
    (  # all but one of the round's steps are of the head, which does not leave
        {"strategy.name": "fedrep", "strategy.head-steps": 39},
        "training.local-steps = 1, accepted is 2 or more (min-local-steps)",
    ),
    ({"trouble.label-noise": 0.1}, "trouble.* is for simulations"),
    ({"task": "generation", "model.gan-changes": "augment=off"}, "augment = off"),
    (
        {"task": "generation", "model.gan-changes": "augment=fixed augment-p=1e-9"},
        "augment = fixed",
    ),
    ({"task": "generation", "model.gan-changes": "augment-steps=b"}, "augment-steps = b"),
    ({"task": "generation", "model.gan-changes": "ada-target=1"}, "ada-target = 1"),
    ({"task": "generation", "model.gan-changes": "ada-kimg=100000"}, "ada-kimg = 100000"),
    ({"task": "generation", "model.gan-changes": "ada-interval=10000"}, "ada-interval = 10000"),
    (
        {"task": "generation", "model.gan-changes": "generator-learning-rate=0.1"},
        "generator-learning-rate = 0.1",
    ),
]


@pytest.mark.parametrize(("changes", "said"), OUT_OF_BOUNDS, ids=lambda value: str(value)[:40])
def test_default_policy_objects_to_what_gives_single_images_away(changes, said):
    (objection,) = SitePolicy().objections(RunConfig.from_flower(changes))
    assert objection.startswith(said)


@pytest.mark.parametrize("kind", [HELLO, TRAIN, EVALUATE])
def test_site_answers_nothing_in_a_run_that_its_policy_refuses(kind, tiny_cohort, tmp_path):
    site = Site(run(batch_size=1, local_steps=1, augment="none"), tiny_cohort)
    error = refusal(site, kind, 1, "val", site.start)
    assert "its policy refuses this run" in error
    assert all(
        key in error
        for key in ("training.batch-size = 1", "training.local-steps = 1", "augment is off")
    )
    assert not (tmp_path / "records").exists()


def test_researcher_bounds_himself_in_nothing_in_a_simulation():
    config = run(batch_size=1, local_steps=1, augment="none", learning_rate=1.0)
    assert SIMULATED.objections(config) == []


# Its file


def policy_file(monkeypatch, folder: Path, text: str) -> None:
    path = folder / "secret.toml"
    path.write_text(text)
    monkeypatch.setenv("FEDSCAN_POLICY", str(path))


@pytest.mark.parametrize("simulated", [True, False])
def test_file_of_the_site_decides_in_a_simulation_as_well(simulated, monkeypatch, tmp_path):
    policy_file(monkeypatch, tmp_path, "min-batch-size = 1\nmin-learning-rate = 0\n")
    found = SitePolicy.of_site(simulated=simulated)
    assert (found.min_batch_size, found.min_learning_rate) == (1, 0.0)
    assert found.min_participants == 10  # the default of a deployed site


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min-batch-size = 0", "min-batch-size = 0: accepted is a whole number from 1"),
        ("min-batches = 2", "unknown key 'min-batches'; did you mean 'min-batch-size'?"),
        ("max-learning-rate = nan", "max-learning-rate = nan: accepted is a number above 0"),
        ("approved-weights = ['abc']", "accepted is a list of texts of 64 hexadecimal digits"),
        ("[[[", "the site's policy cannot be read"),
        ("\xff", "the site's policy cannot be read"),
        ("a = 1\n" * 100_000, "the site's policy cannot be read"),
    ],
    ids=["range", "key", "nan", "fingerprint", "no TOML", "no text", "long"],
)
def test_policy_that_cannot_be_used_is_told_without_its_path(text, said, monkeypatch, tmp_path):
    (tmp_path / "secret.toml").write_bytes(text.encode("latin-1"))
    monkeypatch.setenv("FEDSCAN_POLICY", str(tmp_path / "secret.toml"))
    with pytest.raises(ConfigError, match=r"secret\.toml") as caught:
        SitePolicy.of_site(simulated=False)
    assert said in caught.value.public
    assert "secret" not in caught.value.public


def test_policy_that_is_missing_is_no_permission(monkeypatch, tmp_path, site):
    monkeypatch.setenv("FEDSCAN_POLICY", str(tmp_path / "none.toml"))
    assert refusal(site, HELLO, 0, "", site.start) == "the site's policy cannot be read"


# The order of rounds and their weights


def moved(weights: dict, by: float) -> dict:
    return {name: tensor + by for name, tensor in weights.items()}


@pytest.mark.parametrize("transport", ["float32", "float16", "int8"])
def test_first_weights_are_those_of_the_seed(transport, tiny_cohort):
    site = Site(run(transport=transport), tiny_cohort)
    site.train(1, site.start)  # is answered
    other = Site(run(transport=transport, seed=1), tiny_cohort)
    site.state.remove()
    begin(site)
    site.held.clear()
    error = refusal(site, TRAIN, 1, "train", other.start)
    assert "the first weights are not those of the run's seed" in error


def test_one_entry_is_enough_to_make_first_weights_foreign(site):
    begin(site)
    weights = {name: tensor.clone() for name, tensor in site.start.items()}
    name = next(iter(weights))
    weights[name].view(-1)[0] += 0.01
    assert "the first weights" in refusal(site, TRAIN, 1, "train", weights)


@pytest.mark.parametrize("transport", ["float32", "float16"])
def test_first_weights_that_the_site_approves_are_trained_on(
    transport, tiny_cohort, monkeypatch, tmp_path
):
    site = Site(run(transport=transport), tiny_cohort)
    weights = moved(site.start, 0.5)
    approved = f"approved-weights = ['{fingerprint(weights)}']\n"
    policy_file(monkeypatch, tmp_path, approved)
    site.train(1, weights)
    site.state.remove()
    policy_file(monkeypatch, tmp_path, "")
    begin(site)
    error = refusal(site, TRAIN, 1, "train", weights)
    assert f"fingerprint {fingerprint(weights)} is not among" in error  # what the site would add


@pytest.mark.parametrize("transport", ["float32", "int8"])
def test_weights_that_moved_farther_than_updates_explain_are_refused(transport, tiny_cohort):
    site = Site(run(transport=transport), tiny_cohort)
    update = site.train(1, site.start)
    error = refusal(site, TRAIN, 2, "train", moved(site.start, 1.0))
    assert "has moved" in error
    assert "(max-movement)" in error
    site.held.pop(2, None)
    site.train(2, site.after(site.start, update))  # the honest ones are still taken


def test_movement_is_bounded_in_each_tensor(site):
    weights = site.after(site.start, site.train(1, site.start))
    smallest = min(weights, key=lambda name: weights[name].numel())
    weights[smallest] = weights[smallest] + 1.0
    assert f"{smallest} has moved" in refusal(site, TRAIN, 2, "train", weights)


def test_tensor_that_the_site_does_not_train_may_not_be_moved():
    before = {"frozen": torch.ones(100), "trained": torch.ones(100)}
    largest = {"frozen": torch.zeros(()), "trained": torch.tensor(1.0)}
    moved_by = lambda name, by: before | {name: before[name] + by}  # noqa: E731
    for name, by in (("trained", 0.3), ("frozen", 1e-4)):  # the latter is an average's rounding
        require_explained("north", moved_by(name, by), before, largest, 4.0)
    with pytest.raises(FedscanError, match="frozen has moved"):
        require_explained("north", moved_by("frozen", 0.02), before, largest, 4.0)
    require_explained("north", moved_by("frozen", 5.0), before, largest, 4.0, exempt=["frozen"])


def test_large_further_arrays_of_a_strategy_do_not_let_weights_move_farther():
    before = {"w": torch.ones(100), "strategy/steps": torch.zeros(())}
    largest = {"w": torch.tensor(1.0), "strategy/steps": torch.tensor(1000.0)}
    with pytest.raises(FedscanError, match="w has moved"):
        require_explained("north", before | {"w": before["w"] + 1}, before, largest, 4.0)
    moved_array = before | {"strategy/steps": torch.tensor(1000.0)}
    require_explained("north", moved_array, before, largest, 4.0)


def test_model_that_is_validated_is_one_that_the_run_explains(site):
    weights = site.after(site.start, site.train(1, site.start))
    assert "has moved" in refusal(site, EVALUATE, 1, "val", moved(weights, 1.0))
    assert messages.failure_in(site.ask(EVALUATE, 1, "val", weights)) is None


def test_site_that_was_away_validates_a_model_that_the_rounds_explain_and_no_other(site):
    begin(site)
    far = refusal(site, EVALUATE, 1, "val", moved(site.start, 100.0))
    assert "as far as the site accepts" in far
    assert messages.failure_in(site.ask(EVALUATE, 1, "val", moved(site.start, 0.01))) is None


def test_model_that_is_tested_was_validated(site):
    weights = site.after(site.start, site.train(1, site.start))
    site.ask(EVALUATE, 1, "val", weights)
    said = "not the one that was validated in round 1"
    assert said in refusal(site, EVALUATE, 1, "test", moved(weights, 1e-5))
    assert messages.failure_in(site.ask(EVALUATE, 1, "test", weights)) is None


def test_site_that_was_away_from_validation_tests_a_model_that_the_rounds_explain(site):
    weights = site.after(site.start, site.train(1, site.start))
    assert "as far as the site" in refusal(site, EVALUATE, 1, "test", moved(weights, 100.0))
    assert messages.failure_in(site.ask(EVALUATE, 1, "test", weights)) is None


def test_the_same_order_is_one_to_the_same_sites(site, monkeypatch):
    site.train(1, site.start)
    site.held.clear()
    monkeypatch.setattr("test_clients_local.SITES", ("island", "north", "south"))
    assert "was answered before" in refusal(site, TRAIN, 1, "train", site.start)


def test_configuration_of_a_run_stays_as_it_was_at_first(tiny_cohort):
    site = Site(run(), tiny_cohort)
    begin(site)
    site.config = run(learning_rate=1e-4)
    error = refusal(site, TRAIN, 1, "train", site.start)
    assert "the run's configuration has changed since the run began" in error


def test_batches_do_not_follow_from_what_the_server_knows(site, monkeypatch, tmp_path):
    first = site.train(1, site.start)
    site.state.remove()
    again = site.train(1, site.start)  # the site's secret is the same in every run
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    site.state.remove()
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "another hospital's"))
    other = Site(site.config, Path(site.node["data-dir"]).parent)
    update = other.train(1, site.start)
    assert not all(torch.equal(tensor, update[name]) for name, tensor in first.items())


def test_site_with_fewer_people_than_a_batch_has_images_takes_no_part(site, monkeypatch, tmp_path):
    policy_file(monkeypatch, tmp_path, "min-batch-size = 7\n")
    site.config = run(batch_size=8)
    error = refusal(site, HELLO, 0, "", site.start)
    assert "fewer than 7 participants to train on" in error


def test_round_is_not_answered_again_with_other_weights(site):
    weights = site.after(site.start, site.train(1, site.start))
    second = site.train(2, weights)
    other = {name: tensor + 1e-5 for name, tensor in weights.items()}
    said = "train, round 2 was answered before, with other weights"
    assert said in refusal(site, TRAIN, 2, "train", other)
    again = site.train(2, weights)  # as after a crash: the same answer tells nothing new
    assert all(torch.equal(tensor, again[name]) for name, tensor in second.items())


def test_model_of_a_round_is_judged_once(site):
    weights = site.after(site.start, site.train(1, site.start))
    assert messages.failure_in(site.ask(EVALUATE, 1, "val", weights)) is None
    said = "val, round 1 was answered before"
    assert said in refusal(site, EVALUATE, 1, "val", moved(weights, 1e-5))


@pytest.mark.parametrize("number", [0, -1, 4])
@pytest.mark.parametrize(("kind", "split"), [(TRAIN, "train"), (EVALUATE, "val")])
def test_round_that_the_run_does_not_have_is_refused(site, kind, split, number):
    site.train(1, site.start)
    site.held.clear()
    error = refusal(site, kind, number, split, site.start)
    assert f"round {number} of a run of 3 rounds is refused" in error


def test_run_that_has_ended_is_not_begun_again(site):
    weights = site.after(site.start, site.train(1, site.start))
    for split in ("val", "test"):
        assert messages.failure_in(site.ask(EVALUATE, 1, split, weights)) is None
    for order in ((TRAIN, 1, "train"), (EVALUATE, 1, "val"), (EVALUATE, 1, "test")):
        assert "run 7 has ended with its test" in refusal(site, *order, site.start)


def test_test_that_is_asked_for_again_gets_the_answer_that_it_got(site, monkeypatch):
    """As after a crash of the server, to which the site says once more who it is."""
    weights = site.after(site.start, site.train(1, site.start))
    site.ask(EVALUATE, 1, "val", weights)
    first = site.ask(EVALUATE, 1, "test", weights)
    monkeypatch.setattr("clients.local.judge_at_site", None)
    begin(site)
    again = site.ask(EVALUATE, 1, "test", weights)
    assert again.content.object_id == first.content.object_id
    assert not site.state.folder.exists()


# What is told of few people


def numbers(site: Site, *order) -> dict[str, float]:
    return dict(site.ask(*order).content[messages.METRICS])


def test_few_people_are_trained_on_and_nothing_is_told_of_them(site):
    site.train(1, site.start)
    site.state.remove()
    begin(site)
    told = numbers(site, TRAIN, 1, "train", site.start)
    assert told == {messages.WEIGHT: 6, "images-seen": 8.0}


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_on_few_people_is_withheld(site, split):
    weights = site.after(site.start, site.train(1, site.start))
    for asked in ("val", split):
        reply = site.ask(EVALUATE, 1, asked, weights)
    assert dict(reply.content[messages.METRICS]) == {messages.WEIGHT: 0}
    assert dict(reply.content[messages.WORDS]) == {"withheld": "fewer than 10 participants"}
    assert set(reply.content) == {messages.METRICS, messages.WORDS}
