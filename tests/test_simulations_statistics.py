"""The comparison's statistics on cases with a known answer, and against scikit-learn and SciPy."""

from __future__ import annotations

import functools
import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from coverage_of_intervals import covered, drawn, intervals_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import PermutationMethod, norm, t, wilcoxon
from sklearn import metrics as sk

from common.errors import FedscanError
from common.evaluation.classification import METRICS, classification_metrics
from common.evaluation.resampling import resampling_weights, weighted_metrics
from common.evaluation.statistics import Repeated, signed_rank_p
from simulations.summary import summarize

SITES = ("island", "north", "south")
LOCAL, CENTRALIZED = ("local", ""), ("centralized", "")
FEDAVG, FEDPROX = ("federated", "fedavg"), ("federated", "fedprox")
LABELS = np.array([0, 1] * 15)
SCANS = len(LABELS)


def right(correct: int) -> np.ndarray:
    """Probabilities that decide `correct` of the 15 scans of each class rightly."""
    wrong = np.arange(SCANS) // 2 >= correct
    return np.where(LABELS ^ wrong, 0.8, 0.2)


@functools.cache
def evaluated(labels: bytes, probabilities: bytes) -> dict[str, float]:
    return classification_metrics(np.frombuffer(labels, int), np.frombuffer(probabilities))


def benchmark(probabilities, *, arms=(LOCAL, CENTRALIZED, FEDAVG), seeds=1, labels=LABELS):
    """Both tables of a benchmark, where probabilities(model, seed, site) says what a model says.

    Models are named by their strategy, or by their arm where they have none.
    """
    rows, sides = [], {site: [] for site in SITES}
    for arm, strategy in arms:
        for trained_on in SITES if arm == "local" else ("all",):
            for k in range(seeds):
                for site in SITES:
                    p = probabilities(strategy or arm, k, site)
                    cell = {"arm": arm, "strategy": strategy, "seed": k, "trained_on": trained_on}
                    test = cell | {"tested_on": site, "split": "test", "n": len(p)}
                    rows += [
                        test | {"metric": m, "value": v, "status": "done"}
                        for m, v in evaluated(labels.tobytes(), p.tobytes()).items()
                    ]
                    scans = {
                        "scan": np.arange(len(p)),
                        "person": np.arange(len(p)),
                        "label": labels,
                    }
                    scans |= {"probability.healthy": 1 - p, "probability.ill": p}
                    sides[site].append(pd.DataFrame(cell | scans))
    return pd.DataFrame(rows), {site: pd.concat(frames) for site, frames in sides.items()}


def noisy(model: str, k: int, site: str) -> np.ndarray:
    """A model that tells the classes apart somewhat, otherwise in every seed, model and site."""
    rng = np.random.default_rng([*model.encode(), k, *site.encode()])
    return 1 / (1 + np.exp(-(2 * LABELS - 1 + rng.normal(size=SCANS))))


def run(tables, **options):
    return summarize(*tables, **{"poor_site": "island", "draws": 200} | options)


@pytest.fixture(scope="module")
def five_seeds():
    return run(benchmark(noisy, arms=(LOCAL, CENTRALIZED, FEDAVG, FEDPROX), seeds=5))


# Metrics on weights


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 40), values=st.sampled_from([None, 7]))
def test_weighted_metrics_equal_the_metrics_of_repeated_scans(seed, size, values):
    rng = np.random.default_rng(seed)
    labels = np.append([0, 1], rng.integers(0, 2, size - 2))
    p = rng.random(size)
    if values:  # many ties, 0 and 1 among them, and 0.5
        p = np.round(p * (values - 1)) / (values - 1)
    weights = resampling_weights(labels, 3, rng)
    found = weighted_metrics(labels, p, weights)
    assert set(found) == set(METRICS)
    for row, counts in enumerate(weights.astype(int)):
        y, q = np.repeat(labels, counts), np.repeat(p, counts)
        expected = classification_metrics(y, q)
        # Every threshold: without this argument roc_curve leaves out points on straight lines.
        fpr, tpr, _ = sk.roc_curve(y, q, drop_intermediate=False)
        expected["sensitivity_at_90_specificity"] = tpr[fpr <= 0.1 + 1e-12].max()
        for metric, value in expected.items():
            assert found[metric][row] == pytest.approx(value, abs=1e-9), metric


@pytest.mark.parametrize("only", [0, 1])
def test_weighted_metrics_of_one_class_are_those_of_the_evaluation(only):
    labels, p = np.full(10, only), np.linspace(0.05, 0.95, 10)
    found = weighted_metrics(labels, p, np.ones((1, 10)))
    for metric, value in classification_metrics(labels, p).items():
        assert found[metric][0] == pytest.approx(value, nan_ok=True), metric
    assert math.isnan(found["auroc"][0])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), k=st.integers(3, 5), size=st.integers(6, 40), ties=st.booleans())
