"""Simulated trouble is what its keys say, alike in every process, and in training alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import dataset

from common import trouble
from common.config.run_config import RunConfig
from common.errors import ConfigError
from common.local_round import train_one_round
from common.rounds import require_sites
from common.strategies.strategy import SiteUpdate, load_strategy
from common.tasks.task import SiteContext, load_task
from common.trouble import Rescanned, as_sent, as_trained_on, flipped, is_away, noisy
from simulations import estimate
from simulations.compare import Request, compare
from simulations.plan import Cell, load_plan

TINY = {"run.rounds": 2, "training.local-steps": 2, "training.batch-size": 4, "data.size": 16}
CPU = torch.device("cpu")
classification = load_task("classification")
rng = np.random.default_rng(0)
IMAGES = dataset(rng.random((12, 1, 16, 16, 16), np.float32), np.arange(12) % 2)
RECEIVED = {"a": torch.ones(30, 40), "b": torch.zeros(5)}
TRAINED = {"a": torch.full((30, 40), 1.5), "b": torch.full((5,), -1.0)}


def config(**keys) -> RunConfig:
    """``label_noise=0.2`` stands for ``trouble.label-noise = 0.2``."""
    asked = {f"trouble.{name.replace('_', '-')}": value for name, value in keys.items()}
    seed = {"run.seed": asked.pop("trouble.seed", 0)}
    if {"trouble.dropout", "trouble.late"} & asked.keys():
        seed["run.min-replies"] = 1
    return RunConfig.from_flower({**TINY, **seed, **asked})


# Who is there


def rounds_away(config: RunConfig, site: str, rounds: int = 4000) -> list[int]:
    return [number for number in range(1, rounds + 1) if is_away(config, site, number)]


def test_a_site_is_away_in_as_many_rounds_as_the_dropout_rate_says() -> None:
    assert len(rounds_away(config(dropout=0.2), "north")) == pytest.approx(800, abs=100)  # 4 SD
    assert not rounds_away(config(), "north")


def test_who_is_away_follows_from_seed_site_and_round_alone() -> None:
    away = rounds_away(config(dropout=0.2), "north", 50)
    backwards = [k for k in range(50, 0, -1) if is_away(config(dropout=0.2), "north", k)]
    assert away == backwards[::-1]
    assert away != rounds_away(config(dropout=0.2), "south", 50)
    assert away != rounds_away(config(dropout=0.2, seed=1), "north", 50)


def test_a_late_site_is_away_until_it_joins() -> None:
    late = config(late="north:4")
    assert rounds_away(late, "north", 9) == [1, 2, 3]
    assert not rounds_away(late, "south", 9)


def test_a_slow_site_waits_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(trouble.time, "sleep", waited.append)
    for site in ("north", "south"):
        trouble.attend(config(slow="north", delay=2.5), site, 1)
    assert waited == [2.5, 0.0]


# What a site trains on


def test_label_noise_gives_a_share_of_known_labels_one_of_the_other_classes() -> None:
    labels = np.tile(np.arange(-1, 4), 4000)
    wrong = noisy(labels, 4, 0.25, np.random.default_rng(0))
    known, changed = labels >= 0, wrong != labels
    assert (wrong[~known] == -1).all()
    assert changed[known].mean() == pytest.approx(0.25, abs=0.02)
    counts = np.bincount((wrong[changed] - labels[changed]) % 4, minlength=4)
    assert counts[0] == 0 and (abs(counts[1:] / counts.sum() - 1 / 3) < 0.03).all()


def test_wrong_labels_stay_as_they_are_from_round_to_round() -> None:
    many = dataset(np.zeros((200, 1, 2, 2, 2), np.float32), np.arange(200) % 2)
    first, later, elsewhere = (
        as_trained_on(many, config(label_noise=0.3), site, number).labels
        for site, number in (("north", 1), ("north", 9), ("south", 1))
    )
    assert (first == later).all() and (first != elsewhere).any() and (first != many.labels).any()


def test_flipped_labels_are_the_opposite_classes_of_attackers_alone() -> None:
    assert flipped(np.array([0, 1, 4, -1]), 5).tolist() == [4, 3, 0, -1]
    attack = config(attack="label-flip", attackers="north")
    assert (as_trained_on(IMAGES, attack, "north", 1).labels == 1 - IMAGES.labels).all()
    assert (as_trained_on(IMAGES, attack, "south", 1).labels == IMAGES.labels).all()


def test_a_scanner_changes_from_its_round_on_and_stays_changed() -> None:
    changing = config(scanner_change="north:3")
    seen = {k: as_trained_on(IMAGES, changing, "north", k).images() for k in (1, 2, 3, 9)}
    assert (seen[1] == IMAGES.images()).all() and (seen[2] == seen[1]).all()
    assert abs(seen[3] - seen[1]).mean() > 0.05 and (seen[3] == seen[9]).all()
    assert seen[3].min() >= 0 and seen[3].max() <= 1
    assert (as_trained_on(IMAGES, changing, "south", 9).images() == seen[1]).all()


def test_another_scanner_has_the_gain_bias_and_gamma_of_its_formula() -> None:
    """An even image, which no blur changes."""
    even = dataset(np.full((2, 1, 3, 5), 0.5, np.float32)).pixels
    found = Rescanned(even, gain=0.8, gamma=2.0, slopes=(0.1, -0.3)).take([1])[0, 0]
    rows, columns = np.meshgrid(np.linspace(-1, 1, 3), np.linspace(-1, 1, 5), indexing="ij")
    expected = 0.8 * np.exp(0.1 * rows - 0.3 * columns) * 0.25
    assert np.allclose(found, expected, rtol=1e-6)


def test_another_scanner_blurs_within_rows_and_columns() -> None:
    point = np.zeros((1, 1, 3, 9, 9), np.float32)
    point[0, 0, 1, 4, 4] = 1
    found = Rescanned(dataset(point).pixels, 1.0, 1.0, (0.0, 0.0)).take([0])[0, 0]
    assert found[1].sum() == pytest.approx(1, abs=1e-4) and found[1, 4, 4] < 0.5
    assert not found[[0, 2]].any()


# What a site sends


def sent(attack: str, site: str = "north", number: int = 1, **more) -> dict[str, torch.Tensor]:
    asked = config(attack=attack, attackers="north", **more)
    return as_sent(TRAINED, RECEIVED, asked, site, number)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((one[n] - other[n]).square().sum()) for n in one))


def test_a_flipped_sign_goes_as_far_the_other_way() -> None:
    assert torch.equal(sent("sign-flip")["a"], torch.full((30, 40), 0.5))
    assert torch.equal(sent("sign-flip", attack_scale=4.0)["b"], torch.full((5,), 4.0))


def test_noise_is_as_long_as_asked_in_any_direction() -> None:
    noise = sent("scaled-noise", attack_scale=3.0)
    usual = distance(TRAINED, RECEIVED)
    assert distance(noise, RECEIVED) == pytest.approx(3 * usual, rel=1e-5)
    along = sum(float(((noise[n] - RECEIVED[n]) * (TRAINED[n] - RECEIVED[n])).sum()) for n in noise)
    assert abs(along) / (3 * usual * usual) < 5 / math.sqrt(1205)
    again, later = (sent("scaled-noise", number=number, attack_scale=3.0) for number in (1, 2))
    assert distance(noise, again) == 0 < distance(noise, later)


@pytest.mark.parametrize("attack", ["none", "label-flip", "sign-flip", "scaled-noise"])
def test_only_attackers_that_attack_updates_send_others(attack: str) -> None:
    honest = sent(attack, "south")
    assert distance(honest, TRAINED) == 0
    assert (distance(sent(attack), TRAINED) > 0) == (attack in ("sign-flip", "scaled-noise"))


# A round


def one_round(config: RunConfig, site: str = "north"):
    place = SiteContext(site, ("north", "south"), CPU)
    model = classification.build_model(config, place)
    start = classification.shared_state(model, config)
    done = train_one_round(
        *(classification, model, IMAGES, config),
        **{"received": start, "private": {}, "place": place, "round_number": 1},
    )
    return start, done


def test_an_attacker_trains_as_ever_and_sends_the_opposite() -> None:
    start, honest = one_round(config())
    _, wrong = one_round(config(attack="sign-flip", attackers="north"))
    for name, tensor in honest.sent.items():
        assert torch.allclose(wrong.sent[name], 2 * start[name] - tensor, atol=1e-6)
    assert wrong.metrics == honest.metrics
    assert all(torch.equal(wrong.private[name], one) for name, one in honest.private.items())


def test_trouble_elsewhere_changes_no_bit_of_a_site() -> None:
    elsewhere = config(
        **{"attack": "label-flip", "attackers": "south", "scanner_change": "south:1"},
    )
    (_, plain), (_, other) = one_round(config()), one_round(elsewhere)
    assert all(torch.equal(other.sent[name], tensor) for name, tensor in plain.sent.items())


# The configuration


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"slow": "north"}, "trouble.slow and trouble.delay have an effect together"),
        ({"delay": 1.0}, "trouble.slow and trouble.delay have an effect together"),
        ({"attack": "sign-flip"}, "needs trouble.attackers"),
        ({"attack_scale": 2.0}, "trouble.attack-scale has an effect with"),
        ({"late": "north"}, "accepted is pairs SITE:ROUND"),
        ({"scanner_change": "north:0"}, "accepted is pairs SITE:ROUND"),
        ({"late": "north:2 north:3"}, "accepted is pairs SITE:ROUND"),
        ({"attackers": "north north"}, "accepted is names of sites"),
    ],
)
def test_trouble_that_has_no_effect_or_no_meaning_is_refused(keys: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**keys)


@pytest.mark.parametrize("key", ["dropout", "late"])
def test_sites_may_be_away_only_where_a_run_goes_on_without_them(key: str) -> None:
    with pytest.raises(ConfigError, match=r"need run\.min-replies"):
        RunConfig.from_flower({f"trouble.{key}": {"dropout": 0.1, "late": "north:2"}[key]})


def test_labels_of_generators_are_left_alone() -> None:
    for keys in ({"label-noise": 0.1}, {"attack": "label-flip", "attackers": "north"}):
        with pytest.raises(ConfigError, match="trouble"):
            RunConfig.from_flower(
                {"task": "generation", **{f"trouble.{key}": value for key, value in keys.items()}}
            )


def test_honest_attackers_are_no_trouble() -> None:
    assert not config(attackers="north").trouble.is_on
    assert config(label_noise=0.1).trouble.is_on


def test_trouble_at_a_site_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="trouble: there is no site 'east': accepted are north"):
        require_sites(config(attackers="north east"), ("north", "south"))


# Comparisons


@pytest.mark.parametrize("preset", ["attackers", "trouble"])
def test_a_preset_of_trouble_tells_its_cells_and_starts_nothing(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(estimate, "step_seconds", lambda config, sites: 0.01)
    compare(request(preset, tmp_path), resume=False, dry_run=True)
    told = capsys.readouterr().out
    assert {"attackers": "7 sites", "trouble": "5 sites"}[preset] in told
    assert not list(tmp_path.iterdir())


def request(preset: str, folder: Path, **more) -> Request:
    asked = {"overrides": {}, "run": {}, "cohort": None, "sites": None, **more}
    limits = {"gpus_per_cell": 0.0, "cell_timeout": 60.0}
    return Request(preset=preset, out=folder / "out", **asked, **limits)


def test_trouble_is_of_federations_alone(tmp_path: Path) -> None:
    asked = request("default", tmp_path, run={"trouble.label-noise": 0.1})
    with pytest.raises(ConfigError, match=r"leave \w+ out of --arms"):
        compare(asked, resume=False, dry_run=True)


def test_every_strategy_is_compared_under_every_attack_with_the_same_settings() -> None:
    plan = load_plan("attackers", {}, {})
    plain = plan.config(Cell("federated", "krum", 1), {})
    attacked = plan.config(Cell("federated", "krum-label-flip", 1), {})
    assert attacked == plain.replace({"trouble.attack": "label-flip"})
    assert plain.trouble.attackers == attacked.trouble.attackers == "site-006 south"
    assert len(plan.strategies) == 6 * 4
    assert ["krum-label-flip", "krum"] in plan.contrasts and ["krum", "fedavg"] in plan.contrasts
    assert ["krum-label-flip", "fedavg-label-flip"] in plan.contrasts


@pytest.mark.parametrize("attack", ["sign-flip", "scaled-noise"])
@pytest.mark.parametrize("strategy", load_plan("attackers", {}, {}).strategies[:6])
def test_with_two_attackers_of_seven_robust_strategies_go_where_honest_sites_go(
    strategy: str, attack: str
) -> None:
    """Honest sites move every weight by about 1; the mean is pulled back or thrown about."""
    config = load_plan("attackers", {}, {}).config(Cell("federated", f"{strategy}-{attack}", 1), {})
    start, draws = {"weight": torch.zeros(500)}, np.random.default_rng(0)
    updates = {}
    for site in ("east", "island", "north", "site-005", "site-006", "south", "west"):
        trained = {"weight": torch.from_numpy(1 + 0.1 * draws.standard_normal(500)).float()}
        updates[site] = SiteUpdate(as_sent(trained, start, config, site, 1), 10, 1.0)
    rule, state = load_strategy(config.strategy.name), {}
    found, _ = rule.aggregate(updates, start, state, config, participants=7, rate=1.0)
    error = float((found["weight"] - 1).square().mean().sqrt())
    assert error < 0.4 if strategy != "fedavg" else error > 1


def test_strategies_are_chosen_with_their_scenarios_or_one_by_one() -> None:
    chosen = load_plan("attackers", {"strategies": ["krum", "fedavg-sign-flip"]}, {}).strategies
    assert chosen == [
        *("krum", "fedavg-sign-flip"),
        *("krum-sign-flip", "krum-scaled-noise", "krum-label-flip"),
    ]
