"""The linear theory's quick run: bounds and closed forms, and the Gaussian prior's."""

import numpy as np
import pytest
import torch
from scipy import optimize

from companion import data, experiments
from companion.experiments.asim import linear_theory as theory


@pytest.fixture(scope="module")
def theorem():
    return experiments.load("asim.linear-theory", "quick")  # test_verify.py asks whether today\'s code gives it


@pytest.fixture(scope="module")
def gaussian():
    return experiments.load("asim.gaussian-prior", "quick")  # test_verify.py asks whether today\'s code gives it


def test_the_bounds_hold_in_every_case(theorem):
    arrays, mean = theorem.arrays, theorem.arrays["expected"].mean(2)
    assert (arrays["expected"] >= arrays["lower"][:, :, None] * (1 - 1e-9)).all()
    assert (mean <= arrays["sharper"] * (1 + 1e-9)).all()
    assert (arrays["sharper"] < arrays["upper"]).all()
    assert theorem.metrics["cases"] == mean.size
    assert [theorem.metrics[f"{each} holds"] for each in ("lower", "upper", "sharper")] == [mean.size] * 3


def test_the_error_over_sampled_images_is_the_expected_one(theorem):
    gap = theorem.arrays["sampled"] - theorem.arrays["expected"]
    error = gap.std(2, ddof=1) / np.sqrt(gap.shape[2])
    assert (np.abs(gap.mean(2)) < 4.5 * error).all()
    assert (error < 0.2 * theorem.arrays["expected"].mean(2)).all()  # few enough to say something


def test_the_minimisers_find_the_closed_forms(theorem):
    assert theorem.axes("difference")["search"] == ["from zero", "posterior"]
    assert theorem.take("difference").max() < 1e-4


def test_a_flat_spectrum_attains_the_lower_bound_and_the_prediction(theorem):
    by_hand = 1 - np.array(theorem.axes("lower")["m"]) / theorem.provenance.settings["n"]
    for name in ("lower", "predicted"):
        np.testing.assert_allclose(theorem.take(name, spectrum="power 0"), by_hand, rtol=1e-9)
    expected = theorem.take("expected", spectrum="power 0")
    np.testing.assert_allclose(expected, np.broadcast_to(by_hand[:, None], (3, 20)), rtol=1e-9)


@pytest.mark.parametrize("name", ["power 1", "exponential 6", "step 0.05"])
def test_bounds_and_prediction_by_other_means(name):
    sigma = theory.spectrum(name, 40)
    squares = sigma.square().numpy()
    assert squares.sum() == pytest.approx(1) and (np.diff(squares) <= 0).all()
    assert theory.lower_bound(sigma, 12) == pytest.approx(squares[12:].sum())
    assert theory.upper_bound(sigma, 12) == pytest.approx(12 * squares[10:].sum())
    factors = {k: (1 + k / (12 - k - 1)) * squares[k:].sum() for k in range(11)}
    assert theory.sharper_bound(sigma, 12) == pytest.approx(min(factors.values()))
    assert factors[10] == pytest.approx(theory.upper_bound(sigma, 12) * 11 / 12)  # the theorem's, but for one
    root = optimize.brentq(lambda t: (squares / (squares + np.exp(t))).sum() - 12, -40, 10)
    kept_out = (squares * np.exp(root) / (squares + np.exp(root))).sum()  # what a ridge of λ = exp(root) loses
    assert theory.predicted_error(sigma, 12) == pytest.approx(kept_out)


def test_a_linear_flow_has_its_singular_values():
    sigma = theory.spectrum("power 1", 10)
    factor = theory.linear_flow(sigma, 3).weight
    torch.testing.assert_close(torch.linalg.svdvals(factor), sigma)
    assert (factor - torch.diag(sigma)).abs().max() > 0.1


def test_an_unknown_spectrum_is_refused():
    with pytest.raises(ValueError, match="name: got 'linear 2'"):
        theory.spectrum("linear 2", 4)


def test_the_gaussian_prior_explains_its_own_samples_and_helps_on_images(gaussian):
    arrays, total = gaussian.arrays, gaussian.arrays["variances"].sum()
    assert (np.diff(arrays["variances"]) <= 0).all()
    own, held_out = (gaussian.take("error", of=each).mean((1, 2)) for each in ("own", "held out"))
    assert (np.diff(own) < 0).all() and (np.diff(held_out) < 0).all()  # falling with m
    sigma = torch.tensor(arrays["variances"]).sqrt()
    for m, error in zip(gaussian.axes("psnr")["m"], own, strict=True):
        assert theory.lower_bound(sigma, m) < error < total
    truth = torch.tensor(arrays["truth"]) / 255
    train = data.load("digits", split="train", size=8)[:]
    answer_mean = (truth - train.mean(0)).square().flatten(1).sum(1).mean()
    assert held_out[0] < float(answer_mean)
    # the covariance, against NumPy's
    cov = np.cov(train.flatten(1).double().numpy().T, bias=True)
    np.testing.assert_allclose(arrays["variances"], np.linalg.eigvalsh(cov)[::-1], atol=1e-5)
