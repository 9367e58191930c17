"""Noise models: densities against torch.distributions, moments, independence from the batch; Problem."""

import math

import pytest
import torch
from scipy import stats

from companion import measure

NOISES = [
    (measure.GaussianNoise(0.3), (3, 6, 5)),
    (measure.GaussianNoise(0.3), (7,)),
    (measure.SinusoidalNoise(0.5), (3, 20, 5)),
    (measure.SinusoidalNoise(0.5, mean=0.7), (33,)),
    (measure.RadialNoise(0.8, decay=0.01), (3, 12, 9)),
]


@pytest.mark.parametrize(("noise", "shape"), NOISES)
def test_log_prob_is_that_of_independent_normals(noise, shape):
    std = noise.std_map(shape).expand(shape)
    residual = torch.randn(4, *shape, dtype=torch.float64)
    expected = torch.distributions.Normal(noise.mean, std).log_prob(residual).flatten(1).sum(1)
    torch.testing.assert_close(noise.log_prob(residual), expected, rtol=1e-12, atol=1e-10)
    single = noise.log_prob(residual.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("noise", "shape"), NOISES)
def test_draws_have_the_stated_distribution(noise, shape):
    draws = noise.sample((400, *shape), seed=1, like=torch.zeros(1, dtype=torch.float64))
    scaled = (draws - noise.mean) / noise.std_map(shape)
    assert stats.kstest(scaled.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest((scaled.square().flatten(1).sum(1)).numpy(), "chi2", (math.prod(shape),)).pvalue > 1e-3


@pytest.mark.parametrize(("noise", "shape"), NOISES)
def test_noise_of_an_image_depends_on_neither_batch_nor_dtype(noise, shape):
    many = noise.sample((5, *shape), seed=7)
    assert many.dtype == torch.float32
    assert torch.equal(noise.sample((2, *shape), seed=7), many[:2])
    wide = noise.sample((5, *shape), seed=7, like=torch.zeros(1, dtype=torch.float64))
    assert torch.equal(wide.float(), many)
    assert not torch.equal(noise.sample((5, *shape), seed=8), many)


def test_of_norm_gives_the_papers_expected_norm():
    noise = measure.GaussianNoise.of_norm(0.1, 500)
    assert noise.std == pytest.approx(0.1 / math.sqrt(500))
    mean_square = float(noise.sample((400, 500), seed=0).square().sum(1).mean())
    assert mean_square == pytest.approx(0.01, rel=5 * math.sqrt(2 / 500 / 400))


def test_sinusoid_has_the_published_range():
    std = measure.SinusoidalNoise().std_map((3, 64, 64)).flatten()
    assert float(std.max()) == pytest.approx(1, abs=1e-12)
    assert float(std.min()) == pytest.approx(math.exp(-2))
    assert float(std.mean()) == pytest.approx(0.466, abs=5e-4)
    assert float(std.square().mean().sqrt()) == pytest.approx(0.555, abs=5e-4)
    torch.testing.assert_close(std[:16], std[16:32])


def test_radial_noise_fades_from_the_centre_to_its_floor():
    std = measure.RadialNoise(floor=0.0).std_map((3, 64, 64))
    assert float(std[0, 0]) == pytest.approx(4.9e-5, rel=0.02)
    assert float(std.mean()) == pytest.approx(0.153, abs=1e-3)
    assert float(std.square().mean().sqrt()) == pytest.approx(0.277, abs=1e-3)
    assert torch.equal(std, std.flip(0, 1))
    assert float(measure.RadialNoise(2.0, floor=0.01).std_map((3, 64, 64)).min()) == pytest.approx(0.02)


def test_observe_adds_the_same_noise_to_an_image_in_every_batch():
    problem = measure.Problem(measure.Gaussian((3, 4, 4), 20), measure.GaussianNoise(0.1))
    x = torch.rand(5, 3, 4, 4)
    y = problem.observe(x, seed=3)
    assert torch.equal(problem.observe(x[:1], seed=3), y[:1])
    assert torch.equal(y - problem.operator(x), y - problem.operator.apply(x))
    assert float((y - problem.operator(x)).std()) == pytest.approx(0.1, rel=0.3)
    exact = measure.Problem(problem.operator, measure.GaussianNoise(0.0))
    assert torch.equal(exact.observe(x), problem.operator(x))


def test_log_likelihood_is_the_density_of_the_residual():
    problem = measure.Problem(measure.Downsample((1, 4, 4), 2), measure.GaussianNoise(0.2))
    x, y = torch.rand(3, 1, 4, 4, dtype=torch.float64), torch.rand(3, 1, 2, 2, dtype=torch.float64)
    mean = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    expected = torch.distributions.Normal(mean, 0.2).log_prob(y).flatten(1).sum(1)
    torch.testing.assert_close(problem.log_likelihood(x, y), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure.GaussianNoise(-0.1), "std: got -0.1"),
        (lambda: measure.GaussianNoise(math.nan), "std: got nan"),
        (lambda: measure.GaussianNoise.of_norm(0.1, 0), "m: got 0"),
        (lambda: measure.GaussianNoise(0.0).log_prob(torch.rand(1, 3)), "std: got 0"),
        (lambda: measure.GaussianNoise(0.1).sample((3,), seed=0), "shape: got"),
        (lambda: measure.GaussianNoise(0.1).sample((3, 2), seed=None), "seed: got None"),
        (lambda: measure.SinusoidalNoise().sample((3, 2, 2), seed=0), "shape: got"),
        (lambda: measure.SinusoidalNoise(mean=math.inf), "mean: got inf"),
        (lambda: measure.RadialNoise(decay=0), "decay: got 0"),
        (lambda: measure.RadialNoise().std_map((9,)), "shape: got"),
        (
            lambda: measure.Problem(measure.Identity((1, 2, 2)), measure.GaussianNoise(1)).observe(
                torch.full((1, 1, 2, 2), 1.5)
            ),
            "x: got pixels from 1.5 to 1.5",
        ),
        (
            lambda: measure.Problem(measure.GaussianNoise(1), measure.Identity((1, 2, 2))),
            "operator: got GaussianNoise; allowed: a measure.Operator",
        ),
        (lambda: measure.Problem(measure.Identity((1, 2, 2)), 0.1), "noise: got float; allowed: a measure.Noise"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
