"""How the sites' updates become one model, and what makes a strategy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_server_rounds import InProcessGrid, clients, run_config, simulated

import common.strategies
from common import messages
from common.averages import weighted_mean
from common.config.run_config import RunConfig
from common.errors import ConfigError
from common.evaluation.of_site import Evaluation
from common.fingerprint import fingerprint
from common.rounds import begin, run_rounds
from common.run_state import RunState, Update
from common.selection import Judged
from common.strategies.strategy import SiteUpdate, join, load_strategy, split, strategy_names
from common.tasks import generation_quality
from common.tasks.task import SiteContext, ValidationResult, load_task, read_run_config
from server.rounds import federate
from simulations.arms import train_in_place

FIRST = {"a": torch.tensor([1.0, 2.0]), "scalar": torch.tensor(3.0)}
FEDPROX = {"strategy.name": "fedprox", "strategy.mu": 0.1}


def moved(*steps: float, votes: tuple[float, ...] = ()) -> dict[str, SiteUpdate]:
    """Sites that have each gone a step in every weight."""
    return {
        f"site-{number}": SiteUpdate(
            {name: tensor + step for name, tensor in FIRST.items()},
            count=10,
            votes=votes[number] if votes else 1.0,
        )
        for number, step in enumerate(steps)
    }


def after(name: str, updates: dict[str, SiteUpdate], rate: float = 1.0) -> dict[str, torch.Tensor]:
    weights, _ = load_strategy(name).aggregate(
        updates, FIRST, {}, RunConfig(), participants=len(updates), rate=rate
    )
    return weights


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_mean_is_weighted_by_votes(name):
    found = after(name, moved(1.0, 3.0, votes=(30.0, 10.0)))
    torch.testing.assert_close(found["a"], FIRST["a"] + 1.5)


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_one_site_alone_is_its_own_mean_in_every_bit(name):
    updates = moved(0.1, votes=(17.0,))
    found = after(name, updates)
    assert all(torch.equal(found[n], t) for n, t in updates["site-0"].weights.items())


def test_server_goes_as_far_along_the_mean_as_its_learning_rate_says():
    found = after("fedavg", moved(1.0, 1.0, 2.0, 0.0), rate=2.0)
    torch.testing.assert_close(found["a"], FIRST["a"] + 2)
    assert found["a"].dtype == torch.float32
    assert found["scalar"].shape == ()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=6), st.integers(0, 2**32))
def test_mean_of_identical_updates_is_the_update(votes, seed):
    generator = torch.Generator().manual_seed(seed)
    state = {"a": torch.randn(3, 4, generator=generator), "b": torch.randn(2, generator=generator)}
    names = [str(number) for number in range(len(votes))]
    found = weighted_mean(dict.fromkeys(names, state), dict(zip(names, votes, strict=True)))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("task", "rate"), [("classification", 1.0), ("generation", math.sqrt(4))])
def test_a_generators_server_goes_root_k_times_as_far(task, rate):
    assert load_task(task).server_learning_rate(4) == rate


def test_weights_and_further_arrays_travel_together_and_come_apart_again():
    weights, arrays = split(join(FIRST, {"a": torch.zeros(2)}))
    assert weights == FIRST
    assert set(arrays) == {"a"}


@pytest.mark.parametrize(
    ("share", "travels"), [("both", [True, True]), ("generator", [True, False])]
)
def test_only_the_network_that_is_shared_travels(share, travels):
    config = RunConfig.from_flower({"task": "generation", "strategy.share": share})
    names = ("generator.synthesis.weight", "discriminator.dense.weight")
    assert [load_strategy("fedavg").shares(name, "body", config) for name in names] == travels


# What a run config may ask of a strategy


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"strategy.name": "fedsgd"}, "accepted is one of .*fedavg, .*fedprox"),
        (
            {"strategy.mu": 0.1},
            "unknown key 'strategy.mu'. .*'fedavg' has no options. "
            "With such an option: ditto, fedprox, moon",
        ),
        ({**FEDPROX, "strategy.options": "mu:1"}, r"has the options mu=\S+$"),
        ({"strategy.head-steps": 2}, "With such an option: fedrep"),
        ({**FEDPROX, "strategy.mue": 0.1}, "'strategy.mue'; did you mean 'strategy.mu'"),
        ({**FEDPROX, "strategy.options": "mu"}, "'mu' is no KEY=VALUE"),
        ({**FEDPROX, "strategy.mu": 0}, "strategy.mu = 0.0: accepted is a number above 0"),
        ({**FEDPROX, "strategy.server-learning-rate": 2.0}, "no effect with strategy 'fedprox'"),
        ({**FEDPROX, "task": "generation"}, "has no strategy 'fedprox': .* one of .*fedavg"),
        ({"strategy.name": "fedbn", "task": "generation"}, "has no strategy 'fedbn'"),
    ],
)
def test_options_that_a_strategy_does_not_have_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        read_run_config(values)


@pytest.mark.parametrize(
    "values",
    [FEDPROX, {"strategy.name": "fedprox", "strategy.options": "mu=0.1"}],
    ids=["a key of its own", "in one text"],
)
def test_options_of_a_strategy_are_told_by_keys_or_in_one_text(values):
    config = read_run_config(values)
    assert config.strategy.options == "mu=0.1"
    assert load_strategy("fedprox").options(config).mu == 0.1


def test_options_that_say_what_is_usual_are_as_if_left_out():
    assert read_run_config({"strategy.name": "fedprox", "strategy.mu": 0.01}) == read_run_config(
        {"strategy.name": "fedprox"}
    )


# A strategy is one file

MEDIAN = """
import torch

