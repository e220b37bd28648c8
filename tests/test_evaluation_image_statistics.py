"""Spectra, patches and similarities of images whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import FedscanError
from common.evaluation.image_statistics import (
    _laplacian_pyramid,
    _smooth,
    check_shape,
    image_statistics,
    ms_ssim_diversity,
    radial_power_spectrum,
    sliced_wasserstein,
    spectrum_distance,
)


def noise(n: int = 20, side: int = 32, *, sd: float = 0.3, seed: int = 0, channels: int = 1):
    rng = np.random.default_rng(seed)
    return (sd * rng.standard_normal((n, channels, side, side))).astype(np.float32)


def blobs(n: int = 20, side: int = 32, *, seed: int = 0, alike: float = 0.0) -> np.ndarray:
    """Smooth random pictures, a share of which all have in common."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(noise(n + 1, side, seed=seed, sd=1), (0, 0, side / 10, side / 10))
    smooth /= 3 * smooth.std()
    return np.clip((1 - alike) * smooth[1:] + alike * smooth[:1], -1, 1)


class TestSpectrum:
    def test_white_noise_is_flat_at_its_variance(self):
        spectrum = radial_power_spectrum(noise(200))
        assert spectrum.shape == (17,)
        np.testing.assert_allclose(spectrum[1:], 0.09, rtol=0.1)

    def test_a_wave_peaks_at_its_frequency(self):
        wave = np.cos(2 * np.pi * 5 * np.arange(32) / 32)
        spectrum = radial_power_spectrum(np.tile(wave, (1, 1, 32, 1)))
        assert spectrum.argmax() == 5
        np.testing.assert_allclose(np.delete(spectrum, 5), 0, atol=1e-6)

    def test_twice_the_amplitude_is_six_decibels(self):
        images = noise()
        assert spectrum_distance(2 * images, images) == pytest.approx(6.0206, abs=1e-3)
        assert spectrum_distance(images, images) == 0


class TestSlicedWasserstein:
    def test_of_one_distribution_is_near_zero_and_grows_with_blur(self):
        real = noise(150)
        same = sliced_wasserstein(noise(100, seed=1), real)
        blurred = [sliced_wasserstein(_smooth(real, gain), real)["mean"] for gain in (1, 0.5)]
        assert list(same) == ["32", "16", "mean"]
        assert same["mean"] < 0.03
        assert 5 * same["mean"] < blurred[0] < blurred[1]

    def test_sees_contrast(self):
        assert sliced_wasserstein(2 * noise(100), noise(100, seed=1))["mean"] > 0.5

    def test_levels_add_up_to_the_image(self):
        images = blobs(3, 64)
        fine, middle, coarse = _laplacian_pyramid(images)
        for band in (middle, fine):
            spread = np.zeros_like(band)
            spread[..., ::2, ::2] = coarse
            coarse = band + _smooth(spread, 2)
        np.testing.assert_allclose(coarse, images, atol=1e-6)

    def test_a_constant_has_no_fine_detail(self):
        fine, coarse = _laplacian_pyramid(np.full((1, 1, 32, 32), 0.5, dtype=np.float32))
        np.testing.assert_allclose(fine, 0, atol=1e-6)
        np.testing.assert_allclose(coarse, 0.5, atol=1e-6)


class TestDiversity:
    @pytest.mark.parametrize("side", [16, 32, 64, 128, 256])
    def test_copies_are_alike_at_every_resolution(self, side):
        image = np.repeat(blobs(1, side), 3, axis=0)
        assert ms_ssim_diversity(image, pairs=4) == pytest.approx(1, abs=1e-5)

    def test_falls_as_pictures_have_less_in_common(self):
        found = [ms_ssim_diversity(blobs(alike=share)) for share in (0.9, 0.6, 0.3, 0)]
        assert found == sorted(found, reverse=True)
        assert found[0] - found[-1] > 0.4

    def test_one_image_has_no_pair(self):
        assert ms_ssim_diversity(blobs(1)) is None


def test_all_together_repeats_itself():
    first, again = (image_statistics(blobs(), blobs(seed=1), seed=3) for _ in range(2))
    assert first == again
    assert first["ms_ssim"] == pytest.approx(first["ms_ssim_real"], abs=0.1)
    assert first["n_generated"] == 20


@pytest.mark.parametrize("channels", [2, 4])
def test_channels(channels):
    found = image_statistics(noise(channels=channels), noise(seed=1, channels=channels))
    assert np.isfinite(found["sliced_wasserstein"]["mean"])
    assert np.isfinite(found["ms_ssim"])


@pytest.mark.parametrize(
    "shape",
    [(2, 1, 24, 24), (2, 1, 8, 8), (2, 1, 32, 64), (2, 32, 32), (0, 1, 32, 32), (2, 5, 32, 32)],
)
def test_refuses_other_shapes(shape):
    with pytest.raises(FedscanError, match="accepted") as refused:
        radial_power_spectrum(np.zeros(shape))
    assert str(shape) in str(refused.value)
    assert str(shape) not in refused.value.public


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 4, 24, 24)])
def test_pictures_that_are_not_halved_may_have_any_side(shape):
    check_shape(shape)
    with pytest.raises(FedscanError, match="power of two"):
        check_shape(shape, halved=True)


def test_refuses_sets_of_two_shapes():
    with pytest.raises(FedscanError, match="one shape") as refused:
        sliced_wasserstein(noise(side=16), noise(side=32))
    assert "32" not in refused.value.public
