"""The phantom's calibration: it measures what it says, and never on the default cohort."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import ConfigError
from simulations import phantom_calibration as calibration


@pytest.fixture(scope="session")
def measured() -> tuple[calibration.Calibration, list[int]]:
    steps: list[int] = []
    return calibration.calibrate(24, 8, "north", 7, steps.append), steps


def test_a_small_calibration_gives_sane_figures(measured):
    found, steps = measured
    assert sum(steps) == 24
    assert set(found.ridge) == {16}  # as many as there are, where no larger set fits
    for accuracy in (found.size_only, *found.ridge.values()):
        assert accuracy * 8 in range(9)
    assert 1000 < len(found.effects) < calibration.POOLED**3 / 2  # the brain, not the air
    assert np.isfinite(found.effects).all()
    assert 0 < np.median(found.effects) < 1


def test_table_has_a_line_a_figure(measured):
    lines = measured[0].table().splitlines()
    assert [float(line.split()[-1]) for line in lines] == pytest.approx(
        [
            measured[0].size_only,
            *np.quantile(measured[0].effects, [0.5, 0.99, 1]),
            measured[0].ridge[16],
        ],
        abs=0.001,
    )


@pytest.mark.parametrize(
    ("subjects", "held_out", "seed", "got"),
    [(24, 8, 0, "seed 0"), (24, 0, 7, "0 held"), (5, 4, 7, "1")],
)
def test_what_cannot_be_calibrated_on_is_refused(subjects, held_out, seed, got):
    with pytest.raises(ConfigError, match=got):
        calibration.calibrate(subjects, held_out, "north", seed, lambda _: None)


def test_effects_are_those_at_equal_size():
    rng = np.random.default_rng(0)
    men = np.arange(4000) % 2 == 1
    size = 0.1 * rng.standard_normal(4000) + 0.13 * men
    noise = rng.standard_normal((4000, 3))
    # A voxel that follows size alone, one that also differs by d = -0.5, one of neither.
    voxels = noise + np.outer(size, [20, 20, 0]) + np.outer(men, [0, -0.5, 0])
    effects = calibration.adjusted_effects(voxels, size, men)
    assert effects == pytest.approx([0, 0.5, 0], abs=0.12)  # SE 0.04


def test_learning_curve_rises_with_signal_and_stays_at_chance_without(monkeypatch):
    monkeypatch.setattr(calibration, "TRAINING_SIZES", (20, 200))
    rng = np.random.default_rng(0)
    men = np.arange(1200) % 2 == 1
    noise = rng.standard_normal((1200, 100))
    clear = noise + 0.3 * men[:, None]
    curves = [
        calibration.learning_curve(x[:200], men[:200], x[200:], men[200:]) for x in (noise, clear)
    ]
    assert curves[0][200] == pytest.approx(0.5, abs=0.06)  # chance, SE 0.016
    assert curves[1][20] < curves[1][200]
    assert curves[1][200] > 0.8  # of 0.933 at best: Φ(0.3 · √100 / 2)