from common.strategies.strategy import Strategy
from common.training.hooks import Hooks


class Counter(Hooks):
    def __init__(self, config, arrays, private):
        self.seen = private.get("rounds", torch.zeros(()))
        self.told = arrays["rounds"]

    def after_round(self, trained):
        assert torch.equal(self.told, self.seen)
        return {"rounds": self.seen + 1}, {"rounds": self.seen + 1}


class Median(Strategy):
    def hooks(self, config, arrays, private):
        return Counter(config, arrays, private)

    def first_state(self, weights, config, sites):
        return {"rounds": torch.zeros(())}

    def arrays(self, state):
        return state

    def aggregate(self, updates, weights, state, config, *, participants, rate):
        sites = [update.weights for update in updates.values()]
        median = {n: torch.stack([site[n] for site in sites]).median(0).values for n in weights}
        return median, dict(next(iter(updates.values())).arrays)


STRATEGY = Median()
"""


@pytest.fixture
def median(tmp_path, monkeypatch) -> str:
    """Put a strategy of one's own into a folder of strategies."""
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "ownmedian.py").write_text(MEDIAN)
    own = [*common.strategies.__path__, str(tmp_path / "strategies")]
    monkeypatch.setattr(common.strategies, "__path__", own)
    return "ownmedian"


def test_one_file_is_a_strategy(median, tiny_cohort: Path, session_cache, tmp_path, monkeypatch):
    """It trains three sites, with an array that travels both ways and a state of the sites' own."""
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    assert median in strategy_names()
    values = {
        **{"run.rounds": 2, "training.local-steps": 1, "training.batch-size": 4, "data.size": 16},
        "strategy.name": median,
    }
    config = read_run_config(values)
    rows = train_in_place(
        {"a": ["north"], "b": ["island"], "c": ["north", "island"]},
        {site: tiny_cohort / site for site in ("island", "north")},
        config,
        place=SiteContext("all", ("island", "north"), torch.device("cpu")),
        folder=tmp_path / "all",
        records=(tmp_path / "records", Path("run")),
    )
    assert {row["tested_on"] for row in rows if row["split"] == "test"} >= {"island", "north"}
    assert (tmp_path / "all" / "model.safetensors").is_file()


def test_a_strategy_that_would_keep_nothing_of_a_network_is_refused():
    config = read_run_config({"strategy.name": "fedbn", "model.classifier": "gan-features"})
    place = SiteContext("", ("north",), torch.device("cpu"))
    with pytest.raises(ConfigError, match="'fedbn' keeps nothing of this network at the sites"):
        begin(config, place)


@pytest.mark.usefixtures("in_simulation", "one_thread", "task_identity")
@pytest.mark.parametrize("transport", ["float32", "int8"])
def test_further_arrays_of_a_strategy_travel_in_messages(
    median, transport, tiny_cohort: Path, session_cache, tmp_path, monkeypatch
):
    """Each site finds what the server has made of its last answer: the strategy itself asserts."""
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    config = run_config(
        tmp_path, rounds=2, name=median, transport=transport, cohort_dir=str(tiny_cohort)
    )
    grid = InProcessGrid(clients(simulated(), config)[0])
    federate(grid, config, run_id="run")
    orders = [m for m in grid.requests if m.metadata.message_type == messages.TRAIN]
    sent = [messages.unpack(order.content[messages.ARRAYS]) for order in orders]
    assert all("strategy/rounds" in weights for weights in sent)
    assert (tmp_path / "run" / "model.safetensors").is_file()
    if transport == "float32":  # a site approves what it gets: weights and further arrays
        told = json.loads((tmp_path / "run" / "manifest.json").read_text())["first_weights"]
        assert told == fingerprint(messages.unpack(orders[0].content[messages.ARRAYS]))


GENERATION = {
    "task": "generation",
    "model.gan-changes": "resolution=16 channel-max=8 z-dim=8 w-dim=8 label-kinds=sex,site",
    "strategy.share": "generator",
}


