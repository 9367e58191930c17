"""One bit a measurement: the straight-through gradient, the probit likelihood by sampling, and the best linear fit."""

import math

import pytest
import torch
from operator_cases import PerImageNoise
from scipy import stats

from companion import measure
from companion.energy import NoiseMisfit, PerceptronMisfit, ProbitMisfit, linearised

SHAPE, NOISE = (1, 4, 5), measure.SinusoidalNoise(1.3, period=7, mean=0.3)
LINEAR = measure.Gaussian(SHAPE, 30, seed=1)
AFTER, BEFORE = measure.Problem(measure.SignOf(LINEAR), NOISE), measure.Problem(LINEAR, NOISE)


def images(n=3, seed=0):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(misfit, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(misfit(x).sum(), x)[0]


def test_the_straight_through_gradient_is_the_perceptrons():
    x = images()
    y = AFTER.observe(x)
    at = images(seed=1)
    straight, perceptron = gradient(NoiseMisfit(AFTER, y), at), gradient(PerceptronMisfit(AFTER, y), at)
    torch.testing.assert_close(straight, perceptron, rtol=0, atol=1e-9)
    dark = 0 * at  # where a search may start, and 0 counts as +1
    torch.testing.assert_close(gradient(NoiseMisfit(AFTER, y), dark), gradient(PerceptronMisfit(AFTER, y), dark))
    assert torch.autograd.gradcheck(PerceptronMisfit(AFTER, y), at.requires_grad_())
    assert gradient(PerceptronMisfit(AFTER, y), x).norm() > 1  # it does not vanish at the truth
    twice = PerceptronMisfit(AFTER, y)(2 * at)
    torch.testing.assert_close(twice, 2 * PerceptronMisfit(AFTER, y)(at))  # degree 1: it knows no scale


def test_probit_is_the_probability_of_the_bits():
    x = images(1)
    bits = torch.cat([BEFORE.observe(x, draw) for draw in range(4000)]).sign()
    share = (bits > 0).double().mean(0)
    for j in range(0, 30, 5):
        one = bits[:1].clone()
        one[0, j] = 1.0
        other = one.clone()
        other[0, j] = -1.0
        ratio = float(ProbitMisfit(BEFORE, other)(x) - ProbitMisfit(BEFORE, one)(x))
        p = 1 / (1 + math.exp(-ratio))
        assert abs(float(share[j]) - p) < 5 * math.sqrt(p * (1 - p) / 4000) + 1e-9
    std = NOISE.std_map((30,)).numpy()
    expected = -stats.norm.logcdf((bits[:1] * (LINEAR(x) + 0.3)).numpy() / std).sum()
    assert float(ProbitMisfit(BEFORE, bits[:1])(x)) == pytest.approx(expected, rel=1e-10)
    torch.autograd.gradcheck(ProbitMisfit(BEFORE, bits[:3]), images().requires_grad_())


def test_probit_wants_the_problem_before_the_sign():
    signs = measure.Problem(measure.SignOf(LINEAR), NOISE)
    with pytest.raises(ValueError, match="problem: got the operator SignOf; allowed: the linear one"):
        ProbitMisfit(signs, BEFORE.observe(images()).sign())


def test_the_linear_problem_is_the_regression_of_the_signs():
    m, x = 20_000, images(1)
    linear = measure.Gaussian(SHAPE, m, seed=2)
    problem = linearised(measure.Problem(measure.SignOf(linear), measure.GaussianNoise(0.2)), float(x.norm()))
    y = measure.Problem(measure.SignOf(linear), measure.GaussianNoise(0.2)).observe(x)
    u, fit = linear(x), problem.operator(x)
    slope = stats.linregress(u.flatten(), y.flatten())
    assert float((fit / u).mean()) == pytest.approx(slope.slope, abs=5 * slope.stderr)
    assert float((y - fit).std()) == pytest.approx(float(problem.noise.std_map((m,))), rel=5 / math.sqrt(2 * m))
    assert isinstance(problem.operator, measure.LinearOperator)


def test_both_are_the_same_alone_and_in_a_batch():
    x = images()
    for misfit in (PerceptronMisfit(AFTER, AFTER.observe(x)), ProbitMisfit(BEFORE, BEFORE.observe(x).sign())):
        torch.testing.assert_close(misfit.select([2, 0])(x[[2, 0]]), misfit(x)[[2, 0]])
    noise = PerImageNoise(torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64))
    after, before = measure.Problem(AFTER.operator, noise), measure.Problem(LINEAR, noise)
    for misfit in (PerceptronMisfit(after, after.observe(x)), ProbitMisfit(before, before.observe(x).sign())):
        for chosen in ([2, 0], [2, 1, 0]):  # as many images in another order would have passed for the same ones
            torch.testing.assert_close(misfit.select(chosen)(x[chosen]), misfit(x)[chosen])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PerceptronMisfit(BEFORE, torch.ones(1, 30)), "problem: got the operator Gaussian"),
        (lambda: ProbitMisfit(BEFORE, torch.full((1, 30), 0.5)), "y: got values from 0.5 to 0.5; allowed: -1 and 1"),
        (
            lambda: PerceptronMisfit(measure.Problem(AFTER.operator, measure.GaussianNoise(0.0)), torch.ones(1, 30)),
            "std: got 0",
        ),
        (lambda: ProbitMisfit(measure.Problem(LINEAR, measure.GaussianNoise(0.0)), torch.ones(1, 30)), "std: got 0"),
        (lambda: linearised(AFTER, 0), "norm: got 0"),
        (
            lambda: linearised(measure.Problem(AFTER.operator, measure.PoissonGaussianNoise()), 1.0),
            "problem: got PoissonGaussianNoise; allowed: a measure.IndependentNoise",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
