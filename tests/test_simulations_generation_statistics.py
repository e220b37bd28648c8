"""Means, paired differences and headlines of a comparison of generators."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from common.errors import FedscanError
from common.evaluation.statistics import Repeated
from simulations.report.generation_blocks import use_table
from simulations.results import CHOSEN, NUMBERS, TEXTS
from simulations.summary import summarize
from simulations.tested import summarize_use

SITES = ("island", "north")


def summarized(results: pd.DataFrame, **options: object) -> dict:
    about = {"task": "generation", "poor_site": "island", "sites": SITES}
    return summarize(results, **about, **options)


def table(values: dict[tuple[str, str, str], list[float]], **extra: object) -> pd.DataFrame:
    """Test rows: (arm, tested on, metric) to values by seed; local is island's."""
    rows = [
        {
            **{"arm": arm, "strategy": "fedavg" if arm == "federated" else "", "seed": seed},
            **{"trained_on": "island" if arm == "local" else "all", "tested_on": place},
            **{"split": "test", "metric": metric, "value": value, "status": "done"},
            **{"images_seen": 100, "bytes_up": 30, "bytes_down": 10, "seconds": 5, **extra},
        }
        for (arm, place, metric), found in values.items()
        for seed, value in enumerate(found)
    ]
    return pd.DataFrame(rows).reindex(columns=[*TEXTS, *NUMBERS])


def test_three_seeds_have_students_interval() -> None:
    found = Repeated({0: 1.0, 1: 2.0, 2: 3.0}).record()
    half = 4.302653 / math.sqrt(3)  # t of 97.5 % with 2 degrees of freedom; s = 1
    assert found["mean"] == 2.0
    assert (found["low"], found["high"]) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    assert found["values"] == {"0": 1.0, "1": 2.0, "2": 3.0}


def test_one_seed_has_none_and_says_so() -> None:
    found = Repeated({0: 1.0}).record()
    assert found["low"] is found["high"] is None
    assert "no interval" in found["note"]
    assert Repeated({}).record()["mean"] is None


def test_the_whole_is_measured_over_all_slices_where_it_can_be() -> None:
    values = {
        ("federated", "all", "frechet_distance"): [4.0, 5.0],
        ("federated", "all", "frechet_distance_mean"): [9.0, 9.0],
        ("federated", "all", "precision_mean"): [0.5, 0.7],
        ("federated", "island", "coverage"): [0.2, 0.4],
        ("federated", "north", "coverage"): [0.6, 0.8],
        ("federated", "island", "copies_flagged"): [0.0, 1.0],
        ("federated", "north", "copies_flagged"): [0.0, 0.0],
        ("federated", "island", "authenticity"): [0.5, 0.5],  # north has not judged it
        ("federated", "island", "recall"): [math.nan, 0.1],
    }
    summary = summarized(table(values))
    scores = summary["scores"]
    whole = {measure: one["mean"] for measure, one in scores["all"]["federated/fedavg"].items()}
    expected = {"frechet_distance": 4.5, "precision": 0.6, "coverage": 0.5, "copies_flagged": 0.5}
    assert whole == pytest.approx(expected)
    assert scores["island"]["federated/fedavg"]["recall"]["repetitions"] == 1
    assert summary["copies"] == [{"model": "federated/fedavg", "seed": 1, "site": "island"}]


def test_differences_are_taken_within_a_seed() -> None:
    values = {
        ("federated", "island", "frechet_distance"): [10.0, 20.0, 30.0],
        ("local", "island", "frechet_distance"): [11.0, 22.0],
    }
    summary = summarized(table(values))
    found = summary["differences"]["island"]["federated - local"]["frechet_distance"]
    assert found["values"] == {"0": -1.0, "1": -2.0}
    assert found["mean"] == -1.5
    missing = summary["differences"]["island"]["federated - centralized"]["frechet_distance"]
    assert missing["note"] == "centralized has no test result at island"
    assert summary["headline"]["loss_against_pooling"]["value"] is None
    assert "cannot be told" in summary["headline"]["loss_against_pooling"]["sentence"]


