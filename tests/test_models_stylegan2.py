"""What StyleGAN2's operations and networks must do, whatever the weights."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from common.errors import ConfigError
from common.models import stylegan2
from common.models.architecture import Architecture, encode_labels
from common.models.generator import SynthesisBlock
from common.models.layers import CLAMP, GAIN, Convolution, Dense
from common.models.resample import depthwise, downsample, fir_filter, upfirdn2d, upsample
from common.models.stylegan2 import Generator, build, modulated_conv2d, set_precision, state_groups
from common.training.gan_losses import path_lengths, r1_penalty

SMALL = Architecture(
    resolution=16, channel_base=64, channel_max=8, z_dim=8, w_dim=8, labels=(("sex", ("F", "M")),)
)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def asking(x: Tensor) -> Tensor:
    return x.requires_grad_(True)


def batch(architecture: Architecture, count: int = 4) -> tuple[Tensor, Tensor]:
    z = draw(count, architecture.z_dim, dtype=torch.float32)
    labels = encode_labels(architecture, [{"sex": "FM"[i % 2]} for i in range(count)])
    return z, labels


# Filters


def test_filter_sums_to_one_and_keeps_a_constant_picture() -> None:
    fir = fir_filter()
    assert fir.sum() == pytest.approx(1)
    flat = torch.full((1, 1, 12, 12), 3.0)
    for picture in (upsample(flat, fir), downsample(flat, fir)):
        torch.testing.assert_close(
            picture[..., 2:-2, 2:-2], 3 * torch.ones_like(picture)[..., 2:-2, 2:-2]
        )


def test_upsample_and_downsample_are_the_general_operation() -> None:
    x, fir = draw(2, 3, 6, 8), fir_filter().double()
    up = upfirdn2d(x, fir, up=2, padding=(2, 1, 2, 1), gain=4)
    torch.testing.assert_close(upsample(x, fir), up)
    torch.testing.assert_close(downsample(x, fir), upfirdn2d(x, fir, down=2, padding=(1, 1, 1, 1)))


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_backward_is_the_transpose(size: tuple[int, int], stride: int) -> None:
    """⟨Ax, y⟩ = ⟨x, Aᵀy⟩."""
    x, kernel = asking(draw(2, 3, *size)), draw(3, 3, seed=1)
    out = depthwise(x, kernel, stride=stride, padding=1)
    y = draw(*out.shape, seed=2)
    (transposed,) = torch.autograd.grad(out, x, y)
    torch.testing.assert_close((out * y).sum(), (x * transposed).sum())


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_transpose_in_bfloat16_is_that_of_float32(size: tuple[int, int], stride: int) -> None:
    """Whole numbers, so that neither type rounds."""
    x, kernel = torch.arange(float(2 * 3 * math.prod(size))) % 7, torch.arange(16.0) % 5
    x, kernel = x.reshape(2, 3, *size).contiguous(), kernel.reshape(4, 4)
    for dtype in (torch.float32, torch.bfloat16):
        image = asking(x.to(dtype))
        out = depthwise(image, kernel, stride=stride, padding=1)
        (transposed,) = torch.autograd.grad(out, image, torch.ones_like(out))
        if dtype == torch.float32:
            expected = transposed
    assert torch.equal(transposed.float(), expected)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, fir: upsample(x, fir),
        lambda x, fir: downsample(x, fir),
        lambda x, fir: depthwise(x, fir, padding=2),
        lambda x, fir: depthwise(x, fir, stride=2, padding=1),
        lambda x, fir: upfirdn2d(x, fir, up=2, down=3, padding=(-1, 3, 0, 2), gain=1.5),
    ],
)
def test_filters_have_right_first_and_second_derivatives(operation) -> None:
    fir = draw(4, 4, seed=1)
    square = lambda x: operation(x, fir).square()  # noqa: E731  curved, so that there is a second
    x = asking(draw(1, 2, 5, 6))
    assert gradcheck(square, (x,))
    assert gradgradcheck(square, (x,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sides", [(3, 3), (2, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_beyond_the_kernel_has_its_transpose(stride, sides, dtype) -> None:
    """Where whole windows see zeros alone; whole numbers, so that no type rounds."""
    x, kernel = asking(torch.ones(1, 2, 5, 5).to(dtype)), torch.arange(1.0, 1 + math.prod(sides))
    kernel = kernel.reshape(sides).to(dtype)
    out = depthwise(x, kernel, stride=stride, padding=4)
    (transposed,) = torch.autograd.grad(out, x, torch.ones_like(out))
    plain = asking(x.detach().double())
    each = kernel.double().expand(2, 1, *sides)
    expected = torch.nn.functional.conv2d(plain, each, stride=stride, padding=4, groups=2)
    assert torch.equal(out.double(), expected)
    assert torch.equal(transposed.double(), torch.autograd.grad(expected.sum(), plain)[0])
    if dtype == torch.float64:
        square = lambda x: depthwise(x, kernel, stride=stride, padding=4).square()  # noqa: E731
        assert gradcheck(square, (x,))
        assert gradgradcheck(square, (x,))


# Modulated convolution


def one_weight_an_image(x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
    """Equations 1 to 3 to the letter: every image convolved with weights of its own."""
    own = weight[None] * styles[:, None, :, None, None]
    own = own / (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    return torch.cat(
        [torch.nn.functional.conv2d(x[i : i + 1], own[i], padding=1) for i in range(len(x))]
    )


def test_demodulation_is_that_of_the_paper() -> None:
    x, weight, styles = draw(3, 4, 6, 6), draw(5, 4, 3, 3, seed=1), draw(3, 4, seed=2)
    ours = modulated_conv2d(x, weight, styles, fir=fir_filter().double())
    torch.testing.assert_close(ours, one_weight_an_image(x, weight, styles))


def test_demodulation_forgets_the_scale_of_a_style() -> None:
    x, weight, styles = draw(2, 4, 6, 6), draw(5, 4, 3, 3, seed=1), draw(2, 4, seed=2)
    fir = fir_filter().double()
    torch.testing.assert_close(
        modulated_conv2d(x, weight, styles, fir=fir),
        modulated_conv2d(x, weight, styles * 7, fir=fir),
    )


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("up", [1, 2])
def test_modulated_convolution_has_right_derivatives(up: int, demodulate: bool) -> None:
    fir = fir_filter().double()

    def operation(x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
        return modulated_conv2d(x, weight, styles, fir=fir, up=up, demodulate=demodulate, gain=1.3)

    inputs = (
        asking(draw(2, 2, 3, 3)),
        asking(draw(2, 2, 3, 3, seed=1)),
        asking(draw(2, 2, seed=2)),
    )
    assert gradcheck(operation, inputs)
    assert gradgradcheck(operation, inputs, fast_mode=True)  # the whole Jacobian takes a minute


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_float16_has_the_same_modulated_convolution(up: int, size: float) -> None:
    """Also where Σ (s·w)² is not far above ε, and where it would overflow."""
    x, weight = draw(2, 8, 6, 6).float(), size * draw(5, 8, 3, 3, seed=1).float()
    styles = draw(2, 8, seed=2).float() * (1e-2 if size < 1 else 1)
    whole = modulated_conv2d(x, weight, styles, fir=fir_filter(), up=up, gain=1.3)
    half = modulated_conv2d(x.half(), weight, styles, fir=fir_filter(), up=up, gain=1.3)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), whole, rtol=0, atol=4e-3 * float(whole.abs().max()))


@pytest.mark.parametrize("up", [1, 2])
def test_float16_sums_of_one_sign_stay_finite(up: int) -> None:
    """512 channels that all agree, as large as the limit lets them be: 256 √2 · 512 · 9 > 65504."""
    x = asking(torch.full((1, 512, 4, 4), CLAMP * GAIN, dtype=torch.float16))
    weight, styles = asking(torch.ones(512, 512, 3, 3)), asking(torch.ones(1, 512))
    out = modulated_conv2d(x, weight, styles, fir=fir_filter(), up=up)
    inner = out[..., 1:-1, 1:-1].float() if up == 1 else out[..., 3:-3, 3:-3].float()
    # Each of 9 · 512 products is 256 √2, the norm √(9 · 512); upsampling shares them among four.
    expected = CLAMP * GAIN * (9 * 512) ** 0.5
    torch.testing.assert_close(inner, torch.full_like(inner, expected), rtol=2e-3, atol=0)
    for gradient in torch.autograd.grad(out.float().mean(), (x, weight, styles)):
        assert gradient.isfinite().all()


def test_float16_of_styles_or_weights_that_are_zero_is_zero() -> None:
    x = torch.ones(1, 4, 4, 4, dtype=torch.float16)
    for weight, styles in (
        (torch.zeros(2, 4, 3, 3), torch.ones(1, 4)),
        (torch.ones(2, 4, 3, 3), torch.zeros(1, 4)),
    ):
        out = modulated_conv2d(x, weight, styles, fir=fir_filter())
        assert torch.equal(out, torch.zeros_like(out))


# Networks


@pytest.mark.parametrize("part", ["mapping", "synthesis", "discriminator"])
def test_networks_have_right_derivatives(part: str) -> None:
    tiny = Architecture(
        resolution=16, channel_base=32, channel_max=2, z_dim=3, w_dim=3, mapping_layers=1,
        label_layers=1, labels=(("sex", ("F", "M")),),
    )  # fmt: skip
    generator, discriminator = (network.double() for network in build(tiny, 0))
    labels = encode_labels(tiny, [{"sex": "F"}, {"sex": "M"}]).double()
    operation, x = {
        "mapping": (lambda z: generator.mapping(z, labels), draw(2, 3)),
        "synthesis": (generator.synthesis, draw(2, tiny.num_ws, 3)),
        "discriminator": (lambda x: discriminator(x, labels), draw(2, 1, 16, 16)),
    }[part]
    assert gradcheck(operation, (asking(x),), fast_mode=True)
    assert gradgradcheck(operation, (asking(x),), fast_mode=True)


@pytest.mark.parametrize("penalty", ["r1", "path"])
def test_penalties_have_right_derivatives_by_the_weights(penalty: str) -> None:
    """What a regularisation step follows: a derivative by weights of one by pixels, or by w."""
    tiny = Architecture(
        resolution=16, channel_base=32, channel_max=2, z_dim=3, w_dim=3, mapping_layers=1,
        label_layers=1, labels=(("sex", ("F", "M")),),
    )  # fmt: skip
    generator, discriminator = (network.double() for network in build(tiny, 0))
    labels = encode_labels(tiny, [{"sex": "F"}, {"sex": "M"}]).double()
    for layer in generator.modules():
        if isinstance(layer, stylegan2.StyledConvolution):
            torch.nn.init.constant_(layer.noise_strength, 0.3)
    network = {"r1": discriminator, "path": generator.synthesis}[penalty]
    names, weights = zip(*network.named_parameters(), strict=True)

    def of(*values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        if penalty == "r1":
            images = asking(draw(2, 1, 16, 16))
            return r1_penalty(images, functional_call(network, state, (images, labels)))
        ws = asking(draw(2, tiny.num_ws, 3))
        images = functional_call(network, state, (ws,), {"noise": noises})
        return path_lengths(images, ws, draw(*images.shape, seed=4))

    noises = [draw(2, 1, *p.shape, seed=3) for p in generator.synthesis.noise_constants()]
    assert len(of(*weights)) == 2
    assert gradcheck(of, weights, fast_mode=True)


def test_minibatch_deviation_has_right_derivatives() -> None:
    def of(x: Tensor) -> Tensor:
        return stylegan2.minibatch_deviation(x, 2).square()

    x = asking(draw(4, 2, 3, 3))
    assert gradcheck(of, (x,))
    assert gradgradcheck(of, (x,))


def test_networks_names_of_parameters_are_those_of_checkpoints() -> None:
    generator, discriminator = build(SMALL, 0)
    names = [*generator.state_dict(), *(f"D.{name}" for name in discriminator.state_dict())]
    assert len(names) == 86
    assert hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16] == "cb5e01d39428c8d8"


def test_initial_bias_is_that_asked_for_at_any_rate() -> None:
    layer = Dense(3, 2, rate=0.01, bias=0.7)
    torch.testing.assert_close(layer(torch.zeros(1, 3)), torch.full((1, 2), 0.7))


@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("channels", [1, 4])
def test_every_resolution_and_number_of_channels(resolution: int, channels: int) -> None:
    architecture = Architecture(
        resolution=resolution, channels=channels, channel_base=1024, channel_max=4, z_dim=4, w_dim=4
    )
    generator, discriminator = build(architecture, 0)
    with torch.no_grad():
        images = generator(torch.randn(2, 4), torch.zeros(2, 0))
        logits = discriminator(images, torch.zeros(2, 0))
    assert images.shape == (2, channels, resolution, resolution)
    assert logits.shape == (2,)


def test_signals_keep_their_scale_at_the_start() -> None:
    """Equalized learning rates and gains of √2: no layer blows a signal up or lets it die."""
    architecture = Architecture(resolution=64, channel_max=64)
    generator, discriminator = build(architecture, 0)
    with torch.no_grad():
        images = generator(torch.randn(8, 512), torch.zeros(8, 0))
        features = discriminator.features(torch.randn(8, 1, 64, 64))
    assert 0.5 < images.std() < 5
    assert 0.1 < features.square().mean().sqrt() < 3


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = build(SMALL, 3)[0].state_dict()
    torch.manual_seed(2)
    assert all(torch.equal(v, first[k]) for k, v in build(SMALL, 3)[0].state_dict().items())
    assert not torch.equal(
        build(SMALL, 4)[0].state_dict()["mapping.embed.weight"], first["mapping.embed.weight"]
    )


def test_truncation_moves_towards_the_average_w() -> None:
    mapping = build(SMALL, 0)[0].mapping
    z, labels = batch(SMALL)
    mapping.w_average.copy_(torch.arange(8.0))
    whole = mapping(z, labels)
    torch.testing.assert_close(
        mapping(z, labels, truncation=0.0)[:, 0], mapping.w_average.expand(4, -1)
    )
    half = mapping(z, labels, truncation=0.5, cutoff=2)
    torch.testing.assert_close(half[:, :2], (whole[:, :2] + mapping.w_average) / 2)
    assert torch.equal(half[:, 2:], whole[:, 2:])


def test_average_w_follows_the_batch_only_when_told() -> None:
    mapping = build(SMALL, 0)[0].mapping
    z, labels = batch(SMALL)
    w = mapping(z, labels)[:, 0]
    assert not mapping.w_average.any()
    mapping(z, labels, update_average=True)
    torch.testing.assert_close(mapping.w_average, 0.005 * w.mean(0))


def test_labels_change_pictures_and_logits() -> None:
    generator, discriminator = build(SMALL, 0)
    z, labels = batch(SMALL)
    with torch.no_grad():
        images = generator(z, labels)
        assert not torch.allclose(images, generator(z, labels.flip(1)))
        assert not torch.allclose(
            discriminator(images, labels), discriminator(images, labels.flip(1))
        )


def test_noise_is_fixed_random_or_absent() -> None:
    generator = build(SMALL, 0)[0]
    for layer in generator.synthesis.modules():
        if isinstance(layer, stylegan2.StyledConvolution):
            torch.nn.init.constant_(layer.noise_strength, 0.5)
    z, labels = batch(SMALL)

    def seeded(seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return generator(z, labels, noise="random", generator=rng)

    with torch.no_grad():
        fixed = generator(z, labels)
        assert torch.equal(fixed, generator(z, labels))
        constants = [picture[None, None] for picture in generator.synthesis.noise_constants()]
        assert torch.equal(fixed, generator(z, labels, noise=constants))
        assert torch.equal(seeded(1), seeded(1))
        for other in (seeded(1), seeded(2), generator(z, labels, noise="none")):
            assert not torch.allclose(fixed, other)
        assert not torch.allclose(seeded(1), seeded(2))


@pytest.mark.parametrize("noise", ["constant ", "", "zero", [], [torch.zeros(4, 4)] * 4])
def test_noise_that_is_none_of_them_is_refused(noise) -> None:
    generator = build(SMALL, 0)[0]
    with pytest.raises(ValueError, match=r"accepted are (constant, random, none|5: one a layer)"):
        generator(*batch(SMALL), noise=noise)


def test_minibatch_deviation_of_known_groups() -> None:
    """Images 0 and 2 differ by 2 everywhere (SD 1); 1 and 3 are the same (SD 0)."""
    x = torch.zeros(4, 3, 4, 4)
    x[2] = 2
    out = stylegan2.minibatch_deviation(x, 2)
    expected = torch.tensor([1.0, 1e-4, 1.0, 1e-4])
    torch.testing.assert_close(out[:, 3, 0, 0], expected)
    assert torch.equal(out[:, :3], x)


def test_sites_share_parameters_and_averages_never_constants() -> None:
    generator, discriminator = build(SMALL, 0)
    groups = state_groups(generator)
    assert set(groups["averages"]) == {"mapping.w_average"}
    assert set(groups["parameters"]) == dict(generator.named_parameters()).keys()
    assert {name.rsplit(".", 1)[1] for name in groups["constants"]} == {"noise"}
    assert sum(map(len, groups.values())) == len(generator.state_dict())
    assert not state_groups(discriminator)["constants"]
    assert not state_groups(discriminator)["averages"]


def test_noise_constants_are_the_same_at_every_site() -> None:
    for one, other in zip(
        build(SMALL, 0)[0].synthesis.noise_constants(),
        build(SMALL, 1)[0].synthesis.noise_constants(),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_points_the_same_way(precision: str) -> None:
    """Gradients of the generator's loss, at the start, in half and in full precision."""
    architecture = Architecture(resolution=32, channel_max=32, z_dim=32, w_dim=32)
    generator, discriminator = build(architecture, 0)
    z, labels = draw(8, 32, dtype=torch.float32), torch.zeros(8, 0)

    def gradient() -> Tensor:
        loss = torch.nn.functional.softplus(-discriminator(generator(z, labels), labels)).mean()
        weights = [w for w in generator.parameters() if w.requires_grad]
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    full = gradient()
    for network in (generator, discriminator):
        set_precision(network, precision)
    half = gradient()
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.99
    set_precision(generator, "float32")
    set_precision(discriminator, "float32")
    assert torch.equal(gradient(), full)


