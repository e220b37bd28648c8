"""The training loop: what decides it, what it carries on, and when it gives up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import dataset, load_model, run_config
from torch import Tensor, nn

from common.config.run_config import RunConfig
from common.data.dataset import Dataset
from common.errors import FedscanError
from common.evaluation.of_site import Evaluation
from common.imaging.prepare import HEAD
from common.predictions import save_predictions
from common.strategies.strategy import load_strategy
from common.studies.study import read_study
from common.tasks.classification import score
from common.tasks.task import Fit, SiteContext, load_task, roster, survey
from common.training import classifier_augment
from common.training.batches import _Batches
from common.training.classifier import cosine, predict
from common.training.classifier_augment import _interpolation, _resampled, augment
from common.training.classifier_state import MOMENTS

pytestmark = pytest.mark.usefixtures("one_thread")

classification = load_task("classification")
STUDY = read_study("brain-sex")
CPU = torch.device("cpu")
SITES = ("island", "north")
NORTH, ISLAND = (SiteContext(site, SITES, CPU) for site in ("north", "island"))
SIDE = 16
TINY = {
    "data.size": SIDE,
    "training.batch-size": 4,
    "training.learning-rate": 3e-3,
    "run.rounds": 2,
    "training.local-steps": 10,
}


def make_images(count: int, seed: int, *, blob: bool = True, men: float = 0.5) -> Dataset:
    """Noisy cubes in air; with ``blob``, a bright place in the lower half tells class 1."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) < round(men * count)).astype(np.int64)
    images = np.zeros((count, 1, SIDE, SIDE, SIDE), dtype=np.float32)
    images[..., 2:-2, 2:-2, 2:-2] = rng.uniform(0.3, 0.6, (count, 1, 12, 12, 12))
    if blob:
        images[labels == 1, :, 5:11, 5:11, 3:7] += 0.3
    return dataset(images, labels)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return make_images(12, seed=0)


def config(**changes) -> RunConfig:
    return run_config(TINY, **changes)


def train(
    data: Dataset,
    run: RunConfig | None = None,
    *,
    model: nn.Module | None = None,
    round_number: int = 1,
    place: SiteContext = NORTH,
    private: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Fit]:
    run = run or config()
    model = model or classification.build_model(run)
    done = classification.fit(
        model,
        data,
        run,
        place=place,
        round_number=round_number,
        private=private or {},
        hooks=load_strategy(run.strategy.name).hooks(run, {}, {}),
    )
    return {name: weight.clone() for name, weight in model.state_dict().items()}, done


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


# What is shared


def test_initial_weights_are_the_runs_and_shared_whole():
    model = classification.build_model(config(seed=5))
    assert same(
        model.state_dict(), classification.build_model(config(seed=5, local_steps=3)).state_dict()
    )
    assert not same(model.state_dict(), classification.build_model(config(seed=6)).state_dict())
    assert same(classification.build_model(config(seed=5), ISLAND).state_dict(), model.state_dict())
    assert same(classification.shared_state(model, config()), model.state_dict())
    assert same(classification.first_release(model, config()), model.state_dict())


def test_shared_state_is_a_copy_and_is_taken_over_whole_or_not_at_all():
    model, other = (
        classification.build_model(config(seed=5)),
        classification.build_model(config(seed=6)),
    )
    shared = classification.shared_state(model, config())
    classification.load_shared(other, shared)
    assert same(other.state_dict(), model.state_dict())
    before = {name: weight.clone() for name, weight in shared.items()}
    with torch.no_grad():
        for weight in (*model.parameters(), *other.parameters()):
            weight.zero_()
    assert same(shared, before)
    name, *_ = shared
    for broken in ({k: v for k, v in shared.items() if k != name}, shared | {"more": shared[name]}):
        with pytest.raises(RuntimeError):
            classification.load_shared(other, broken)


def test_average_of_a_round_is_released_as_it_is():
    before, average = (
        classification.shared_state(classification.build_model(config(seed=seed)), config())
        for seed in (1, 2)
    )
    released = classification.release(before, average, config(), round_number=2, participants=3)
    assert same(released, average)


# Learning


def test_training_learns_what_tells_the_classes_apart(data):
    run = config(local_steps=5, rounds=16)
    model, unseen = classification.build_model(run), make_images(20, seed=9)
    before = score(STUDY, unseen.labels, predict(model, unseen, STUDY, CPU))
    _, early = train(data, run, model=model)
    private, losses = early.private, []
    for number in range(2, 17):
        _, late = train(data, run, model=model, round_number=number, private=private)
        private = late.private
        losses.append(late.metrics["loss"])
    after = score(STUDY, unseen.labels, predict(model, unseen, STUDY, CPU))
    assert np.mean(losses) < early.metrics["loss"]
    assert after["loss"] < 0.5 * before["loss"]
    assert after["balanced_accuracy"] > 0.9


