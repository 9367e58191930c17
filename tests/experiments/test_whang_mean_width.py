"""Theorem 4.2's width, estimate and bound, each against something independent."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import gammaln

from companion.experiments.whang import mean_width


@pytest.mark.parametrize("k", [1, 3, 200])
def test_the_width_of_a_ball_is_the_mean_of_a_chi_variable(k):
    expected = 2 * math.sqrt(2) * math.exp(gammaln((k + 1) / 2) - gammaln(k / 2))
    assert mean_width.width(np.full(k, 3.0)) == pytest.approx(3 * expected, rel=1e-9)


def test_the_width_is_the_mean_of_the_largest_product_over_differences():
    axes = np.array([5.0, 1.0, 0.1])
    g = np.random.default_rng(0).normal(size=(400_000, 3))
    # over all x − y in the ellipsoid's difference with itself, ⟨g, x − y⟩ is largest along (a² g), twice the half-axes
    best = 2 * axes**2 * g / np.linalg.norm(axes * g, axis=1, keepdims=True)
    assert mean_width.width(axes) == pytest.approx((best * g).sum(1).mean(), rel=5e-3)


@pytest.mark.parametrize(("m", "k"), [(3, 5), (8, 4)])
def test_the_shortest_latent_is_a_constrained_minimiser(m, k):
    rng = np.random.default_rng(0)
    forward, z, noise = rng.normal(size=(m, k)), rng.normal(size=k), rng.normal(size=m)
    epsilon = 0.3
    y = forward @ z + epsilon * noise / np.linalg.norm(noise)
    found = mean_width.shortest(forward, y[None], epsilon)[0]
    room = {"type": "ineq", "fun": lambda u: epsilon**2 - np.square(forward @ u - y).sum()}
    other = minimize(lambda u: u @ u, z, constraints=[room], options={"ftol": 1e-14, "maxiter": 500}).x
    np.testing.assert_allclose(found, other, atol=1e-5)


def test_measurements_that_are_all_noise_leave_the_latent_at_zero():
    assert (mean_width.shortest(np.eye(3), np.full((1, 3), 0.1), 0.2) == 0).all()