def test_weighted_metrics_of_many_classes_equal_those_of_repeated_images(seed, k, size, ties):
    rng = np.random.default_rng(seed)
    labels, names = np.append(np.arange(k), rng.integers(0, k, size - k)), list("abcde"[:k])
    p = rng.dirichlet(np.ones(k), size)
    if ties:  # eighths, of which sums stay exact
        p = rng.multinomial(8, np.full(k, 1 / k), size=size) / 8
    weights = resampling_weights(labels, 2, rng, persons=np.arange(size) // 2)
    found = weighted_metrics(labels, p, weights, names, "b")
    for row, counts in enumerate(weights.astype(int)):
        y, q = np.repeat(labels, counts), np.repeat(p, counts, axis=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's, of classes that a sample lacks
            expected = classification_metrics(y, q, names, "b")
        assert set(found) == set(expected)
        for metric, value in expected.items():
            assert found[metric][row] == pytest.approx(value, abs=1e-9, nan_ok=True), metric


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), persons=st.integers(1, 12), images=st.integers(1, 40))
def test_a_person_is_drawn_with_all_images_or_none(seed, persons, images):
    rng = np.random.default_rng(seed)
    labels, whose = rng.integers(0, 3, images), rng.integers(0, persons, images)
    weights = resampling_weights(labels, 5, rng, whose)
    for person in np.unique(whose):
        assert (weights[:, whose == person].T == weights[:, whose == person][:, :1].T).all()
    drawn = [weights[:, whose == person][:, 0] for person in np.unique(whose)]
    assert (np.sum(drawn, axis=0) == len(np.unique(whose))).all()


def test_copies_of_a_persons_image_do_not_narrow_an_interval():
    """Twice the images of the same people tell nothing more of people."""
    results, sides = benchmark(noisy)
    twice = {
        site: pd.concat([frame, frame.assign(scan=frame["scan"] + SCANS)])
        for site, frame in sides.items()
    }
    one, two = (
        run((results, found))["scores"]["island"]["local"]["loss"] for found in (sides, twice)
    )
    assert (one["low"], one["high"]) == pytest.approx((two["low"], two["high"]))
    for frame in twice.values():
        frame["person"] = frame["scan"]
    three = run((results, twice))["scores"]["island"]["local"]["loss"]
    assert three["high"] - three["low"] < 0.85 * (one["high"] - one["low"])