def test_float16_step_of_512_channels_of_one_sign_is_finite() -> None:
    """Weights that all agree, and inputs at the limit: the largest sums that there can be."""
    wide = Architecture(resolution=16, channel_base=8192, channel_max=512, z_dim=4, w_dim=4)
    block = SynthesisBlock(wide, 8)
    judge = stylegan2.Discriminator(Architecture(resolution=16, channel_base=8192, channel_max=512))
    judge = judge.blocks[-1]
    for network in (block, judge):
        network.half = torch.float16
        for weight in network.parameters():
            torch.nn.init.constant_(weight, 1.0) if weight.ndim == 4 else None
    for layer in (*block.convolutions, block.to_image):
        torch.nn.init.constant_(layer.affine.weight, 0.5)
    x = asking(torch.full((2, 512, 4, 4), CLAMP, dtype=torch.float16))
    ws = [draw(2, 4, dtype=torch.float32).abs() for _ in range(3)]
    noises = [torch.zeros(1, 1, 8, 8)] * 2
    features, image = block(x, None, ws, noises)
    assert features.dtype == torch.float16
    assert features.abs().max() == CLAMP
    out = judge(features)
    assert out.dtype == torch.float16
    assert CLAMP < out.abs().max() <= CLAMP * GAIN + 0.25
    weights = [*block.parameters(), *judge.parameters()]
    (out.float().mean() + image.mean()).backward()
    for value in (out, image, x.grad, *(w.grad for w in weights if w.grad is not None)):
        assert value.isfinite().all()


