"""Projection finds back what it should, by the rules of the paper, and says what it cannot do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError, DivergedError
from common.models.architecture import Architecture
from common.models.stylegan2 import Generator, build
from common.training.gan_sampling import combinations, known_labels, latents
from common.training.projector import (
    LATENTS,
    Projection,
    latent_statistics,
    learning_rate,
    noise_penalty,
    project_many,
)

LABELS = (("sex", ("F", "M")),)


@pytest.fixture(scope="module")
def generator() -> Generator:
    """A small generator of 16 pixels with noise that shows, as a trained one has."""
    architecture = Architecture(16, channel_base=256, channel_max=16, z_dim=16, w_dim=16)
    made = build(architecture, seed=3)[0]
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.05)
    return made


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean((1, 2, 3))


@pytest.fixture(scope="module")
def target(generator: Generator) -> Tensor:
    with torch.no_grad():
        z = latents(generator.architecture, [7], seed=0)
        return generator(z, torch.zeros(1, 0))[0]


def project(generator: Generator, target: Tensor, distance=squared, **options) -> Projection:
    """Project one target."""
    (found,) = project_many(generator, target[None], distance, **options)
    return found


@pytest.mark.parametrize("space", ["w", "w+"])
def test_a_generated_picture_is_found_back(generator: Generator, target: Tensor, space) -> None:
    done = project(generator, target, squared, space=space, steps=120)
    assert done.distance < 0.05 * done.path[0].distance
    assert squared(done.reconstruction[None], target[None]).item() == pytest.approx(done.distance)
    with torch.no_grad():  # w and noise are all that is needed to make it again
        noise = [one[None, None] for one in done.noise]
        again = generator.synthesis(done.ws[None], noise=noise)[0]
    torch.testing.assert_close(again, done.reconstruction)


def test_the_way_back_leads_towards_the_w_that_made_the_picture(generator, target) -> None:
    with torch.no_grad():
        truth = generator.mapping(latents(generator.architecture, [7], 0), torch.zeros(1, 0))[0, 0]
        draws = torch.Generator().manual_seed(0)
        start, spread = latent_statistics(generator, None, draws)
    found = project(generator, target, squared, steps=200).ws[0]
    assert (found - truth).norm() < 0.85 * (start[0] - truth).norm()
    assert spread > 0


@pytest.mark.parametrize("space", ["w", "w+"])
def test_a_target_ends_with_others_where_it_ends_alone(space) -> None:
    architecture = Architecture(
        16, labels=LABELS, channel_base=256, channel_max=16, z_dim=16, w_dim=16
    )
    generator = build(architecture, seed=3)[0]
    labels = torch.eye(2)[[0, 1, 1, 0, 1]]
    with torch.no_grad():
        targets = generator(latents(architecture, range(5), 0), labels)
    steps = []
    together = project_many(
        generator,
        targets,
        squared,
        space=space,
        steps=20,
        seed=4,
        labels=labels,
        batch=3,
        on_step=lambda step, found: steps.append((step, len(found))),
    )
    for target, label, found in zip(targets, labels, together, strict=True):
        alone = project(
            generator, target, squared, space=space, steps=20, seed=4, labels=label[None]
        )
        torch.testing.assert_close(found.ws, alone.ws, atol=1e-3, rtol=1e-3)
        assert found.distance == pytest.approx(alone.distance, rel=1e-3)
        assert [one.step for one in found.path] == [one.step for one in alone.path]
    assert steps == [(k, 3) for k in range(1, 21)] + [(k, 2) for k in range(1, 21)]


def test_targets_are_worked_on_one_batch_at_a_time(generator, target) -> None:
    batches = []
    found = project_many(
        generator,
        target.expand(4, -1, -1, -1),
        squared,
        steps=1,
        batch=2,
        on_step=lambda step, distances: batches.append(len(distances)),
    )
    assert batches == []
    next(found)
    assert batches == [2]


def test_in_w_all_layers_have_one_style_in_w_plus_each_its_own(generator, target) -> None:
    one = project(generator, target, squared, space="w", steps=5).ws
    assert one.shape == (generator.architecture.num_ws, 16)
    assert (one == one[0]).all()
    assert not (project(generator, target, squared, space="w+", steps=5).ws == one[0]).all()


def test_the_same_seed_gives_the_same_bits_and_the_generator_is_left_alone(generator, target):
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    first, second = (project(generator, target, squared, steps=6, seed=5) for _ in range(2))
    other = project(generator, target, squared, steps=6, seed=6)
    assert torch.equal(first.ws, second.ws)
    assert all(torch.equal(a, b) for a, b in zip(first.noise, second.noise, strict=True))
    assert not torch.equal(first.ws, other.ws)
    after = generator.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert all(parameter.requires_grad for parameter in generator.parameters())


def test_noise_maps_end_with_zero_mean_and_unit_variance(generator, target) -> None:
    for one in project(generator, target, squared, steps=4).noise:
        assert one.mean().abs() < 1e-5
        assert one.square().mean() == pytest.approx(1, abs=1e-4)


def test_the_path_begins_at_the_mean_and_ends_at_the_reconstruction(generator, target) -> None:
    told = []
    done = project(generator, target, squared, steps=20, on_step=lambda *now: told.append(now))
    steps = [point.step for point in done.path]
    assert steps[0] == 0 and steps[-1] == 20 and steps == sorted(set(steps)) and len(steps) == 8
    assert [step for step, _ in told] == list(range(1, 21))
    assert len(project(generator, target, squared, steps=1).path) == 2


def test_the_learning_rate_rises_stays_and_falls() -> None:
    assert learning_rate(0.0) == 0
    assert learning_rate(0.025) == pytest.approx(0.05)
    assert learning_rate(0.05) == learning_rate(0.5) == learning_rate(0.75) == pytest.approx(0.1)
    assert learning_rate(0.875) == pytest.approx(0.05)
    assert learning_rate(1.0) == pytest.approx(0)


def test_correlated_noise_is_penalized_on_the_scale_where_it_is() -> None:
    draws = torch.Generator().manual_seed(0)
    white = torch.randn(64, 64, generator=draws)
    # Coarse structure: neighbours of the fine map alone would not tell how far it reaches.
    coarse = torch.randn(8, 8, generator=draws).repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert noise_penalty([white]) < 0.1
    assert noise_penalty([coarse]) > 1
    checks = torch.ones(8, 8)
    checks[::2, ::2] = checks[1::2, 1::2] = -1
    assert noise_penalty([checks]) == pytest.approx(2.0)  # (-1)² along each axis
    small = torch.ones(4, 4)
    assert noise_penalty([small, small]) == pytest.approx(4.0)


def test_statistics_take_every_label_in_turn_or_those_that_are_given() -> None:
    architecture = Architecture(
        16, labels=LABELS, channel_base=256, channel_max=16, z_dim=16, w_dim=16
    )
    generator = build(architecture, seed=3)[0]
    assert combinations(architecture) == [{"sex": "F"}, {"sex": "M"}]
    assert LATENTS % 2 == 0

    def mean(labels: Tensor | None) -> Tensor:
        return latent_statistics(generator, labels, torch.Generator().manual_seed(0))[0]

    both = mean(torch.eye(2))
    assert torch.equal(mean(None), both)
    assert not torch.allclose(mean(torch.eye(2)[:1]), both, atol=1e-3)


def test_of_what_is_told_of_an_image_the_labels_of_the_generator_are_known() -> None:
    architecture = Architecture(16, labels=LABELS)
    assert known_labels(architecture, {"Sex": "M", "site": "north"}) == {"sex": "M"}
    assert known_labels(architecture, {"sex": "", "site": "F"}) == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": torch.zeros(1, 8, 8)}, r"\(1, 16, 16\)"),
        ({"target": torch.zeros(3, 16, 16)}, r"\(1, 16, 16\)"),
        ({"space": "z"}, "accepted are w and w+"),
        ({"steps": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_projected_is_refused(generator, target, changes, words) -> None:
    arguments = {"target": target, "distance": squared, **changes}
    with pytest.raises(ConfigError, match=words.replace("+", r"\+")):
        project(generator, **arguments)


def test_each_target_needs_its_label(generator, target) -> None:
    with pytest.raises(ConfigError, match="labels of 1 targets: there are 2"):
        project_many(generator, target.expand(2, -1, -1, -1), squared, labels=torch.zeros(1, 0))


def test_a_distance_that_is_not_finite_ends_the_projection(generator, target) -> None:
    with pytest.raises(DivergedError, match="step 1"):
        project(generator, target, lambda a, b: squared(a, b) * float("nan"), steps=2)