def test_many_classes_have_scores_curves_and_counts():
    rng, names = np.random.default_rng(0), ("a", "b", "c")
    labels = np.repeat([0, 1, 2], [20, 8, 2])
    p = rng.dirichlet(np.ones(3), SCANS) + np.eye(3)[labels]
    p /= p.sum(axis=1, keepdims=True)
    cell = {"arm": "centralized", "strategy": "", "seed": 0, "trained_on": "all"}
    test = cell | {"tested_on": "island", "split": "test", "status": "done", "n": SCANS}
    told = classification_metrics(labels, p, names, "c")
    results = pd.DataFrame([test | {"metric": m, "value": v} for m, v in told.items()])
    scans = {"scan": np.arange(SCANS), "person": np.arange(SCANS) // 2, "label": labels}
    frame = pd.DataFrame(cell | scans | {f"probability.{n}": p[:, c] for c, n in enumerate(names)})
    found = run((results, {"island": frame}), positive="c")
    json.dumps(found, allow_nan=False)
    scores = found["scores"]["island"]["centralized"]
    assert set(told) == set(scores)
    counts = {"images": {"a": 20, "b": 8, "c": 2}, "persons": 15, "few": ["b", "c"]}
    assert found["counts"]["island"] == counts
    curves = found["curves"]["island"]["centralized"]
    assert np.sum(curves["confusion"], axis=1).tolist() == [20, 8, 2]
    decided = p.argmax(axis=1)
    assert curves["confusion"] == sk.confusion_matrix(labels, decided).tolist()
    assert curves["roc"][-1] == 1.0 and np.all(np.diff(curves["roc"]) >= 0)
    assert sum(n for n, _, _ in curves["calibration"]) == SCANS


def of_classes(labels, *, sites=("island",), arms=(LOCAL, FEDAVG), positive=None, k=3):
    """Summary of models of k classes: right with the federated arm, never right alone."""
    names, rows, sides = tuple("abcdefgh"[:k]), [], {}
    for site in sites:
        truth = np.asarray(labels[site] if isinstance(labels, dict) else labels)
        frames = []
        for arm, strategy in arms:
            said = truth if arm == "federated" else (truth + 1) % k
            p = np.full((len(truth), k), 0.1) + np.eye(k)[said] * (1 - 0.1 * k)
            cell = {"arm": arm, "strategy": strategy, "seed": 0, "trained_on": "all"}
            cell |= {"trained_on": site} if arm == "local" else {}
            test = cell | {"tested_on": site, "split": "test", "status": "done", "n": len(p)}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                told = classification_metrics(truth, p, names, positive)
            rows += [test | {"metric": m, "value": v} for m, v in told.items()]
            scans = {"scan": np.arange(len(p)), "person": np.arange(len(p)), "label": truth}
            columns = {f"probability.{name}": p[:, c] for c, name in enumerate(names)}
            frames.append(pd.DataFrame(cell | scans | columns))
        sides[site] = pd.concat(frames)
    return run((pd.DataFrame(rows), sides), positive=positive)


FEW = np.repeat([0, 1, 2], [20, 5, 4])  # of class c one person too few


def test_what_rests_on_a_class_of_few_people_has_no_interval():
    found = of_classes(FEW, positive="a")
    note = "no interval: fewer than 5 test people of c"
    for records in (found["scores"]["island"]["local"],
                    found["differences"]["island"]["federated - local"]):  # fmt: skip
        for metric in ("balanced_accuracy", "auroc", "f1", "recall.c", "f1.c", "auroc.c"):
            record = records[metric]
            assert (record["low"], record["high"], record["over"]) == (None, None, None), metric
            assert record["mean"] is not None and note in record["note"].split("; ")
        for metric in ("loss", "calibration_error", "recall.a", "recall.b", "auprc", "auroc.b"):
            assert records[metric]["low"] is not None, metric


def test_a_headline_without_an_interval_gives_no_verdict():
    gain = of_classes(FEW)["headline"]["gain_of_data_poor_site"]
    assert gain["value"] == 1 and gain["verdict"] is gain["excludes_zero"] is None
    assert gain["sentence"] == (
        "At island, balanced accuracy was 1.00 higher after joining than alone "
        "(no interval: fewer than 5 test people of c)."
    )


def test_a_mean_over_sites_names_where_few_people_were_tested():
    enough = np.repeat([0, 1, 2], 5)
    found = of_classes({"island": FEW, "north": enough}, sites=("island", "north"))
    assert found["scores"]["north"]["local"]["auroc"]["low"] is not None
    record = found["scores"]["all"]["federated/fedavg"]["auroc"]
    assert record["mean"] == 1 and record["low"] is None
    assert record["note"] == "no interval: fewer than 5 test people of c at island"


@pytest.mark.parametrize(
    ("labels", "metric", "reason"),
    [
        ([1], "auroc", "test images of one class only"),  # not: no image of the positive class
        ([1], "auprc", "no test image of a"),
        ([0], "sensitivity_at_90_specificity", "test images of one class only"),
        ([0, 1], "recall.c", "no test image of c"),
        ([1, 2], "auprc", "no test image of a"),
    ],
)
def test_what_is_undefined_says_which_class_is_missing(labels, metric, reason):
    found = of_classes(np.repeat(labels, 6), positive="a")
    record = found["scores"]["island"]["local"][metric]
    assert (record["mean"], record["note"]) == (None, reason)


def test_predictions_of_a_cell_that_failed_are_no_error_where_a_class_is_positive():
    _, sides = benchmark(noisy)
    found = run((failed("error").assign(split=None, n=0), sides), positive="ill")
    assert found["cells"]["left_out"] == 1 and found["classes"] == ["healthy", "ill"]


def test_classes_are_the_studys_where_there_are_no_predictions():
    labels, p = np.repeat([0, 1, 2], 4), np.eye(3)[np.repeat([0, 1, 2], 4)]
    test = {"arm": "centralized", "strategy": "", "seed": 0, "trained_on": "all"}
    test |= {"tested_on": "island", "split": "test", "status": "done", "n": 12}
    told = classification_metrics(labels, p, "abc", "a")
    results = pd.DataFrame([test | {"metric": m, "value": v} for m, v in told.items()])
    found = run((results, {}), classes=["a", "b", "c"], positive="a")
    assert found["classes"] == ["a", "b", "c"]
    assert set(found["scores"]["island"]["centralized"]) == set(told)


def test_a_withheld_measure_says_so():
    results, sides = benchmark(noisy)
    kept = results[~((results["metric"] == "auroc") & (results["arm"] == "federated"))]
    record = run((kept, sides))["scores"]["north"]["federated/fedavg"]["auroc"]
    assert (record["mean"], record["low"], record["note"]) == (None, None, "withheld by north")


def test_resampling_keeps_the_number_of_scans_of_each_class():
    labels = np.array([0] * 3 + [1] * 11)
    weights = resampling_weights(labels, 500, np.random.default_rng(0))
    assert (weights[:, :3].sum(axis=1) == 3).all() and (weights[:, 3:].sum(axis=1) == 11).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(14), abs=0.15)
    assert len(np.unique(weights, axis=0)) > 100


# Wilcoxon


@pytest.mark.parametrize("n", [6, 7, 10])
def test_differences_of_one_sign_have_p_of_two_patterns_among_all(n):
    assert signed_rank_p(np.arange(1, n + 1)) == 2 / 2**n
    assert signed_rank_p(np.full(n, -0.1)) == 2 / 2**n


