"""An inverse problem: what is measured, and how noisily."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from companion import _support
from companion.measure.base import Operator
from companion.measure.noise import Noise


@dataclass(frozen=True)
class Problem:
    """Measurements y = f(x) + δ.

    Attributes
    ----------
    operator : Operator
        The forward operator f.
    noise : Noise
        The noise model of δ.
    """

    operator: Operator
    noise: Noise

    def __post_init__(self) -> None:
        for name, value, kind in (("operator", self.operator, Operator), ("noise", self.noise, Noise)):
            if not isinstance(value, kind):
                raise ValueError(f"{name}: got {type(value).__name__}; allowed: a measure.{kind.__name__}")

    def observe(self, x: Tensor, seed: int | torch.Generator = 0) -> Tensor:
        """Noisy measurements, [batch, *output_shape], of images x in [0, 1].

        The noise of the first images does not depend on how many follow (:meth:`Noise.sample`). ValueError for a
        wrong shape, NaN, or pixels outside [0, 1].
        """
        if len(self.operator.shape) == 3:
            _support.images("x", x, self.operator.shape)
        exact = self.operator(x)
        return exact + self.noise.sample(exact.shape, seed, like=exact)

    def select(self, index: Sequence[int] | Tensor) -> "Problem":
        """The problem of the images at `index`."""
        return Problem(self.operator.select(index), self.noise.select(index))

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x) = log p_δ(y − f(x)) in nats, [batch]; unchecked, for solvers."""
        return self.noise.log_prob(y - self.operator.apply(x))
