"""Algorithm 1 of Ang 2021 as the report prints it and its code computes it, whatever the posterior is."""

from typing import Any

from torch import Tensor

from companion import measure, sample
from companion.energy import Energy, LatentNorm, SquaredMisfit

RATE = 0.01  # η


def energy(prior: Any, problem: measure.Problem, y: Tensor) -> Energy:
    """‖f(G(z)) − y‖² + λ ‖z‖²/2 with the code's λ = 1; the report has 2σ²/m."""
    return Energy(prior, SquaredMisfit(problem.operator, y), LatentNorm(0.5, squared=True))


def langevin(target: Energy, z0: Tensor, **options: Any) -> sample.Chains:
    """Steps of η down the gradient, with noise √η."""
    return sample.langevin(target, z0, step=(2 * RATE) ** 0.5, temperature=0.5, **options)
