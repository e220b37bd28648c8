"""ADA: reference numbers, theorems about each step, randomness, derivatives."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erfinv, ndtr
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from common.errors import ConfigError
from common.models import augment, augment_steps
from common.models.augment import BGC, EVENTS, QUANTITIES, Augmentation, Draw, Strengths

STEPS = tuple(dict.fromkeys(EVENTS.values()))
EVERYTHING = Strengths(**dict.fromkeys(STEPS, 1.0))
RANGES = {
    **{"xint": "xint_max", "scale": "scale_std", "rotate": "rotate_max", "aniso": "aniso_std"},
    **{"xfrac": "xfrac_std", "brightness": "brightness_std", "contrast": "contrast_std"},
    **{"hue": "hue_max", "saturation": "saturation_std", "imgfilter": "imgfilter_std"},
    **{"noise": "noise_std", "cutout": "cutout_size"},
}
IDENTITY = torch.eye(2, 3, dtype=torch.float64)


def only(step: str, **ranges: float) -> Strengths:
    return Strengths(**{step: 1.0}, **ranges)


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Reference numbers ----------------------------------------------------------------------------


def reference_draw(strengths: Strengths, shape: torch.Size, q: float) -> Draw:
    """The reference numbers' draw: normal quantities at SD · erfinv(2q - 1), one rotation only."""
    drawn = augment.draw_at(strengths, shape, q)
    normal = augment.draw_at(strengths, shape, float(ndtr(erfinv(2 * q - 1)))).percentiles
    steps = [name.split("_")[0].replace("band", "imgfilter") for name in QUANTITIES]
    is_normal = torch.tensor([RANGES.get(step, "").endswith("_std") for step in steps])
    events = drawn.events.clone()
    events[:, list(EVENTS).index("rotate_after")] = False
    return replace(
        drawn, events=events, percentiles=torch.where(is_normal, normal, drawn.percentiles)
    )


@pytest.mark.parametrize("way", ["warp", "warp_any"])
def test_golden_augment(golden_dir: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "warp", getattr(augment_steps, way))
    wrong, compared = {}, 0
    with np.load(golden_dir / "augment.npz") as golden:
        for key in golden.files:
            if not key.endswith(".y"):
                continue
            channels, case = key.removesuffix(".y").split(".", 1)
            name, percentile = case.split(".percentile")
            images = torch.from_numpy(golden[f"{channels}.x"])
            strengths = BGC if name == "bgc" else only(name)
            drawn = reference_draw(strengths, images.shape, float(percentile))
            got = augment.apply(images, drawn, strengths).numpy()
            compared += 1
            if not (error := np.abs(got - golden[key]).max()) <= 1e-4:
                wrong[key] = float(error)
    assert compared > 0
    assert wrong == {}


