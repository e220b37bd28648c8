"""Which round is the best, where not always the same sites tell how well they fared."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import AnswerError
from common.evaluation.of_site import Evaluation
from common.selection import due, is_better, judge_usable
from common.tasks.task import ValidationResult

NAN = math.nan
LOSSES = {"north": 0.5, "south": 0.7, "west": 0.9}


def judge(evaluations):
    """A mean over scans, of sites that tell a loss from 0 on."""
    for site, one in evaluations.items():
        if one.metrics["loss"] < 0:
            raise AnswerError(site, "below 0")
        if one.metrics["loss"] == 13:
            raise ValueError("a number that brings bad luck")
    total = sum(one.count for one in evaluations.values())
    loss = sum(one.metrics["loss"] * one.count for one in evaluations.values()) / total
    return ValidationResult(loss, {}, "")


def evaluations(words: dict[str, str] | None = None, **losses: float) -> dict[str, Evaluation]:
    means = words or {}
    return {
        site: Evaluation(10, {"loss": loss}, words={"extractor-hash": means.get(site, "0")})
        for site, loss in losses.items()
    }


def choose(rule, *rounds: dict[str, Evaluation]) -> int:
    """Return the number of the best round; 0 where there is none."""
    best, chosen = 0, None
    for number, found in enumerate(rounds, start=1):
        judged = judge_usable(rule, found)
        if is_better(rule, judged, chosen):
            best, chosen = number, judged
    return best


def chosen(*rounds: dict[str, float]) -> int:
    return choose(judge, *(evaluations(**losses) for losses in rounds))


@pytest.mark.parametrize(
    ("rounds", "best"),
    [
        # South, the harder site, told in the first round only: the second is better at north.
        ([{"north": 0.3, "south": 0.9}, {"north": 0.2}], 2),
        # And here worse, though its mean over the sites that told is lower.
        ([{"north": 0.3, "south": 0.9}, {"north": 0.4}], 1),
        ([{"north": 0.3}, {"north": 0.2, "south": 0.9}], 2),
        ([{"north": 0.3}, {"north": 0.4, "south": 0.1}], 1),
        ([{"north": 0.3}, {"south": 0.1}], 1),  # nothing to compare: the earlier stays
        ([{}, {"south": 0.1}, {}], 2),
        ([{}, {}], 0),
        # Those who told in both: the best round's evaluations are kept whole.
        ([{"north": 0.5, "south": 0.5}, {"north": 0.4}, {"north": 0.45, "south": 0.1}], 2),
        # A loss that is no number speaks against its round, but not where it is so in every round.
        ([{"north": NAN, "south": 0.1}, {"north": 0.9, "south": 0.9}], 2),
        ([{"north": 0.9, "south": 0.9}, {"north": NAN, "south": 0.1}], 1),
        ([{"north": NAN, "south": 0.3}, {"north": NAN, "south": 0.2}], 2),
        ([{"north": NAN, "south": 0.3}, {"north": NAN, "south": 0.4}], 1),
        ([{"north": NAN, "south": NAN}] * 2, 0),
    ],
)
def test_rounds_are_compared_by_the_sites_that_told_in_both(rounds, best):
    assert chosen(*rounds) == best


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=9))
def test_where_all_sites_always_tell_the_first_lowest_loss_is_chosen(losses):
    means = [(10 * a + 10 * b) / 20 for a, b in losses]
    rounds = [{"north": a, "south": b} for a, b in losses]
    assert chosen(*rounds) == means.index(min(means)) + 1


@pytest.mark.parametrize("bad", [-1.0, 13.0, NAN])
def test_what_one_site_tells_keeps_nobody_else_from_being_judged(bad):
    found = judge_usable(judge, evaluations(**LOSSES | {"south": bad}))
    assert list(found.evaluations) == ["north", "west"]
    assert list(found.refused) == ["south"]
    assert found.merged.loss == pytest.approx(0.7)


def test_site_that_judges_by_other_means_than_most_is_left_out():
    found = judge_usable(judge, evaluations({"south": "1"}, **LOSSES))
    assert list(found.refused) == ["south"]
    assert "by other means" in found.refused["south"]


def test_where_no_means_are_those_of_most_nothing_is_told_and_nobody_blamed_alone():
    found = judge_usable(judge, evaluations({"south": "1"}, north=0.5, south=0.6))
    assert (found.merged, found.evaluations, found.disagree) == (None, {}, True)
    assert list(found.refused) == ["north", "south"]


def test_what_is_sound_by_itself_and_not_together_is_not_told_and_ends_nothing():
    def quarrel(evaluations):
        if len(evaluations) > 1:
            raise RuntimeError("cannot be put together")
        return judge(evaluations)

    found = judge_usable(quarrel, evaluations(**LOSSES))
    assert (found.merged, found.disagree, list(found.refused)) == (None, True, list(LOSSES))


def test_losses_that_are_no_numbers_anywhere_are_the_verdict():
    found = judge_usable(judge, evaluations(north=NAN, south=NAN))
    assert math.isnan(found.merged.loss)
    assert (found.refused, found.undefined) == ({}, {"north", "south"})


def moments(found):
    """A large measure of moments where all sites tell some, else a small one of losses."""
    if all(one.statistics for one in found.values()):
        return ValidationResult(
            sum(one.statistics["m"] for one in found.values()), {}, "", "moments"
        )
    return ValidationResult(sum(one.metrics["loss"] for one in found.values()), {}, "", "losses")


@pytest.mark.parametrize("silent", [1, 2, 3, None])
def test_a_site_that_withholds_moments_in_one_round_does_not_freeze_the_choice(silent):
    rounds = [
        {
            site: Evaluation(10, {"loss": loss}, {} if number == silent else {"m": 10 * loss})
            for site in ("north", "south")
        }
        for number, loss in enumerate((0.5, 0.4, 0.3), start=1)
    ]
    assert choose(moments, *rounds) == 3


@given(st.lists(st.floats(0, 10) | st.just(NAN), min_size=1, max_size=12))
def test_best_round_of_one_site_is_the_first_minimum(losses):
    finite = [loss for loss in losses if loss == loss]
    expected = losses.index(min(finite)) + 1 if finite else 0
    assert chosen(*({"north": loss} for loss in losses)) == expected


@pytest.mark.parametrize(
    ("every", "rounds", "expected"),
    [
        (1, 3, [1, 2, 3]),
        (2, 6, [2, 4, 6]),
        (2, 5, [2, 4, 5]),  # the last round is validated in any case
        (6, 4, [4]),
        (3, 3, [3]),
    ],
)
def test_validation_is_due_every_so_many_rounds_and_at_the_end(every, rounds, expected):
    assert [n for n in range(1, rounds + 1) if due(n, every, rounds)] == expected
