"""Classifiers of pictures: any size and number of classes, no places in the head, safe weights."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConfigError
from common.fingerprint import fingerprint
from common.models import pretrained as loading
from common.models.efficientnet import FrozenBatchNorm, PictureEfficientNet, StridedPadding
from common.models.picture_classifier import build_picture_classifier
from common.models.pretrained import NAMINGS, file_names, load_pretrained
from common.models.standardize import IMAGENET_MEAN, IMAGENET_SD

State = dict[str, Tensor]


def pictures(count: int, channels: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def small(channels: int = 3, classes: int = 8, seed: int = 0) -> nn.Module:
    return build_picture_classifier("small", channels=channels, classes=classes, seed=seed)


def efficientnet(
    channels: int = 3, classes: int = 5, *, pretrained: bool = False, weights: Path | None = None
) -> nn.Module:
    model = build_picture_classifier(
        "efficientnet-b0",
        channels=channels,
        classes=classes,
        seed=0,
        pretrained=pretrained or weights is not None,
    )
    if weights:
        load_pretrained(model, weights)
    return model


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """MONAI's own EfficientNet with BatchNorm statistics that fit its weights."""
    from monai.networks.nets import EfficientNetBN

    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = EfficientNetBN("efficientnet-b0", pretrained=False, num_classes=10)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            network.train()(torch.randn(8, 3, 96, 96))
    return network.eval()


@cache
def shell() -> PictureEfficientNet:
    """A network to load files into, where its weights do not matter."""
    return PictureEfficientNet("efficientnet-b0", 3, 10, pretrained=True)


def as_named(reference: nn.Module, naming: str) -> State:
    """What a file of this naming holds, with the counts that BatchNorms keep."""
    state = reference.state_dict()
    renamed = {"mean": "running_mean", "variance": "running_var"}
    found = {}
    for ours, theirs in file_names(shell(), NAMINGS[naming]).items():
        module, _, tensor = ours.removeprefix("network.").rpartition(".")
        found[theirs] = state[f"{module}.{renamed.get(tensor, tensor)}"].contiguous()
        if tensor == "mean":
            found[theirs.replace("running_mean", "num_batches_tracked")] = torch.tensor(7)
    return found


