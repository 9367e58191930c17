"""A Gaussian prior's closed form against NumPy's pseudo-inverse, the minimisers, and conditioning of a joint law."""

import numpy as np
import pytest
import torch

from companion import measure, recover
from companion.energy import Energy, LatentNorm, NoiseMisfit, SquaredMisfit
from companion.recover.gaussian import gaussian_map


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class LinearFlow(torch.nn.Module):
    def __init__(self, factor, mean, shape):
        super().__init__()
        self.factor, self.mean, self.shape, self.latent_dim = factor, mean, shape, factor.shape[1]

    def decode(self, z):
        return self.mean + (z @ self.factor.T).unflatten(1, self.shape)


SHAPE = (2, 3, 4)
FACTOR = normal(24, 24, seed=1) @ torch.diag(torch.arange(1, 25, dtype=torch.float64) ** -1.0)
MEAN = normal(*SHAPE, seed=2)


def test_without_noise_it_is_the_shortest_latent():
    operator = measure.Gaussian(SHAPE, 7, seed=3)
    x = MEAN + (normal(3, 24, seed=4) @ FACTOR.T).unflatten(1, SHAPE)
    result = gaussian_map(operator, operator(x), FACTOR, MEAN)
    matrix = operator.matrix(x).numpy() @ FACTOR.numpy()
    shortest = np.linalg.pinv(matrix) @ (operator(x) - operator(MEAN[None])).numpy().T
    np.testing.assert_allclose(result.z.T, shortest, atol=1e-10)
    torch.testing.assert_close(operator(result.x), operator(x), atol=1e-10, rtol=0)
    torch.testing.assert_close(result.energy, result.z.square().sum(1) / 2)
    assert result.converged.all() and not result.evaluations.any()


def test_without_noise_no_other_image_that_fits_is_more_likely():
    operator = measure.Gaussian(SHAPE, 7, seed=3)
    x = (normal(1, 24, seed=4) @ FACTOR.T).unflatten(1, SHAPE)
    best = gaussian_map(operator, operator(x), FACTOR).x
    density = torch.distributions.MultivariateNormal(torch.zeros(24, dtype=torch.float64), FACTOR @ FACTOR.T)
    for seed in range(100, 120):  # the seed of A would give a row of A
        for size in (1e-3, 1.0):
            other = recover.null_space_neighbour(operator, best, size, seed)
            assert density.log_prob(other.flatten()) < density.log_prob(best.flatten())


