"""Discriminator weighting on densities in closed form: data N(m, s²), a generator of N(0, 1), and their lognormals."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from companion import measure, priors, sample
from companion.energy import Discrimination, Energy, LatentNorm, LogRatio, NoiseMisfit

SHIFT, WIDTH = 0.8, 0.7  # of the data; the generator's are 0 and 1


def best(x):
    """The best discriminator of N(SHIFT, WIDTH²) against N(0, 1): the log ratio of their densities; [batch, 1]."""
    ratio = -0.5 * ((x - SHIFT) / WIDTH).square() - math.log(WIDTH) + 0.5 * x.square()
    return ratio[:, 0]


def drawn(number, seed, shift=0.0, width=1.0):
    return shift + width * torch.randn(number, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (1.7, 3.9), (-0.5, 0.2)])
def test_calibration_recovers_scale_and_bias(scale, bias):
    """Of d = (log ratio − bias) / scale, from sets of different sizes."""
    real, generated = drawn(40_000, 0, SHIFT, WIDTH), drawn(20_000, 1)
    found = sample.calibrated(lambda x: (best(x) - bias) / scale, real, generated)
    # the standard error of either is about 0.02
    assert found.scale == pytest.approx(scale, abs=0.08 * abs(scale))
    assert found.bias == pytest.approx(bias, abs=0.08 * (1 + abs(bias / scale)))
    x = drawn(5, 2)
    ratio = stats.norm(SHIFT, WIDTH).logpdf(x) - stats.norm().logpdf(x)
    torch.testing.assert_close(found(x), torch.as_tensor(ratio)[:, 0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_calibration_is_the_same_in_any_unit_of_the_discriminator(unit):
    real, generated, x = drawn(4000, 0, SHIFT, WIDTH), drawn(4000, 1), drawn(5, 2)
    expected = sample.calibrated(best, real, generated)
    found = sample.calibrated(lambda x: unit * (best(x) + 7), real, generated)
    torch.testing.assert_close(found(x), expected(x), atol=1e-4, rtol=1e-4)


def test_calibration_is_scikit_learns_logistic_regression():
    real, generated = drawn(150, 3, 0.5), drawn(60, 4)
    found = sample.calibrated(lambda x: x[:, 0], real, generated)
    model = LogisticRegression(C=1e8, class_weight="balanced", tol=1e-10)
    model.fit(torch.cat([real, generated]).numpy(), [1] * 150 + [0] * 60)
    assert found.scale == pytest.approx(model.coef_[0, 0], rel=1e-3)
    assert found.bias == pytest.approx(model.intercept_[0], rel=1e-3)


def test_weights_turn_draws_of_the_generator_into_the_datas():
    """Lemma 1, for the injective G(z) = exp(z) and lognormal data: no Jacobian enters the weights."""
    z = drawn(200_000, 5)
    x = z.exp()
    data, generated = stats.lognorm(WIDTH, scale=math.exp(SHIFT)), stats.lognorm(1.0)
    d = torch.as_tensor(data.logpdf(x) - generated.logpdf(x))[:, 0]
    weights = sample.importance_weights(d)
    assert float(weights.mean(x)) == pytest.approx(data.mean(), rel=0.02)
    assert float(weights.mean(x.log())) == pytest.approx(SHIFT, abs=0.01)
    for level in (0.1, 0.5, 0.9):
        below = (x <= data.ppf(level)).double()
        assert float(weights.mean(below)) == pytest.approx(level, abs=0.01)
    # n / (1 + χ²): ∫ N(SHIFT, WIDTH²)² / N(0, 1), in closed form
    precision = 2 / WIDTH**2 - 1
    chi = math.exp((2 * SHIFT / WIDTH**2) ** 2 / (2 * precision) - (SHIFT / WIDTH) ** 2) / WIDTH**2 / precision**0.5
    assert float(weights.ess) / len(z) == pytest.approx(1 / chi, rel=0.03)


def test_weights_of_several_images_are_those_of_each():
    d, values = 3 * drawn(60, 6).view(20, 3), drawn(120, 7).view(20, 3, 2)
    weights = sample.importance_weights(d)
    for k in range(3):
        own = sample.importance_weights(d[:, k] + 100)  # a bias changes nothing
        torch.testing.assert_close(own.ess, weights.ess[k])
        torch.testing.assert_close(own.mean(values[:, k]), weights.mean(values)[k])
        np.testing.assert_allclose(weights.mean(values)[k], np.average(values[:, k], axis=0, weights=d[:, k].exp()))


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_chains_find_the_tilted_posterior(weight):
    """Tilted by d, N(0, 1) is N(0, 1)^(1−λ) N(SHIFT, WIDTH²)^λ, and with y = z + noise all is normal."""
    std, prior = 0.6, priors.Linear(torch.ones(1, 1, dtype=torch.float64))
    problem = measure.Problem(measure.Identity((1,), domain="real"), measure.GaussianNoise(std))
    y = torch.tensor([[1.5], [-1.0]], dtype=torch.float64)
    terms = [NoiseMisfit(problem, y), LatentNorm(0.5, squared=True), Discrimination(LogRatio(best), weight)]
    energy = Energy(prior, terms=[(1.0, term) for term in terms])
    chains = sample.hmc(energy, torch.zeros(2, 64, 1).double(), step=0.5, leapfrogs=3, draws=60, warmup=40, seed=1)
    precision = 1 - weight + weight / WIDTH**2 + 1 / std**2
    mean = (weight * SHIFT / WIDTH**2 + y[:, 0] / std**2) / precision
    error = precision**-0.5 / 1000**0.5  # at least 1000 effective of 3840 draws
    assert (chains.diagnostics().ess_bulk[:, 0] > 1000).all()
    found = chains.samples[..., 0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.mean(1), mean, rtol=0, atol=4 * error)
    torch.testing.assert_close(found.var(1), torch.full_like(mean, 1 / precision), rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LogRatio(priors.GAN(latent_dim=2, width=2).discriminate), "discriminator: got GAN in training mode"),
        (lambda: LogRatio(best, math.nan), "scale: got 1 NaN"),
        (lambda: LogRatio(lambda x: x)(drawn(3, 0)), "discriminator: got values of shape"),
        (lambda: Discrimination(LogRatio(best), -1.0), "weight: got -1.0"),
        (lambda: sample.calibrated(lambda x: x[:, 0], drawn(9, 0, 50.0), drawn(9, 1)), "real: got images that d tells"),
        (lambda: sample.importance_weights(torch.tensor([0.0, math.inf])), "log_ratio: got 1 NaN or inf"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
