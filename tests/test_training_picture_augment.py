"""Augmentation of pictures: what it may vary by modality, and what it must leave alone."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.training.picture_augment import GREY, PHOTOGRAPH, Modality, augment, modality_of, views

MODALITIES = {1: GREY, 3: PHOTOGRAPH}
STILL = Modality(
    **{
        field.name: {"mirrored": (), "outside": "zeros"}.get(field.name, 0.0)
        for field in fields(Modality)
    }
)


def pictures(count: int, channels: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(1, 5), st.integers(16, 70), st.integers(0, 2**32 - 1))
def test_shape_and_range_are_kept(channels, count, size, seed):
    varied = augment(pictures(count, channels, size), generator(seed), MODALITIES[channels])
    assert varied.shape == (count, channels, size, size)
    assert varied.dtype == torch.float32
    assert 0 <= varied.min() <= varied.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_generator_gives_the_same_bytes(channels):
    images, modality = pictures(4, channels), MODALITIES[channels]
    first, again = (augment(images, generator(7), modality) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(images, generator(8), modality))


@pytest.mark.parametrize("channels", [1, 3])
def test_neither_the_input_nor_the_global_random_state_changes(channels):
    images = pictures(4, channels)
    before, state = images.clone(), torch.get_rng_state()
    augment(images, generator(), MODALITIES[channels])
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_is_varied_picture_by_picture():
    """Each by its own draws: what stands beside it does not matter."""
    images = pictures(4, 3)
    other = images.clone()
    other[1:] = 0.5
    assert torch.equal(
        augment(images, generator(), PHOTOGRAPH)[0], augment(other, generator(), PHOTOGRAPH)[0]
    )
    same = augment(images[:1].expand(4, -1, -1, -1), generator(), PHOTOGRAPH)
    assert not torch.equal(same[0], same[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_modality_that_varies_nothing_is_the_identity(channels):
    images = pictures(3, channels)
    torch.testing.assert_close(augment(images, generator(), STILL), images, atol=2e-5, rtol=0)


def test_mirroring_alone_gives_the_views_that_a_prediction_averages_over():
    mirroring = replace(STILL, mirrored=(-1, -2))
    image = pictures(1, 3)
    varied = augment(image.expand(64, -1, -1, -1), generator(), mirroring)
    nearest = [
        min(range(4), key=lambda k: float((views(image, mirroring)[k][0] - one).abs().max()))
        for one in varied
    ]
    assert set(nearest) == {0, 1, 2, 3}
    for one, k in zip(varied, nearest, strict=True):
        torch.testing.assert_close(one, views(image, mirroring)[k][0], atol=2e-5, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_grey_pictures_keep_their_left_and_right(seed):
    """A bright mark at the left stays left of the middle, as a heart's side has to."""
    image = torch.zeros(1, 1, 48, 48)
    image[..., 16:32, 4:16] = 1
    mark = augment(image, generator(seed), GREY) > 0.5
    assert mark.any()
    assert not mark[..., 24:].any()


def test_photographs_are_turned_to_every_side():
    image = torch.zeros(1, 3, 48, 48)
    image[..., 16:32, 4:14] = 1
    mass = augment(image.expand(128, -1, -1, -1), generator(), PHOTOGRAPH).mean(1)
    quarters = torch.stack(
        [mass[:, :, :24].sum((1, 2)), mass[:, :, 24:].sum((1, 2)), mass[:, :24].sum((1, 2)),
         mass[:, 24:].sum((1, 2))], dim=1
    )  # fmt: skip
    assert set(quarters.argmax(1).tolist()) == {0, 1, 2, 3}


def test_corners_of_a_turned_photograph_show_the_picture():
    bright = torch.full((16, 3, 32, 32), 0.6)
    turned = augment(bright, generator(), replace(STILL, rotation=180.0, outside="reflection"))
    torch.testing.assert_close(turned, bright)


def test_a_quarter_turn_is_a_quarter_turn():
    image = pictures(1, 3, size=16)
    turned = augment(image.expand(2000, -1, -1, -1), generator(), replace(STILL, rotation=180.0))
    quarters = [torch.rot90(image, k, (-2, -1)) for k in range(4)]
    assert all((turned - quarter).abs().amax((1, 2, 3)).min() < 0.1 for quarter in quarters)


def test_white_balance_moves_channels_and_brightness_all_of_them():
    grey = torch.full((256, 3, 16, 16), 0.5)
    brighter = augment(grey, generator(), replace(STILL, brightness=0.1))
    torch.testing.assert_close(brighter[:, 0], brighter[:, 2])
    assert brighter[:, 0, 0, 0].log().std() == pytest.approx(0.1, rel=0.2)
    coloured = augment(grey, generator(), replace(STILL, white_balance=0.1))
    assert (coloured[:, 0] - coloured[:, 2]).abs().amax() > 0.05


def test_contrast_leaves_the_mean_alone():
    images = 0.3 + 0.4 * pictures(8, 3)
    varied = augment(images, generator(), replace(STILL, contrast=0.1))
    torch.testing.assert_close(varied.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-4, rtol=0)
    assert not torch.allclose(varied, images, atol=0.01)


def test_views_are_the_mirror_images_that_the_modality_allows():
    images = pictures(2, 3)
    assert len(views(images, PHOTOGRAPH)) == 4
    assert len(views(images[:, :1], GREY)) == 1
    assert torch.equal(views(images, PHOTOGRAPH)[0], images)
    assert len({view.numpy().tobytes() for view in views(images, PHOTOGRAPH)}) == 4


def test_views_of_a_mirrored_picture_are_the_same_views():
    images = pictures(2, 3)
    here, there = (torch.stack(views(each, PHOTOGRAPH)) for each in (images, images.flip(-1)))
    torch.testing.assert_close(here.sum(0), there.sum(0))


def test_the_number_of_channels_that_a_study_declares_decides_the_modality():
    assert modality_of(3) is PHOTOGRAPH
    assert modality_of(1) is GREY
    with pytest.raises(ValueError, match="accepted are 1 and 3"):
        modality_of(4)