def test_fit_reports_the_images_it_saw_and_leaves_the_data_alone(data):
    images, labels = data.images(), data.labels.copy()
    _, done = train(data, config(local_steps=7))
    assert done.metrics.keys() == {"loss", "images-seen"}
    assert done.metrics["images-seen"] == 7 * 4
    np.testing.assert_array_equal(data.images(), images)
    np.testing.assert_array_equal(data.labels, labels)


def test_batch_may_be_larger_than_the_data(data):
    _, done = train(data, config(batch_size=30, local_steps=2))
    assert math.isfinite(done.metrics["loss"])


# Repeatability


def test_same_seed_is_the_same_bits_and_another_seed_is_not(data):
    start = classification.shared_state(classification.build_model(config()), config())

    def from_start(seed: int = 1, place: SiteContext = NORTH, round_number: int = 1):
        model = classification.build_model(config())
        classification.load_shared(model, start)
        run = config(seed=seed, rounds=10**5)  # rounds differ little by the schedule
        return train(data, run, model=model, place=place, round_number=round_number)

    one, fit_one = from_start()
    torch.manual_seed(1234)  # no draw comes from the global generator
    two, fit_two = from_start()
    assert same(one, two)
    assert same(fit_one.private, fit_two.private)
    assert fit_one.metrics == fit_two.metrics
    assert not same(one, from_start(seed=2)[0])
    assert not same(one, from_start(place=ISLAND)[0])
    # Another round's batches are others, beyond what its place in the schedule does.
    assert from_start(round_number=2)[1].metrics["loss"] != pytest.approx(
        fit_one.metrics["loss"], rel=1e-5
    )


def test_training_leaves_the_global_generator_alone(data):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(data, config(local_steps=2))
    assert torch.equal(torch.rand(4), expected)


def test_network_that_drops_paths_is_repeatable_too():
    run = config(classifier="efficientnet-b2", batch_size=2, local_steps=1)
    small = make_images(4, seed=0)
    one, _ = train(small, run)
    torch.manual_seed(1234)
    two, _ = train(small, run)
    assert same(one, two)


# What is carried from one call to the next


def test_private_state_is_three_moments_of_every_weight(data):
    weights, done = train(data)
    assert set(done.private) == {f"{name}/{m}" for name in weights for m in MOMENTS}
    assert not set(done.private) & set(weights)
    for name, weight in weights.items():
        assert done.private[f"{name}/exp_avg"].shape == weight.shape
        assert done.private[f"{name}/step"] == 10


def test_steps_count_on_and_private_state_changes_the_result(data):
    run = config()
    start, first = train(data, run)

    def resume(private):
        model = classification.build_model(run)
        model.load_state_dict(start)
        return train(data, run, model=model, private=private, round_number=2)

    carried, second = resume(first.private)
    anew, _ = resume({})
    assert all(value == 20 for name, value in second.private.items() if name.endswith("/step"))
    assert not same(carried, anew)
    assert same(carried, resume(first.private)[0])  # the first call's moments were not changed


def test_two_calls_are_one_long_call_where_batches_do_not_matter(data):
    """What a fit draws anew is batches and augmentation; moments and schedule go on."""
    run = config(batch_size=12)
    long = config(batch_size=12, local_steps=20, rounds=1)
    together, parted = (
        KnowsOnlyFrequency(torch.tensor([0.3, -0.2])),
        KnowsOnlyFrequency(torch.tensor([0.3, -0.2])),
    )
    train(data, long, model=together)
    _, first = train(data, run, model=parted)
    train(data, run, model=parted, round_number=2, private=first.private)
    torch.testing.assert_close(parted.bias, together.bias, rtol=0, atol=1e-7)
    anew = KnowsOnlyFrequency(torch.tensor([0.3, -0.2]))
    train(data, run, model=anew)
    train(data, run, model=anew, round_number=2)
    assert not torch.allclose(anew.bias, together.bias, rtol=0, atol=1e-7)


# The schedule


@given(st.integers(1, 10**6), st.data())
def test_learning_rate_falls_from_the_peak_to_zero(total, draw):
    assert cosine(0, total) == 1
    assert cosine(total, total) == cosine(total + 5, total) == pytest.approx(0, abs=1e-12)
    step = draw.draw(st.integers(0, total))
    assert 0 <= cosine(step + 1, total) <= cosine(step, total) <= 1
    # No jump, least of all where one round ends and the next begins: |cos'| <= 1.
    assert cosine(step, total) - cosine(step + 1, total) <= math.pi / 2 / total + 1e-12


