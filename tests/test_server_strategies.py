"""How the sites' updates become one model: how far the server goes along their average."""

from __future__ import annotations

import math

import pytest
import torch
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg, FedProx

from common import messages
from common.config.run_config import RunConfig
from common.errors import ConfigError
from server.strategies import make_strategy

pytestmark = pytest.mark.usefixtures("task_identity")
FIRST = {"a": torch.tensor([1.0, 2.0]), "scalar": torch.tensor(3.0)}


def replies(*steps: float) -> list[Message]:
    """Sites that have each gone a step in every weight, one vote each."""
    found = []
    for number, step in enumerate(steps):
        request = messages.request(messages.TRAIN, 5 + number)
        update = {name: tensor + step for name, tensor in FIRST.items()}
        reply = messages.update_reply(request, 10, {"loss": 1.0}, update)
        reply.content[messages.METRICS][messages.VOTE] = 1.0
        found.append(reply)
    return found


def after(config: RunConfig, *rounds: tuple[float, ...]) -> dict[str, torch.Tensor]:
    strategy = make_strategy(config, FIRST, participants=len(rounds[0]))
    for number, steps in enumerate(rounds, start=1):
        averaged, _ = strategy.aggregate_train(number, replies(*steps))
    return messages.unpack(averaged)


def test_a_classifier_goes_to_the_average():
    assert type(make_strategy(RunConfig(), FIRST, participants=4)) is FedAvg
    prox = RunConfig(strategy="fedprox", proximal_mu=0.1)
    assert type(make_strategy(prox, FIRST, participants=4)) is FedProx
    assert after(RunConfig(), (1.0, 3.0))["scalar"] == 5.0


def test_a_generator_goes_root_k_times_as_far():
    found = after(RunConfig(task="generation"), (1.0, 1.0, 2.0, 0.0))
    torch.testing.assert_close(found["a"], FIRST["a"] + math.sqrt(4))
    assert found["a"].dtype == torch.float32
    assert found["scalar"].shape == ()


def test_one_site_alone_and_a_rate_of_one_are_plain_averaging():
    assert type(make_strategy(RunConfig(task="generation"), FIRST, participants=1)) is FedAvg
    config = RunConfig(task="generation", server_learning_rate=1.0)
    torch.testing.assert_close(after(config, (1.0, 3.0))["a"], FIRST["a"] + 2)


def test_momentum_goes_on_where_the_last_round_went():
    config = RunConfig(server_learning_rate=1.0, server_momentum=0.5)
    # The second round's average is that of sites which had come back to the first weights.
    found = after(config, (1.0, 1.0), (1.0, 1.0))
    torch.testing.assert_close(found["a"], FIRST["a"] + 1 + 0.5)


@pytest.mark.parametrize("option", [{"server_learning_rate": 2.0}, {"server_momentum": 0.5}])
def test_fedprox_has_no_step_of_the_server(option):
    values = {key.replace("_", "-"): value for key, value in option.items()}
    with pytest.raises(ConfigError, match="fedavg"):
        RunConfig.from_flower({"strategy": "fedprox", "strategy.mu": 0.1, **values})