# --- Filters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("taps", "moments"), [(augment_steps.SYM6, 6), (augment_steps.SYM2, 2)])
def test_wavelets_are_orthonormal_with_vanishing_moments(
    taps: tuple[float, ...], moments: int
) -> None:
    h = np.array(taps)
    autocorrelation = np.correlate(h, h, "full")[len(h) - 1 :: 2]
    np.testing.assert_allclose(autocorrelation, np.eye(len(h) // 2)[0], atol=1e-10)
    assert h.sum() == pytest.approx(math.sqrt(2), abs=1e-10)
    high = h * (-1.0) ** np.arange(len(h))
    places = np.arange(len(h)) - (len(h) - 1) / 2
    for moment in range(moments):
        assert (high * places**moment).sum() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("way", [augment_steps.warp_any, augment_steps.warp_straight])
def test_resampling_without_a_transformation_gives_the_image_back(way) -> None:
    images = pictures(2, 2, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(way(images, IDENTITY.repeat(2, 1, 1)), images, atol=1e-9, rtol=0)


def test_both_ways_of_resampling_agree() -> None:
    """Mirrors, quarter turns, stretches, shifts out of sight: a matrix an axis or a grid."""
    inverse = torch.tensor(
        [
            [[-1.0, 0, 0.3], [0, 0.7, -4.1]],
            [[0, 1.4, 2.0], [-0.6, 0, 9.7]],
            [[0, -1.0, 0], [1.0, 0, 0]],
            [[1.0, 0, 30.5], [0, 1.0, -21.25]],
            [[1.0, 0, 300.0], [0, 1.0, 0]],
        ],
        dtype=torch.float64,
    )
    images = pictures(5, 2, 16, 16, dtype=torch.float64)
    grid = augment_steps.warp_any(images, inverse)
    torch.testing.assert_close(augment_steps.warp(images, inverse), grid, atol=1e-9, rtol=0)
    assert grid[3].abs().max() > 0.1
    assert grid[4].abs().max() == 0


def test_whole_pixels_are_moved_exactly_and_the_border_is_a_mirror() -> None:
    images = pictures(1, 1, 16, 16)
    strengths = only("xint")
    drawn = augment.draw_at(strengths, images.shape, 0.99)  # two pixels to the right and down
    got = augment.apply(images, drawn, strengths)
    expected = torch.nn.functional.pad(images, (2, 0, 2, 0), mode="reflect")[..., :16, :16]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_constant_images_stay_constant_under_every_geometric_step() -> None:
    images = torch.full((200, 1, 16, 16), 0.7, dtype=torch.float64)
    geometry = replace(BGC, **dict.fromkeys(STEPS[STEPS.index("brightness") :], 0.0))
    drawn = augment.draw(geometry, images.shape, 0.5, seeded(3))
    inverse = augment.inverse_transform(drawn, geometry, 16)
    # Far outside an image goes on as 0: keep to those that look at most one image's side away.
    reach = inverse[:, :, :2].abs().sum(2) * 9.5 + inverse[:, :, 2].abs()
    near = (reach < 7.5 + 15 - 4).all(1)
    assert near.sum() > 100
    got = augment.apply(images, drawn, geometry)[near]
    torch.testing.assert_close(got, images[near], atol=1e-9, rtol=0)


def test_octaves_add_up_to_the_image_and_keep_their_own_frequencies() -> None:
    octaves = augment_steps._octaves(64, torch.float64, torch.device("cpu"))
    torch.testing.assert_close(
        octaves.sum(0), torch.eye(64, dtype=torch.float64), atol=1e-9, rtol=0
    )
    # Cosines with antinodes on the border pixels go on unbent in the mirror.
    angles = math.pi * torch.tensor([1, 10, 24, 60], dtype=torch.float64) / 63
    waves = torch.cos(angles[:, None] * torch.arange(64, dtype=torch.float64))
    gains = torch.stack([(octaves @ wave) @ wave / (wave @ wave) for wave in waves])
    assert gains.argmax(1).tolist() == [0, 1, 2, 3]


# --- Colour ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_luma_flip_mirrors_the_mean_over_channels_alone(channels: int) -> None:
    images, strengths = pictures(2, channels, 8, 8), only("lumaflip")
    got = augment.apply(images, augment.draw_at(strengths, images.shape, 0.9), strengths)
    mean = images.mean(1, keepdim=True)
    torch.testing.assert_close(got, images - 2 * mean)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_saturation_scales_the_differences_between_channels_alone(channels: int) -> None:
    images, strengths = pictures(2, channels, 8, 8), only("saturation")
    got = augment.apply(images, augment.draw_at(strengths, images.shape, 0.9), strengths)
    mean = images.mean(1, keepdim=True)
    factor = 2 ** torch.special.ndtri(torch.tensor(0.9))
    torch.testing.assert_close(got, mean + factor * (images - mean))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_hue_keeps_mean_and_length_of_three_channels_and_leaves_others(channels: int) -> None:
    images, strengths = pictures(2, channels, 8, 8), only("hue")
    got = augment.apply(images, augment.draw_at(strengths, images.shape, 0.7), strengths)
    torch.testing.assert_close(got.mean(1), images.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.norm(dim=1), images.norm(dim=1), atol=1e-5, rtol=0)
    assert torch.equal(got, images) == (channels != 3)


def test_colour_is_the_affine_map_of_each_pixel() -> None:
    images, matrix = pictures(3, 4, 8, 8), pictures(3, 4, 5, seed=1).double()
    expected = torch.einsum("nij,njyx->niyx", matrix[:, :, :4], images.double())
    expected += matrix[:, :, 4, None, None]
    torch.testing.assert_close(augment_steps.recolour(images, matrix), expected.float())


# --- Strength zero --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_at_probability_zero_the_images_come_back(channels: int) -> None:
    images = pictures(4, channels, 16, 16)
    assert torch.equal(Augmentation(EVERYTHING)(images, 0.0, seeded(0)), images)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_at_strength_zero_is_the_identity(step: str) -> None:
    """On average over draws at p = 1: of range 0, or without a range at its undoing value."""
    images = pictures(8, 3, 16, 16)
    if step in RANGES:
        strengths = only(step, **{RANGES[step]: 0.0})
        got = Augmentation(strengths)(images, 1.0, seeded(0))
    else:
        strengths = only(step)
        got = augment.apply(images, augment.draw_at(strengths, images.shape, 0.1), strengths)
    torch.testing.assert_close(got, images, atol=1e-6, rtol=0)


# --- Randomness -----------------------------------------------------------------------------------


def test_the_generator_decides_and_nothing_else() -> None:
    images, module = pictures(8, 1, 16, 16), Augmentation(EVERYTHING)
    state = torch.get_rng_state()
    first, again, other = (module(images, 0.5, seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        assert torch.equal(module(images, 0.5, None), first)


def test_a_draw_does_not_depend_on_which_steps_are_on() -> None:
    shape = torch.Size((6, 1, 8, 8))
    all_on, one_on = (augment.draw(s, shape, 0.5, seeded(1)) for s in (EVERYTHING, only("scale")))
    assert torch.equal(all_on.percentiles, one_on.percentiles)
    assert torch.equal(all_on.happens("scale"), one_on.happens("scale"))
    assert one_on.events.sum() == one_on.happens("scale").sum() > 0


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_batch_equals_its_images_one_by_one(channels: int) -> None:
    images = pictures(12, channels, 16, 16, dtype=torch.float64)
    drawn = augment.draw(EVERYTHING, images.shape, 0.4, seeded(2))
    together = augment.apply(images, drawn, EVERYTHING)
    alone = [
        augment.apply(images[i : i + 1], drawn[i : i + 1], EVERYTHING) for i in range(len(images))
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-10, rtol=0)
    assert (together != images).flatten(1).any(1).sum() > 6


def test_p_may_be_a_tensor() -> None:
    images, module = pictures(6, 1, 16, 16), Augmentation(BGC)
    a, b = (module(images, p, seeded(5)) for p in (0.25, torch.tensor(0.25)))
    assert torch.equal(a, b)


CHANGED = {  # share of the events in which the step does change an image of 16 pixels a side
    **{"xflip": 1 / 2, "rotate90": 3 / 4, "lumaflip": 1 / 2},
    "xint": 1 - (1 / 4) ** 2,  # U(-2, 2) pixels, rounded, along both axes
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("strength", "p"), [(1.0, 0.3), (0.5, 0.4)])
def test_a_share_p_of_the_images_is_changed(step: str, strength: float, p: float) -> None:
    n = 1500
    images = pictures(1, 3, 16, 16).expand(n, -1, -1, -1)
    got = Augmentation(Strengths(**{step: strength}))(images, p, seeded(11))
    happens = strength * p
    expected = 1 - (1 - happens) ** 4 if step == "imgfilter" else happens * CHANGED.get(step, 1)
    share = (got != images).flatten(1).any(1).double().mean().item()
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))


def test_quantities_have_the_distributions_that_are_documented() -> None:
    n = 20000
    shape = torch.Size((n, 1, 4, 4))
    drawn = augment.draw(EVERYTHING, shape, 1.0, seeded(4))
    matrix = augment.colour_matrix(drawn, EVERYTHING, 1)[:, 0]
    brightness = matrix[:, 1] / matrix[:, 0]  # what was added before the contrast
    assert brightness.mean().item() == pytest.approx(0, abs=0.006)
    assert brightness.std().item() == pytest.approx(0.2, rel=0.03)
    contrast = matrix[:, 0].abs().log2()
    assert contrast.mean().item() == pytest.approx(0, abs=0.015)
    assert contrast.std().item() == pytest.approx(0.5, rel=0.03)
    noisy = augment.apply(
        torch.zeros(shape), augment.draw(only("noise"), shape, 1.0, seeded(4)), only("noise")
    )
    # A half-normal σ of scale s has E σ² = s².
    assert noisy.square().mean().sqrt().item() == pytest.approx(0.1, rel=0.03)
    linear = augment.inverse_transform(
        augment.draw(only("scale"), shape, 1.0, seeded(4)), only("scale"), 4
    )[:, 0, 0]
    assert linear.log2().std().item() == pytest.approx(0.2, rel=0.03)


# --- Derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [*STEPS, "all"])
def test_derivatives_of_first_and_second_order(step: str) -> None:
    strengths = EVERYTHING if step == "all" else only(step)
    images = pictures(2, 3, 8, 8, dtype=torch.float64).requires_grad_()
    drawn = augment.draw_at(strengths, images.shape, 0.8)
    if step == "all":
        drawn = augment.draw(strengths, images.shape, 0.7, seeded(0))

    def augmented(x: Tensor) -> Tensor:
        return augment.apply(x, drawn, strengths)

    assert gradcheck(augmented, images, fast_mode=True)
    # Each step is affine in the image, so it is what follows that has second derivatives.
    assert gradgradcheck(lambda x: augmented(x).sin(), images, fast_mode=True)


def test_gradient_penalty_through_the_augmentation_reaches_the_parameters() -> None:
    """R1: the squared gradient at images before augmentation, differentiated by the weights."""
    images = pictures(4, 1, 16, 16).requires_grad_()
    judge = torch.nn.Conv2d(1, 4, 3)
    logits = judge(Augmentation(BGC)(images, 0.8, seeded(1))).square().sum()
    (gradient,) = torch.autograd.grad(logits, images, create_graph=True)
    gradient.square().sum().backward()
    assert judge.weight.grad is not None
    assert judge.weight.grad.isfinite().all()
    assert judge.weight.grad.abs().max() > 0


# --- Use ------------------------------------------------------------------------------------------


def test_half_precision_is_computed_in_float32() -> None:
    images = pictures(4, 3, 16, 16).bfloat16()
    module = Augmentation(EVERYTHING)
    got = module(images, 0.6, seeded(3))
    exact = module(images.float(), 0.6, seeded(3))
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, exact.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(images.float(), 0.6, seeded(3)), exact)


def test_constants_made_for_inference_serve_training() -> None:
    augment_steps._filter_bank.cache_clear()
    augment_steps._octaves.cache_clear()
    module, images = Augmentation(EVERYTHING), pictures(4, 1, 16, 16)
    with torch.inference_mode():
        module(images, 1.0, seeded(0))
    images.requires_grad_()
    module(images, 1.0, seeded(0)).sum().backward()
    assert images.grad is not None


def test_the_module_has_no_state_and_leaves_its_input() -> None:
    images = pictures(4, 1, 16, 16)
    before, module = images.clone(), Augmentation(EVERYTHING)
    module(images, 1.0, seeded(0))
    assert torch.equal(images, before)
    assert list(module.state_dict()) == [] == list(module.parameters())


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_p_outside_zero_to_one_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        Augmentation(BGC)(pictures(1, 1, 8, 8), p)


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match="8 x 12"):
        Augmentation(BGC)(pictures(1, 1, 8, 12), 0.5)


@pytest.mark.parametrize("wrong", [{"scale": -1.0}, {"hue_max": math.nan}, {"cutout_size": 1.5}])
def test_strengths_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(ConfigError, match=f"{name}={value}") as refused:
        Strengths(**wrong)
    assert name in refused.value.public
    assert str(value) not in refused.value.public


@pytest.mark.gpu
def test_a_gpu_gives_the_same_images() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU that PyTorch can use")
    images = pictures(16, 3, 64, 64)
    module = Augmentation(EVERYTHING)
    there = module(images.cuda(), 0.5, seeded(0)).cpu()
    torch.testing.assert_close(there, module(images, 0.5, seeded(0)), atol=1e-3, rtol=0)