def test_half_way_is_half_the_peak():
    assert cosine(50, 100) == pytest.approx(0.5)


def test_rounds_follow_one_schedule(data, monkeypatch):
    rates = []
    step_of_adamw = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step_of_adamw(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    run = config()
    train(data, run)
    train(data, run, round_number=2)
    assert rates == [run.training.learning_rate * cosine(step, 20) for step in range(20)]
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert rates[-1] < 0.01 * run.training.learning_rate


# The mix of classes


class KnowsOnlyFrequency(nn.Module):
    """Two numbers and no eyes: all it can learn is how frequent the classes are."""

    def __init__(self, start: Tensor | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2) if start is None else start.clone())
        self.head = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.bias.expand(len(images), 2))


def learnt_frequency(men: float, batch_size: int) -> float:
    """Probability of class 1 after many small steps from no preference."""
    run = config(
        batch_size=batch_size,
        learning_rate=0.02,
        weight_decay=0,
        rounds=1,
        local_steps=400,
    )
    noise = np.zeros((40, 1, 2, 2, 2), dtype=np.float32)
    labels = (np.arange(40) < 40 * men).astype(np.int64)
    model = KnowsOnlyFrequency()
    train(dataset(noise, labels), run, model=model)
    return float(model.bias.detach().softmax(0)[1])