@pytest.mark.parametrize("activation", [True, False])
def test_convolution_is_limited_in_float16_alone(activation: bool) -> None:
    layer = Convolution(4, 2, 1, activation=activation, gain=math.sqrt(0.5))
    torch.nn.init.constant_(layer.weight, 100.0)
    x = torch.full((1, 4, 2, 2), 50.0)
    assert layer(x).max() > 5000
    limit = torch.tensor(CLAMP * math.sqrt(0.5)).half()
    assert torch.equal(layer(x.half()), limit.expand(1, 2, 2, 2))


def test_memory_format_does_not_change_the_result() -> None:
    generator, discriminator = build(SMALL, 0)
    z, labels = batch(SMALL)
    with torch.no_grad():
        images = generator(z, labels)
        logits = discriminator(images, labels)
        generator.to(memory_format=torch.channels_last)
        discriminator.to(memory_format=torch.channels_last)
        torch.testing.assert_close(generator(z, labels), images, rtol=0, atol=1e-5)
        torch.testing.assert_close(discriminator(images, labels), logits, rtol=0, atol=1e-5)


# Architecture and labels


@pytest.mark.parametrize(
    "wrong",
    [
        {"resolution": 24},
        {"resolution": 2048},
        {"channels": 5},
        {"channels": 0},
        {"channel_max": 0},
        {"channel_base": 8},
        {"z_dim": 0},
        {"mapping_layers": True},
        {"channel_base": 2**17 + 1},
        {"channel_max": 1025},
        {"z_dim": 4097},
        {"w_dim": 4097},
        {"mapping_layers": 17},
        {"label_layers": 17},
        {"minibatch_group": 65},
        {"noise_seed": 2**53 + 1},
        {"labels": (("site", tuple(map(str, range(1025)))),)},
        {"w_dim": 2.5},
        {"labels": (("sex", ()),)},
        {"labels": (("sex", ("F", "F")),)},
        {"labels": (("sex", ("F",)), ("sex", ("M",)))},
    ],
)
def test_impossible_architectures_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        Architecture(**wrong)