@pytest.mark.parametrize(
    ("federated", "verdict"),
    [
        ([1.0, 1.1, 0.9], "better"),
        ([2.0, 2.2, 1.9], "no significant difference"),
        ([1.5, 2.9, 2.6], "no significant difference"),
        ([3.0, 3.1, 2.9], "worse"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(federated: list[float], verdict: str) -> None:
    values = {
        ("federated", "all", "frechet_distance"): federated,
        ("centralized", "all", "frechet_distance"): [2.0, 2.0, 2.0],
    }
    headline = summarized(table(values))["headline"]["loss_against_pooling"]
    assert headline["verdict"] == verdict
    differs = verdict != "no significant difference"
    assert ("no significant difference" in headline["sentence"]) != differs
    relation = "lower" if sum(federated) < 6 else "higher"
    assert f"{relation} with federation than with all data" in headline["sentence"]
    assert differs == (not headline["low"] <= 0 <= headline["high"])


def test_a_headline_tells_what_a_distance_may_hide() -> None:
    values = {
        ("federated", "island", "frechet_distance"): [2.0, 2.2, 1.9],
        ("local", "island", "frechet_distance"): [2.0, 2.0, 2.0],
        ("federated", "island", "recall"): [0.72, 0.67, 0.60],
        ("local", "island", "recall"): [0.61, 0.56, 0.53],
        ("federated", "island", "precision"): [0.5, 0.5, 0.5],
        ("local", "island", "precision"): [0.6, 0.5, 0.6],
    }
    headline = summarized(table(values))["headline"]["gain_of_data_poor_site"]
    assert headline["verdict"] == "no significant difference"
    assert headline["sentence"].endswith(
        " Recall differs by +0.10 (0.04 to 0.15), precision differs by -0.07 (-0.21 to 0.08); "
        "above zero is better."
    )


def test_one_repetition_claims_nothing() -> None:
    values = {
        ("federated", "all", "frechet_distance"): [1.0],
        ("centralized", "all", "frechet_distance"): [2.0],
    }
    headline = summarized(table(values))["headline"]["loss_against_pooling"]
    assert headline["verdict"] is None
    assert "1.00 lower" in headline["sentence"]
    assert "no interval" in headline["sentence"]
    assert headline["excludes_zero"] is None


def test_too_few_slices_for_frechet_leave_the_kernel_distance() -> None:
    values = {
        ("federated", "island", "kernel_distance"): [0.1, 0.2],
        ("local", "island", "kernel_distance"): [0.9, 0.8],
    }
    headline = summarized(table(values))["headline"]["gain_of_data_poor_site"]
    assert headline["metric"] == "kernel_distance"
    assert headline["value"] == pytest.approx(0.7)  # a lower distance is a gain


def test_bytes_are_compared_with_the_plain_exchange_where_it_is_known() -> None:
    values = {
        ("federated", "all", "frechet_distance"): [1.0, 1.0],
        ("centralized", "all", "frechet_distance"): [1.0, 1.0],
    }
    costs = summarized(table(values))["costs"]
    assert costs["federated/fedavg"]["share_of_plain_bytes"] is None
    plain = {("fedavg", 0): 80.0, ("fedavg", 1): 160.0}
    costs = summarized(table(values), plain_bytes=plain)["costs"]
    assert costs["federated/fedavg"]["share_of_plain_bytes"] == pytest.approx((0.5 + 0.25) / 2)
    assert costs["federated/fedavg"]["repetitions"] == 2
    assert "share_of_plain_bytes" not in costs["centralized"]


def test_every_federated_model_is_named_by_its_strategy() -> None:
    one = table({("federated", "all", "frechet_distance"): [1.0]})
    other = one.assign(strategy="own-discriminator")
    summary = summarized(pd.concat([one, other], ignore_index=True))
    assert set(summary["models"]) == {"federated/fedavg", "federated/own-discriminator"}
    assert summary["reference_strategy"] == "fedavg"


def several() -> pd.DataFrame:
    """Two strategies and island's own, at all and at island."""
    parts = [
        table({("local", "island", "kernel_distance"): [9.0, 9.0]}),
        *(
            table(
                {
                    ("federated", "all", "frechet_distance"): [level, level + 1],
                    ("federated", "island", "kernel_distance"): [level, level],
                }
            ).assign(strategy=name)
            for name, level in (("fedavg", 1.0), ("int8", 3.0))
        ),
    ]
    return pd.concat(parts, ignore_index=True)


def test_further_strategies_are_set_against_the_reference() -> None:
    found = summarized(several())["differences"]
    assert list(found) == ["all", "island", "north"]
    assert list(found["island"]) == [
        "federated - local",
        "federated - centralized",
        "int8 - fedavg",
    ]
    whole = found["all"]["int8 - fedavg"]["frechet_distance"]
    assert whole["values"] == {"0": 2.0, "1": 2.0}
    assert found["island"]["int8 - fedavg"]["kernel_distance"]["mean"] == 2.0
    assert found["north"]["int8 - fedavg"]["kernel_distance"]["mean"] is None


def test_the_reference_and_the_pairs_can_be_named() -> None:
    named = [["fedavg", "local"], ["int8", "local"]]
    summary = summarized(several(), reference_strategy="int8", contrasts=named)
    found = summary["differences"]["island"]
    assert list(found) == ["federated - centralized", "fedavg - local", "int8 - local"]
    assert found["fedavg - local"]["kernel_distance"]["mean"] == -8.0
    assert summary["reference_strategy"] == "int8"
    assert summary["headline"]["gain_of_data_poor_site"]["value"] == 6.0


def test_one_site_of_several_is_no_mean_over_sites() -> None:
    values = {("local", place, "kernel_distance"): [9.0] for place in SITES}
    values |= {("federated", place, "kernel_distance"): [1.0] for place in SITES}
    found = summarized(table(values))["differences"]["all"]["federated - local"]
    assert found["kernel_distance"]["mean"] is None  # north has no generator of its own


def test_means_over_sites_are_no_frechet_distance_of_all_and_one_flag_is_enough() -> None:
    values = {
        ("federated", "all", "frechet_distance_mean"): [9.0, 9.0],
        ("federated", "all", "copies_flagged_mean"): [0.5, 0.0],
        ("federated", "island", "copies_flagged"): [1.0, 0.0],
        ("federated", "north", "copies_flagged"): [0.0],  # of seed 1 it has not judged
    }
    whole = summarized(table(values))["scores"]["all"]["federated/fedavg"]
    assert list(whole) == ["copies_flagged"]
    assert whole["copies_flagged"]["values"] == {"0": 1.0, "1": 0.0}


def test_failed_cells_are_counted_and_in_no_mean() -> None:
    good = table({("centralized", "all", "frechet_distance"): [1.0, 3.0]})
    lost = table({("centralized", "", ""): [math.nan]}).assign(seed=2, status="error")
    summary = summarized(pd.concat([good, lost], ignore_index=True))
    assert summary["scores"]["all"]["centralized"]["frechet_distance"]["mean"] == 2.0
    assert (
        summary["cells"]["note"]
        == "1 of 3 cells are not wholly in the means (centralized: 1 error)"
    )


def test_all_cells_failed() -> None:
    lost = table({("centralized", "", ""): [math.nan]}).assign(status="error")
    summary = summarized(lost)
    assert summary["models"] == {}
    assert summary["headline"]["gain_of_data_poor_site"]["value"] is None


def test_a_number_that_is_there_twice_is_refused() -> None:
    rows = table({("centralized", "all", "frechet_distance"): [1.0]})
    with pytest.raises(FedscanError, match="twice"):
        summarized(pd.concat([rows, rows]))


def test_use_of_pictures_keeps_the_order_of_rows() -> None:
    use = pd.DataFrame(
        {"seed": seed, "row": row, "site": "island", "metric": "auroc", "value": value, "n": 60}
        for seed in (0, 1)
        for row, value in (("local real only", 0.7 + seed / 10), ("federated GAN only", 0.6))
    )
    first, second = summarize_use(use)
    assert (first["row"], second["row"]) == ("local real only", "federated GAN only")
    assert first["mean"] == pytest.approx(0.75)
    assert first["n"] == 60
    assert second["low"] == pytest.approx(0.6)


def test_chosen_amounts_are_no_estimate() -> None:
    use = pd.DataFrame(
        {"seed": seed, "row": "r", "site": "island", "metric": CHOSEN, "value": amount, "n": 4}
        for seed, amount in enumerate((0, 128, 16))
    )
    (chosen,) = summarize_use(use)
    assert (chosen["mean"], chosen["low"], chosen["high"]) == (48, None, None)
    text = str(use_table([chosen], "", ""))
    assert "48" in text and "0, 128, 16" in text