def test_noise_of_another_level_in_every_measurement_is_that_of_whitened_ones():
    operator, std = measure.Gaussian(SHAPE, 7, seed=3), normal(7, seed=8).abs() + 0.01
    y = normal(3, 7, seed=5)
    found = gaussian_map(operator, y, FACTOR, MEAN, std)
    matrix = operator.matrix(y)
    cross, second = FACTOR @ FACTOR.T @ matrix.T, matrix @ FACTOR @ FACTOR.T @ matrix.T + std.square().diag()
    expected = MEAN.flatten() + torch.linalg.solve(second, (y - matrix @ MEAN.flatten()).T).T @ cross.T
    torch.testing.assert_close(found.x.flatten(1), expected)
    expected = ((operator(found.x) - y) / std).square().sum(1) / 2 + found.z.square().sum(1) / 2
    torch.testing.assert_close(found.energy, expected)
    alike = gaussian_map(operator, y, FACTOR, MEAN, torch.full((1,), 0.3))
    torch.testing.assert_close(alike.x, gaussian_map(operator, y, FACTOR, MEAN, 0.3).x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("std", [0.01, 0.5])
def test_with_noise_it_is_the_conditional_mean_of_the_joint_law(std):
    operator = measure.Downsample((1, 4, 6), 2)
    mean = MEAN.view(1, 4, 6)
    y = normal(3, *operator.output_shape, seed=5)
    matrix = torch.stack([operator(e.view(1, 1, 4, 6)).flatten() for e in torch.eye(24, dtype=torch.float64)], 1)
    joint = torch.cat([FACTOR, matrix @ FACTOR])
    joint = joint @ joint.T
    joint[24:, 24:] += std**2 * torch.eye(6)
    gain = torch.linalg.solve(joint[24:, 24:], joint[24:, :24]).T
    expected = mean.flatten() + (y.flatten(1) - (matrix @ mean.flatten())) @ gain.T
    torch.testing.assert_close(gaussian_map(operator, y, FACTOR, mean, std).x.flatten(1), expected, atol=1e-9, rtol=0)


def test_the_minimisers_find_the_posterior_mean_and_from_zero_the_constrained_estimate():
    operator = measure.Gaussian(SHAPE, 9, seed=6)
    flow = LinearFlow(FACTOR, MEAN, SHAPE)
    y = normal(4, 9, seed=7)
    noise = measure.GaussianNoise(0.1)
    energy = Energy(flow, NoiseMisfit(measure.Problem(operator, noise), y), LatentNorm(0.5, squared=True))
    found = recover.minimise(energy, normal(4, 24, seed=8), max_iterations=2000)
    torch.testing.assert_close(found.x, gaussian_map(operator, y, FACTOR, MEAN, 0.1).x, atol=1e-4, rtol=0)
    found = recover.flow_latent(flow, operator, y, max_iterations=2000, tolerance_gradient=1e-9)
    exact = gaussian_map(operator, y, FACTOR, MEAN)
    torch.testing.assert_close(found.x, exact.x, atol=1e-4, rtol=0)
    elsewhere = recover.flow_latent(flow, operator, y, z0=normal(4, 24, seed=9), max_iterations=2000)
    assert SquaredMisfit(operator, y)(elsewhere.x).max() < 1e-6
    # what A G does not see stays as it was at the start
    seen = torch.linalg.pinv(operator.matrix(y) @ FACTOR) @ (operator.matrix(y) @ FACTOR)
    kept = normal(4, 24, seed=9) @ (torch.eye(24, dtype=torch.float64) - seen)
    torch.testing.assert_close(elsewhere.z, exact.z + kept, atol=1e-3, rtol=0)


def test_a_small_noise_tends_to_none_and_a_factor_of_any_rank_will_do():
    operator = measure.Gaussian(SHAPE, 7, seed=3)
    y = normal(2, 7, seed=4)
    limit = gaussian_map(operator, y, FACTOR, MEAN, 1e-7).x
    torch.testing.assert_close(limit, gaussian_map(operator, y, FACTOR, MEAN).x, atol=1e-6, rtol=0)
    triangular = torch.linalg.cholesky(FACTOR @ FACTOR.T)
    torch.testing.assert_close(gaussian_map(operator, y, triangular, MEAN).x, gaussian_map(operator, y, FACTOR, MEAN).x)
    thin, wide = FACTOR[:, :5], torch.cat([FACTOR[:, :5], torch.zeros(24, 3, dtype=torch.float64)], 1)
    torch.testing.assert_close(
        gaussian_map(operator, y, thin, MEAN, 0.1).x, gaussian_map(operator, y, wide, MEAN, 0.1).x
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", [0.0, 0.1])
def test_no_image_depends_on_its_neighbours(dtype, std):
    operator = measure.Gaussian(SHAPE, 7, seed=3)
    y = normal(5, 7, seed=4, dtype=dtype)
    together = gaussian_map(operator, y, FACTOR, MEAN, std).x
    assert together.dtype == dtype
    alone = torch.cat([gaussian_map(operator, row[None], FACTOR, MEAN, std).x for row in y])
    torch.testing.assert_close(together, alone)


def test_float32_measurements_are_solved_in_float64():
    operator = measure.Gaussian(SHAPE, 7, seed=3)
    y = normal(3, 7, seed=4)
    steep = FACTOR @ torch.diag(torch.logspace(0, -6, 24, dtype=torch.float64))
    exact = gaussian_map(operator, y.float().double(), steep, MEAN, 1e-7)
    found = gaussian_map(operator, y.float(), steep.float().double(), MEAN, 1e-7)
    assert found.x.dtype == torch.float32
    torch.testing.assert_close(found.x.double(), exact.x, rtol=1e-4, atol=1e-4)


def test_bad_arguments():
    operator = measure.Gaussian(SHAPE, 7)
    y = normal(2, 7)
    with pytest.raises(ValueError, match=r"factor: got shape \(23, 24\); allowed: \[24, k\]"):
        gaussian_map(operator, y, FACTOR[1:])
    with pytest.raises(ValueError, match=r"y: got shape \(2, 6\)"):
        gaussian_map(operator, y[:, 1:], FACTOR)
    with pytest.raises(ValueError, match=r"mean: got shape"):
        gaussian_map(operator, y, FACTOR, MEAN.flatten())
    for mean, given in (([0.0] * 24, "list"), (0.5, "float"), (torch.tensor(0.5), r"shape \(\)")):
        with pytest.raises(ValueError, match=f"mean: got {given}"):
            gaussian_map(operator, y, FACTOR, mean)
    with pytest.raises(ValueError, match=r"y: got torch.float16; allowed: torch.float32 or torch.float64"):
        gaussian_map(operator, y.half(), FACTOR)
    with pytest.raises(ValueError, match=r"noise_std: got -1"):
        gaussian_map(operator, y, FACTOR, noise_std=-1)
    with pytest.raises(ValueError, match=r"noise_std: got 0.0; allowed: a finite number > 0"):
        gaussian_map(operator, y, FACTOR, noise_std=torch.tensor([0.0, 1, 1, 1, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"noise_std: got shape \(3,\); allowed: one that broadcasts to \(7,\)"):
        gaussian_map(operator, y, FACTOR, noise_std=torch.ones(3))
    with pytest.raises(ValueError, match=r"noise_std: got 0.0, with 7 measurements that are dependent .* 5 latents"):
        gaussian_map(operator, y, FACTOR[:, :5])
    with pytest.raises(ValueError, match="operator: got SignOf"):
        gaussian_map(measure.SignOf(operator), y, FACTOR)
