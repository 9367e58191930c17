"""Densities whose every answer is known: a linear-Gaussian problem, and a banana in the plane."""

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from companion import measure, priors
from companion.energy import Energy, LatentNorm, NoiseMisfit


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@dataclass
class LinearGaussian:
    """y = A W z + δ with z ~ N(0, I): posterior N(mean, covariance), and log p(y)."""

    energy: Energy
    mean: Tensor  # [images, n]
    covariance: Tensor  # [n, n]
    log_evidence: Tensor  # [images]
    truth: Tensor  # [images, n]

    @classmethod
    def of(cls, images=2, n=3, m=4, std=0.5, seed=0):
        weight, truth = normal(6, n, seed=seed), normal(images, n, seed=seed + 100)
        prior = priors.Linear(weight)
        problem = measure.Problem(measure.Gaussian((6,), m, seed, domain="real"), measure.GaussianNoise(std))
        y = problem.observe(prior.decode(truth), seed)
        matrix = problem.operator.matrix(y) @ weight
        covariance = torch.linalg.inv(torch.eye(n, dtype=y.dtype) + matrix.T @ matrix / std**2)
        mean = y @ matrix @ covariance / std**2
        marginal = stats.multivariate_normal(cov=(matrix @ matrix.T + std**2 * torch.eye(m)).numpy())
        evidence = torch.as_tensor(marginal.logpdf(y.numpy())).reshape(images)
        energy = Energy(prior, NoiseMisfit(problem, y), LatentNorm(0.5, squared=True))
        return cls(energy, mean, covariance, evidence, truth)


BANANA_STD = 0.5


def banana(z):
    """−log density of x ~ N(0, 1), y | x ~ N(x²/2, ½²), but for a constant."""
    x, y = z.unbind(1)
    return 0.5 * x.square() + 0.5 * ((y - 0.5 * x.square()) / BANANA_STD).square()


def banana_draws(number, seed):
    x, noise = normal(number, 2, seed=seed).unbind(1)
    return torch.stack([x, 0.5 * x.square() + BANANA_STD * noise], 1)


def standardised(z):
    """Coordinates of the banana in which exact draws are N(0, I)."""
    x, y = z.unbind(1)
    return torch.stack([x, (y - 0.5 * x.square()) / BANANA_STD], 1)
