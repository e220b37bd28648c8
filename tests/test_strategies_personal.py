"""Strategies that give each site a model of its own, on quadratics solved by hand."""

from __future__ import annotations

import pytest
from quadratic import Federation, QuadraticSite


def test_fedbn_leaves_each_site_its_own_normalization_and_averages_the_rest():
    """One step from 0: site i goes to η a_i b_i, and the mean of both is the server's."""
    federation = Federation("fedbn", QuadraticSite(1.0, 1.0), QuadraticSite(2.0, 3.0))
    shared = federation.round()
    assert shared.keys() == {"body.weight", "head.weight"}
    assert shared["body.weight"] == pytest.approx((0.1 * 1 + 0.1 * 6) / 2)
    assert federation.personal(0)["norm.weight"] == pytest.approx(0.1)
    assert federation.personal(1)["norm.weight"] == pytest.approx(0.6)


def test_fedbn_goes_on_from_each_site_s_own_normalization():
    federation = Federation("fedbn", QuadraticSite(1.0, 1.0), QuadraticSite(2.0, 3.0))
    federation.round()
    federation.round()
    assert federation.personal(0)["norm.weight"] == pytest.approx(0.1 + 0.1 * (1 - 0.1))
