"""A site's budget of differential privacy, and the noise of a deployed site."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_clients_local import TINY, Site, same

from clients import local
from clients.budget import Budget
from common import messages
from common.config.run_config import RunConfig
from common.errors import ConfigError, FedscanError
from common.messages import TRAIN
from common.privacy.guarantee import Guarantee
from common.tasks.task import read_run_config

pytestmark = pytest.mark.usefixtures("task_identity", "one_thread")

ASKED = Guarantee(epsilon=4.0, delta=0.001, rate=0.5, steps_a_round=2, rounds=3)


@pytest.fixture(autouse=True)
def folders(monkeypatch, session_cache, tmp_path) -> None:
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    local._remembered.cache_clear()


def config(**values: object) -> RunConfig:
    return read_run_config({**TINY, "privacy.epsilon": 8.0, **values})


def test_runs_pay_until_the_budget_is_used_up():
    budget = Budget("north", epsilon=8.0, delta=0.01)
    budget.reserve("1", ASKED)
    budget.reserve("2", ASKED)
    with pytest.raises(ConfigError, match=r"of 8 that the site grants \(max-epsilon\) 8 is spent"):
        budget.reserve("3", ASKED)
    assert [one.run for one in budget.spent()] == ["1", "2"]


def test_the_sum_of_deltas_is_bounded_too():
    with pytest.raises(ConfigError, match="max-delta"):
        Budget("north", epsilon=8.0, delta=0.0005).reserve("1", ASKED)


def test_a_run_that_goes_on_does_not_pay_twice():
    budget = Budget("north", epsilon=4.0, delta=0.001)
    budget.reserve("1", ASKED)
    before = budget.path.read_bytes()
    Budget("north", epsilon=4.0, delta=0.001).reserve("1", ASKED)
    assert budget.path.read_bytes() == before


def test_a_run_cannot_ask_for_more_under_the_name_of_one_that_has_paid():
    budget = Budget("north")
    budget.reserve("1", ASKED)
    with pytest.raises(ConfigError, match=r"another privacy\.epsilon"):
        budget.reserve("1", replace(ASKED, epsilon=5.0))


def test_runs_that_begin_at_once_are_granted_no_more_than_there_is():
    one = replace(ASKED, epsilon=1.0)

    def granted(number: int) -> bool:
        try:
            Budget("north", epsilon=4.0).reserve(str(number), one)
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(granted, range(8))) == 4
    assert len(Budget("north").spent()) == 4


@pytest.mark.parametrize(
    "text", ["[[run", '[[run]]\nrun = "1"', '[[run]]\nrun = "1"\nepsilon = -8.0\ndelta = 0.0']
)
def test_a_damaged_record_grants_nothing_and_its_path_stays_at_the_site(text):
    budget = Budget("north")
    budget.reserve("1", ASKED)
    budget.path.write_text(text)
    with pytest.raises(FedscanError, match="damaged") as caught:
        budget.reserve("2", ASKED)
    assert str(budget.path) not in caught.value.public


def policy(monkeypatch, tmp_path: Path, text: str) -> None:
    from conftest import OPEN_POLICY

    path = tmp_path / "policy.toml"
    path.write_text(OPEN_POLICY + text)
    monkeypatch.setenv("FEDSCAN_POLICY", str(path))


def refusal(site: Site) -> str:
    failure = messages.failure_in(site.ask(TRAIN, 1, "train", site.start))
    return failure.error if failure else ""


def test_a_run_beyond_the_budget_is_refused_before_it_trains(tiny_cohort, monkeypatch, tmp_path):
    policy(monkeypatch, tmp_path, "max-epsilon = 10.0\n")
    first = Site(config(**{"run.id": "1"}), tiny_cohort)
    update = first.train(1, first.start)
    first.train(2, first.after(first.start, update))  # pays nothing more
    assert [one.epsilon for one in Budget("north").spent()] == [8.0]
    second = Site(config(**{"run.id": "2"}), tiny_cohort)
    with pytest.raises(AssertionError, match="of 10 that the site"):  # by its first answer
        second.train(1, second.start)


def test_a_site_with_a_budget_refuses_runs_without_differential_privacy(
    tiny_cohort, monkeypatch, tmp_path
):
    policy(monkeypatch, tmp_path, "max-epsilon = 10.0\n")
    site = Site(read_run_config(TINY), tiny_cohort)
    assert "max-epsilon" in refusal(site)


def update(cohort: Path, **values: object) -> dict[str, torch.Tensor]:
    site = Site(config(**values), cohort)
    return site.train(1, site.start)


def test_a_deployed_sites_noise_follows_from_its_secret_whatever_its_policy(
    tiny_cohort, monkeypatch, tmp_path
):
    """The policy of the tests has private-seed = false."""
    one = update(tiny_cohort)
    assert same(one, update(tiny_cohort))  # the same order again
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "of another secret"))
    assert not same(one, update(tiny_cohort))


def test_two_runs_of_the_same_seed_have_no_noise_in_common(tiny_cohort):
    """Else it would cancel in the difference of their updates."""
    assert not same(update(tiny_cohort, **{"run.id": "1"}), update(tiny_cohort, **{"run.id": "2"}))