def test_six_equal_signs_are_the_first_below_five_percent():
    assert signed_rank_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == 0.03125
    assert signed_rank_p([0.1, 0.2, 0.3, 0.4, 0.5]) > 0.05


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=6, max_size=14))
def test_signed_rank_p_is_scipys_exact_one_without_ties(values):
    d = np.round(values, 6)
    d = d[np.unique(np.abs(d), return_index=True)[1]]
    d = d[d != 0]
    if len(d):
        assert signed_rank_p(d) == pytest.approx(wilcoxon(d, method="exact").pvalue)


def test_signed_rank_p_is_scipys_permutation_with_ties_and_zeros():
    d = [0.1, 0.2, -0.1, 0.0, 0.1, 0.3, 0.1]
    exact = wilcoxon(d, method=PermutationMethod()).pvalue
    assert signed_rank_p(d) == pytest.approx(exact)
    # 0.3 - 0.2 and 0.2 - 0.1 differ in the last bit, and yet they tie.
    assert signed_rank_p([0.3 - 0.2, -(0.2 - 0.1)] * 3) == 1.0


def test_no_difference_at_all_has_p_one():
    assert signed_rank_p(np.zeros(8)) == 1.0


# Differences with a known answer


def test_identical_arms_differ_by_exactly_nothing():
    found = run(benchmark(lambda _, k, site: noisy("same", k, site), seeds=6))
    for contrast in [one for part in found["differences"].values() for one in part.values()]:
        for metric in METRICS:
            record = contrast[metric]
            assert record["mean"] == 0, metric
            assert record["low"] == pytest.approx(-record["high"]), metric
            assert record["p"] == 1.0
    for part in found["headline"].values():
        assert part["excludes_zero"] is False
        assert "no significant difference" in part["sentence"]


def test_what_nobody_got_wrong_has_an_interval_of_some_more_people():
    def say(model, k, site):
        return right(15) if model == "fedavg" else np.full(SCANS, 0.9)  # always "ill"

    found = run(benchmark(say))
    perfect = found["scores"]["island"]["federated/fedavg"]
    for metric in ("balanced_accuracy", "auroc", "f1"):
        # Wilson's interval of 30 right of 30.
        assert perfect[metric]["high"] == 1
        assert perfect[metric]["low"] == pytest.approx(1 / (1 + t.ppf(0.975, 28) ** 2 / 30))
    # "Always ill" has sensitivity 1 and specificity 0 in every resample: half.
    gain = found["differences"]["island"]["federated - local"]
    for metric in ("balanced_accuracy", "auroc"):
        assert gain[metric]["mean"] == 0.5
        assert 0.35 < gain[metric]["low"] < 0.5 < gain[metric]["high"] < 0.65
    assert found["headline"]["gain_of_data_poor_site"]["excludes_zero"] is True


def test_a_shift_of_two_scans_a_class_in_every_seed():
    found = run(
        benchmark(lambda model, k, _: right(12 if model == "fedavg" else 10), seeds=6), draws=4000
    )
    gain = found["differences"]["island"]["federated - local"]["balanced_accuracy"]
    assert gain["mean"] == pytest.approx(2 / 15)
    assert gain["p"] == 0.03125 and gain["note"] is None
    assert (gain["repetitions"], gain["over"]) == (6, "people and repetitions")
    # The difference of a pair is 1 for 2 of 15 scans and 0 else: mean of two binomials over 30.
    spread = math.sqrt(2 / 15 * 13 / 15 / 30)
    assert gain["low"] == pytest.approx(2 / 15 - 1.96 * spread, abs=0.04)
    assert gain["high"] == pytest.approx(2 / 15 + 1.96 * spread, abs=0.04)
    # Three sites of their own people: narrower by about √3 for the mean over sites.
    loss = found["headline"]["loss_against_pooling"]
    assert loss["value"] == pytest.approx(-2 / 15)
    assert (loss["high"] - loss["low"]) / (gain["high"] - gain["low"]) == pytest.approx(
        1 / math.sqrt(3), abs=0.08
    )
    assert loss["low"] < loss["value"] < loss["high"] < 0 and loss["excludes_zero"]
    assert "0.13 higher with federation" in loss["sentence"]


def test_the_interval_of_a_binomial_is_close_to_the_normal_approximation():
    n, share = 400, 0.8
    labels = np.arange(n) % 2
    wrong = np.arange(n) // 2 >= share * n / 2
    p = np.where(labels ^ wrong, 0.8, 0.2)
    tables = benchmark(lambda *_: p, labels=labels)
    record = run(tables, draws=4000)["scores"]["north"]["centralized"]["balanced_accuracy"]
    half = norm.ppf(0.975) * math.sqrt(share * (1 - share) / n)
    assert record["mean"] == pytest.approx(share)
    assert record["low"] == pytest.approx(share - half, abs=0.006)
    assert record["high"] == pytest.approx(share + half, abs=0.006)
    assert (record["n"], record["repetitions"], record["over"]) == (n, 1, "people")


FEW_PEOPLE, MORE = (8, 9, 10, 12), (60, 60)