@pytest.fixture(scope="module")
def weights(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "b0.safetensors"
    save_file(as_named(reference, "efficientnet-pytorch"), path)
    return path


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(2, 100), st.integers(16, 80), st.integers(1, 3))
def test_small_network_gives_one_finite_logit_a_class_at_any_size(channels, classes, size, count):
    logits = small(channels, classes)(pictures(count, channels, size))
    assert logits.shape == (count, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_efficientnet_gives_one_finite_logit_a_class_at_any_size(channels, pretrained):
    model = efficientnet(channels, classes=7, pretrained=pretrained).eval()
    with torch.no_grad():
        for size in (16, 33):
            logits = model(pictures(2, channels, size))
            assert logits.shape == (2, 7)
            assert logits.isfinite().all()


def test_one_state_serves_pictures_of_every_size():
    model = small()
    with torch.no_grad():
        assert all(model(pictures(1, 3, size)).shape == (1, 8) for size in (16, 100, 256))


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("build", [small, efficientnet])
def test_a_picture_of_one_value_has_no_exploding_gradient(build, value):
    """Norms divide by √ε what does not vary: 49 of them made it infinite."""
    model = build().eval()  # EfficientNet's dropped paths would make each gradient another one

    def norm(images: Tensor) -> float:
        model.zero_grad()
        F.cross_entropy(model(images), torch.tensor([0, 1])).backward()
        return float(sum(p.grad.square().sum() for p in model.parameters()).sqrt())

    assert 0 < norm(torch.full((2, 3, 32, 32), value)) < 20 * norm(pictures(2, 3, 32))


@pytest.mark.parametrize("build", [small, efficientnet])
def test_permuting_the_batch_permutes_the_logits(build):
    model, images, order = build().train(False), pictures(4, 3, 32), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        torch.testing.assert_close(model(images[order]), model(images)[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [small, efficientnet])
def test_training_keeps_no_statistics_of_pictures(build):
    model = build().train()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model(pictures(4, 3, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


@pytest.mark.parametrize("name", ["small", "efficientnet-b0"])
def test_the_seed_alone_decides_initial_weights(name):
    def state(seed: int) -> State:
        torch.rand(3)  # whatever was drawn before
        return build_picture_classifier(name, channels=3, classes=4, seed=seed).state_dict()

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert fingerprint(first) != fingerprint(other)


def test_building_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    small()
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_of_the_head_holds_no_places():
    """Moving what the last convolution found to other places leaves it as it is."""
    model, images, labels = small(), pictures(2, 3, 64), torch.tensor([1, 5])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))

    def moved(_: nn.Module, __: object, maps: Tensor) -> Tensor:
        return maps.flatten(2)[:, :, order].view_as(maps)

    def gradient() -> Tensor:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        return model.head.weight.grad.clone()

    still = gradient()
    model.features.register_forward_hook(moved)
    torch.testing.assert_close(gradient(), still)


@pytest.mark.parametrize("build", [small, efficientnet])
def test_white_balance_and_exposure_do_not_change_what_the_network_sees(build):
    model, images = build(), 0.2 + 0.5 * pictures(2, 3, 32)
    gains = 1.1 * torch.tensor([1.05, 1.0, 0.85]).view(1, 3, 1, 1)
    torch.testing.assert_close(
        _standardize(model)(images * gains), _standardize(model)(images), atol=1e-4, rtol=0
    )


def test_a_red_lesion_and_a_blue_one_differ_after_standardization():
    red = torch.full((1, 3, 32, 32), 0.7)
    blue = red.clone()
    red[:, 1:, 8:24, 8:24] = 0.3
    blue[:, :2, 8:24, 8:24] = 0.3
    standardize = _standardize(small())
    assert (standardize(red) - standardize(blue)).abs().amax() > 1


def _standardize(model: nn.Module) -> nn.Module:
    return model.standardize if isinstance(model, PictureEfficientNet) else model.features[0]


@pytest.mark.parametrize("naming", NAMINGS)
def test_weights_load_under_every_naming(reference, tmp_path, naming):
    path = tmp_path / "weights.safetensors"
    save_file(as_named(reference, naming), path)
    model = efficientnet(weights=path)
    assert torch.equal(
        model.network._blocks[5][1]._se_reduce.weight, reference._blocks[5][1]._se_reduce.weight
    )
    tensorflow = naming == "efficientnet-pytorch"
    paddings = [each for each in model.modules() if isinstance(each, StridedPadding)]
    assert len(paddings) == 5
    assert all(each.tensorflow == tensorflow for each in paddings)


@pytest.mark.parametrize(
    ("naming", "names"),
    [
        (
            "torchvision",
            "features.0.0.weight features.1.0.block.0.0.weight features.1.0.block.1.fc1.bias "
            "features.1.0.block.2.1.running_var features.4.2.block.0.1.weight "
            "features.7.0.block.3.0.weight features.8.1.bias classifier.1.weight",
        ),
        (
            "timm",
            "conv_stem.weight bn1.weight blocks.0.0.conv_dw.weight blocks.0.0.conv_pw.weight "
            "blocks.0.0.bn2.running_mean blocks.1.1.conv_pwl.weight blocks.6.0.bn3.bias "
            "blocks.3.2.se.conv_expand.bias conv_head.weight bn2.bias classifier.bias",
        ),
        (
            "efficientnet-pytorch",
            "_conv_stem.weight _bn0.bias _blocks.0._depthwise_conv.weight _blocks.15._bn2.weight "
            "_blocks.7._expand_conv.weight _conv_head.weight _bn1.running_var _fc.weight",
        ),
    ],
)
def test_namings_are_those_of_the_libraries(naming, names):
    assert set(names.split()) <= set(file_names(shell(), NAMINGS[naming]).values())


def test_loaded_network_computes_what_the_one_that_was_saved_does(reference, weights):
    model, images = efficientnet(classes=10, weights=weights).eval(), pictures(2, 3, 64)
    mean, sd = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_SD))
    with torch.no_grad():
        expected = reference((images - mean) / sd)
        assert expected.std(0).max() > 0.01  # the pictures matter
        torch.testing.assert_close(model(images), expected)


def test_a_state_computes_the_same_without_the_file(weights):
    """As at a site that gets its first weights from the server."""
    here, there = efficientnet(weights=weights).eval(), efficientnet(pretrained=True).eval()
    there.load_state_dict(here.state_dict())
    with torch.no_grad():
        assert torch.equal(here(pictures(2, 3, 64)), there(pictures(2, 3, 64)))


def test_pretrained_state_is_floating_point_and_fits_into_float16(weights):
    state = efficientnet(weights=weights).state_dict()
    assert all(tensor.is_floating_point() for tensor in state.values())
    assert len(fingerprint(state)) == 64