@pytest.mark.parametrize("men", [0.1, 0.3, 0.5, 0.9])
def test_mix_of_classes_is_no_prior_with_batches_of_all_data(men):
    assert learnt_frequency(men, batch_size=40) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("men", [0.1, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("batch_size", [4, 16])
def test_mix_of_classes_is_no_prior_with_small_batches(men, batch_size):
    """A batch without the rare class must not pull with full weight towards the other."""
    assert learnt_frequency(men, batch_size) == pytest.approx(0.5, abs=0.03)


def test_site_with_one_class_can_train():
    weights, done = train(make_images(6, seed=0, men=1.0), config(local_steps=3))
    assert math.isfinite(done.metrics["loss"])
    assert all(torch.isfinite(weight).all() for weight in weights.values())


# FedProx


def moved(data: Dataset, run: RunConfig) -> float:
    start = classification.build_model(run).state_dict()
    weights, _ = train(data, run)
    return math.sqrt(sum(float((w - start[n]).square().sum()) for n, w in weights.items()))


def test_pull_towards_the_start_keeps_the_weights_near_it(data):
    one_round = {"weight_decay": 0, "local_steps": 20, "rounds": 1}
    free = moved(data, config(**one_round))
    leashed = [
        moved(data, config(name="fedprox", options=f"mu={mu}", **one_round))
        for mu in (1e-6, 1.0, 1e4)
    ]
    assert leashed[0] == pytest.approx(free, rel=1e-2)
    assert leashed[2] < leashed[1] < leashed[0]
    assert leashed[2] < 0.2 * free


def test_proximal_term_is_half_mu_times_squared_distance(data):
    """Li et al. 2020, eq. 2: the second step's loss has it, the first is at the start itself."""
    start = torch.tensor([0.3, -0.2])

    def loss_after(steps: int) -> tuple[float, Tensor]:
        model = KnowsOnlyFrequency(start)
        length = {"local_steps": steps, "rounds": 20 // steps}  # of one schedule
        run = config(name="fedprox", options="mu=50.0", batch_size=12, **length)
        _, done = train(data, run, model=model)
        return done.metrics["loss"], model.bias.detach()

    def cross_entropy(bias: Tensor) -> float:
        return float(-bias.log_softmax(0).mean())  # of as many women as men

    first, bias = loss_after(1)
    mean_of_two, _ = loss_after(2)
    term = 50.0 / 2 * float((bias - start).square().sum())
    assert first == pytest.approx(cross_entropy(start))
    assert 2 * mean_of_two - first == pytest.approx(cross_entropy(bias) + term, rel=1e-5)
    assert term > 1e-4


# Divergence


def test_images_that_are_not_numbers_end_the_fit(data):
    broken = dataset(np.full_like(data.images(), np.nan), data.labels)
    with pytest.raises(FloatingPointError, match="diverged"):
        train(broken, config(local_steps=1))


def test_learning_rate_that_explodes_ends_the_fit(data):
    run = config(learning_rate=10, weight_decay=10, local_steps=40, rounds=1)
    with pytest.raises(FloatingPointError, match=r"lower training\.learning-rate"):
        train(data, run, model=classification.build_model(run))


# Batches


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32))
def test_every_image_once_before_any_twice(count, size, seed):
    batches = list(islice(iter(_Batches(count, size, np.random.default_rng(seed))), 12))
    assert all(len(batch) == size for batch in batches)
    stream = np.concatenate(batches)
    for start in range(0, len(stream) - count + 1, count):
        assert sorted(stream[start : start + count]) == list(range(count))
    seen = Counter(stream.tolist())
    assert max(seen.values()) - min(seen.get(i, 0) for i in range(count)) <= 1


def test_each_pass_has_an_order_of_its_own():
    stream = list(islice(iter(_Batches(30, 30, np.random.default_rng(0))), 3))
    assert len({tuple(one) for one in stream}) == 3


# Augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images(data) -> Tensor:
    return torch.from_numpy(data.images())


def test_augmentation_keeps_shape_range_and_its_input(images):
    before = images.clone()
    out = augment(images, generator())
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert torch.equal(images, before)
    assert out.data_ptr() != images.data_ptr()
    assert out.min() >= 0
    assert out.max() <= 1
    assert not torch.equal(out, before)


def test_generator_decides_every_draw(images):
    torch.manual_seed(0)
    one = augment(images, generator(4))
    torch.manual_seed(99)
    assert torch.equal(augment(images, generator(4)), one)
    assert not torch.equal(augment(images, generator(5)), one)


def shifted(image: torch.Tensor, *shift: float) -> torch.Tensor:
    """Move one cube (S, S, S)."""
    still = torch.tensor([False])
    moves = [_interpolation(torch.tensor([float(part)]), still, side=len(image)) for part in shift]
    return _resampled(image[None, None], moves)[0, 0]


@pytest.mark.parametrize("steps", [(1, -1, 0), (0, 0, -1), (-1, 1, 1)])
def test_what_is_shifted_out_of_a_scan_is_gone(steps):
    """A neck that a shift moves out below must not come in above the head."""
    image = torch.rand(4, 4, 4, generator=generator()) + 0.1
    expected = torch.zeros(4, 4, 4)
    here, there = (
        tuple(slice(max(0, sign * s), 4 + min(0, sign * s)) for s in steps) for sign in (1, -1)
    )
    expected[here] = image[there]
    torch.testing.assert_close(shifted(image, *steps), expected)


def test_part_of_a_voxel_moves_a_ramp_by_that_part():
    image = torch.arange(2.0, 10.0)[:, None, None].expand(8, 8, 8) / 20
    inside = shifted(image, 0.25, 0.0, 0.0)[1:-1]
    torch.testing.assert_close(inside, image[1:-1] - 0.25 / 20)


def test_edge_of_a_head_is_as_bright_as_its_inside_wherever_it_lies():
    """Air has no part in a voxel's mean, and a voxel that is mostly air is air."""
    image = torch.zeros(8, 8, 8)
    image[2:6, 2:6, 2:6] = 0.7
    for part in (-1.0, -0.7, -0.3, 0.0, 0.4, 0.6, 1.0):
        out = shifted(image, part, 0.0, 0.0)
        torch.testing.assert_close(out[out > 0].unique(), torch.tensor([0.7]))
        assert (out > 0).sum() == (image > 0).sum()


def test_gamma_keeps_air_and_the_order_of_intensities(images, monkeypatch):
    monkeypatch.setattr(classifier_augment, "SHIFT", 0.0)
    monkeypatch.setattr(classifier_augment, "GAMMA_SD", 0.5)
    images = torch.where(images > HEAD, images, 0.0)
    for image, varied in zip(images, augment(images, generator()), strict=True):
        assert (varied == 0).sum() == (image == 0).sum()
        both = (image, image.flip(-3))  # one of the two is what was varied
        assert any((varied.flatten()[one.flatten().argsort()].diff() >= 0).all() for one in both)


def test_head_moves_by_a_voxel_at_most_and_is_mirrored_left_to_right_only(monkeypatch):
    monkeypatch.setattr(classifier_augment, "GAMMA_SD", 0.0)
    image = torch.zeros(1, 1, 12, 12, 12)
    image[..., 2:6, 4:8, 5:9] = 0.7  # on the left
    sides = set()
    for out in augment(image.expand(200, -1, -1, -1, -1), generator()):
        centre = [float(axis.float().mean()) for axis in out[0].nonzero(as_tuple=True)]
        mirrored = centre[0] > 5.5
        at = (7.5 if mirrored else 3.5, 5.5, 6.5)
        assert all(abs(one - other) <= 1 for one, other in zip(centre, at, strict=True))
        sides.add(mirrored)
    assert sides == {False, True}


# What a site says of a model, and what all sites say together


def test_evaluation_is_the_score_of_the_split_that_was_asked_for(data, tmp_path):
    run, unseen = config(adapt="none"), make_images(20, seed=9)
    released, _ = train(data, run)
    asked: list[str] = []

    def load(split: str) -> Dataset:
        asked.append(split)
        return unseen

    found = classification.evaluate(released, load, "val", run, place=NORTH)
    model = classification.build_model(run)
    classification.load_shared(model, released)
    predictions = predict(model, unseen, STUDY, CPU)
    assert asked == ["val"]
    fewest = int(np.bincount(unseen.labels).min())
    assert found == Evaluation(
        20, score(STUDY, unseen.labels, predictions), people=20, fewest=fewest
    )
    assert not found.statistics
    assert not found.words
    assert (
        classification.evaluate(released, load, "test", run, place=NORTH, records=tmp_path / "run")
        == found
    )
    (written,) = tmp_path.rglob("*.*")
    classes = STUDY.label.classes.names
    save_predictions(tmp_path / "expected", unseen.labels, predictions, unseen.persons, classes)
    assert written == tmp_path / "run" / "predictions.csv"
    assert written.read_bytes() == (tmp_path / "expected").read_bytes()


def evaluations(sites: list[tuple[float, int]]) -> dict[str, Evaluation]:
    return {
        str(i): Evaluation(n, {"loss": loss, "balanced_accuracy": 0.625})
        for i, (loss, n) in enumerate(sites)
    }


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 99)), min_size=1, max_size=6))
def test_loss_of_all_sites_is_the_mean_over_scans(sites):
    every_scan = np.repeat([loss for loss, _ in sites], [n for _, n in sites])
    assert classification.judge(evaluations(sites), config()).loss == pytest.approx(
        every_scan.mean(), abs=1e-9
    )


