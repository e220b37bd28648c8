"""Detectors of hair, rulers and frames know those of phantoms."""

from __future__ import annotations

import numpy as np
import pytest

from common.latent.artefacts import (
    ARTEFACTS,
    measure,
    phantoms_with_artefacts,
    scores,
    train_detectors,
)

SIZE = 64


@pytest.fixture(scope="module", autouse=True)
def few_phantoms() -> None:
    with pytest.MonkeyPatch.context() as patch:
        make = phantoms_with_artefacts
        patch.setattr(
            "common.latent.artefacts.phantoms_with_artefacts",
            lambda size, *, seed: make(size, seed=seed, lesions=15, takes=20),
        )
        yield


def test_detectors_know_artefacts_of_lesions_that_they_have_not_seen() -> None:
    detectors = train_detectors(SIZE)
    assert tuple(detectors) == ARTEFACTS
    images, truth, _ = phantoms_with_artefacts(SIZE, seed=1, lesions=6, takes=20)
    least = {"hair": 0.6, "ruler": 0.75, "frame": 0.95}
    found = scores(detectors.values(), images) > 0
    for (name, detector), said in zip(detectors.items(), found.T, strict=True):
        recalls = [(said[truth[name] == kind] == kind).mean() for kind in (False, True)]
        assert np.mean(recalls) > least[name], name
        assert detector.accuracy > least[name], name


def test_a_dark_line_is_measured_as_hair_and_a_dark_spot_is_not() -> None:
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    plain = np.full((3, SIZE, SIZE), 0.4)
    line, spot = np.where(np.abs(y - x) < 0.02, -0.9, plain), plain.copy()
    spot[:, np.hypot(x, y) < 0.3] = -0.9  # of more pixels than the line
    hair = measure(np.stack([plain, line, spot]))[:, 0]
    assert hair[1] > hair[0] + 1
    assert hair[2] < hair[0] + 0.1 * (hair[1] - hair[0])


def test_artefacts_are_drawn_independently_of_one_another() -> None:
    _, truth, lesions = phantoms_with_artefacts(16, seed=0, lesions=6, takes=60)
    together = np.corrcoef([*truth.values(), lesions])
    assert np.abs(together[np.triu_indices(4, 1)]).max() < 0.2