def test_frozen_batch_norm_learns_gain_and_offset_alone(weights):
    model = efficientnet(weights=weights).train()
    F.cross_entropy(model(pictures(2, 3, 32)), torch.tensor([0, 1])).backward()
    norm = next(each for each in model.modules() if isinstance(each, FrozenBatchNorm))
    assert {name for name, _ in norm.named_parameters()} == {"weight", "bias"}
    assert norm.weight.grad.abs().sum() > 0


def test_a_grey_picture_is_seen_as_grey_in_three_channels(weights):
    grey, colour = efficientnet(1, weights=weights).eval(), efficientnet(3, weights=weights).eval()
    images = pictures(2, 1, 32)
    with torch.no_grad():
        torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)))


def test_a_head_of_other_classes_is_left_as_the_seed_made_it(weights):
    loaded, built = efficientnet(weights=weights), efficientnet(pretrained=True)
    assert torch.equal(loaded.network._fc.weight, built.network._fc.weight)


def test_a_file_without_a_head_is_accepted(reference, tmp_path):
    state = as_named(reference, "timm")
    save_file({k: v for k, v in state.items() if "classifier" not in k}, tmp_path / "w.safetensors")
    load_pretrained(shell(), tmp_path / "w.safetensors")


def _without_one(state: State) -> State:
    return {name: value for name, value in state.items() if name != "blocks.3.1.bn2.bias"}


def _negative(state: State) -> State:
    return {**state, "bn1.running_var": -state["bn1.running_var"]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_without_one, "lacks 1 tensors of this network, such as blocks.3.1.bn2.bias"),
        (lambda s: {**s, "secret": torch.ones(1)}, "holds 1 tensors that this network"),
        (lambda s: {**s, "conv_stem.weight": torch.ones(4, 3, 3, 3)}, r"\(32, 3, 3, 3\) is needed"),
        (lambda s: {**s, "bn1.bias": torch.full((32,), torch.nan)}, "NaN or infinite"),
        (lambda s: {**s, "bn1.bias": torch.ones(32, dtype=torch.int32)}, "no floating-point"),
        (_negative, "negative variance"),
        (lambda _: {"secret": torch.ones(1)}, "no EfficientNet under a known naming"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_words_of_the_networks_own(
    reference, tmp_path, change, problem
):
    path = tmp_path / "hospital.safetensors"
    save_file(change(as_named(reference, "timm")), path)
    with pytest.raises(ConfigError, match=problem) as refusal:
        load_pretrained(shell(), path)
    assert "hospital" not in refusal.value.public
    assert "secret" not in str(refusal.value)
    assert re.search("accepted is a safetensors file", refusal.value.public)


def test_another_size_of_efficientnet_is_refused(weights):
    with pytest.raises(ConfigError, match="lacks"):
        load_pretrained(
            build_picture_classifier(
                "efficientnet-b2", channels=3, classes=4, seed=0, pretrained=True
            ),
            weights,
        )


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "no safetensors file"),
        (b"\x80\x04\x95 a pickle", "no safetensors file"),
        (b"\xff" * 64, "no safetensors file"),  # a header of 2^64 - 1 bytes
        (save({"a": torch.ones(64)})[:-8], "no safetensors file"),
    ],
)
def test_a_hostile_file_is_refused(tmp_path, raw, problem):
    (tmp_path / "w.safetensors").write_bytes(raw)
    with pytest.raises(ConfigError, match=problem):
        load_pretrained(shell(), tmp_path / "w.safetensors")


def test_a_pipe_a_folder_and_no_file_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "none", "nul\0"):
        with pytest.raises(ConfigError, match="accepted is"):
            load_pretrained(shell(), tmp_path / name)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "LARGEST_FILE", 100)
    (tmp_path / "w.safetensors").write_bytes(bytes(101))
    with pytest.raises(ConfigError, match="too large"):
        load_pretrained(shell(), tmp_path / "w.safetensors")


def test_a_link_to_weights_is_followed(weights, tmp_path):
    (tmp_path / "link").symlink_to(weights)
    load_pretrained(shell(), tmp_path / "link")


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match="accepted is one of small"):
        build_picture_classifier("resnet", channels=3, classes=2, seed=0)
    with pytest.raises(ConfigError, match="no pretrained weights"):
        build_picture_classifier("small", channels=3, classes=2, seed=0, pretrained=True)