def test_verdict_names_every_site_and_has_no_metric_of_the_whole():
    verdict = classification.judge(evaluations([(0.5, 1), (0.1, 3)]), config())
    assert verdict.words == "validation loss 0.200, balanced accuracy 0 0.62, 1 0.62"
    assert verdict.whole == {}
    assert math.isnan(
        classification.judge(evaluations([(float("nan"), 1), (0.1, 3)]), config()).loss
    )


def test_site_that_does_not_report_what_rounds_are_chosen_by_is_named():
    found = evaluations([(0.5, 1), (0.1, 3)])
    del found["1"].metrics["loss"]
    with pytest.raises(FedscanError, match=r"site '1': .* does not report its loss"):
        classification.judge(found, config())


def test_site_that_withholds_measures_of_classes_still_counts():
    found = evaluations([(0.5, 1), (0.1, 3)])
    del found["1"].metrics["balanced_accuracy"]
    assert (
        classification.judge(found, config()).words
        == "validation loss 0.200, balanced accuracy 0 0.62"
    )
    del found["0"].metrics["balanced_accuracy"]
    assert classification.judge(found, config()).words == "validation loss 0.200"


def test_roster_is_everybody_with_label_and_split(tiny_cohort):
    found = roster("north", tiny_cohort / "north", config())
    assert len(found) == len({name for name, _, _ in found}) == 12
    counts = survey("north", tiny_cohort / "north", config())
    splits = [split for _, _, split in found]
    assert {f"n_{s}": splits.count(s) for s in set(splits)} | {"left_out": 0} == counts
    assert {label for _, label, _ in found} == {0, 1}


def test_summary_has_each_sites_metrics_and_nothing_of_the_whole():
    found = evaluations([(0.5, 1), (0.1, 3)])
    verdict, fits = classification.judge(found, config()), {"0": {"loss": 9.0}, "1": {"loss": 9.0}}
    whole, sites = classification.summary(found, verdict, fits, config(), round_number=1)
    assert whole == {}
    assert sites == {site: one.metrics for site, one in found.items()}
    sites["0"]["loss"] = 7.0
    assert found["0"].metrics["loss"] == 0.5


def test_what_is_saved_is_the_released_state_and_how_to_build_it(data, tmp_path: Path):
    released, _ = train(data)
    shared = {name: torch.zeros_like(weight) for name, weight in released.items()}
    classification.save(tmp_path, released, shared, config(), round_number=2, place=NORTH)
    model = classification.build_model(config(seed=1))
    description = load_model(tmp_path, model)
    assert same(model.state_dict(), released)
    assert description["round"] == 2
    assert description["task"] == "classification"
    assert (description["classifier"], description["image_size"]) == ("small", SIDE)
    assert description["classes"] == ["female", "male"]
