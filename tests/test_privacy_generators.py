"""Differential privacy of generators: real images reach what leaves by D's noisy steps alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_task_generation import SITES, at, slices
from test_training_progress import require_same_bits
from tiny import dataset, run_config

from common.errors import ConfigError
from common.imaging.slices import LEVELS_MM
from common.local_round import first_weights, train_one_round
from common.models.architecture import encode_labels
from common.privacy import dp_sgd
from common.privacy.dp_sgd import DPSGD
from common.privacy.guarantee import guarantee_of
from common.tasks.generation_quality import COPYING
from common.tasks.task import load_task, read_run_config
from common.training import gan
from common.training.gan import Draws, private_discriminator_step, train_step
from common.training.gan_presets import PRESETS, stylegan2
from common.training.gan_private import PrivateSlices, require_covered
from common.training.gan_state import GanTraining

pytestmark = pytest.mark.usefixtures("one_thread")

generation = load_task("generation")
SMALL = "resolution=16 channel-max=8 z-dim=8 w-dim=8 path-weight=2 label-kinds=sex,height,site"
TINY = {
    "task": "generation",
    "model.gan-changes": SMALL,
    "training.batch-size": 4,
    "training.local-steps": 3,
    "run.rounds": 2,
    "privacy.epsilon": 8.0,
}
STEPS = 3
FIT = gan.GanFit({})


def config(**changes):
    return run_config(TINY, **changes)


def women(people: int, seed: int):
    """As many people of as many images as `slices`, all of one sex."""
    rng = np.random.default_rng(seed)
    conditions = [
        {"sex": "female", "height": f"{level:g}", "site": "north"}
        for _ in range(people)
        for level in LEVELS_MM
    ]
    persons = [f"sub-{person}" for person in range(people) for _ in LEVELS_MM]
    images = rng.uniform(0, 1, (len(persons), 1, 16, 16)).astype(np.float32)
    return dataset(images, None, persons, conditions)


def one_round(run, data):
    place = at("north")
    model = generation.build_model(run, place)
    return train_one_round(
        generation,
        model,
        data,
        run,
        received=first_weights(generation, model, run, SITES),
        private={},
        place=place,
        round_number=1,
    )


@pytest.mark.parametrize("share", ["both", "generator"])
def test_all_that_leaves_tells_of_images_and_labels_by_noisy_gradients_alone(share, monkeypatch):
    """With their sum taken away, other images and labels of as many people change nothing."""
    drawn = []

    def nothing(losses, weights, max_norm):
        drawn.append(sum(1 for _ in losses))
        return [torch.zeros_like(weight) for weight in weights]

    monkeypatch.setattr(dp_sgd, "sum_of_clipped", nothing)
    run = config(share=share)
    one, other = one_round(run, slices("north", 6, 0)), one_round(run, women(6, 1))
    assert len(drawn) == 2 * STEPS and sum(drawn)
    for name in ("sent", "private"):
        first, second = getattr(one, name), getattr(other, name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    speed = "images-per-second"
    assert one.metrics == other.metrics and speed not in one.metrics


def test_a_site_tells_what_it_has_spent_and_nothing_of_real_images():
    run = config()
    metrics = one_round(run, slices("north", 6, 0)).metrics
    assert metrics["epsilon"] == guarantee_of(run, 6).spent(1)
    assert metrics.keys() == generation.reports(run).training
    assert not {"loss-discriminator", "sign-real", "images-per-second"} & metrics.keys()
    assert not {*COPYING} & generation.reports(run).evaluation
    assert {*COPYING} <= generation.reports(run_config({**TINY, "privacy.epsilon": 0})).evaluation


# One person's part


def gradient(data, run, mechanism: DPSGD, monkeypatch) -> torch.Tensor:
    """Return the gradient of D's first step, as one vector."""
    training = generation.build_model(run, at("north"))
    given = (training.architecture, training.config, training.device)
    private = PrivateSlices(data, *given, mechanism=mechanism, site="north")
    monkeypatch.setattr(gan, "_optimize", lambda _: torch.zeros(()))
    private_discriminator_step(training, private, Draws(0, 0, training.device))
    return torch.cat([p.grad.flatten() for p in training.discriminator.parameters()])


def everyone(max_norm: float, people: int = 4) -> DPSGD:
    return DPSGD(0.0, max_norm, people=people, rate=1.0, images=5, seed=0)


@pytest.mark.parametrize("person", ["sub-0", "sub-3"])
@pytest.mark.parametrize("norm", [1e-3, 1e3])
def test_a_person_with_all_images_moves_the_discriminators_sum_by_the_norm(
    norm, person, monkeypatch
):
    """Also the first of them: what is drawn for the others stays as it is."""
    run, data = config(), slices("north", 4, 0)
    without = data.subset(np.array([name != person for name in data.persons]))
    one, other = (gradient(d, run, everyone(norm), monkeypatch) for d in (data, without))
    moved = 4 * float((one - other).norm())
    assert 0 < moved <= norm * (1 + 1e-3)
    if norm == 1e-3:  # below every gradient
        assert moved == pytest.approx(norm, rel=1e-2)


def test_pictures_are_judged_alike_alone_and_in_a_batch():
    training = generation.build_model(config(), at("north"))
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    row = {"sex": "male", "height": f"{LEVELS_MM[0]:g}", "site": "north"}
    labels = encode_labels(training.architecture, [row]).repeat(6, 1)
    together = training.discriminator(images, labels)
    alone = torch.cat([training.discriminator(images[[k]], labels[[k]]) for k in range(6)])
    torch.testing.assert_close(together, alone)