@pytest.mark.parametrize("sizes", [(8, 8), FEW_PEOPLE, MORE])
@pytest.mark.parametrize("repetitions", [1, 3, 5])
@pytest.mark.parametrize("new", [True, False], ids=["new cohorts", "one cohort"])
@pytest.mark.parametrize("levels", [(0.75, 0.85), (0.9, 0.9)])
def test_intervals_cover_the_truth(sizes, repetitions, new, levels):
    """Of a mean and of a paired difference; 0.93 stands four standard errors below 0.95."""
    about = {"repetitions": repetitions, "new": new, "seeds": 0.3, "trials": 2000}
    assert min(covered(sizes, levels, **about)) >= 0.93


@pytest.mark.parametrize("repetitions", [1, 3])
@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_bootstrap_samples_are_those_whose_coverage_is_known(repetitions, paired):
    rng = np.random.default_rng(0)
    right = drawn(rng, (20, 30), np.array([0.7, 0.8]), repetitions=repetitions, new=False,
                  seeds=0.2, trials=1)  # fmt: skip
    labels = np.repeat([0, 1], [20, 30])
    weights = resampling_weights(labels, 20000, rng)
    found = []
    for model in (0, 1):
        each = np.concatenate([one[0, model] for one in right])  # (persons, K)
        means = [weights[:, labels == c] @ each[labels == c] / (labels == c).sum() for c in (0, 1)]
        plain = [each[labels == c].mean(axis=0) for c in (0, 1)]
        values = dict(enumerate(np.mean(plain, axis=0)))
        resampled = dict(enumerate(np.mean(means, axis=0).T))
        strata = ((0.5, 20), (0.5, 30))
        found.append(Repeated(values, resampled, bounds=(0.0, 1.0), strata=strata))
    record = (Repeated.combine(found, [1, -1]) if paired else found[0]).record()
    (low,), (high,) = intervals_of(right, new=False, paired=paired)
    assert (record["low"], record["high"]) == pytest.approx((low, high), abs=0.006)


def test_an_interval_of_repetitions_alone_is_students():
    record = Repeated({0: 1.0, 1: 2.0, 2: 3.0}).record()
    half = t.ppf(0.975, 2) / math.sqrt(3)
    assert (record["low"], record["high"]) == pytest.approx((2 - half, 2 + half))


def test_intervals_of_scores_stay_within_their_scale():
    values = {0: 0.99, 1: 0.9, 2: 1.0}
    for bounds, low, high in (((0.0, 1.0), 0.0, 1.0), (None, -math.inf, math.inf)):
        record = Repeated(values, bounds=bounds).record()
        assert low < record["low"] < record["mean"] < record["high"] < high
    assert record["high"] > 1  # of what has no end
    one = Repeated(values, bounds=(0.0, 1.0))
    other = Repeated({k: 1 - v for k, v in values.items()}, bounds=(0.0, 1.0))
    record = Repeated.combine([one, other], [1, -1]).record()
    assert record["mean"] > 0.9 and record["high"] < 1


def test_seeds_widen_the_interval_only_where_predictions_differ_by_seed():
    one = run(benchmark(lambda *_: right(11)))
    same = run(benchmark(lambda *_: right(11), seeds=5))
    other = run(benchmark(lambda model, k, _: right(7 + 2 * k), seeds=5))  # 7 to 15, mean 11

    def width(found):
        record = found["scores"]["south"]["local"]["balanced_accuracy"]
        assert record["mean"] == pytest.approx(11 / 15)
        return record["high"] - record["low"]

    assert width(same) == pytest.approx(width(one), rel=0.02)
    assert width(other) > 1.2 * width(same)


# New cohorts


def apart(tables):
    """Give each repetition test people of its own: as many, in another order and labelled so."""
    results, sides = tables
    changed = {}
    for site, frame in sides.items():
        flip = (frame["seed"] % 2).astype(bool)
        named = ["probability.healthy", "probability.ill"]
        other = frame[flip].rename(columns=dict(zip(named, named[::-1], strict=True)))
        changed[site] = pd.concat([frame[~flip], other.assign(label=1 - other["label"])])
    return results, changed


def test_people_of_different_cohorts_are_never_paired():
    tables = apart(benchmark(noisy, seeds=3))
    with pytest.raises(FedscanError, match="the label or the person of a test image changes"):
        run(tables)
    found = run(tables, new_cohorts=True)
    assert found["new_cohorts"] is True
    record = found["differences"]["north"]["federated - local"]["balanced_accuracy"]
    assert record["over"] == "repetitions"
    values = np.array(list(record["values"].values()))
    half = t.ppf(0.975, 2) * values.std(ddof=1) / math.sqrt(3)
    # Student's, on the scale of a difference, which shrinks towards its ends.
    assert record["high"] - record["low"] == pytest.approx(2 * half, rel=0.3)
    curves = found["curves"]["north"]["local"]
    assert np.sum(curves["confusion"], axis=1).tolist() == [3 * 15, 3 * 15]


def test_people_of_one_cohort_alone_are_resampled():
    tables = benchmark(noisy)
    new, same = (run(tables, new_cohorts=one) for one in (True, False))
    assert new["scores"] == same["scores"] and new["differences"] == same["differences"]
    assert new["scores"]["north"]["local"]["auroc"]["over"] == "people"


