"""Misfits for one bit a measurement: what stands in for the sign, whose derivative is zero.

Whang et al. 2020, sec. 5.4.4, add the noise after the sign, y = sign(A x) + δ, so that y are real numbers; where it is
added before, y = sign(A x + δ) are bits, and their likelihood is smooth.
"""

import math
from typing import Self

import torch
from torch import Tensor

from companion import _support
from companion.energy.terms import Misfit, checked_problem
from companion.measure.base import Index, replaced
from companion.measure.linear import Scaling
from companion.measure.noise import IndependentNoise, WidenedNoise, positive_std
from companion.measure.nonlinear import LinearComposition, SignOf
from companion.measure.problem import Problem


class _WithNoise(Misfit):
    """A misfit with a noise beside its operator, chosen with it for some images."""

    noise: IndependentNoise

    def select(self, index: Index) -> Self:
        return replaced(super().select(index), noise=self.noise.select(index))


class PerceptronMisfit(_WithNoise):
    """Σ_j (|u_j| − (y_j − mean) u_j) / σ_j², u = A x, for y = sign(A x) + δ with independent normal δ.

    Its gradient is exactly the straight-through one of ``NoiseMisfit(problem, y)``, the perceptron's: a measurement
    whose sign is right pulls too, by its noise, so that it is not zero at the truth; it is of degree 1 in x, so that
    only the prior says how bright the image is; and where |y − mean| > 1 it is not even bounded below. But a line
    search can follow it. ValueError for noise of standard deviation 0.
    """

    def __init__(self, problem: Problem, y: Tensor) -> None:
        linear = _signs(problem).linear
        super().__init__(linear, y)
        self.noise = _independent(problem)
        positive_std(self.noise.std_map(self.operator.output_shape).square(), self.y)

    def __call__(self, x: Tensor) -> Tensor:
        value = self.operator.forward(x)
        std = self.noise.std_map(self.operator.output_shape).to(value.dtype).to(value.device)
        size = torch.where(value < 0, -value, value)  # |u|, with derivative 1 at 0, as SignOf counts it
        return ((size - (self.y - self.noise.mean) * value) / std.square()).flatten(1).sum(1)


class ProbitMisfit(_WithNoise):
    """−Σ_j log Φ(y_j (A x + mean)_j / σ_j), in nats, for bits y = sign(A x + δ), ±1, with independent normal δ.

    The likelihood itself, convex in A x; `problem` is that of the linear measurements A x + δ before the sign.
    ValueError for noise of standard deviation 0.
    """

    def __init__(self, problem: Problem, y: Tensor) -> None:
        if isinstance(operator := checked_problem(problem).operator, SignOf):
            raise ValueError("problem: got the operator SignOf; allowed: the linear one whose signs y has")
        super().__init__(operator, y)
        if not (self.y.abs() == 1).all():
            raise ValueError(f"y: got values from {float(y.min()):.3g} to {float(y.max()):.3g}; allowed: -1 and 1")
        self.noise = _independent(problem)
        positive_std(self.noise.std_map(self.operator.output_shape), self.y)

    def __call__(self, x: Tensor) -> Tensor:
        value = self.operator.forward(x)
        std = self.noise.std_map(self.operator.output_shape).to(value.dtype).to(value.device)
        return -torch.special.log_ndtr(self.y * (value + self.noise.mean) / std).flatten(1).sum(1)


def linearised(problem: Problem, norm: float) -> Problem:
    """The linear problem nearest to y = sign(A x) + δ: y ≈ c A x + e + δ, for images of about that ‖x‖.

    For A with entries N(0, 1/m) the measurements u = A x are N(0, ‖x‖²/m), and c = E|u| / E u² = √(2m/π) / ‖x‖ leaves
    the least of sign(u) to e, which has variance 1 − 2/π, is not correlated with u, and is taken for normal (Plan &
    Vershynin 2016, sec. 1; Bussgang 1952). The noise is δ widened by e.
    """
    linear, norm = _signs(problem).linear, _support.positive("norm", norm)
    m = math.prod(linear.output_shape)
    scaled = LinearComposition(Scaling(linear.output_shape, math.sqrt(2 * m / math.pi) / norm, "real"), linear)
    return Problem(scaled, WidenedNoise(_independent(problem), math.sqrt(1 - 2 / math.pi)))


def _signs(problem: Problem) -> SignOf:
    operator = checked_problem(problem).operator
    if not isinstance(operator, SignOf):
        raise ValueError(f"problem: got the operator {type(operator).__name__}; allowed: measure.SignOf")
    return operator


def _independent(problem: Problem) -> IndependentNoise:
    if not isinstance(problem.noise, IndependentNoise):
        raise ValueError(f"problem: got {type(problem.noise).__name__}; allowed: a measure.IndependentNoise")
    return problem.noise
