"""Terms of an energy: misfits of images and penalties of points."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from companion import _support
from companion.energy.points import Point
from companion.measure.base import Index, Operator, replaced
from companion.measure.problem import Problem


def shaped(name: str, value: Tensor, shape: Sequence[int]) -> Tensor:
    """The value, if it has that shape, else ValueError: broadcasting would mix the images of a batch."""
    if not isinstance(value, Tensor) or tuple(value.shape) != tuple(shape):
        given = f"values of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: got {given}; allowed: a tensor of shape {tuple(shape)}")
    return value


def checked_problem(problem: Problem) -> Problem:
    """The problem, if it is one and not an operator alone, else ValueError."""
    if not isinstance(problem, Problem):
        raise ValueError(f"problem: got {type(problem).__name__}; allowed: a measure.Problem(operator, noise)")
    return problem


class Misfit(ABC):
    """How badly images explain measurements y, [batch, *operator.output_shape]; a subclass says it in ``__call__``.

    ValueError for an operator that is no :class:`companion.measure.Operator`, and where y are not its measurements.
    """

    operator: Operator
    y: Tensor

    def __init__(self, operator: Operator, y: Tensor) -> None:
        if not isinstance(operator, Operator):
            raise ValueError(f"operator: got {type(operator).__name__}; allowed: a measure.Operator")
        self.operator = operator
        self.y = operator.check_measurements(y).detach().clone()  # the caller may go on to write into his own

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The misfit of each image, [batch]."""

    def select(self, index: Index) -> Self:
        """The misfit for the images at `index`; to be extended where there are more data for each image."""
        return replaced(self, operator=self.operator.select(index), y=self.y[index])


class SquaredMisfit(Misfit):
    """‖f(x) − y‖², summed over measurements (Asim et al. 2020, eq. 2)."""

    def __call__(self, x: Tensor) -> Tensor:
        return (self.operator.forward(x) - self.y).square().flatten(1).sum(1)


class NoiseMisfit(Misfit):
    """−log p(y | f(x)) in nats, for a problem with any noise model (Whang et al. 2020, eq. 12)."""

    def __init__(self, problem: Problem, y: Tensor) -> None:
        super().__init__(checked_problem(problem).operator, y)
        self.problem = problem

    def __call__(self, x: Tensor) -> Tensor:
        return -self.problem.log_likelihood(x, self.y)

    def select(self, index: Index) -> Self:
        return replaced(super().select(index), problem=self.problem.select(index))


class Penalty(ABC):
    """What an energy adds to its misfits: [batch] values of a :class:`Point`, said by a subclass in ``__call__``.

    A plain function is refused: where it holds data of its own, it could not say which belong to which image.
    """

    @abstractmethod
    def __call__(self, point: Point) -> Tensor:
        """The penalty of each image, [batch]."""

    def select(self, index: Index) -> Self:
        """The penalty for the images at `index`: the same one, unless it has data for each image."""
        return self


class _Weighted(Penalty):
    """A penalty times a weight >= 0: a number, or a tensor [batch] with one for each image."""

    def __init__(self, name: str, weight: float | Tensor) -> None:
        if isinstance(weight, Tensor) and weight.dim() == 1:
            _support.positive(name, float(_support.finite(name, weight).min()), zero=True)
            self.weight: float | Tensor = weight.clone()
        else:
            self.weight = _support.positive(name, weight, zero=True)  # type: ignore[arg-type]

    @abstractmethod
    def one(self, point: Point) -> Tensor:
        """The penalty for weight 1, [batch]."""

    def __call__(self, point: Point) -> Tensor:
        value = self.one(point)
        if not isinstance(self.weight, Tensor):
            return self.weight * value
        return shaped(f"weights of {type(self).__name__}", self.weight.to(value), value.shape) * value

    def select(self, index: Index) -> Self:
        return replaced(self, weight=self.weight[index]) if isinstance(self.weight, Tensor) else self


class LatentNorm(_Weighted):
    """γ‖z‖ (Asim et al. 2020, eq. 2), or γ‖z‖² with `squared` (Bora et al. 2017, eq. 4); γ a number or [batch].

    With `squared` and γ = 1/2 it is −log p(z), up to a constant. At z = 0 the gradient of ‖z‖ is taken to be 0.
    """

    def __init__(self, gamma: float | Tensor, squared: bool = False) -> None:
        super().__init__("gamma", gamma)
        self.squared = squared

    def one(self, point: Point) -> Tensor:
        return point.z.square().sum(1) if self.squared else torch.linalg.vector_norm(point.z, dim=1)


class FlowLikelihood(_Weighted):
    """−β log p(x) in nats (Asim et al. 2020, eq. 1; Whang et al. 2020, eq. 12); β a number or [batch]."""

    def __init__(self, beta: float | Tensor = 1.0) -> None:
        super().__init__("beta", beta)

    def one(self, point: Point) -> Tensor:
        return -point.log_prob