def test_a_class_of_few_people_in_any_cohort_leaves_no_interval():
    results, sides = benchmark(noisy, seeds=2)
    frame = sides["north"]
    gone = (frame["seed"] == 1) & (frame["label"] == 1) & (frame["scan"] > 7)
    found = run((results, sides | {"north": frame[~gone]}), new_cohorts=True)
    record = found["scores"]["north"]["local"]["balanced_accuracy"]
    assert record["low"] is None and "fewer than 5 test people of ill" in record["note"]
    assert found["scores"]["island"]["local"]["balanced_accuracy"]["low"] is not None
    assert found["counts"]["north"]["images"]["ill"] == 4
    assert found["counts"]["north"]["few"] == ["ill"]


# What is told, and what is not


def test_every_number_is_there_and_fits_json(five_seeds):
    found = json.loads(json.dumps(five_seeds, allow_nan=False))
    models = {"local", "centralized", "federated/fedavg", "federated/fedprox"}
    contrasts = {"federated - local", "federated - centralized", "fedprox - fedavg"}
    assert set(found["scores"]) == set(found["differences"]) == {"all", *SITES}
    for site in SITES:
        others = {f"local at {other}" for other in SITES if other != site}
        assert set(found["scores"][site]) == models | others
        assert set(found["differences"][site]) == contrasts
        for record in found["scores"][site]["local"].values():
            assert record["low"] <= record["high"] and record["n"] == SCANS
    assert set(found["differences"]["all"]) == contrasts
    assert found["repetitions"] == [0, 1, 2, 3, 4] and found["reference_strategy"] == "fedavg"


def test_differences_are_those_of_the_means(five_seeds):
    means = {m: r["auroc"]["mean"] for m, r in five_seeds["scores"]["north"].items()}
    found = five_seeds["differences"]["north"]
    fedavg = means["federated/fedavg"]
    for name, other in (("federated - local", "local"), ("federated - centralized", "centralized")):
        assert found[name]["auroc"]["mean"] == pytest.approx(fedavg - means[other])
    fedprox = found["fedprox - fedavg"]["auroc"]["mean"]
    assert fedprox == pytest.approx(means["federated/fedprox"] - fedavg)
    over = five_seeds["differences"]["all"]["fedprox - fedavg"]["auroc"]
    each = [five_seeds["differences"][s]["fedprox - fedavg"]["auroc"]["mean"] for s in SITES]
    assert over["mean"] == pytest.approx(np.mean(each)) and over["sites"] == list(SITES)


def test_too_few_seeds_say_so_instead_of_p(five_seeds):
    record = five_seeds["differences"]["south"]["federated - centralized"]["loss"]
    assert record["p"] is None and record["low"] < record["high"]
    assert record["note"] == "p needs at least 6 repetitions, there are 5"


def test_headline_is_taken_from_the_differences_and_says_how_sure_it_is(five_seeds):
    gain = five_seeds["headline"]["gain_of_data_poor_site"]
    source = five_seeds["differences"]["island"]["federated - local"]["balanced_accuracy"]
    assert [gain[k] for k in ("value", "low", "high")] == [
        source[k] for k in ("mean", "low", "high")
    ]
    span = f"{source['low']:.2f} to {source['high']:.2f}"
    assert gain["excludes_zero"] == (source["low"] > 0 or source["high"] < 0)
    start = "joining raised" if gain["excludes_zero"] else "balanced accuracy was"
    assert gain["value"] > 0 and gain["sentence"].startswith(f"At island, {start} ")
    assert f"(95 % CI {span}; 5 repetitions)" in gain["sentence"]
    loss = five_seeds["headline"]["loss_against_pooling"]
    over = five_seeds["differences"]["all"]["federated - centralized"]["balanced_accuracy"]
    assert (loss["value"], loss["low"]) == (-over["mean"], -over["high"])


def test_sentences_of_a_clear_gain_and_of_harm():
    found = run(benchmark(lambda model, k, _: right({"fedavg": 12}.get(model, 8)), seeds=2))
    gain = found["headline"]["gain_of_data_poor_site"]
    assert gain["sentence"] == (
        f"At island, joining raised balanced accuracy by 0.27 (95 % CI {gain['low']:.2f} "
        f"to {gain['high']:.2f}; 2 repetitions)."
    )
    found = run(benchmark(lambda model, k, _: right({"fedavg": 8}.get(model, 12))))
    harm = found["headline"]["gain_of_data_poor_site"]
    assert harm["sentence"] == (
        "At island, joining lowered balanced accuracy by 0.27 (difference -0.27, 95 % CI "
        f"{harm['low']:.2f} to {harm['high']:.2f}; 1 repetition); one repetition cannot show how "
        "much chance in training matters."
    )
    assert "0.27 lower with federation" in found["headline"]["loss_against_pooling"]["sentence"]