@pytest.mark.usefixtures("in_simulation", "one_thread", "task_identity")
@pytest.mark.parametrize(
    "values",
    [GENERATION, {**GENERATION, "strategy.share": "both", "strategy.name": "fedadam"}],
    ids=["private discriminators", "fedadam"],
)
def test_generators_learn_the_same_bits_in_one_process_as_by_messages(
    values, tiny_cohort: Path, session_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    pixels = SimpleNamespace(
        name="pixels",
        hash="0" * 64,
        features=lambda images: np.asarray(images, float).reshape(len(images), -1)[:, 100:112],
        identity=lambda: {"name": "pixels", "hash": "0" * 64},
    )
    monkeypatch.setattr(generation_quality, "_extractor", lambda name: pixels)
    config = read_run_config(
        {
            **{"run.rounds": 2, "run.evaluate-every": 1, "run.output-dir": str(tmp_path)},
            **{"training.local-steps": 2, "training.batch-size": 4},
            "data.cohort-dir": str(tiny_cohort),
            **values,
        }
    )
    federate(InProcessGrid(clients(simulated(), config)[0]), config, run_id="run")
    sites = ("island", "north")
    train_in_place(
        {site: [site] for site in sites},
        {site: tiny_cohort / site for site in sites},
        config,
        place=SiteContext("all", sites, torch.device("cpu")),
        folder=tmp_path / "here",
        records=(tmp_path / "own records", Path("here")),
    )
    (one,), (other,) = (list((tmp_path / f).glob("*.safetensors")) for f in ("run", "here"))
    assert one.read_bytes() == other.read_bytes()


# The loop of rounds, with sites that do next to nothing


class StubSites:
    """Two sites that move every weight by a step of their own; west's second answer is lost."""

    names = ("east", "west")

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def train(self, number, weights, state):
        self.asked.append(("train", number))
        present = self.names if number != 2 else ("east",)
        return {
            site: Update(10, {"loss": 1.0}, {n: t + step for n, t in weights.items()})
            for site, step in zip(self.names, (1.0, 3.0), strict=True)
            if site in present
        }

    def evaluate(self, number, released, split, state):
        self.asked.append((split, number))
        loss = abs(float(released["w"]) - 3.0)  # best after the second round
        found = {site: Evaluation(5, {"loss": loss}) for site in self.names}
        return Judged(ValidationResult(loss, {}, ""), found)

    def record(self, number, split, measured):
        pass

    def settle(self, number, used, refused, state):
        pass

    def keep(self, state):
        pass


@pytest.fixture
def stub_task(monkeypatch) -> list[int]:
    """A task of one weight; the rounds whose release it was told to save."""
    saved: list[int] = []
    task = SimpleNamespace(
        statistics=(),
        aligns=False,
        release=lambda previous, shared, config, **named: dict(shared),
        save=lambda *arguments, round_number, place: saved.append(round_number),
        illustrate=lambda *arguments, **named: None,
        judge=lambda found, config: ValidationResult(
            sum(one.metrics["loss"] for one in found.values()), {}, ""
        ),
        server_learning_rate=lambda participants: 1.0,
    )
    monkeypatch.setattr("common.rounds.load_task", lambda name: task)
    return saved


def start() -> RunState:
    return RunState({"w": torch.zeros(1)}, {"w": torch.zeros(1)}, {})


HERE = SiteContext("server", ("east", "west"), torch.device("cpu"))


def test_rounds_go_on_from_where_sites_have_brought_the_weights(stub_task, tmp_path):
    config, sites, state = RunConfig.from_flower({"run.rounds": 3}), StubSites(), start()
    result = run_rounds(state, config, sites, place=HERE, folder=tmp_path)
    assert float(state.shared["w"]) == 2.0 + 1.0 + 2.0  # the second round is east's alone
    assert (result.round, result.selected_by) == (2, "validation")
    assert sites.asked[-1] == ("test", 2)
    assert stub_task == [1, 2]  # each as soon as it is the best


def test_further_arrays_of_a_site_are_bounded_as_its_weights_are(stub_task, tmp_path):
    """West's variates move by 3 and east's by 0.1: of those at most 10 times as far counts."""
    config = RunConfig.from_flower({"run.rounds": 1, "strategy.name": "scaffold"})
    sites, state = StubSites(), start()
    sites.train = lambda number, weights, state: {
        site: Update(10, {"loss": 1.0}, {"w": weights["w"] + 1, "strategy/w": torch.full((1,), by)})
        for site, by in (("east", 0.1), ("west", 3.0))
    }
    state.strategy = {"w": torch.zeros(1)}
    run_rounds(state, config, sites, place=HERE, folder=tmp_path)
    assert float(state.strategy["w"]) == pytest.approx((0.1 + 1.0) / 2)
    assert state.incidents.of("west")["rounds_norm_bounded"] == 1


def test_a_state_is_all_that_a_run_needs_to_go_on(stub_task, tmp_path):
    whole, parts = start(), start()
    config = RunConfig.from_flower({"run.rounds": 3})
    expected = run_rounds(whole, config, StubSites(), place=HERE, folder=tmp_path)
    early = config.replace({"run.rounds": 1})
    run_rounds(parts, early, StubSites(), place=HERE, folder=tmp_path)
    sites = StubSites()
    result = run_rounds(parts, config, sites, place=HERE, folder=tmp_path)
    assert sites.asked[0] == ("train", 2)
    assert result == expected
    assert parts == whole
