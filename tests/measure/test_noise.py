"""Noise models: densities against torch.distributions, moments, independence from the batch; Problem."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from companion import measure


def uniform(*shape):
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# What test_contract.py checks: from a class to pairs of a noise and exact measurements.
NOISES = {
    measure.GaussianNoise: [(measure.GaussianNoise(0.3), uniform(*shape)) for shape in ((3, 6, 5), (1, 2, 4), (1,))],
    measure.SinusoidalNoise: [
        (measure.SinusoidalNoise(0.5), uniform(3, 20, 5)),
        (measure.SinusoidalNoise(0.5, mean=0.7), uniform(33)),
        (measure.SinusoidalNoise(0.5, mean=0.7), uniform(9)),
        (measure.SinusoidalNoise(0.5, mean=0.7), uniform(1)),
    ],
    measure.RadialNoise: [
        (measure.RadialNoise(0.8, decay=0.01), uniform(3, 12, 9)),
        (measure.RadialNoise(0.8), uniform(1, 3, 4)),
        (measure.RadialNoise(0.8), uniform(1, 1, 1)),
    ],
    measure.WidenedNoise: [
        (measure.WidenedNoise(measure.SinusoidalNoise(0.5, mean=0.7), 0.6), uniform(size)) for size in (33, 8)
    ],
    measure.PoissonGaussianNoise: [
        (measure.PoissonGaussianNoise(0.02, 0.05), uniform(3, 6, 5)),
        (measure.PoissonGaussianNoise(0.5, 0.05), uniform(1, 2, 4)),
        (measure.PoissonGaussianNoise(0.5, 0.05), uniform(1) + 0.2),
        (measure.PoissonGaussianNoise(0.5, 0.05), uniform(1) - 1.2),
    ],
}
INDEPENDENT = [pair for kind, pairs in NOISES.items() if issubclass(kind, measure.IndependentNoise) for pair in pairs]


@pytest.mark.parametrize(("noise", "exact"), INDEPENDENT)
def test_log_prob_is_that_of_independent_normals(noise, exact):
    std = noise.std_map(tuple(exact.shape[1:])).expand(exact.shape[1:])
    y = exact + torch.randn(exact.shape, dtype=torch.float64)
    expected = stats.norm(exact + noise.mean, std).logpdf(y).reshape(3, -1).sum(1)
    torch.testing.assert_close(noise.log_prob(y, exact), torch.from_numpy(expected), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(("noise", "exact"), INDEPENDENT)
def test_draws_have_the_stated_distribution(noise, exact):
    exact = exact[:1].repeat(400, *[1] * (exact.dim() - 1))
    scaled = (noise.sample(exact, seed=1) - exact - noise.mean) / noise.std_map(tuple(exact.shape[1:]))
    assert stats.kstest(scaled.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest((scaled.square().flatten(1).sum(1)).numpy(), "chi2", (exact[0].numel(),)).pvalue > 1e-3


def test_the_cameras_noise_has_the_mean_and_variance_of_counted_photons_and_its_density_where_they_are_many():
    gain, read, light = 0.002, 0.02, 0.6
    noise, exact = measure.PoissonGaussianNoise(gain, read), torch.full((4_000, 1), light, dtype=torch.float64)
    draws = noise.sample(exact, 0)[:, 0].numpy()
    source = np.random.default_rng(0)
    photons = gain * source.poisson(light / gain, 4_000) + read * source.standard_normal(4_000)
    assert stats.kstest(draws, stats.norm(light, math.sqrt(gain * light + read**2)).cdf).pvalue > 1e-3
    assert abs(photons.mean() - draws.mean()) < 5 * draws.std() * math.sqrt(2 / 4_000)
    assert photons.var() == pytest.approx(draws.var(), rel=5 * math.sqrt(4 / 4_000))
    counts = np.arange(0, 2000)
    at = np.linspace(light - 0.1, light + 0.1, 21)
    weights = stats.poisson(light / gain).pmf(counts)
    infinite = (weights * stats.norm(gain * counts, read).pdf(at[:, None])).sum(1)
    normal = noise.log_prob(torch.from_numpy(at)[:, None], exact[:21]).exp().numpy()
    np.testing.assert_allclose(normal, infinite, atol=0.01 * infinite.max())


def test_a_widened_noise_is_that_of_the_sum():
    noise, white = measure.SinusoidalNoise(0.5, mean=0.7), measure.GaussianNoise(0.6)
    exact = torch.zeros(2000, 3, dtype=torch.float64)
    both = white.sample(noise.sample(exact, 0), 1)
    scaled = (both - 0.7) / measure.WidenedNoise(noise, 0.6).std_map((3,))
    assert stats.kstest(scaled.flatten().numpy(), "norm").pvalue > 1e-3


def test_dark_and_negative_pixels_have_read_noise_only():
    noise, exact = measure.PoissonGaussianNoise(0.1, 0.03), torch.tensor([[0.0], [-0.5]], dtype=torch.float64)
    y = torch.tensor([[0.01], [-0.52]], dtype=torch.float64)
    expected = stats.norm(exact.numpy(), 0.03).logpdf(y.numpy())[:, 0]
    np.testing.assert_allclose(noise.log_prob(y, exact).numpy(), expected, rtol=1e-12)


def test_of_norm_gives_the_papers_expected_norm():
    noise = measure.GaussianNoise.of_norm(0.1, 500)
    assert noise.std == pytest.approx(0.1 / math.sqrt(500))
    mean_square = float(noise.sample(torch.zeros(400, 500), seed=0).square().sum(1).mean())
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
    torch.testing.assert_close(problem.observe(x[:1], seed=3), y[:1], rtol=1e-6, atol=1e-6)
    assert float((y - problem.operator(x)).std()) == pytest.approx(0.1, rel=0.3)
    exact = measure.Problem(problem.operator, measure.GaussianNoise(0.0))
    assert torch.equal(exact.observe(x), problem.operator(x))


def test_wrong_shapes_in_a_likelihood_are_refused():
    class Summed(measure.GaussianNoise):
        def log_prob(self, y, exact):
            return super().log_prob(y, exact).sum()

    x, operator = torch.rand(3, 1, 4, 4), measure.Identity((1, 4, 4))
    with pytest.raises(ValueError, match=r"y: got shape \(1, 1, 4, 4\); allowed: that of f\(x\), \(3, 1, 4, 4\)"):
        measure.Problem(operator, measure.GaussianNoise(0.1)).log_likelihood(x, x[:1])
    with pytest.raises(ValueError, match=r"Summed.log_prob: got shape \(\); allowed: \(3,\)"):
        measure.Problem(operator, Summed(0.1)).log_likelihood(x, x)


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
        (lambda: measure.GaussianNoise(0.0).log_prob(torch.rand(1, 3), torch.rand(1, 3)), "std: got 0"),
        (
            lambda: measure.GaussianNoise(1e-46).log_prob(torch.rand(1, 3), torch.rand(1, 3)),
            "std: got 0 in torch.float",
        ),
        (lambda: measure.RadialNoise(decay=1.0, floor=0).log_prob(*torch.rand(2, 1, 1, 32, 32)), "std: got 0 in"),
        (lambda: measure.PoissonGaussianNoise(read=1e-30).log_prob(*torch.zeros(2, 1, 3)), "std: got 0 in"),
        (
            lambda: measure.GaussianNoise(1.7).log_prob(*torch.ones(2, 1, 3, dtype=torch.int64)),
            "y: got residuals of torch.int64",
        ),
        (lambda: measure.GaussianNoise(0.1).sample(torch.ones(3), seed=0), "exact: got shape"),
        (lambda: measure.GaussianNoise(0.1).sample(torch.ones(3, 2), seed=None), "seed: got None"),
        (lambda: measure.SinusoidalNoise().sample(torch.ones(3, 2, 2), seed=0), "shape: got"),
        (lambda: measure.SinusoidalNoise(mean=math.inf), "mean: got inf"),
        (lambda: measure.RadialNoise(decay=0), "decay: got 0"),
        (lambda: measure.WidenedNoise(measure.PoissonGaussianNoise(), 0.1), "noise: got PoissonGaussianNoise"),
        (lambda: measure.WidenedNoise(measure.GaussianNoise(0.1), 0), "std: got 0"),
        (lambda: measure.PoissonGaussianNoise(read=0), "read: got 0"),
        (lambda: measure.PoissonGaussianNoise(gain=-1), "gain: got -1"),
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


class LevelOfEach(measure.IndependentNoise):
    """A level for each image."""

    def __init__(self, std, of_each=True):
        self.std, self.of_each = std, of_each

    def std_map(self, shape):
        return self.std.view(-1, *[1] * len(shape))

    def select(self, index):
        return LevelOfEach(self.std[torch.as_tensor(index)]) if self.of_each else self


@pytest.mark.parametrize("shape", [(5,), (1, 2, 3)])
def test_levels_of_each_image_normalise_its_own_density(shape):
    std, exact = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64), uniform(*shape)
    problem = measure.Problem(measure.Identity(shape, "real"), LevelOfEach(std))
    y = problem.observe(exact, seed=1)
    wide = std.view(-1, *[1] * len(shape)).expand_as(y)
    expected = stats.norm(exact, wide).logpdf(y).reshape(3, -1).sum(1)
    torch.testing.assert_close(problem.log_likelihood(exact, y), torch.from_numpy(expected))
    torch.testing.assert_close(problem.select([2]).log_likelihood(exact[2:], y[2:]), torch.from_numpy(expected[2:]))
    torch.testing.assert_close((y - exact) / wide, measure.GaussianNoise(1.0).sample(exact, 1) - exact)
    with pytest.raises(ValueError, match=r"LevelOfEach.draw: got shape \(3, .*for one image; allowed: \(1, "):
        measure.Problem(problem.operator, LevelOfEach(std, of_each=False)).observe(exact)


@pytest.mark.parametrize(
    ("noise", "exact"),
    [
        (measure.GaussianNoise(0.3), 0.7),
        (measure.SinusoidalNoise(0.5, mean=0.7), -0.2),
        (measure.PoissonGaussianNoise(0.5, 0.05), 0.2),
        (measure.PoissonGaussianNoise(0.1, 0.05), -0.2),
    ],
)
def test_the_precision_is_the_mean_square_of_the_score(noise, exact):
    """The Fisher information, by quadrature over y; the camera's noise tells of f(x) by its variance too."""
    y, at = torch.linspace(-4, 6, 200_001, dtype=torch.float64)[:, None], torch.tensor([[exact]], dtype=torch.float64)
    place = at.expand_as(y).clone().requires_grad_()
    log_prob = noise.log_prob(y, place)
    (score,) = torch.autograd.grad(log_prob.sum(), place)
    expected = torch.trapezoid(log_prob.exp() * score[:, 0].square(), y[:, 0])
    torch.testing.assert_close(noise.precision(at)[0, 0], expected.detach(), rtol=1e-6, atol=0)


def test_a_noise_that_does_not_say_its_precision_is_refused():
    class Other(measure.Noise):
        draw = log_prob = None

    with pytest.raises(ValueError, match=r"noise: got Other, which has no precision; allowed: "):
        Other().precision(uniform(4))