def test_the_seed_repeats_the_summary_and_the_order_of_rows_does_not_matter():
    results, sides = benchmark(noisy, seeds=2)
    shuffled = {site: frame.sample(frac=1, random_state=1) for site, frame in sides.items()}
    first = run((results, sides), seed=4)
    assert run((results.sample(frac=1, random_state=0), shuffled), seed=4) == first
    assert run((results, sides), seed=5) != first


def test_tables_read_back_from_csv_give_the_same_summary(tmp_path):
    results, sides = benchmark(noisy, seeds=2)
    results.to_csv(tmp_path / "results.csv", index=False)
    read = {}
    for site, frame in sides.items():
        frame.to_csv(tmp_path / f"{site}.csv", index=False)
        read[site] = pd.read_csv(tmp_path / f"{site}.csv")
    table = pd.read_csv(tmp_path / "results.csv")
    assert table["strategy"].isna().any()  # the empty strategy of the other arms

    def rounded(found):  # a CSV may cost a float its last bit
        return json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 9))

    assert rounded(run((table, read))) == rounded(run((results, sides)))


def test_every_model_is_told_at_every_site():
    def say(model, k, site):
        return right(15 if site == "north" else 12 + k)

    scores = run(benchmark(say, seeds=2))["scores"]
    assert sum(len(scores[site]) for site in SITES) == 9 + 3 + 3
    told = {key: scores[key[1]][key[0]]["balanced_accuracy"] for key in [
        ("local at island", "north"), ("local at south", "island"), ("federated/fedavg", "south")
    ]}  # fmt: skip
    assert told["local at island", "north"]["mean"] == 1.0
    assert told["local at south", "island"]["mean"] == pytest.approx(12.5 / 15)
    assert told["federated/fedavg", "south"]["repetitions"] == 2


def test_local_means_the_sites_own_model():
    results, sides = benchmark(lambda *_: right(12))
    foreign = (results["arm"] == "local") & (results["trained_on"] != results["tested_on"])
    results.loc[foreign, "value"] = 0.0
    found = run((results, sides))
    assert found["scores"]["island"]["local"]["balanced_accuracy"]["mean"] == pytest.approx(0.8)


def test_the_learning_curve_is_in_no_mean():
    results, sides = benchmark(lambda *_: right(12))
    curve = results.assign(split="val", value=0.0)
    assert run((pd.concat([results, curve]), sides)) == run((results, sides))


# What is missing


def failed(status, arm=FEDAVG, seed=0, trained_on="all"):
    row = {"arm": arm[0], "strategy": arm[1], "seed": seed, "trained_on": trained_on}
    return pd.DataFrame(
        [row | {"tested_on": None, "metric": None, "value": None, "status": status}]
    )


def test_failed_cells_are_counted_and_in_no_mean():
    results, sides = benchmark(noisy, seeds=3)
    kept = results[(results["arm"] != "federated") | (results["seed"] != 1)]
    found = run((pd.concat([kept, failed("diverged", seed=1)]), sides))
    assert found["cells"]["by_model"] == {
        "centralized": {"done": 3},
        "federated/fedavg": {"done": 2, "diverged": 1},
        "local": {"done": 3},
    }
    assert found["cells"]["left_out"] == 1
    assert found["cells"]["note"] == (
        "1 of 9 cells are not wholly in the means (federated/fedavg: 1 diverged)"
    )
    # Paired: only the repetitions that both arms have.
    both = kept[(kept["seed"] != 1) & (kept["tested_on"] == "island") & (kept["metric"] == "auroc")]
    own = both[(both["arm"] == "local") & (both["trained_on"] == "island")]["value"].mean()
    federated = both[both["arm"] == "federated"]["value"].mean()
    record = found["differences"]["island"]["federated - local"]["auroc"]
    assert record["repetitions"] == 2 and record["mean"] == pytest.approx(federated - own)
    assert found["scores"]["island"]["local"]["auroc"]["repetitions"] == 3


def test_a_difference_takes_the_repetitions_that_both_arms_have():
    results, sides = benchmark(noisy, seeds=3)
    lost = (results["arm"] == "local") & (results["trained_on"] == "island")
    found = run((results[~(lost & (results["seed"] == 0))], sides))
    seeds = {s: found["differences"][s]["federated - local"]["f1"]["repetitions"] for s in SITES}
    assert seeds == {"island": 2, "north": 3, "south": 3}
    over = found["differences"]["all"]["federated - local"]["f1"]
    assert over["repetitions"] == 2 and over["sites"] == list(SITES) and over["low"] < over["high"]
    assert found["headline"]["loss_against_pooling"]["repetitions"] == 3


def test_only_federated_has_scores_but_no_differences():
    found = run(benchmark(noisy, arms=(FEDAVG,), seeds=2))
    assert found["scores"]["north"]["federated/fedavg"]["auroc"]["low"] is not None
    record = found["differences"]["north"]["federated - local"]["auroc"]
    assert record["mean"] is record["low"] is record["p"] is None
    assert record["note"] == "local has no test result at north"
    assert found["headline"]["gain_of_data_poor_site"]["value"] is None
    assert found["headline"]["loss_against_pooling"]["sentence"].startswith(
        "What federation loses against pooling cannot be told: centralized has no test result"
    )