def test_architecture_survives_json_and_its_fingerprint_tells_others_apart() -> None:
    assert Architecture.from_json(SMALL.to_json()) == SMALL
    assert Architecture.from_json(SMALL.to_json()).fingerprint == SMALL.fingerprint
    others = [Architecture(), Architecture(resolution=64), Architecture(labels=SMALL.labels)]
    assert len({a.fingerprint for a in (SMALL, *others)}) == 4
    with pytest.raises(ConfigError, match="unknown or missing entries: colour"):
        Architecture.from_json({**SMALL.to_json(), "colour": 1})


def test_labels_of_several_kinds_are_joined() -> None:
    architecture = Architecture(
        labels=(("sex", ("F", "M")), ("site", ("north", "south", "island")))
    )
    rows = [{"sex": "M", "site": "north"}, {"site": "island"}]
    expected = torch.tensor([[0.0, 1, 1, 0, 0], [0, 0, 0, 0, 1]])
    assert torch.equal(encode_labels(architecture, rows), expected)
    with pytest.raises(ConfigError, match="label sex=X: accepted is sex = F or M; site = north"):
        encode_labels(architecture, [{"sex": "X"}])
    with pytest.raises(ConfigError, match="unconditional"):
        encode_labels(Architecture(), [{"sex": "F"}])


def test_number_of_styles() -> None:
    assert Architecture(resolution=32).num_ws == 8
    assert Architecture(resolution=1024).num_ws == 18
    generator = Generator(Architecture(resolution=32, channel_max=4, z_dim=4, w_dim=4))
    ws = generator.mapping(torch.randn(2, 4), torch.zeros(2, 0))
    assert ws.shape == (2, 8, 4)
    assert math.prod(ws.shape) == 64
