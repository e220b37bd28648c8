"""Strategies against the drift of sites that differ, on quadratics solved by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from quadratic import START, Federation, QuadraticSite, rounds
from torch import nn

from common.config.run_config import RunConfig
from common.strategies.moon import ContrastiveTerm
from common.strategies.strategy import SiteUpdate, load_strategy
from common.tasks.task import read_run_config
from common.training.hooks import Batch

FAR = (QuadraticSite(1.0, 1.0, steps=5, images=10), QuadraticSite(2.0, 3.0, steps=5, images=30))
OPTIMUM = (10 * 1 * 1 + 30 * 2 * 3) / (10 * 1 + 30 * 2)  # of Σ p_i F_i


def far() -> list[QuadraticSite]:
    return [copy.deepcopy(site) for site in FAR]


# SCAFFOLD


def test_scaffold_s_second_round_is_corrected_by_the_gradients_of_the_first():
    """From 0, one site has gradients -1 and then -(1 - 0.1 · 1), the other -6 and -2 (3 - 0.6)."""
    sites = [QuadraticSite(1, 1, steps=2), QuadraticSite(2, 3, steps=2)]
    federation = Federation("scaffold", *sites)
    x = federation.round()["body.weight"]
    assert x == pytest.approx((0.1 * (1 + 0.9) + 0.1 * (6 + 4.8)) / 2)
    own = [-(1 + 0.9) / 2, -(6 + 4.8) / 2]
    c = sum(own) / 2
    assert float(federation.state["body.weight"]) == pytest.approx(c)
    ends = []
    for site, c_i in zip(sites, own, strict=True):
        y = x
        for _ in range(2):
            y -= 0.1 * (site.a * (y - site.b) - c_i + c)
        ends.append(y)
    assert federation.round()["body.weight"] == pytest.approx(sum(ends) / 2)


def test_scaffold_keeps_what_option_2_of_the_paper_gives_for_plain_gradient_descent():
    federation = Federation("scaffold", *far())
    for _ in range(2):
        federation.round()
    site, name = federation.sites["site-1"], "body.weight"
    c, before, x = federation.state[name], site.kept[name], federation.shared[name]
    site.begin(federation.config, federation.shared, federation.state)
    done = federation.strategy.train(site)
    torch.testing.assert_close(
        done.private[name], before - c + (x - done.parameters[name]) / (site.steps * site.rate)
    )
    torch.testing.assert_close(done.arrays[name], c + done.private[name] - before)


def test_scaffold_reaches_the_optimum_of_the_weighted_loss_where_fedavg_does_not():
    assert rounds("scaffold", *far(), number=60)[-1] == pytest.approx(OPTIMUM, abs=1e-4)
    assert abs(rounds("fedavg", *far(), number=60)[-1] - OPTIMUM) > 0.02


@pytest.mark.parametrize("count", [1, 2])
def test_scaffold_is_fedavg_for_sites_that_are_alike(count):
    sites = [QuadraticSite(2.0, 3.0, steps=4) for _ in range(count)]
    assert rounds("scaffold", *copy.deepcopy(sites)) == pytest.approx(rounds("fedavg", *sites))


def test_scaffold_s_server_moves_its_variate_by_the_part_of_the_sites_that_have_answered():
    update = SiteUpdate(START, 10, 10.0, {"w": torch.tensor(4.0)})
    _, state = load_strategy("scaffold").aggregate(
        {"a": update}, START, {"w": torch.tensor(2.0)}, RunConfig(), participants=4, rate=1.0
    )
    assert float(state["w"]) == 2.5


# FedNova


def test_fednova_divides_each_update_by_its_steps():
    """From 0, x_1 = 0.1 after one step and x_2 = 2 (1 - 0.9³) = 0.542 after three."""
    federation = Federation("fednova", QuadraticSite(1, 1, steps=1), QuadraticSite(1, 2, steps=3))
    assert federation.round()["body.weight"] == pytest.approx(2 * (0.1 / 1 + 0.542 / 3) / 2)


def test_fednova_is_fedavg_in_every_bit_where_all_sites_make_as_many_steps():
    assert rounds("fednova", *far()) == rounds("fedavg", *far())


def novas(*said: float, most_norm: float = 10.0) -> list[float]:
    """Let sites that have all moved by 1 say how many steps they have made."""
    updates = {
        str(number): SiteUpdate(
            {"w": torch.ones(1)}, 10, 10.0, {"steps": torch.tensor(steps / 1024)}
        )
        for number, steps in enumerate(said)
    }
    config = read_run_config({"strategy.name": "fednova", "strategy.most-norm": most_norm})
    weights, _ = load_strategy("fednova").aggregate(
        updates, {"w": torch.zeros(1)}, {}, config, participants=len(said), rate=1.0
    )
    return weights["w"].tolist()


@pytest.mark.parametrize("said", [0.0, -7.0, 0.3])
def test_fednova_takes_at_least_one_step_for_said(said):
    assert novas(said, 3.0) == novas(1.0, 3.0)


def test_fednova_makes_no_site_s_part_larger_than_most_norm_says():
    """39 and 1 step: τ = 20 would make the second's update 20 times as long."""
    assert novas(39.0, 1.0) == pytest.approx([(20 / 39 + 10) / 2])
    assert novas(39.0, 1.0, most_norm=0.0) == pytest.approx([(20 / 39 + 20) / 2])


# MOON


class Angles(nn.Module):
    """Features are the image times a matrix; a dropout tells training from evaluation."""

    def __init__(self, *rows: list[float]) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2, bias=False)
        self.body.weight.data = torch.tensor(rows)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.body(images)))


def moon_term(mu: float, temperature: float) -> torch.Tensor:
    """z = (1, 1), z_g = (1, 0), z_p = (0, -1): cosines 1/√2 and -1/√2."""
    model = Angles([1.0, 0.0], [0.0, 0.0])
    hooks = ContrastiveTerm(mu, temperature, Angles([0.0, 0.0], [-1.0, 0.0]).state_dict())
    hooks.before_round(model)
    model.body.weight.data[1, 0] = 1.0
    images = torch.tensor([[1.0, 0.0]])
    batch = Batch(images, torch.zeros(1).long(), model.body(images), torch.zeros(()), torch.sum)
    term = hooks.loss(model, batch)
    term.backward()
    assert model.training and model.drop.training
    assert model.body.weight.grad.abs().sum() > 0
    assert all(not tensor.requires_grad for tensor in hooks.previous.values())
    return term.detach()


@pytest.mark.parametrize(("mu", "temperature"), [(1.0, 1.0), (3.0, 0.5)])
def test_moon_s_term_is_that_of_the_paper(mu, temperature):
    near, far_ = (math.exp(sign / math.sqrt(2) / temperature) for sign in (1, -1))
    assert float(moon_term(mu, temperature)) == pytest.approx(-mu * math.log(near / (near + far_)))


def test_moon_s_first_round_is_fedavg_s():
    """There is no model of a round before."""
    assert rounds("moon", *far(), number=1) == rounds("fedavg", *far(), number=1)