def test_no_federated_run_at_all_names_what_is_missing():
    results, sides = benchmark(noisy, arms=(LOCAL, CENTRALIZED))
    found = run((pd.concat([results, failed("timeout")]), sides))
    assert found["reference_strategy"] == "fedavg"
    sentence = found["headline"]["gain_of_data_poor_site"]["sentence"]
    assert "federated/fedavg has no test result at island" in sentence
    without = run((results, sides))["headline"]["gain_of_data_poor_site"]["sentence"]
    assert without.endswith("cannot be told: federated has no test result at island.")


def test_a_site_without_test_scans_is_left_out_of_the_mean_over_sites_by_name():
    results, sides = benchmark(noisy, seeds=2)
    del sides["south"]
    found = run((results[results["tested_on"] != "south"], sides))
    assert found["scores"]["south"] == {}
    record = found["differences"]["all"]["federated - local"]["auroc"]
    assert record["sites"] == ["island", "north"] and record["mean"] is not None
    assert "without south" in record["note"]


def test_one_class_leaves_auroc_undefined_and_the_rest_defined():
    ill = np.ones(SCANS, dtype=int)
    found = run(benchmark(noisy, seeds=2, labels=ill))
    scores = found["scores"]["island"]["local"]
    assert scores["auroc"]["mean"] is scores["auroc"]["low"] is None
    assert scores["balanced_accuracy"]["low"] is not None
    record = found["differences"]["island"]["federated - local"]["auroc"]
    assert record["mean"] is None and record["note"] == "test images of one class only"
    json.dumps(found, allow_nan=False)


def test_without_predictions_intervals_are_over_seeds_alone():
    results, _ = benchmark(noisy, seeds=6)
    record = run((results, {}))["differences"]["north"]["federated - centralized"]["loss"]
    values = np.array(list(record["values"].values()))
    half = t.ppf(0.975, 5) * values.std(ddof=1) / math.sqrt(6)
    ends = pytest.approx((values.mean() - half, values.mean() + half))
    assert (record["low"], record["high"]) == ends and record["over"] == "repetitions"
    assert 0 < record["p"] <= 1
    found = run((results[results["seed"] == 0], {}))
    record = found["differences"]["north"]["federated - centralized"]["loss"]
    assert record["mean"] is not None and record["low"] is None
    assert record["note"].endswith("one repetition: no interval")
    gain = found["headline"]["gain_of_data_poor_site"]
    assert gain["excludes_zero"] is None and "no interval" in gain["sentence"]


def test_nothing_but_failures_is_a_summary_too():
    found = run((failed("error").assign(split=None, n=0), {}))
    assert found["cells"]["left_out"] == 1 and found["repetitions"] == []
    assert found["headline"]["gain_of_data_poor_site"]["value"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("flaw", ["twice", "missing", "label"])
def test_models_that_were_not_tested_on_the_same_scans_are_refused(flaw):
    results, sides = benchmark(noisy)
    frame = sides["north"].reset_index(drop=True)
    if flaw == "twice":
        frame = pd.concat([frame, frame.iloc[-1:]])
    elif flaw == "missing":
        frame = frame.iloc[:-1]
    else:
        frame.loc[len(frame) - 1, "label"] = 0
    with pytest.raises(FedscanError, match=r"'north'.*same images"):
        run((results, sides | {"north": frame}))


def test_a_test_value_that_is_there_twice_is_refused():
    results, sides = benchmark(noisy)
    with pytest.raises(FedscanError, match="twice"):
        run((pd.concat([results, results.iloc[:1]]), sides))


# Which pairs are told


def test_named_pairs_are_told_instead_of_every_strategy_against_the_reference():
    tables = benchmark(noisy, arms=(LOCAL, FEDAVG, FEDPROX), seeds=2)
    named = [["fedavg", "fedprox"], ["fedprox", "local"]]
    found = run(tables, reference_strategy="fedprox", contrasts=named)
    names = ["federated - centralized", "fedavg - fedprox", "fedprox - local"]
    for place in SITES:
        assert list(found["differences"][place]) == names
    other = run(tables)
    for site in SITES:
        one, two = (f["differences"][site] for f in (found, other))
        flipped = two["fedprox - fedavg"]["auroc"]
        assert one["fedavg - fedprox"]["auroc"]["mean"] == pytest.approx(-flipped["mean"])
    assert found["reference_strategy"] == "fedprox"
    gain = found["headline"]["gain_of_data_poor_site"]
    told = found["differences"]["island"]["fedprox - local"]["balanced_accuracy"]
    assert (gain["value"], gain["low"]) == (told["mean"], told["low"])
    local = found["scores"]["island"]["local"]["balanced_accuracy"]["mean"]
    mine = found["scores"]["island"]["federated/fedprox"]["balanced_accuracy"]["mean"]
    assert gain["value"] == pytest.approx(mine - local)