def test_noise_of_the_discriminators_gradient_has_the_sd_of_its_formula(monkeypatch):
    run, data = config(), slices("north", 4, 0)
    plain = everyone(0.5)
    noisy = replace(plain, noise_multiplier=3.0)
    found, without = (gradient(data, run, m, monkeypatch) for m in (noisy, plain))
    assert float((found - without).std()) == pytest.approx(3.0 * 0.5 / 4, rel=0.05)


def test_gradients_of_people_are_summed_and_divided_by_their_expected_number(monkeypatch):
    run, data = config(), slices("north", 4, 0)
    two, four = (gradient(data, run, everyone(math.inf, n), monkeypatch) for n in (2, 4))
    torch.testing.assert_close(two, 2 * four)


def test_a_step_without_anybody_is_noise_and_generated_pictures_alone_teach_nothing(monkeypatch):
    run, data = config(), slices("north", 4, 0)
    nobody = replace(everyone(1.0), rate=1e-9)
    assert not gradient(data, run, nobody, monkeypatch).any()
    assert gradient(data, run, replace(nobody, noise_multiplier=1.0), monkeypatch).all()


# Labels


def test_labels_of_generated_pictures_are_all_that_the_site_can_have_whoever_is_there():
    training = generation.build_model(config(), at("north"))
    given = (training.architecture, training.config, training.device)
    private = PrivateSlices(women(4, 0), *given, mechanism=everyone(1.0), site="north")
    drawn = private.draw_labels(4000, torch.Generator().manual_seed(0)).mean(0)
    known = dict(training.architecture.labels)
    expected = [1 / len(known["sex"])] * 2 + [1 / len(known["height"])] * len(known["height"])
    expected += [float(name == "north") for name in SITES]
    kinds = [kind for kind, _ in training.architecture.labels]
    assert kinds == ["sex", "height", "site"]
    assert drawn.tolist() == pytest.approx(expected, abs=0.05)
    assert private.spread == 0


# What is refused


@pytest.mark.parametrize(
    "change", ["r1-gamma=0.1", "diversity-weight=0.2", "minibatch-group=4", "augment=adaptive"]
)
def test_what_uses_real_images_in_another_way_is_refused(change):
    with pytest.raises(ConfigError, match=rf"{change.partition('=')[0]} = .* privacy\.epsilon"):
        read_run_config({**TINY, "model.gan-changes": f"{SMALL} {change}"})
    changes = dict([change.split("=")])
    given = {key: value if value == "adaptive" else float(value) for key, value in changes.items()}
    given = {key: int(v) if key == "minibatch-group" else v for key, v in given.items()}
    with pytest.raises(ConfigError):
        require_covered(stylegan2(config()).with_changes(given))


def test_intensities_by_landmarks_of_all_people_are_refused():
    with pytest.raises(ConfigError, match=r"data\.harmonize"):
        read_run_config({**TINY, "data.harmonize": "landmarks"})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_covered_with_its_own_changes_and_varies_images(name):
    study = "skin-lesions" if name == "paper-256" else "brain-sex"
    run = read_run_config(
        {"task": "generation", "study": study, "model.gan": name, "privacy.epsilon": 8.0}
    )
    require_covered(stylegan2(run))
    assert not generation.without_augmentation(run)
    plain = run.replace({"privacy.epsilon": 0.0})
    assert stylegan2(plain).r1_gamma > 0 and stylegan2(plain).augment == "adaptive"


# In a training


def test_an_interrupted_round_ends_in_the_same_bits(tmp_path, monkeypatch):
    run = read_run_config(TINY)
    assert require_same_bits(run, slices("north", 6, 0), tmp_path, monkeypatch) == STEPS


def test_a_training_in_two_calls_draws_the_people_and_noise_of_one():
    run, data = config(), slices("north", 6, 0)
    mechanism = replace(everyone(1.0), rate=0.5, noise_multiplier=1.0)

    def trained(*calls: int) -> dict[str, torch.Tensor]:
        training = generation.build_model(run, at("north"))
        for steps in calls:
            done = training.steps
            gan.fit(training, data, steps=steps, seed=0, mechanism=mechanism, drawn=done)
        return training.export("parameters")

    one, other = trained(3), trained(1, 2)
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_people_are_drawn_anew_in_each_round(monkeypatch):
    seeds = []
    monkeypatch.setattr(gan, "fit", lambda *_, mechanism, **__: seeds.append(mechanism.seed) or FIT)
    run, model = config(), generation.build_model(config(), at("north"))
    for number in (1, 2):
        generation.fit(
            model,
            slices("north", 4, 0),
            run,
            place=at("north"),
            round_number=number,
            private={},
        )
    assert len(set(seeds)) == 2


def test_the_discriminator_learns_of_people_where_the_noise_is_small():
    """Images of all people are white: D comes to prefer white to black."""
    run, count = config(), 4 * len(LEVELS_MM)
    images = np.ones((count, 1, 16, 16), np.float32)
    data = slices("north", 4, 0)
    data = dataset(images, None, data.persons, data.conditions)
    training: GanTraining = generation.build_model(run, at("north"))
    given = (training.architecture, training.config, training.device)
    mechanism = replace(everyone(1.0), noise_multiplier=1e-3)
    private = PrivateSlices(data, *given, mechanism=mechanism, site="north")
    for _ in range(12):
        train_step(training, private, seed=0)
    pictures = torch.ones(2, 1, 16, 16) * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    white, black = training.discriminator(pictures, private.labels[:1].repeat(2, 1)).tolist()
    assert white > black
